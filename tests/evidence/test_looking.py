"""Looking early: the boundary keeps its level, and is the plain one where there is one look."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from fewmask.evidence.looking import (
    FORETOLD,
    STUDIES,
    adjusted,
    adjusted_ahead,
    nominal,
    smallest_p,
    smallest_p_so_far,
)


def test_one_look_is_the_plain_test() -> None:
    assert adjusted(0.03, 5, 5) == 0.03
    assert nominal(0.95, 5, 5) == 0.95


def test_level_and_p_value_are_one_boundary() -> None:
    level = nominal(0.95, 3, 10)
    assert 0.98 < level < 0.995
    assert adjusted(1 - level, 3, 10) == pytest.approx(0.05, abs=1e-4)
    assert adjusted(0.01, 3, 10) < adjusted(0.02, 3, 10)


def test_without_effect_few_are_ever_called() -> None:
    random = np.random.default_rng(1)
    level = nominal(0.95, 3, 8)
    runs = random.standard_normal((2000, 8))
    least = np.min([ttest_1samp(runs[:, :n], 0, axis=1).pvalue for n in range(3, 9)], axis=0)
    assert (least < 0.05).mean() > 0.09  # what looking early does to a plain test
    assert 0.035 < (least < 1 - level).mean() < 0.065


def test_the_smallest_p_so_far_is_that_of_t_tests_at_every_look() -> None:
    runs = np.random.default_rng(2).standard_normal((4000, 5))
    plain = [ttest_1samp(runs[:, :n], 0, axis=1).pvalue for n in (2, 3, 4, 5)]
    found = smallest_p_so_far(2, 5)
    assert [len(one) for one in found] == [FORETOLD] * 4
    for slow, fast in zip(np.minimum.accumulate(plain), found, strict=True):
        for share in (0.02, 0.2, 0.8):
            below = (slow <= np.quantile(fast, share)).mean()
            assert below == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 4000))


def test_what_lies_ahead_is_adjusted_as_the_look_that_it_will_be() -> None:
    ahead = adjusted_ahead(np.array([0.03, 0.03]), 2, 3)  # after 4 and 5 runs
    each = [adjusted(0.03, 2, runs) for runs in (4, 5)]
    assert each[1] - each[0] > 0.01
    assert ahead == pytest.approx(each, abs=0.005)


def test_a_simulated_p_value_counts_what_was_seen_as_one_of_all() -> None:
    """As (k + 1) / (n + 1), so never 0 (Phipson & Smyth 2010); as large ones count."""
    for p, k in ((0.0, 0), (1.0, STUDIES), (smallest_p(3, 10)[99], 100)):
        assert adjusted(p, 3, 10) == pytest.approx((k + 1) / (STUDIES + 1), rel=1e-9)
    for p, k in ((0.0, 0), (1.0, FORETOLD), (smallest_p_so_far(3, 100)[1][99], 100)):
        (found,) = adjusted_ahead(np.array([p]), 3, 3)
        assert found == pytest.approx((k + 1) / (FORETOLD + 1), rel=1e-9)
