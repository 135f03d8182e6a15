"""Relative position: its geometry, its pairs, and that it learns from content alone."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from tests.pretext.small import GroupNormEncoder, make_batch
from torch import Tensor, nn

from fewmask.pretext.contract import Pool
from fewmask.pretext.patches import cut, normalise_each
from fewmask.pretext.relative_position import (
    LEAST_SIZE,
    Colours,
    Geometry,
    Pairs,
    RelativePosition,
    RelativePositionTask,
    coarse_sides,
    corners,
    geometry,
    pair_table,
)
from fewmask.types import UserError


def make_task(size: int = 48, **settings: Any) -> RelativePositionTask:
    encoder = GroupNormEncoder()
    torch.manual_seed(1)
    return RelativePosition(**settings).task(encoder, size, Pool())


def test_the_geometry_is_the_papers() -> None:
    assert geometry(398) == Geometry(patch=96, gap=48, jitter=7)
    assert geometry(796) == Geometry(patch=192, gap=96, jitter=14)
    assert geometry(96) == Geometry(patch=23, gap=11, jitter=2)
    for size in range(LEAST_SIZE, 500):
        g = geometry(size)
        assert size - 1 <= 3 * g.patch + 2 * g.gap + 2 * g.jitter <= size
        assert g.gap == pytest.approx(48 / 398 * size, abs=1.8)
        assert g.gap > 2 * g.jitter  # jittered patches never touch
        assert g.patch >= 8


def test_a_view_too_small_is_refused() -> None:
    assert geometry(LEAST_SIZE).patch == 8
    with pytest.raises(UserError, match=r"--size 31: .*expected --size 32 or more"):
        make_task(LEAST_SIZE - 1)


def test_patches_lie_on_a_jittered_grid() -> None:
    g = geometry(398)
    place = torch.rand(1000, 9, 1, 2, generator=torch.Generator().manual_seed(0))
    found = corners(place, g)
    for cell in range(9):
        grid = torch.tensor([144 * (cell // 3), 144 * (cell % 3)])
        assert (found[:, cell] - grid).unique().tolist() == list(range(15))  # 7 +- 7
    assert int(found.max()) + g.patch <= 398


def test_pairs_are_all_neighbours_both_ways_round() -> None:
    words = ["nw", "n", "ne", "w", "e", "sw", "s", "se"]
    found = {(a, b): words[d] for a, b, d in pair_table("all").tolist()}
    expected = {}
    for row in range(3):
        for column in range(3):
            for word in words:
                down = {"n": -1, "s": 1}.get(word[0], 0)
                right = {"w": -1, "e": 1}.get(word[-1], 0)
                if 0 <= row + down < 3 and 0 <= column + right < 3:
                    other = (row + down) * 3 + column + right
                    expected[row * 3 + column, other] = word
    assert found == expected
    assert len(found) == 40


def test_pairs_of_the_centre_are_its_eight_neighbours() -> None:
    found = pair_table("centre").tolist()
    assert found == [[4, n, d] for d, n in enumerate([0, 1, 2, 3, 5, 6, 7, 8])]


@pytest.mark.parametrize("pairs", get_args(Pairs))
def test_a_constant_answer_is_right_in_one_of_eight(pairs: Pairs) -> None:
    task = make_task(pairs=pairs)
    last = task.head[-1]  # type: ignore[index]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    loss = task(make_batch(side=64))["cross_entropy"]
    assert float(task.signals["accuracy"]) == pytest.approx(1 / 8)
    assert float(task.signals["chance"]) == pytest.approx(1 / 8)
    assert loss.item() == pytest.approx(math.log(8))


def test_the_loss_is_the_mean_over_directions_of_their_pairs_means() -> None:
    task = make_task()
    batch = make_batch(side=64)
    loss = task(batch)["cross_entropy"]
    features = task.encoder(_flat(task, batch))[-1].mean(dim=(2, 3)).view(8, 9, -1)
    table = pair_table("all").tolist()
    rows = [torch.cat([features[i, a], features[i, b]]) for i in range(8) for a, b, _ in table]
    logits = task.head(torch.stack(rows)).log_softmax(dim=1).view(8, 40, 8)
    means = [
        torch.stack([-logits[:, p, d] for p, (_, _, d) in enumerate(table) if d == wanted]).mean()
        for wanted in range(8)
    ]
    torch.testing.assert_close(loss, torch.stack(means).mean())


def _flat(task: RelativePositionTask, batch: Any) -> Tensor:
    patches = task.patches(batch).flatten(0, 1)
    return nn.functional.interpolate(patches, (task.side, task.side), mode="bilinear")


def test_a_third_of_the_patches_is_coarse() -> None:
    draws = torch.rand(4000, 1, 2, generator=torch.Generator().manual_seed(0))
    sides = coarse_sides(draws, 1 / 3, 96)
    coarse = sides[sides < 96]
    assert len(coarse) / 4000 == pytest.approx(1 / 3, abs=0.03)
    assert 10 <= int(coarse.min()) < 15
    assert 92 < int(coarse.max()) <= 95
    areas = coarse.float().square() / 96**2
    assert areas.mean() == pytest.approx(0.5, abs=0.04)  # evenly spread over areas
    assert (coarse_sides(draws, 0.0, 96) == 96).all()
    assert int(coarse_sides(draws, 1.0, 8).min()) >= 1


def test_patches_are_cut_from_the_picture_in_reading_order() -> None:
    """Without a crop and colour changes they are the picture's own pixels, normalised."""
    task = make_task(crop_min=1.0, coarse=0.0, colours="keep")
    batch = make_batch(side=48)
    found = task.patches(batch)
    place = torch.cartesian_prod(*[(torch.arange(3) + 0.5) / 3] * 2)  # jitter is 1: 3 x 3 places
    candidates = [
        normalise_each(cut(batch.images / 255, corners(p.expand(8, 9, 1, 2), task.geometry), 12))
        for p in place
    ]
    apart = torch.stack([(c - found).abs().amax(dim=(2, 3, 4)) for c in candidates])
    assert apart.min(dim=0).values.max() < 1e-3


@pytest.mark.parametrize("colours", get_args(Colours))
def test_colours_that_are_taken_out_cannot_be_seen(colours: Colours) -> None:
    """What the lens does is along green against magenta; patches keep one channel, or lose that."""
    patches = make_task(colours=colours, coarse=0.0).patches(make_batch(side=64))
    power = patches.square().mean(dim=(3, 4)).sort(dim=2).values
    along = patches[:, :, 1] - (patches[:, :, 0] + patches[:, :, 2]) / 2
    one_channel = bool((power[:, :, :2] < 0.02 * power[:, :, 2:]).all())
    assert one_channel == (colours == "drop")
    assert bool(along.abs().max() < 1e-3) == (colours in ("repeat", "project"))
    same = bool((patches - patches[:, :, :1]).abs().max() < 1e-4)
    assert same == (colours == "repeat")


def accuracy_after(steps: int, noise: bool) -> float:
    """Of the last steps; pictures are noise, or noise that is coarser the farther down it lies."""
    task = make_task(hidden=32, coarse=0.0, crop_min=0.9)
    optimizer = torch.optim.Adam(task.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    found = []
    for step in range(steps):
        pictures = torch.rand(8, 3, 48, 48, generator=generator)
        if not noise:
            coarse = nn.functional.avg_pool2d(pictures, 5, 1, 2)
            pictures[:, :, 17:31] = (3 * (coarse - 0.5) + 0.5).clamp(0, 1)[:, :, 17:31]
            pictures[:, :, 31:] = pictures[:, :, 31:].mean(dim=3, keepdim=True)
        batch = make_batch(side=48, step=step)._replace(images=(pictures * 255).to(torch.uint8))
        loss = task(batch)["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(task.signals["accuracy"]))
    return sum(found[-20:]) / 20


def test_it_learns_from_content() -> None:
    """The rows differ, the columns don't: north, south and level are told apart."""
    assert accuracy_after(60, noise=False) > 0.3


def test_there_is_nothing_to_learn_from_noise() -> None:
    """Chance is 0.125: where a patch lay shows in nothing but what it holds."""
    assert accuracy_after(60, noise=True) < 0.17


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pairs": "some"}, "--pairs some: expected one of all, centre"),
        ({"colours": "grey"}, "--colours grey: expected one of drop, repeat, project, keep"),
        ({"coarse": -0.1}, "--coarse -0.1: expected a probability"),
        ({"hidden": 0}, "--hidden 0"),
        ({"crop_min": 1.2}, "--crop-min 1.2"),
        ({"flip": 2.0}, "--flip 2"),
        ({"patch_side": 4}, "--patch-side 4"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        RelativePosition(**settings)
