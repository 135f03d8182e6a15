"""Folders of images, and folders of images/ and masks/."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from fewmask.data.sources import ImageFile, ImageSet, MaskOptions, Pair, PairSet
from fewmask.data.table import read_table
from fewmask.types import UserError

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")


def is_image(path: str) -> bool:
    """Whether a file says it is an image, by its ending or else by its first bytes.

    A file that says so but is none is not passed over: decoding it will name it.
    """
    if os.path.splitext(path)[1].lower() in SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    bmp = head[:2] == b"BM" and head[6:10] == bytes(4)  # many a text begins with BM
    return head.startswith(MAGIC) or webp or bmp


def walk(root: Path) -> tuple[list[ImageFile], int]:
    """All images below a folder in order of name, and the number of other files.

    Hidden files and folders are passed over; a folder is entered once, however many links lead
    to it. A link that leads nowhere is listed by its ending: reading it says what is wrong.
    """
    found, others = [], 0
    for path in _files(str(root), set()):
        if is_image(path):
            found.append(ImageFile(Path(os.path.relpath(path, root)).as_posix(), Path(path)))
        else:
            others += 1
    return sorted(found, key=lambda item: item.name), others


def _files(folder: str, entered: set[tuple[int, int]]) -> Iterator[str]:
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            return
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as problem:
        raise UserError(
            f"{folder}: cannot be listed ({problem.strerror}). Mend its permissions"
        ) from None
    for entry in listed:
        if entry.name.startswith("."):
            continue
        kind = _kind(entry)
        if kind == "folder":
            yield from _files(entry.path, entered)
        elif kind == "file":
            yield entry.path


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        # Opening a pipe or a socket would wait for ever.
        return "file" if entry.is_file() or entry.is_symlink() else "other"
    except OSError:  # a link to itself
        return "file"


def images(src: str, root: Path) -> ImageSet:
    """A folder of images; a pairs folder stands for its images. Class folders give labels."""
    inside = root / "images" if (root / "images").is_dir() and (root / "masks").is_dir() else root
    found, others = walk(inside)
    if not found:
        raise UserError(f"{src}: holds no images ({others} other files). Name a folder of images")
    labels, names = class_folders(found)
    return ImageSet(src, root.resolve().name or "images", found, labels, names, others)


def class_folders(items: list[ImageFile]) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Labels by the folder that each image lies in, where all lie in two or more folders."""
    parents = [PurePosixPath(item.name).parent.name for item in items]
    names = sorted(set(parents))
    if "" in names or len(names) < 2:
        return None, ()
    return tuple(names.index(parent) for parent in parents), tuple(names)


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
    if table is not None:
        masks = [replace(mask, table=table) for mask in masks]
    items, faults = match(images, masks, "masks/")
    pool = root.resolve().name or "pairs"
    return PairSet(src, pool, items, faults, options, None, others + more, table)


def match(
    images: list[ImageFile], masks: list[ImageFile], mask_folder: str
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


def _by_stem(items: list[ImageFile], kind: str, faults: list[str]) -> dict[str, ImageFile]:
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
