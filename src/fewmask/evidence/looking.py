"""Looking early: what a p-value is worth when repeats are added until something shows.

Whoever looks after every repeat and stops at the first p below 0.05 is wrong far more often than
once in twenty times. So a p-value counts here by how often the smallest p of all looks, from the
first to the last allowed, falls below it when there is no difference: a boundary of one level for
all looks, as Pocock's (1977, Biometrika 64:191), for paired t tests. It needs the last look to be
fixed beforehand, and no look to be left out of `first` and `most`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from fewmask.evidence.crossed import Values

STUDIES = 200_000
"""Simulated: the share of 0.05 is known to 0.0005."""


@lru_cache(maxsize=8)
def smallest_p(first: int, most: int) -> Values:
    """Sorted smallest p [STUDIES] of looks after `first`, `first` + 1, ... `most` runs, no effect.

    Two-sided paired t tests of normal differences. Test images, which stay the same over the looks,
    make real p-values fall together and so the smallest one larger: this is the worst case.
    """
    *_, last = _smallest(first, most, STUDIES)
    return last


def _smallest(first: int, most: int, studies: int) -> Iterator[Values]:
    """Sorted smallest p [studies] of the looks so far, at each look after `first` runs or more."""
    from scipy.stats import t

    random = np.random.default_rng(0)
    smallest = np.ones(studies)
    total, squares = np.zeros(studies), np.zeros(studies)
    for n in range(1, most + 1):
        new = random.standard_normal(studies)
        total += new
        squares += new**2
        if n >= 2:
            variance = (squares - total**2 / n) / (n - 1)
            statistic = np.abs(total) / np.sqrt(n * variance)
            if n >= first:
                smallest = np.minimum(smallest, 2 * t.sf(statistic, n - 1))
        if n >= first:
            yield np.sort(smallest)


FORETOLD = 20_000
"""Simulated for what lies ahead: the share of 0.05 is known to 0.0015."""


@lru_cache(maxsize=8)
def smallest_p_so_far(first: int, most: int) -> list[Values]:
    """For n = `first`, `first` + 1, ... `most`: sorted smallest p [FORETOLD] of looks up to n."""
    return list(_smallest(first, most, FORETOLD))


def adjusted_ahead(p_values: Values, first: int, runs: int) -> Values:
    """`p_values` [m] after runs + 1 to runs + m runs, each adjusted as that of the last look.

    The first look was after `first` runs, at most `runs`.
    """
    horizon = 100 * -(-(runs + len(p_values)) // 100)  # one simulation serves all up to there
    found = smallest_p_so_far(first, horizon)[runs + 1 - first :]
    pairs = zip(p_values.tolist(), found, strict=False)
    shares = [(np.searchsorted(one, p, side="right") + 1) / (len(one) + 1) for p, one in pairs]
    return np.array(shares)


def adjusted(p: float, first: int, most: int) -> float:
    """How often, without a difference, the smallest p of all looks is at most `p`."""
    if most <= first:
        return p
    found = smallest_p(first, most)
    return float((np.searchsorted(found, p, side="right") + 1) / (len(found) + 1))


def nominal(level: float, first: int, most: int) -> float:
    """The level of the interval at each look, for all of them together to hold at `level`.

    Repeated confidence intervals (Jennison & Turnbull 1989, JRSS B 51:305).
    """
    if most <= first:
        return level
    return 1 - float(np.quantile(smallest_p(first, most), 1 - level))
