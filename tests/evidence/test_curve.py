"""Label curves: the fit against SciPy's, the band against curves whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import curve_fit, lsq_linear

from fewmask.evidence.crossed import Values
from fewmask.evidence.curve import (
    BORROWED,
    FALLS,
    INEXACT,
    STEPS,
    Curve,
    _families,
    _least_squares,
    _variances,
    fit_curve,
    weighted_quantiles,
)
from fewmask.evidence.masks import FURTHEST, curve_of, masks_for, masks_saved

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


SHAPES: dict[str, Callable[[float, float], float]] = {
    "power": lambda n, c: n**-c,
    "exponential": lambda n, c: math.exp(-n / c),
    "hyperbola": lambda n, c: 1 / (1 + n / c),
    "logarithm": lambda n, c: -c * math.log(n),
}


def test_the_families_are_those_shapes_at_every_scale_of_a_forecast() -> None:
    found = _families(64)
    assert found.keys() == SHAPES.keys()
    for name, (cs, phi) in found.items():
        for n, c in ((1.0, 0.3), (5.0, 2.0), (300.0, 70.0)):
            assert phi(np.float64(n), np.float64(c)) == pytest.approx(SHAPES[name](n, c))
        if name in ("exponential", "hyperbola"):  # from below a mask to as far as is forecast
            assert cs[0] < 1
            assert cs[-1] == pytest.approx(FURTHEST * 64)
        assert len(cs) == (1 if name == "logarithm" else STEPS)


def test_a_curve_is_a_less_b_times_the_shape_within_0_and_1() -> None:
    fits = {
        "power": np.array([[0.9, 0.5, 0.4], [0.8, 2.0, 1.0]]),
        "exponential": np.array([[0.7, 0.2, 30.0]]),
        "hyperbola": np.array([[1.0, 0.3, 9.0]]),
        "logarithm": np.array([[0.3, 0.2, 1.0], [0.1, 0.01, 1.0], [0.4, 0.0, 1.0]]),
    }
    shares = {"power": 0.4, "exponential": 0.1, "hyperbola": 0.2, "logarithm": 0.3}
    drawn, weights = Curve(MASKS, MASKS, fits, shares).at(np.array([1.0, 8, 900]))
    expected = [
        [min(max(a - b * SHAPES[name](n, c), 0), 1) for n in (1, 8, 900)]
        for name, found in fits.items()
        for a, b, c in found
    ]
    np.testing.assert_allclose(drawn, expected)
    assert drawn.min() == 0
    assert drawn.max() == 1
    np.testing.assert_allclose(weights, [0.2, 0.2, 0.1, 0.2, 0.1, 0.1, 0.1])


def test_the_band_leaves_out_as_much_above_as_below() -> None:
    fits = np.array([[i / 100, 0.0, 1.0] for i in range(101)])
    curve = Curve(MASKS, MASKS, {"power": fits}, {"power": 1.0})
    for found, share in zip(curve.band(MASKS, 0.8), (0.1, 0.5, 0.9), strict=True):
        np.testing.assert_allclose(found, [share] * len(MASKS), atol=0.011)


def test_masks_are_reached_where_the_curve_is_solved_for_them() -> None:
    at = np.array([1.005, 1.5, 7, 100, 255])
    fits = [[0.6 - 0.1 * math.log(n), 0.1, 1.0] for n in at]
    fits += [
        [0.7, 0.1, 1.0],
        [0.6, 0.0, 1.0],
        [0.59, 0.0, 1.0],
        [0.6 - 0.1 * math.log(257), 0.1, 1],
    ]
    curve = Curve(MASKS, MASKS, {"logarithm": np.array(fits)}, {"logarithm": 9.0})
    found, weights = curve.reached(0.6, 256)
    np.testing.assert_allclose(found, [*at, 1, 1, np.inf, np.inf], rtol=1e-9)
    assert weights.tolist() == [1] * 9
    # Bent curves are followed closely.
    steep = Curve(MASKS, MASKS, {"exponential": np.array([[1, 1, 0.5]])}, {"exponential": 1.0})
    for n in np.linspace(4, 5, 50):
        assert steep.reached(1 - math.exp(-n / 0.5), 256)[0][0] == pytest.approx(n, rel=2.5e-4)


def test_a_fit_is_the_same_every_time_and_takes_what_is_there() -> None:
    scores = repeats(power)
    lacking = np.vstack([scores, np.full(len(MASKS), np.nan)])
    once, again = fit_curve(MASKS, scores), fit_curve(MASKS, lacking)
    assert once.means.tolist() == again.means.tolist()
    assert once.shares == again.shares
    assert sum(once.shares.values()) == pytest.approx(1)
    for name, fits in once.fits.items():
        assert np.array_equal(fits, again.fits[name])
    with pytest.raises(
        ValueError, match=r"^a curve needs three budgets, and two repeats at one of"
    ):
        fit_curve(MASKS[:2], scores[:, :2])
    with pytest.raises(ValueError, match="a curve needs three budgets"):
        fit_curve(MASKS, np.hstack([scores[:, :4], np.full((4, 1), np.nan)]))


def test_curves_of_repeats_that_agree_are_as_inexact_as_said() -> None:
    scores = np.repeat(power(MASKS)[None], 4, axis=0)
    low, _, high = fit_curve(MASKS, scores).band(MASKS)
    assert ((high - low) / 2 > 0.5 * INEXACT).all()
    assert ((high - low) / 2 < 5 * INEXACT).all()


@pytest.mark.parametrize("noise", [0.003, 0.02])
def test_families_share_as_likely_as_they_are(noise: float) -> None:
    scores = repeats(lambda n: 0.85 - 0.4 * np.exp(-n / 40), noise=noise, seed=2)
    means = scores.mean(0)
    squares = np.square(scores - means).sum(0)
    variances = _variances(MASKS, squares, np.full(len(MASKS), 3)) / 4 + INEXACT**2
    found = {}
    for name, (cs, phi) in _families(64).items():
        a, b, c = _least_squares(means[None], variances, cs, phi(MASKS[None], cs[:, None]))[0]
        found[name] = math.exp(-sum((means - (a - b * phi(MASKS, c))) ** 2 / variances) / 2)
    total = sum(found.values())
    expected = {name: share / total for name, share in found.items()}
    assert fit_curve(MASKS, scores).shares == pytest.approx(expected)


def test_what_no_family_fits_has_shares_all_the_same() -> None:
    found = fit_curve(MASKS, np.array([[0.1, 0.9, 0.1, 0.9, 0.1]] * 2)).shares
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", SHAPES)
def test_the_fit_is_the_best_within_its_bounds(name: str) -> None:
    """b >= 0; a <= 1 but for the logarithm, which tends to nothing. One c after the other."""
    random = np.random.default_rng(6)
    rising = 0.9 - 0.9 * MASKS**-0.45
    means = [rising, 0.2 + 0.18 * np.log(MASKS), 1.1 - rising, 0.5 + 0 * MASKS, 0.99 - 1 / MASKS]
    y = np.array(means) + 0.02 * random.standard_normal((5, len(MASKS)))
    variances = np.array([4.0, 2, 1, 1, 3]) * 1e-4
    cs, phi = _families(64)[name]
    most = np.inf if name == "logarithm" else 1
    for one, (a, b, c) in zip(
        y, _least_squares(y, variances, cs, phi(MASKS[None], cs[:, None])), strict=True
    ):
        root = 1 / np.sqrt(variances)
        best = [
            lsq_linear(np.stack([root, -root * phi(MASKS, k)], axis=1), root * one,
                       ([-np.inf, 0], [most, np.inf])) for k in cs
        ]  # fmt: skip
        at = int(np.argmin([fit.cost for fit in best]))
        found = np.square(root * (one - (a - b * phi(MASKS, c)))).sum() / 2
        assert found == pytest.approx(best[at].cost, rel=1e-6)
        assert a <= most
        assert b >= 0
        assert a - b * phi(MASKS, c) == pytest.approx(
            best[at].x[0] - best[at].x[1] * phi(MASKS, cs[at]), abs=1e-3
        )


@pytest.mark.parametrize("freedom", [(3, 3, 3, 3, 3), (4, 2, 1, 0, 1), (300,) * 5])
def test_variances_are_shrunk_to_the_fall_that_all_budgets_tell(freedom: tuple[int, ...]) -> None:
    f = np.array(freedom)
    squares = 0.05**2 / MASKS * np.random.default_rng(8).chisquare(np.maximum(f, 1)) * (f > 0)
    logs, likely = [], []
    for fall in np.linspace(0, 2, 21):
        scale = sum(squares * MASKS**fall) / sum(f)
        smooth = [scale * n**-fall for n in MASKS]
        of_budgets = zip(f, smooth, squares, strict=True)
        likely.append(sum(-0.5 * (k * math.log(v) + q / v) for k, v, q in of_budgets))
        likely[-1] -= 0.5 * ((fall - FALLS[0]) / FALLS[1]) ** 2
        logs.append(np.log(smooth))
    borrowed = np.exp(np.average(logs, axis=0, weights=np.exp(np.subtract(likely, max(likely)))))
    expected = (squares + BORROWED * borrowed) / (f + BORROWED)
    np.testing.assert_allclose(_variances(MASKS, squares, f), expected)


def test_without_any_scatter_variances_are_tiny_not_nothing() -> None:
    found = _variances(MASKS, np.zeros(5), np.full(5, 3))
    np.testing.assert_allclose(found, 1e-10 * BORROWED / (3 + BORROWED))


@pytest.mark.parametrize("whole", [1.0, 10.0])
def test_only_the_ratio_of_weights_counts(whole: float) -> None:
    values, weights = np.array([3.0, 1, 2]), whole * np.array([0.1, 0.8, 0.1])
    assert weighted_quantiles(values, weights, (0.0, 0.5, 0.85, 1.0)).tolist() == [1, 1, 2, 3]


def test_far_budgets_are_fitted_below_an_iou_of_1() -> None:
    """Where exp(-n/c) is 0 for some masks, or for all of them."""
    for least, most in ((4, 1024), (400, 6400)):
        masks = np.geomspace(least, most, 5)
        scores = np.random.default_rng(0).normal(0.99, 0.01, (3, 5)).clip(0, 1)
        curve = fit_curve(masks, scores)
        assert not isinstance(curve, str)
        for name in ("power", "exponential"):
            assert curve.fits[name][:, 0].max() <= 1, name
            assert np.isfinite(curve.fits[name]).all(), name
