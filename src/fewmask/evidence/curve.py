"""The label curve: IoU against the number of masks, with a band that admits what is not known.

No one family of curves fits learning curves everywhere (Viering & Loog 2023, TPAMI 45:7799,
arXiv:2103.10948), and outside the data they part. So several are fitted, to many draws of what the
repeats might have been, and a forecast is the mixture of them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewmask.evidence.crossed import Values

DRAWS = 400
STEPS = 48
BORROWED = 4
"""Degrees of freedom that a budget's variance over repeats borrows from all budgets' together."""
FALLS = (1.0, 0.5)
"""What is known beforehand of g, the variance over repeats being about n^-g: mean, deviation."""
NESTED = 0.5
"""The share of that variance which is the label subset's: a repeat's budgets are nested, so means
over n1 < n2 images correlate by sqrt(n1 / n2); the rest is the run's own."""
INEXACT = 0.005
"""How far real curves stray from every family, as a deviation in IoU."""


def _families(most: float) -> dict[str, tuple[Values, Callable[[Values, Values], Values]]]:
    """Shapes phi_c(n), falling with n, and the c to try; each curve is a - b phi_c(n), b >= 0."""
    scales = np.geomspace(0.5, 4 * most, STEPS)
    return {
        "power": (np.geomspace(0.05, 3, STEPS), lambda n, c: n**-c),
        "exponential": (scales, lambda n, c: np.exp(-n / c)),
        "hyperbola": (scales, lambda n, c: 1 / (1 + n / c)),
        "logarithm": (np.ones(1), lambda n, c: -np.log(n) * c),
    }


@dataclass(frozen=True)
class Curve:
    """Fitted curves a - b phi_c(n): `fits` holds [DRAWS, 3] of (a, b, c) by family.

    `shares` says how much of the mixture each family is: more where it is nearer to the means.
    """

    masks: Values
    means: Values
    fits: dict[str, Values]
    shares: dict[str, float]

    def at(self, masks: Values) -> tuple[Values, Values]:
        """IoU [DRAWS * families, len(masks)] of every curve, and the curves' weights; 0 to 1."""
        families = _families(float(self.masks.max()))
        n = np.asarray(masks, float)[None, :]
        drawn, weights = [], []
        for name, found in self.fits.items():
            a, b, c = (column[:, None] for column in found.T)
            drawn.append((a - b * families[name][1](n, c)).clip(0, 1))
            weights.append(np.full(len(found), self.shares[name] / len(found)))
        return np.concatenate(drawn), np.concatenate(weights)

    def band(self, masks: Values, level: float = 0.95) -> tuple[Values, Values, Values]:
        """(low, median, high) of the IoU at numbers of masks [k]."""
        drawn, weights = self.at(masks)
        tail = (1 - level) / 2
        found = [weighted_quantiles(column, weights, (tail, 0.5, 1 - tail)) for column in drawn.T]
        low, median, high = np.array(found).T
        return low, median, high

    def reached(self, iou: float, limit: float) -> tuple[Values, Values]:
        """Masks at which every curve reaches an IoU (infinite beyond `limit`), and the weights."""
        grid = np.geomspace(1, limit, 400)
        drawn, weights = self.at(grid)
        there = drawn >= iou
        first = there.argmax(axis=1)
        before = np.maximum(first - 1, 0)
        row = np.arange(len(drawn))
        low, high = drawn[row, before], drawn[row, first]
        share = np.divide(iou - low, high - low, out=np.ones(len(row)), where=high > low)
        logs = np.log(grid)
        between = np.exp(logs[before] + share.clip(0, 1) * (logs[first] - logs[before]))
        return np.where(there.any(axis=1), between, np.inf), weights


def fit_curve(masks: Values, scores: Values, seed: int = 0) -> Curve:
    """Numbers of masks [J], IoU [R,J] (NaN where a repeat lacks a budget) -> the mixture.

    J >= 3 budgets, at least one of them with two repeats (else ValueError). A draw moves the means
    by what the repeats' deviations and the families' inexactness allow; a Student factor makes up
    for how few repeats the deviations are known from. The constants were chosen by simulation on
    curves of other shapes too (benchmarks/label_curves.py).
    """
    repeats = np.isfinite(scores).sum(axis=0)
    if len(masks) < 3 or repeats.max() < 2 or repeats.min() < 1:
        raise ValueError("a curve needs three budgets, and two repeats at one of them")
    means = np.nanmean(scores, axis=0)
    squares = np.square(np.where(np.isfinite(scores), scores - means, 0.0)).sum(axis=0)
    freedom = repeats - 1
    variances = _variances(masks, squares, freedom) / repeats + INEXACT**2
    alike = np.sqrt(np.minimum(masks[:, None] / masks, masks / masks[:, None]))
    together = NESTED * alike + (1 - NESTED) * np.eye(len(masks))
    # Deviations that go together tell less of their variance than as many independent ones
    # (Satterthwaite 1946); here as if subsets were all that varies, so rather too little.
    shared = np.minimum(freedom[:, None], freedom)
    known = freedom.sum() ** 2 / (np.square(alike) * shared).sum()
    random = np.random.default_rng(seed)
    unit = random.standard_normal((DRAWS, len(masks))) @ np.linalg.cholesky(together).T
    student = np.sqrt(known / random.chisquare(known, (DRAWS, 1)))
    drawn = means + unit * np.sqrt(variances) * student
    fits, misfits = {}, {}
    for name, (cs, phi) in _families(float(masks.max())).items():
        shape = phi(masks[None, :], cs[:, None])
        fits[name] = _least_squares(drawn, variances, cs, shape)
        a, b, c = _least_squares(means[None], variances, cs, shape)[0]
        misfits[name] = float((np.square(means - (a - b * phi(masks, c))) / variances).sum())
    best = min(misfits.values())
    shares = {name: float(np.exp(-(misfit - best) / 2)) for name, misfit in misfits.items()}
    total = sum(shares.values())
    return Curve(masks, means, fits, {name: share / total for name, share in shares.items()})


def _variances(masks: Values, squares: Values, freedom: NDArray[np.int64]) -> Values:
    """Variance of one repeat's IoU at each budget [J], from sums of squared deviations [J].

    Runs differ less the more masks they have: by about n^-g, g from all budgets together with a
    Gaussian prior (FALLS). To that each budget's own variance is shrunk.
    """
    falls = np.linspace(0, 2, 21)[:, None]
    scale = (squares * masks**falls).sum(axis=1, keepdims=True) / freedom.sum()
    smooth = np.maximum(scale * masks**-falls, 1e-10)
    likely = -0.5 * (freedom * np.log(smooth) + squares / smooth).sum(axis=1)
    likely -= 0.5 * np.square((falls[:, 0] - FALLS[0]) / FALLS[1])
    weights = np.exp(likely - likely.max())
    borrowed = np.exp((weights / weights.sum()) @ np.log(smooth))
    return np.asarray((squares + BORROWED * borrowed) / (freedom + BORROWED), float)


def _least_squares(y: Values, variances: Values, cs: Values, shape: Values) -> Values:
    """Best (a, b, c) [D,3] for y [D,J] of a - b phi_c, over the c tried; shape [C,J] is phi_c.

    For each c the weighted normal equations are solved as they stand, with b >= 0 and a <= 1.
    """
    w = 1 / variances
    w = w / w.sum()
    phi_mean = shape @ w
    y_mean = y @ w
    centred = shape - phi_mean[:, None]
    spread = (np.square(centred) @ w)[None, :]
    b = -(y * w) @ centred.T / np.maximum(spread, 1e-300)
    b = np.maximum(b, 0)
    a = y_mean[:, None] + b * phi_mean
    # An IoU tends to 1 at most: there the curve is pinned, and b follows alone.
    pinned = ((1 - y) * w) @ shape.T / np.maximum(np.square(shape) @ w, 1e-300)[None, :]
    falling = np.all(shape >= 0, axis=1)[None]  # the logarithm has no limit to pin
    over = (a > 1) & falling
    a, b = np.where(over, 1.0, a), np.where(over, np.maximum(pinned, 0), b)
    error = np.stack([
        (np.square(y - (a[:, k : k + 1] - b[:, k : k + 1] * shape[k])) @ w) for k in range(len(cs))
    ], axis=1)  # fmt: skip
    k = error.argmin(axis=1)
    row = np.arange(len(y))
    return np.stack([a[row, k], b[row, k], cs[k]], axis=1)


def weighted_quantiles(values: Values, weights: Values, shares: tuple[float, ...]) -> Values:
    """The values below which the given shares of the weight lie."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    places = np.searchsorted(total / total[-1], shares)
    return values[order][np.minimum(places, len(values) - 1)]
