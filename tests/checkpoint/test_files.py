from __future__ import annotations

import errno
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.test_foreign import _Runs

from fewmask.checkpoint import files, load_state, read_weights, save_state, save_weights
from fewmask.files import append_text, write_bytes_atomic, write_json_atomic, write_text_atomic
from fewmask.types import UserError

WRITERS = {
    "text": lambda path: write_text_atomic(path, "x" * 10),
    "bytes": lambda path: write_bytes_atomic(path, b"x" * 10),
    "json": lambda path: write_json_atomic(path, [1, 2]),
    "weights": lambda path: save_weights(path, {"w": torch.ones(5)}, {}),
    "state": lambda path: save_state(path, {"w": torch.ones(5)}),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_but_the_file_is_left(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    WRITERS[kind](path)
    WRITERS[kind](path)
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert path.stat().st_mode & 0o044 == 0o044 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_full_disk_leaves_the_old_file(
    kind: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_: Any) -> None:
        raise full

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", refuse)
    else:
        opened = Path.open

        def open_full(self: Path, mode: str = "r", **more: Any) -> Any:
            if "x" not in mode:
                return opened(self, mode, **more)
            opened(self, mode).close()
            return _Full()

        monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(UserError, match=r"file: cannot be written \(No space left on device\)"):
        WRITERS[kind](path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


class _Full(io.BytesIO):
    def write(self, _: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomic(path, "new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_parent_that_is_a_file_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_text_atomic(tmp_path / "file" / "below", "x")


def test_errors_that_are_ours_stay_errors(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="lambda"):
        save_state(tmp_path / "state.pt", {"f": lambda: None})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json_atomic(tmp_path / "x.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_went_away_is_said_to_be_gone(tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        append_text(tmp_path / "gone" / "metrics.jsonl", "{}")
    assert str(told.value) == (
        f"{tmp_path / 'gone' / 'metrics.jsonl'}: its folder is gone. Bring it back to go on from "
        "there, or begin anew"
    )


def test_json_is_json(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "x.json", {"a": [1, None, "\u00e9"]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, None, "\u00e9"]}


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    shared = torch.arange(24.0).reshape(1, 2, 3, 4)
    tensors = {
        "channels_last": shared.contiguous(memory_format=torch.channels_last),
        "shared": shared,
        "shared_too": shared[0, 1],
        "transposed": shared[0, 0].T,
        "half": torch.ones(2).half(),
        "counter": torch.tensor(7),
        "grad": torch.nn.Parameter(torch.ones(1)),
    }
    save_weights(tmp_path / "w.safetensors", tensors, {"encoder": "resnet18"})
    back = read_weights(tmp_path / "w.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    from safetensors import safe_open

    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata()["encoder"] == "resnet18"


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"é": torch.arange(3.0), "b": torch.ones(2, 2)}
    told = {name: name for name in ["encoder", "decoder", "options", "table", "crc", "size", "é"]}
    for turn in range(4):
        order = sorted(told, reverse=turn % 2 == 0)
        save_weights(tmp_path / f"{turn}", tensors, {name: told[name] for name in order})
    contents = {(tmp_path / f"{turn}").read_bytes() for turn in range(4)}
    assert len(contents) == 1
    (content,) = contents
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert [*header["__metadata__"]] == sorted([*told, "crc32"])
    assert read_weights(tmp_path / "0").keys() == tensors.keys()


def head(text: str) -> memoryview:
    return memoryview(len(text.encode()).to_bytes(8, "little") + text.encode() + b"tensors")


def test_a_head_s_metadata_is_put_in_order_and_its_length_stays() -> None:
    given = r'{"__metadata__":{"b":"\u00e9","a":"1"}}'
    found = files._in_order(head(given))
    assert found[:8] == head(given)[:8]
    assert found[8:].decode() == '{"__metadata__":{"a":"1","b":"é"}}' + 4 * " "
    plain = '{"__metadata__":{"a":"é"}}'
    assert files._in_order(head(plain))[8:].decode() == plain
    with pytest.raises(ValueError, match=r"^a head of 27 bytes became one of 32$"):
        files._in_order(head('{"__metadata__":{},"x":1e5}'))


def test_what_is_no_plain_file_holds_no_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError) as refused:
        read_weights(tmp_path / "pipe")
    assert str(refused.value) == (f"{tmp_path / 'pipe'}: is no plain file; expected a weights file")


def test_state_comes_back(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"step": 3, "best": {"loss": None}, "optimizer": optimizer.state_dict()}
    save_state(tmp_path / "s.pt", state)
    back = load_state(tmp_path / "s.pt")
    assert back["best"] == {"loss": None}
    exp_avg = back["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(exp_avg, optimizer.state_dict()["state"][0]["exp_avg"])


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(99)}, {})
    save_state(tmp_path / "state.pt", {"w": torch.ones(99)})
    for name, read in (("model.safetensors", read_weights), ("state.pt", load_state)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(UserError, match=name):
            read(path)
        with pytest.raises(UserError, match=f"no such file; near: {name}"):
            read(tmp_path / f"{name}x")


def test_a_flipped_bit_of_a_state_is_met(tmp_path: Path) -> None:
    """torch.load alone takes such a file, and a run would go on from another weight."""
    path = tmp_path / "state.pt"
    save_state(path, {"w": torch.full((999,), 3.0)})
    data = bytearray(path.read_bytes())
    at = data.index(torch.full((9,), 3.0).numpy().tobytes()) + 18
    data[at] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["w"].unique().numel() == 2
    with pytest.raises(UserError, match=r"state\.pt: is damaged.*wrong checksum.*Remove it"):
        load_state(path)


def test_a_flipped_bit_of_weights_is_met(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.tensor(2), "c": torch.zeros(0)}
    save_weights(path, tensors, {})
    assert torch.equal(read_weights(path)["a"], tensors["a"])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: is damaged.*Fetch or make"):
        read_weights(path)


def test_damaged_weights_of_a_finished_run_say_what_makes_them_anew(tmp_path: Path) -> None:
    """The same command would find the run finished, and train nothing."""
    path = tmp_path / "model.safetensors"
    save_weights(path, {"w": torch.ones(3)}, {})
    (tmp_path / "result.json").write_text("{}")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"or remove .*result\.json and run its command again"):
        read_weights(path)


def test_weights_of_others_have_no_checksum(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors")
    assert torch.equal(read_weights(tmp_path / "w.safetensors")["w"], torch.ones(3))


def test_the_checksum_is_the_crc_32_of_names_and_bytes(tmp_path: Path) -> None:
    """For good: weights of earlier versions are held against it."""
    from safetensors import safe_open

    second, first = torch.tensor([1.5, -2.0]), torch.tensor([[3, 4]], dtype=torch.int16)
    save_weights(tmp_path / "w.safetensors", {"b": second, "a": first}, {})
    held = b"a" + first.numpy().tobytes() + b"b" + second.numpy().tobytes()
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"crc32": f"{zlib.crc32(held):08x}"}


def fault_of(read: Callable[[Path], Any], path: Path) -> str:
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: ") as caught:
        read(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_faults_of_weights_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.ones(3)}, {})
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"w"', b'"v"'))  # a name counts as well
    assert fault_of(read_weights, path) == (
        "is damaged, or was changed since it was written (its weights don't fit their checksum). "
        "Fetch or make the file again"
    )
    path.write_bytes(b"torn")
    told = r"cannot be read as safetensors \(.*header.*\)\. Fetch or make the file again"
    assert re.fullmatch(told, fault_of(read_weights, path))
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    told = "cannot be read (Permission denied). Give the permission to read it"
    assert fault_of(read_weights, path) == told
    assert fault_of(read_weights, tmp_path) == "is a folder; expected a weights file"
    assert fault_of(read_weights, tmp_path / "no" / "file") == "no such file"


def test_faults_of_a_state_are_told_in_one_line(tmp_path: Path) -> None:
    path, mend = tmp_path / "s.pt", "Remove it to begin this run anew"
    path.write_bytes(b"torn")
    told = f"is damaged, or not a state that fewmask wrote (File is not a zip file). {mend}"
    assert fault_of(load_state, path) == told
    # A pickle that ends too soon: torch's error has no text.
    save_state(path, {"w": torch.ones(5)})
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, part in parts.items():
            file.writestr(name, b"\x80\x02}" if name.endswith("data.pkl") else part)
    told = f"is damaged, or not a state that fewmask wrote (EOFError). {mend}"
    assert fault_of(load_state, path) == told


@pytest.mark.parametrize("forced", ["0", "1"])
def test_no_code_of_a_state_is_run(
    forced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the environment tells torch to."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    save_state(tmp_path / "s.pt", {"x": _Runs(tmp_path / "ran")})
    told = fault_of(load_state, tmp_path / "s.pt")
    assert told == (
        "is damaged, or not a state that fewmask wrote (it holds more than tensors and plain "
        "values). Remove it to begin this run anew"
    )
    assert not (tmp_path / "ran").exists()
