"""Images -> logits -> masks: what evaluate, predict, the study and the exports share."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional

from fewmask.augment import to_unit
from fewmask.checkpoint import read_weights
from fewmask.data import classes
from fewmask.data.cache import in_order
from fewmask.data.images import resize_image
from fewmask.data.items import ImageItem
from fewmask.files import reading, write_bytes_atomic
from fewmask.runs import read_split
from fewmask.sealed import read_sealed
from fewmask.segmentation import Geometry, Segmenter, described_by, predicted, rebuild
from fewmask.types import Colour, Labels, UserError

Pixels = NDArray[np.uint8]

BATCH = 16
PORTION = 4
"""Images that PyTorch takes at once on a CPU: the maps of more fall out of its caches (ResNet-18
U-Net, 256 px, one core: 10 images/s in fours, 7 in sixteens)."""
LEGEND = "legend.png"
_MEND = "Bring the file back, or remove the run's result.json and fine-tune it again"


Network = Callable[[Tensor], Tensor]
"""Images float32 [B,3,S,S] of 0 to 1 -> logits [B,C,S,S]: a Segmenter, or an engine's own."""


@dataclass(frozen=True)
class Model:
    """A trained model as a run folder holds it."""

    labels: Labels
    geometry: Geometry
    described: dict[str, Any]
    run: Path
    device: torch.device

    @cached_property
    def segmenter(self) -> Segmenter:
        """The network with its weights, ready to predict; built when it is first asked for.

        An engine that was made ready does without: building takes seconds, most of them imports.
        Raises UserError where the weights, or what the run says of itself, cannot be read.
        """
        with _telling(self.run / "model.json"):
            segmenter, _ = rebuild(self.described)
        try:
            segmenter.network.load_state_dict(read_weights(self.run / "model.safetensors"))
        except (ValueError, KeyError, TypeError, RuntimeError) as problem:
            why = str(problem).split("\n")[0]
            raise UserError(
                f"{self.run}: its model cannot be read ({why}). Fine-tune it again"
            ) from None
        return segmenter.to(self.device).eval()


def load_run(run: str | Path, device: torch.device | str = "cpu") -> Model:
    """The model of a fine-tuning run, its network built and ready to predict.

    Raises UserError where the folder is not such a run, is one that has not finished, or cannot be
    read.
    """
    model = open_run(run, device)
    _ = model.segmenter
    return model


def open_run(run: str | Path, device: torch.device | str = "cpu") -> Model:
    """As `load_run`, but the network and its weights are left until they are asked for."""
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{run}: no such folder; expected the --out of a fewmask finetune")
    missing = [n for n in ("model.json", "model.safetensors") if not (folder / n).exists()]
    if missing:
        unfinished = (folder / "config.toml").exists() and not (folder / "result.json").exists()
        mend = "Run its command again to finish it" if unfinished else "Name one"
        if (folder / "result.json").exists() and (folder / "split.json").exists():
            mend = _MEND
        raise UserError(f"{run}: holds no {missing[-1]} of a fine-tuning run. {mend}")
    path = folder / "model.json"
    with reading(path, _MEND):
        described = read_sealed(path)
    with _telling(path):
        _, labels, geometry = described_by(described)
    return Model(labels, geometry, described, folder, torch.device(device))


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """As `reading`; faults that don't name the file, of unknown names in it, do so as well."""
    try:
        with reading(path, ""):
            yield
    except UserError as mistake:
        start = f"{path}: "
        told = (fault if fault.startswith(start) else start + fault for fault in mistake.faults)
        raise UserError(*(f"{fault.rstrip('. ')}. {_MEND}" for fault in told)) from None


def trained_hashes(run: Path) -> frozenset[str]:
    """The hashes of the pictures that a fine-tuning run was trained and validated on."""
    if not (run / "split.json").is_file():
        return frozenset()
    mend = f"{_MEND}; until then it is not known which pictures are labelled"
    return frozenset(one["image"] for part in read_split(run, mend).values() for one in part)


@dataclass(frozen=True)
class Framed:
    """An image uint8 [H,W,3], as the network sees it uint8 [S,S,3], and the height and width of the
    part of that which is no padding."""

    pixels: Pixels
    small: Pixels
    valid: tuple[int, int]


def frame(pixels: Pixels, geometry: Geometry) -> Framed:
    """An image squashed or padded as those were that the network was trained on."""
    return Framed(pixels, *resize_image(pixels, geometry.size, geometry.resize))


def logits_of(
    network: Network, images: Iterable[Framed], device: torch.device
) -> Iterator[tuple[Pixels, Tensor]]:
    """Each image [H,W,3] and its logits [C,H,W], at the image's own resolution, on the CPU.

    The logits, not the mask, are brought to the image's resolution (bilinear, pixel centres).
    """
    source = iter(images)
    while chunk := list(islice(source, BATCH)):
        batch = torch.from_numpy(np.stack([one.small for one in chunk]))
        # Not around the yields: a caller that stops half-way would be left in inference mode.
        with torch.inference_mode():
            pixels = to_unit(batch.permute(0, 3, 1, 2).to(device))
            parts = torch.split(pixels, _portion(network, device))
            logits = torch.cat([network(part) for part in parts])
        for own, one in zip(logits, chunk, strict=True):
            height, width = one.valid
            with torch.inference_mode():
                sized = functional.interpolate(
                    own[None, :, :height, :width],
                    size=one.pixels.shape[:2],
                    mode="bilinear",
                    align_corners=False,
                )[0].cpu()
            yield one.pixels, sized


def _portion(network: Network, device: torch.device) -> int:
    """Images that a network gets at once: of PyTorch's few on a CPU, of engines the whole batch."""
    return PORTION if device.type == "cpu" and isinstance(network, nn.Module) else BATCH


def own_folder(out: Path, names: set[str]) -> None:
    """Raises UserError where `out` is a file, lies under one, or holds more than `names`."""
    inside = next(path for path in (out, *out.parents) if path.exists())
    if not inside.is_dir():
        which = "is a file" if inside == out else f"{inside} is a file"
        raise UserError(f"{out}: {which}. Choose another --out")
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    others = sorted(found - names)
    if found == {"masks"}:  # half of what we write, or somebody's own masks
        others = ["masks"]
    if others:
        raise UserError(
            f"{out}: holds {others[0]}, which this command did not write. Choose another --out"
        )


def decoded_logits(
    network: Network,
    geometry: Geometry,
    items: Iterable[ImageItem],
    device: torch.device,
    workers: int | None = None,
) -> Iterator[tuple[Pixels, Tensor]]:
    """(image [H,W,3], its logits [C,H,W]) of each item, in order; `workers` threads decode."""

    def decode(item: ImageItem) -> Framed:
        return frame(item.pixels(), geometry)

    return logits_of(network, in_order(decode, items, workers, ahead=BATCH), device)


def masks_of(
    model: Model,
    stems: Sequence[str],
    items: Sequence[ImageItem],
    device: torch.device,
    workers: int | None = None,
) -> Iterator[tuple[str, Pixels, Pixels]]:
    """(stem, image [H,W,3], class ids [H,W]) of each image, in order."""
    stream = decoded_logits(model.segmenter, model.geometry, items, device, workers)
    for stem, (pixels, logits) in zip(stems, stream, strict=True):
        yield stem, pixels, predicted(logits).numpy()


def save_picture(path: Path, pixels: Pixels | Image.Image) -> None:
    """A PNG (or JPEG, by the ending), with its folder."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    encoded = io.BytesIO()
    picture.save(encoded, format="JPEG" if path.suffix == ".jpg" else "PNG")
    write_bytes_atomic(path, encoded.getvalue())


def save_mask(path: Path, mask: Pixels) -> None:
    """Class ids uint8 [H,W] as a grey PNG, which every reader gives back as numbers.

    (A palette would look better in a viewer, but some readers turn it into colours; the overlays
    are there to look at.)
    """
    save_picture(path, mask)


def save_legend(path: Path, labels: Labels, *more: tuple[str, Colour]) -> None:
    """A PNG of the classes' colours and names, and of `more` of them."""
    named = [*zip(labels.names, classes.colours(labels), strict=True), *more]
    entries = [(" ".join(name.split()), colour) for name, colour in named]
    font = ImageFont.load_default(14)
    width = 44 + max(math.ceil(font.getlength(name)) for name, _ in entries)
    picture = Image.new("RGB", (width, 8 + 22 * len(entries)), "white")
    draw = ImageDraw.Draw(picture)
    for i, (name, colour) in enumerate(entries):
        top = 8 + 22 * i
        draw.rectangle((8, top, 22, top + 14), fill=colour, outline=(128, 128, 128))
        draw.text((32, top + 7), name, fill="black", font=font, anchor="lm")
    save_picture(path, picture)
