"""What study.json may hold: it can be damaged, or come from elsewhere."""

from __future__ import annotations

import math
from typing import Any


class Whole(dict[str, Any]):
    """The shape of a table of which no entry may be missing."""


NUMBER = (int, float)
WORDS: Any = [str]
SHARED = Whole(exact=int, near=int)
POOL = Whole(pool=str, images=int, left_out=int, test=SHARED, train_or_validation=SHARED)
BALANCE = Whole(name=str, masks_rest=int, masks_test=int, share_rest=NUMBER, share_test=NUMBER)
NEARNESS = Whole(name=str, kid=NUMBER, low=NUMBER, high=NUMBER)
SHAPE: dict[str, Any] = {
    **dict.fromkeys(
        ("name", "title", "about", "baseline", "encoder", "decoder", "recipe", "loss",
         "class_weights", "pairs", "fingerprint", "test_pairs", "headline", "command", "device",
         "precision", "training"), str,
    ),
    **dict.fromkeys(("size", "n_pairs", "n_test", "seed"), int),
    **dict.fromkeys(("test_fraction", "margin"), NUMBER),
    **dict.fromkeys(("classes", "warnings", "cells"), WORDS),
    **{key: {"*": str} for key in ("versions", "made_by", "definitions")},
    "arms": [{"name": str, "sentence": str, "pretraining": str}],
    "budgets": [NUMBER],
    "whole_budgets": [NUMBER],
    "repeats": {"*": int},
    "colours": [[int]],
    "targets": [NUMBER],
    "panels": {"images": WORDS},
    "leakage": {"pool": {"*": POOL}, "test": SHARED, "within": SHARED, "not_searched": WORDS},
    "data": {"classes": [BALANCE], "nearness": [NEARNESS]},
    "until_decided": {"first": {"*": int}, "most": int, "late": bool},
    "looked": {"*": [int]},
}  # fmt: skip
"""A type, or several; [shape] for a list; {key: shape} for a table, "*" being any key. Any entry
may be missing or null, but not one of a `Whole` table."""
NEEDED = {"arms": "name"}
"""Entries that each table of a list must have."""
MOST_LOOKS = 1000
"""Repeats up to which verdicts may have been looked at: looks are simulated."""


def without_null(value: Any) -> Any:
    """A table without its null entries: what is null is as good as missing."""
    if isinstance(value, dict):
        return {key: without_null(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [without_null(one) for one in value]
    return value


def unsound(told: dict[str, Any]) -> str | None:
    """The first entry that is not as it must be, in words; None if all are."""
    for key, shape in SHAPE.items():
        if not _fits(told.get(key), shape):
            return f"{key} is {_shown(told[key])}"
    for key, name in NEEDED.items():
        for one in told.get(key) or ():
            if not isinstance(one.get(name), str):
                return f"{key} holds {_shown(one)}, which has no {name}"
    for colour in told.get("colours") or ():
        if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
            return f"colours holds {_shown(colour)}"
    looks = [n for numbers in (told.get("looked") or {}).values() for n in numbers]
    looks.append((told.get("until_decided") or {}).get("most") or 0)
    if max(looks) > MOST_LOOKS:
        return f"{max(looks)} repeats were looked at"
    for name in (told.get("panels") or {}).get("images") or ():
        if ".." in name.split("/") or name.startswith("/"):
            return f"panels names {_shown(name)}, which lies elsewhere"
    return None


def _fits(value: Any, shape: Any) -> bool:
    if value is None:
        return True
    if isinstance(shape, list):
        return isinstance(value, list) and all(
            one is not None and _fits(one, shape[0]) for one in value
        )
    if isinstance(shape, Whole) and (not isinstance(value, dict) or not shape.keys() <= {*value}):
        return False
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            _fits(one, shape.get(key, shape.get("*"))) for key, one in value.items()
            if key in shape or "*" in shape
        )  # fmt: skip
    if shape is bool:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, shape):
        return False
    return not isinstance(value, float) or math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
