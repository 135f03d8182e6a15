"""Views and paired augmentation against torchvision, PyTorch and the properties they promise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as reference

from fewmask.augment import (
    MEAN,
    STD,
    PairAugment,
    Views,
    augment_pair,
    normalise,
    random_views,
    step_generator,
    to_unit,
)
from fewmask.augment import pairs as paired
from fewmask.augment import views as viewing
from fewmask.types import IGNORED, UserError

PLAIN = Views(crop_min=1, ratio=(1, 1), flip=0, jitter=0, grey=0, blur=0)
STILL = PairAugment(flip=0, scale=(1, 1), shift=0, rotate=0, brightness=0, contrast=0)


def generator(step: int = 0) -> torch.Generator:
    return step_generator(0, step, "cpu")


def pictures(n: int, height: int, width: int) -> Tensor:
    """Smooth random colours, uint8 [n,3,height,width]."""
    coarse = torch.rand(n, 3, 6, 6, generator=generator(99))
    fine = functional.interpolate(coarse, (height, width), mode="bicubic")
    return (fine.clamp(0, 1) * 255).round().to(torch.uint8)


def test_generator_is_a_function_of_seed_step_and_stream() -> None:
    def first(*key: int) -> float:
        seed, step, stream = key
        return torch.rand(1, generator=step_generator(seed, step, "cpu", stream)).item()

    keys = [(seed, step, stream) for seed in range(4) for step in range(40) for stream in range(3)]
    numbers = [first(*key) for key in keys]
    assert numbers == [first(*key) for key in keys]
    assert len(set(numbers)) == len(numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.06  # neighbours are no run of alike numbers


def test_normalise_is_the_textbook_formula() -> None:
    images = pictures(2, 5, 7)
    expected = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(normalise(to_unit(images)), expected)


@pytest.mark.parametrize(("side", "size"), [(40, 40), (40, 16), (40, 13), (24, 50)])
def test_whole_crop_is_an_antialiased_resize(side: int, size: int) -> None:
    images = pictures(3, side, side)
    expected = functional.interpolate(to_unit(images), size, mode="bilinear", antialias=True)
    torch.testing.assert_close(
        random_views(images, size, PLAIN, generator()), expected, atol=1e-5, rtol=0
    )


def test_flip_mirrors_the_whole_crop() -> None:
    images = pictures(3, 32, 32)
    flipped = random_views(images, 16, Views(**{**vars(PLAIN), "flip": 1}), generator())
    torch.testing.assert_close(flipped, random_views(images, 16, PLAIN, generator()).flip(3))


def test_crop_shows_the_window_it_drew() -> None:
    # Red counts columns and green rows, so that a view tells where its pixels come from.
    images = torch.zeros(20, 3, 120, 200, dtype=torch.uint8)
    images[:, 0], images[:, 1] = torch.arange(200), torch.arange(120)[:, None]
    views = Views(crop_min=0.3, crop_max=0.6, flip=0, jitter=0, grey=0, blur=0)
    seen = random_views(images, 30, views, generator()) * 255
    wide = (seen[:, 0, 15, -2] - seen[:, 0, 15, 1]) * 30 / 27
    tall = (seen[:, 1, -2, 15] - seen[:, 1, 1, 15]) * 30 / 27
    share, ratio = wide * tall / (120 * 200), wide / tall
    assert ((share > 0.29) & (share < 0.61)).all()
    assert ((ratio > 0.74) & (ratio < 1.35)).all()
    assert share.std() > 0.05
    assert ratio.std() > 0.1


def test_crops_fit_any_shape() -> None:
    valid = torch.tensor([[10.0, 400.0], [400.0, 10.0], [50.0, 50.0]]).repeat(200, 1)
    draws = torch.rand(len(valid), 2 * viewing._TRIES + 2, generator=generator())
    top, left, tall, wide = viewing._crops(draws, valid, Views())
    assert (torch.stack([top, left, tall, wide]) >= 0).all()
    assert (top + tall <= valid[:, 0] + 1e-3).all()
    assert (left + wide <= valid[:, 1] + 1e-3).all()
    assert ((wide / tall > 0.74) & (wide / tall < 1.34)).all()


def test_nothing_outside_the_valid_part_is_read() -> None:
    images, other = pictures(40, 32, 32), pictures(40, 32, 32)
    valid = torch.tensor([[20, 32], [32, 11]]).repeat(20, 1)
    for i, (height, width) in enumerate(valid.tolist()):
        other[i, :, height:], other[i, :, :, width:] = 255, 0
    one = random_views(images, 24, Views(), generator(), valid=valid)
    assert torch.equal(one, random_views(other, 24, Views(), generator(), valid=valid))


def test_parts_of_a_batch_get_the_views_of_the_whole() -> None:
    images = pictures(37, 32, 32)
    whole = random_views(images, 24, Views(), generator())
    parts = [
        random_views(images[i : i + 10], 24, Views(), generator(), start=i, total=37)
        for i in range(0, 37, 10)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
    assert not torch.allclose(whole, random_views(images, 24, Views(), generator(1)))


@pytest.mark.parametrize("crop_min", [0.01, 0.3])
def test_crops_by_themselves_are_the_crops_of_the_batch(
    crop_min: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CPU leaves out for large views has no weight: enlarged, shrunk, at the border."""
    images = torch.cat([pictures(12, 20, 33), pictures(12, 20, 33)])
    valid = torch.cat([torch.tensor([[20, 33]]).expand(12, 2), torch.randint(2, 21, (12, 2))])
    views = Views(crop_min=crop_min)
    found = []
    for least in (1, 10_000):
        monkeypatch.setattr(viewing, "_WINDOWED", least)
        found.append(random_views(images, 24, views, generator(), valid=valid))
    assert torch.allclose(*found, atol=1e-6)


def test_views_are_float32_under_autocast_and_in_range() -> None:
    images = pictures(30, 48, 40)
    plain = random_views(images, 24, Views(), generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(random_views(images, 24, Views(), generator()), plain)
    assert plain.dtype == torch.float32
    assert plain.min() >= 0
    assert plain.max() <= 1


def test_probabilities_are_kept() -> None:
    images = pictures(1, 32, 32).expand(1000, -1, -1, -1)
    plain = random_views(images, 24, PLAIN, generator())
    for name in ("flip", "jitter", "grey", "blur"):
        views = random_views(images, 24, Views(**{**vars(PLAIN), name: 0.3}), generator())
        changed = ((views - plain).abs().amax((1, 2, 3)) > 1e-3).float().mean().item()
        assert abs(changed - 0.3) < 0.05, name


def colours(pixels: Tensor, spread: tuple[float, ...], *, grey: bool = False) -> Tensor:
    """Pixels [3,N] of 0..1 after a jitter with the four numbers of -1..1, at strength 0.5."""
    draws = torch.tensor([[0.0, *[(s + 1) / 2 for s in spread], 0.0 if grey else 1.0]])
    mean = 255 * pixels.mean(1)[None]
    matrix, offset = viewing._colour_matrices(draws, mean, Views(colour=0.5, grey=0.5))
    return matrix[0] @ (255 * pixels) + offset[0]


@pytest.mark.parametrize(
    "spread", [(0.6, 0, 0, 0), (0, -0.7, 0, 0), (0, 0, 0.9, 0), (-0.5, 0.3, 1, 0)]
)
def test_colours_agree_with_torchvision_where_nothing_is_clamped(spread: tuple[float, ...]) -> None:
    pixels = 0.35 + 0.15 * torch.rand(3, 64, generator=generator())
    expected = pixels[:, None]  # an image of one row
    expected = reference.adjust_brightness(expected, 1 + 0.4 * spread[0])
    expected = reference.adjust_contrast(expected, 1 + 0.4 * spread[1])
    expected = reference.adjust_saturation(expected, 1 + 0.4 * spread[2])
    torch.testing.assert_close(colours(pixels, spread), expected[:, 0], atol=2e-4, rtol=0)


def test_hue_turns_the_primaries_as_hsv_does() -> None:
    turned = colours(torch.eye(3), (0, 0, 0, 10 / 3))  # 10/3 of 0.1: a third of the circle
    torch.testing.assert_close(turned, torch.eye(3).roll(1, 0), atol=1e-5, rtol=0)
    expected = reference.adjust_hue(torch.eye(3)[:, None], 1 / 3)[:, 0]
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)


def test_greys_stay_grey_and_grey_views_hold_luma() -> None:
    greys = torch.linspace(0.2, 0.6, 9).expand(3, -1)
    torch.testing.assert_close(colours(greys, (0, 0, 0.8, 1)), greys)
    pixels = torch.rand(3, 20, generator=generator())
    luma = reference.rgb_to_grayscale(pixels[:, None], 3)[:, 0]
    torch.testing.assert_close(colours(pixels, (0, 0, 0, 0), grey=True), luma, atol=2e-4, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_agrees_with_torchvision_inside(sigma: float) -> None:
    images = pictures(2, 64, 64)
    views = Views(**{**vars(PLAIN), "blur": 1, "sigma": (sigma, sigma)})
    blurred = random_views(images, 64, views, generator())
    expected = reference.gaussian_blur(to_unit(images), [7, 7], [sigma, sigma])
    torch.testing.assert_close(
        blurred[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], atol=1e-5, rtol=0
    )
    assert (
        random_views(torch.full_like(images, 200), 64, views, generator()) - 200 / 255
    ).abs().max() < 1e-5


def test_faults_are_told_together() -> None:
    with pytest.raises(UserError) as caught:
        Views(crop_min=0.9, crop_max=0.5, flip=1.5, colour=-1)
    assert len(caught.value.faults) == 3
    with pytest.raises(UserError, match="scale"):
        PairAugment(scale=(1.2, 0.6))


def ramps(n: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images that hold 2 * column and 2 * row, and masks of 8 px checks numbered by place."""
    columns, rows = torch.arange(width), torch.arange(height)[:, None]
    images = torch.zeros(n, 3, height, width, dtype=torch.uint8)
    images[:, 0], images[:, 1] = 2 * columns, 2 * rows
    return images, (columns // 8 + 16 * (rows // 8)).to(torch.uint8).repeat(n, 1, 1)


@pytest.mark.parametrize("step", range(5))
def test_image_and_mask_stay_aligned(step: int) -> None:
    images, masks = ramps(8, 96, 120)
    settings = PairAugment(rotate=30, brightness=0, contrast=0)
    new_images, new_masks = augment_pair(images, masks, settings, generator(step))
    # Half a pixel from the border on, the image says exactly where a pixel comes from.
    column, row = (new_images[:, 0] * 127.5, new_images[:, 1] * 127.5)
    inner = (column > 0.01) & (column < 118.99) & (row > 0.01) & (row < 94.99)
    expected = (column + 0.5).floor() // 8 + 16 * ((row + 0.5).floor() // 8)
    known = inner & (new_masks != IGNORED)
    assert known.float().mean() > 0.5
    assert (new_masks[known] == expected[known]).float().mean() > 0.999


def test_window_is_turned_and_scaled_rigidly() -> None:
    settings = PairAugment(scale=(0.8, 0.8), rotate=40)
    draws = torch.rand(6, 5, generator=generator())
    column, row = paired._sources(paired._windows(draws, settings, 50 / 90), 50, 90)
    for axis in (1, 2):
        steps = torch.hypot(column.diff(dim=axis), row.diff(dim=axis))
        torch.testing.assert_close(steps, torch.full_like(steps, 0.8), atol=1e-4, rtol=0)
    across = torch.stack([column.diff(dim=2), row.diff(dim=2)])[:, :, 1:]
    down = torch.stack([column.diff(dim=1), row.diff(dim=1)])[..., 1:]
    assert (across * down).sum(0).abs().max() < 1e-4  # at right angles
    cos = column.diff(dim=2) / 0.8
    assert cos.abs().min() >= math.cos(math.radians(40)) - 1e-4


def test_nothing_asked_changes_nothing() -> None:
    images, masks = pictures(3, 21, 34), torch.randint(0, 3, (3, 21, 34)).to(torch.uint8)
    masks[:, :2] = IGNORED
    new_images, new_masks = augment_pair(images, masks, STILL, generator())
    torch.testing.assert_close(new_images, to_unit(images), atol=1e-4, rtol=0)
    assert torch.equal(new_masks, masks)
    flip = PairAugment(**{**vars(STILL), "flip": 1})
    new_images, new_masks = augment_pair(images, masks, flip, generator())
    torch.testing.assert_close(new_images, to_unit(images).flip(3), atol=1e-4, rtol=0)
    assert torch.equal(new_masks, masks.flip(2))


def test_mask_is_ignored_outside_and_the_image_mirrored() -> None:
    images, masks = pictures(2, 40, 40), torch.ones(2, 40, 40, dtype=torch.uint8)
    wide = PairAugment(**{**vars(STILL), "scale": (1.25, 1.25)})
    new_images, new_masks = augment_pair(images, masks, wide, generator())
    expected = torch.full((2, 40, 40), IGNORED, dtype=torch.uint8)
    expected[:, 4:-4, 4:-4] = 1
    assert torch.equal(new_masks, expected)
    assert (new_images[:, :, 3] - new_images[:, :, 4]).abs().max() < 0.15  # no black frame


def test_light_is_brightness_and_contrast() -> None:
    images = pictures(1, 16, 16) // 4 + 90
    unit = to_unit(images)
    for factors in ((1.2, 1.0), (0.9, 1.3), (1.0, 0.5)):
        expected = reference.adjust_brightness(unit, factors[0])
        expected = reference.adjust_contrast(expected, factors[1])
        changed = paired._light(unit, torch.tensor([factors]))
        torch.testing.assert_close(changed, expected, atol=2e-4, rtol=0)


def test_parts_of_a_batch_are_augmented_as_in_the_whole() -> None:
    images, masks = ramps(21, 32, 40)
    settings = PairAugment(rotate=10)
    new_images, new_masks = augment_pair(images, masks, settings, generator())
    for part in (slice(0, 11), slice(11, 21)):
        a, b = augment_pair(
            images[part], masks[part], settings, generator(), start=part.start, total=21
        )
        torch.testing.assert_close(a, new_images[part], atol=1e-5, rtol=0)
        assert torch.equal(b, new_masks[part])
