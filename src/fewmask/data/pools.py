"""Pools of images without masks: the side at which they are kept, and their classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fewmask.data.cache import ImageCache, Report, cached_images
from fewmask.data.images import Undecodable
from fewmask.data.sources import ImageSet
from fewmask.data.store import ImageStore, Names, OnDemand
from fewmask.types import Resize

CACHED_IMAGES = 100_000
CACHED_GB = 16.0
"""Pools of more images, or more decoded pixels, are decoded as they are used."""


def opened_pool(
    images: ImageSet,
    size: int,
    resize: Resize,
    *,
    cache_gb: float | None = None,
    progress: Report | None = None,
    workers: int | None = None,
) -> ImageStore:
    """A pool to train on, at the side that suits a network's `size`: decoded once and kept where
    that takes up to `cache_gb` (10^9 bytes; by default 16 and up to 100,000 images), else decoded
    as it is used.

    Raises UserError as `cached_images` does.
    """
    side = store_side(images, size)
    many = cache_gb is None and len(images.items) > CACHED_IMAGES
    if (
        many
        or len(images.items) * side**2 * 3 > (CACHED_GB if cache_gb is None else cache_gb) * 1e9
    ):
        return OnDemand(images.src, images.items, side, resize)
    return cached_images(images, side, resize, progress=progress, workers=workers)


def cached_pool(
    images: ImageSet,
    size: int,
    resize: Resize,
    *,
    progress: Report | None = None,
    workers: int | None = None,
) -> ImageCache:
    """A pool at the side that suits a network's `size`; one cache serves all that look at it.

    Raises UserError as `cached_images` does.
    """
    side = store_side(images, size)
    return cached_images(images, side, resize, progress=progress, workers=workers)


def store_side(images: ImageSet, size: int) -> int:
    """The side at which a pool is cached: room for crops, but never more than the pool has.

    4/3 of the network's side, or the median short side of 16 pictures where that is less.
    """
    sides = []
    for i in np.linspace(0, len(images.items) - 1, min(16, len(images.items))).astype(int):
        try:
            sides.append(min(images.items[i].pixels().shape[:2]))
        except Undecodable:
            continue
    median = int(np.median(sides)) if sides else size
    return max(16, min(round(size * 4 / 3), median))


def pool_labels(images: ImageSet, store: ImageStore) -> NDArray[np.int64] | None:
    """The class of every image of a store [N], where the pool has class folders."""
    if images.labels is None:
        return None
    if isinstance(store, OnDemand):
        return np.array(images.labels, np.int64)
    labels = dict(zip(Names(images.items), images.labels, strict=True))
    return np.array([labels[name] for name in store.names], np.int64)
