"""Folders of images, and folders of images/ and masks/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from fewmask.data.items import ImageFile
from fewmask.data.listing import FileList, walk
from fewmask.data.parquet import read_parquet, train_files
from fewmask.data.shards import open_tars
from fewmask.data.sources import ImageSet, MaskOptions, Pair, PairSet
from fewmask.data.table import read_table
from fewmask.types import UserError


def images(src: str, root: Path) -> ImageSet:
    """A folder of images; a pairs folder stands for its images. Class folders give labels.

    Where there are no image files: of tar files, or of parquet files.
    """
    inside = root / "images" if (root / "images").is_dir() and (root / "masks").is_dir() else root
    found, others = walk(inside)
    pool = root.resolve().name or "images"
    if not found:
        return _sharded(src, root, pool, others)
    labels, names = class_folders(found)
    return ImageSet(src, pool, found, labels, names, others)


def _sharded(src: str, root: Path, pool: str, others: int) -> ImageSet:
    tars = sorted(root.rglob("*.tar"))
    if tars:
        packed = open_tars(root, tars)
        if not len(packed):
            raise UserError(f"{src}: its {len(tars)} tar files hold no images. Name others")
        labels, names = _numbered(packed.labels())
        others -= len(tars)
        return ImageSet(src, pool, packed, labels, names, others, packed.shards())
    files = train_files(root)
    if not files:
        raise UserError(
            f"{src}: holds no images ({others} other files), nor tar or parquet files of them. "
            "Name a folder of images"
        )
    items, numbers, shards = read_parquet(files)
    labels, names = _numbered(numbers)
    return ImageSet(src, pool, items, labels, names, others - len(files), shards)


def _numbered(labels: tuple[int, ...] | None) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Labels and names of classes that are numbers; none where there are fewer than two."""
    used = sorted(set(labels or ()))
    if labels is None or len(used) < 2:
        return None, ()
    place = {label: i for i, label in enumerate(used)}
    return tuple(place[label] for label in labels), tuple(map(str, used))


def class_folders(items: FileList) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Labels by the folder that each image lies in, where all lie in two or more folders.

    Of a single folder below the root there is its name alone.
    """
    table = items.table
    used = np.unique(table.folder_of).tolist()
    parents = {folder: PurePosixPath(table.folders[folder]).name for folder in used}
    names = sorted(set(parents.values()))
    if "" in names or len(names) < 2:
        return None, () if "" in names else tuple(names)
    classes = np.zeros(len(table.folders), np.int64)
    for folder, name in parents.items():
        classes[folder] = names.index(name)
    return tuple(classes[table.folder_of].tolist()), tuple(names)


def pairs(src: str, root: Path, options: MaskOptions) -> PairSet:
    """A folder of images/ and masks/, matched by path without its ending.

    Its class_dict.csv, where there is one, names the classes and their colours.
    """
    missing = [name for name in ("images", "masks") if not (root / name).is_dir()]
    if missing:
        raise UserError(
            f"{src}: has no {' and no '.join(name + '/' for name in missing)}; a pairs folder "
            "holds images/ and masks/, matched by file name without its ending"
        )
    images, others = walk(root / "images")
    masks, more = walk(root / "masks")
    if not images and not masks:
        raise UserError(f"{src}: images/ and masks/ hold no images ({others + more} other files)")
    table = read_table(root)
    drawn: Sequence[ImageFile] = masks
    if table is not None:
        drawn = [replace(mask, table=table) for mask in masks]
    items, faults = match(images, drawn, "masks/")
    pool = root.resolve().name or "pairs"
    return PairSet(src, pool, items, faults, options, None, others + more, table)


def match(
    images: Sequence[ImageFile], masks: Sequence[ImageFile], mask_folder: str
) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Pairs in order of name, and every image and mask that stays alone or is there twice."""
    faults: list[str] = []
    by_stem = [_by_stem(images, "image", faults), _by_stem(masks, "mask", faults)]
    pictures, drawn = by_stem
    for stem in sorted(pictures.keys() - drawn.keys()):
        faults.append(
            f"{pictures[stem].where}: has no mask; expected {mask_folder}{stem}.png. "
            "Add it, or remove the image"
        )
    for stem in sorted(drawn.keys() - pictures.keys()):
        faults.append(f"{drawn[stem].where}: has no image of this name. Add it, or remove the mask")
    both = sorted(pictures.keys() & drawn.keys())
    return tuple(Pair(stem, pictures[stem], drawn[stem]) for stem in both), tuple(faults)


def _by_stem(items: Sequence[ImageFile], kind: str, faults: list[str]) -> dict[str, ImageFile]:
    found: dict[str, ImageFile] = {}
    for item in items:
        stem = str(PurePosixPath(item.name).with_suffix(""))
        if stem in found:
            faults.append(
                f"{item.where}: a second {kind} called {stem}, beside {found[stem].where}. "
                "Remove or rename one"
            )
        found.setdefault(stem, item)
    return found
