"""Which pictures of a pool are left to choose from: not labelled yet, and none twice."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fewmask.data.cache import ImageCache, in_order, stamps
from fewmask.data.duplicates import groups, thumbnail
from fewmask.data.images import Pixels, Undecodable
from fewmask.data.items import ImageItem
from fewmask.data.looks import pixel_hash
from fewmask.data.place import cache_root
from fewmask.files import write_json_atomic
from fewmask.probing.splits import Rows
from fewmask.progress import Report
from fewmask.types import UserError


@dataclass(frozen=True)
class Candidates:
    """Rows of the pool to choose from, and those left out.

    `labelled` are rows that show a labelled picture; `known` those of them of which nothing else
    has the features: pictures of the run, whose file is in the pool alone. `repeated` are rows that
    show a picture that another row stands for.
    """

    rows: Rows
    labelled: Rows
    known: Rows
    repeated: Rows


def candidates(
    pool: ImageCache, labelled: ImageCache | None, trained: Sequence[bool], *, keep_near: bool
) -> Candidates:
    """Pool rows that show no labelled picture, one a picture.

    `labelled` are the images of the pairs, cached at the pool's side; `trained` [N] says which pool
    rows the run was trained on. `keep_near` takes two rows for one picture only where all pixels
    are equal.
    """
    parts = [pool] if labelled is None else [pool, labelled]
    seen = [(thumbnail(inside), pixel_hash(inside)) for part in parts for inside in pictures(part)]
    hashes = [name for _, name in seen]
    same = equal(hashes) if keep_near else groups(np.stack([thumb for thumb, _ in seen]), hashes)
    n = len(pool.names)
    out = np.array(trained, bool)
    known, repeated = out.copy(), np.zeros(n, bool)
    for group in same:
        own = [row for row in group if row < n]
        paired = len(own) < len(group)
        if paired or known[own].any():
            first = own[int(np.argmax(known[own]))] if own else -1
            out[own] = True
            known[own] = [row == first and not paired for row in own]
        else:
            repeated[own[1:]] = True
    return Candidates(
        np.flatnonzero(~out & ~repeated),
        np.flatnonzero(out),
        np.flatnonzero(known),
        np.flatnonzero(repeated),
    )


def equal(hashes: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Rows of the same hash, where there are several."""
    members: dict[str, list[int]] = {}
    for row, name in enumerate(hashes):
        members.setdefault(name, []).append(row)
    return tuple(tuple(rows) for rows in members.values() if len(rows) > 1)


def pictures(cache: ImageCache) -> Iterator[Pixels]:
    """Every image of a cache without its padding."""
    for pixels, (height, width) in zip(cache.images, cache.valid, strict=True):
        yield np.ascontiguousarray(pixels[:height, :width])


def image_hashes(
    items: Sequence[ImageItem], report: Report, workers: int | None = None
) -> dict[str, str]:
    """The hash of every image's pixels at their own size, by name; "" where it has none.

    Remembered in the cache folder while the files stay as they are, for all have to be decoded.
    """
    path = cache_root() / "hashes" / f"{stamps(items, 'hashes')}.json"
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and len(found) == len(items):
            return found
    hashes: dict[str, str] = {}
    for item, name in zip(items, in_order(_hash, items, workers), strict=True):
        hashes[item.name] = name
        report(len(hashes), len(items))
    with contextlib.suppress(OSError, UserError):
        write_json_atomic(path, hashes)
    return hashes


def _hash(item: ImageItem) -> str:
    try:
        return pixel_hash(item.pixels())
    except Undecodable:  # the pool's cache names it
        return ""
