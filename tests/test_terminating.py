"""SIGTERM to a command, to processes that share a run, to what it has forked; a lost process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from fewmask import training
from fewmask.cli import ending_of
from fewmask.ranks import LostProcess, interrupted, lost
from fewmask.training import deferred_interrupt

RUN = ("--encoder", "resnet18", "--size", "32", "--steps", "60", "--batch-size", "4")


def begun(command: list[str], log: Path, **environment: str) -> subprocess.Popen[str]:
    """The command under way: it has logged a step."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fewmask", *command],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and not (log.exists() and log.read_text()):
        time.sleep(0.05)
    return process


def test_it_is_answered_as_control_c_is(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    images = str(write_pairs(8) / "images")
    command = ["pretrain", "--images", images, *RUN, "--out", str(out)]
    process = begun(command, out / "metrics.jsonl")
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert said.endswith("terminated; the same command again goes on from here\n")
    assert (out / "state.pt").exists()
    again = begun(command, out / "metrics.jsonl")
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    rows = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 61))


def in_a_process(code: str) -> int:
    """The exit code of Python code of its own, minus the signal that killed it."""
    head = "import os, signal, time\nfrom fewmask.cli import terminating\n"
    return subprocess.run([sys.executable, "-c", head + code], check=False, timeout=60).returncode


def test_a_process_that_it_has_forked_ends_by_it() -> None:
    code = """
asked = terminating.as_interrupt(first=True)
child = os.fork()
if not child:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(30)
    os._exit(0)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
os._exit(os.waitstatus_to_exitcode(status) + 100 + asked())
"""
    assert in_a_process(code) == 100 - signal.SIGTERM


@pytest.mark.parametrize(("first", "code"), [(False, 143), (True, 7)])
def test_one_of_several_that_nobody_ends_ends_by_itself(first: bool, code: int) -> None:
    waits = f"""
terminating.GRACE = 0.2
terminating.as_interrupt(first={first})
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGINT}})
signal.raise_signal(signal.SIGTERM)
time.sleep(3)
os._exit(7)
"""
    assert in_a_process(waits) == code


# --- two processes that the command starts itself -------------------------------------------------


def spawned_by(process: subprocess.Popen[str]) -> list[int]:
    """The processes that share the run, in the order of their ranks."""
    asked = ["pgrep", "-f", "-P", str(process.pid), "spawn_main"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return sorted(map(int, found.split()))


@pytest.fixture
def on_two(write_pairs: Callable[..., Path], tmp_path: Path) -> list[str]:
    pairs = str(write_pairs(8))
    two = ["--devices", "2", "--device", "cpu", "--out", str(tmp_path / "run")]
    return ["finetune", "--pairs", pairs, *RUN[:-4], "--steps", "400", "--batch-size", "4", *two]


def test_what_the_command_alone_gets_ends_its_processes_too(
    on_two: list[str], tmp_path: Path
) -> None:
    process = begun(on_two, tmp_path / "run" / "metrics.jsonl")
    children = spawned_by(process)
    assert len(children) == 2
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "terminated; the same command again goes on from here" in said
    assert (tmp_path / "run" / "state.pt").exists()
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def test_a_process_that_is_killed_is_told_in_one_line(on_two: list[str], tmp_path: Path) -> None:
    process = begun(on_two, tmp_path / "run" / "metrics.jsonl")
    os.kill(spawned_by(process)[1], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in said
    told = "another process of this run was lost (process 1 terminated with signal SIGKILL)."
    assert f"error: {tmp_path / 'run'}: {told}" in said


# --- words ----------------------------------------------------------------------------------------

GLOO = (
    "[/__w/pytorch/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:61571: Connection reset "
    "by peer. This is typically caused by a remote worker hanging. Check the logs"
)


PIPE = "[Errno 32] Broken pipe"


@pytest.mark.parametrize(
    ("problem", "why"),
    [
        (RuntimeError(GLOO), "Read error [127.0.0.1]:61571: Connection reset by peer"),
        (
            ProcessRaisedException(f"\n\n-- Process 0:\nTraceback\nRuntimeError: {GLOO}\n", 0, 7),
            "Read error [127.0.0.1]:61571: Connection reset by peer",
        ),
        (ProcessExitedException("process 1 terminated with exit code 9", 1, 7, 9),
         "process 1 terminated with exit code 9"),
    ],
)  # fmt: skip
def test_a_broken_connection_is_a_lost_process(problem: Exception, why: str) -> None:
    told = lost(problem, "out")
    assert isinstance(told, LostProcess)
    assert str(told).startswith(f"out: another process of this run was lost ({why}). If nobody")
    assert ending_of(told) == (1, f"error: {told}")


def test_another_error_is_none() -> None:
    problem = ProcessRaisedException("Traceback\nValueError: 3", 0, 7)
    assert lost(problem, "out") is None
    assert lost(RuntimeError("shape mismatch"), "out") is None
    assert ending_of(RuntimeError("shape mismatch")) is None
    assert lost(ProcessRaisedException(f"Traceback\nBrokenPipeError: {PIPE}", 0, 7), "out") is None
    assert not interrupted(problem)
    assert interrupted(ProcessRaisedException("Traceback\nKeyboardInterrupt\n", 0, 7))


def test_one_press_reaches_a_process_twice_and_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with deferred_interrupt() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert asked()
        monkeypatch.setattr(training, "ONE_PRESS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
