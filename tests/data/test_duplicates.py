"""Pictures that occur twice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.sparse.csgraph import connected_components

from fewmask.data import duplicates
from fewmask.data.duplicates import groups, thumbnail
from fewmask.data.sources import open_images

SHARED = Path(
    os.environ.get("FEWMASK_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
).resolve()

Array = np.ndarray[Any, Any]


def picture(seed: int, height: int = 80, width: int = 100) -> Array:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def test_thumbnails_are_of_mean_0_and_norm_1() -> None:
    thumb = thumbnail(picture(0))
    assert thumb.shape == (256,)
    assert thumb.dtype == np.float32
    assert abs(thumb.mean()) < 1e-6
    assert np.linalg.norm(thumb) == pytest.approx(1, abs=1e-5)
    assert not thumbnail(np.full((9, 9, 3), 77, np.uint8)).any()


def test_a_copy_of_another_size_or_brightness_is_found_and_another_picture_is_not() -> None:
    one = picture(0)
    half = np.asarray(Image.fromarray(one).resize((50, 40)))
    darker = (one * 0.7 + 10).astype(np.uint8)
    thumbs = np.stack([thumbnail(p) for p in (one, picture(1), half, picture(2), darker)])
    assert groups(thumbs, list("abcde")) == ((0, 2, 4),)


def test_plain_pictures_are_alike_by_their_hash_alone() -> None:
    thumbs = np.zeros((4, 256), np.float32)
    assert groups(thumbs, ["black", "white", "black", "grey"]) == ((0, 2),)
    assert groups(np.empty((0, 256), np.float32), []) == ()


@pytest.mark.parametrize("block", [1, 3, 2048])
def test_groups_are_those_of_the_whole_matrix(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", block)
    rng = np.random.default_rng(3)
    thumbs = rng.normal(size=(4, 256))[rng.integers(0, 4, 23)] + rng.normal(size=(23, 256)) * 0.22
    thumbs = (thumbs / np.linalg.norm(thumbs, axis=1, keepdims=True)).astype(np.float32)
    names = [f"h{i}" for i in range(23)]
    names[22] = names[0]  # equal by hash, whatever they look like
    like = thumbs @ thumbs.T >= 0.955
    like[0, 22] = like[22, 0] = True
    _, component = connected_components(like)
    members = [tuple(np.flatnonzero(component == c).tolist()) for c in np.unique(component)]
    expected = {rows for rows in members if len(rows) > 1}
    assert 1 < len(expected) < 23
    assert any(not like[a, b] for rows in expected for a in rows for b in rows), "chains occur"
    assert set(groups(thumbs, names, 0.955)) == expected


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_the_real_pets_hold_six_pictures_twice() -> None:
    images = open_images(f"oxford-iiit-pet:{SHARED / 'oxford-iiit-pet'}")
    thumbs = np.stack([thumbnail(item.pixels()) for item in images.items])
    found = groups(thumbs, [item.name for item in images.items])
    numbers = {
        frozenset(int(images.items[row].name.split("_")[-1].split(".")[0]) for row in group)
        for group in found
    }
    expected = [(11, 177), (122, 172), (5, 87), (24, 56), (40, 63), (99, 151)]
    assert numbers == {frozenset(pair) for pair in expected}
    assert all(images.items[row].name.startswith("Abyssinian") for group in found for row in group)
    like = np.sort(np.triu(thumbs @ thumbs.T, 1).ravel())
    assert like[-6] >= 0.97
    assert like[-7] == pytest.approx(0.913, abs=0.001)
