"""FCN: bilinear up-convolutions, VGG's classifier as convolutions, skips that begin at zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask import decoders
from fewmask.decoders import FCN8s, FCN16s, FCN32s
from fewmask.decoders.fcn import Enlarge, FCNNetwork
from fewmask.types import UserError


def slow_bilinear(x: Tensor, factor: int) -> Tensor:
    """[h,w] -> [f*h,f*w], pixel by pixel, at pixel centres; the edge is repeated."""
    h, w = x.shape
    out = torch.zeros(factor * h, factor * w)
    for i in range(factor * h):
        for j in range(factor * w):
            y, z = (i + 0.5) / factor - 0.5, (j + 0.5) / factor - 0.5
            top, left = int(y // 1), int(z // 1)
            for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
                for column, right in ((left, 1 - (z - left)), (left + 1, z - left)):
                    own = x[min(max(row, 0), h - 1), min(max(column, 0), w - 1)]
                    out[i, j] += down * right * own
    return out


@pytest.mark.parametrize("factor", [2, 8])
def test_an_up_convolution_begins_bilinear(factor: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 4, 5)
    made = Enlarge(3, factor, learned=True)
    assert made.weight.requires_grad
    found = made(x)
    torch.testing.assert_close(found[1, 2], slow_bilinear(x[1, 2], factor))
    torch.testing.assert_close(Enlarge(3, factor, learned=False)(x), found)


@pytest.mark.parametrize("factor", [16, 32])
def test_the_large_ones_too(factor: int) -> None:
    x = torch.rand(1, 2, 3, 2)
    wanted = functional.interpolate(x, scale_factor=factor, mode="bilinear")
    torch.testing.assert_close(Enlarge(2, factor, learned=True)(x), wanted)


def on_meta(decoder: FCN32s | FCN16s | FCN8s, encoder: str, n: int = 21) -> FCNNetwork:
    with torch.device("meta"):
        network = decoder.network(encoder, n)
    assert isinstance(network, FCNNetwork)
    return network


def test_vggs_classifier_is_three_convolutions() -> None:
    shapes = [tuple(m.weight.shape) for m in on_meta(FCN8s(), "vgg16").classifier if _is_conv(m)]
    assert shapes == [(4096, 512, 7, 7), (4096, 4096, 1, 1), (21, 4096, 1, 1)]
    drops = [m.p for m in on_meta(FCN8s(), "vgg16").classifier if isinstance(m, nn.Dropout)]
    assert drops == [0.5, 0.5]


def test_a_pooled_classifier_is_one() -> None:
    shapes = [tuple(m.weight.shape) for m in on_meta(FCN8s(), "resnet18").classifier]
    assert shapes == [(21, 512, 1, 1)]
    wide = on_meta(FCN8s(classifier_width=32), "resnet18").classifier
    assert [m.out_channels for m in wide if _is_conv(m)] == [32, 32, 21]


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


@pytest.mark.parametrize(("kind", "skips"), [(FCN32s, []), (FCN16s, [512]), (FCN8s, [512, 256])])
def test_skips_are_pool4_and_pool3(kind: type, skips: list[int]) -> None:
    network = on_meta(kind(), "vgg16_bn")
    assert [skip.in_channels for skip in network.skips] == skips
    assert len(network.ups) == len(skips)


def test_vggs_skips_are_what_its_poolings_give() -> None:
    torch.manual_seed(0)
    network = decoders.build(FCN8s(classifier_width=0), "vgg11_bn", 2).eval()
    images = torch.rand(1, 3, 64, 64)
    pools, x = [], images
    for module in network.encoder.features:
        x = module(x)
        if isinstance(module, nn.MaxPool2d):
            pools.append(x)
    maps = network.encoder(images)
    torch.testing.assert_close(network.skipped(maps, 4), pools[3])
    torch.testing.assert_close(network.skipped(maps, 3), pools[2])


def test_skips_begin_at_zero_and_count_once_they_are_not() -> None:
    torch.manual_seed(0)
    network = decoders.build(FCN8s(), "resnet18", 2).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        maps = network.encoder(images)
        x = network.classifier(maps[-1])
        for factor in (2, 2, 8):
            x = functional.interpolate(x, scale_factor=factor, mode="bilinear")
        torch.testing.assert_close(network(images), x)
        nn.init.ones_(network.skips[1].weight)
        assert not torch.allclose(network(images), x)


def test_which_up_convolutions_are_learned() -> None:
    def learned(decoder: FCN16s) -> list[bool]:
        network = on_meta(decoder, "resnet18")
        return [len(list(up.parameters())) > 0 for up in (*network.ups, network.last)]

    assert learned(FCN16s()) == [True, False]
    assert learned(FCN16s(learn_last=True)) == [True, True]
    assert learned(FCN16s(upsample="bilinear", learn_last=True)) == [False, False]


def test_a_width_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match="--classifier-width -1"):
        FCN8s(classifier_width=-1)
