"""Looking at files once: each decoded whole, and what was seen remembered."""

from __future__ import annotations

import contextlib
import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from fewmask.data.cache import in_order, stamps
from fewmask.data.duplicates import SIDE, Thumbs, thumbnail
from fewmask.data.images import Pixels, Undecodable, format_of, limit_named
from fewmask.data.items import ImageItem
from fewmask.data.place import cache_root
from fewmask.data.sources import Pair, PairSet
from fewmask.files import write_atomic, write_json_atomic
from fewmask.types import UserError, is_text

Report = Callable[[int, int], None]
BLANK = np.zeros((SIDE, SIDE), np.uint8)


@dataclass(frozen=True)
class Seen:
    """One pair, decoded: what the check needs to know of it."""

    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    hash: str = ""
    thumb: str = ""
    values: tuple[tuple[int, int], ...] = ()
    """(value in the mask file, number of pixels)."""


def look_at(
    pairs: PairSet, progress: Report | None = None, workers: int | None = None
) -> list[Seen]:
    """Every pair decoded; remembered in the cache folder while the files stay as they are."""
    items = [item for pair in pairs.items for item in (pair.image, pair.mask)]
    more = (pairs.table.text,) if pairs.table else ()
    path = cache_root() / "checks" / f"{stamps(items, 'check', *more, *limit_named())}.json"
    remembered = _remembered(path, len(pairs.items))
    if remembered is not None:
        return remembered
    seen = []
    for one in in_order(_look, pairs.items, workers):
        seen.append(one)
        if progress:
            progress(len(seen), len(pairs.items))
    with contextlib.suppress(OSError, UserError):  # what cannot be remembered is looked at again
        write_json_atomic(path, [vars(one) for one in seen])
    return seen


def _remembered(path: Path, n: int) -> list[Seen] | None:
    """What an earlier check has seen; None where there is nothing, or nothing readable."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        seen = [Seen(**{k: _tuples(v) for k, v in row.items()}) for row in rows]
        readable = len(seen) == n == len(thumbnails(seen))
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return seen if readable else None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _look(pair: Pair) -> Seen:
    faults: list[str] = []
    warnings: list[str] = []
    pixels: Pixels | None = None
    values: Pixels | None = None
    if not is_text(pair.image.where):
        faults.append(f"{pair.image.where}: the name is no UTF-8. Rename image and mask")
    try:
        pixels = pair.image.pixels()
        warnings += odd_ending(pair.image)
    except Undecodable as problem:
        faults.append(cannot(problem))
    try:
        values = pair.mask.values()
    except Undecodable as problem:
        faults.append(cannot(problem))
    if pixels is not None and values is not None and pixels.shape[:2] != values.shape:
        turned = values.shape == pixels.shape[1::-1]
        hint = " (if its EXIF turns the image, turn the mask as well)" if turned else ""
        faults.append(
            f"{pair.mask.where}: {values.shape[1]} x {values.shape[0]} pixels, its image "
            f"{pixels.shape[1]} x {pixels.shape[0]}. Save the mask at its image's size{hint}"
        )
    counts = [] if values is None else np.bincount(values.ravel(), minlength=256).tolist()
    return Seen(
        faults=tuple(faults),
        warnings=tuple(warnings),
        hash="" if pixels is None else pixel_hash(pixels),
        thumb=_packed(BLANK if pixels is None else thumbnail(pixels)),
        values=tuple((value, n) for value, n in enumerate(counts) if n),
    )


def cannot(problem: Undecodable) -> str:
    """The fault of a file that cannot be read."""
    return f"{problem.where}: cannot be decoded ({problem.reason}). {problem.mend}"


def pixel_hash(pixels: Pixels) -> str:
    """A name for an image's size and pixels."""
    digest = blake2b(str(pixels.shape).encode(), digest_size=12)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _packed(thumb: Thumbs) -> str:
    return b64encode(thumb.tobytes()).decode()


def thumbnails(seen: Sequence[Seen]) -> Thumbs:
    """uint8 [N,48,48]. Raises ValueError where one is of another size."""
    rows = [np.frombuffer(b64decode(one.thumb), np.uint8).reshape(SIDE, SIDE) for one in seen]
    return np.stack(rows) if rows else np.empty((0, SIDE, SIDE), np.uint8)


# --- images without masks -------------------------------------------------------------------------


@dataclass(frozen=True)
class SeenImages:
    """A pool, decoded: `hashes` [N] of the pixels ("" where undecodable), `thumbs` uint8
    [N,48,48], and by row what is wrong or odd."""

    hashes: tuple[str, ...]
    thumbs: Thumbs
    faults: Mapping[int, str]
    warnings: Mapping[int, tuple[str, ...]]


def look_at_images(
    items: Sequence[ImageItem], progress: Report | None = None, workers: int | None = None
) -> SeenImages:
    """Every image decoded; remembered in the cache folder while the files stay as they are."""
    path = cache_root() / "checks" / f"{stamps(items, 'images seen', *limit_named())}.json"
    remembered = _remembered_images(path, len(items))
    if remembered is not None:
        return remembered
    hashes: list[str] = []
    faults: dict[int, str] = {}
    warnings: dict[int, tuple[str, ...]] = {}
    thumbs = np.zeros((len(items), SIDE, SIDE), np.uint8)
    for row, (fault, digest, odd, thumb) in enumerate(in_order(_look_at_image, items, workers)):
        hashes.append(digest)
        thumbs[row] = thumb
        faults |= {row: fault} if fault else {}
        warnings |= {row: tuple(odd)} if odd else {}
        if progress:
            progress(row + 1, len(items))
    seen = SeenImages(tuple(hashes), thumbs, faults, warnings)
    with contextlib.suppress(OSError, UserError):
        write_atomic(path.with_suffix(".npy"), lambda file: np.save(file, thumbs))
        told = {name: list(by_row.items()) for name, by_row in
                (("faults", faults), ("warnings", warnings))}  # fmt: skip
        write_json_atomic(path, {"hashes": hashes, **told})
    return seen


def _remembered_images(path: Path, n: int) -> SeenImages | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        thumbs = np.load(path.with_suffix(".npy"), mmap_mode="r")
        hashes = tuple(map(str, found["hashes"]))
        faults = {int(row): str(fault) for row, fault in found["faults"]}
        warnings = {int(row): tuple(map(str, odd)) for row, odd in found["warnings"]}
    except (OSError, EOFError, ValueError, TypeError, KeyError):
        return None
    whole = len(hashes) == n and thumbs.shape == (n, SIDE, SIDE) and thumbs.dtype == np.uint8
    return SeenImages(hashes, thumbs, faults, warnings) if whole else None


def _look_at_image(item: ImageItem) -> tuple[str, str, list[str], Thumbs]:
    """(fault, hash of the pixels, warnings, thumbnail)."""
    try:
        pixels = item.pixels()
        return "", pixel_hash(pixels), odd_ending(item), thumbnail(pixels)
    except Undecodable as problem:
        return cannot(problem), "", [], BLANK


FORMATS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG",
    ".gif": "GIF", ".bmp": "BMP", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip


def odd_ending(item: ImageItem) -> list[str]:
    """A warning where a file is another format than its name says."""
    named = FORMATS.get(os.path.splitext(item.name)[1].lower())
    found = format_of(item.read()) if named else None
    if found in (None, named, "MPO"):  # MPO is a JPEG of several pictures
        return []
    return [f"{item.where}: a {found} by its content, read as such. Rename it if that matters"]
