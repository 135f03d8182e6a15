"""What a study's data is like: its classes, and how near the other pictures are to the test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewmask.data.cache import ImageCache
from fewmask.data.check import PairReport
from fewmask.data.duplicates import Thumbs
from fewmask.data.parts import drawn
from fewmask.data.split import Split
from fewmask.distances.extractors import scale_of
from fewmask.distances.jackknife import Estimate
from fewmask.distances.kernels import Features, kid
from fewmask.probing.weak import weak_features

MOST = 500
"""Pictures a set that are compared; the interval allows for it."""
FEWEST = 16
"""Pictures a set below which nothing is said."""


def class_balance(checked: PairReport, split: Split) -> list[dict[str, Any]]:
    """A row a class: masks that hold it and its share of their pixels, to train on and to test."""
    pixels = np.asarray(checked.mask_pixels, np.int64).reshape(-1, checked.labels.n_classes)
    sides = {"rest": pixels[list(split.rest)], "test": pixels[list(split.test)]}
    return [
        {"name": name}
        | {f"masks_{side}": int((own[:, k] > 0).sum()) for side, own in sides.items()}
        | {f"share_{side}": own[:, k].sum() / max(1, own.sum()) for side, own in sides.items()}
        for k, name in enumerate(checked.labels.names)
    ]


def some(thumbs: Thumbs, rows: Sequence[int] | None = None) -> Thumbs:
    """At most MOST of a set's thumbnails, or of these rows of it; always the same ones."""
    whole = np.arange(len(thumbs)) if rows is None else np.asarray(rows, np.int64)
    return thumbs[drawn(whole, MOST, 0)]


def nearness(test: Thumbs, others: Mapping[str, Thumbs]) -> list[dict[str, Any]]:
    """The distance (KID, with its 95 % interval) of each of `others` to the test set, by name.

    By weak features of grey thumbnails uint8 [n,48,48], divided by the root mean square of the test
    set's: they know light and layout, not what is in a picture. Sets of fewer than FEWEST are left
    out.
    """
    if len(test) < FEWEST:
        return []
    target = _features(test)
    scale = scale_of(target)
    return [
        {"name": name} | _described(kid(_features(thumbs) / scale, target / scale))
        for name, thumbs in others.items()
        if len(thumbs) >= FEWEST
    ]


def _features(thumbs: Thumbs) -> Features:
    images: NDArray[np.uint8] = np.repeat(thumbs[..., None], 3, axis=-1)
    whole = np.full((len(thumbs), 2), thumbs.shape[1], np.int32)
    cache = ImageCache(images, whole, tuple(map(str, range(len(thumbs)))), ())
    return weak_features(cache, range(len(thumbs))).double().numpy()


def _described(found: Estimate) -> dict[str, float]:
    return {"kid": found.value, "low": found.low, "high": found.high}
