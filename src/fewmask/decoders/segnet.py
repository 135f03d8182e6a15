"""SegNet: VGG, mirrored, with unpooling by the encoder's pooling indices.

Badrinarayanan et al. 2017, arXiv:1511.00561.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from fewmask import encoders


@dataclass(frozen=True)
class SegNet:
    """SegNet, on VGG encoders (the paper's is vgg16_bn)."""

    name: ClassVar[str] = "segnet"

    upsample: Literal["unpool", "bilinear", "transpose"] = "unpool"
    """How maps are enlarged: values back to where max-pooling took them from, bilinear, or by a
    learned 2x2 up-convolution."""

    def network(self, encoder: str, n_logits: int) -> nn.Module:
        """The network. Raises ValueError for an encoder that is not smp's VGG."""
        from segmentation_models_pytorch.encoders.vgg import VGGEncoder, vgg_encoders

        found = encoders.build(encoder)
        if not isinstance(found, VGGEncoder):
            raise ValueError(
                "it mirrors the convolutions and needs the pooling indices of a VGG: "
                f"{', '.join(vgg_encoders)}"
            )
        return SegNetNetwork(found, n_logits, self.upsample)


class SegNetNetwork(nn.Module):
    """Images [B,3,H,W] -> logits [B,n_logits,H,W]; H and W are multiples of 32.

    Each convolution of the encoder has its mirror, with batch norm and ReLU; the mirror of the
    first one gives the logits.
    """

    def __init__(self, encoder: Any, n_logits: int, upsample: str) -> None:
        super().__init__()
        self.encoder: Any = encoder
        stages = stages_of(encoder.features)
        self.ups, self.stages = nn.ModuleList(), nn.ModuleList()
        for stage in reversed(stages):
            channels = stage[-1].out_channels
            self.ups.append(_up(channels, upsample))
            self.stages.append(mirrored(stage, n_logits if stage is stages[0] else None))

    def forward(self, images: Tensor) -> Tensor:
        x, indices = pooled(self.encoder.features, images)
        for up, stage in zip(self.ups, self.stages, strict=True):
            x = stage(up(x, indices.pop()))
        return x


def stages_of(features: nn.Sequential) -> list[list[nn.Conv2d]]:
    """The convolutions of a VGG between its poolings."""
    stages: list[list[nn.Conv2d]] = [[]]
    for module in features:
        if isinstance(module, nn.Conv2d):
            stages[-1].append(module)
        elif isinstance(module, nn.MaxPool2d):
            stages.append([])
    return stages[:-1]


def mirrored(stage: list[nn.Conv2d], n_logits: int | None) -> nn.Sequential:
    """The stage's convolutions backwards; the last one gives `n_logits` where that is given."""
    layers: list[nn.Module] = []
    for convolution in reversed(stage):
        first = n_logits is not None and convolution is stage[0]
        after = n_logits if first and n_logits else convolution.in_channels
        mirror = nn.Conv2d(convolution.out_channels, after, 3, padding=1, bias=first)
        nn.init.kaiming_normal_(mirror.weight, nonlinearity="relu")
        layers += [mirror] if first else [mirror, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def pooled(features: nn.Sequential, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A VGG's last map, and of each pooling where in its map [h,w] each maximum was found."""
    x, indices = images, []
    for module in features:
        if isinstance(module, nn.MaxPool2d):
            x, where = functional.max_pool2d(x, 2, 2, return_indices=True)
            indices.append(where)
        else:
            x = module(x)
    return x, indices


def unpool(x: Tensor, indices: Tensor) -> Tensor:
    """[B,C,h,w] -> [B,C,2h,2w]: each value at its index in the map of twice the size, else 0."""
    b, c, height, width = x.shape
    empty = x.new_zeros(b, c, 4 * height * width)
    return empty.scatter(2, indices.flatten(2), x.flatten(2)).view(b, c, 2 * height, 2 * width)


class Unpool(nn.Module):
    """`unpool` as a module."""

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        return unpool(x, indices)


class WithoutIndices(nn.Module):
    """To twice the size: bilinear, or by a learned up-convolution."""

    def __init__(self, channels: int, learned: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2) if learned else None

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        if self.up is None:
            return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        enlarged: Tensor = self.up(x)
        return enlarged


def _up(channels: int, upsample: str) -> nn.Module:
    return Unpool() if upsample == "unpool" else WithoutIndices(channels, upsample == "transpose")
