"""Everything that `fewmask suggest` leaves in its folder but result.json."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image

from fewmask.data.cache import in_order
from fewmask.data.classes import colour, colours
from fewmask.data.images import Pixels
from fewmask.data.items import ImageItem
from fewmask.data.sources import PairSet
from fewmask.files import write_bytes_atomic, write_text_atomic
from fewmask.inference import Model, masks_of, save_mask, save_picture
from fewmask.overlays import overlay
from fewmask.probing.pictures import write_table
from fewmask.progress import Report
from fewmask.suggesting import cvat, label_studio, sheet
from fewmask.types import Colour, Suggestion

SHOWN_AS_IS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}
"""Formats that browsers show, and with them the labelling tools."""
ORIENTATION = 0x0112
"""The EXIF tag of a picture that is to be turned."""
SCORES = ("typicality", "distance", "uncertainty")


Drafted = tuple[Pixels, Pixels | None]
"""An image [H,W,3], and class ids [H,W] where a model drew some."""


@dataclass(frozen=True)
class Heading:
    """The contact sheet's two lines, and the name under which drafts are shown."""

    title: str
    below: str
    made_by: str = ""


@dataclass(frozen=True)
class Classes:
    """Names and colours of the classes, the background first."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]


def known_classes(model: Model | None, pairs: PairSet | None) -> Classes:
    """The run's classes, or else those that the pairs name; one class "object" otherwise."""
    if model is not None:
        labels = model.labels
        return Classes(tuple(labels.names), tuple(colours(labels)))
    names: tuple[str, ...] = ("background", "object")
    if pairs is not None and pairs.labels is not None:
        names = pairs.labels.names
    elif pairs is not None and pairs.table is not None:
        names = tuple(pairs.table.names)
    return Classes(names, tuple(colour(k) for k in range(len(names))))


def stems(names: Sequence[str]) -> list[str]:
    """A file name without ending for each image's name: no folders, nothing odd, none twice."""
    taken: set[str] = set()
    found = []
    for name in names:
        flat = "__".join(PurePosixPath(name).with_suffix("").parts)
        plain = "".join(c if c.isprintable() and c not in '<>:"|?*\\#%&/' else "_" for c in flat)
        stem, number = plain, 2
        while stem.lower() in taken:  # some disks don't tell A from a
            stem, number = f"{plain}-{number}", number + 1
        taken.add(stem.lower())
        found.append(stem)
    return found


def decoded(
    items: Sequence[ImageItem],
    model: Model | None,
    device: torch.device,
    workers: int | None = None,
) -> Iterator[Drafted]:
    """(image [H,W,3], the model's class ids [H,W] or None) of each item, in order."""
    if model is None:
        for pixels in in_order(methodcaller("pixels"), items, workers, ahead=16):
            yield pixels, None
        return
    names = [item.name for item in items]
    for _, pixels, mask in masks_of(model, names, items, device, workers):
        yield pixels, mask


def write_files(
    out: Path,
    suggested: Sequence[Suggestion],
    items: Sequence[ImageItem],
    drafted: Iterable[Drafted],
    classes: Classes,
    heading: Heading,
    report: Report,
) -> None:
    """The list, the pictures, the contact sheet, and what the labelling tools take.

    `items` are the suggested images, `drafted` what `decoded` gives of them.
    """
    tasks: list[dict[str, Any]] = []
    drawn: list[cvat.Drawn] = []
    thumbs: list[sheet.Thumb] = []
    for one, item, (pixels, mask) in zip(suggested, items, drafted, strict=True):
        file = PurePosixPath(one.image).name
        _write_image(out / one.image, item, pixels)
        shown, drafts = pixels, None
        if mask is not None:
            save_mask(out / "masks" / f"{PurePosixPath(file).stem}.png", mask)
            drafts = label_studio.regions(mask, classes.names, one.rank)
            shown = overlay(pixels, mask, classes.colours)
        about = {"rank": one.rank, "name": readable(one.name), "method": one.method}
        tasks.append(label_studio.task(file, about, drafts, heading.made_by))
        drawn.append((file, (pixels.shape[0], pixels.shape[1]), mask))
        thumbs.append(sheet.Thumb(sheet.small(shown), one.name, words(one)))
        report(len(tasks), len(items))
    write_table(out / "suggested.csv", [row(one) for one in suggested])
    names, painted = classes.names, classes.colours
    write_text_atomic(out / "label_studio.json", label_studio.tasks_json(tasks))
    write_text_atomic(out / "label_studio.xml", label_studio.interface(names, painted))
    write_text_atomic(out / "cvat.xml", cvat.annotations_xml(drawn, names, painted))
    write_text_atomic(out / "cvat_labels.json", cvat.labels_json(names, painted))
    write_text_atomic(out / "class_dict.csv", cvat.class_table(names, painted))
    picture = sheet.contact_sheet(thumbs, heading.title, heading.below)
    save_picture(out / "contact_sheet.png", picture)


def suffix_of(item: ImageItem) -> str:
    """The ending of an image's copy: its format's own where it is copied as it is, or else .png.

    Formats that browsers don't show become PNGs, and so does what its EXIF turns, for not every
    tool turns it.
    """
    return _as_is(item.read()) or ".png"


def _as_is(data: bytes) -> str | None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(ORIENTATION, 1) != 1
            return None if turned else SHOWN_AS_IS.get(image.format or "")
    except (OSError, ValueError, SyntaxError):  # bare pixels, such as a row of CIFAR-10
        return None


def _write_image(path: Path, item: ImageItem, pixels: Pixels) -> None:
    data = item.read()
    if _as_is(data):
        write_bytes_atomic(path, data)
    else:
        save_picture(path, pixels)


def row(one: Suggestion) -> dict[str, Any]:
    """A suggestion as suggested.csv holds it; what its method doesn't measure is empty."""
    numbers = {
        name: "" if getattr(one, name) is None else f"{getattr(one, name):.6g}" for name in SCORES
    }
    clusters = {
        name: "" if getattr(one, name) is None else getattr(one, name)
        for name in ("cluster", "cluster_size")
    }
    return {
        "rank": one.rank,
        "name": readable(one.name),
        "path": readable(one.path),
        "image": one.image,
        "method": one.method,
        **numbers,
        **clusters,
    }


def words(one: Suggestion) -> str:
    """What spoke for a suggestion, for the contact sheet."""
    parts = [
        f"{name} {getattr(one, name):.2f}" for name in SCORES if getattr(one, name) is not None
    ]
    if one.cluster is not None:
        parts.append(f"1 of {one.cluster_size}")
    return ", ".join(parts) or one.method


def readable(text: str) -> str:
    """A file's name as UTF-8 can hold it."""
    return text.encode("utf-8", "backslashreplace").decode()
