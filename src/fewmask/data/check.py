"""What is wrong with the data: all of it at once, each with its file and the mend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fewmask.data import classes
from fewmask.data.cache import in_order
from fewmask.data.duplicates import groups
from fewmask.data.images import Undecodable
from fewmask.data.looks import Seen, cannot, look_at, odd_ending, pixel_hash, thumbnails
from fewmask.data.sources import (
    ImageItem,
    ImageSet,
    MaskOptions,
    Pair,
    PairSet,
    open_images,
    open_pairs,
)
from fewmask.progress import progress as shown
from fewmask.settings import CheckSettings
from fewmask.types import CheckResult, Labels, UserError

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class PairReport:
    """All that decoding every pair once has shown.

    `groups` are rows that show one picture; `hashes` name each image's pixels; `mask_pixels`
    counts the pixels of each class in each mask, at its own resolution.
    """

    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    labels: Labels
    groups: tuple[tuple[int, ...], ...]
    hashes: tuple[str, ...]
    n: int
    mask_pixels: tuple[tuple[int, ...], ...]

    @property
    def class_pixels(self) -> tuple[int, ...]:
        """The pixels of each class over all masks."""
        n = self.labels.n_classes
        return tuple(sum(counts[k] for counts in self.mask_pixels) for k in range(n))

    def raise_faults(self) -> None:
        """Raises UserError with all faults, if there are any."""
        if self.faults:
            raise UserError(*self.faults)


def check_pairs(
    pairs: PairSet,
    labels: Labels | None = None,
    *,
    progress: Report | None = None,
    workers: int | None = None,
) -> PairReport:
    """Decode every pair whole and report on all. `labels`: those of a run that has to fit.

    What was seen is remembered in the cache folder, by name, size and time of every file: looking
    again costs a listing.
    """
    seen = look_at(pairs, progress, workers)
    faults = [*pairs.faults, *(fault for one in seen for fault in one.faults)]
    warnings = [warning for one in seen for warning in one.warnings]
    whole = [(pair, one) for pair, one in zip(pairs.items, seen, strict=True) if one.values]
    labels = labels or pairs.labels
    if labels is None:
        values = {value for _, one in whole for value, _ in one.values}
        labels, wrong = classes.infer(pairs.options, values, pairs.table)
        faults += [f"{pairs.src}: {fault}" for fault in wrong]
    outside = _outside(pairs, whole, labels)
    counts = tuple(_class_pixels(one, labels) for one in seen)
    if not pairs.items and not faults:
        faults.append(f"{pairs.src}: holds no pair of image and mask. Add some")
    if whole and not outside:
        warnings += _one_class(whole, labels) + _absent(pairs, labels, counts)
    hashes = tuple(one.hash or f"undecodable {row}" for row, one in enumerate(seen))
    found = groups(thumbnails(seen), hashes)
    for group in found:
        names = ", ".join(pairs.items[row].image.where for row in group)
        warnings.append(f"{names}: one picture {len(group)} times; a split keeps them on one side")
    return PairReport(
        faults=(*faults, *outside),
        warnings=tuple(warnings),
        labels=labels,
        groups=found,
        hashes=hashes,
        n=len(pairs.items),
        mask_pixels=counts,
    )


# --- classes --------------------------------------------------------------------------------------


def _outside(pairs: PairSet, whole: Sequence[tuple[Pair, Seen]], labels: Labels) -> tuple[str, ...]:
    """A fault for every mask with a value that is no class, and what to pass."""
    every = {v for _, one in whole for v, _ in one.values}
    advice = classes.advice(every, pairs.options, pairs.table)
    if pairs.table is not None and not pairs.options.mask_values:
        names = pairs.table.names
        strange = [names[v] for v in sorted(every) if v < len(names) and _unknown(labels, v)]
        if strange:  # those of a run, which has other classes
            advice = (
                f"The run knows no {', '.join(strange)}, only {', '.join(labels.names)}. "
                "Pass --ignore with its value, or --classes to call all by the run's names"
            )
    if pairs.labels is not None:  # a known layout: no flag gives its values another meaning
        advice = "Download it again, or remove the pair"
    faults = []
    for pair, one in whole:
        pixels = sum(n for v, n in one.values if _unknown(labels, v))
        if pixels:
            values = classes.listed([v for v, _ in one.values])
            faults.append(
                f"{pair.mask.where}: holds the values {{{values}}}; expected "
                f"{classes.expected(labels)} ({pixels} pixels are outside). {advice}"
            )
    return tuple(faults)


def _unknown(labels: Labels, value: int) -> bool:
    return labels.lut[value] == classes.UNKNOWN


def _class_pixels(one: Seen, labels: Labels) -> tuple[int, ...]:
    counts = [0] * labels.n_classes
    for value, n in one.values:
        if labels.lut[value] < labels.n_classes:
            counts[labels.lut[value]] += n
    return tuple(counts)


def _one_class(whole: Sequence[tuple[Pair, Seen]], labels: Labels) -> list[str]:
    warnings = []
    for pair, one in whole:
        ids = {labels.lut[v] for v, _ in one.values if labels.lut[v] < labels.n_classes}
        where = pair.mask.where
        if not ids:
            warnings.append(f"{where}: every pixel is ignored; it neither trains nor counts")
        elif len(ids) == 1:
            name = labels.names[next(iter(ids))]
            warnings.append(f"{where}: all {name}. If that is wrong, mend the mask")
    return warnings


def _absent(pairs: PairSet, labels: Labels, counts: Sequence[Sequence[int]]) -> list[str]:
    found = []
    for k, name in enumerate(labels.names):
        masks = sum(own[k] > 0 for own in counts)
        if masks == 0:
            found.append(f"no mask holds the class {name}; it cannot be learnt or scored")
        elif masks == 1 and labels.n_classes > 2:
            found.append(f"only one mask holds the class {name}; it is learnt or scored, not both")
    return [f"{pairs.src}: {warning}" for warning in found]


# --- images without masks, and the command --------------------------------------------------------


def check_images(
    images: ImageSet, *, progress: Report | None = None, workers: int | None = None
) -> tuple[list[str], list[str]]:
    """(faults, warnings) of a pool: files that cannot be decoded, exact copies, odd endings."""
    faults: list[str] = []
    warnings: list[str] = []
    first: dict[str, str] = {}
    for i, (fault, name, odd) in enumerate(in_order(_look_at_image, images.items, workers)):
        item = images.items[i]
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


def _look_at_image(item: ImageItem) -> tuple[str, str, list[str]]:
    """(fault, hash of the pixels, warnings)."""
    try:
        return "", pixel_hash(item.pixels()), odd_ending(item)
    except Undecodable as problem:
        return cannot(problem), "", []


def check(settings: CheckSettings) -> CheckResult:
    """Everything that is wrong with the pairs and pools named. Raises UserError for none named."""
    if settings.pairs is None and not settings.images:
        raise UserError("nothing to check: pass --pairs SRC, --images SRC, or both")
    faults: list[str] = []
    warnings: list[str] = []
    notes: list[str] = []
    sources = [(src, _check_pool) for src in settings.images]
    if settings.pairs is not None:
        sources.insert(0, (settings.pairs, _check_pairs))
    for src, look in sources:
        try:
            found = look(src, settings)
        except UserError as mistake:
            faults += mistake.faults
        else:
            faults += found.faults
            warnings += found.warnings
            notes += found.notes
    return CheckResult(tuple(faults), tuple(warnings), tuple(notes))


def _check_pairs(src: str, settings: CheckSettings) -> CheckResult:
    options = MaskOptions(settings.border, settings.classes, settings.ignore, settings.mask_values)
    pairs = open_pairs(src, options, download=settings.download)
    with shown(f"checking {src}") as report:
        found = check_pairs(pairs, progress=report, workers=settings.workers)
    pixels = max(1, sum(found.class_pixels))
    shares = ", ".join(
        f"{name} {100 * n / pixels:.1f} %"
        for name, n in zip(found.labels.names, found.class_pixels, strict=True)
    )
    return CheckResult(found.faults, found.warnings, (f"{src}: {found.n} pairs; pixels: {shares}",))


def _check_pool(src: str, settings: CheckSettings) -> CheckResult:
    images = open_images(src, download=settings.download)
    with shown(f"checking {src}") as report:
        faults, warnings = check_images(images, progress=report, workers=settings.workers)
    note = f"{src}: {len(images.items)} images, {images.other_files} other files"
    return CheckResult(tuple(faults), tuple(warnings), (note,))
