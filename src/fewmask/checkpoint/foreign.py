"""read_any(): weights files that others made, without running what is in them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewmask.checkpoint.files import read_weights, require_file
from fewmask.types import UserError

NOT_WEIGHTS = re.compile(r"optim|sched|scaler|rng|random", re.IGNORECASE)
"""Keys of a checkpoint whose tensors are the training's, not the model's."""

CONVERT = (
    "Where you trust it, convert it: torch.save(model.state_dict(), FILE), "
    "or safetensors.torch.save_file(model.state_dict(), FILE)"
)


def read_any(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file, known by its content, on the CPU.

    Dicts of tensors are searched for at any depth ("state_dict", "model", "teacher", ...). The
    names are as in the one that there is; where there are several, each name begins with where it
    was found ("student.conv1.weight"). Raises UserError for a file that is missing, damaged, no
    weights file, or that would have to run code.
    """
    path = Path(path)
    require_file(path)
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise UserError(f"{path}: is no weights file (it is empty). Fetch or make the file again")
    if head[8:9] == b"{":  # after the length of a JSON header
        return read_weights(path)
    if head.startswith((b"PK\x03\x04", b"\x80")):  # torch's zip archive; its pickle before 1.6
        return _named(_unpickled(path), path)
    raise UserError(
        f"{path}: is no weights file (it begins with {head[:8]!r}); "
        "expected safetensors, or a file of torch.save"
    )


def _unpickled(path: Path) -> Any:
    import pickle

    try:
        # Given a path, torch.load goes by its ending. It warns of what is refused below.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        text = str(problem)
        found = re.search(r"GLOBAL ([\w.]+)", text)
        if found is None and "Weights only load failed" not in text:
            raise _damaged(path, problem) from problem
        what = f" ({found[1]})" if found else ""
        raise UserError(
            f"{path}: holds more than tensors{what}; to load that would run code of the file, "
            f"which fewmask does not do. {CONVERT}"
        ) from problem
    except Exception as problem:  # of the zip reader, of truncated pickles
        if "TorchScript" in str(problem):
            raise UserError(
                f"{path}: is a TorchScript program, not a file of tensors. {CONVERT}"
            ) from problem
        raise _damaged(path, problem) from problem


def _damaged(path: Path, problem: Exception) -> UserError:
    reason = (str(problem).splitlines() or [type(problem).__name__])[0]
    return UserError(
        f"{path}: cannot be read as a file of torch.save ({reason}). Fetch or make it again"
    )


def _named(content: Any, path: Path) -> dict[str, Tensor]:
    parts = dict(_parts(content, ""))
    if not parts:
        kind = f"a dict of {list(content)[:5]}" if isinstance(content, dict) else type(content)
        raise UserError(f"{path}: holds no named tensors, but {kind}. {CONVERT}")
    if len(parts) == 1:
        return next(iter(parts.values()))
    return {where + name: t for where, part in parts.items() for name, t in part.items()}


def _parts(content: Any, where: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(path with a final dot, its tensors) of every dict that holds tensors under names."""
    if not isinstance(content, Mapping):
        return
    named = {k: v for k, v in content.items() if isinstance(k, str)}
    tensors = {k: v.detach() for k, v in named.items() if isinstance(v, Tensor)}
    if tensors:
        yield where, tensors
    for key, value in named.items():
        if not NOT_WEIGHTS.search(key):
            yield from _parts(value, f"{where}{key}.")
