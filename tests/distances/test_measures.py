"""KID, MMD, k-NN distance, coverage and density against slow loops, known cases and simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from fewmask.distances import kernels, neighbours
from fewmask.distances.command import measures
from fewmask.distances.jackknife import Estimate, jackknife
from fewmask.distances.kernels import gaussian_mmd2, kid

Array = NDArray[np.float64]


def two_sets(seed: int = 0, m: int = 13, n: int = 11, d: int = 4) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, d)) + 0.6, rng.standard_normal((n, d))


# --- slow loops -----------------------------------------------------------------------------------


def slow_mmd2(x: Array, y: Array, k: Callable[[Array, Array], float]) -> float:
    m, n = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_y = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


def slow_kid(x: Array, y: Array) -> float:
    return slow_mmd2(x, y, lambda a, b: (a @ b / len(a) + 1) ** 3)


def slow_radius(y: Array, i: int, k: int) -> float:
    return sorted(math.dist(y[i], y[j]) for j in range(len(y)) if j != i)[k - 1]


def slow_coverage(x: Array, y: Array, k: int) -> float:
    hit = [any(math.dist(y[i], s) <= slow_radius(y, i, k) for s in x) for i in range(len(y))]
    return sum(hit) / len(hit)


def slow_density(x: Array, y: Array, k: int) -> float:
    hits = sum(math.dist(y[i], s) <= slow_radius(y, i, k) for i in range(len(y)) for s in x)
    return hits / (k * len(x))


def slow_knn(x: Array, y: Array, k: int) -> float:
    to_source = [sum(sorted(math.dist(a, s) for s in x)[:k]) for a in y]
    others = [
        sum(sorted(math.dist(y[i], y[j]) for j in range(len(y)) if j != i)[:k])
        for i in range(len(y))
    ]
    return sum(to_source) / sum(others)


SLOW: dict[str, Callable[[Array, Array], float]] = {
    "kid": slow_kid,
    "knn": lambda x, y: slow_knn(x, y, 3),
    "coverage": lambda x, y: slow_coverage(x, y, 3),
    "density": lambda x, y: slow_density(x, y, 3),
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kernels, neighbours):
        monkeypatch.setattr(module, "BLOCK", 4)


@pytest.mark.parametrize("measure", SLOW)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_measure_is_the_slow_loop_s(measure: str, seed: int) -> None:
    x, y = two_sets(seed)
    assert measures(x, y, 3)[measure].value == pytest.approx(SLOW[measure](x, y), rel=1e-9)


@pytest.mark.parametrize("measure", SLOW)
def test_what_is_left_without_each_picture_is_the_slow_loop_s(
    measure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jackknife's shortcuts against leaving every picture out and measuring anew."""
    seen: list[tuple[Array, Array]] = []

    def keep(value: float, a: Array, b: Array, square: float = math.inf) -> Estimate:
        seen.append((a, b))
        return Estimate(value, 0.0, 1.0)

    for module in (kernels, neighbours):
        monkeypatch.setattr(module, "jackknife", keep)
    x, y = two_sets(3)
    place = list(measures(x, y, 3)).index(measure)
    without_source, without_target = seen[place]
    slow = SLOW[measure]
    again = [slow(np.delete(x, i, 0), y) for i in range(len(x))]
    np.testing.assert_allclose(without_source, again, rtol=1e-9)
    again = [slow(x, np.delete(y, i, 0)) for i in range(len(y))]
    np.testing.assert_allclose(without_target, again, rtol=1e-9)


def test_gaussian_mmd_is_the_slow_loop_s_with_the_target_s_median() -> None:
    x, y = two_sets()
    width = float(np.median([math.dist(y[i], y[j]) for i in range(11) for j in range(i)]))
    slow = slow_mmd2(x, y, lambda a, b: math.exp(-(math.dist(a, b) ** 2) / (2 * width**2)))
    assert kernels.gaussian_mmd2(x, y).value == pytest.approx(slow, rel=1e-9)


# --- known cases ----------------------------------------------------------------------------------


def test_kid_of_two_points_far_apart_is_known() -> None:
    """All of x at (1, 1), all of y at (-1, -1): k is 8 within, 0 between."""
    x, y = np.ones((5, 2)), -np.ones((7, 2))
    assert kernels.kid(x, y).value == pytest.approx(16)


def test_sets_far_apart_and_sets_alike() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 80, 6))
    alike, apart = measures(x, y, 5), measures(x + 50, y, 5)
    assert apart["coverage"].value == apart["density"].value == 0
    assert apart["knn"].value > 10
    assert alike["kid"].low < 0 < alike["kid"].high < apart["kid"].low
    assert 0 < alike["knn"].value - 0.9 < 0.2
    assert alike["coverage"].value > 0.9
    assert alike["coverage"].high <= 1


def test_the_expected_coverage_of_a_set_by_another_sample_of_it() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        x, y = rng.standard_normal((2, 60, 3))
        found.append(neighbours.coverage(neighbours.surroundings(x, y, 5)).value)
    assert np.mean(found) == pytest.approx(1 - 2**-5, abs=0.01)


def test_the_order_of_the_pictures_does_not_matter() -> None:
    x, y = two_sets()
    first, second = measures(x, y, 3), measures(x[::-1], y[::-1], 3)
    for name, e in first.items():
        np.testing.assert_allclose(second[name].value, e.value)
        np.testing.assert_allclose(second[name].high, e.high)


# --- intervals ------------------------------------------------------------------------------------


def test_the_jackknife_of_two_means_is_the_usual_standard_error() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 40))
    without_x = (x.sum() - x) / 39 - y.mean()
    without_y = x.mean() - (y.sum() - y) / 39
    e = jackknife(float(x.mean() - y.mean()), without_x, without_y)
    se = math.sqrt(x.var(ddof=1) / 40 + y.var(ddof=1) / 40)
    assert e.high - e.value == pytest.approx(2.0227 * se, rel=1e-4)
    assert e.high - e.value == pytest.approx(e.value - e.low)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0])
def test_intervals_hold_their_level(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alike, a little apart (where plain ends cover 91 %), far apart; long tails; 250 draws.

    The truth of the squared distances, which are unbiased, is that of 4,000 points; neighbours
    depend on how many points there are, so theirs is the mean of 250 other draws.
    """
    for module in (kernels, neighbours):
        monkeypatch.setattr(module, "BLOCK", 512)
    rng, spread = np.random.default_rng(1), np.linspace(2, 0.2, 8)

    def draw(by: float, n: int = 60) -> Array:
        tails = np.sqrt(5 / rng.chisquare(7, (n, 1)))
        points = rng.standard_normal((n, 8)) * spread * tails
        points[:, 0] += by
        return points / np.sqrt(np.square(spread).mean())

    def drawn() -> dict[str, list[Estimate]]:
        tables = [measures(draw(shift), draw(0), 5) for _ in range(250)]
        return {name: [table[name] for table in tables] for name in tables[0]}

    truths = {name: float(np.mean([e.value for e in own])) for name, own in drawn().items()}
    many = draw(shift, 4000), draw(0, 4000)
    truths |= {"kid": kid(*many).value, "mmd2": gaussian_mmd2(*many).value}
    if shift == 0:
        truths |= {"kid": 0.0, "mmd2": 0.0}
    for name, estimates in drawn().items():
        truth = truths[name]
        covered = np.mean([e.low <= truth <= e.high for e in estimates])
        assert covered >= 0.93, f"{name} covers in {covered:.3f}"
        wide = np.mean([e.high - e.low for e in estimates]) / np.std([e.value for e in estimates])
        assert wide < 10, f"{name} holds its level by being {wide:.1f} standard errors wide"
