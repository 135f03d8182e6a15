"""Patches: where they are cut, and what is done to each against short cuts."""

from __future__ import annotations

import pytest
import torch
from tests.pretext.small import GroupNormEncoder, make_batch
from torch import Tensor
from torch.nn import functional

from fewmask import encoders
from fewmask.pretext.patches import (
    GREY_LEVEL,
    check_patch_side,
    coarsened,
    coarsening,
    cut,
    drop_colours,
    encoded,
    greyed,
    input_side,
    normalise_each,
    project_colours,
    repeat_colour,
    uniform,
)
from fewmask.types import UserError


def random_patches(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_cut_as_a_loop_cuts_them(channels: int) -> None:
    images = random_patches(2, 3, 20, 24)
    generator = torch.Generator().manual_seed(1)
    corners = torch.randint(0, 13, (2, 5, channels, 2), generator=generator)
    found = cut(images, corners, 8)
    assert found.shape == (2, 5, 3, 8, 8)
    for i in range(2):
        for p in range(5):
            for c in range(3):
                top, left = corners[i, p, c % channels].tolist()
                assert torch.equal(found[i, p, c], images[i, c, top : top + 8, left : left + 8])


def test_each_patch_is_normalised_on_its_own() -> None:
    patches = random_patches(2, 3, 3, 6, 6) * torch.tensor([0.1, 0.5, 1.0]).view(3, 1, 1)
    found = normalise_each(patches)
    for i in range(2):
        for p in range(3):
            one = patches[i, p]
            centred = torch.stack([channel - channel.mean() for channel in one])
            expected = centred / centred.flatten().std(correction=0)
            torch.testing.assert_close(found[i, p], expected)
    darker = normalise_each(0.3 * patches + 0.2)
    torch.testing.assert_close(darker, found, rtol=1e-4, atol=1e-4)


def test_a_flat_patch_stays_flat() -> None:
    """Rounding of less than a grey level isn't blown up to the contrast of a picture."""
    patches = 0.5 + 0.01 * GREY_LEVEL * random_patches(1, 1, 3, 6, 6)
    assert normalise_each(patches).abs().max() < 0.01


def test_the_chosen_images_become_grey() -> None:
    images = random_patches(3, 3, 5, 5)
    found = greyed(images, torch.tensor([True, False, True]))
    assert torch.equal(found[1], images[1])
    luma = 0.299 * images[0, 0] + 0.587 * images[0, 1] + 0.114 * images[0, 2]
    for channel in found[0]:
        torch.testing.assert_close(channel, luma)


def test_dropped_colours_are_noise_of_a_grey_level() -> None:
    patches, noise = random_patches(2, 4, 3, 6, 6), random_patches(2, 4, 3, 6, 6)
    kept = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    found = drop_colours(patches, kept, noise)
    for i in range(2):
        for p in range(4):
            for c in range(3):
                if c == kept[i, p]:
                    assert torch.equal(found[i, p, c], patches[i, p, c])
                else:
                    assert found[i, p, c].abs().max() <= 0.5 * GREY_LEVEL
                    assert found[i, p, c].std() > 0.2 * GREY_LEVEL


def test_a_repeated_colour_is_in_all_three_channels() -> None:
    patches = random_patches(2, 4, 3, 6, 6)
    kept = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    found = repeat_colour(patches, kept)
    for i in range(2):
        for p in range(4):
            for c in range(3):
                assert torch.equal(found[i, p, c], patches[i, p, kept[i, p]])


def test_projected_colours_have_no_green_magenta() -> None:
    patches = random_patches(2, 4, 3, 6, 6)
    a = torch.tensor([[-1.0, 2.0, -1.0]])
    matrix = torch.eye(3) - a.T @ a / (a @ a.T)
    expected = torch.einsum("cd,bpdhw->bpchw", matrix, patches)
    torch.testing.assert_close(project_colours(patches), expected)
    along = torch.einsum("d,bpdhw->bphw", a[0], project_colours(patches))
    assert along.abs().max() < 1e-5


def test_coarsening_is_shrinking_and_enlarging() -> None:
    patches = random_patches(2, 2, 3, 12, 12)
    sides = torch.tensor([[12, 3], [7, 1]])
    found = coarsened(patches, sides, coarsening(12))
    for i in range(2):
        for p in range(2):
            k = int(sides[i, p])
            small = functional.interpolate(
                patches[i, p][None], (k, k), mode="bilinear", antialias=True
            )
            large = functional.interpolate(small, (12, 12), mode="bilinear")[0]
            torch.testing.assert_close(found[i, p], large, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0, 0], patches[0, 0])


def test_noise_of_two_processes_is_that_of_one() -> None:
    whole = uniform(make_batch(), (3, 5, 5), 2)
    parts = [uniform(make_batch(rank, 2), (3, 5, 5), 2) for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(uniform(make_batch(step=3), (3, 5, 5), 2), whole)


@pytest.mark.parametrize(
    ("side", "stride", "wanted", "expected"),
    [(27, 32, None, 40), (64, 32, None, 64), (27, 16, None, 27), (27, 32, 64, 64), (64, 32, 8, 8)],
)
def test_the_side_at_which_patches_enter(
    side: int, stride: int, wanted: int | None, expected: int
) -> None:
    encoder = GroupNormEncoder()
    encoder.output_stride = stride
    assert input_side(side, encoder, wanted) == expected


def test_at_the_default_side_every_weight_of_the_last_convolution_learns() -> None:
    """At the side of a tile of a 96 px view the last map has one position: only centres do."""
    encoder = encoders.build("resnet18")
    last = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    learnt = {}
    for side in (27, input_side(27, encoder, None)):
        encoder.zero_grad()
        encoded(encoder, random_patches(2, 3, 3, 27, 27), side).square().sum().backward()
        assert last.weight.grad is not None
        learnt[side] = int((last.weight.grad.abs().sum(dim=(0, 1)) > 0).sum())
    assert learnt == {27: 1, 40: 9}


def test_one_encoder_sees_all_patches() -> None:
    encoder = GroupNormEncoder()
    patches = random_patches(2, 4, 3, 12, 12)
    found = encoded(encoder, patches, 16)
    for i in range(2):
        for p in range(4):
            sized = functional.interpolate(patches[i, p][None], (16, 16), mode="bilinear")
            expected = encoder(sized)[-1].mean(dim=(2, 3))[0]
            torch.testing.assert_close(found[i, p], expected, rtol=1e-4, atol=1e-5)


def test_a_side_too_small_is_refused() -> None:
    check_patch_side(None)
    with pytest.raises(UserError, match="--patch-side 7: expected 8"):
        check_patch_side(7)
