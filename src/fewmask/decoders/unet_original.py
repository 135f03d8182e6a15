"""The first U-Net, with its 23 convolutions (Ronneberger et al. 2015, arXiv:1505.04597)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fewmask.encoders.unet import CHANNELS, UNetEncoder, double_convolution
from fewmask.types import UserError

LOST = 184
"""Pixels that unpadded convolutions take from each side's length: 572 - 388."""


@dataclass(frozen=True)
class UNetOriginal:
    """The U-Net of the paper, with its own encoder."""

    name: ClassVar[str] = "unet-original"

    padding: Literal["same", "valid"] = "same"
    """same pads each convolution; valid pads none (572 -> 388), as in the paper, and mirrors the
    image around itself first, so that there are logits for all of it."""
    dropout: float = 0.5
    """Rate of the dropout at the end of the contracting path (after the last two levels)."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout {self.dropout}: expected a rate of 0 or more and below 1")

    def network(self, encoder: str, n_logits: int) -> nn.Module:
        """The network. Raises ValueError for any encoder but its own."""
        if encoder != "unet-original":
            raise ValueError("it has an encoder of its own: unet-original")
        return UNetOriginalNetwork(n_logits, self.padding == "valid", self.dropout)


class UNetOriginalNetwork(nn.Module):
    """Images [B,3,H,W] -> logits [B,n_logits,H,W]; H and W are multiples of 16."""

    def __init__(self, n_logits: int, valid: bool, dropout: float) -> None:
        super().__init__()
        self.valid = valid
        padding = 0 if valid else 1
        self.encoder = UNetEncoder(padding)
        self.dropout = nn.Dropout(dropout)
        self.ups, self.levels = nn.ModuleList(), nn.ModuleList()
        for below, channels in zip(CHANNELS[:0:-1], CHANNELS[-2::-1], strict=True):
            self.ups.append(nn.ConvTranspose2d(below, channels, 2, stride=2))
            self.levels.append(double_convolution(below, channels, padding))
        self.score = nn.Conv2d(CHANNELS[0], n_logits, 1)

    def forward(self, images: Tensor) -> Tensor:
        if not self.valid:
            return self.as_in_the_paper(images)
        height, width = images.shape[-2:]
        # 4 more than the image: unpadded, the network's sides are 16 n + 4, not 16 n.
        logits = self.as_in_the_paper(with_mirrors(images, LOST // 2 + 2))
        return logits[..., 2 : height + 2, 2 : width + 2]

    def as_in_the_paper(self, images: Tensor) -> Tensor:
        """[B,3,H,W] -> logits of the same size; unpadded: [B,n_logits,H-184,W-184] (572 -> 388)."""
        *skips, x = self.encoder(images)
        skips[-1], x = self.dropout(skips[-1]), self.dropout(x)
        for up, level in zip(self.ups, self.levels, strict=True):
            x = up(x)
            x = level(torch.cat([cropped(skips.pop(), x), x], dim=1))
        logits: Tensor = self.score(x)
        return logits


def cropped(skip: Tensor, like: Tensor) -> Tensor:
    """The middle of [B,C,H,W] in the size of `like`."""
    height, width = like.shape[-2:]
    top, left = (skip.shape[-2] - height) // 2, (skip.shape[-1] - width) // 2
    return skip[..., top : top + height, left : left + width]


def with_mirrors(images: Tensor, margin: int) -> Tensor:
    """[B,C,H,W] -> [B,C,H+2m,W+2m]: mirrored at its borders, as often as the margin asks for."""
    rows, columns = (_mirrored(n, margin, images.device) for n in images.shape[-2:])
    return images[..., rows[:, None], columns]


def _mirrored(n: int, margin: int, device: torch.device) -> Tensor:
    """Indices of -margin to n + margin, reflected into 0 to n - 1 about the border's pixels."""
    period = max(1, 2 * (n - 1))
    places = torch.arange(-margin, n + margin, device=device) % period
    return torch.minimum(places, period - places)
