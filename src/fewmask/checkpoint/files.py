"""Weights and training state on disk."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewmask.files import write_atomic
from fewmask.flags import near
from fewmask.types import UserError

CHECKSUM = "crc32"
"""The key of a weights file's metadata."""


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file of tensors of any device, layout and sharing. Raises as `write_atomic`.

    Their checksum goes into its metadata as `crc32`: the format itself has none.
    """
    from safetensors.torch import save

    plain = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    content = memoryview(save(plain, metadata={**metadata, CHECKSUM: _checksum(plain)}))
    head = _in_order(content)
    write_atomic(path, lambda file: (file.write(head), file.write(content[len(head) :])))


def _in_order(content: memoryview) -> bytes:
    """The head of a safetensors file, its metadata by name: the library's order is another each
    time. It is a JSON text behind its length in eight bytes, and may end in blanks.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8 : 8 + length]))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > length:  # the tensors behind it must stay where they are
        raise ValueError(f"a head of {length} bytes became one of {len(text)}")
    return bytes(content[:8]) + text.ljust(length)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises UserError if missing or damaged.

    A file with a checksum (see `save_weights`) is held against it; others have none to be held to.
    """
    from safetensors import SafetensorError, safe_open

    require_file(path)
    if not os.access(path, os.R_OK):  # safetensors would call it missing
        raise UserError(
            f"{path}: cannot be read (Permission denied). Give the permission to read it"
        )
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get(CHECKSUM)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise UserError(
            f"{path}: cannot be read as safetensors ({problem}). {_again(path)}"
        ) from problem
    if said is not None and said != _checksum(tensors):
        raise UserError(
            f"{path}: is damaged, or was changed since it was written (its weights don't fit their "
            f"checksum). {_again(path)}"
        )
    return tensors


def _again(path: Path) -> str:
    """How to come by a weights file again: a finished run is not trained anew by itself."""
    result = path.with_name("result.json")
    if not result.is_file():
        return "Fetch or make the file again"
    return f"Bring it back, or remove {result} and run its command again to train it anew"


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over the names and the bytes of contiguous tensors on the CPU."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(name.encode(), found)
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """What a run needs to go on: tensors and plain values only, so that `load_state` takes it."""
    write_atomic(path, lambda file: torch.save(dict(state), file))


def load_state(path: Path) -> dict[str, Any]:
    """The contents of `save_state`, on the CPU; no code of the file is run.

    Raises UserError where the file is missing or damaged, be it by a bit of a weight.
    """
    require_file(path)
    try:
        with zipfile.ZipFile(path) as parts:
            wrong = parts.testzip()  # torch writes checksums, but reads past them
            if wrong is not None:
                raise ValueError(f"wrong checksum of {wrong}")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # zipfile and torch each have their own
        why = (str(problem).splitlines() or [type(problem).__name__])[0]
        if isinstance(problem, pickle.UnpicklingError):  # torch would say how to load it anyway
            why = "it holds more than tensors and plain values"
        raise UserError(
            f"{path}: is damaged, or not a state that fewmask wrote ({why}). "
            "Remove it to begin this run anew"
        ) from problem
    return state


def require_file(path: Path) -> None:
    """Raises UserError for a file that isn't there, with near names of its folder."""
    path = Path(path)
    if path.is_file():
        return
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected a weights file")
    if path.exists():
        raise UserError(f"{path}: is no plain file; expected a weights file")
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(f"{path}: no such file{near(path.name, beside)}")
