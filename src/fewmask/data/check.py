"""What is wrong with the data: all of it at once, each with its file and the mend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fewmask.data import classes
from fewmask.data.duplicates import SIDE, Thumbs, groups
from fewmask.data.leakage import (
    Pictures,
    Shared,
    counted,
    first_few,
    overlap,
    pair_pictures,
    repeats,
    seen_pictures,
    shared,
)
from fewmask.data.looks import Seen, SeenImages, look_at, look_at_images, thumbnails
from fewmask.data.sources import (
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
    thumbs: Thumbs = field(
        default_factory=lambda: np.zeros((0, SIDE, SIDE), np.uint8), compare=False, repr=False
    )
    """uint8 [n,48,48], of the images."""

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
    of_run, labels = labels, labels or pairs.labels
    if labels is None:
        values = {value for _, one in whole for value, _ in one.values}
        labels, wrong = classes.infer(pairs.options, values, pairs.table)
        faults += [f"{pairs.src}: {fault}" for fault in wrong]
    outside = _outside(pairs, whole, labels, of_run)
    counts = tuple(_class_pixels(one, labels) for one in seen)
    if not pairs.items and not faults:
        faults.append(f"{pairs.src}: holds no pair of image and mask. Add some")
    if whole and not outside and not any(map(any, counts)):
        mend = "the masks" if pairs.options.ignore is None else "--ignore"
        faults.append(f"{pairs.src}: every pixel of every mask is ignored. Mend {mend}")
    elif whole and not outside:
        warnings += _one_class(whole, labels) + _absent(pairs, labels, counts)
    hashes = tuple(one.hash or f"undecodable {row}" for row, one in enumerate(seen))
    thumbs = thumbnails(seen)
    found = groups(thumbs, hashes)
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
        thumbs=thumbs,
    )


# --- classes --------------------------------------------------------------------------------------


def _outside(
    pairs: PairSet, whole: Sequence[tuple[Pair, Seen]], labels: Labels, of_run: Labels | None
) -> tuple[str, ...]:
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
    elif of_run is not None and pairs.options.mask_values is None:
        known = ", ".join(of_run.names)
        advice = (
            f"The run knows {of_run.n_classes} classes ({known}): score it on masks of these. Pass "
            "--ignore with a value that is to be left out, or --mask-values with the values of "
            "these classes, if they are others"
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


MOST_NEAR = 10
"""Near copies within a pool that are named one by one."""


def _pool_warnings(images: ImageSet, seen: SeenImages, own: Sequence[Shared]) -> list[str]:
    first = {one.right.where: one.left.where for one in own if one.exact}
    warnings: list[str] = []
    for row, item in enumerate(images.items):
        if item.where in first:
            warnings.append(f"{item.where}: the same pixels as {first[item.where]}")
        warnings += seen.warnings.get(row, ())
    near = [one for one in own if not one.exact]
    warnings += [f"{one.right.where}: a copy of {one.left.where}" for one in near[:MOST_NEAR]]
    if len(near) > MOST_NEAR:
        warnings.append(f"{images.src}: and {len(near) - MOST_NEAR} more pairs of near copies")
    return warnings


def _own(pictures: Pictures) -> list[Shared]:
    with shown(f"comparing {pictures.src}") as report:
        return shared(repeats(pictures, report), pictures, pictures)


@dataclass(frozen=True)
class _Found:
    """What one source's check has found; `pictures` are None where it could not be opened."""

    faults: Sequence[str] = ()
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    pictures: Pictures | None = None
    own: Sequence[Shared] = ()


def check(settings: CheckSettings) -> CheckResult:
    """Everything that is wrong with the pairs and pools named, and the pictures that they share.

    With `out` duplicates.csv and, where there are any, duplicates.png are left there. Raises
    UserError for no source named.
    """
    if settings.pairs is None and not settings.images:
        raise UserError("nothing to check: pass --pairs SRC, --images SRC, or both")
    sources = [(src, _check_pool) for src in settings.images]
    if settings.pairs is not None:
        sources.insert(0, (settings.pairs, _check_pairs))
    every = [_looked(look, src, settings) for src, look in sources]
    copies = [(one.pictures.src, one.pictures.src, pair)
              for one in every if one.pictures for pair in one.own]  # fmt: skip
    warnings = [warning for one in every for warning in one.warnings]
    notes = [note for one in every for note in one.notes]
    pairs = every[0].pictures if settings.pairs is not None else None
    for pool in every[1:] if pairs else ():
        if pairs and pool.pictures:
            found, words = _in_both(pool.pictures, pairs)
            copies += [(pool.pictures.src, pairs.src, pair) for pair in found]
            warnings += [words] if words else []
    if settings.out is not None:
        from fewmask.data.sides import write_copies

        notes += write_copies(Path(settings.out), copies)
    faults = [fault for one in every for fault in one.faults]
    return CheckResult(tuple(faults), tuple(warnings), tuple(notes))


def _looked(look: Callable[[str, CheckSettings], _Found], src: str, s: CheckSettings) -> _Found:
    try:
        return look(src, s)
    except UserError as mistake:
        return _Found(faults=mistake.faults)


def _in_both(pool: Pictures, pairs: Pictures) -> tuple[list[Shared], str]:
    """Copies in a pool of pictures of the pairs, and a warning of them and of the pairs' files."""
    with shown(f"comparing {pool.src} with {pairs.src}") as report:
        found = shared(overlap(pool, pairs, report), pool, pairs)
    own = {one.left.where for one in found if one.left.where == one.right.where}
    rest = [one for one in found if one.left.where not in own]
    said = f"{len(own)} images are the pairs' own files" if own else ""
    if rest:
        also = f"{counted(rest, len(pool.items))} are also in {pairs.src}: {first_few(rest)}"
        said = f"{said}; {also}" if said else also
    if not said:
        return rest, ""
    done = "A study leaves out those of its test set; pretrain takes them all"
    return rest, f"{pool.src}: {said}. {done}"


def _check_pairs(src: str, settings: CheckSettings) -> _Found:
    options = MaskOptions(settings.border, settings.classes, settings.ignore, settings.mask_values)
    pairs = open_pairs(src, options, download=settings.download)
    with shown(f"checking {src}") as report:
        found = check_pairs(pairs, progress=report, workers=settings.workers)
    pixels = max(1, sum(found.class_pixels))
    shares = ", ".join(
        f"{name} {100 * n / pixels:.1f} %"
        for name, n in zip(found.labels.names, found.class_pixels, strict=True)
    )
    note = f"{src}: {found.n} pairs; pixels: {shares}"
    pictures = pair_pictures(pairs, found.hashes, found.thumbs)
    return _Found(found.faults, found.warnings, (note,), pictures, _own(pictures))


def _check_pool(src: str, settings: CheckSettings) -> _Found:
    images = open_images(src, download=settings.download)
    with shown(f"checking {src}") as report:
        seen = look_at_images(images.items, report, settings.workers)
    pictures = seen_pictures(images, seen)
    own = _own(pictures)
    note = f"{src}: {len(images.items)} images, {images.other_files} other files"
    warnings = _pool_warnings(images, seen, own)
    return _Found(tuple(seen.faults.values()), warnings, (note,), pictures, own)
