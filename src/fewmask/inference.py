"""Images -> logits -> masks: what evaluate, predict, the study and the exports share."""

from __future__ import annotations

import io
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import methodcaller
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from fewmask.augment import to_unit
from fewmask.checkpoint import read_weights
from fewmask.data import classes
from fewmask.data.cache import in_order
from fewmask.data.images import Undecodable, resize_image
from fewmask.data.sources import ImageItem, open_file, open_images
from fewmask.files import write_bytes_atomic
from fewmask.progress import progress
from fewmask.segmentation import Geometry, Segmenter, predicted, rebuild
from fewmask.settings import PredictSettings
from fewmask.types import Colour, Labels, PredictResult, UserError

Pixels = NDArray[np.uint8]

BATCH = 16
LEGEND = "legend.png"


@dataclass(frozen=True)
class Model:
    """A trained model as a run folder holds it."""

    segmenter: Segmenter
    geometry: Geometry
    described: dict[str, Any]
    run: Path


def load_run(run: str | Path, device: torch.device | str = "cpu") -> Model:
    """The model of a fine-tuning run, ready to predict.

    Raises UserError where the folder is not such a run, or is one that has not finished.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{run}: no such folder; expected the --out of a fewmask finetune")
    missing = [n for n in ("model.json", "model.safetensors") if not (folder / n).exists()]
    if missing:
        unfinished = (folder / "config.toml").exists() and not (folder / "result.json").exists()
        mend = "Run its command again to finish it" if unfinished else "Name one"
        raise UserError(f"{run}: holds no {missing[-1]} of a fine-tuning run. {mend}")
    try:
        described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        segmenter, geometry = rebuild(described)
        segmenter.network.load_state_dict(read_weights(folder / "model.safetensors"))
    except (ValueError, KeyError, TypeError, RuntimeError) as problem:
        why = str(problem).split("\n")[0]
        raise UserError(f"{run}: its model cannot be read ({why}). Fine-tune it again") from None
    return Model(segmenter.to(device).eval(), geometry, described, folder)


def logits_of(
    segmenter: Segmenter, geometry: Geometry, images: Iterable[Pixels], device: torch.device
) -> Iterator[Tensor]:
    """The logits [C,H,W] of each image uint8 [H,W,3], at the image's own resolution, on the CPU.

    The network sees each image as it saw those it was trained on (squashed, or padded), and the
    logits, not the mask, are brought to the image's resolution (bilinear, pixel centres).
    """
    source = iter(images)
    while chunk := list(islice(source, BATCH)):
        seen = [resize_image(pixels, geometry.size, geometry.resize) for pixels in chunk]
        batch = torch.from_numpy(np.stack([pixels for pixels, _ in seen]))
        # Not around the yields: a caller that stops half-way would be left in inference mode.
        with torch.inference_mode():
            logits = segmenter(to_unit(batch.permute(0, 3, 1, 2).to(device)))
        for own, (_, (height, width)), pixels in zip(logits, seen, chunk, strict=True):
            with torch.inference_mode():
                sized = functional.interpolate(
                    own[None, :, :height, :width],
                    size=pixels.shape[:2],
                    mode="bilinear",
                    align_corners=False,
                )[0].cpu()
            yield sized


def predict(settings: PredictSettings) -> PredictResult:
    """Masks and overlays of all images named, in files beside each other by stem.

    Of more than two classes also `legend.png`, their colours.

    Raises UserError for what cannot be read, before anything is written.
    """
    from fewmask.devices import pick_device

    device = pick_device(settings.device)
    out = Path(settings.out)
    own_folder(out, {"masks", "overlays", LEGEND})
    model = load_run(settings.run, device)
    found = named_images(settings.paths)
    labels = model.segmenter.labels
    colours = classes.colours(labels)
    if labels.n_classes > 2:
        save_legend(out / LEGEND, labels)
    masks: list[Path] = []
    overlays: list[Path] = []
    with progress("predicting") as report:
        stems, items = zip(*found, strict=True)
        for stem, pixels, mask in masks_of(model, stems, items, device, settings.workers):
            masks.append(out / "masks" / f"{stem}.png")
            overlays.append(out / "overlays" / f"{stem}.png")
            save_mask(masks[-1], mask)
            save_picture(overlays[-1], overlay(pixels, mask, colours))
            report(len(masks), len(found))
    return PredictResult(out, tuple(masks), tuple(overlays))


def own_folder(out: Path, names: set[str]) -> None:
    """Raises UserError where `out` is a file, lies under one, or holds more than `names`."""
    inside = next(path for path in (out, *out.parents) if path.exists())
    if not inside.is_dir():
        raise UserError(f"{out}: {inside} is a file. Choose another --out")
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    others = sorted(found - names)
    if found == {"masks"}:  # half of what we write, or somebody's own masks
        others = ["masks"]
    if others:
        raise UserError(
            f"{out}: holds {others[0]}, which this command did not write. Choose another --out"
        )


def decoded_logits(
    segmenter: Segmenter,
    geometry: Geometry,
    items: Iterable[ImageItem],
    device: torch.device,
    workers: int | None = None,
) -> Iterator[tuple[Pixels, Tensor]]:
    """(image [H,W,3], its logits [C,H,W]) of each item, in order; `workers` threads decode."""
    held: deque[Pixels] = deque()

    def decoded() -> Iterator[Pixels]:
        for pixels in in_order(methodcaller("pixels"), items, workers, ahead=BATCH):
            held.append(pixels)
            yield pixels

    for logits in logits_of(segmenter, geometry, decoded(), device):
        yield held.popleft(), logits


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


def named_images(paths: Sequence[str]) -> list[tuple[str, ImageItem]]:
    """(path without its ending, below `masks/`; image) of all files, and of all in folders.

    Raises UserError with every file that is missing, cannot be decoded, or whose mask would have
    the name of another's.
    """
    if not paths:
        raise UserError("PATH is missing; name image files or folders")
    found: list[tuple[str, ImageItem]] = []
    faults: list[str] = []
    for path in paths:
        try:
            single = Path(path).is_file()
            if not Path(path).exists() and ":" not in path:
                raise UserError(f"{path}: no such file or folder. Mend the path")
            items = [open_file(path)] if single else open_images(path).items
            for item in items:
                name = PurePosixPath(item.name)
                found.append((name.stem if single else str(name.with_suffix("")), item))
        except UserError as mistake:
            faults.extend(mistake.faults)
    first: dict[str, ImageItem] = {}
    for stem, item in found:
        if stem in first:
            faults.append(
                f"{item.where}: its mask would be {stem}.png, as that of {first[stem].where}. "
                "Predict the two into different --out folders"
            )
        first.setdefault(stem, item)
        try:
            item.pixels()
        except Undecodable as problem:
            faults.append(f"{problem.where}: cannot be decoded ({problem.reason}). Remove it")
    if faults:
        raise UserError(*faults)
    return found


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


def overlay(pixels: Pixels, mask: Pixels, colours: Sequence[Colour]) -> Pixels:
    """The image uint8 [H,W,3] with each class tinted and outlined in its colour, but for black."""
    painted = np.array(colours, np.uint8)[mask]
    inside: NDArray[np.bool_] = np.any(painted, axis=2)
    tinted = np.where(inside[..., None], 0.55 * pixels + 0.45 * painted, pixels).astype(np.uint8)
    drawn = edges(mask) & inside
    return np.where(drawn[..., None], painted, tinted).astype(np.uint8)


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


def edges(mask: Pixels) -> NDArray[np.bool_]:
    """Pixels that touch another class."""
    padded = np.pad(mask, 1, mode="edge")
    centre = padded[1:-1, 1:-1]
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    touching = np.any([centre != side for side in around], axis=0)
    found: NDArray[np.bool_] = touching
    return found
