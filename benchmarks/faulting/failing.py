"""Is a test able to fail? Each one that passes is run again on code that is broken on purpose.

    PYTHONPATH=benchmarks pytest -p faulting.failing --failing=results/faults/failing.jsonl tests

While a test runs, the functions of fewmask that it calls are noted, also in the processes that it
starts (`started/sitecustomize.py`). Then, one after the other, each is made to answer wrongly
(`wrongly.py`): a whole number is one more, others are off by a random one, a text is written
backwards, a list lacks its last entry, True is False, a function that returns nothing does nothing,
one that raises does not (but for what ends loops), and of what a constructor makes the numbers and
weights are off. Those come first that the test itself calls; of slow tests, and in other processes,
those whose names have words in common with the test's. Where every answer being wrong is not seen,
half of the answers are: two sides that are broken alike differ then. Last come single constants of
their code. A test that calls nothing itself is judged by what its fixtures call; one that calls
nothing at all, by the documents that its module has read: written backwards, then empty.

The test is run again until it fails by what it asserts. A test that only ever ends in another
error, or passes whatever is broken, is written down as such: somebody has to look at it. To be run
in a throw-away copy: broken code may write beside where it should.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from faulting import inside
from faulting.wrongly import ALWAYS, CONSTANT, SOMETIMES, Sabotaged, constants, wrong

LONGEST = 20.0
"""Seconds that one test's tries may take together, about; eight times as many where it takes more
than a second itself."""
ONE = 15
"""Seconds of a single try, at least."""
TRIES = 25
"""Functions that are broken for one test, at most."""
SLOW = 8.0
"""Seconds beyond which a test is run on broken code a few times only."""
NEVER = {"__enter__", "__exit__", "main", "dispatch"}
"""What is not broken: `main`'s exit code alone would fail every test of a command."""


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
        started = Path(__file__).parent / "started"
        paths = [str(started), str(started.parents[1]), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        config.pluginmanager.register(Failing(config.getoption("--failing")))


class Failing:
    """The plugin: runs a test, then runs it on broken code."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = tempfile.TemporaryDirectory()
        self.notes = Path(self.folder.name) / "notes"
        self.prepared: dict[str, list[Called]] = {}
        """What each fixture of several tests calls."""
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
        found: list[Called] = []
        pyfuncitem.called = found  # type: ignore[attr-defined]
        with self.noted(found):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        known = name_of(fixturedef) in self.prepared
        if known or fixturedef.scope == "function" or sys.getprofile():
            return (yield)
        with self.noted(self.prepared.setdefault(name_of(fixturedef), [])):
            return (yield)

    @contextmanager
    def noted(self, found: list[Called]) -> Iterator[None]:
        """Note what is called within, here and in processes that are started, in `found`."""
        calls = Calls(self.notes)
        self.notes.write_text("")
        with inside.said(self.notes):
            sys.setprofile(calls)
            try:
                yield
            finally:
                sys.setprofile(None)
                found += calls.ordered() + elsewhere(self.notes)

    def beneath(self, item: pytest.Item) -> list[Called]:
        """What is called by the fixtures that the test shares with others."""
        used = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
        return [one for defs in used for one in self.prepared.get(name_of(defs[-1]), [])]

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
        best: dict[str, Any] = {"ends": "passes", "tried": 0}
        began = time.monotonic()
        item.on_broken = True  # type: ignore[attr-defined]
        longest = LONGEST if seconds < 1 else 8 * LONGEST
        shared = [] if getattr(item, "called", None) else self.beneath(item)
        for one, often in tries(item, seconds, shared):
            if time.monotonic() - began > longest:
                best["late"] = True
                break
            best["tried"] += 1
            self.try_one(item, one, often, max(ONE, 3 * seconds), best, anew=bool(shared))
            if best["ends"] == "asserts":
                break
        return best

    def try_one(
        self,
        item: pytest.Item,
        one: Called,
        often: str,
        longest: float,
        best: dict[str, Any],
        *,
        anew: bool,
    ) -> None:
        """Run the test with one function broken, with `anew` on fixtures that are made again."""
        from _pytest.runner import runtestprotocol

        after = None if anew else cast(Any, Same(item))
        if anew:
            item.session._setupstate.teardown_exact(None)
        self.notes.write_text("")
        name = "" if one.module else one.name
        with inside.said(self.notes, name, often), one.broken(often) as asked:
            item._initrequest()  # type: ignore[attr-defined]
            signal.signal(signal.SIGALRM, too_late)
            signal.setitimer(signal.ITIMER_REAL, longest)
            try:
                reports = runtestprotocol(item, nextitem=after, log=False)
            except (KeyboardInterrupt, pytest.exit.Exception):
                raise
            except BaseException as problem:  # pytest's own trouble with broken code
                best.setdefault("trouble", repr(problem)[:200])
                return
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        failed = [r for r in reports if r.failed and r.when == "call"]
        if not failed or not (asked() or self.notes.read_text()):
            return
        text = str(failed[0].longrepr)
        if TooLate.__name__ in text:
            best["late"] = True
            return
        kind = "asserts" if asserted(failed[0]) else "error"
        if best["ends"] == "passes" or kind == "asserts":
            last = [line for line in text.splitlines() if line.startswith("E ")][:1]
            said = "".join(last)[1:].strip()[:160]
            best.update(ends=kind, broken=one.name.replace(":", "."), often=often, said=said)

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


@dataclass(frozen=True)
class Called:
    """A function that a test calls: here, or only in processes that it starts."""

    name: str
    function: Any = None
    module: dict[str, Any] | None = None
    """Of a text that the test's own module has read: the module's names."""

    @contextmanager
    def broken(self, often: str) -> Iterator[Callable[[], bool]]:
        """Broken within; the answer says whether it was asked in this process."""
        if self.module is not None:
            right = self.module[self.name]
            self.module[self.name] = wrong(right) if often == ALWAYS else type(right)()
            yield lambda: True
            self.module[self.name] = right
            return
        if self.function is None:
            yield lambda: False
            return
        one = Sabotaged(self.function, often)
        with one:
            yield lambda: one.answers > 0


def name_of(fixture: Any) -> str:
    return f"{fixture.baseid}::{fixture.argname}"


def tries(item: pytest.Item, seconds: float, shared: list[Called]) -> list[tuple[Called, str]]:
    """What is broken, and how often it is wrong, in this order."""
    found: list[Called] = list(getattr(item, "called", [])) or shared or read_by(item)
    if found and found[0].module is not None:
        return [(one, often) for one in found for often in (ALWAYS, SOMETIMES)]
    words = set(re.findall("[a-z]{3,}", item.nodeid.lower()))

    def alike(one: Called) -> int:
        return -sum(word in words for word in re.findall("[a-z]{3,}", one.name.lower()))

    if seconds >= SLOW or shared:
        found.sort(key=alike)
        return [(one, ALWAYS) for one in found[:8]] + [(one, SOMETIMES) for one in found[:2]]
    here = [one for one in found if one.function]
    there = sorted((one for one in found if not one.function), key=alike)
    found = [*here[: TRIES // 2], *there[: TRIES // 2], *here[TRIES // 2 :]][:TRIES]
    numbers = [(one, f"{CONSTANT}{i}") for one in here for i in constants(one.function.__code__)]
    return [
        *((one, ALWAYS) for one in found),
        *((one, SOMETIMES) for one in found[:10]),
        *numbers[: 4 * TRIES],
    ]


def read_by(item: pytest.Item) -> list[Called]:
    """The texts and lists of the test's module that it names: documents, mostly."""
    function = cast(Any, item).function
    module = function.__globals__
    names = [n for n in function.__code__.co_names if isinstance(module.get(n), str | list)]
    return [Called(name, module=module) for name in names]


def elsewhere(notes: Path) -> list[Called]:
    """The functions that processes of the test's have noted."""
    names = dict.fromkeys(notes.read_text().split())
    return [Called(name) for name in names if "<" not in name and usable(name.split(".")[-1])]


def usable(name: str) -> bool:
    return name.rpartition(":")[2] not in NEVER


class Calls:
    """A profile function that notes fewmask's functions: by what depth under the test.

    A process that was forked from the test's own notes them in a file.
    """

    def __init__(self, notes: Path) -> None:
        self.depths: dict[types.CodeType, int] = {}
        self.process = os.getpid()
        self.forked = inside.Noting(notes)

    def __call__(self, frame: types.FrameType, event: str, more: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code in self.depths or "/src/fewmask/" not in code.co_filename:
            return
        if os.getpid() != self.process:
            self.forked(frame, event, more)
            return
        depth, above = 0, frame.f_back
        while above is not None and "/tests/" not in above.f_code.co_filename and depth < 60:
            depth, above = depth + ("/src/fewmask/" in above.f_code.co_filename), above.f_back
        self.depths[code] = depth

    def ordered(self) -> list[Called]:
        """The functions, the test's own calls first. Only what can be given other code."""
        codes = {
            code: depth
            for code, depth in self.depths.items()
            if usable(code.co_name) and "<" not in code.co_qualname
        }
        if not codes.keys() <= KNOWN.keys():
            learn()
        found = [KNOWN[code] for code in codes if code in KNOWN]
        found.sort(key=lambda f: codes[f.__code__])
        return [Called(f"{f.__module__}:{f.__qualname__}", f) for f in found]


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
