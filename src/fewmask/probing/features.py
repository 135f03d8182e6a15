"""Frozen features: what an encoder says of pictures that it isn't trained on any further."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fewmask.augment import normalise, to_unit
from fewmask.data.store import ImageStore
from fewmask.progress import Report, silent

BATCH = 64


def frozen_features(
    encoder: nn.Module,
    store: ImageStore,
    rows: Sequence[int] | NDArray[np.int64],
    size: int,
    device: torch.device,
    report: Report = silent,
) -> Tensor:
    """Features float32 [n,D] of rows of a pool, on the CPU: means over the coarsest map.

    The encoder is in evaluation mode meanwhile and sees the pictures at `size`; cells of padding
    don't count.
    """
    chosen = np.asarray(rows, np.int64)
    was = encoder.training
    encoder.eval()
    found = []
    with torch.inference_mode():
        for i in range(0, len(chosen), BATCH):
            images, inside = network_input(store, chosen[i : i + BATCH], size, device)
            maps = encoder(images.contiguous(memory_format=torch.channels_last))
            found.append(pooled_inside(maps[-1], inside).cpu())
            report(min(i + BATCH, len(chosen)), len(chosen))
    encoder.train(was)
    return torch.cat(found)


def network_input(
    store: ImageStore, rows: NDArray[np.int64], size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Normalised images [n,3,size,size] of a pool, and the shares [n,2] that are not padding."""
    taken = store.take(rows)
    images = to_unit(torch.from_numpy(taken.images).permute(0, 3, 1, 2).to(device))
    if store.side != size:
        images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    inside = torch.from_numpy(taken.valid).to(device, torch.float32) / store.side
    return normalise(images), inside


def pooled_inside(features: Tensor, inside: Tensor) -> Tensor:
    """A feature map [B,D,h,w] -> [B,D] float32: the mean over the part that is not padding.

    `inside` [B,2] is the share of the height and of the width that holds the picture, top left;
    a cell that is partly outside counts in part.
    """
    weights = []
    for axis, n in enumerate(features.shape[-2:]):
        cells = torch.arange(n, device=features.device)
        weight = (inside[:, axis : axis + 1] * n - cells).clamp(0, 1)
        weights.append(weight / weight.sum(dim=1, keepdim=True))
    return torch.einsum("bdhw,bh,bw->bd", features.float(), weights[0], weights[1])
