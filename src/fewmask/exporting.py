"""A run's model in other formats, each checked against the original on real inputs.

All but smp take images [B,3,S,S] of values 0 to 1 (RGB, S the run's --size) and give logits
[B,n_logits,S,S]; the normalisation is inside. smp's takes normalised images, as smp's models do.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor

from fewmask import decoders
from fewmask.checkpoint import save_weights
from fewmask.data.sources import MaskOptions, open_images, open_pairs
from fewmask.engines import WRITERS as RUNTIMES
from fewmask.engines import Writer, write_int8
from fewmask.engines.checking import TOLERANCE, difference, drop_of_int8
from fewmask.engines.opening import CALIBRATION, network_inputs
from fewmask.engines.runtimes import exported, library_errors
from fewmask.files import refused, write_json_atomic
from fewmask.inference import Model, Network, load_run, own_folder
from fewmask.settings import ExportSettings
from fewmask.types import UserError

SAMPLES = 4
BY_ENDING = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch", "": "smp"}


def export(settings: ExportSettings) -> Path:
    """Write the export and read it back; it is kept only if it gives the original's logits.

    In int8 it cannot: what it loses is said on standard error. Raises UserError where a package is
    missing, the images to check it on are gone, or the two differ.
    """
    out = Path(settings.out)
    kind = _format(settings, out)
    model = load_run(settings.run)
    inputs = real_inputs(model, settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    _remove(partial)
    try:
        with library_errors(f"{model.run}: cannot be exported as {kind}"):
            _write(model, kind, partial, inputs, int8=settings.int8)
        weights = partial.with_suffix(".bin")
        if kind == "openvino" and weights.exists():
            os.replace(weights, out.with_suffix(".bin"))
        os.replace(partial, out)
    except OSError as problem:
        raise refused(out, problem) from problem
    finally:
        _remove(partial)
        _remove(partial.with_suffix(".bin"))
    return out


def _format(settings: ExportSettings, out: Path) -> str:
    """The format asked for. Raises UserError where there is none, or something in its place."""
    kind = settings.format or BY_ENDING.get(out.suffix.lower())
    if kind is None:
        raise UserError(
            f"{out}: no format goes by the ending {out.suffix}. Pass --format {', '.join(WRITERS)}"
        )
    if kind == "openvino" and out.suffix != ".xml":  # OpenVINO itself writes to no other
        raise UserError(f"{out}: an openvino export is an .xml file. Give --out the ending .xml")
    if settings.int8 and kind != "openvino":
        raise UserError(f"{out}: --int8 is for openvino. Give --out the ending .xml")
    for path in (out, *([out.with_suffix(".bin")] if kind == "openvino" else [])):
        if path.exists():
            raise UserError(f"{path}: exists. Choose another --out")
    own_folder(out, set())
    return kind


def _write(model: Model, kind: str, path: Path, inputs: Tensor, *, int8: bool) -> None:
    """Write the file and check it; in int8 say what it costs."""
    if int8:
        network = write_int8(model.segmenter, path, inputs)
        print(drop_of_int8(model, network, inputs).sentence(), file=sys.stderr)
    else:
        compare(model, WRITERS[kind](model, path, inputs), inputs, kind)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def real_inputs(model: Model, settings: ExportSettings) -> Tensor:
    """A few of the run's own pictures (or of --images), as the network sees them: [n,3,S,S]."""
    if settings.images is not None:
        items = open_images(settings.images).items
    else:
        told = model.described["options"]
        try:
            pairs = open_pairs(told["src"], MaskOptions(border=told["border"]))
        except UserError as mistake:
            raise UserError(
                f"{model.run}: an export is checked on the run's own images ({mistake}). Bring "
                "them back, or name others as --images"
            ) from None
        items = [pair.image for pair in pairs.items]
    most = CALIBRATION if settings.int8 else SAMPLES
    return network_inputs(model, items, int8=settings.int8, most=most)


def compare(model: Model, network: Network, inputs: Tensor, name: str) -> None:
    """Raises UserError unless the export's logits are the original's."""
    far = difference(model, network, inputs)
    if not far < TOLERANCE:
        raise UserError(
            f"the {name} export differs from the original by {far:.2g} of the logits' spread "
            f"(at most {TOLERANCE:g} is allowed); nothing was written. Choose another --format"
        )


def _write_smp(model: Model, path: Path, _: Tensor) -> Network:
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


def _write_torch(model: Model, path: Path, inputs: Tensor) -> Network:
    written = io.BytesIO()
    with warnings.catch_warnings():
        # Of weights in channels-last order; that they come back whole is checked below.
        warnings.simplefilter("ignore", UserWarning)
        torch.export.save(exported(model.segmenter, inputs), written)
    path.write_bytes(written.getbuffer())
    with path.open("rb") as file:
        opened: Network = torch.export.load(file).module()
    return opened


def _by(write: Writer) -> Callable[[Model, Path, Tensor], Network]:
    return lambda model, path, images: write(model.segmenter, path, images)


WRITERS: dict[str, Callable[[Model, Path, Tensor], Network]] = {
    "smp": _write_smp,
    "torch": _write_torch,
    **{kind: _by(write) for kind, write in RUNTIMES.items()},
}
