"""FCN: a classifier turned convolutional, with skips (Long et al. 2015, arXiv:1411.4038)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask import encoders
from fewmask.types import UserError

VGG_WIDTH = 4096


@dataclass(frozen=True)
class FCN:
    """A fully convolutional network on any encoder with a map of stride 32."""

    name: ClassVar[str]
    stride: ClassVar[int]
    """Of the finest scores: 32, 16 or 8."""

    classifier_width: int | None = None
    """Width of the two fully connected layers turned into convolutions (default: 4096 on VGG, as
    in the paper; 0, none, on encoders whose own classifier is pooling and one linear layer)."""
    upsample: Literal["transpose", "bilinear"] = "transpose"
    """How scores are enlarged: by learned up-convolutions that begin bilinear, or bilinear."""
    learn_last: bool = False
    """Also learn the last up-convolution, to the image's size; the paper keeps it bilinear."""

    def __post_init__(self) -> None:
        if self.classifier_width is not None and self.classifier_width < 0:
            raise UserError(f"--classifier-width {self.classifier_width}: expected 0 or more")

    def network(self, encoder: str, n_logits: int) -> nn.Module:
        """The network. Raises ValueError for an encoder without a map of stride 32."""
        found = encoders.build(encoder)
        if found.output_stride != 32:
            raise ValueError("it needs maps of strides 8, 16 and 32, as most encoders give")
        is_vgg = encoders.smp_name(encoder).removeprefix("tu-").startswith("vgg")
        return FCNNetwork(self, found, n_logits, is_vgg)


@dataclass(frozen=True)
class FCN32s(FCN):
    """FCN-32s: scores of stride 32 alone."""

    name: ClassVar[str] = "fcn32s"
    stride: ClassVar[int] = 32


@dataclass(frozen=True)
class FCN16s(FCN):
    """FCN-16s: scores of stride 32, with those of stride 16 added."""

    name: ClassVar[str] = "fcn16s"
    stride: ClassVar[int] = 16


@dataclass(frozen=True)
class FCN8s(FCN):
    """FCN-8s: scores of stride 32, with those of strides 16 and 8 added."""

    name: ClassVar[str] = "fcn8s"
    stride: ClassVar[int] = 8


class FCNNetwork(nn.Module):
    """Images [B,3,H,W] -> logits [B,n_logits,H,W]; H and W are multiples of 32.

    The skips' scores begin at zero, so the coarse ones are learned first. The paper pads the image
    by 100 pixels for VGG's 7x7 classifier; here that one is padded by 3, which keeps the size.
    """

    def __init__(self, config: FCN, encoder: nn.Module, n_logits: int, is_vgg: bool) -> None:
        super().__init__()
        self.encoder, self.is_vgg = encoder, is_vgg
        channels: Any = encoder.out_channels
        width = config.classifier_width
        width = (VGG_WIDTH if is_vgg else 0) if width is None else width
        self.classifier = classifier(channels[-1], width, n_logits)
        self.skips, self.ups = nn.ModuleList(), nn.ModuleList()
        learned = config.upsample == "transpose"
        self.levels = [level for level in (4, 3) if 2**level >= config.stride]
        for level in self.levels:
            score = nn.Conv2d(channels[level - is_vgg], n_logits, 1)
            score.weight.data.zero_()
            score.bias.data.zero_()  # type: ignore[union-attr]
            self.skips.append(score)
            self.ups.append(Enlarge(n_logits, 2, learned))
        self.last = Enlarge(n_logits, config.stride, learned and config.learn_last)

    def forward(self, images: Tensor) -> Tensor:
        maps: list[Tensor] = self.encoder(images)
        scores: Tensor = self.classifier(maps[-1])
        for level, skip, up in zip(self.levels, self.skips, self.ups, strict=True):
            scores = up(scores) + skip(self.skipped(maps, level))
        enlarged: Tensor = self.last(scores)
        return enlarged

    def skipped(self, maps: list[Tensor], level: int) -> Tensor:
        """The map of stride 2^level that a skip scores: of VGG pool4 and pool3, as in the paper.

        (The encoder's own map of that stride is what VGG computes from it.)
        """
        return functional.max_pool2d(maps[level - 1], 2) if self.is_vgg else maps[level]


def classifier(channels: int, width: int, n_logits: int) -> nn.Sequential:
    """VGG's fully connected layers as convolutions (7x7, 1x1), and the scores; or those alone."""
    layers: list[nn.Module] = []
    if width:
        layers += [nn.Conv2d(channels, width, 7, padding=3), nn.ReLU(inplace=True), nn.Dropout()]
        layers += [nn.Conv2d(width, width, 1), nn.ReLU(inplace=True), nn.Dropout()]
    scores = nn.Conv2d(width or channels, n_logits, 1)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.xavier_uniform_(scores.weight)
    return nn.Sequential(*layers, scores)


class Enlarge(nn.Module):
    """[B,C,h,w] -> [B,C,f*h,f*w]: an up-convolution that begins bilinear, or bilinear.

    The edge is repeated around the map first, which makes the two equal up to the border.
    """

    def __init__(self, channels: int, factor: int, learned: bool) -> None:
        super().__init__()
        self.factor, self.learned = factor, learned
        if learned:
            weight = torch.zeros(channels, channels, 2 * factor, 2 * factor)
            each = torch.arange(channels)
            weight[each, each] = bilinear_kernel(factor)
            self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        f = self.factor
        if not self.learned:
            return functional.interpolate(x, scale_factor=f, mode="bilinear", align_corners=False)
        around = functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return functional.conv_transpose2d(around, self.weight, stride=f, padding=f + f // 2)


def bilinear_kernel(factor: int) -> Tensor:
    """[2f,2f]: the weights of a bilinear enlargement by an even factor f, as an up-convolution."""
    places = torch.arange(2 * factor) - (factor - 0.5)
    along = 1 - places.abs() / factor
    return along[:, None] * along
