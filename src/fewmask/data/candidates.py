"""Which of many pictures may be copies of one another: a quick look at all pairs.

A picture is described by the low frequencies of its grey thumbnail: 8 x 8 cosines (those within a
radius of 8 cycles, without the mean), each weighed by its frequency, so that the coarse lights and
shades that many photos share do not outweigh the rest. Two descriptions are compared by their inner
product. The cosines that are odd from left to right change their sign in a mirror: with E and O the
products of the even and the odd ones, E + |O| is the better of the picture and its mirror image.

A picture that was cropped is compared with CROPS of the other one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Report = Callable[[int, int], None]
Thumbs = NDArray[np.uint8]

FREQUENCIES = 8
CROPS = (
    (0.0, 0.0, 0.0, 0.0), (0.075, 0.075, 0.075, 0.075), (0.0, 0.0, 0.08, 0.08),
    (0.0, 0.08, 0.08, 0.0), (0.08, 0.0, 0.0, 0.08), (0.08, 0.08, 0.0, 0.0),
)  # fmt: skip
"""Shares cut off left, top, right and bottom. Each crop of up to 10 % a side lies near one of them;
the picture whole must come first."""
LIKE = 0.75
"""Least E + |O| of a candidate. Of 8,800 copies made of 400 Cats-vs-Dogs pictures (22 kinds:
JPEG 20 to 90, resized, squashed, cropped by up to 10 % a side, mirrored, brighter, darker, and all
of it at once) 2 lay below; of a million ordered pairs of different pictures 17 above (CIFAR-10:
90)."""
MOST = 16
"""Candidates kept of each picture, the likest: thousands of frames of one camera stay a finite job.
"""
PLAIN = 2.0
"""Standard deviation in grey levels below which there is nothing to compare."""
ROWS, COLUMNS = 512, 2048
"""A block of the matrix of pairs, small enough for the processor's cache."""


@dataclass(frozen=True)
class Candidates:
    """Pairs [P] to look at, some both ways: `whole` may be CROPS[crop] of `part`, mirrored."""

    whole: NDArray[np.int64]
    part: NDArray[np.int64]
    crop: NDArray[np.int64]
    mirrored: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.whole)


def cosines(low: float, high: float, side: int) -> NDArray[np.float32]:
    """Cosines over [low, high] of an axis of `side` pixels, float32 [FREQUENCIES,side]."""
    x = np.clip((np.arange(side + 1) / side - low) / (high - low), 0, 1)
    f = np.arange(1, FREQUENCIES)[:, None]
    rows = [x[None], 2**0.5 * np.sin(np.pi * f * x) / (np.pi * f)]  # integrals up to each edge
    return np.diff(np.concatenate(rows), axis=1).astype(np.float32)


def describe(thumbs: Thumbs, crop: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    """uint8 [N,S,S] -> float32 [N,E] and [N,O]: the even and the odd part, together of norm 1.

    Of a plain picture all 0, so that it is like nothing.
    """
    left, top, right, bottom = crop
    side = thumbs.shape[-1]
    down = torch.from_numpy(cosines(top, 1 - bottom, side))
    across = torch.from_numpy(cosines(left, 1 - right, side))
    f = torch.arange(FREQUENCIES)
    radius = (f[:, None] ** 2 + f**2).float().sqrt()
    used = (radius > 0) & (radius < FREQUENCIES)
    even = used & (f % 2 == 0)
    parts = []
    for start in range(0, len(thumbs), COLUMNS):
        pixels = torch.from_numpy(np.array(thumbs[start : start + COLUMNS])).float()
        plain = pixels.flatten(1).std(dim=1) < PLAIN
        values = (down @ pixels @ across.T) * radius * used
        norm = values.flatten(1).norm(dim=1).clamp(min=1e-6)
        parts.append(torch.where(plain[:, None, None], 0.0, values / norm[:, None, None]))
    whole = torch.cat(parts) if parts else torch.empty(0, FREQUENCIES, FREQUENCIES)
    return whole[:, even].contiguous(), whole[:, used & ~even].contiguous()


def candidates(
    thumbs: Thumbs, first: int | None = None, *, progress: Report | None = None
) -> Candidates:
    """The pairs of thumbnails uint8 [N,S,S] that may be copies of one another.

    With `first` the first so many are one set and the others a second one, and pairs have one
    picture of each. Of each picture (of the first set) the MOST likest; so memory grows with N,
    not with N x N.
    """
    n = len(thumbs)
    rows = slice(0, n if first is None else first)
    columns = slice(0 if first is None else first, n)
    views = [(0, crop) for crop in range(len(CROPS))]
    if first is not None:  # within one set each pair comes up in both orders by itself
        views += [(crop, 0) for crop in range(1, len(CROPS))]
    left = [describe(thumbs[rows], CROPS[crop]) for crop in sorted({a for a, _ in views})]
    right = [describe(thumbs[columns], CROPS[crop]) for crop in range(len(CROPS))]
    found = []
    for start in range(0, len(left[0][0]), ROWS):
        own = []
        for a, b in views:
            block = tuple(part[start : start + ROWS] for part in left[a])
            after = start if first is None and a == b else 0
            own += [_alike(block, right[b], at, (a, b)) for at in _starts(right[b], after)]
        found.append(_likest(np.concatenate(own, axis=1), start, columns.start))
        if progress:
            progress(min(start + ROWS, n), rows.stop)
    return _both_ways(np.concatenate(found, axis=1) if found else np.empty((5, 0)))


def _starts(described: tuple[Tensor, Tensor], after: int) -> range:
    """Where the blocks of columns begin; those that lie wholly before `after` were compared."""
    return range(after // COLUMNS * COLUMNS, len(described[0]), COLUMNS)


def _alike(
    rows: tuple[Tensor, ...], columns: tuple[Tensor, Tensor], at: int, crops: tuple[int, int]
) -> NDArray[np.float64]:
    """Row, column, E + |O|, crop (negative: of the row) and mirror of a block's likest pairs."""
    even, odd = (part[at : at + COLUMNS] for part in columns)
    products = rows[1] @ odd.T
    scores = torch.addmm(products.abs(), rows[0], even.T)
    some = torch.nonzero(scores.amax(dim=1) > LIKE)[:, 0]
    if not len(some):
        return np.empty((5, 0))
    best = scores[some].topk(min(MOST + 1, scores.shape[1]))  # one of them may be itself
    k, place = torch.nonzero(best.values > LIKE, as_tuple=True)
    row, column = some[k], best.indices[k, place]
    crop = torch.full_like(row, crops[1] - crops[0])
    mirrored = products[row, column] < 0
    columns_of = (row, column + at, best.values[k, place], crop, mirrored)
    return torch.stack([c.double() for c in columns_of]).numpy()


def _likest(found: NDArray[np.float64], start: int, offset: int) -> NDArray[np.float64]:
    """Of each row its MOST best columns, each in its best view, numbered among all pictures."""
    found[0] += start
    found[1] += offset
    found = found[:, found[0] != found[1]]
    found = found[:, np.argsort(-found[2], kind="stable")]
    _, once = np.unique(found[:2], axis=1, return_index=True)
    found = found[:, np.sort(once)]
    found = found[:, np.argsort(found[0], kind="stable")]  # by row, within it the best first
    begins = np.searchsorted(found[0], found[0])
    return found[:, np.arange(found.shape[1]) - begins < MOST]


def _both_ways(found: NDArray[np.float64]) -> Candidates:
    """Each way round of a pair once, in its best view; whole against whole says no way, so both."""
    row, column, scores, crop, mirrored = found
    turned = crop < 0
    whole, part = np.where(turned, column, row), np.where(turned, row, column)
    same = crop == 0
    ways = np.stack(
        [
            np.concatenate([whole, part[same]]),
            np.concatenate([part, whole[same]]),
            *(np.concatenate([c, c[same]]) for c in (scores, abs(crop), mirrored)),
        ]
    )
    ways = ways[:, np.argsort(-ways[2], kind="stable")]
    _, once = np.unique(ways[:2], axis=1, return_index=True)
    whole, part, _, crop, mirrored = ways[:, np.sort(once)]
    return Candidates(
        whole.astype(np.int64), part.astype(np.int64), crop.astype(np.int64), mirrored > 0
    )
