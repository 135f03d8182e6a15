"""Which labelled pictures a probe learns from, and which it is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewmask.data.cache import ImageCache
from fewmask.data.duplicates import groups, thumbnail
from fewmask.data.looks import pixel_hash
from fewmask.types import UserError

Rows = NDArray[np.int64]

FEWEST = 3
"""Pictures a class needs: to train, to choose the regularisation, to test."""
EVERY = 5
"""Of a draw's pictures of a class the first, the 6th, ... validate."""


@dataclass(frozen=True)
class Draw:
    """Rows to train on, to choose the regularisation by, and to test on."""

    train: Rows
    val: Rows
    test: Rows


def same_pictures(cache: ImageCache) -> tuple[tuple[int, ...], ...]:
    """Rows of a pool that show one picture."""
    seen = []
    for pixels, (height, width) in zip(cache.images, cache.valid, strict=True):
        inside = np.ascontiguousarray(pixels[:height, :width])
        seen.append((thumbnail(inside), pixel_hash(inside)))
    return groups(np.stack([thumb for thumb, _ in seen]), [name for _, name in seen])


def require_enough(labels: Rows, names: Sequence[str], src: str) -> None:
    """Raises UserError where a class has too few pictures to be probed."""
    counts = np.bincount(labels, minlength=len(names))
    few = [f"{name} has {n}" for name, n in zip(names, counts, strict=True) if n < FEWEST]
    if few:
        raise UserError(
            f"{src}: too few images of a class ({', '.join(few[:5])}); expected at least {FEWEST} "
            "of each. Add some, or leave the class out"
        )


def held_out(
    labels: Rows, together: Sequence[Sequence[int]], share: float, seed: int
) -> NDArray[np.bool_]:
    """A random test set [N], the same share of every class, at least one picture of each.

    Pictures that are `together` (one picture several times) go to one side.
    """
    counts = np.bincount(labels)
    # What is left must do for training and validation.
    room = np.minimum(np.maximum(1, np.round(share * counts)), counts - 2).astype(int)
    group_of = {row: tuple(group) for group in together for row in group}
    chosen = np.zeros(len(labels), bool)
    for row in np.random.default_rng(seed).permutation(len(labels)).tolist():
        group = group_of.get(row, (row,))
        wanted = np.bincount(labels[list(group)], minlength=len(counts))
        if not chosen[row] and (wanted <= room).all():
            chosen[list(group)] = True
            room = room - wanted
    return chosen


def draw(
    labels: Rows, test: NDArray[np.bool_], n: int | None, seed: int, number: int, src: str
) -> Draw:
    """Draw `number` of n labelled pictures that are not test; half of them where n is None.

    Classes keep their shares, and have two pictures at least. A fifth of the pictures validates,
    another one in every draw. Draws nest: those of a larger n hold those of a smaller one.
    Raises UserError where n is more than there are, or less than two of each class.
    """
    rest = np.flatnonzero(~test)
    counts = np.bincount(labels[rest], minlength=int(labels.max()) + 1)
    if n is not None and not 2 * len(counts) <= n <= len(rest):
        raise UserError(
            f"--train {n}: {src} leaves {len(rest)} images of {len(counts)} classes beside the "
            f"test set; expected {2 * len(counts)} to {len(rest)}"
        )
    if n is None:
        n = max(2 * len(counts), len(rest) // 2)
    shuffled = np.random.default_rng((seed, number)).permutation(rest)
    place, nth = np.empty(len(rest)), np.empty(len(rest), np.int64)
    for k, count in enumerate(counts):
        own = labels[shuffled] == k
        nth[own] = np.arange(count)
        # Evenly over the order, so that its first n hold the classes by their shares.
        place[own] = (np.arange(count) + 0.5) / count
    place[nth < 2] = 0
    taken = np.argsort(place, kind="stable")[:n]
    validates = nth[taken] % EVERY == 0
    rows = shuffled[taken]
    return Draw(rows[~validates], rows[validates], np.flatnonzero(test))
