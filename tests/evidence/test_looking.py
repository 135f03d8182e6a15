"""Looking early: the boundary keeps its level, and is the plain one where there is one look."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from fewmask.evidence.looking import adjusted, nominal


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
