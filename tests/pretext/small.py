"""A small encoder of smp's contract, and batches for it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fewmask.types import Batch


class GroupNormEncoder(nn.Module):
    """smp's contract on two convolutions, without batch norm."""

    out_channels = (3, 8, 16)
    output_stride = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.GroupNorm(2, 16), nn.ReLU())

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.one(images)
        return [images, first, self.two(first)]


def make_batch(
    rank: int = 0, world: int = 1, *, n: int = 8, side: int = 24, step: int = 2
) -> Batch:
    """This process' part of a batch of `n` smooth random pictures, labelled 0 and 1 in turn."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((n, 3, 6, 6), dtype=np.float32))
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    images = (smooth.clamp(0, 1) * 255).to(torch.uint8)
    part = n // world
    mine = slice(rank * part, (rank + 1) * part)
    labels = torch.arange(n) % 2
    return Batch(
        images[mine],
        torch.arange(n)[mine],
        seed=5,
        step=step,
        labels=labels[mine],
        start=rank * part,
        total=n,
    )
