"""What the workflows share: how many threads decode, and what is said of the batches."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.test_training import stream as whole

import fewmask
from fewmask.data import cache
from fewmask.data.loader import Stream
from fewmask.devices import make_fabric
from fewmask.workflows.launching import say_batch

SMALL = {"encoder": "resnet18", "size": 32, "steps": 1}
PLAN = """
name = "tiny"
title = "tiny"
encoder = "resnet18"
size = 32
budgets = [4]
repeats = 1
baseline = "scratch"

[finetune]
steps = 1
batch_size = 2

[[arms]]
init = "scratch"
"""


def test_every_command_that_decodes_does_so_with_workers_threads(
    write_pairs: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    class Recording(ThreadPoolExecutor):
        def __init__(self, max_workers: int | None = None) -> None:
            asked.append(max_workers)
            super().__init__(max_workers)

    monkeypatch.setattr(cache, "ThreadPoolExecutor", Recording)
    pairs = write_pairs(6)
    (tmp_path / "tiny.toml").write_text(PLAN)

    def threads(call: Callable[[], object], name: str) -> set[int | None]:
        asked.clear()
        monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / name))  # nothing is remembered
        call()
        return set(asked)

    run, out = tmp_path / "run", str(tmp_path / "out")
    calls: dict[str, Callable[[], object]] = {
        "check": lambda: fewmask.check(pairs=str(pairs), workers=3),
        "check-pool": lambda: fewmask.check(images=(str(pairs / "images"),), workers=3),
        "finetune": lambda: fewmask.finetune(
            pairs=str(pairs), out=str(run), batch_size=2, workers=3, **SMALL
        ),
        "evaluate": lambda: fewmask.evaluate(
            run=str(run), pairs=str(pairs), out=out + "-e", workers=3
        ),
        "predict": lambda: fewmask.predict(
            run=str(run), paths=(str(pairs / "images"),), out=out + "-p", workers=3
        ),
        "study": lambda: fewmask.study(
            plan=str(tmp_path / "tiny.toml"), pairs=str(pairs), out=out + "-s", workers=3
        ),
    }
    assert {name: threads(call, name) for name, call in calls.items()} == {k: {3} for k in calls}


def test_a_batch_that_is_cut_is_said(
    write_pairs: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pairs = str(write_pairs(6))
    fewmask.finetune(pairs=pairs, out=str(tmp_path / "cut"), batch_size=8, **SMALL)
    said = "warning: --batch-size 8 is more than the 5 training pairs there are; batches hold 5\n"
    assert said in capfd.readouterr().err
    fewmask.finetune(pairs=pairs, out=str(tmp_path / "whole"), batch_size=4, **SMALL)
    assert "--batch-size" not in capfd.readouterr().err


def test_a_batch_that_devices_cannot_share_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    stream = Stream(whole().store, range(5), 5, seed=0, rank=0, world=2)
    say_batch(make_fabric("cpu", 1, "32"), stream, "training pairs")
    said = "warning: --batch-size 5 cannot be shared by 2 devices evenly; batches hold 4\n"
    assert capfd.readouterr().err == said
