"""The answers of label curves, word for word, from curves whose need is known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from fewmask.evidence.crossed import Values
from fewmask.evidence.curve import Curve
from fewmask.evidence.masks import Needed, Saved, curve_of, masks_for, masks_saved

MASKS = np.array([4.0, 8, 16, 32, 64])
IOU = 0.6


@dataclass(frozen=True)
class Needing(Curve):
    """A curve with the masks that it needs given to the last digit."""

    needs: tuple[float, ...] = ()

    def reached(self, iou: float, limit: float) -> tuple[Values, Values]:
        return np.array(self.needs), np.ones(len(self.needs))


def lines(starts: Sequence[float], slopes: Sequence[float], masks: Values = MASKS) -> Curve:
    """Lines in log n, all of weight 1: IoU `starts` at one mask, and their slopes."""
    fits = np.stack([starts, slopes, np.ones(len(starts))], axis=1)
    means = np.mean(starts) + np.mean(slopes) * np.log(masks)
    return Curve(masks, means, {"logarithm": fits}, {"logarithm": float(len(starts))})


def needing(low: float, middle: float, high: float, masks: Values = MASKS) -> Needing:
    """A rising curve above its budgets' mean at IOU, with this need: an interval of 95 %."""
    line = lines([0.2], [0.09], masks)
    needs = (low,) * 3 + (middle,) * 94 + (high,) * 3
    return Needing(line.masks, line.means, line.fits, line.shares, needs)


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ((9.4, 12.6, 15.2), Needed(IOU, 13, 9, 16)),
        ((4.0, 12.6, 15.2), Needed(IOU, 13, 4, 16)),
        ((3.9, 12.6, 15.2), Needed(IOU, at_most=16)),
        ((10.0, 40.0, 80.0), Needed(IOU, 40, 10, 80)),  # 8 times, the widest
        ((10.0, 40.0, 80.1), Needed(IOU, refusal="it may take 10 masks or 80")),
        ((4.0, 12.0, 33.0), Needed(IOU, refusal="it may take 4 masks or 33")),
        ((3.9, 12.0, 33.0), Needed(IOU, refusal="it may take the smallest budget or 33")),
        ((3.9, 12.0, 32.0), Needed(IOU, at_most=32)),
        ((9.6, 40.0, np.inf), Needed(IOU, refusal="it may take 10 masks or more than 256")),
        (
            (9.6, np.inf, np.inf),
            Needed(IOU, refusal="it lies beyond 256 masks, 4 times the largest budget, "
                   "if it can be reached at all"),
        ),
    ],
)  # fmt: skip
def test_an_answer_is_as_narrow_as_the_need_is_known(
    needs: tuple[float, float, float], expected: Needed
) -> None:
    assert masks_for(needing(*needs), IOU) == expected


def test_one_curve_in_a_hundred_widens_nothing() -> None:
    curve = needing(9.4, 12.6, 15.2)
    assert masks_for(replace(curve, needs=(*curve.needs, 5.0, 63.0)), IOU).high == 16


def test_without_a_curve_its_refusal_is_the_answer() -> None:
    assert masks_for("no curve", IOU) == Needed(IOU, refusal="no curve")


def test_what_the_smallest_budget_surely_reaches_needs_no_rise() -> None:
    flat = lines([0.5], [0.0])
    assert masks_for(flat, 0.5) == Needed(0.5, at_most=4)
    noise = "IoU does not rise with the masks by more than the noise"
    assert masks_for(flat, 0.51) == Needed(0.51, refusal=noise)


@pytest.mark.parametrize("falling", [1, 2])
def test_a_curve_rises_where_39_of_40_do(falling: int) -> None:
    """0.975 of the weight, whatever it sums to."""
    slopes = [-0.01] * falling + [0.1] * (40 - falling)
    assert ("does not rise" in masks_for(lines([0.3] * 40, slopes), IOU).refusal) == (falling == 2)


def test_three_budgets_foretell_nothing_above_them_and_four_do() -> None:
    three = needing(50, 70, 90, MASKS[2:])
    assert masks_for(replace(three, means=np.array([0.5, 0.55, IOU])), IOU).masks == 70
    few = "it lies above all budgets, and three are too few to go beyond"
    assert masks_for(three, IOU) == Needed(IOU, refusal=few)
    assert masks_for(needing(50, 70, 90, MASKS[1:]), IOU) == Needed(IOU, 70, 50, 90)


def test_two_repeats_of_one_budget_are_enough_for_a_curve() -> None:
    scores = np.array([[0.3, 0.4, 0.5], [np.nan, np.nan, 0.51]])
    found = curve_of(MASKS[:3], scores)
    assert isinstance(found, Curve)
    assert found.means.tolist() == [0.3, 0.4, 0.505]
    why = "no budget was repeated, so nothing is known of the noise; repeat one"
    assert curve_of(MASKS[:3], scores[:1]) == why
    assert curve_of(MASKS[:3], scores[1:]) == "1 budgets are done; a curve needs three"


# Of 40 curves, 2 lie at either end: they are the ends of the band.
BASE = lines([0.49] * 2 + [0.5] * 36 + [0.51] * 2, [0.02] * 40)
LOW, MIDDLE, HIGH = (float(end[0]) for end in BASE.band(np.array([20.0])))


def arm(low: float, middle: float, high: float, slope: float = 0.1) -> Curve:
    """Lines that are at MIDDLE with these masks."""
    at = np.array([low] * 2 + [middle] * 36 + [high] * 2)
    return lines((MIDDLE - slope * np.log(at)).tolist(), [slope] * 40)


def test_masks_saved_go_from_the_low_end_of_the_low_iou_to_the_high_end_of_the_high() -> None:
    # 0.01 of IoU is a factor of exp(0.1) here.
    low, high = math.floor(18 * math.exp(-0.1)), math.ceil(22 * math.exp(0.1))
    assert masks_saved(arm(18, 20, 22), BASE, 20) == Saved(20, Needed(MIDDLE, 20, low, high))


def test_masks_saved_below_the_smallest_budget_are_known_from_above_alone() -> None:
    # The middle IoU takes 4.2 to 4.8 masks; the low one less than the smallest budget.
    assert masks_for(arm(4.2, 4.6, 4.8), MIDDLE) == Needed(MIDDLE, 5, 4, 5)
    assert masks_for(arm(4.2, 4.6, 4.8), LOW) == Needed(LOW, at_most=5)
    assert masks_saved(arm(4.2, 4.6, 4.8), BASE, 20) == Saved(20, Needed(MIDDLE, at_most=6))
    # The high one is surely reached by it too.
    assert masks_saved(arm(1.2, 1.3, 1.4), BASE, 20) == Saved(20, Needed(MIDDLE, at_most=4))


def test_masks_saved_are_refused_for_the_curve_that_cannot_tell() -> None:
    lost = Needed(math.nan, refusal="of the baseline nothing is known")
    assert masks_saved(arm(18, 20, 22), "nothing is known", 20) == Saved(20, lost)
    assert masks_saved("no curve", BASE, 20) == Saved(20, Needed(MIDDLE, refusal="no curve"))
    # Its middle IoU is reached, but the high end of its band is not.
    bent = arm(200, 220, 240, slope=0.02)
    hard = masks_for(bent, HIGH).refusal
    assert hard.startswith("it lies beyond 256 masks")
    assert masks_for(bent, MIDDLE).masks == 220
    assert masks_saved(bent, BASE, 20) == Saved(20, Needed(MIDDLE, refusal=hard))
