"""Label curves: the fit against SciPy's, the band against curves whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import curve_fit

from fewmask.evidence.crossed import Values
from fewmask.evidence.curve import (
    _families,
    _least_squares,
    _variances,
    fit_curve,
    weighted_quantiles,
)
from fewmask.evidence.masks import curve_of, masks_for, masks_saved

MASKS = np.array([4.0, 8, 16, 32, 64])


def power(n: Values) -> Values:
    return 0.9 - 0.9 * n**-0.45


def repeats(
    truth: Callable[[Values], Values], n: int = 4, noise: float = 0.01, seed: int = 0
) -> Values:
    random = np.random.default_rng(seed)
    common = random.standard_normal((n, 1))
    found: Values = truth(MASKS) + noise * (common + random.standard_normal((n, len(MASKS))))
    return found


@pytest.mark.parametrize("name", ["power", "exponential", "hyperbola"])
def test_the_fit_is_as_good_as_scipy_s(name: str) -> None:
    cs, phi = _families(64)[name]
    y = repeats(power, seed=1).mean(0)
    variances = np.array([4.0, 2, 1, 1, 1]) * 1e-4
    a, b, c = _least_squares(y[None], variances, cs, phi(MASKS[None], cs[:, None]))[0]

    def curve(n: Values, a: float, b: float, c: float) -> Values:
        return a - b * phi(n, np.float64(c))

    best, _ = curve_fit(curve, MASKS, y, p0=(a, b, c), sigma=np.sqrt(variances),
                        bounds=([0, 0, cs[0]], [1, np.inf, cs[-1]]))  # fmt: skip

    def error(*found: float) -> float:
        return float((np.square(y - curve(MASKS, *found)) / variances).sum())

    assert error(a, b, c) <= 1.05 * error(*best) + 1e-3


def test_a_curve_never_tends_above_one() -> None:
    found = fit_curve(MASKS, repeats(lambda n: 0.2 + 0.18 * np.log(n), noise=0.002))
    for name in ("power", "exponential", "hyperbola"):
        assert found.fits[name][:, 0].max() <= 1
    assert all(0 <= band.max() <= 1 for band in found.band(np.array([1e4])))


@pytest.mark.parametrize(
    "truth",
    [power, lambda n: 0.85 - 0.4 * np.exp(-n / 40), lambda n: 0.9 - 0.5 / (1 + n / 15),
     lambda n: 0.4 + 0.07 * np.log(n)],
)  # fmt: skip
def test_the_band_holds_the_next_budget(truth: Callable[[Values], Values]) -> None:
    after = np.array([128.0])
    inside = 0
    for seed in range(60):
        low, _, high = fit_curve(MASKS, repeats(truth, seed=seed)).band(after)
        inside += bool(low[0] <= truth(after)[0] <= high[0])
    assert inside >= 54


def test_the_variance_falls_with_the_masks_where_the_repeats_do() -> None:
    truth = 0.05**2 * MASKS / MASKS**2
    freedom = np.full(len(MASKS), 3)
    random = np.random.default_rng(0)
    off = []
    for _ in range(200):
        found = _variances(MASKS, truth * random.chisquare(3, len(MASKS)), freedom)
        off.append(np.log(found / truth))
    spread = np.std(off, axis=0)
    assert np.abs(np.mean(off, axis=0)).max() < 0.3  # neither end is taken for the other
    assert spread.max() < 0.8 * np.std(np.log(random.chisquare(3, 10_000)))


def test_scattered_small_budgets_do_not_blur_the_large_ones() -> None:
    random = np.random.default_rng(3)
    scores = power(MASKS) + 0.2 / MASKS * random.standard_normal((4, len(MASKS)))
    low, _, high = fit_curve(MASKS, scores).band(MASKS)
    assert high[-1] - low[-1] < 0.03
    assert high[0] - low[0] > 0.1


def test_few_and_uneven_repeats_are_taken() -> None:
    scores = repeats(power)
    scores[1:, 3:] = np.nan
    low, middle, high = fit_curve(MASKS, scores).band(MASKS)
    assert (low < middle).all()
    assert (middle < high).all()
    with pytest.raises(ValueError, match="two repeats"):
        fit_curve(MASKS, scores[:1])


def test_quantiles_follow_the_weights() -> None:
    values, weights = np.array([3.0, 1, 2]), np.array([0.1, 0.8, 0.1])
    assert weighted_quantiles(values, weights, (0.5, 0.85, 0.95)).tolist() == [1, 2, 3]


def test_masks_needed_are_where_the_curve_is() -> None:
    curve = curve_of(MASKS, repeats(power, n=6, noise=0.004))
    wanted = 20.0
    found = masks_for(curve, float(power(np.array(wanted))))
    assert found.masks is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= wanted <= found.high
    assert abs(found.masks - wanted) < 3


@pytest.mark.parametrize(
    ("scores", "iou", "why"),
    [
        (repeats(power)[:, :2], 0.6, "a curve needs three"),
        (repeats(power)[:1], 0.6, "repeat one"),
        (repeats(lambda n: 0.6 + 0 * n, noise=0.02), 0.65, "does not rise"),
        (repeats(power), 0.97, "lies beyond 256 masks"),
        (repeats(power, noise=0.03), 0.76, "it may take"),
        (repeats(power)[:, 2:], 0.8, "too few to go beyond"),
    ],
)
def test_what_is_refused_and_why(scores: Values, iou: float, why: str) -> None:
    masks = MASKS[-scores.shape[1] :] if scores.shape[1] == 3 else MASKS[: scores.shape[1]]
    found = masks_for(curve_of(masks, scores), iou)
    assert why in found.refusal
    assert (found.masks, found.low, found.high) == (None, None, None)


def test_what_the_smallest_budget_reaches_takes_at_most_that() -> None:
    found = masks_for(curve_of(MASKS, repeats(power)), 0.1)
    assert (found.at_most, found.masks, found.refusal) == (int(MASKS.min()), None, "")
    saved = masks_saved(
        curve_of(MASKS, repeats(lambda n: 0.3 + power(n))), curve_of(MASKS, repeats(power)), 8
    )
    assert saved.needed.at_most == int(MASKS.min())


def test_nothing_is_told_from_below_the_smallest_budget() -> None:
    curve = curve_of(MASKS, repeats(power, n=6))
    found = masks_for(curve, float(power(np.array(3.9))))
    assert found.masks is None
    assert found.at_most is not None
    assert 4 <= found.at_most <= 6
    for masks in (4.2, 5, 6, 8, 12):
        found = masks_for(curve, float(power(np.array(masks))))
        assert (found.low or 4) >= 4
        assert (found.high or found.at_most or 0) >= masks


def test_masks_saved_know_the_noise_of_the_baseline() -> None:
    def nearly(n: Values) -> Values:
        return power(2 * n) - 0.002  # 4 of its masks are not quite 8 of the baseline's

    wrong = 0
    for seed in range(40):
        arm = curve_of(MASKS, repeats(nearly, noise=0.01, seed=seed))
        base = curve_of(MASKS, repeats(power, noise=0.03, seed=100 + seed))
        found = masks_saved(arm, base, 8).needed
        wrong += found.at_most == 4
    assert wrong <= 2


def test_masks_saved_is_the_arm_s_need_for_the_baseline_s_iou() -> None:
    def better(n: Values) -> Values:
        return power(2 * n)

    arm = curve_of(MASKS, repeats(better, n=6, noise=0.003, seed=3))
    base = curve_of(MASKS, repeats(power, n=6, noise=0.003, seed=4))
    found = masks_saved(arm, base, 32)
    assert found.needed.masks is not None
    assert found.needed.low is not None
    assert found.needed.high is not None
    assert found.needed.low <= 16 <= found.needed.high
    assert 13 <= found.needed.masks <= 19
    assert "baseline" in masks_saved(arm, "nothing", 32).needed.refusal
