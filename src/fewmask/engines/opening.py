"""The engine that a prediction computes with: chosen, made ready once, checked, remembered."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewmask.augment import to_unit
from fewmask.data.cache import cache_root
from fewmask.data.images import Undecodable, resize_image
from fewmask.data.sources import ImageItem
from fewmask.engines.checking import AGREEMENT, Loss, loss_of_int8
from fewmask.engines.runtimes import READERS, WRITERS, agreement, write_int8
from fewmask.files import refused
from fewmask.inference import Model, Network
from fewmask.settings import EngineName
from fewmask.types import UserError

WORTH = 1e13
"""Floating-point operations from which on another engine than PyTorch pays: minutes on two cores,
against some twenty seconds to make it ready."""
CHECKED = 16
"""Images that an engine of full precision is compared on."""
CALIBRATION = 100
"""Images that the ranges of int8 are measured on."""
FEWEST = 8
"""Images below which int8 is not calibrated."""
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}


@dataclass(frozen=True)
class Engine:
    """A network ready to predict, its name, and what int8 costs where that was measured."""

    name: str
    network: Network
    loss: Loss | None = None


def open_engine(
    model: Model,
    wanted: EngineName,
    *,
    int8: bool,
    items: Sequence[ImageItem],
    device: torch.device,
) -> Engine:
    """The engine to predict `items` with.

    auto: OpenVINO on a CPU, where it is installed and the images take WORTH operations or more;
    else PyTorch. That depends on neither the machine's speed nor what was made ready before, so
    that the same command gives the same masks.

    `items` are also what the engine is checked, and int8 calibrated, on. An engine that was made
    ready lies in the cache folder. Raises UserError where a package is missing, where the engine
    doesn't give the original's classes, and where int8 is to be calibrated on fewer than FEWEST
    images.
    """
    original = Engine("torch", model.segmenter)
    kind = wanted
    if int8:
        kind = "openvino"
    elif wanted == "auto":
        there = device.type == "cpu" and find_spec("openvino") is not None
        worth = there and len(items) * operations(model) >= WORTH
        kind = "openvino" if worth else "torch"
    if kind == "torch":
        return original
    folder = _folder(model, kind, int8=int8)
    try:
        if not (folder / "ready.json").exists():
            _make(model, kind, folder, items, int8=int8)
        return _read(kind, folder)
    except UserError as mistake:
        if wanted != "auto" or int8:
            raise
        print(f"note: {mistake}; predicting with torch", file=sys.stderr)
        return original


def operations(model: Model) -> int:
    """Floating-point operations of the network for one image, multiplications and additions."""
    from torch.utils.flop_counter import FlopCounterMode

    size = model.geometry.size
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.segmenter(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())


def _read(kind: str, folder: Path) -> Engine:
    told = json.loads((folder / "ready.json").read_text(encoding="utf-8"))
    loss = Loss(**told["loss"]) if told["loss"] else None
    return Engine(told["name"], READERS[kind](folder / f"model{SUFFIX[kind]}"), loss)


def _folder(model: Model, kind: str, *, int8: bool) -> Path:
    """Named by all that the engine is made of: weights, model, kind and versions."""
    digest = blake2b(digest_size=16)
    for name in ("model.safetensors", "model.json"):
        digest.update((model.run / name).read_bytes())
    made_by = [kind, str(int8), *(_version(name) for name in ("torch", "openvino", "onnxruntime"))]
    digest.update(" ".join(made_by).encode())
    return cache_root() / "engines" / digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _make(model: Model, kind: str, folder: Path, items: Sequence[ImageItem], *, int8: bool) -> None:
    """Write the engine, check it, and only then give it its place."""
    print(f"making {'an int8' if int8 else 'a'} model for {kind} ready, once", file=sys.stderr)
    images = network_inputs(model, items, CALIBRATION if int8 else CHECKED)
    if int8 and len(images) < FEWEST:
        raise UserError(
            f"--int8 is calibrated on the images given; {len(images)} are too few. Give {FEWEST} "
            "or more, or leave out --int8"
        )
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        path = partial / f"model{SUFFIX[kind]}"
        network = (write_int8 if int8 else WRITERS[kind])(model.segmenter, path, images)
        loss = loss_of_int8(model, network, images) if int8 else None
        agreed = agreement(model.segmenter, network, images)
        if not int8 and agreed < AGREEMENT:
            raise UserError(
                f"{model.run}: {kind} gives another class than the original to "
                f"{100 * (1 - agreed):.2f} % of the pixels. Choose --engine torch"
            )
        told = {"name": f"{kind} int8" if int8 else kind, "loss": asdict(loss) if loss else None}
        (partial / "ready.json").write_text(json.dumps(told), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as problem:
        raise refused(folder, problem) from problem
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as problem:
        why = " ".join(str(problem).split())[:200]
        raise UserError(
            f"{model.run}: {kind} cannot take this model ({why}). Choose --engine torch"
        ) from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def network_inputs(model: Model, items: Sequence[ImageItem], most: int) -> Tensor:
    """Some of the images, evenly spaced, as the network sees them: float32 [n,3,S,S], 0 to 1."""
    spaced = np.linspace(0, len(items) - 1, min(len(items), most)).astype(int)
    size, resize = model.geometry.size, model.geometry.resize

    pixels = []
    for row in spaced:
        with suppress(Undecodable):  # said by the prediction itself
            pixels.append(resize_image(items[row].pixels(), size, resize)[0])
    if not pixels:
        raise UserError("none of the images can be decoded")
    return to_unit(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous())
