"""Paired differences between the arms of a study and one baseline.

The unit of replication is the run (an order of the labels and a training seed), not the image.
All arms of a repeat share both, so their scores are compared pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from fewmask.types import UserError

FEWEST_FOR_INTERVAL = 3
"""With two repeats the t quantile is 12.7: the interval would say nothing."""

Row = Mapping[str, str | float]


@dataclass(frozen=True)
class Difference:
    """One arm minus the baseline at one budget. Scores and differences are fractions of 1.

    `pairs` holds (arm's score, baseline's score) of each of `repeats`; `differences` are first
    minus second, `mean` is their mean. `interval` is the 95 % paired t interval of the mean, None
    for fewer than 3 repeats. It covers what a new run would change (the labels drawn and the
    training seed; the seed alone where the repeats share their labels), on these test images. It
    does not cover the choice of the test images, nor that several comparisons are made at once.
    """

    arm: str
    budget: int | float
    repeats: tuple[int, ...]
    pairs: tuple[tuple[float, float], ...]
    differences: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None


def parse_budget(value: str | float) -> int | float:
    """A share of all pairs (a float, up to 1) or a number of masks (an int, from 2).

    >>> parse_budget("0.2"), parse_budget("8"), parse_budget(8.0)
    (0.2, 8, 8)
    """
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if 0 < number <= 1:
        return number
    if number > 1 and number.is_integer():
        return int(number)
    raise UserError(f"budget {value!r} is neither a share in 0..1 nor a whole number of masks")


def paired_differences(
    rows: list[Mapping[str, str | float]], baseline: str, score: str = "iou"
) -> list[Difference]:
    """Every arm's differences to `baseline`, in the order of the rows; pairs without both are out.

    `rows` are those of `results.csv` (text or numbers): arm, budget, repeat and `score`, which is
    empty, None or NaN where it is undefined or the cell is pending. Raises UserError where two
    rows are of one arm, budget and repeat.
    """
    scores: dict[tuple[str, int | float], dict[int, float]] = {}
    for row in rows:
        key, repeat = (str(row["arm"]), parse_budget(row["budget"])), int(row["repeat"])
        runs = scores.setdefault(key, {})
        if repeat in runs:
            raise UserError(
                f"the results hold two rows of arm {key[0]}, budget {key[1]}, repeat {repeat}; "
                "each cell has one"
            )
        runs[repeat] = read_score(row.get(score))
    found = []
    for (arm, budget), runs in scores.items():
        other = scores.get((baseline, budget), {})
        shared = {r: (runs[r], other[r]) for r in sorted(runs) if r in other}
        pairs = {r: pair for r, pair in shared.items() if not any(map(math.isnan, pair))}
        if arm != baseline and pairs:
            found.append(_difference(arm, budget, pairs))
    return found


def read_score(value: str | float | None) -> float:
    """A score of `results.csv` as a number; NaN where it is empty."""
    try:
        return math.nan if value is None or value == "" else float(value)
    except ValueError:
        raise UserError(f"score {value!r} of the results is not a number") from None


def _difference(
    arm: str, budget: int | float, pairs: Mapping[int, tuple[float, float]]
) -> Difference:
    differences = tuple(first - second for first, second in pairs.values())
    return Difference(
        arm=arm,
        budget=budget,
        repeats=tuple(pairs),
        pairs=tuple(pairs.values()),
        differences=differences,
        mean=fmean(differences),
        interval=t_interval(differences),
    )


def t_interval(values: tuple[float, ...], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of `values`; None for fewer than 3 of them."""
    if len(values) < FEWEST_FOR_INTERVAL:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    mean = fmean(values)
    return mean - half, mean + half
