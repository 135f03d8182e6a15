"""What is wrong with the data: all of it at once, each with its file and the mend."""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewmask.data.cache import cache_root, stamps
from fewmask.data.duplicates import groups, thumbnail
from fewmask.data.images import Undecodable, format_of
from fewmask.data.sources import (
    ImageItem,
    ImageSet,
    MaskOptions,
    Pair,
    PairSet,
    open_images,
    open_pairs,
)
from fewmask.files import write_json_atomic
from fewmask.settings import CheckSettings
from fewmask.types import IGNORED, CheckResult, Labels, UserError

Report = Callable[[int, int], None]
UNKNOWN = 254
"""What a look-up table gives for a value that no class has."""


@dataclass(frozen=True)
class PairReport:
    """All that decoding every pair once has shown.

    `groups` are rows that show one picture; `hashes` name each image's pixels; `class_pixels`
    counts the pixels of each class over all masks.
    """

    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    labels: Labels
    groups: tuple[tuple[int, ...], ...]
    hashes: tuple[str, ...]
    n: int
    class_pixels: tuple[int, ...]

    def raise_faults(self) -> None:
        """Raises UserError with all faults, if there are any."""
        if self.faults:
            raise UserError(*self.faults)


@dataclass(frozen=True)
class _Seen:
    """One pair, decoded: what the check needs to know of it."""

    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    hash: str = ""
    thumb: str = ""
    values: tuple[tuple[int, int], ...] = ()
    """(value in the mask file, number of pixels)."""


def check_pairs(
    pairs: PairSet, labels: Labels | None = None, *, progress: Report | None = None
) -> PairReport:
    """Decode every pair whole and report on all. `labels`: those of a run that has to fit."""
    seen = _looked_at(pairs, progress)
    faults = [*pairs.faults, *(fault for one in seen for fault in one.faults)]
    warnings = [warning for one in seen for warning in one.warnings]
    whole = [(pair, one) for pair, one in zip(pairs.items, seen, strict=True) if one.values]
    labels = labels or pairs.labels or _inferred(pairs, whole, faults)
    faults += _outside(whole, labels, pairs.options)
    warnings += _one_class(whole, labels)
    if not pairs.items and not faults:
        faults.append(f"{pairs.src}: holds no pair of image and mask. Add some")
    thumbs = np.stack([_unpacked(one.thumb) for one in seen]) if seen else np.empty((0, 256))
    hashes = tuple(one.hash or f"undecodable {row}" for row, one in enumerate(seen))
    found = groups(thumbs.astype(np.float32), hashes)
    for group in found:
        names = ", ".join(pairs.items[row].image.where for row in group)
        warnings.append(f"{names}: one picture {len(group)} times; a split keeps them on one side")
    counts = np.zeros(labels.n_classes, np.int64)
    for _, one in whole:
        for value, n in one.values:
            if labels.lut[value] < labels.n_classes:
                counts[labels.lut[value]] += n
    return PairReport(tuple(faults), tuple(warnings), labels, found, hashes, len(pairs.items),
                      tuple(counts.tolist()))  # fmt: skip


# --- looking, once --------------------------------------------------------------------------------


def _looked_at(pairs: PairSet, progress: Report | None) -> list[_Seen]:
    """Every pair decoded; remembered in the cache folder while the files stay as they are."""
    items = [item for pair in pairs.items for item in (pair.image, pair.mask)]
    path = cache_root() / "checks" / f"{stamps(items, 'check')}.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        seen = [_Seen(**{k: _tuples(v) for k, v in row.items()}) for row in rows]
        if len(seen) == len(pairs.items):
            return seen
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # nothing remembered, or not readably: look again
    seen = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for one in pool.map(_look, pairs.items):
            seen.append(one)
            if progress:
                progress(len(seen), len(pairs.items))
    try:
        write_json_atomic(path, [vars(one) for one in seen])
    except (OSError, UserError):
        pass  # what cannot be remembered is looked at again
    return seen


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _look(pair: Pair) -> _Seen:
    faults: list[str] = []
    warnings: list[str] = []
    pixels = values = None
    try:
        pixels = pair.image.pixels()
        warnings += odd_ending(pair.image)
    except Undecodable as problem:
        faults.append(f"{problem.where}: cannot be decoded ({problem.reason}). {MEND}")
    try:
        values = pair.mask.values()
    except Undecodable as problem:
        faults.append(f"{problem.where}: cannot be decoded ({problem.reason}). {MEND}")
    if pixels is not None and values is not None and pixels.shape[:2] != values.shape:
        faults.append(
            f"{pair.mask.where}: {values.shape[1]} x {values.shape[0]} pixels, its image "
            f"{pixels.shape[1]} x {pixels.shape[0]}. Save the mask at its image's size"
        )
    counted = np.unique(values, return_counts=True) if values is not None else ((), ())
    return _Seen(
        faults=tuple(faults),
        warnings=tuple(warnings),
        hash="" if pixels is None else pixel_hash(pixels),
        thumb=_packed(np.zeros(256, np.float32) if pixels is None else thumbnail(pixels)),
        values=tuple((int(v), int(n)) for v, n in zip(*counted, strict=True)),
    )


MEND = "Replace or remove it"


def pixel_hash(pixels: NDArray[np.uint8]) -> str:
    """A name for an image's size and pixels."""
    digest = blake2b(str(pixels.shape).encode(), digest_size=12)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _packed(thumb: NDArray[np.float32]) -> str:
    return b64encode(thumb.astype("<f4").tobytes()).decode()


def _unpacked(text: str) -> NDArray[np.float32]:
    return np.frombuffer(b64decode(text), "<f4")


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


# --- classes --------------------------------------------------------------------------------------


def _inferred(pairs: PairSet, whole: Sequence[tuple[Pair, _Seen]], faults: list[str]) -> Labels:
    """The classes that flags name, or that the values in all masks together show."""
    options = pairs.options
    found = {value for _, one in whole for value, _ in one.values} - {options.ignore}
    if options.mask_values is not None:
        ids = list(options.mask_values)
        k = len(ids)
        if len(set(ids)) < k or not all(0 <= v <= 255 for v in ids) or options.ignore in ids:
            faults.append(
                f"--mask-values {','.join(map(str, ids))}: expected different values of 0 to 255, "
                "without the one of --ignore"
            )
        if options.classes and len(options.classes) != k:
            faults.append(f"--classes names {len(options.classes)} classes, --mask-values {k} values")
    elif options.classes:
        ids = list(range(len(options.classes)))
    else:
        gapless = found <= set(range(len(found)))
        ids = list(range(max(2, len(found)))) if gapless else [0, 1]
    if len(ids) < 2 or len(ids) > UNKNOWN:
        faults.append(f"{pairs.src}: {len(ids)} classes; expected 2 to {UNKNOWN}")
        ids = [0, 1]
    lut = [UNKNOWN] * 256
    for k, value in enumerate(ids):
        if 0 <= value <= 255:
            lut[value] = k
    if options.ignore is not None and 0 <= options.ignore <= 255:
        lut[options.ignore] = IGNORED
    return Labels(_names(options, len(ids)), tuple(lut))


def _names(options: MaskOptions, k: int) -> tuple[str, ...]:
    if options.classes and len(options.classes) == k:
        return options.classes
    if k == 2:
        return ("background", "foreground")
    return ("background", *(f"class_{i}" for i in range(1, k)))


def _outside(
    whole: Sequence[tuple[Pair, _Seen]], labels: Labels, options: MaskOptions
) -> list[str]:
    """A fault for every mask with a value that is no class, and what to pass."""
    every = sorted({value for _, one in whole for value, _ in one.values})
    advice = _advice(every, options)
    expected = [v for v in range(256) if labels.lut[v] != UNKNOWN]
    known = f"class ids 0..{len(labels.names) - 1}"
    if expected != list(range(len(labels.names))):
        known = "the values " + ", ".join(map(str, expected))
    faults = []
    for pair, one in whole:
        wrong = {v: n for v, n in one.values if labels.lut[v] == UNKNOWN}
        if wrong:
            shown = "{" + ", ".join(str(v) for v, _ in one.values) + "}"
            pixels = sum(wrong.values())
            faults.append(
                f"{pair.mask.where}: holds the values {shown}; expected {known} "
                f"({pixels} pixels are outside). {advice}"
            )
    return faults


def _advice(every: Sequence[int], options: MaskOptions) -> str:
    """What to pass for the values that all masks together hold."""
    listed = ",".join(map(str, every))
    rest = [v for v in every if v != 255]
    if len(every) == 2:
        return f"Pass --mask-values {listed} to map them, or re-save the mask"
    if 255 in every and rest == list(range(len(rest))) and options.ignore is None:
        return "Pass --ignore 255 if those pixels are to be left out, or re-save the mask"
    if len(every) > 20:
        return "That many values look like a picture or soft edges: save class ids, without antialiasing"
    if options.classes or options.mask_values:
        return f"Name every class: --classes or --mask-values {listed}"
    return (
        f"Pass --mask-values {listed} to map them in this order, or --classes with a name for "
        f"each id up to {max(every)}"
    )


def _one_class(whole: Sequence[tuple[Pair, _Seen]], labels: Labels) -> list[str]:
    warnings = []
    for pair, one in whole:
        ids = Counter({labels.lut[v]: n for v, n in one.values if labels.lut[v] < labels.n_classes})
        if not ids:
            warnings.append(f"{pair.mask.where}: every pixel is ignored; it neither trains nor counts")
        elif len(ids) == 1:
            name = labels.names[next(iter(ids))]
            warnings.append(f"{pair.mask.where}: all {name}. If that is wrong, mend the mask")
    return warnings


# --- images without masks, and the command ---------------------------------------------------------


def check_images(images: ImageSet, progress: Report | None = None) -> tuple[list[str], list[str]]:
    """(faults, warnings) of a pool: files that cannot be decoded, exact copies, odd endings."""
    faults: list[str] = []
    warnings: list[str] = []
    first: dict[str, str] = {}

    def look(item: ImageItem) -> tuple[str, str, list[str]]:
        try:
            return "", pixel_hash(item.pixels()), odd_ending(item)
        except Undecodable as problem:
            return f"{problem.where}: cannot be decoded ({problem.reason}). {MEND}", "", []

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for i, (item, (fault, name, odd)) in enumerate(
            zip(images.items, pool.map(look, images.items), strict=True)
        ):
            if fault:
                faults.append(fault)
            elif name in first:
                warnings.append(f"{item.where}: the same pixels as {first[name]}")
            else:
                first[name] = item.where
            warnings += odd
            if progress:
                progress(i + 1, len(images.items))
    return faults, warnings


def check(settings: CheckSettings) -> CheckResult:
    """Everything that is wrong with the pairs and pools named. Raises UserError for none named."""
    if settings.pairs is None and not settings.images:
        raise UserError("nothing to check: pass --pairs SRC, --images SRC, or both")
    faults: list[str] = []
    warnings: list[str] = []
    notes: list[str] = []
    if settings.pairs is not None:
        try:
            options = MaskOptions(settings.border, settings.classes, settings.ignore,
                                  settings.mask_values)  # fmt: skip
            pairs = open_pairs(settings.pairs, options, download=settings.download)
            report = check_pairs(pairs)
            faults += report.faults
            warnings += report.warnings
            notes.append(_pairs_note(pairs, report))
        except UserError as mistake:
            faults += mistake.faults
    for src in settings.images:
        try:
            images = open_images(src, download=settings.download)
            more, odd = check_images(images)
            faults += more
            warnings += odd
            notes.append(f"{src}: {len(images.items)} images, {images.other_files} other files")
        except UserError as mistake:
            faults += mistake.faults
    return CheckResult(tuple(faults), tuple(warnings), tuple(notes))


def _pairs_note(pairs: PairSet, report: PairReport) -> str:
    pixels = max(1, sum(report.class_pixels))
    shares = ", ".join(
        f"{name} {100 * n / pixels:.1f} %"
        for name, n in zip(report.labels.names, report.class_pixels, strict=True)
    )
    return f"{pairs.src}: {report.n} pairs; pixels: {shares}"
