"""predict: image files in, masks and overlays out, decoding and encoding beside the network."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import tee
from pathlib import Path, PurePosixPath

import torch

from fewmask.data import classes
from fewmask.data.cache import in_order
from fewmask.data.images import Undecodable, format_of
from fewmask.data.items import ImageItem
from fewmask.data.looks import cannot
from fewmask.data.sources import open_file, open_images
from fewmask.devices import pick_device
from fewmask.engines import Engine, Wanted, open_engine
from fewmask.inference import (
    BATCH,
    LEGEND,
    Framed,
    Pixels,
    frame,
    logits_of,
    open_run,
    own_folder,
    save_legend,
    save_mask,
    save_picture,
)
from fewmask.overlays import overlay
from fewmask.progress import progress
from fewmask.runs import config_of
from fewmask.sealed import write_sealed_toml
from fewmask.segmentation import Geometry, predicted
from fewmask.settings import PredictSettings
from fewmask.types import Colour, PredictResult, UserError

Named = tuple[str, ImageItem]
"""(path without its ending, below masks/; the image)."""


def predict(settings: PredictSettings) -> PredictResult:
    """Masks and overlays of all images named, in files beside each other by stem.

    Of more than two classes also `legend.png`, their colours.

    Raises UserError for a path that is missing, a name that stands twice, or a model that cannot be
    read, before anything is written; and at the end for images that cannot be decoded: the masks of
    all others are there.
    """
    by_cpu = settings.int8 or settings.engine in ("onnx", "openvino")
    device = pick_device("cpu" if by_cpu else settings.device)
    out = Path(settings.out)
    own_folder(out, {"config.toml", "masks", "overlays", LEGEND})
    model = open_run(settings.run, device)
    found = named_images(settings.paths)
    items = [item for _, item in found]
    wanted = Wanted(settings.engine, settings.precision, settings.int8)
    engine = open_engine(model, wanted, items=items, device=device)
    if engine.drop is not None:
        print(engine.drop.sentence(), file=sys.stderr)
    # Marks the folder as ours, should only masks/ follow.
    write_sealed_toml(out / "config.toml", config_of(settings))
    labels = model.labels
    if labels.n_classes > 2:
        save_legend(out / LEGEND, labels)
    colours = classes.colours(labels) if settings.overlays else None
    faults: list[str] = []
    stems: list[str] = []
    with progress(f"predicting ({engine.name})") as report:
        images = _readable(found, model.geometry, settings.workers, faults)
        stream = _masks(engine, images, device)
        # What is computed waits for its place on the disk in few pictures, which may be large.
        for stem in in_order(partial(_save, out, colours), stream, settings.workers, ahead=8):
            stems.append(stem)
            report(len(stems) + len(faults), len(found))
    if faults:
        if stems:
            print(f"{out}: holds the masks of the other {len(stems)} images", file=sys.stderr)
        raise UserError(*faults)
    return PredictResult(
        out=out,
        masks=tuple(out / "masks" / f"{stem}.png" for stem in stems),
        overlays=tuple(out / "overlays" / f"{stem}.png" for stem in stems if settings.overlays),
        engine=engine.name,
    )


def _readable(
    found: Sequence[Named], geometry: Geometry, workers: int | None, faults: list[str]
) -> Iterator[tuple[str, Framed]]:
    """(stem, image) of what can be decoded; what cannot is added to `faults`."""

    def decode(one: Named) -> tuple[str, Framed] | Undecodable:
        try:
            return one[0], frame(one[1].pixels(), geometry)
        except Undecodable as problem:
            return problem

    for one in in_order(decode, found, workers, ahead=BATCH):
        if isinstance(one, Undecodable):
            faults.append(cannot(one))
        else:
            yield one


def _masks(
    engine: Engine, images: Iterator[tuple[str, Framed]], device: torch.device
) -> Iterator[tuple[str, Pixels, Pixels]]:
    """(stem, image [H,W,3], class ids [H,W]) of each image, in order."""
    stems, pictures = tee(images)
    stream = logits_of(engine.network, (one for _, one in pictures), device)
    # The stream first: of images it takes a batch before it gives the first one's logits.
    for (pixels, logits), (stem, _) in zip(stream, stems, strict=True):
        yield stem, pixels, predicted(logits).numpy()


def _save(out: Path, colours: Sequence[Colour] | None, one: tuple[str, Pixels, Pixels]) -> str:
    stem, pixels, mask = one
    save_mask(out / "masks" / f"{stem}.png", mask)
    if colours is not None:
        save_picture(out / "overlays" / f"{stem}.png", overlay(pixels, mask, colours))
    return stem


def named_images(paths: Sequence[str]) -> list[Named]:
    """All files, and all images in folders, by their names below `masks/`.

    Raises UserError with every file that is missing or no image, or whose mask would have the name
    of another's.
    """
    if not paths:
        raise UserError("PATH is missing; name image files or folders")
    found: list[Named] = []
    faults: list[str] = []
    for path in paths:
        try:
            found += _named(path)
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
    if faults:
        raise UserError(*faults)
    return found


def _named(path: str) -> list[Named]:
    if Path(path).is_file():
        item = open_file(path)
        if format_of(item.read()) is None:
            raise UserError(f"{path}: is no image. Take it out")
        return [(PurePosixPath(item.name).stem, item)]
    if not Path(path).exists() and ":" not in path:
        raise UserError(f"{path}: no such file or folder. Mend the path")
    if Path(path).exists() and not Path(path).is_dir():
        raise UserError(f"{path}: is no plain file. Name images, or folders of them")
    items = open_images(path).items
    return [(str(PurePosixPath(item.name).with_suffix("")), item) for item in items]
