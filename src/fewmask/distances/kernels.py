"""The maximum mean discrepancy between two sets of features, with two kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fewmask.distances.jackknife import Estimate, Vector, jackknife

Features = NDArray[np.float64]
"""[n,D], a row a picture."""
Kernel = Callable[[Features, Features], NDArray[np.float64]]
"""[b,D], [n,D] -> [b,n]."""
BLOCK = 512
"""Rows of the kernel's matrix that are held at once."""
SPREAD_ROWS = 1000
"""Pictures of the target that the Gaussian's width is measured on."""


def kid(source: Features, target: Features) -> Estimate:
    """The kernel inception distance: unbiased MMD^2 with k(x, y) = (x.y/D + 1)^3.

    Binkowski et al. 2018, arXiv:1801.01401. Their features are Inception's; the kernel depends on
    the features' scale, so bring those of another encoder to a root mean square of 1 on the target
    first. Around 0 for equal sets, without bias at any sample size; no upper end.
    """
    return unbiased_mmd2(source, target, cubic)


def gaussian_mmd2(source: Features, target: Features) -> Estimate:
    """Unbiased MMD^2 with k(x, y) = exp(-|x - y|^2 / (2 s^2)), s the target's median distance.

    Gretton et al. 2012 (JMLR 13:723), lemma 6; their median heuristic pools both sets, which would
    give every source a ruler of its own. Unlike KID it sees all moments, and a few far pictures
    don't rule it. Around 0 for equal sets, at most 2.
    """
    width = median_distance(target)
    return unbiased_mmd2(source, target, lambda x, y: gaussian(x, y, width))


def cubic(x: Features, y: Features) -> NDArray[np.float64]:
    """(x.y/D + 1)^3 of all pairs: [b,D], [n,D] -> [b,n]."""
    values: NDArray[np.float64] = (x @ y.T / x.shape[1] + 1) ** 3
    return values


def gaussian(x: Features, y: Features, width: float) -> NDArray[np.float64]:
    """exp(-|x - y|^2 / (2 width^2)) of all pairs: [b,D], [n,D] -> [b,n]."""
    values: NDArray[np.float64] = np.exp(squared_distances(x, y) / (-2 * width**2))
    return values


def squared_distances(x: Features, y: Features) -> NDArray[np.float64]:
    """|x - y|^2 of all pairs: [b,D], [n,D] -> [b,n]."""
    squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1)
    values: NDArray[np.float64] = np.maximum(squares - 2 * (x @ y.T), 0)
    return values


def median_distance(features: Features) -> float:
    """The median distance of two different rows (of the first 1,000); 1 where that is 0."""
    some = features[:SPREAD_ROWS]
    pairs = np.triu_indices(len(some), 1)
    return float(np.sqrt(np.median(squared_distances(some, some)[pairs]))) or 1.0


def unbiased_mmd2(source: Features, target: Features, kernel: Kernel) -> Estimate:
    """MMD_u^2 = mean of k within the source + within the target - 2 mean of k between.

    Gretton et al. 2012 (JMLR 13:723), lemma 6: no picture meets itself. Source [m,D], target [n,D],
    m and n at least 3; memory is that of a block of the kernel's matrix. What is left when one
    picture goes follows from its own sums.
    """
    m, n = len(source), len(target)
    (own_source, ones_source), (own_target, ones_target) = (
        _within(source, kernel), _within(target, kernel)
    )  # fmt: skip
    of_source, of_target = _between(source, target, kernel)
    a, c, b = own_source.sum(), own_target.sum(), of_source.sum()
    value = a / (m * (m - 1)) + c / (n * (n - 1)) - 2 * b / (m * n)
    biased = (a + ones_source) / m**2 + (c + ones_target) / n**2 - 2 * b / (m * n)
    without_source = (
        (a - 2 * own_source) / ((m - 1) * (m - 2))
        + c / (n * (n - 1))
        - 2 * (b - of_source) / ((m - 1) * n)
    )
    without_target = (
        a / (m * (m - 1))
        + (c - 2 * own_target) / ((n - 1) * (n - 2))
        - 2 * (b - of_target) / (m * (n - 1))
    )
    return jackknife(float(value), without_source, without_target, float(biased))


def _within(x: Features, kernel: Kernel) -> tuple[Vector, float]:
    """Sums [n] of each row's k with all others, and the sum of all rows' with themselves."""
    sums, ones = np.empty(len(x)), 0.0
    for i in range(0, len(x), BLOCK):
        values = kernel(x[i : i + BLOCK], x)
        rows = np.arange(len(values))
        itself = values[rows, i + rows]
        sums[i : i + BLOCK] = values.sum(1) - itself
        ones += float(itself.sum())
    return sums, ones


def _between(x: Features, y: Features, kernel: Kernel) -> tuple[Vector, Vector]:
    """Sums [m] of each x's k with all y, and [n] of each y's with all x."""
    of_x, of_y = np.empty(len(x)), np.zeros(len(y))
    for i in range(0, len(x), BLOCK):
        values = kernel(x[i : i + BLOCK], y)
        of_x[i : i + BLOCK] = values.sum(1)
        of_y += values.sum(0)
    return of_x, of_y
