"""Pictures that occur twice, though the files differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewmask.data.images import Pixels

SIDE = 16
THRESHOLD = 0.97
"""Correlation of two thumbnails above which they are one picture. Re-encoded, resized and slightly
cropped copies lie above 0.98, different pictures of one motif below 0.92."""
BLOCK = 2048


def thumbnail(pixels: Pixels) -> NDArray[np.float32]:
    """uint8 [H,W,3] -> float32 [256]: 16 x 16 grey, mean 0, norm 1; all 0 of a plain picture."""
    small = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(small, np.float32).ravel()
    values = values - values.mean()
    norm = float(np.linalg.norm(values))
    return values / norm if norm > 1e-3 else np.zeros_like(values)


def groups(
    thumbnails: NDArray[np.float32], hashes: Sequence[str], threshold: float = THRESHOLD
) -> tuple[tuple[int, ...], ...]:
    """Rows that show one picture: equal hashes, or thumbnails [N,256] that correlate.

    Correlation carries over: of a, b, c where a is like b and b like c, all three are a group.
    Memory is that of a block of the N x N matrix.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    parent = list(range(len(hashes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        a, b = sorted((root(i), root(j)))
        parent[b] = a

    first: dict[str, int] = {}
    for row, digest in enumerate(hashes):
        join(first.setdefault(digest, row), row)
    for start in range(0, len(thumbnails), BLOCK):
        block = thumbnails[start : start + BLOCK]
        for other in range(start, len(thumbnails), BLOCK):
            like = block @ thumbnails[other : other + BLOCK].T >= threshold
            if not like.any():
                continue
            # Within the block compiled code joins: frames of a video are millions of pairs.
            left, right = np.nonzero(like)
            n = sum(like.shape)
            joined = coo_array((np.ones(len(left), bool), (left, len(like) + right)), (n, n))
            _, component = connected_components(joined, directed=False)
            rows = [*range(start, start + len(like)), *range(other, other + like.shape[1])]
            seen: dict[int, int] = {}
            for row, name in zip(rows, component.tolist(), strict=True):
                join(seen.setdefault(name, row), row)
    members: dict[int, list[int]] = {}
    for row in range(len(hashes)):
        members.setdefault(root(row), []).append(row)
    return tuple(tuple(rows) for rows in members.values() if len(rows) > 1)
