"""Control-C, SIGTERM and lost processes: of a command, and of processes that share a run."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from fewmask.cli import ending_of
from fewmask.interrupts import deferred_interrupt
from fewmask.ranks import LostProcess, interrupted, lost
from fewmask.types import Terminated, UserError

SMALL = ("--encoder", "resnet18", "--size", "32", "--batch-size", "4", "--steps", "400")
GOES_ON = "the same command again goes on from here"


def rows_of(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


DEAF = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
"""Before a command: it ignores Control-C, as what a script starts in its background."""


class Begun:
    """A command under way, in a process group of its own: it has made a step."""

    def __init__(self, command: list[str], out: Path) -> None:
        log, end = out / "metrics.jsonl", time.monotonic() + 600
        rows = rows_of(log)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fewmask", *command, *SMALL, "--out", str(out)],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while rows_of(log) <= rows:
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                pytest.fail(f"no step was made: {self.process.communicate()[1]}")
            time.sleep(0.05)

    def ends(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=600)
        return self.process.returncode, said

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture
def begun(write_pairs: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Begun]]:
    """Begins to fine-tune in `run`; what is left of it is killed."""
    pairs, found = str(write_pairs(8)), []

    def begin(*flags: str) -> Begun:
        found.append(Begun(["finetune", "--pairs", pairs, *flags], tmp_path / "run"))
        return found[-1]

    yield begin
    for one in found:
        one.kill()


@pytest.mark.timeout(900)
def test_a_training_saves_at_sigterm(begun: Callable[..., Begun], tmp_path: Path) -> None:
    first = begun()
    first.process.terminate()
    code, said = first.ends()
    assert code == 143, said
    assert said.endswith(f"terminated; {GOES_ON}\n")
    assert (tmp_path / "run" / "state.pt").exists()
    again = begun()
    again.process.terminate()
    code, said = again.ends()
    assert code == 143, said
    assert "goes on from step" in said
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in rows]
    assert steps == sorted(set(steps))


def twice(send: Callable[[int, int], None], pid: int, number: int) -> None:
    send(pid, number)
    time.sleep(0.3)
    send(pid, number)


ON_TWO = ("--devices", "2", "--device", "cpu")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("send", "code", "word"),
    [
        (lambda pid: os.kill(pid, signal.SIGTERM), 143, "terminated"),
        (lambda pid: twice(os.killpg, pid, signal.SIGTERM), 143, "terminated"),
        (lambda pid: os.kill(pid, signal.SIGINT), 130, "interrupted"),
        (lambda pid: os.killpg(pid, signal.SIGINT), 130, "interrupted"),
    ],
    ids=["SIGTERM to one", "SIGTERM to all, twice", "Control-C to one", "Control-C to all"],
)
def test_two_processes_save_and_end(
    begun: Callable[..., Begun], tmp_path: Path, send: Callable[[int], None], code: int, word: str
) -> None:
    run = begun(*ON_TWO)
    ranks = ranks_of(run.process.pid)
    assert len(ranks) == 2
    send(run.process.pid)
    ended, said = run.ends()
    assert ended == code
    assert f"{word}; the same command again goes on" in said
    assert (tmp_path / "run" / "state.pt").exists()
    assert not [rank for rank in ranks if Path(f"/proc/{rank}").exists()]


@pytest.mark.timeout(900)
def test_a_process_that_is_killed_is_told_in_one_line(
    begun: Callable[..., Begun], tmp_path: Path
) -> None:
    run = begun(*ON_TWO)
    os.kill(ranks_of(run.process.pid)[1], signal.SIGKILL)
    code, said = run.ends()
    assert code == 1
    assert "Traceback" not in said
    assert f"error: {tmp_path / 'run'}: another process of this run was lost (" in said


@pytest.mark.timeout(900)
def test_processes_end_with_the_one_that_has_started_them(
    write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    flags = ["--pairs", str(write_pairs(8)), *SMALL, *ON_TWO, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*DEAF, sys.executable, "-m", "fewmask", "finetune", *flags],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while len(ranks := ranks_of(process.pid)) < 2 and process.poll() is None:
            time.sleep(0.05)
        time.sleep(1)  # each has been told what to do, and is still importing
        process.kill()
        process.wait()
        while any(is_running(rank) for rank in ranks):
            time.sleep(0.1)
        assert len(ranks) == 2
        assert not (tmp_path / "run" / "metrics.jsonl").exists(), "they have trained on"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ranks_of(pid: int) -> list[int]:
    """The processes of a run that a command has started, in the order of their ranks."""
    asked = ["pgrep", "-f", "-P", str(pid), "spawn_main"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return sorted(map(int, found.split()))


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it hasn't ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- within one process ---------------------------------------------------------------------------


@pytest.fixture
def as_by_default() -> Iterator[None]:
    """Whatever handles SIGTERM in the tests, none does within."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: it was not Python's


@pytest.mark.usefixtures("as_by_default")
def test_what_came_first_is_what_is_raised_and_sigterm_may_come_twice() -> None:
    for sent, raised in ((signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)):
        with deferred_interrupt() as asked:
            assert asked() is None
            signal.raise_signal(sent)
            signal.raise_signal(signal.SIGTERM)
            assert asked() is raised
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_control_c_stops_at_once() -> None:
    with deferred_interrupt() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked() is KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("as_by_default")
def test_of_several_processes_only_the_first_hears() -> None:
    with deferred_interrupt(rank=1) as asked:
        for sent in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(sent)
        assert asked() is None


def test_a_handler_of_sigterm_s_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with deferred_interrupt() as asked:
            signal.raise_signal(signal.SIGTERM)
            assert asked() is None
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


# --- words ----------------------------------------------------------------------------------------

GLOO = (
    "[/__w/pytorch/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:61571: Connection reset "
    "by peer. This is typically caused by a remote worker hanging. Check the logs"
)
RESET = "Read error [127.0.0.1]:61571: Connection reset by peer"


@pytest.mark.parametrize(
    ("problem", "why"),
    [
        (RuntimeError(GLOO), RESET),
        (
            ProcessRaisedException(f"\n-- Process 0:\nTraceback\nRuntimeError: {GLOO}\n", 0, 7),
            RESET,
        ),
        (ProcessExitedException("process 1 ended with 9", 1, 7, 9), "process 1 ended with 9"),
    ],
    ids=["here", "in a process", "killed"],
)
def test_a_broken_connection_is_a_lost_process(problem: Exception, why: str) -> None:
    told = lost(problem, "out")
    assert isinstance(told, LostProcess)
    assert str(told).startswith(f"out: another process of this run was lost ({why}). If nobody")
    assert ending_of(told) == (1, f"error: {told}")


def raised(text: str) -> ProcessRaisedException:
    return ProcessRaisedException(f"Traceback\n{text}\n", 0, 7)


@pytest.mark.parametrize(
    "problem",
    [
        RuntimeError("shape mismatch"),
        raised("ValueError: 3"),
        raised("BrokenPipeError: [Errno 32] Broken pipe"),
        raised("ConnectionResetError: [Errno 104] Connection reset by peer"),
    ],
)
def test_another_error_is_none(problem: Exception) -> None:
    assert lost(problem, "out") is None
    assert ending_of(problem) is None
    assert not interrupted(problem)


def test_the_last_words_of_other_ends() -> None:
    assert ending_of(BrokenPipeError()) == (141, "")
    name = UnicodeEncodeError("utf-8", "out/caf\udce9.png", 7, 8, "surrogates not allowed")
    told = r"error: 'out/caf\udce9.png': is no UTF-8. Rename it"
    assert ending_of(name) == (2, told)
    assert ending_of(UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range")) is None
    full = OSError(errno.ENOSPC, "No space left on device")
    assert ending_of(full) == (
        2,
        "error: the output: cannot be written (No space left on device). Make room or give the "
        "permission there, or choose another --out",
    )
    moving = ending_of(UserError("a\x1b[2Jb.png: is an é"))
    assert moving == (2, r"error: a\x1b[2Jb.png: is an é")


def test_what_control_c_has_ended_is_not_lost() -> None:
    exited: dict[str, Any] = {"error_index": 0, "error_pid": 7}
    assert interrupted(ProcessExitedException("exit code 130", **exited, exit_code=130))
    assert not interrupted(ProcessExitedException("exit code 9", **exited, exit_code=9))
