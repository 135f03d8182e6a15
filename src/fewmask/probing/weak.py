"""Weak features: colours and edge directions by place, where there are no weights at hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fewmask.data.cache import ImageCache
from fewmask.progress import Report, silent

SIDE = 32
"""Every picture is brought to so many pixels a side."""
CELLS = 4
"""Cells a side in which colours and directions are summed up."""
DIRECTIONS = 8
"""Of an edge, over half a turn: dark to light is the same as light to dark."""
GREY = (0.299, 0.587, 0.114)
BATCH = 256
WIDTH = CELLS * CELLS * (3 + DIRECTIONS)


def weak_features(
    cache: ImageCache, rows: Sequence[int] | NDArray[np.int64], report: Report = silent
) -> Tensor:
    """Features float32 [n,176] of rows of a pool, on the CPU, without any weights.

    Of each of 4 x 4 cells the mean colour (red, green, blue) and the directions of its gradients,
    as in HOG (Dalal and Triggs 2005): 8 bins over half a turn, filled by the gradients' length,
    shared between the two nearest. The histograms of a picture together sum to 1, and their square
    roots are taken. Colours lie between -1/6 and 1/6, so that in photographs both halves vary about
    alike. Padding doesn't count.

    They know light, hue and layout, not what is in a picture.
    """
    chosen = np.asarray(rows, np.int64)
    found = [torch.empty(0, WIDTH)]
    with torch.inference_mode():
        for i in range(0, len(chosen), BATCH):
            part = chosen[i : i + BATCH]
            images = torch.from_numpy(cache.images[part]).permute(0, 3, 1, 2).float() / 255
            small = shrunk(images, torch.from_numpy(cache.valid[part]))
            colours = functional.adaptive_avg_pool2d(2 * small - 1, CELLS).flatten(1) / 6
            found.append(torch.cat([colours, directions(small)], dim=1))
            report(min(i + BATCH, len(chosen)), len(chosen))
    return torch.cat(found)


def shrunk(images: Tensor, valid: Tensor) -> Tensor:
    """[B,3,S,S] -> [B,3,32,32]: means over the equal parts of what is not padding (top left).

    `valid` int [B,2] is its height and width.
    """
    heights, widths = (_parts(valid[:, axis], images.shape[-1]) for axis in (0, 1))
    return heights[:, None] @ images @ widths[:, None].transpose(-1, -2)


def _parts(length: Tensor, side: int) -> Tensor:
    """Shares [B,32,side]: how much of each of 32 equal parts of `length` lies in each pixel."""
    step = (length.float() / SIDE)[:, None, None]
    begin = step * torch.arange(SIDE)[:, None]
    pixel = torch.arange(side)
    inside = torch.minimum(begin + step, pixel + 1.0) - torch.maximum(begin, pixel.float())
    return inside.clamp(min=0) / step


def directions(images: Tensor) -> Tensor:
    """[B,3,32,32] of values 0 to 1 -> square roots [B,128] of the histograms of edge directions.

    All 0 of a plain picture.
    """
    grey = torch.einsum("bchw,c->bhw", images, torch.tensor(GREY))
    framed = functional.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    across = framed[:, 1:-1, 2:] - framed[:, 1:-1, :-2]
    down = framed[:, 2:, 1:-1] - framed[:, :-2, 1:-1]
    length = torch.hypot(across, down)
    # In bins, 0 to 8; the last is the first again.
    place = torch.atan2(down, across) / torch.pi * DIRECTIONS % DIRECTIONS
    lower = place.floor()
    upper_share = place - lower
    bins = length.new_zeros(len(grey), DIRECTIONS, SIDE, SIDE)
    first = lower.long()[:, None] % DIRECTIONS
    bins.scatter_add_(1, first, (length * (1 - upper_share))[:, None])
    bins.scatter_add_(1, (first + 1) % DIRECTIONS, (length * upper_share)[:, None])
    sums = functional.adaptive_avg_pool2d(bins, CELLS).flatten(1)
    total = sums.sum(dim=1, keepdim=True)
    return torch.where(total > 1e-4, sums / total.clamp(min=1e-4), torch.zeros(())).sqrt()
