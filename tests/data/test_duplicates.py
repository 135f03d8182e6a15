"""Pictures that occur twice: what is found, and what is not taken for it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewmask.data import alignment, candidates
from fewmask.data.duplicates import between, groups, thumbnail, within
from fewmask.data.sources import open_images

SHARED = Path(
    os.environ.get("FEWMASK_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
).resolve()

Array = np.ndarray[Any, Any]


def picture(seed: int, height: int = 120, width: int = 150) -> Array:
    """Shapes of every size, as in a photo: the finer the fainter."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (3, 6, 12, 24, 48):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        grown = small.resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(grown, np.float32) - 128) * 2 / cells**0.5
    return np.clip(128 + total * 0.35, 0, 255).astype(np.uint8)


def jpeg(pixels: Array, quality: int) -> Array:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data))


def resized(pixels: Array, width: int, height: int) -> Array:
    return np.asarray(Image.fromarray(pixels).resize((width, height)))


COPIES = {
    "a worse JPEG": lambda p: jpeg(p, 30),
    "half the size": lambda p: resized(p, 75, 60),
    "another shape": lambda p: resized(p, 150, 90),
    "10 % off each side": lambda p: p[12:-12, 15:-15],
    "10 % of the area": lambda p: p[1:-5, 5:-2],
    "10 % off the left": lambda p: p[:, 15:],
    "10 % off top and right": lambda p: p[12:, :-15],
    "mirrored": lambda p: p[:, ::-1],
    "brighter": lambda p: np.clip(p * 1.25, 0, 255).astype(np.uint8),
    "darker": lambda p: (p * 0.6).astype(np.uint8),
    "all of it": lambda p: jpeg(resized((p[6:-8, 4:-12, :] * 0.8).astype(np.uint8), 90, 70), 60)[
        :, ::-1
    ],
}


@pytest.mark.parametrize("kind", COPIES)
def test_an_altered_copy_is_found_among_others_whichever_comes_first(kind: str) -> None:
    pictures = [picture(seed) for seed in range(6)]
    copies = [np.ascontiguousarray(COPIES[kind](p)) for p in pictures[:3]]
    both = [*pictures, *copies]
    names = [str(i) for i in range(9)]
    expected = tuple((i, 6 + i) for i in range(3))
    assert within(np.stack([thumbnail(p) for p in both]), names).near == expected
    turned = np.stack([thumbnail(p) for p in [*copies, *pictures]])
    assert within(turned, names).near == tuple((i, 3 + i) for i in range(3))
    one, other = turned[:3], turned[3:]
    assert between((one, list("abc")), (other, list("defghi"))).near == ((0, 0), (1, 1), (2, 2))
    assert between((other, list("defghi")), (one, list("abc"))).near == ((0, 0), (1, 1), (2, 2))


def test_pictures_of_one_motif_are_not_copies() -> None:
    """A fixed camera: the same yard, with an animal here, there, or turned a little."""
    yard = picture(0)
    frames = []
    for place in ((70, 20), (20, 90), (75, 110)):
        frame = yard.copy()
        frame[place[0] : place[0] + 36, place[1] : place[1] + 32] = picture(7, 36, 32)
        frames.append(frame)
    turned = yard.copy()
    turned[70:106, 20:52] = picture(7, 36, 32)[::-1, ::-1]
    thumbs = np.stack([thumbnail(p) for p in (*frames, turned)])
    assert within(thumbs, list("abcd")).near == ()


def test_faint_pictures_in_one_bright_frame_are_not_copies() -> None:
    """Dishes under a microscope: the rim is the same, what lies inside is faint."""
    rows, columns = np.mgrid[:120, :150]
    inside = ((rows - 60) ** 2 + (columns - 75) ** 2 < 50**2)[..., None]
    dishes = [np.where(inside, 30 + picture(seed) * 0.25, 250).astype(np.uint8) for seed in (0, 1)]
    thumbs = np.stack([thumbnail(p) for p in (*dishes, jpeg(dishes[0], 60))])
    assert within(thumbs, list("abc")).near == ((0, 2),)


def test_pictures_that_are_nearly_plain_are_alike_by_their_hash_alone() -> None:
    sky = np.random.default_rng(0).integers(200, 203, (4, 48, 48)).astype(np.uint8)
    assert groups(sky, ["a", "b", "a", "c"]) == ((0, 2),)
    assert groups(np.empty((0, 48, 48), np.uint8), []) == ()
    assert groups(sky[:1], ["a"]) == ()


def test_thumbnails_are_means_of_the_grey_picture() -> None:
    pixels = np.kron(np.arange(48 * 48).reshape(48, 48) % 251, np.ones((2, 3))).astype(np.uint8)
    found = thumbnail(np.repeat(pixels[..., None], 3, axis=2))
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels[::2, ::3])


def test_groups_carry_over_and_equal_pixels_name_the_first() -> None:
    one = picture(0)
    cut = [one, one[12:], one[12:, 15:], picture(1), one]
    thumbs = np.stack([thumbnail(p) for p in cut])
    assert groups(thumbs, ["a", "b", "c", "d", "a"]) == ((0, 1, 2, 4),)
    found = within(thumbs, ["a", "b", "c", "d", "a"])
    assert found.exact == ((0, 4),)
    assert all(4 not in pair for pair in found.near)


def test_between_two_sets_every_file_is_named() -> None:
    one, other = picture(0), picture(1)
    left = np.stack([thumbnail(p) for p in (one, one, other, picture(2))])
    right = np.stack([thumbnail(p) for p in (one, jpeg(other, 50), one)])
    found = between((left, ["a", "a", "b", "c"]), (right, ["a", "e", "a"]))
    assert found.exact == ((0, 0), (0, 2), (1, 0), (1, 2))
    assert found.near == ((2, 1),)


def test_a_hundred_frames_of_one_scene_are_one_group() -> None:
    """Each picture keeps its 16 likest alone, and the group still holds together."""
    rng = np.random.default_rng(0)
    scene = thumbnail(picture(0)).astype(int)
    frames = np.clip(scene + rng.integers(-4, 5, (100, 48, 48)), 0, 255).astype(np.uint8)
    likely = candidates.candidates(frames)
    assert len(likely) <= 2 * 100 * candidates.MOST
    assert groups(frames, [str(i) for i in range(100)]) == (tuple(range(100)),)


# --- the parts, against slow plain loops ----------------------------------------------------------


def test_a_description_is_the_weighed_cosines_of_the_cropped_picture() -> None:
    thumbs = np.stack([thumbnail(picture(seed)) for seed in range(2)])
    crop = (0.25, 0.125, 0.0, 0.25)
    even, odd = candidates.describe(thumbs, crop)
    part = thumbs[:, 6:36, 12:].astype(float)
    for own, e, o in zip(part, even.numpy(), odd.numpy(), strict=True):
        rows = (np.arange(30 * 16) + 0.5) / (30 * 16)  # a fine grid in place of the integrals
        columns = (np.arange(36 * 16) + 0.5) / (36 * 16)
        fine = np.kron(own, np.ones((16, 16)))
        found: dict[str, list[float]] = {"even": [], "odd": []}
        for f in range(8):
            for g in range(8):
                if 0 < np.hypot(f, g) < 8:
                    wave = np.outer(np.cos(np.pi * f * rows), np.cos(np.pi * g * columns))
                    scale = 2 ** (((f > 0) + (g > 0)) / 2) * np.hypot(f, g)
                    found["odd" if g % 2 else "even"].append(scale * float((fine * wave).mean()))
        norm = np.linalg.norm([*found["even"], *found["odd"]])
        assert np.allclose(e, np.array(found["even"]) / norm, atol=1e-3)
        assert np.allclose(o, np.array(found["odd"]) / norm, atol=1e-3)


def test_the_odd_part_alone_changes_its_sign_in_a_mirror() -> None:
    thumbs = np.stack([thumbnail(picture(0))])
    even, odd = candidates.describe(thumbs, candidates.CROPS[0])
    mirror = candidates.describe(thumbs[:, :, ::-1], candidates.CROPS[0])
    assert torch.allclose(mirror[0], even, atol=1e-5)
    assert torch.allclose(mirror[1], -odd, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 4), (512, 2048)])
@pytest.mark.parametrize("first", [None, 9])
def test_candidates_are_those_of_the_whole_matrix(
    rows: int, columns: int, first: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "ROWS", rows)
    monkeypatch.setattr(candidates, "COLUMNS", columns)
    monkeypatch.setattr(candidates, "LIKE", 0.5)
    seeds = np.random.default_rng(0).integers(0, 5, 23)
    cuts = np.random.default_rng(1).integers(0, 12, (23, 2))
    thumbs = np.stack(
        [thumbnail(picture(s)[a:, b:]) for s, (a, b) in zip(seeds, cuts, strict=True)]
    )
    views = [torch.cat(candidates.describe(thumbs, crop), 1) for crop in candidates.CROPS]
    flip = torch.cat([torch.ones(33), -torch.ones(views[0].shape[1] - 33)])
    expected = set()
    for i in range(23):
        for j in range(23):
            apart = first is None or (i < first) != (j < first)
            like = max(
                float(views[0][i] @ (view[j] * sign)) for view in views for sign in (1, flip)
            )
            if i != j and apart and like > 0.5:
                expected.add((min(i, j), max(i, j)))
    found = candidates.candidates(thumbs, first)
    pairs = {(min(i, j), max(i, j)) for i, j in zip(found.whole, found.part, strict=True)}
    assert 10 < len(expected) < 253
    assert pairs == expected


def test_a_batch_without_a_likely_pair_holds_no_copy() -> None:
    random = np.random.default_rng(0)
    whole, part = (torch.from_numpy(random.random((3, 48, 48))).float() for _ in range(2))
    assert alignment.agree(255 * whole, 255 * part, torch.zeros(3, 4)).tolist() == [False] * 3


def test_the_fit_finds_the_crop() -> None:
    fine = torch.from_numpy(picture(3, 480, 480)).float().mean(dim=2)[None]
    whole = torch.nn.functional.avg_pool2d(fine, 10)
    cut = torch.nn.functional.interpolate(
        fine[:, None, 24:456, 48:], (480, 480), mode="bilinear", antialias=True
    )
    part = torch.nn.functional.avg_pool2d(cut[:, 0], 10)
    place, score = alignment.fitted(part, whole, torch.zeros(1, 4) + 0.03, 24, 8)
    assert torch.allclose(place, torch.tensor([[0.1, 0.05, 0.0, 0.05]]), atol=0.004)
    assert score.item() > 0.99


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_the_real_pets_hold_eight_pictures_more_than_once() -> None:
    """Looked at: six are the same but for their encoding, 66 and 82, 80 and 83 are cropped."""
    images = open_images(f"oxford-iiit-pet:{SHARED / 'oxford-iiit-pet'}")
    thumbs = np.stack([thumbnail(item.pixels()) for item in images.items])
    found = groups(thumbs, [item.name for item in images.items])
    names = {tuple(sorted(images.items[row].name[:-4] for row in group)) for group in found}
    pairs = [(11, 177), (122, 172), (5, 87), (24, 56, 80), (40, 63), (151, 99), (66, 82)]
    expected = {tuple(sorted(f"Abyssinian_{i}" for i in numbers)) for numbers in pairs}
    assert names == expected | {("Bengal_83", "Bengal_85")}
