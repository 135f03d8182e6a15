from __future__ import annotations

import argparse
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewmask.checkpoint import read_any
from fewmask.types import UserError

W = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.ones(2)}


def saved(content: Any, path: Path, **how: Any) -> Path:
    torch.save(content, path, **how)
    return path


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "content",
    [
        W,
        {"state_dict": W, "epoch": 3},
        {"model": W, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        {"anything": {"deeper": W}, "lr": 0.1, "optimizer_states": [{"x": torch.ones(1)}]},
        {"encoder": {k: torch.nn.Parameter(v) for k, v in W.items()}},
        {"network": W, "rng_state": {"cpu": torch.ones(4)}},
    ],
)
def test_the_one_dict_of_tensors_is_found(content: Any, tmp_path: Path) -> None:
    assert same(read_any(saved(content, tmp_path / "file.pth")), W)


def test_files_are_known_by_content(tmp_path: Path) -> None:
    save_file(W, tmp_path / "weights.bin")
    assert same(read_any(tmp_path / "weights.bin"), W)
    old = saved(W, tmp_path / "weights.safetensors", _use_new_zipfile_serialization=False)
    assert same(read_any(old), W)


def test_of_several_networks_all_are_kept_by_name(tmp_path: Path) -> None:
    student, teacher = W, {k: v + 1 for k, v in W.items()}
    path = saved({"student": student, "teacher": teacher}, tmp_path / "file.ckpt")
    expected = {f"student.{k}": v for k, v in student.items()}
    expected |= {f"teacher.{k}": v for k, v in teacher.items()}
    assert same(read_any(path), expected)


class _Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("forced", ["0", "1"])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_of_a_file_is_run(
    zipped: bool, forced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)  # not ours to obey
    mark = tmp_path / "ran"
    content = {"model": W, "extra": _Runs(mark)}
    path = saved(content, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    found = r"file.pt: holds more than tensors \(\w+\.mkdir\)"
    with pytest.raises(UserError, match=found) as caught:
        read_any(path)
    assert "torch.save(model.state_dict()" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("content", [torch.nn.Linear(2, 2), {"args": argparse.Namespace(a=1), **W}])
def test_pickled_objects_are_refused_with_the_mend(content: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds more than tensors \((torch|argparse)\."):
        read_any(saved(content, tmp_path / "file.pt"))


def test_what_is_no_weights_file(tmp_path: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(UserError, match=f"{path.name}: {match}") as caught:
            read_any(path)
        assert "\n" not in str(caught.value)

    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>not found</html>")
    refused(tmp_path / "page.pth", "is no weights file")
    (tmp_path / "empty.pth").write_bytes(b"")
    refused(tmp_path / "empty.pth", "is no weights file")
    np.savez(tmp_path / "arrays.npz", x=np.ones(3))
    refused(tmp_path / "arrays.npz", "cannot be read")
    refused(saved([1, 2], tmp_path / "list.pt"), "holds no named tensors")
    refused(saved({"epoch": 1}, tmp_path / "dict.pt"), "holds no named tensors")
    whole = saved(W, tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.pt", "cannot be read")
    old = saved(W, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    old.write_bytes(old.read_bytes()[:60])
    refused(old, "cannot be read|holds no")
    refused(tmp_path, "is a folder")
    refused(tmp_path / "cut.p", "no such file; near: .*cut.pt")


CONVERT = (
    "Where you trust it, convert it: torch.save(model.state_dict(), FILE), "
    "or safetensors.torch.save_file(model.state_dict(), FILE)"
)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!DOCTYPE html>", "is no weights file (it begins with b'<!DOCTYP'); expected "
         "safetensors, or a file of torch.save"),
        ([1, 2], f"holds no named tensors, but <class 'list'>. {CONVERT}"),
        (dict.fromkeys("abcdefg", 1), "holds no named tensors, but a dict of "
         f"['a', 'b', 'c', 'd', 'e']. {CONVERT}"),
        (b"\x80\x02", "cannot be read as a file of torch.save (EOFError). Fetch or make it again"),
        # A state for what is no tensor: more than tensors, though of no class that torch names.
        (b"\x80\x02]}b.", "holds more than tensors; to load that would run code of the file, which "
         f"fewmask does not do. {CONVERT}"),
    ],
)  # fmt: skip
def test_what_a_file_is_instead_is_told_in_one_line(
    content: Any, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        saved(content, path)
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}: {told}')}$"):
        read_any(path)


@pytest.mark.filterwarnings("ignore:.*TorchScript")
def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    path = saved(W, tmp_path / "file.pt")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("file/constants.pkl", b"")  # what torch knows one by
    told = f"{path}: is a TorchScript program, not a file of tensors. {CONVERT}"
    with pytest.raises(UserError, match=f"^{re.escape(told)}$"):
        read_any(path)
