"""The engine that a prediction computes with: chosen, made ready once, checked, remembered."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fewmask.augment import to_unit
from fewmask.data.cache import stamps
from fewmask.data.images import Undecodable
from fewmask.data.items import ImageItem
from fewmask.data.place import cache_root, locked
from fewmask.devices import computes_bf16
from fewmask.engines.checking import AGREEMENT, AccuracyDrop, drop_of_int8
from fewmask.engines.runtimes import (
    READERS,
    WRITERS,
    agreement,
    compiled,
    library_errors,
    write_int8,
)
from fewmask.files import write_json_atomic
from fewmask.inference import Model, Network, frame
from fewmask.runs import made_by
from fewmask.settings import EngineName
from fewmask.types import Precision, UserError

AUTO_FLOPS = 1e13
"""Floating-point operations from which on another engine than PyTorch pays: minutes on two cores,
against some twenty seconds to make it ready."""
CHECKED = 16
"""Images that an engine of full precision is compared on."""
CALIBRATION = 200
"""Images that int8 is calibrated (half of them) and compared on."""
CHECKED_BF16 = 32
"""Images that bf16 is compared on: it differs in few pixels, and their share has to be known."""
FEWEST = 8
"""Images below which int8 is not calibrated."""
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
FORMAT = "1"
"""Part of every engine's key."""


@dataclass(frozen=True)
class Wanted:
    """What a prediction is to be computed with."""

    engine: EngineName = "auto"
    precision: Precision = "32"
    int8: bool = False


@dataclass(frozen=True)
class Engine:
    """A network ready to predict, its name, and what int8 costs where that was measured."""

    name: str
    network: Network
    drop: AccuracyDrop | None = None


def open_engine(
    model: Model, wanted: Wanted, *, items: Sequence[ImageItem], device: torch.device
) -> Engine:
    """The engine to predict `items` with, on the CPU unless it is PyTorch's.

    auto: OpenVINO where the device is the CPU, it is installed, and the images take AUTO_FLOPS or
    more; else PyTorch. That depends on neither the machine's speed nor what was made ready before,
    so that the same command gives the same masks.

    `items` are also what the engine is checked, and int8 calibrated, on. An engine that was made
    ready lies in the cache folder: one of full precision once, int8 once for each set of images.
    Raises UserError where a package is missing, where the engine doesn't give the original's
    classes, where int8 is to be calibrated on fewer than FEWEST images, and where the cache folder
    cannot be written; with auto, and without int8, the answer to all of these is PyTorch, and
    32 bit where bf16 doesn't give the original's classes.
    """
    kind = _kind(model, wanted, len(items), device)
    if kind == "torch":
        return _of_torch(model, wanted, items, device)
    try:
        return _of_runtime(model, kind, wanted, items)
    except UserError as mistake:
        if wanted.engine != "auto" or wanted.int8:
            raise
        print(f"note: {mistake}. Predicting with torch", file=sys.stderr)
        return _of_torch(model, wanted, items, device)


def _kind(model: Model, wanted: Wanted, n: int, device: torch.device) -> EngineName:
    if wanted.int8:
        return "openvino"
    if wanted.engine != "auto":
        return wanted.engine
    there = device.type == "cpu" and find_spec("openvino") is not None
    return "openvino" if there and n * flops(model) >= AUTO_FLOPS else "torch"


def _of_torch(
    model: Model, wanted: Wanted, items: Sequence[ImageItem], device: torch.device
) -> Engine:
    network, halved = model.segmenter, _Halved(model.segmenter, device.type)
    if _bf16(model, "torch", wanted, items, device, lambda: (network, halved)):
        return Engine("torch bf16", halved)
    return Engine("torch", network)


def _of_runtime(
    model: Model, kind: EngineName, wanted: Wanted, items: Sequence[ImageItem]
) -> Engine:
    folder = _folder(model, kind, items if wanted.int8 else ())
    cpu = torch.device("cpu")
    if wanted.int8 or kind == "onnx" or not _asks_for_bf16(wanted, cpu):
        return _ready(model, kind, folder, items, int8=wanted.int8)
    _ready_there(model, kind, folder, items)

    def halved() -> Network:
        with library_errors(f"{model.run}: {kind} cannot compute in bf16"):
            return compiled(str(folder / f"model{SUFFIX[kind]}"), bf16=True)

    full = partial(_ready, model, kind, folder, items, int8=False)
    if _bf16(model, kind, wanted, items, cpu, lambda: (full().network, halved())):
        return Engine(f"{kind} bf16", halved())
    return full()


class _Halved(nn.Module):
    """A network in mixed bf16."""

    def __init__(self, network: nn.Module, device: str) -> None:
        super().__init__()
        self.network, self.device = network, device

    def forward(self, images: Tensor) -> Tensor:
        """As the network's own."""
        with torch.autocast(self.device, torch.bfloat16):
            logits: Tensor = self.network(images)
        return logits


def _asks_for_bf16(wanted: Wanted, device: torch.device) -> bool:
    return wanted.precision == "bf16" or (wanted.precision == "auto" and computes_bf16(device.type))


def _bf16(
    model: Model,
    kind: str,
    wanted: Wanted,
    items: Sequence[ImageItem],
    device: torch.device,
    both: Callable[[], tuple[Network, Network]],
) -> bool:
    """Whether to compute in bf16: it is asked for, and gives these images the classes that 32 bit
    gives them. `both` are the networks, of 32 bit and of bf16; what was found is kept for this
    processor.
    """
    if not _asks_for_bf16(wanted, device):
        return False
    made = made_by()
    place = _folder(model, f"{kind} {device.type} {made['processor']} {made['gpu']}", items)
    try:
        agreed = _agreement_in_bf16(model, place / "bf16.json", items, device, both)
        lost = f"bf16 gives another class to {100 * (1 - agreed):.2f} % of the pixels"
        if agreed < AGREEMENT:
            raise UserError(f"{model.run}: {lost}. Choose --precision 32")
    except UserError as mistake:
        if wanted.precision == "bf16":
            raise
        print(f"note: {mistake}. Predicting in 32 bit", file=sys.stderr)
        return False
    return True


def _agreement_in_bf16(
    model: Model,
    place: Path,
    items: Sequence[ImageItem],
    device: torch.device,
    both: Callable[[], tuple[Network, Network]],
) -> float:
    try:
        return float(json.loads(place.read_text(encoding="utf-8"))["agreement"])
    except (OSError, ValueError, KeyError, TypeError):
        images = network_inputs(model, items, int8=False, most=CHECKED_BF16).to(device)
        with library_errors(f"{model.run}: cannot be computed in bf16"):
            agreed = agreement(*both(), images)
        with suppress(UserError):  # a cache that cannot be written only costs the check again
            write_json_atomic(place, {"agreement": agreed})
        return agreed


def flops(model: Model) -> int:
    """Floating-point operations of the network for one image, multiplications and additions."""
    known = model.described.get("flops")
    return int(known) if known else model.segmenter.flops(model.geometry.size)


def _folder(model: Model, kind: str, calibrated_on: Sequence[ImageItem]) -> Path:
    """Named by all that the engine is made of: weights, model, kind, versions, images of int8."""
    digest = blake2b(FORMAT.encode(), digest_size=16)
    for name in ("model.safetensors", "model.json"):
        digest.update((model.run / name).read_bytes())
    versions = (_version(name) for name in ("torch", "openvino", "onnxruntime", "nncf"))
    images = stamps(calibrated_on) if calibrated_on else ""
    digest.update(" ".join((kind, images, *versions)).encode())
    return cache_root() / "engines" / digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _ready(
    model: Model, kind: str, folder: Path, items: Sequence[ImageItem], *, int8: bool
) -> Engine:
    """The engine of a folder, made if it is not there or cannot be read."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            try:
                return _read(model, kind, folder)
            except (UserError, OSError, ValueError, KeyError, TypeError):
                _make(model, kind, folder, items, int8=int8)
                return _read(model, kind, folder)
    except OSError as problem:
        raise UserError(
            f"{folder.parent}: the engine cannot be kept ({problem.strerror or problem}). Make "
            "room, or set FEWMASK_CACHE to another folder"
        ) from problem


def _ready_there(model: Model, kind: str, folder: Path, items: Sequence[ImageItem]) -> None:
    """Have an engine of full precision made, if it is not there, without opening one that is."""
    if not (folder / "ready.json").exists():
        _ready(model, kind, folder, items, int8=False)


def _read(model: Model, kind: str, folder: Path) -> Engine:
    """Raises OSError, UserError, ValueError, KeyError or TypeError where it is not whole."""
    told = json.loads((folder / "ready.json").read_text(encoding="utf-8"))
    if told["checksums"] != checksums(folder):
        raise ValueError(f"{folder}: damaged")
    drop = AccuracyDrop(**told["drop"]) if told["drop"] else None
    with library_errors(f"{model.run}: {kind} cannot read what it wrote"):
        return Engine(told["name"], READERS[kind](folder / f"model{SUFFIX[kind]}"), drop)


def checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of an engine's files: what was checked once must not change afterwards."""
    files = sorted(path for path in folder.iterdir() if path.name.startswith("model"))
    return {path.name: zlib.crc32(path.read_bytes()) for path in files}


def _make(model: Model, kind: str, folder: Path, items: Sequence[ImageItem], *, int8: bool) -> None:
    """Write the engine, check it, and only then give it its place."""
    print(f"making {'an int8' if int8 else 'a'} model for {kind} ready", file=sys.stderr)
    images = network_inputs(model, items, int8=int8, most=CALIBRATION if int8 else CHECKED)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write = write_int8 if int8 else WRITERS[kind]
        with library_errors(f"{model.run}: {kind} cannot take this model"):
            network = write(model.segmenter, partial / f"model{SUFFIX[kind]}", images)
            drop = drop_of_int8(model, network, images) if int8 else None
            agreed = 1.0 if int8 else agreement(model.segmenter, network, images)
        if agreed < AGREEMENT:
            raise UserError(
                f"{model.run}: {kind} gives another class than the original to "
                f"{100 * (1 - agreed):.2f} % of the pixels. Choose --engine torch"
            )
        told = {"name": f"{kind} int8" if int8 else kind, "drop": asdict(drop) if drop else None,
                "checksums": checksums(partial)}  # fmt: skip
        (partial / "ready.json").write_text(json.dumps(told), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # one that could not be read
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def network_inputs(model: Model, items: Sequence[ImageItem], *, int8: bool, most: int) -> Tensor:
    """Some of the images, evenly spaced, as the network sees them: float32 [n,3,S,S], 0 to 1.

    Images that can't be decoded are passed over. Raises UserError where none is left, and where
    they are to calibrate int8 and fewer than FEWEST are.
    """
    spaced = np.linspace(0, len(items) - 1, min(len(items), most)).astype(int)
    pixels, broken = [], ""
    for row in spaced:
        try:
            pixels.append(frame(items[row].pixels(), model.geometry).small)
        except Undecodable as problem:
            broken = f" ({problem.where}: {problem.reason})"
    if int8 and len(pixels) < FEWEST:
        raise UserError(
            f"--int8 is calibrated on images; {len(pixels)} can be read of those given{broken}. "
            f"Give {FEWEST} or more, or leave out --int8"
        )
    if not pixels:
        raise UserError(f"none of the images can be decoded{broken}. Name others")
    return to_unit(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous())
