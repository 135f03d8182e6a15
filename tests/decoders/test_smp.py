"""What we add to smp's decoders: the ways of enlarging in U-Net, and nothing left untrained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from fewmask import decoders
from fewmask.decoders import Unet
from fewmask.decoders.smp import UpConvolved


def test_by_default_the_unet_is_smps() -> None:
    torch.manual_seed(0)
    ours = decoders.build("unet", "resnet18", 2)
    torch.manual_seed(0)
    theirs = smp.Unet("resnet18", encoder_weights=None, classes=2)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
    assert decoders.smp_config(ours) is not None


def test_a_bilinear_unet_opens_in_smp(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = decoders.build(Unet(upsample="bilinear"), "resnet18", 1).eval()
    nearest = decoders.build("unet", "resnet18", 1).eval()
    nearest.load_state_dict(ours.state_dict())
    config = decoders.smp_config(ours)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(dict(ours.state_dict()), tmp_path / "model.safetensors", {"format": "pt"})
    opened = smp.from_pretrained(str(tmp_path)).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(opened(images), ours(images))
        assert not torch.allclose(nearest(images), ours(images))


def test_up_convolutions_halve_the_channels() -> None:
    network = decoders.build(Unet(upsample="transpose"), "resnet18", 1)
    ups = [m for m in network.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [(up.in_channels, up.out_channels) for up in ups] == [
        (512, 256), (256, 128), (128, 64), (64, 32), (32, 16),
    ]  # fmt: skip
    assert decoders.smp_config(network) is None
    logits = network(torch.rand(2, 3, 32, 64))
    assert logits.shape == (2, 1, 32, 64)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_an_up_convolution_that_repeats_its_pixels_is_the_nearest_neighbour() -> None:
    torch.manual_seed(0)
    block = UpConvolved(4, 3, 5).eval()
    nn.init.zeros_(block.up.weight)
    nn.init.zeros_(block.up.bias)
    for i in range(2):
        nn.init.ones_(block.up.weight[i, i])
    x, skip = torch.rand(1, 4, 3, 5), torch.rand(1, 3, 6, 10)
    near = functional.interpolate(x[:, :2], scale_factor=2)
    torch.testing.assert_close(block(x, 6, 10, skip), block.block(near, 6, 10, skip))


@pytest.mark.parametrize(
    ("decoder", "encoder", "unused"),
    [
        ("pspnet", "resnet18", "encoder.layer4."),
        ("unetplusplus", "vgg11_bn", "decoder.center."),
        ("unetplusplus", "resnet18", None),
    ],
)
def test_what_the_logits_do_not_depend_on_is_not_trained(
    decoder: str, encoder: str, unused: str | None
) -> None:
    network = decoders.build(decoder, encoder, 1)
    assert network.training
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    if unused is None:
        assert not frozen
    else:
        assert {n for n, _ in network.named_parameters() if n.startswith(unused)} <= frozen
        assert not any(n.startswith("encoder.layer1") for n in frozen)
