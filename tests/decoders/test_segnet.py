"""SegNet: 13 + 13 convolutions, and unpooling by indices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask import decoders
from fewmask.decoders import SegNet
from fewmask.decoders.segnet import pooled, unpool


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def test_thirteen_convolutions_and_thirteen_mirrored_ones() -> None:
    with torch.device("meta"):
        network = SegNet().network("vgg16_bn", 11)
    down = [(c.in_channels, c.out_channels) for c in convolutions(network.encoder)]
    up = [(c.in_channels, c.out_channels) for c in convolutions(network.stages)]
    assert len(down) == len(up) == 13
    assert len(convolutions(network)) == 26
    assert up[:-1] == [(after, before) for before, after in reversed(down[1:])]
    assert up[-1] == (64, 11)
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in network.modules())
    norms = [m for m in network.stages.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 12  # the last gives the logits


def slow_pool_and_unpool(x: Tensor) -> Tensor:
    """[H,W]: of every 2x2 cell the first largest value where it was, zeros elsewhere."""
    out = torch.zeros_like(x)
    for i in range(0, x.shape[0], 2):
        for j in range(0, x.shape[1], 2):
            cells = [(i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1)]
            best = max(cells, key=lambda cell: float(x[cell]))
            out[best] = x[best]
    return out


def test_unpooling_puts_the_values_back() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 5, (2, 3, 6, 8)).float()  # with ties
    small, where = functional.max_pool2d(x, 2, 2, return_indices=True)
    found = unpool(small, where)
    for b in range(2):
        for c in range(3):
            assert torch.equal(found[b, c], slow_pool_and_unpool(x[b, c]))
    assert torch.equal(found, functional.max_unpool2d(small, where, 2, 2))


def test_the_walk_through_the_encoder_is_the_encoder() -> None:
    torch.manual_seed(0)
    network = decoders.build("segnet", "vgg11_bn", 1).eval()
    images = torch.rand(1, 3, 64, 96)
    x, indices = pooled(network.encoder.features, images)
    assert torch.equal(x, network.encoder(images)[-1])
    assert [tuple(i.shape[2:]) for i in indices] == [(32 >> i, 48 >> i) for i in range(5)]


@pytest.mark.parametrize("upsample", ["unpool", "bilinear", "transpose"])
def test_ways_of_enlarging(upsample: str) -> None:
    torch.manual_seed(0)
    network = decoders.build(SegNet(upsample=upsample), "vgg11_bn", 2)  # type: ignore[arg-type]
    logits = network(torch.rand(2, 3, 32, 64))
    assert logits.shape == (2, 2, 32, 64)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    learned = [m for m in network.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert len(learned) == (5 if upsample == "transpose" else 0)
    kept = len(decoders.build("segnet", "vgg11_bn", 2).state_dict())
    assert len(network.state_dict()) == kept + 2 * len(learned)
