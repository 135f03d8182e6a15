"""Weak features against plain loops over cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewmask.data.cache import ImageCache
from fewmask.data.images import resize_image
from fewmask.probing.weak import directions, shrunk, weak_features


def cache_of(*images: np.ndarray, size: int = 48) -> ImageCache:
    seen = [resize_image(image, size, "keep") for image in images]
    valid = np.array([inside for _, inside in seen], np.int32)
    names = tuple(str(i) for i in range(len(images)))
    return ImageCache(np.stack([pixels for pixels, _ in seen]), valid, names, ())


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_shrinking_takes_the_mean_of_what_a_part_covers() -> None:
    values = torch.arange(48.0).expand(1, 3, 48, 48)
    found = shrunk(values, torch.tensor([[48, 40]]))[0, 0, 5]
    for i in range(32):
        begin, end = i * 40 / 32, (i + 1) * 40 / 32
        covered = [(min(end, s + 1) - max(begin, s)) for s in range(48)]
        wanted = sum(s * max(0.0, c) for s, c in enumerate(covered)) / (40 / 32)
        assert float(found[i]) == pytest.approx(wanted, rel=1e-5)


def test_colours_are_the_means_of_the_cells() -> None:
    image = noise(48, 48)
    found = weak_features(cache_of(image), [0])[0, :48].reshape(3, 4, 4).numpy()
    for k, y, x in np.ndindex(3, 4, 4):
        mean = image[12 * y : 12 * y + 12, 12 * x : 12 * x + 12, k].mean() / 255
        assert found[k, y, x] == pytest.approx((2 * mean - 1) / 6, abs=1e-5)


@pytest.mark.parametrize("turn", [0, 22.5, 40, 90, 100, 179])
def test_an_edge_falls_into_the_two_nearest_directions(turn: float) -> None:
    y, x = np.mgrid[:32, :32] / 64
    ramp = x * math.cos(math.radians(turn)) + y * math.sin(math.radians(turn))
    images = torch.from_numpy(ramp).float().expand(1, 3, 32, 32)
    inner = directions(images).square()[0].reshape(8, 4, 4)[:, 1:3, 1:3].sum(dim=(1, 2))
    shares = (inner / inner.sum()).tolist()
    place = turn / 22.5
    wanted = [0.0] * 8
    wanted[int(place) % 8] = 1 - place % 1
    wanted[(int(place) + 1) % 8] += place % 1
    assert shares == pytest.approx(wanted, abs=1e-4)
    # Light to dark is the same as dark to light.
    assert torch.allclose(directions(images).square(), directions(-images).square(), atol=1e-5)


def test_histograms_sum_to_one_and_a_plain_picture_has_none() -> None:
    found = weak_features(cache_of(noise(48, 48), np.full((48, 48, 3), 9, np.uint8)), [0, 1])
    assert found.shape == (2, 176)
    assert found.dtype == torch.float32
    assert found[:, 48:].square().sum(dim=1).tolist() == pytest.approx([1.0, 0.0], abs=1e-5)
    assert torch.isfinite(found).all()


def test_padding_is_not_looked_at_and_rows_keep_their_order() -> None:
    cache = cache_of(noise(30, 48), noise(48, 20, 1))
    found = weak_features(cache, [1, 0])
    other = ImageCache(cache.images.copy(), cache.valid, cache.names, ())
    other.images[0, 30:] = 0
    other.images[1, :, 20:] = 255
    assert torch.equal(weak_features(other, [1, 0]), found)
    assert torch.allclose(
        weak_features(cache, [0])[0], found[1], atol=1e-6
    )  # batches of other sizes
    assert weak_features(cache, []).shape == (0, 176)
