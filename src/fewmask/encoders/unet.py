"""The contracting path of the first U-Net (Ronneberger et al. 2015, arXiv:1505.04597)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (64, 128, 256, 512, 1024)


class UNetEncoder(nn.Module):
    """Images [B,3,H,W] -> five maps of strides 1 to 16: ten 3x3 convolutions, four max-poolings.

    As in the paper there is no batch norm. With `padding` 0 the convolutions are unpadded: each
    takes two pixels from height and width (572 -> 568, 280, 136, 64, 28). The weights are the same
    either way.
    """

    out_channels = CHANNELS
    output_stride = 16

    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        before = 3
        for channels in CHANNELS:
            self.levels.append(double_convolution(before, channels, padding))
            before = channels

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for level in self.levels:
            maps.append(level(functional.max_pool2d(maps[-1], 2) if maps else images))
        return maps


def double_convolution(before: int, after: int, padding: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with a ReLU.

    The weights are drawn from a normal distribution of standard deviation sqrt(2 / inputs of a
    unit), as in section 3 of the paper.
    """
    layers: list[nn.Module] = []
    for inputs in (before, after):
        convolution = nn.Conv2d(inputs, after, 3, padding=padding)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        convolution.bias.data.zero_()  # type: ignore[union-attr]
        layers += [convolution, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
