"""A run's model in other formats, each checked against the original on real inputs.

All but smp take images [B,3,S,S] of values 0 to 1 (RGB, S the run's --size) and give logits
[B,n_logits,S,S]; the normalisation is inside. smp's takes normalised images, as smp's models do.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewmask import decoders
from fewmask.augment import to_unit
from fewmask.checkpoint import save_weights
from fewmask.data.images import resize_image
from fewmask.data.sources import MaskOptions, open_pairs
from fewmask.files import refused, write_json_atomic
from fewmask.inference import Model, load_run, own_folder
from fewmask.settings import ExportSettings
from fewmask.types import UserError

SAMPLES = 4
TOLERANCE = 1e-3
"""Largest difference of a logit between an export and the original, over the logits' spread."""

Reader = Callable[[Tensor], Tensor]


def export(settings: ExportSettings) -> Path:
    """Write the export and read it back; it is kept only if it gives the original's logits.

    Raises UserError where a package is missing, the run's own images are gone, or the two differ.
    """
    model = load_run(settings.run)
    inputs = real_inputs(model)
    out = Path(settings.out)
    if out.exists():
        raise UserError(f"{out}: exists. Choose another --out")
    own_folder(out, set())
    by_ending = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch", "": "smp"}
    kind = settings.format or by_ending.get(out.suffix.lower())
    if kind is None:
        raise UserError(
            f"{out}: no format goes by the ending {out.suffix}. Pass --format {', '.join(WRITERS)}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    _remove(partial)
    try:
        read = WRITERS[kind](model, partial, inputs)
        compare(model, read, inputs, kind)
        os.replace(partial, out)
        weights = partial.with_suffix(".bin")
        if kind == "openvino" and weights.exists():
            os.replace(weights, out.with_suffix(".bin"))
    except OSError as problem:
        raise refused(out, problem) from problem
    finally:
        _remove(partial)
        _remove(partial.with_suffix(".bin"))
    return out


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def real_inputs(model: Model) -> Tensor:
    """A few of the pictures the run was trained on, as the network sees them: [n,3,S,S], 0 to 1."""
    told = model.described["options"]
    try:
        pairs = open_pairs(told["src"], MaskOptions(border=told["border"]))
    except UserError as mistake:
        raise UserError(
            f"{model.run}: the check of an export needs the run's own images ({mistake})"
        ) from None
    size, resize = model.geometry.size, model.geometry.resize
    seen = [resize_image(p.image.pixels(), size, resize)[0] for p in pairs.items[:SAMPLES]]
    return to_unit(torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).contiguous())


def compare(model: Model, read: Reader, inputs: Tensor, name: str) -> None:
    """Raises UserError unless the export's logits are the original's."""
    with torch.inference_mode():
        wanted = model.segmenter(inputs)
        found = read(inputs)
    far = ((found - wanted).abs().max() / wanted.std().clamp_min(1e-6)).item()
    if not far < TOLERANCE:
        raise UserError(
            f"the {name} export differs from the original by {far:.2g} of the logits' spread "
            f"(at most {TOLERANCE:g} is allowed); nothing was written. Choose another --format"
        )


def _needs(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"this format needs {name}. Install the extra `export` (pip install '.[export]')"
        ) from None


def _write_smp(model: Model, path: Path, _: Tensor) -> Reader:
    import segmentation_models_pytorch as smp

    network = model.segmenter.network
    config = decoders.smp_config(network)
    if config is None:
        options = decoders.options_of(model.segmenter.decoder)
        told = "".join(f" --{k.replace('_', '-')} {v}" for k, v in options.items())
        raise UserError(
            f"{model.run}: smp cannot build --decoder {model.segmenter.decoder.name}{told} on "
            f"--encoder {model.segmenter.encoder_name}: parts of it are fewmask's own. "
            "Choose --format torch, onnx or openvino"
        )
    path.mkdir()
    write_json_atomic(path / "config.json", config)
    save_weights(path / "model.safetensors", network.state_dict(), {"format": "pt"})
    with redirect_stdout(io.StringIO()):  # the hub's library says where it loads from
        opened = smp.from_pretrained(str(path)).eval()

    def read(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        logits: Tensor = opened(model.segmenter.seen(images))
        return logits[..., :height, :width]

    return read


def _exported(model: Model, inputs: Tensor) -> Any:
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(
        model.segmenter, (inputs,), dynamic_shapes=({0: batch},), strict=False
    )


def _write_torch(model: Model, path: Path, inputs: Tensor) -> Reader:
    written = io.BytesIO()
    with warnings.catch_warnings():
        # Of weights in channels-last order; that they come back whole is checked below.
        warnings.simplefilter("ignore", UserWarning)
        torch.export.save(_exported(model, inputs), written)
    path.write_bytes(written.getbuffer())
    with path.open("rb") as file:
        opened = torch.export.load(file).module()
    return opened


def _write_onnx(model: Model, path: Path, inputs: Tensor) -> Reader:
    _needs("onnxscript")
    runtime = _needs("onnxruntime")
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.onnx.export(
        model.segmenter,
        (inputs,),
        str(path),
        dynamo=True,
        external_data=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        verbose=False,
    )
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _write_openvino(model: Model, path: Path, inputs: Tensor) -> Reader:
    openvino = _needs("openvino")
    converted = openvino.convert_model(_exported(model, inputs))
    try:
        openvino.save_model(converted, str(path), compress_to_fp16=False)
    except RuntimeError as problem:  # its own words don't say which file, nor why
        raise OSError(
            errno.EIO, "openvino could not save it: no room or no permission"
        ) from problem
    # By itself it computes in bf16 where the processor can: that would be checked, not the export.
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: torch.from_numpy(compiled(images.numpy())[0])


WRITERS: dict[str, Callable[[Model, Path, Tensor], Reader]] = {
    "smp": _write_smp,
    "torch": _write_torch,
    "onnx": _write_onnx,
    "openvino": _write_openvino,
}
