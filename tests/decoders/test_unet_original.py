"""The first U-Net: 23 convolutions, 572 -> 388, and logits for the whole image all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fewmask.decoders import UNetOriginal
from fewmask.decoders.unet_original import UNetOriginalNetwork, with_mirrors
from fewmask.types import UserError


def build(padding: str = "valid", n: int = 2) -> UNetOriginalNetwork:
    torch.manual_seed(0)
    network = UNetOriginal(padding=padding).network("unet-original", n)  # type: ignore[arg-type]
    assert isinstance(network, UNetOriginalNetwork)
    return network.eval()


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_it_has_23_convolutions(padding: str) -> None:
    with torch.device("meta"):
        network = build(padding)
    kinds = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(kinds) == 23
    assert [m.kernel_size for m in kinds].count((2, 2)) == 4
    assert [m.kernel_size for m in kinds].count((1, 1)) == 1


def test_572_becomes_388() -> None:
    with torch.device("meta"):
        network = build()
        images = torch.zeros(1, 3, 572, 572)
        sides = [m.shape[-1] for m in network.encoder(images)]
        assert sides == [568, 280, 136, 64, 28]
        assert network.as_in_the_paper(images).shape == (1, 2, 388, 388)
        assert network(torch.zeros(1, 3, 384, 400)).shape == (1, 2, 384, 400)


def test_unpadded_logits_are_those_of_the_mirrored_image() -> None:
    network = build()
    images = torch.rand(1, 3, 16, 32)
    border = ((0, 0), (0, 0), (94, 94), (94, 94))
    around = torch.from_numpy(np.pad(images.numpy(), border, mode="reflect"))
    assert torch.equal(with_mirrors(images, 94), around)
    with torch.inference_mode():
        wanted = network.as_in_the_paper(around)[..., 2:18, 2:34]
        assert torch.equal(network(images), wanted)


def test_far_from_the_border_padding_makes_no_difference() -> None:
    padded, unpadded = build("same"), build("valid")
    unpadded.load_state_dict(padded.state_dict())
    images = torch.rand(1, 3, 208, 208)
    with torch.inference_mode():
        found, wanted = unpadded(images), padded(images)
    # A logit sees 94 pixels to each side.
    torch.testing.assert_close(found[..., 96:112, 96:112], wanted[..., 96:112, 96:112])
    assert not torch.allclose(found[..., :16, :16], wanted[..., :16, :16])


def test_weights_are_drawn_as_in_the_paper() -> None:
    level = build().encoder.levels[2]
    assert level[2].weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert not level[2].bias.any()


def test_dropout_is_in_the_decoder_alone() -> None:
    network = build("same").train()
    images = torch.rand(1, 3, 32, 32)
    assert not any(isinstance(m, nn.Dropout) for m in network.encoder.modules())
    assert not torch.equal(network(images), network(images))
    still = UNetOriginal(dropout=0.0).network("unet-original", 1).train()
    assert torch.equal(still(images), still(images))
    with pytest.raises(UserError, match="--dropout 1"):
        UNetOriginal(dropout=1)
