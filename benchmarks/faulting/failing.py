"""Is a test able to fail? Each one that passes is run again on code that is broken on purpose.

    PYTHONPATH=benchmarks pytest -p faulting.failing --failing=results/faults/failing.jsonl tests

While a test runs, the functions of fewmask that it calls are noted. Then, one after the other and
those first that the test itself calls, each is made to answer wrongly: a whole number is one more,
others are off by a random one, a text is written backwards, a list lacks its last entry, True is
False, a function that returns nothing does nothing, and one that raises does not (but for what ends
loops). The test is run again until it fails by what it asserts. A test that only ever ends in
another error, or passes whatever is broken, is written down as such: somebody has to look at it.
Tests whose fewmask runs in other processes can't be judged so. To be run in a throw-away copy:
broken code may write beside where it should.
"""

from __future__ import annotations

import builtins
import copy
import dataclasses
import json
import random
import signal
import sys
import time
import types
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

LONGEST = 20.0
"""Seconds that one test's tries may take together, about."""
ONE = 15
"""Seconds of a single try."""
TRIES = 25
"""Functions that are broken for one test, at most."""
SLOW = 8.0
"""Seconds beyond which a test is run on broken code a few times only."""
NEVER = {"__init__", "__enter__", "__exit__", "__post_init__"}
"""Methods whose answer is not looked at."""


def pytest_addoption(parser: pytest.Parser) -> None:
    said = "where rows are added; tests that failed there by what they assert are left out"
    parser.addoption("--failing", type=Path, help=said)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--failing"):
        import hypothesis

        # A failing example is enough; making it small takes long.
        found = hypothesis.settings(phases=[hypothesis.Phase.generate], database=None)
        hypothesis.settings.register_profile("failing", found)
        hypothesis.settings.load_profile("failing")
        config.pluginmanager.register(Failing(config.getoption("--failing")))


class Failing:
    """The plugin: runs a test, then runs it on broken code."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = set()
        if path.exists():
            rows = map(json.loads, path.read_text().splitlines())
            self.known = {row["test"] for row in rows if row["ends"] == "asserts"}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.known]

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
        if getattr(pyfuncitem, "on_broken", False):
            return (yield)
        calls = Calls()
        sys.setprofile(calls)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            pyfuncitem.called = calls.ordered()  # type: ignore[attr-defined]

    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        from _pytest.runner import runtestprotocol

        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        began = time.monotonic()
        reports = runtestprotocol(item, nextitem=cast(Any, Same(item)), log=False)
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        row: dict[str, Any] = {"test": item.nodeid, "seconds": round(time.monotonic() - began, 2)}
        if all(report.passed for report in reports):
            self.add(row | self.judged(item, row["seconds"]))
        item._request = None  # type: ignore[attr-defined]
        item.session._setupstate.teardown_exact(nextitem)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def judged(self, item: pytest.Item, seconds: float) -> dict[str, Any]:
        """What was broken and how the test failed of it; the best of what was tried."""
        from _pytest.runner import runtestprotocol

        best: dict[str, Any] = {"ends": "passes", "tried": 0}
        began = time.monotonic()
        item.on_broken = True  # type: ignore[attr-defined]
        tries = TRIES if seconds < SLOW else 3
        for function in getattr(item, "called", [])[:tries]:
            if time.monotonic() - began > LONGEST:
                best["late"] = True
                break
            best["tried"] += 1
            with Broken(function) as broken:
                item._initrequest()  # type: ignore[attr-defined]
                signal.signal(signal.SIGALRM, too_late)
                signal.setitimer(signal.ITIMER_REAL, ONE)
                try:
                    reports = runtestprotocol(item, nextitem=cast(Any, Same(item)), log=False)
                except (KeyboardInterrupt, pytest.exit.Exception):
                    raise
                except BaseException as problem:  # pytest's own trouble with broken code
                    best.setdefault("trouble", repr(problem)[:200])
                    continue
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            failed = [r for r in reports if r.failed and r.when == "call"]
            if not failed or not broken.answers:
                continue
            text = str(failed[0].longrepr)
            if TooLate.__name__ in text:
                best["late"] = True
                continue
            kind = "asserts" if asserted(failed[0]) else "error"
            if best["ends"] == "passes" or kind == "asserts":
                last = [line for line in text.splitlines() if line.startswith("E ")][:1]
                name = f"{function.__module__}.{function.__qualname__}"
                best.update(ends=kind, broken=name, said="".join(last)[1:].strip()[:160])
            if kind == "asserts":
                break
        return best

    def add(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class Same:
    """Stands for a next test of the same module: what its tests share stays for the tries."""

    def __init__(self, item: pytest.Item) -> None:
        self.chain = item.listchain()[:-1]

    def listchain(self) -> list[Any]:
        return self.chain


def asserted(report: pytest.TestReport) -> bool:
    """Whether the test failed by what it asks for, and not by an error on its way."""
    crash = getattr(report.longrepr, "reprcrash", None)
    said = crash.message if crash is not None else str(report.longrepr)
    return said.startswith(("AssertionError", "assert", "Failed: DID NOT", "Failed: Regex"))


class TooLate(BaseException):
    """A try took too long. Nothing that a test or fewmask catches."""


def too_late(*_: object) -> None:
    raise TooLate


# --- what a test calls ----------------------------------------------------------------------------


class Calls:
    """A profile function that notes fewmask's functions: by what depth under the test."""

    def __init__(self) -> None:
        self.depths: dict[types.CodeType, int] = {}

    def __call__(self, frame: types.FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code in self.depths or "/src/fewmask/" not in code.co_filename:
            return
        depth, above = 0, frame.f_back
        while above is not None and "/tests/" not in above.f_code.co_filename and depth < 60:
            depth, above = depth + ("/src/fewmask/" in above.f_code.co_filename), above.f_back
        self.depths[code] = depth

    def ordered(self) -> list[types.FunctionType]:
        """The functions, the test's own calls first. Only what can be given other code."""
        codes = {
            code: depth
            for code, depth in self.depths.items()
            if code.co_name not in NEVER and "<" not in code.co_name and not code.co_freevars
        }
        if not codes.keys() <= KNOWN.keys():
            learn()
        found = [KNOWN[code] for code in codes if code in KNOWN]
        return sorted(found, key=lambda f: codes[f.__code__])


KNOWN: dict[types.CodeType, types.FunctionType] = {}
"""fewmask's functions by their code."""


def learn() -> None:
    """Look for all of fewmask's functions that there are by now."""
    import gc

    for one in gc.get_objects():
        if type(one) is not types.FunctionType or hasattr(one, "is_a_copy"):
            continue
        if "/src/fewmask/" in one.__code__.co_filename:
            KNOWN.setdefault(one.__code__, one)


# --- wrong answers --------------------------------------------------------------------------------


class Broken:
    """Within it a function answers wrongly, wherever it was imported to."""

    def __init__(self, function: types.FunctionType) -> None:
        self.function = function
        self.answers = 0

    def __enter__(self) -> Broken:
        f = self.function
        self.code = f.__code__
        right = types.FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__)
        right.__kwdefaults__ = f.__kwdefaults__
        right.is_a_copy = True  # type: ignore[attr-defined]

        def answer(*args: Any, **named: Any) -> Any:
            self.answers += 1
            if f.__code__ is self.code:
                return right(*args, **named)
            if not returns(f):
                return None
            try:
                return wrong(right(*args, **named))
            except (IndexError, StopIteration):  # loops end by them
                raise
            except Exception:
                return None

        builtins._answer = answer  # type: ignore[attr-defined]
        f.__code__ = wrongly.__code__
        return self

    def __exit__(self, *_: object) -> None:
        self.function.__code__ = self.code


def wrongly(*args, **named):  # type: ignore[no-untyped-def]
    return _answer(*args, **named)  # type: ignore[name-defined]  # noqa: F821


def returns(function: types.FunctionType) -> bool:
    """Whether it is to be called at all: one that says to return None does nothing instead."""
    return function.__annotations__.get("return", "") not in ("None", None)


def wrong(right: Any) -> Any:
    """Another value of the same type, or the same one where none is known."""
    import numpy as np
    import torch

    match right:
        case bool() | np.bool_():
            return not right
        case int() | np.integer():
            return right + 1
        case float() | np.floating():
            return right + off()
        case str():
            return right[::-1] + "x"
        case bytes():
            return right + b"x"
        case Path():
            return right.with_name(right.name + "x") if right.name else right
        case torch.Tensor():
            if right.is_floating_point():
                return right + off() * (0.5 + torch.rand_like(right))
            return ~right if right.dtype in (torch.bool, torch.uint8) else right + 1
        case np.ndarray():
            return ~right if right.dtype in (bool, np.uint8) else changed_array(right)
        case None:  # of a function that might have returned something
            return "x"
    return wrong_within(right)


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
