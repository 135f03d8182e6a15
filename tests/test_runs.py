"""A folder belongs to one process at a time, and a killed one lets go of it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import pytest

import fewmask
from fewmask import files
from fewmask.runs import held, read_result, write_result
from fewmask.types import UserError

HOLDER = """
import sys, time
from pathlib import Path
from fewmask.runs import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@dataclass
class Product:
    """A result with as little as there may be."""

    out: Path
    n: int


def test_a_state_that_outlived_its_result_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state.pt").write_bytes(b"state")
    assert read_result(tmp_path, Product) is None
    assert (tmp_path / "state.pt").exists()

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:  # the disk is full when the result has just got its name
        patch.setattr(files, "_sync_folder", full)
        with pytest.raises(UserError, match=r"result\.json: cannot be written \(No space left"):
            write_result(tmp_path, Product(tmp_path, 3))
    assert (tmp_path / "state.pt").exists()
    assert read_result(tmp_path, Product) == Product(tmp_path, 3)
    assert not (tmp_path / "state.pt").exists()


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        with pytest.raises(UserError, match="is working in it") as raised, held(tmp_path):
            pass
        if sys.platform == "linux":
            assert f"process {process.pid} (" in str(raised.value)
            assert "fewmask.runs" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with held(tmp_path), pytest.raises(UserError, match="is working in it"), held(tmp_path):
            pass
    with held(tmp_path):
        pass


def test_a_stray_rank_does_not_turn_the_lock_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with (
        another_process(tmp_path),
        pytest.raises(UserError, match="is working in it"),
        held(tmp_path),
    ):
        pass


def test_one_may_wait_for_a_folder(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        Timer(1.0, process.kill).start()
        with held(tmp_path, wait=30.0):
            pass
        assert process.poll() is not None


@pytest.mark.parametrize("command", ["pretrain", "finetune", "study"])
def test_no_command_works_in_a_held_folder(
    tmp_path: Path, write_pairs: Callable[..., Path], command: str
) -> None:
    pairs, out = write_pairs(6), tmp_path / "out"
    small = {"encoder": "resnet18", "size": 32, "steps": 1, "batch_size": 4}
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'pairs = "{pairs}"\nencoder = "resnet18"\nsize = 32\nbudgets = [2]\n'
        'finetune = { steps = 1, batch_size = 2 }\narms = [{ init = "scratch" }]\n'
    )
    commands: dict[str, Callable[[], object]] = {
        "pretrain": lambda: fewmask.pretrain(images=f"{pairs}/images", out=str(out), **small),
        "finetune": lambda: fewmask.finetune(pairs=str(pairs), out=str(out), **small),
        "study": lambda: fewmask.study(plan=str(plan), out=str(out)),
    }
    out.mkdir()
    with another_process(out), pytest.raises(UserError, match="is working in it"):
        commands[command]()
    commands[command]()
    assert (out / ("report.html" if command == "study" else "result.json")).exists()
