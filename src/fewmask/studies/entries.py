"""The entries of a plan's file, read and checked as the flags of the same names are."""

from __future__ import annotations

import math
from typing import Any

from fewmask.settings import RANGES
from fewmask.studies.plan import BudgetSize
from fewmask.types import UserError


def in_range(where: str, key: str, value: Any) -> float:
    """A number within what the flag `key` takes; raises UserError."""
    low, high, words = RANGES[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{where}: {key} {value}: expected {words}")
    return float(value)


def read_budget(where: str, value: Any) -> BudgetSize:
    """A fraction of the pairs (float, up to 1) or a number of masks (int); raises UserError."""
    if value == 1 and isinstance(value, int) and not isinstance(value, bool):
        raise UserError(
            f"{where}: budget 1; 1 mask can't train and validate. A share has a point: 0.8"
        )
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        raise UserError(
            f"{where}: budget {value!r}; expected a fraction (0.2) or a number of masks"
        )
    budget: BudgetSize = value
    if isinstance(budget, float) and budget > 1:
        raise UserError(
            f"{where}: budget {budget}; a fraction is at most 1, a number of masks whole"
        )
    return budget


def read_repeats(where: str, value: Any, budgets: tuple[BudgetSize, ...]) -> dict[BudgetSize, int]:
    """One number for all budgets, or a table of budget -> number; raises UserError."""
    each = value if isinstance(value, dict) else dict.fromkeys(map(str, budgets), value)
    most = int(RANGES["repeats"][1])
    missing = [str(b) for b in budgets if str(b) not in each]
    wrong = [f"{k} = {v!r}" for k, v in each.items() if type(v) is not int or not 1 <= v <= most]
    idle = [k for k in each if k not in map(str, budgets)]
    if idle:
        raise UserError(
            f"{where}: [repeats] names {', '.join(idle)}, which is no budget; "
            f"budgets: {', '.join(map(str, budgets))}"
        )
    if missing or wrong:
        raise UserError(
            f"{where}: repeats {', '.join(wrong) or 'lack budget ' + ', '.join(missing)}; "
            f"expected a whole number, 1 to {most}, or one for each budget"
        )
    return {budget: each[str(budget)] for budget in budgets}
