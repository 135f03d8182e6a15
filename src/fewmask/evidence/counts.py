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
    """[n], their mean is the score; None where the cell holds no counts that give it."""


def read_scored(score: float, cell: Path | None) -> ScoredRun:
    """The counts of a cell's per_image.csv, if it is there, can be read and fits the score."""
    if cell is None:
        return ScoredRun(score)
    try:
        names, inside, union = read_counts(cell)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return ScoredRun(score)
    values = influences(inside, union)
    if not abs(float(values.mean()) - score) < CLOSE:
        return ScoredRun(score)
    return ScoredRun(score, names, values)


def read_counts(cell: Path) -> tuple[tuple[str, ...], Values, Values]:
    """(names, intersections [n,K], unions [n,K]) of a cell's test images, in pixels.

    Of two classes those of the foreground alone, K = 1, as its IoU. Raises OSError, ValueError,
    KeyError, TypeError or csv.Error where per_image.csv is not there or not ours.
    """
    with (cell / "per_image.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not rows:
        raise ValueError(f"{cell}: per_image.csv holds no image")
    columns = rows[0].keys()
    classes = [""] if "tp" in columns else [c[2:] for c in columns if c.startswith("tp_")]
    table = np.array(
        [[[float(row[f"{of}{name}"]) for name in classes] for row in rows]
         for of in ("tp", "fp", "fn")]
    )  # fmt: skip
    return tuple(row["name"] for row in rows), table[0], table.sum(axis=0)
