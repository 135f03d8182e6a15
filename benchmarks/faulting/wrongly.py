"""Wrong answers: a function of fewmask's made to answer what it should not.

Nothing but Python's own modules is imported here, since each process that a test starts takes this
in first (`started/sitecustomize.py`): there the same is broken as in the test's own.
"""

from __future__ import annotations

import builtins
import copy
import dataclasses
import random
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ALWAYS, SOMETIMES = "always", "sometimes"
"""How often a broken function answers wrongly. What two broken sides have in common, and a test
therefore can't see, shows where only some of the answers are wrong."""
CONSTANT = "constant "
"""Before the number of a constant of the function's code, the one that is another."""


class Sabotaged:
    """Within it a function answers wrongly; `answers` counts how often it was asked."""

    def __init__(
        self,
        function: types.FunctionType,
        often: str = ALWAYS,
        asked: Callable[[], None] | None = None,
    ) -> None:
        self.function = function
        self.often = often
        self.asked = asked
        self.answers = 0

    def __enter__(self) -> Sabotaged:
        f = self.function
        self.code = f.__code__
        if self.often.startswith(CONSTANT):
            f.__code__ = with_another(f.__code__, int(self.often.removeprefix(CONSTANT)))
            self.answers = 1  # a function is only broken if it was seen to be called
            if self.asked:
                self.asked()
            return self
        right = types.FunctionType(
            f.__code__, f.__globals__, f.__name__, f.__defaults__, f.__closure__
        )
        right.__kwdefaults__ = f.__kwdefaults__
        right.is_a_copy = True  # type: ignore[attr-defined]

        def answer(*args: Any, **named: Any) -> Any:
            self.answers += 1
            if self.asked and self.answers == 1:
                self.asked()
            if f.__code__ is self.code or (self.often == SOMETIMES and random.random() < 0.5):
                return right(*args, **named)
            if f.__name__ == "__init__":
                with suppress(ValueError, TypeError):
                    right(*args, **named)
                return spoil(args[0])
            if not returns(f):
                return None
            try:
                return wrong(right(*args, **named))
            except (IndexError, StopIteration):  # loops end by them
                raise
            except Exception:
                return None

        builtins._answer = answer  # type: ignore[attr-defined]
        f.__code__ = wrongly.__code__.replace(co_freevars=f.__code__.co_freevars)
        return self

    def __exit__(self, *_: object) -> None:
        self.function.__code__ = self.code


def wrongly(*args, **named):  # type: ignore[no-untyped-def]
    return _answer(*args, **named)  # type: ignore[name-defined]  # noqa: F821


def constants(code: types.CodeType) -> list[int]:
    """The numbers of the constants of a function's code that can be made others."""
    return [
        i
        for i, value in enumerate(code.co_consts)
        if type(value) in (bool, int, float, tuple) and value != ()
    ]


def with_another(code: types.CodeType, number: int) -> types.CodeType:
    """The code with one of its constants changed."""
    values = list(code.co_consts)
    value = values[number]
    values[number] = (*value[:-1], wrong(value[-1])) if isinstance(value, tuple) else wrong(value)
    return code.replace(co_consts=tuple(values))


def spoil(made: Any) -> None:
    """A constructor's answer is what it made: its numbers and its weights are off."""
    for name, value in list(vars(made).items()):
        if type(value) in (int, float) and not name.startswith("_"):
            with suppress(AttributeError, TypeError):
                setattr(made, name, wrong(value))
    torch = sys.modules.get("torch")
    if torch and isinstance(made, torch.nn.Module):
        spoil_weights(made)


def spoil_weights(network: Any) -> None:
    """Other weights; what was not learned is and what was is not; dropout keeps what it cut."""
    import torch

    for weights in network.parameters():
        weights.data += torch.randn_like(weights)
        weights.requires_grad = not weights.requires_grad
    for part in network.modules():
        if isinstance(getattr(part, "p", None), float):
            part.p = 1 - part.p


def returns(function: types.FunctionType) -> bool:
    """Whether it is to be called at all: one that says to return None does nothing instead."""
    return function.__annotations__.get("return", "") not in ("None", None)


def wrong(right: Any) -> Any:
    """Another value of the same type, or the same one where none is known."""
    match right:
        case bool():
            return not right
        case int():
            return right + 1
        case float():
            return right + off()
        case str():
            return right[::-1] + "x"
        case bytes():
            return right + b"x"
        case Path():
            return right.with_name(right.name + "x") if right.name else right
        case None:  # of a function that might have returned something
            return "x"
    kinds = {kind.__module__.partition(".")[0] for kind in type(right).__mro__}
    if kinds & {"numpy", "torch"}:
        return wrong_numbers(right)
    return wrong_within(right)


def wrong_numbers(right: Any) -> Any:
    """As `wrong`, of a tensor or an array."""
    import numpy as np

    match right:
        case np.bool_():
            return not right
        case np.integer():
            return right + 1
        case np.floating():
            return right + off()
        case np.ndarray():
            return ~right if right.dtype in (bool, np.uint8) else changed_array(right)
    torch = sys.modules.get("torch")
    if torch is None:
        return right
    if isinstance(right, torch.nn.Sequential) and len(right) > 1:
        return right[:-1]
    if isinstance(right, torch.nn.Module):
        spoil_weights(right)
    if not isinstance(right, torch.Tensor):
        return right
    if right.is_floating_point():
        return right + off() * (0.5 + torch.rand_like(right))
    return ~right if right.dtype in (torch.bool, torch.uint8) else right + 1


def off() -> float:
    """By how much: up or down."""
    return random.choice((-1, 1)) * random.uniform(0.5, 1.5)


def wrong_within(right: Any) -> Any:
    """As `wrong`, of what holds other values."""
    match right:
        case tuple() if hasattr(right, "_replace"):
            return type(right)(wrong(right[0]), *right[1:])
        case tuple():
            return tuple(wrong(one) for one in right)
        case list() | set() | frozenset():
            return type(right)(list(right)[:-1])
        case dict():
            return {key: wrong(value) for key, value in right.items()}
        case types.GeneratorType():
            return (wrong(one) for one in right)
    if dataclasses.is_dataclass(right) and not isinstance(right, type):
        other = copy.copy(right)
        for field in dataclasses.fields(right):
            with suppress(AttributeError, TypeError):
                object.__setattr__(other, field.name, wrong(getattr(right, field.name)))
        return other
    return right


def changed_array(right: Any) -> Any:
    """As `wrong`, of an array."""
    try:
        return right + (off() if right.dtype.kind == "f" else 1)
    except TypeError:  # text, or records
        return right[:-1]
