"""Every command on a disk that is really full: one line, nothing half-written, and it goes on.

test_full_disk.py runs these in a mount namespace of their own, which takes the disk with it: pytest
does not collect this file by itself, for a mount that outlives its test would be in everyone's way.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fewmask
from fewmask import training
from fewmask.types import UserError

SMALL: dict[str, Any] = {"encoder": "resnet18", "size": 32, "steps": 2, "batch_size": 4}


class Disk:
    """A small file system of its own, whose size can be changed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, kilobytes: int) -> None:
        self.mount("remount,", kilobytes)

    def mount(self, how: str, kilobytes: int) -> None:
        flags = ["-t", "tmpfs", "-o", f"{how}size={kilobytes}k", "tmpfs", str(self.path)]
        subprocess.run(["mount", *flags], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    made = Disk(tmp_path / "disk")
    made.path.mkdir()
    made.mount("", 64)
    return made


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if ".tmp" in p.name or "partial" in p.name]


def fails_then_works(disk: Disk, sizes: tuple[int, ...], command: Callable[[], object]) -> None:
    """`command` ends in an error on a disk of each size, and works on one that is large enough."""
    for kilobytes in sizes:
        disk.resize(kilobytes)
        with pytest.raises(UserError, match=r"cannot be written .*\(.*No space left"):
            command()
        assert not leftovers(disk.path)
    disk.resize(1 << 20)
    command()


@pytest.fixture
def pairs(write_pairs: Callable[..., Path]) -> str:
    return str(write_pairs(5))


def test_pretrain(disk: Disk, pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    out = disk.path / "run"
    # Too small for the configuration, for the state, and for the weights beside the state.
    fails_then_works(
        disk,
        (4, 1 << 12, 150 << 10),
        lambda: fewmask.pretrain(images=f"{pairs}/images", out=str(out), **SMALL),
    )
    assert (out / "result.json").exists()


def test_finetune_evaluate_predict_and_export(disk: Disk, pairs: str) -> None:
    run = disk.path / "run"
    fails_then_works(
        disk, (4, 1 << 12), lambda: fewmask.finetune(pairs=pairs, out=str(run), **SMALL)
    )
    commands: list[Callable[[], object]] = [
        lambda: fewmask.evaluate(run=str(run), pairs=pairs, out=str(disk.path / "scores")),
        lambda: fewmask.predict(
            run=str(run), paths=(f"{pairs}/images",), out=str(disk.path / "drawn")
        ),
        lambda: fewmask.export(run=str(run), out=str(disk.path / "smp")),
        lambda: fewmask.export(run=str(run), out=str(disk.path / "model.pt2")),
    ]
    for command in commands:
        fails_then_works(disk, (kilobytes_used(disk) + 8,), command)


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exports_of_other_libraries(disk: Disk, pairs: str, tmp_path: Path, ending: str) -> None:
    pytest.importorskip("openvino" if ending == ".xml" else "onnxscript")
    run = tmp_path / "run"
    fewmask.finetune(pairs=pairs, out=str(run), **SMALL)
    disk.resize(1 << 10)
    with pytest.raises(UserError, match="cannot be written"):
        fewmask.export(run=str(run), out=str(disk.path / f"model{ending}"))
    assert not list(disk.path.iterdir())


def test_study(disk: Disk, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"""
        pairs = "{pairs}"
        encoder = "resnet18"
        size = 32
        budgets = [2]
        finetune = {{ steps = 2, batch_size = 2 }}
        pretrain = {{ steps = 2, batch_size = 4 }}
        arms = [{{ init = "scratch" }}, {{ images = "{pairs}/images" }}]
        """
    )
    out = disk.path / "out"
    fails_then_works(
        disk,
        (4, 40, 1 << 12, 200 << 10, 400 << 10),
        lambda: fewmask.study(plan=str(plan), out=str(out)),
    )
    assert (out / "report.html").exists()


def kilobytes_used(disk: Disk) -> int:
    status = os.statvfs(disk.path)
    return (status.f_blocks - status.f_bfree) * status.f_frsize // 1024
