"""Jigsaw: its geometry, its permutations, and that it learns from content and from nothing else."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from tests.pretext.small import GroupNormEncoder, make_batch
from torch import Tensor

from fewmask.pretext.contract import Pool
from fewmask.pretext.jigsaw import (
    LEAST_SIZE,
    Geometry,
    Jigsaw,
    JigsawTask,
    corners,
    geometry,
    permutation_set,
    shuffle,
)
from fewmask.types import UserError


def make_task(size: int = 48, **settings: Any) -> JigsawTask:
    encoder = GroupNormEncoder()
    torch.manual_seed(1)
    return Jigsaw(**settings).task(encoder, size, Pool())


def distances(orders: Tensor) -> Tensor:
    """Hamming distances of all pairs."""
    apart = (orders[:, None] != orders[None]).sum(dim=2)
    return apart[~torch.eye(len(orders), dtype=torch.bool)]


def test_the_geometry_is_the_papers() -> None:
    assert geometry(225) == Geometry(view=225, cell=75, tile=64, shift=2)
    assert geometry(96) == Geometry(view=96, cell=32, tile=27, shift=1)
    assert geometry(450) == Geometry(view=450, cell=150, tile=128, shift=4)
    for size in range(LEAST_SIZE, 400):
        g = geometry(size)
        assert size - 2 <= g.view == 3 * g.cell <= size
        assert g.tile == pytest.approx(64 / 225 * g.view, abs=0.5)
        assert g.tile >= 8


def test_a_view_too_small_is_refused() -> None:
    assert geometry(LEAST_SIZE).tile == 8
    with pytest.raises(UserError, match=r"--size 26: .*expected --size 27 or more"):
        make_task(LEAST_SIZE - 1)


def test_tiles_lie_anywhere_in_their_cells_and_never_beyond() -> None:
    g = geometry(225)
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(500, 9, 1, 2, generator=generator)
    still = corners(place, torch.full((500, 9, 3, 2), 0.5), g)
    moved = corners(place, torch.rand(500, 9, 3, 2, generator=generator), g)
    for cell in range(9):
        origin = torch.tensor([75 * (cell // 3), 75 * (cell % 3)])
        assert (still[:, cell] - origin).unique().tolist() == list(range(12))
        assert (moved[:, cell] - origin).unique().tolist() == list(range(12))
        assert (moved - still)[:, cell].unique().tolist() == [-2, -1, 0, 1, 2]
    assert (still == still[:, :, :1]).all()
    assert (moved != moved[:, :, :1]).any()


def slow_greedy(k: int, tiles: int) -> list[tuple[int, ...]]:
    every = list(permutations(range(tiles)))
    chosen = [every[0]]
    while len(chosen) < k:
        best, best_score = None, (-1, -1)
        for one in every:
            apart = [sum(a != b for a, b in zip(one, other, strict=True)) for other in chosen]
            if (min(apart), sum(apart)) > best_score:
                best, best_score = one, (min(apart), sum(apart))
        assert best is not None
        chosen.append(best)
    return chosen


@pytest.mark.parametrize(("k", "tiles"), [(1, 4), (5, 4), (24, 4), (30, 5)])
def test_permutations_are_those_of_a_slow_greedy_choice(k: int, tiles: int) -> None:
    assert permutation_set(k, tiles).tolist() == [list(p) for p in slow_greedy(k, tiles)]


def test_a_hundred_permutations_are_as_far_apart_as_can_be() -> None:
    """No hundred can be 8.081 apart on the mean.

    In a place, 100 permutations hold 9 tiles, each 11 or 12 times at best, so 506 of the 4950 pairs
    agree there or more, and the mean distance is 9 (1 - 506 / 4950) = 8.08 at most. Nor can all be
    8 apart: of such there are 9 * 8 = 72 at most.
    """
    orders = permutation_set(100)
    assert (orders.sort(dim=1).values == torch.arange(9)).all()
    assert 8.079 < distances(orders).float().mean() <= 8.0801
    assert distances(orders).min() == 6
    assert distances(permutation_set(9)).min() == 9
    permutation_set.cache_clear()
    assert torch.equal(permutation_set(100), orders)
    assert torch.equal(permutation_set(9), orders[:9])


def test_more_permutations_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 24"):
        permutation_set(25, 4)


def test_a_place_holds_the_tile_that_its_order_says() -> None:
    features = torch.rand(2, 9, 4)
    orders = permutation_set(6).view(2, 3, 9)
    found = shuffle(features, orders)
    for i in range(2):
        for r in range(3):
            for place in range(9):
                assert torch.equal(found[i, r, place], features[i, orders[i, r, place]])


def test_labels_are_drawn_evenly_among_all_permutations() -> None:
    task = make_task(permutations=4, shuffles=500)
    counts = task.labels(make_batch()).flatten().bincount()
    assert len(counts) == 4
    assert ((counts - 1000).abs() < 120).all()  # 4 standard deviations are 110


def test_tiles_are_cut_from_the_picture_in_reading_order() -> None:
    """Without a crop, a shift or a colour change tiles are the cells' middles, normalised."""
    task = make_task(size=75, crop_min=1.0, grey=0.0)
    batch = make_batch(side=75)
    tiles = task.tiles(batch)
    assert tiles.shape == (8, 9, 3, 21, 21)
    pictures = batch.images.float() / 255
    for cell in range(9):
        top, left = 25 * (cell // 3), 25 * (cell % 3)
        own = pictures[:, :, top : top + 25, left : left + 25].unfold(2, 21, 1).unfold(3, 21, 1)
        own = own.flatten(2, 3)  # [8,3,25 places,21,21]
        centred = own - own.mean(dim=(3, 4), keepdim=True)
        for i in range(8):
            for c in range(3):
                # Of all places in this cell, one is this channel of this tile, but for its scale.
                one = torch.nn.functional.normalize(centred[i, c].flatten(1), dim=1)
                seen = torch.nn.functional.normalize(tiles[i, cell, c].flatten(), dim=0)
                assert (one @ seen).max() > 0.9999


def test_grey_pictures_have_no_colours_at_their_edges() -> None:
    tiles = make_task(grey=1.0).tiles(make_batch(side=64))
    assert (tiles - tiles[:, :, :1]).abs().max() < 1e-4
    coloured = make_task(grey=0.0).tiles(make_batch(side=64))
    assert (coloured - coloured[:, :, :1]).abs().amax(dim=(1, 2, 3, 4)).min() > 0.1


def test_a_share_of_the_pictures_is_grey() -> None:
    task = make_task(grey=0.3)
    grey = 0
    for step in range(50):
        tiles = task.tiles(make_batch(side=32, step=step))
        grey += int(((tiles - tiles[:, :, :1]).abs().amax(dim=(1, 2, 3, 4)) < 1e-4).sum())
    assert grey / 400 == pytest.approx(0.3, abs=0.1)


def accuracy_after(steps: int, noise: bool) -> float:
    """Of the last steps; pictures are noise, or noise that is coarser the farther down it lies."""
    task = make_task(permutations=4, hidden=32, shuffles=4, grey=0.0)
    optimizer = torch.optim.Adam(task.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    found = []
    for step in range(steps):
        pictures = torch.rand(8, 3, 48, 48, generator=generator)
        if not noise:
            coarse = torch.nn.functional.avg_pool2d(pictures, 5, 1, 2)
            pictures[:, :, 16:32] = (3 * (coarse - 0.5) + 0.5).clamp(0, 1)[:, :, 16:32]
            pictures[:, :, :, 16:] = pictures[:, :, :, 16:].mean(dim=3, keepdim=True)
        batch = make_batch(side=48, step=step)._replace(images=(pictures * 255).to(torch.uint8))
        loss = task(batch)["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(task.signals["accuracy"]))
    return sum(found[-20:]) / 20


def test_it_learns_from_content() -> None:
    assert accuracy_after(60, noise=False) > 0.8


def test_there_is_nothing_to_learn_from_noise() -> None:
    """Chance is 0.25: where a tile lay shows in nothing but what it holds."""
    assert accuracy_after(60, noise=True) < 0.35


def test_signals_name_the_chance_level() -> None:
    task = make_task(permutations=50)
    loss = task(make_batch(side=64))["cross_entropy"]
    assert float(task.signals["chance"]) == pytest.approx(0.02)
    assert set(task.signals) == {"accuracy", "chance", "spread"}
    assert loss.item() == pytest.approx(math.log(50), rel=0.2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"permutations": 1}, "--permutations 1: expected 2 to"),
        ({"permutations": 10_001}, "--permutations 10001: expected 2 to"),
        ({"shuffles": 0}, "--shuffles 0"),
        ({"grey": 1.5}, "--grey 1.5: expected a probability"),
        ({"hidden": 0}, "--hidden 0"),
        ({"crop_min": 0.0}, "--crop-min 0 "),
        ({"flip": 2.0}, "--flip 2"),
        ({"patch_side": 4}, "--patch-side 4"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Jigsaw(**settings)
