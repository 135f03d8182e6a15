"""Texts of results.csv become numbers, or are refused by name."""

from __future__ import annotations

import math

import pytest

from fewmask.evidence.rows import parse_budget, read_score
from fewmask.types import UserError


def test_scores_are_numbers_or_not_there() -> None:
    assert read_score("0.5") == 0.5
    assert math.isnan(read_score(""))
    assert math.isnan(read_score(None))
    for text in ("high", "inf", "-1e999"):
        with pytest.raises(UserError, match=f"'{text}'"):
            read_score(text)


@pytest.mark.parametrize(
    ("text", "budget"), [("0.2", 0.2), ("8", 8), ("2", 2), (8.0, 8), (0.5, 0.5), ("1.0", 1.0)]
)
def test_budgets_are_shares_or_masks(text: str | float, budget: float) -> None:
    assert parse_budget(text) == budget
    assert type(parse_budget(text)) is type(budget)


@pytest.mark.parametrize("text", ["many", "0", "-1", "1.5", "2.5", "nan", "inf"])
def test_no_budget(text: str) -> None:
    with pytest.raises(UserError, match="neither a share"):
        parse_budget(text)
