"""Masked modelling: sparse convolution against plain loops; nothing hidden is ever seen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tests.pretext.small import GroupNormEncoder, make_batch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from fewmask import encoders
from fewmask.pretext.contract import Pool
from fewmask.pretext.masked import Masked, MaskedTask, cut, join, standardised
from fewmask.pretext.visible import Visible, sparsely
from fewmask.types import UserError

SHOWN = torch.tensor([[0, 5, 7], [2, 3, 8]])  # of 3 x 3 cells


def make_task(size: int = 48, **settings: float) -> MaskedTask:
    torch.manual_seed(1)
    return Masked(**settings).task(GroupNormEncoder(), size, Pool())


def slow_mask(side: int) -> Tensor:
    mask = torch.zeros(2, 1, side, side)
    for b, i, j in itertools.product(range(2), range(side), range(side)):
        cell = i * 3 // side * 3 + j * 3 // side
        mask[b, 0, i, j] = float(cell in SHOWN[b].tolist())
    return mask


@pytest.mark.parametrize("side", [3, 6, 12])
def test_masks_and_rows_name_the_visible_positions(side: int) -> None:
    visible = Visible(SHOWN, 3)
    assert torch.equal(visible.mask(side), slow_mask(side))
    assert sorted(visible.rows(side).tolist()) == slow_mask(side).flatten().nonzero()[:, 0].tolist()


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.pool(self.norm(self.conv(x)).relu())
        return found


def slow_layers(net: TwoLayers, x: Tensor) -> tuple[Tensor, Tensor]:
    """Maps by position, and the mean [4] of the convolution over visible positions."""
    weight, bias = net.conv.weight.detach().double(), net.conv.bias.detach().double()
    padded = nn.functional.pad(x.double() * slow_mask(12), [1, 1, 1, 1])
    mid, mask = torch.zeros(2, 4, 6, 6, dtype=torch.float64), slow_mask(6)[:, 0] > 0
    for b, i, j in itertools.product(range(2), range(6), range(6)):
        if mask[b, i, j]:
            window = padded[b, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            mid[b, :, i, j] = (weight * window).sum((1, 2, 3)) + bias
    values = torch.stack([mid[:, c][mask] for c in range(4)])
    mean, var = values.mean(1), values.var(1, correction=0)
    normed = (mid - mean[:, None, None]) / (var[:, None, None] + net.norm.eps).sqrt()
    normed = normed.relu() * mask[:, None]
    out = torch.zeros(2, 4, 3, 3, dtype=torch.float64)
    for b, i, j in itertools.product(range(2), range(3), range(3)):
        if slow_mask(3)[b, 0, i, j]:
            window = normed[b, :, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2]
            out[b, :, i, j] = window.amax((1, 2))
    return out, mean


def test_convolution_norm_and_pooling_see_visible_positions_alone() -> None:
    net = TwoLayers()
    x = torch.randn(2, 2, 12, 12)
    visible = Visible(SHOWN, 3)
    with sparsely(net, visible):
        found = net(x * visible.mask(12))
    expected, mean = slow_layers(net, x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    # PyTorch moves running statistics by a tenth of the way from their start, 0.
    torch.testing.assert_close(net.norm.running_mean.double(), mean / 10, rtol=1e-4, atol=1e-6)


@contextmanager
def watched(encoder: nn.Module, visible: Visible) -> Iterator[list[str]]:
    """Names of the convolutions whose input is not empty at hidden positions.

    The first one aside: googlenet's own statistics make a constant of the hidden zeros.
    """
    found: list[str] = []

    def look(name: str, x: Tensor) -> None:
        if x.shape[1] > 3 and x.shape[2] >= visible.cells:
            hidden = visible.mask(x.shape[2]) == 0
            if bool((x.abs().sum(1, keepdim=True)[hidden] > 0).any()):
                found.append(name)

    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: look(name, args[0]))
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    yield found
    for hook in hooks:
        hook.remove()


KINDS = ["resnet18", "densenet121", "vgg11_bn", "convnextv2_atto", "efficientnet-b0", "googlenet"]


@pytest.mark.parametrize("name", KINDS)
def test_hidden_pixels_change_nothing_and_hidden_positions_stay_empty(name: str) -> None:
    torch.manual_seed(0)
    encoder = encoders.build(name).eval()  # dropout is no matter here
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    names = list(encoder.state_dict())
    order = torch.rand(2, 64).argsort(dim=1)
    visible = Visible(order[:, :26].sort(dim=1).values, 8)
    images = torch.randn(2, 3, 64, 64)
    other = torch.where(visible.mask(64) > 0, images, torch.randn(2, 3, 64, 64))
    maps = []
    for pictures in (images, other):
        with torch.no_grad(), sparsely(encoder, visible), watched(encoder, visible) as dissolved:
            maps.append(encoder(pictures * visible.mask(64)))
        assert not dissolved
    for i, (one, two) in enumerate(zip(*maps, strict=True)):
        assert torch.equal(one, two)
        if i and one.shape[1] and one.shape[2] >= 8:
            empty = one.abs().sum(1, keepdim=True) == 0
            assert bool(empty[visible.mask(one.shape[2]) == 0].all()), f"level {i}"
            assert not bool(empty.all())
    assert list(encoder.state_dict()) == names
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in encoder.modules()]
    assert not any(hooks)


@pytest.mark.parametrize("width", [4, 6])  # 6: as many channels as columns
def test_layers_with_channels_last_add_nothing_where_hidden(width: int) -> None:
    """As in ConvNeXt's blocks, whose biases would fill the hidden positions."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
    visible = Visible(SHOWN, 3)
    nn.init.constant_(layers[0].bias, 1.0)
    mask = slow_mask(6).permute(0, 2, 3, 1)
    with torch.no_grad(), sparsely(layers[0], visible):
        normed = layers[0](torch.randn(2, 6, 6, width))
    assert torch.equal((normed != 0).any(dim=3, keepdim=True).float(), mask)
    with torch.no_grad(), sparsely(layers, visible):
        found = layers(torch.randn(2, 6, 6, width))
    assert torch.equal((found != 0).any(dim=3, keepdim=True).float(), mask)


def test_layer_norms_of_maps_are_told_from_those_with_channels_last() -> None:
    norm = LayerNorm2d(6)  # on maps of as many channels as columns
    nn.init.constant_(norm.bias, 1.0)
    with torch.no_grad(), sparsely(norm, Visible(SHOWN, 3)):
        found = norm(torch.randn(2, 6, 6, 6))
    assert torch.equal((found != 0).any(dim=1, keepdim=True).float(), slow_mask(6))


def test_the_encoder_is_plain_outside_the_task() -> None:
    torch.manual_seed(0)
    encoder = encoders.build("resnet18").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = encoder(x)[-1]
        task = Masked().task(encoder, 64, Pool()).eval()
        task(make_batch(side=64))
        after = encoder(x)[-1]
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["mit_b0", "pvt_v2_b0", "vit_tiny_patch16_224"])
def test_transformers_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"works on tokens.*such as resnet50"):
        Masked().task(encoders.build(name), 96, Pool())


@pytest.mark.parametrize(
    ("size", "stride", "unit"),
    [
        (224, 32, 32),
        (160, 32, 32),
        (128, 32, 16),
        (96, 32, 16),
        (64, 32, 8),
        (32, 32, 4),
        (16, 32, 4),
        (224, 16, 16),
    ],
)
def test_cells_suit_the_size(size: int, stride: int, unit: int) -> None:
    assert Masked().unit_for(size, stride) == unit


def test_the_view_holds_whole_cells() -> None:
    task = Masked().task(encoders.build("resnet18"), 100, Pool())
    assert (task.size, task.unit, task.cells) == (96, 16, 6)
    assert task.hidden == 22  # 60 % of 36, rounded
    assert task(make_batch(side=64))["reconstruction"].isfinite()


def test_the_loss_is_over_hidden_cells_standardised_one_by_one() -> None:
    task, batch = make_task(), make_batch()
    found = task(batch)["reconstruction"].item()
    images, visible, hidden, drawn, _ = task.complete(batch)
    mask, unit = visible.mask(task.size), task.unit
    errors, constant = [], []
    for b in range(len(images)):
        for k in hidden[b].tolist():
            top, left = k // task.cells * unit, k % task.cells * unit
            cell = images[b, :, top : top + unit, left : left + unit].double()
            assert not mask[b, 0, top : top + unit, left : left + unit].any()
            target = (cell - cell.mean()) / (cell.var(correction=0) + 1e-6).sqrt()
            answer = drawn[b, :, top : top + unit, left : left + unit].double()
            errors.append((answer - target).square().mean())
            constant.append(target.square().mean())
    assert len(errors) == 8 * round(0.6 * task.cells**2)
    assert found == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)
    expected = torch.stack(constant).mean().item()
    assert task.signals["constant_error"].item() == pytest.approx(expected, rel=1e-5)


def test_the_encoder_sees_what_is_visible_and_nothing_else() -> None:
    task, seen = make_task(), []
    handle = task.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images, visible, _, _, _ = task.complete(make_batch())
    handle.remove()
    assert torch.equal(seen[0], torch.where(visible.mask(task.size) > 0, images, 0.0))


def test_the_constant_answer_is_off_by_one() -> None:
    noise = cut(torch.rand(2, 3, 16, 16), 8)
    assert standardised(noise)[0].square().mean().item() == pytest.approx(1.0, abs=1e-3)
    assert standardised(torch.ones(1, 4, 48))[0].abs().max() == 0  # a flat cell has no detail


def test_cells_are_cut_row_by_row_and_joined_again() -> None:
    images = torch.rand(2, 3, 12, 12)
    cells = cut(images, 4)
    for i, j in itertools.product(range(3), range(3)):
        own = images[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        assert torch.equal(cells[:, 3 * i + j], own.flatten(1))
    assert torch.equal(join(cells, 4), images)
    chosen = torch.tensor([[4, 0], [8, 8]])
    assert torch.equal(cut(images, 4, chosen)[1, 0], cells[1, 8])


def test_each_picture_hides_cells_of_its_own_whichever_process_has_it() -> None:
    task = make_task()
    hidden = task.complete(make_batch())[2]
    assert len({tuple(sorted(row)) for row in hidden.tolist()}) == 8
    parts = [task.complete(make_batch(rank, 2))[2] for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), hidden)
    assert not torch.equal(task.complete(make_batch(step=3))[2], hidden)


def test_samples_show_what_was_hidden_drawn_and_true() -> None:
    task = make_task()
    pictures = task.samples(make_batch()._replace(step=0))
    assert pictures.shape == (8, 3, 48, 3 * 48)
    masked, completed, true = pictures.chunk(3, dim=3)
    seen = (masked == true).all(dim=1)
    assert 0.35 < seen.float().mean() < 0.45
    kept = seen[:, None].expand_as(true)
    assert torch.equal(completed[kept], true[kept])
    assert not torch.equal(completed, true)


def test_it_learns_to_complete_stripes() -> None:
    """Stripes go on behind what hides them, so the error must leave the constant answer's."""
    wave = 127 + 100 * torch.sin(torch.arange(24) * 0.5)
    pictures = wave.to(torch.uint8).expand(8, 3, 24, 24).contiguous()
    task = make_task(24, crop_min=1.0, flip=0.0, decoder_width=64)
    optimizer = torch.optim.Adam(task.parameters(), 3e-3)
    for step in range(40):
        loss = task(make_batch(step=step)._replace(images=pictures))["reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert task.signals["error"] < 0.5 * task.signals["constant_error"]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="--mask-ratio 1"):
        Masked(mask_ratio=1.0)
    with pytest.raises(UserError, match="--unit 12: expected one of 32, 16, 8, 4"):
        Masked(unit=12)
    with pytest.raises(UserError, match="--decoder-width 0"):
        Masked(decoder_width=0)
    with pytest.raises(UserError, match="--unit 32: --size 48 holds 1"):
        Masked(unit=32).unit_for(48, 32)
