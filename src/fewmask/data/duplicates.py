"""Pictures that occur twice, though the files differ: re-encoded, resized, cropped, mirrored, or
brighter and darker copies.

A quick look at all pairs (`candidates`) leaves a few to lay on each other (`alignment`); their
thresholds, and what they were chosen by, stand there. `benchmarks/duplicates.py` measures it all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewmask.data.images import Pixels

Report = Callable[[int, int], None]
Thumbs = NDArray[np.uint8]
SIDE = 48
"""Of a thumbnail, in pixels."""


def thumbnail(pixels: Pixels) -> Thumbs:
    """uint8 [H,W,3] -> uint8 [48,48]: the picture in grey, each cell the mean of its pixels."""
    grey = Image.fromarray(pixels).convert("L")
    return np.array(grey.resize((SIDE, SIDE), Image.Resampling.BOX))


@dataclass(frozen=True)
class Alike:
    """Pairs of rows that show one picture: `exact` of equal pixels, `near` of copies."""

    exact: tuple[tuple[int, int], ...] = ()
    near: tuple[tuple[int, int], ...] = ()


def groups(
    thumbnails: Thumbs, hashes: Sequence[str], progress: Report | None = None
) -> tuple[tuple[int, ...], ...]:
    """Rows that show one picture: equal hashes, or thumbnails uint8 [N,48,48] of copies.

    It carries over: of a, b, c where a is like b and b like c, all three are a group.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    alike = within(thumbnails, hashes, progress)
    joined = np.array([*alike.exact, *alike.near], np.int64).reshape(-1, 2)
    n = len(hashes)
    if not len(joined):
        return ()
    ends = (np.ones(len(joined), bool), (joined[:, 0], joined[:, 1]))
    _, component = connected_components(coo_array(ends, (n, n)), directed=False)
    members: dict[int, list[int]] = {}
    for row, name in enumerate(component.tolist()):
        members.setdefault(name, []).append(row)
    return tuple(tuple(rows) for rows in members.values() if len(rows) > 1)


def within(thumbnails: Thumbs, hashes: Sequence[str], progress: Report | None = None) -> Alike:
    """The pairs (i, j), i < j, of one set. A picture of equal pixels is paired with the first of
    them alone, and the first one stands for all in the near pairs."""
    first: dict[str, int] = {}
    exact = []
    for row, digest in enumerate(hashes):
        if first.setdefault(digest, row) != row:
            exact.append((first[digest], row))
    own = np.array(list(first.values()), np.int64)
    near = _near(thumbnails[own], None, progress)
    pairs = [(int(own[i]), int(own[j])) for i, j in near]
    return Alike(tuple(exact), tuple(sorted(pairs)))


def between(
    left: tuple[Thumbs, Sequence[str]],
    right: tuple[Thumbs, Sequence[str]],
    progress: Report | None = None,
) -> Alike:
    """The pairs (row of the left, row of the right) of two sets, each thumbnails and hashes.

    All of them: where several of one set have equal pixels, each is named.
    """
    rows = [_by_hash(hashes) for _, hashes in (left, right)]
    exact = [(i, j) for name in rows[0] if name in rows[1] for i in rows[0][name]
             for j in rows[1][name]]  # fmt: skip
    names = [list(own) for own in rows]
    firsts = [[own[name][0] for name in order] for own, order in zip(rows, names, strict=True)]
    thumbs = [part[0][own] for part, own in zip((left, right), firsts, strict=True)]
    near = []
    for a, b in _near(np.concatenate(thumbs), len(firsts[0]), progress):
        one, other = names[0][a], names[1][b - len(firsts[0])]
        if one != other:
            near += [(i, j) for i in rows[0][one] for j in rows[1][other]]
    return Alike(tuple(sorted(exact)), tuple(sorted(near)))


def _by_hash(hashes: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, digest in enumerate(hashes):
        rows.setdefault(digest, []).append(row)
    return rows


def _near(thumbs: Thumbs, first: int | None, progress: Report | None) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of copies; with `first` i is one of the first so many, j of the rest."""
    if len(thumbs) < 2:
        return []
    from fewmask.data.alignment import copies  # torch takes a while to import
    from fewmask.data.candidates import candidates

    likely = candidates(thumbs, first, progress=progress)
    same = copies(thumbs, likely)
    ends = np.sort(np.stack([likely.whole[same], likely.part[same]], axis=1), axis=1)
    return [(int(i), int(j)) for i, j in np.unique(ends, axis=0)]
