"""Paired differences against SciPy's own paired test."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from scipy.stats import ttest_rel

from fewmask.evidence.compare import paired_differences, parse_budget
from fewmask.types import UserError

Row = Mapping[str, str | float]


def rows_of(arm: str, budget: str | float, scores: Mapping[int, str | float]) -> list[Row]:
    return [{"arm": arm, "budget": budget, "repeat": r, "iou": s} for r, s in scores.items()]


@pytest.mark.parametrize("repeats", [3, 4, 10])
def test_interval_is_scipys(repeats: int) -> None:
    random = np.random.default_rng(repeats)
    base, arm = random.uniform(0.6, 0.8, repeats), random.uniform(0.65, 0.85, repeats)
    rows = rows_of("scratch", 0.2, dict(enumerate(base))) + rows_of("a", 0.2, dict(enumerate(arm)))
    (found,) = paired_differences(rows, "scratch")
    expected = ttest_rel(arm, base).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.mean == pytest.approx(float(np.mean(arm - base)))
    assert found.differences == pytest.approx(tuple(arm - base))


def test_pairs_are_matched_on_the_repeat_not_on_the_place() -> None:
    rows = rows_of("a", "0.2", {2: "0.9", 0: "0.7", 1: "0.8"})
    rows += rows_of("scratch", "0.2", {0: "0.6", 1: "0.5", 2: "0.4", 3: "0.1"})
    (found,) = paired_differences(rows, "scratch")
    assert found.repeats == (0, 1, 2)
    assert found.pairs == ((0.7, 0.6), (0.8, 0.5), (0.9, 0.4))


def test_fewer_than_three_repeats_have_no_interval() -> None:
    rows = rows_of("a", 0.2, {0: 0.7, 1: 0.8}) + rows_of("scratch", 0.2, {0: 0.6, 1: 0.6})
    (found,) = paired_differences(rows, "scratch")
    assert found.interval is None
    assert found.mean == pytest.approx(0.15)


def test_budgets_do_not_mix_and_undefined_scores_are_left_out() -> None:
    rows = rows_of("scratch", "0.2", {0: "0.5", 1: "", 2: math.nan}) + rows_of(
        "scratch", "8", {0: "0.4"}
    )
    rows += rows_of("a", "0.2", {0: "0.6", 1: "0.9", 2: "0.9"}) + rows_of("a", "8", {0: "0.7"})
    rows += rows_of("b", "0.5", {0: "0.9"})  # no baseline at that budget
    found = paired_differences(rows, "scratch")
    assert [(d.arm, d.budget, d.repeats) for d in found] == [("a", 0.2, (0,)), ("a", 8, (0,))]
    assert [d.mean for d in found] == pytest.approx([0.1, 0.3])


def test_another_score_can_be_asked_for() -> None:
    rows: list[Row] = [
        {"arm": arm, "budget": 8, "repeat": 0, "iou": 0.5, "f1": f1}
        for arm, f1 in (("scratch", 0.6), ("a", 0.8))
    ]
    assert paired_differences(rows, "scratch", "f1")[0].mean == pytest.approx(0.2)


def test_a_cell_that_is_there_twice_is_refused() -> None:
    rows = rows_of("a", 0.2, {0: 0.7}) * 2
    with pytest.raises(UserError, match=r"two rows of arm a, budget 0\.2, repeat 0"):
        paired_differences(rows, "scratch")


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="'high'"):
        paired_differences(rows_of("a", 0.2, {0: "high"}), "scratch")


@pytest.mark.parametrize(
    ("text", "budget"), [("0.2", 0.2), ("8", 8), (8.0, 8), (0.5, 0.5), ("1.0", 1.0)]
)
def test_budgets_are_shares_or_masks(text: str | float, budget: float) -> None:
    assert parse_budget(text) == budget
    assert type(parse_budget(text)) is type(budget)


@pytest.mark.parametrize("text", ["many", "0", "-1", "2.5", "nan", "inf"])
def test_no_budget(text: str) -> None:
    with pytest.raises(UserError, match="neither a share"):
        parse_budget(text)
