"""What a finished cell says of every test image."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewmask.evidence.crossed import Values, influences

CLOSE = 1e-6
"""How near the counts' IoU must be to the one in results.csv, to be of the same run."""


@dataclass(frozen=True)
class ScoredRun:
    """A run's IoU over the data set, and each test image's value in it (see `influences`)."""

    score: float
    names: tuple[str, ...] = ()
    values: Values | None = None
    """[n], their mean is the score; None where the cell holds no counts."""


def read_scored(score: float, cell: Path | None) -> ScoredRun:
    """A run's score, with the counts of its cell's per_image.csv where there are any.

    Raises OSError, ValueError, KeyError, TypeError or csv.Error where that file is not ours, or its
    counts don't give the score: an interval without them would be too narrow.
    """
    counts = None if cell is None else read_counts(cell / "per_image.csv")
    if counts is None:
        return ScoredRun(score)
    names, inside, union = counts
    values = influences(inside, union)
    found = float(values.mean())
    if not abs(found - score) < CLOSE:
        raise ValueError(f"its counts give an IoU of {found:.6f}, the results say {score:.6f}")
    return ScoredRun(score, names, values)


def read_counts(path: Path) -> tuple[tuple[str, ...], Values, Values] | None:
    """(names, intersections [n,K], unions [n,K]) of a cell's test images, in pixels.

    Of two classes those of the foreground alone, K = 1, as its IoU. None where there is no such
    file, or no counts in it. Raises as `read_scored` where it is not ours.
    """
    if not path.is_file():
        return None
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not rows:
        raise ValueError("holds no image")
    columns = rows[0].keys()
    classes = [""] if "tp" in columns else [c[2:] for c in columns if c.startswith("tp_")]
    names = tuple(row["name"] for row in rows)
    if not classes:
        raise ValueError("has no column tp")
    texts = [[[row[f"{of}{name}"] for name in classes] for row in rows]
             for of in ("tp", "fp", "fn")]  # fmt: skip
    if not any(text for table in texts for row in table for text in row):
        return None
    table = np.array([[[float(text) for text in row] for row in rows] for rows in texts])
    if table.min() < 0:
        raise ValueError("a count is negative")
    return names, table[0], table.sum(axis=0)
