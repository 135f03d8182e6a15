"""What happens within the processes that a test starts: calls are noted, or a function is broken.

The test's process says by the environment what it wants, and reads a file that lines are added to.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from faulting.wrongly import Sabotaged

NOTES, BREAK, OFTEN = "FAILING_NOTES", "FAILING_BREAK", "FAILING_OFTEN"
"""The file of notes; the function to be broken ("module:name") and how often, or nothing."""


def begin() -> None:
    """As the environment says: note what is called, or break a function once it is there."""
    if name := os.environ.get(BREAK):
        module, _, name = name.partition(":")
        sys.meta_path.insert(0, Breaking(module, name, os.environ[OFTEN]))
    else:
        noting = Noting(Path(os.environ[NOTES]))
        threading.setprofile(noting)
        sys.setprofile(noting)


class Noting:
    """A profile function: each function of fewmask's that is called, once a process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: set[types.CodeType] = set()

    def __call__(self, frame: types.FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code not in self.seen and "/src/fewmask/" in code.co_filename:
            self.seen.add(code)
            note(self.path, f"{frame.f_globals['__name__']}:{code.co_qualname}")


def note(path: Path, line: str) -> None:
    """Add a line, in one piece: many processes write there."""
    with path.open("a") as file:
        file.write(line + "\n")


class Breaking(importlib.abc.MetaPathFinder):
    """Breaks a function as soon as its module has been imported."""

    def __init__(self, module: str, name: str, often: str) -> None:
        self.module, self.name, self.often = module, name, often

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_break(module: types.ModuleType) -> None:
                run(module)
                self.at_once(module)

            spec.loader.exec_module = run_and_break  # type: ignore[method-assign]
        return spec

    def at_once(self, module: types.ModuleType) -> None:
        """The module's function answers wrongly from now on; the first time is noted."""
        found = function_of(module, self.name)
        if found is not None:
            notes = Path(os.environ[NOTES])
            Sabotaged(found, self.often, lambda: note(notes, "asked")).__enter__()


def function_of(module: types.ModuleType, name: str) -> types.FunctionType | None:
    """A module's function, or a method, by its name with dots."""
    found: Any = module
    for part in name.split("."):
        found = vars(found).get(part)
        if isinstance(found, (staticmethod, classmethod)):
            found = found.__func__
        elif isinstance(found, property):
            found = found.fget
        if found is None:
            return None
    while hasattr(found, "__wrapped__"):  # a cache, or a context manager, around it
        found = found.__wrapped__
    return found if isinstance(found, types.FunctionType) else None


@contextmanager
def said(notes: Path, name: str = "", often: str = "") -> Iterator[None]:
    """Within it the processes that are started know what they are to do."""
    mine = {NOTES: str(notes), BREAK: name, OFTEN: often}
    before = {key: os.environ.get(key) for key in mine}
    os.environ.update(mine)
    try:
        yield
    finally:
        for key, value in before.items():
            with suppress(KeyError):
                del os.environ[key]
            if value is not None:
                os.environ[key] = value
