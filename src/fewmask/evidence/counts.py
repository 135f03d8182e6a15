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
        with (cell / "per_image.csv").open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        values = influences(*_counts(rows))
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ScoredRun(score)
    if not abs(float(values.mean()) - score) < CLOSE:
        return ScoredRun(score)
    return ScoredRun(score, tuple(row["name"] for row in rows), values)


def _counts(rows: list[dict[str, str]]) -> tuple[Values, Values]:
    """Intersections and unions [n,K]; of two classes those of the foreground alone, as the IoU."""
    columns = rows[0].keys()
    classes = [""] if "tp" in columns else [c[2:] for c in columns if c.startswith("tp_")]
    table = np.array(
        [[[float(row[f"{of}{name}"]) for name in classes] for row in rows]
         for of in ("tp", "fp", "fn")]
    )  # fmt: skip
    return table[0], table.sum(axis=0)
