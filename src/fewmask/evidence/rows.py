"""Values of results.csv: text -> numbers."""

from __future__ import annotations

import math

from fewmask.types import UserError


def parse_budget(value: str | float) -> int | float:
    """A share of all pairs (a float, up to 1) or a number of masks (an int, from 2).

    >>> parse_budget("0.2"), parse_budget("8"), parse_budget(8.0)
    (0.2, 8, 8)
    """
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if 0 < number <= 1:
        return number
    if number > 1 and number.is_integer():
        return int(number)
    raise UserError(f"budget {value!r} is neither a share in 0..1 nor a whole number of masks")


def read_score(value: str | float | None) -> float:
    """A score of `results.csv` as a number; NaN where it is empty.

    Raises UserError for what is no finite number.
    """
    if value is None or value == "":
        return math.nan
    try:
        found = float(value)
        if math.isinf(found):
            raise ValueError(value)
    except ValueError:
        raise UserError(f"score {value!r} of the results is not a number") from None
    return found
