"""Commands in processes of their own, forked from one that has imported everything.

A fork starts at the command's own work, so that a kill at a random moment hits that and not the
seconds of importing torch; and thousands of commands can be tried. A child writes what it prints to
a file and reports every path outside its folder that it opens to write, makes, moves or removes.
"""

from __future__ import annotations

import codecs
import importlib
import os
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUTSIDE = "WROTE OUTSIDE: "
HUNG = "hung"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NAMED = {
    "os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.link": (1,),
    "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,),
    "shutil.rmtree": (0,), "shutil.move": (0, 1),
}  # fmt: skip
"""Audit events that change the file system: which of their arguments are paths."""


@dataclass(frozen=True)
class Ended:
    """How a child ended. `code`: its exit code, minus the signal that killed it; None where it had
    to be stopped for its time."""

    code: int | None
    seconds: float
    text: str
    peak_mb: float

    @property
    def fault(self) -> str | None:
        """What no child may do, in words; None where it did nothing of it."""
        if OUTSIDE in self.text:
            return "wrote outside"
        if "Traceback (most recent call last)" in self.text:
            return "traceback"
        if self.code is None:
            return HUNG
        if self.code not in (0, 2):
            return f"ended with {self.code}"
        if self.code == 2 and "error: " not in self.text:
            return "ended with 2 and said nothing"
        return None


def load_all() -> None:
    """Import all that commands import, once."""
    import fewmask

    for module in pkgutil.walk_packages(fewmask.__path__, "fewmask."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in (
        "lightning_fabric", "matplotlib.backends.backend_agg", "matplotlib.figure", "pyarrow",
        "pyarrow.parquet", "scipy.stats", "segmentation_models_pytorch", "sklearn.cluster",
        "sklearn.linear_model", "timm", "torch._dynamo", "torchvision", "rich.progress", "jinja2",
    ):  # fmt: skip
        with suppress(ImportError):
            importlib.import_module(name)
    codecs.lookup("utf-8-sig")  # who has no permissions may not read Python's own files either


def run(
    argv: Sequence[str], folder: Path, seconds: float, *, arm: Callable[[], object] | None = None,
    environment: Mapping[str, str] | None = None, enough: Callable[[str], bool] | None = None,
) -> Ended:  # fmt: skip
    """Run a command in `folder`, which is its current one, until it ends, its time is over, or
    what it has said is enough."""
    child = start(argv, folder, arm=arm, environment=environment)
    return wait(child, folder, seconds, enough)


def start(
    argv: Sequence[str], folder: Path, *, arm: Callable[[], object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:  # fmt: skip
    """Fork a child that runs a command; its process number, which leads a group of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        with suppress(OSError):
            os.setpgid(child, child)
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        os.environ.update({"TMPDIR": str(folder / "tmp"), **(environment or {})})
        (folder / "tmp").mkdir(exist_ok=True)
        _watch(folder)
        if arm is not None:
            arm()
        code = _main(argv)
    except BaseException:  # whatever it is, the parent must not go on in here
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _main(argv: Sequence[str]) -> int:
    from fewmask.cli import main

    try:
        main(list(argv))
    except SystemExit as ended:
        return int(ended.code or 0) if isinstance(ended.code, int | None) else 1


def _watch(folder: Path) -> None:
    """Report each change of the file system outside the folder, as Python's audit events tell.

    Files that are written by other languages' code (tensors, parquet) go through paths that Python
    has opened or made before, or are seen by what else lies in the folder.
    """
    inside = (f"{folder.resolve()}{os.sep}", "/dev/null", "/dev/shm/", "/proc/self/")
    root = str(folder.resolve())

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & WRITING) if isinstance(flags, int) else False
            writes = writes or (isinstance(mode, str) and any(c in mode for c in "wax+"))
            paths = [path] if writes else []
        elif event in NAMED:
            paths = [arguments[i] for i in NAMED[event] if i < len(arguments)]
        else:
            return
        for path in paths:
            if not isinstance(path, str | bytes | os.PathLike):
                continue
            found = os.path.realpath(os.fsdecode(path))
            if found != root and not found.startswith(inside):
                os.write(2, f"\n{OUTSIDE}{event} {found!r}\n".encode())

    sys.addaudithook(look)


def wait(
    child: int, folder: Path, seconds: float, enough: Callable[[str], bool] | None = None
) -> Ended:
    """Wait for a child; one that takes longer is killed with all that it started."""
    began = looked = time.monotonic()
    log = folder / "log.txt"
    while True:
        found, status, used = os.wait4(child, os.WNOHANG)
        now = time.monotonic()
        over = now - began > seconds
        if enough is not None and now - looked > 0.5 and log.exists():
            over, looked = over or enough(log.read_text(errors="replace")), now
        if found or over:
            if not found:
                kill(child)
                _, status, used = os.wait4(child, 0)
            code = None if over and not found else os.waitstatus_to_exitcode(status)
            text = (folder / "log.txt").read_text(errors="replace")
            return Ended(code, time.monotonic() - began, text, used.ru_maxrss / 1024)
        time.sleep(0.01)


def kill(child: int) -> None:
    """Signal 9 to a child and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
