"""GoogLeNet as an encoder, under torchvision's names (Szegedy et al. 2014, arXiv:1409.4842)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewmask.encoders.pixels import renormalise

STEM = (64, 64, 192)
"""Channels of the three convolutions before the inception modules."""

INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Table 1 of the paper: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection."""

ENDS = ("3b", "4e", "5b")
"""The last module of each stride: 8, 16 and 32."""

POOLED = {"3b": 3, "4e": 2}
"""Modules with max-pooling after them, and its side (the paper has 3 twice, the weights don't)."""


class GoogLeNet(nn.Module):
    """Images [B,3,H,W] -> six maps, of strides 1 (the images) to 32.

    With batch norm, without the auxiliary heads, and with 3x3 convolutions where the paper has 5x5
    ones: so are torchvision's ImageNet weights. They were made on pixels of -1 to 1, so normalised
    images are taken there first, whatever the weights.
    """

    def __init__(self, depth: int = 5, output_stride: int = 32) -> None:
        super().__init__()
        if output_stride != 32 or depth < 3:
            raise ValueError("googlenet takes its strides from pooling and cannot be dilated")
        self.depth = depth
        self.conv1 = Convolution(3, STEM[0], 7, stride=2)
        self.conv2 = Convolution(STEM[0], STEM[1], 1)
        self.conv3 = Convolution(STEM[1], STEM[2], 3)
        # Modules, so that `masked` can see them; odd sides are rounded up.
        self.pool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.pool2 = nn.MaxPool2d(2, 2, ceil_mode=True)
        width = STEM[2]
        widths = [3, STEM[0], STEM[2]]
        for name, branches in INCEPTIONS.items():
            module = Inception(width, *branches)
            self.add_module(f"inception{name}", module)
            width = module.out_channels
            widths += [width] if name in ENDS else []
        self.out_channels = widths[: depth + 1]

    @property
    def output_stride(self) -> int:
        """Reduction of the last map."""
        return int(2**self.depth)

    def set_in_channels(self, channels: int, **_: object) -> None:
        """smp asks for it. Raises ValueError for anything but RGB."""
        if channels != 3:
            raise ValueError("googlenet takes three channels")

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.conv1(renormalise(images, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
        maps = [images, x]
        x = self.conv3(self.conv2(self.pool3(x)))
        maps.append(x)
        x = self.pool3(x)
        for name in INCEPTIONS:
            x = getattr(self, f"inception{name}")(x)
            if name in ENDS:
                maps.append(x)
            if len(maps) > self.depth:
                break
            if name in POOLED:
                x = (self.pool3 if POOLED[name] == 3 else self.pool2)(x)
        return maps


class Inception(nn.Module):
    """Four branches side by side: 1x1, 3x3, 3x3 again (for 5x5), and a pooled one."""

    def __init__(
        self, before: int, one: int, reduce: int, three: int, reduce5: int, five: int, pool: int
    ) -> None:
        super().__init__()
        self.branch1 = Convolution(before, one, 1)
        self.branch2 = nn.Sequential(Convolution(before, reduce, 1), Convolution(reduce, three, 3))
        self.branch3 = nn.Sequential(Convolution(before, reduce5, 1), Convolution(reduce5, five, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), Convolution(before, pool, 1))
        self.out_channels = one + three + five + pool

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU; the size is kept but for the stride."""

    def __init__(self, before: int, after: int, side: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, side, stride, side // 2, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.bn(self.conv(x))
        return normed.relu_()
