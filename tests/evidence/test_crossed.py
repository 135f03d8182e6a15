"""The interval over runs and images against slow versions, SciPy's, and its own promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from fewmask.evidence.crossed import Estimate, Values, bisect, estimate, influences, of_scores


def counts(seed: int, n: int = 30, k: int = 3) -> tuple[Values, Values]:
    random = np.random.default_rng(seed)
    unions = random.integers(1, 100, (n, k)).astype(float)
    return np.floor(unions * random.random((n, k))), unions


def mean_iou(inside: Values, union: Values, weights: Values | float = 1.0) -> float:
    w = np.broadcast_to(weights, (len(inside),))[:, None]
    whole = (w * union).sum(0)
    return float(np.mean([(w * inside).sum(0)[k] / whole[k] for k in np.flatnonzero(whole)]))


def test_values_are_the_iou_and_its_slope_in_every_image_s_weight() -> None:
    inside, union = counts(0)
    union[:, 1] = inside[:, 1] = 0  # a class that nowhere occurs
    found = influences(inside, union)
    iou = mean_iou(inside, union)
    assert found.mean() == pytest.approx(iou)
    for i in (0, 7, 29):
        step = 1e-5
        weights = np.ones(30)
        weights[i] += step
        slope = (mean_iou(inside, union, weights) - iou) / step
        assert found[i] - iou == pytest.approx(30 * slope, abs=1e-3)


def test_values_of_nothing_are_undefined() -> None:
    assert np.isnan(influences(np.zeros((4, 2)), np.zeros((4, 2)))).all()


def test_a_class_of_one_pixel_counts() -> None:
    assert influences(np.array([[1.0, 3]]), np.array([[1.0, 4]])).tolist() == [0.875]


def test_values_of_many_runs_at_once_are_one_after_the_other() -> None:
    inside, union = np.moveaxis([counts(seed) for seed in range(6)], 1, 0).reshape(2, 2, 3, 30, 3)
    inside[1, :, :, 0] = union[1, :, :, 0] = inside[0, 0] = union[0, 0] = 0
    found = influences(inside, union)
    assert found.shape == (2, 3, 30)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_allclose(found[i, j], influences(inside[i, j], union[i, j]))


def test_many_studies_at_once_are_one_after_the_other() -> None:
    values = np.random.default_rng(1).normal(0.1, 1, (3, 4, 5, 20))
    together = estimate(values)
    for i in range(3):
        for j in range(4):
            alone = estimate(values[i, j])
            assert together.mean[i, j] == pytest.approx(float(alone.mean))
            assert together.half_width()[i, j] == pytest.approx(float(alone.half_width()))
            assert together.p_value()[i, j] == pytest.approx(float(alone.p_value()))
    assert together.p_value().dtype == float


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_many_studies_of_scores_are_one_after_the_other(runs: int) -> None:
    values = np.random.default_rng(4).normal(0.1, 1, (3, runs, 20))
    together = estimate(values[..., :1])  # one image says nothing of images
    assert (together.runs, together.images) == (runs, 0)
    assert together.over_images.tolist() == [0, 0, 0]
    for i in range(3):
        alone = of_scores(values[i, :, 0])
        for of in ("mean", "over_runs"):
            assert getattr(together, of).shape == (3,)
            np.testing.assert_allclose(getattr(together, of)[i], getattr(alone, of))
        np.testing.assert_allclose(together.half_width()[i], alone.half_width())
        np.testing.assert_allclose(together.p_value()[i], alone.p_value())
    assert together.half_width().shape == together.p_value().shape == (3,)
    of_images = estimate(values)
    assert of_images.mean.shape == (3,)
    np.testing.assert_allclose(of_images.mean, values.mean(axis=(1, 2)))


def test_variances_are_those_of_the_two_way_layout() -> None:
    y = np.random.default_rng(2).normal(size=(4, 9))
    y += np.random.default_rng(3).normal(size=(1, 9))
    runs, images = y.shape
    total = 0.0
    for r in range(runs):
        for i in range(images):
            total += (y[r, i] - y[r].mean() - y[:, i].mean() + y.mean()) ** 2
    rest = total / ((runs - 1) * (images - 1))
    ms_runs = images * sum((y[r].mean() - y.mean()) ** 2 for r in range(runs)) / (runs - 1)
    ms_images = runs * sum((y[:, i].mean() - y.mean()) ** 2 for i in range(images)) / (images - 1)
    found = estimate(y)
    assert found.over_runs == pytest.approx(ms_runs / (runs * images))
    assert found.over_images == pytest.approx((ms_images - rest) / (runs * images))


@pytest.mark.parametrize("runs", [2, 3, 10])
def test_runs_alone_give_the_paired_t_test(runs: int) -> None:
    random = np.random.default_rng(runs)
    a, b = random.normal(0.8, 0.01, runs), random.normal(0.79, 0.01, runs)
    expected = ttest_rel(a, b)
    low, high = expected.confidence_interval(0.95)
    found = of_scores(a - b)
    assert found.mean - found.half_width() == pytest.approx(low)
    assert found.mean + found.half_width() == pytest.approx(high)
    assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-6)
    # All images alike: nothing is added.
    spread = estimate(np.repeat((a - b)[:, None], 50, axis=1))
    assert spread.half_width() == pytest.approx(float(found.half_width()))


@pytest.mark.parametrize("n", [4, 30])
def test_images_alone_give_the_t_test_over_images(n: int) -> None:
    values = np.random.default_rng(n).normal(0.1, 0.2, n)
    expected = ttest_1samp(values, 0)
    low, high = expected.confidence_interval(0.95)
    found = estimate(np.repeat(values[None], 3, axis=0))  # all runs alike
    assert found.over_runs == 0
    assert found.mean - found.half_width() == pytest.approx(low)
    assert found.mean + found.half_width() == pytest.approx(high)
    assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-6)


def test_the_smallest_p_value_is_1e_13() -> None:
    sure = Estimate(np.float64(0.1), np.float64(1e-30), np.float64(1e-30), 5, 100)
    assert 0.9e-13 < sure.p_value() < 1.1e-13


def test_what_never_holds_has_a_p_of_one() -> None:
    assert bisect(lambda p: p > 1, (3,)).tolist() == [1, 1, 1]
    assert bisect(lambda p: p >= 0.2, (2,)) == pytest.approx([0.2, 0.2])


def test_the_p_value_is_where_the_interval_touches() -> None:
    found = estimate(np.random.default_rng(5).normal(0.3, 1, (3, 40)))
    for null in (0.0, 0.2, -0.1):
        p = float(found.p_value(null))
        assert found.half_width(1 - p) == pytest.approx(abs(float(found.mean) - null))


def test_without_any_variation_every_difference_is_certain() -> None:
    assert estimate(np.full((3, 5), 0.25)).p_value() == 0
    assert estimate(np.zeros((3, 5))).p_value() == 1


def test_a_single_run_says_nothing() -> None:
    found = estimate(np.random.default_rng(6).normal(size=(1, 40)))
    assert np.isnan(found.half_width())
    assert np.isnan(found.p_value())


def test_more_runs_are_foreseen_from_these() -> None:
    found = Estimate(np.float64(0.1), np.float64(4e-4), np.float64(1e-4), 4, 100)
    eight = Estimate(np.float64(0.1), np.float64(2e-4), np.float64(1e-4), 8, 100)
    assert found.half_width(runs=8) == pytest.approx(float(eight.half_width()))
    assert found.half_width(runs=8) < found.half_width()


@pytest.mark.parametrize("runs", [2, 3, 5])
@pytest.mark.parametrize(("over_runs", "over_images"), [(0.02, 0.0), (0.0, 0.2), (0.01, 0.1)])
def test_the_interval_holds_its_level(runs: int, over_runs: float, over_images: float) -> None:
    random = np.random.default_rng(7)
    shape = (4000, runs, 40)
    y = over_runs * random.standard_normal((*shape[:2], 1))
    y = y + over_images * random.standard_normal((shape[0], 1, shape[2]))
    y = y + 0.1 * random.standard_normal(shape)
    found = estimate(y)
    covered = np.abs(found.mean) <= found.half_width()
    assert covered.mean() > 0.94  # 3 standard errors below 0.95
