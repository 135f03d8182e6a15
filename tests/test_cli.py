"""The command line from outside: exit codes, error lines, nothing half-written."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewmask import cli
from fewmask.cli import main
from fewmask.files import _HOST, _left_over
from fewmask.types import UserError

Run = subprocess.CompletedProcess[str]


def fewmask(*arguments: str | Path, cwd: Path | None = None) -> Run:
    command = [sys.executable, "-m", "fewmask", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=240, check=False
    )


def here(*arguments: str | Path) -> Run:
    """As `fewmask`, in this process: most of the seconds of a mistake are the imports."""
    out, told, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(told):
        try:
            main([*map(str, arguments)])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Run(arguments, code, out.getvalue(), told.getvalue())


LATE = """
import atexit, os, signal, sys
from fewmask.cli import main
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
sys.argv = ["fewmask", "--version"]
main()
"""


def test_control_c_after_the_work_is_done_changes_nothing() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def is_mistake(run: Run, *words: str) -> None:
    """Exit code 2, `error: ` first, every word there, no traceback."""
    assert run.returncode == 2, run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, run.stderr
    assert "Traceback" not in run.stderr
    for word in words:
        assert word in run.stderr


SMALL = ("--encoder", "resnet18", "--size", "32", "--steps", "2", "--batch-size", "4")


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (MemoryError(), 2, "error: out of memory (no more than that is known). Choose fewer"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory"),
        (RuntimeError("Storage size calculation overflowed"), 2, "out of memory"),
        (KeyboardInterrupt(), 130, "the same command again begins anew"),
    ],
    ids=["memory", "torch", "overflow", "interrupt"],
)
def test_what_ends_a_command_is_told_in_a_line(
    problem: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise problem

    monkeypatch.setitem(cli.RUN, "export", fail)
    ended = here("export", "run", "--format", "onnx", "--out", "o")
    assert ended.returncode == code
    assert ended.stderr.strip().count("\n") == 0
    assert said in ended.stderr


@pytest.mark.parametrize("command", cli.GO_ON)
def test_what_goes_on_says_so(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for args, where in (((), "what was saved"), (("saved",), "here")):
        stop = partial(raised, KeyboardInterrupt(*args))
        monkeypatch.setattr(cli, "dispatch", stop)
        assert f"the same command again goes on from {where}\n" in here(command).stderr


def raised(problem: BaseException, _: object) -> None:
    raise problem


def test_a_study_begins_like_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise UserError("far enough")

    left = tmp_path / "out" / "cells" / "a" / f"{_left_over(Path('state.pt'))}{_HOST}01234567.tmp"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    monkeypatch.setattr("fewmask.studies.run.run_study", stop)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    monkeypatch.setenv("FEWMASK_MAX_MEGAPIXELS", "1")
    ended = here("study", "quick", "--out", tmp_path / "out", "--max-megapixels", "7")
    assert (ended.returncode, ended.stderr) == (2, "error: far enough\n")
    assert not left.exists()
    assert Image.MAX_IMAGE_PIXELS == 3_500_000


def test_errors_of_our_own_stay_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setitem(cli.RUN, "export", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        here("export", "run", "--format", "onnx", "--out", "o")


def test_help_is_instant() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = fewmask("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == 0
    assert "pretrain" in run.stdout
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Imports, not seconds: a machine under load may be slow, but torch must not be there.
    code = "import fewmask.cli, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == ["False", "False"]
    assert spent < 5


def test_every_command_has_help() -> None:
    from fewmask.cli import COMMANDS, RUN

    assert set(COMMANDS) == set(RUN)
    for command in ("check", "study", "report", "predict"):
        run = fewmask(command, "--help")
        assert run.returncode == 0
        assert "usage: fewmask " + command in run.stdout


def test_unknown_commands_and_flags_name_the_near_ones() -> None:
    is_mistake(fewmask("pretrian"), "pretrian", "pretrain")
    is_mistake(fewmask("check", "--pars", "x"), "--pars", "--pairs")


@pytest.fixture
def pairs(write_pairs: Callable[..., Path]) -> Path:
    return write_pairs(4)


def break_missing_mask(pairs: Path) -> list[str]:
    (pairs / "masks" / "pair_01.png").unlink()
    return ["pair_01"]


def break_surplus_mask(pairs: Path) -> list[str]:
    (pairs / "images" / "pair_02.png").unlink()
    return ["pair_02"]


def break_size(pairs: Path) -> list[str]:
    Image.new("L", (10, 12)).save(pairs / "masks" / "pair_01.png")
    return ["pair_01", "10", "12", "48", "40"]


def break_values(pairs: Path) -> list[str]:
    for path in (pairs / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * 255).save(path)
    return ["pair_00", "255", "--mask-values 0,255"]


def break_text(pairs: Path) -> list[str]:
    (pairs / "images" / "pair_03.png").unlink()
    (pairs / "images" / "pair_03.jpg").write_text("no picture")
    return ["pair_03.jpg"]


def break_truncated(pairs: Path) -> list[str]:
    path = pairs / "images" / "pair_03.png"
    Image.open(path).convert("RGB").save(path.with_suffix(".jpg"), quality=95)
    path.unlink()
    whole = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").write_bytes(whole[: len(whole) // 2])
    return ["pair_03.jpg"]


FAULTS = [
    break_missing_mask,
    break_surplus_mask,
    break_size,
    break_values,
    break_text,
    break_truncated,
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", ["check", "finetune"])
def test_faulty_pairs(
    pairs: Path, tmp_path: Path, command: str, fault: Callable[[Path], list[str]]
) -> None:
    words = fault(pairs)
    out = tmp_path / "out"
    flags = [*SMALL, "--out", out] if command == "finetune" else []
    is_mistake(here(command, "--pairs", pairs, *flags), *words)
    assert not out.exists()


def test_all_faults_at_once(pairs: Path) -> None:
    words = break_missing_mask(pairs) + break_text(pairs)
    run = here("check", "--pairs", pairs)
    is_mistake(run, *words)
    assert len(run.stderr.strip().splitlines()) >= 3
    assert "faults" in run.stderr.splitlines()[0]


def test_other_mistakes(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    tune = ["finetune", "--pairs", pairs, "--out", out, "--size", "32", "--steps", "2"]
    is_mistake(here("check", "--pairs", empty), "empty")
    is_mistake(here("pretrain", "--images", empty, *SMALL, "--out", out), "empty")
    is_mistake(here(*tune, "--encoder", "resnet5"), "resnet5", "resnet50")
    is_mistake(here(*tune, "--encoder", "resnet18", "--init", tmp_path / "emptY"), "emptY")
    is_mistake(here(*tune, "--encoder", "resnet18", "--init", empty), "empty")
    is_mistake(here(*tune, "--encoder", "resnet18", "--decoder", "unett"), "unett", "unet")
    is_mistake(here("evaluate", empty, "--pairs", pairs, "--out", out), "empty")
    is_mistake(here("predict", empty, pairs, "--out", out), "empty")
    is_mistake(here("study", "quik", "--out", out), "quik", "quick")
    is_mistake(here("report", empty), "empty")
    assert not out.exists()


def test_the_whole_way(pairs: Path, tmp_path: Path) -> None:
    """check, pretrain, finetune from it, evaluate, predict; then the refusals between them."""
    images, run, tuned = pairs / "images", tmp_path / "run", tmp_path / "tuned"
    assert fewmask("check", "--pairs", pairs, "--images", images).returncode == 0
    first = fewmask("pretrain", "--images", images, *SMALL, "--out", run)
    assert first.returncode == 0, first.stderr
    for name in (
        "encoder.safetensors",
        "config.toml",
        "metrics.jsonl",
        "curves.png",
        "result.json",
    ):
        assert (run / name).stat().st_size > 0
    again = fewmask("pretrain", "--images", images, *SMALL, "--out", run)
    assert again.stdout == first.stdout

    second = fewmask("finetune", "--pairs", pairs, "--init", run, *SMALL, "--out", tuned)
    assert second.returncode == 0, second.stderr
    assert re.search(r"(\d+) of \1 encoder tensors, 100 % of parameters", second.stdout)
    for name in ("model.safetensors", "config.json", "config.toml", "metrics.jsonl", "curves.png"):
        assert (tuned / name).stat().st_size > 0

    is_mistake(
        fewmask(
            "finetune",
            "--pairs",
            pairs,
            "--init",
            run,
            *SMALL,
            "--encoder",
            "resnet34",
            "--out",
            tmp_path / "no",
        ),
        "resnet34",
    )
    is_mistake(
        fewmask("finetune", "--pairs", pairs, *SMALL, "--out", tuned), "another run's folder"
    )

    scored = fewmask("evaluate", tuned, "--pairs", pairs, "--out", tmp_path / "scores")
    assert scored.returncode == 0, scored.stderr
    assert "4 pairs, 4 of them seen in training" in scored.stdout
    assert (tmp_path / "scores" / "overlays" / "pair_00.png").exists()

    drawn = fewmask("predict", tuned, images, "--out", tmp_path / "drawn")
    assert drawn.returncode == 0, drawn.stderr
    mask = Image.open(tmp_path / "drawn" / "masks" / "pair_00.png")
    assert mask.size == (48, 40)
    assert set(np.unique(np.asarray(mask))) <= {0, 1}
    assert (tmp_path / "drawn" / "overlays" / "pair_00.png").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_named(pairs: Path, tmp_path: Path) -> None:
    import errno

    from fewmask import files
    from fewmask.types import UserError

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(UserError, match=r"table\.json"):
            files.write_text_atomic(tmp_path / "table.json", "x")
    assert not list(tmp_path.glob("*table*"))


def test_control_c_saves_and_says_how_to_go_on(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--encoder", "resnet18", "--size", "32", "--steps", "60", "--batch-size", "4"]
    command = ["pretrain", "--images", str(pairs / "images"), *flags, "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fewmask", *command], stderr=subprocess.PIPE, text=True
    )
    log, deadline = out / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command again" in said
    assert (out / "state.pt").exists()
    done = len(log.read_text().splitlines())
    assert 0 < done < 60
    again = fewmask(*command)
    assert again.returncode == 0, again.stderr
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 61))
    assert not (out / "state.pt").exists()
