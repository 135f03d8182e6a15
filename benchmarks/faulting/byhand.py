"""Tests that no random wrong answer makes fail: the line that each is about, broken by hand.

A plan is a file of lines {"tests": [...], "file": ..., "old": ..., "new": ...}: in a copy of the
checkout `old`, which is to be there once, becomes `new`, and the tests, by their whole names, are
run on that. The record has the same lines, one a test, with how the test ended and what it said; so
it is a plan itself. Of a test that was run again the last line counts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from faulting import record
from faulting.failing import asserted

LONGEST = 900
"""Seconds that the tests of one broken line may take."""
DATA = Path("../shared/data").absolute()


def main(work: Path, out: Path, plan: Path) -> int:
    """Run a plan; adds to byhand.jsonl. How many tests did not fail by what they assert."""
    copy = work / "copy"
    copied(Path.cwd(), copy)
    bad = 0
    for line in list(lines(plan)):  # the plan may be the record
        for test, (ends, said) in on_broken(copy, line).items():
            row = {"test": test, **{key: line[key] for key in ("file", "old", "new")}}
            record.add(out / "byhand.jsonl", {**row, "ends": ends, "said": said})
            print(f"{ends}: {test}: {said}", flush=True)
            bad += ends != "asserts"
    return bad


def lines(plan: Path) -> Iterator[dict[str, Any]]:
    """The plan's lines; those of a record that broke the same are one."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in map(json.loads, plan.read_text(encoding="utf-8").splitlines()):
        key = (row["file"], row["old"], row["new"])
        tests = found.setdefault(key, {**row, "tests": []})["tests"]
        tests += [one for one in row.get("tests", [row.get("test")]) if one not in tests]
    yield from found.values()


def copied(here: Path, there: Path) -> None:
    """What git follows, or would, of a checkout."""
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(asked, cwd=here, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (here / name).is_file():
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(here / name, there / name)


def on_broken(copy: Path, line: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """How each test ends on the broken line: asserts, error or passes; and what it says."""
    file = copy / line["file"]
    right = file.read_text(encoding="utf-8")
    if right.count(line["old"]) != 1:
        why = f"the text to be broken is there {right.count(line['old'])} times; expected once"
        return dict.fromkeys(line["tests"], ("error", why))
    file.write_text(right.replace(line["old"], line["new"]), encoding="utf-8")
    try:
        return run(copy, line["tests"])
    finally:
        file.write_text(right, encoding="utf-8")


def run(copy: Path, tests: list[str]) -> dict[str, tuple[str, str]]:
    """The tests in a process of their own."""
    found = copy.parent / "found.jsonl"
    found.unlink(missing_ok=True)
    paths = [str(copy / "src"), str(copy / "benchmarks")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "BYHAND": str(found)}
    if DATA.exists():
        environment.setdefault("FEWMASK_DATA", str(DATA))
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", __name__, *tests]
    with (copy.parent / "log.txt").open("w") as log:
        child = subprocess.Popen(
            argv, cwd=copy, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        with suppress(subprocess.TimeoutExpired):
            child.wait(LONGEST)
    with suppress(ProcessLookupError):  # what broken code left running, too
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    ended = {row["test"]: (row["ends"], row["said"]) for row in record.rows(found)}
    return {test: ended.get(test, ("error", "no answer in time, or not run")) for test in tests}


# --- within the process of the tests, as a plugin of pytest's -------------------------------------


def pytest_runtest_logreport(report: Any) -> None:
    """Note how the test itself ended; where what it needs could not be made, that is an error."""
    made = report.when == "setup" and not report.passed
    if "BYHAND" not in os.environ or not (made or report.when == "call"):
        return
    row = {"test": report.nodeid, "ends": "passes", "said": ""}
    if not report.passed:
        crash = getattr(report.longrepr, "reprcrash", None)
        said = crash.message if crash is not None else str(report.longrepr)
        by_itself = report.when == "call" and report.failed and asserted(report)
        row |= {"ends": "asserts" if by_itself else "error", "said": without_paths(said)}
    with Path(os.environ["BYHAND"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def without_paths(said: str) -> str:
    """How a message begins, in one line, without where on this machine it was."""
    line = " ".join(said.split())
    for place in (os.environ["BYHAND"].rpartition("/")[0], str(Path.home()), tempfile.gettempdir()):
        line = line.replace(place, "...")
    return line[:160]
