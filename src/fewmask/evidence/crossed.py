"""How sure a difference is, over runs and over test images together.

A study's arms are trained several times and tested on the same images, so a difference y of two
arms has two samples behind it, crossed: R runs (an order of the labels and a seed, shared by both
arms) and n test images. Over runs alone, an interval is silent about the choice of the test images;
over images alone, about everything that the next training would change.

IoU over a data set is a ratio of sums. It is linearised: an image's value in a run is the run's IoU
plus the image's influence on it (the infinitesimal jackknife; Efron 1982, ch. 6), so the values of
a run have its IoU as their mean. The differences of two arms' values, [R,n], then are a two-way
layout y = mu + run + image + rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

Values = NDArray[np.float64]

LEVEL = 0.95


def influences(intersections: Values, unions: Values) -> Values:
    """Pixel counts [...,n,K] of n images and K classes -> values [...,n]; their mean is the IoU.

    The IoU is that over the data set, sum of intersections / sum of unions, and its mean over the
    classes that occur in truth or prediction; NaN where none does.
    """
    n = intersections.shape[-2]
    whole = unions.sum(axis=-2, keepdims=True)
    there = whole > 0
    share = np.where(there, 1.0, np.nan) / np.where(there, whole, 1)
    iou = intersections.sum(axis=-2, keepdims=True) * share
    values = iou + n * (intersections - iou * unions) * share
    known = there.sum(axis=-1)
    total = np.nansum(values, axis=-1)
    found: Values = np.where(known > 0, total, np.nan) / np.maximum(known, 1)
    return found


@dataclass(frozen=True)
class Estimate:
    """A mean difference and what it varies by. Fractions of 1; arrays for many studies at once.

    `over_runs` is the variance of the mean that R other runs would bring, `over_images` that of n
    other test images. What run and image bring only together is in `over_runs` alone, once.
    `images` is 0 where nothing is known of single images: then all is said of the runs alone.
    """

    mean: Values
    over_runs: Values
    over_images: Values
    runs: int
    images: int

    def half_width(
        self, level: float | Values = LEVEL, runs: float | Values | None = None
    ) -> Values:
        """Of the interval at `level`; NaN for a single run.

        sqrt(t_R^2 over_runs + t_n^2 over_images), t_R and t_n Student's quantiles of R - 1 and
        n - 1 degrees of freedom. It is exact where one source dominates and wide in between. (One
        pooled number of degrees of freedom, after Satterthwaite, is too narrow with two or three
        runs: a variance over runs that is small by luck also looks well known.)

        `runs`: what to expect of that many runs instead, if they vary like these; at least 2, inf
        for what the images alone leave open.
        """
        from scipy.special import stdtrit  # scipy.stats.t's own, without its 0.2 ms a call

        if self.runs < 2:
            return np.full(np.shape(self.mean), np.nan)
        r = np.asarray(self.runs if runs is None else runs, float)
        tail = (1 - np.asarray(level)) / 2
        squared = stdtrit(r - 1, tail) ** 2 * self.over_runs * self.runs / r
        if self.images:
            squared = squared + stdtrit(self.images - 1, tail) ** 2 * self.over_images
        found: Values = np.sqrt(squared)
        return found

    def p_value(self, null: float = 0.0, runs: float | Values | None = None) -> Values:
        """Two-sided: one less the highest level whose interval leaves out `null`.

        NaN for a single run. Never below exp(-30), about 1e-13. `runs` as in `half_width`.
        """
        distance = np.abs(np.asarray(self.mean, float) - null)
        distance = distance + np.zeros(np.shape(runs)) if runs is not None else distance
        if self.runs < 2:
            return np.full(np.shape(distance), np.nan)
        found = bisect(lambda p: self.half_width(1 - p, runs) <= distance, np.shape(distance))
        certain = (np.asarray(self.over_runs) <= 0) & (np.asarray(self.over_images) <= 0)
        return np.where(certain, np.where(distance > 0, 0.0, 1.0), found)


def bisect(holds: Callable[[Values], NDArray[np.bool_]], shape: tuple[int, ...]) -> Values:
    """The smallest p of 0 to 1, each of `shape`, where `holds(p)`, which is true above some p."""
    low, high = np.full(shape, -30.0), np.zeros(shape)  # of log p
    for _ in range(50):
        middle = (low + high) / 2
        true = holds(np.exp(middle))
        low, high = np.where(true, low, middle), np.where(true, middle, high)
    return np.where(holds(np.ones(shape)), np.exp(high), 1.0)


def estimate(values: Values) -> Estimate:
    """Differences [...,R,n] of two arms' values, run by run on the same images -> the estimate.

    The variances are those of the two-way layout without replication (analysis of variance:
    Searle, Casella & McCulloch 1992, ch. 4): over_runs = MS_runs / (R n), which holds the rest as
    well, over_images = (MS_images - MS_rest) / (R n), at least 0.
    """
    runs, images = values.shape[-2:]
    if min(runs, images) < 2:
        return of_scores(values.mean(axis=-1))
    of_run, of_image = values.mean(axis=-1), values.mean(axis=-2)
    mean = of_run.mean(axis=-1)
    rest = values - of_run[..., :, None] - of_image[..., None, :] + mean[..., None, None]
    ms_rest = np.square(rest).sum(axis=(-2, -1)) / ((runs - 1) * (images - 1))
    over_runs = of_run.var(axis=-1, ddof=1) / runs
    over_images = of_image.var(axis=-1, ddof=1) / images - ms_rest / (runs * images)
    return Estimate(mean, over_runs, np.maximum(over_images, 0), runs, images)


def of_scores(differences: Values) -> Estimate:
    """Differences [...,R] of two arms' scores, run by run, where nothing is known of the images."""
    runs = differences.shape[-1]
    mean = differences.mean(axis=-1)
    if runs < 2:
        return Estimate(mean, np.full(np.shape(mean), np.nan), np.zeros(np.shape(mean)), runs, 0)
    over_runs = differences.var(axis=-1, ddof=1) / runs
    return Estimate(mean, over_runs, np.zeros(np.shape(mean)), runs, 0)
