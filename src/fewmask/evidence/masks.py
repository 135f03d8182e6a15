"""How many masks are enough? Answers from label curves, and refusals where there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fewmask.evidence.crossed import Values
from fewmask.evidence.curve import Curve, fit_curve, weighted_quantiles

FURTHEST = 4.0
"""How many times the largest budget a forecast may lie out."""
WIDEST = 8.0
"""The ratio of the interval's ends above which it is no answer."""


@dataclass(frozen=True)
class Needed:
    """How many masks reach an IoU: about `masks`, `low` to `high` (95 %); or why not.

    Below the smallest budget nothing is known: where the interval goes there, its upper end is all
    that can be said, `at_most`.
    """

    iou: float
    masks: int | None = None
    low: int | None = None
    high: int | None = None
    refusal: str = ""
    at_most: int | None = None


@dataclass(frozen=True)
class Saved:
    """Masks that an arm needs for what the baseline reaches with `of`: `Needed.masks` of them."""

    of: int
    needed: Needed


def curve_of(masks: Values, scores: Values) -> Curve | str:
    """The curve of an arm, or why there is none. As `fit_curve`; budgets without a run left out."""
    known = np.isfinite(scores).any(axis=0)
    masks, scores = masks[known], scores[:, known]
    if len(masks) < 3:
        return f"{len(masks)} budgets are done; a curve needs three"
    if np.isfinite(scores).sum(axis=0).max() < 2:
        return "no budget was repeated, so nothing is known of the noise; repeat one"
    return fit_curve(masks, scores)


def masks_for(curve: Curve | str, iou: float) -> Needed:
    """How many masks reach an IoU over the data set (0 to 1). Refuses rather than guesses."""
    if isinstance(curve, str):
        return Needed(iou, refusal=curve)
    most, least = float(curve.masks.max()), float(curve.masks.min())
    low_end, _, _ = curve.band(np.array([least]))
    if iou <= float(low_end[0]):
        return Needed(iou, at_most=round(least))
    if not _rises(curve):
        return Needed(iou, refusal="IoU does not rise with the masks by more than the noise")
    limit = FURTHEST * most
    reached, weights = curve.reached(iou, limit)
    if iou > float(curve.means.max()) and len(curve.masks) < 4:
        return Needed(iou, refusal="it lies above all budgets, and three are too few to go beyond")
    middle, low, high = weighted_quantiles(reached, weights, (0.5, 0.025, 0.975))
    if not math.isfinite(middle):
        return Needed(iou, refusal=f"it lies beyond {limit:.0f} masks, {FURTHEST:g} times the "
                      "largest budget, if it can be reached at all")  # fmt: skip
    if not math.isfinite(high) or high / max(low, least) > WIDEST:
        start = f"{low:.0f} masks" if low >= least else "the smallest budget"
        end = f"{high:.0f}" if math.isfinite(high) else f"more than {limit:.0f}"
        return Needed(iou, refusal=f"it may take {start} or {end}")
    if low < least:
        return Needed(iou, at_most=math.ceil(high))
    return Needed(iou, round(middle), math.floor(low), math.ceil(high))


def masks_saved(arm: Curve | str, baseline: Curve | str, of: int) -> Saved:
    """What an arm needs for the IoU that the baseline's curve has at `of` masks.

    The interval is that of the arm's masks for the baseline's middle IoU and of the baseline's own
    band: its ends are the arm's low end for the band's low end, and high for high.
    """
    if isinstance(baseline, str):
        return Saved(of, Needed(math.nan, refusal=f"of the baseline {baseline}"))
    low, middle, high = (float(end[0]) for end in baseline.band(np.array([float(of)])))
    found = masks_for(arm, middle)
    easy, hard = masks_for(arm, low), masks_for(arm, high)
    most = hard.high if hard.at_most is None else hard.at_most
    if found.refusal:
        return Saved(of, found)
    if most is None:
        return Saved(of, Needed(middle, refusal=hard.refusal))
    if found.masks is None or easy.low is None:
        return Saved(of, Needed(middle, at_most=most))
    return Saved(of, Needed(middle, found.masks, easy.low, most))


def _rises(curve: Curve) -> bool:
    """Whether at least 97.5 % of the curves are higher at the largest budget than at the least."""
    drawn, weights = curve.at(np.array([curve.masks.min(), curve.masks.max()]))
    up = drawn[:, 1] > drawn[:, 0] + 1e-6
    return float(weights[up].sum() / weights.sum()) >= 0.975
