"""How unsure a fine-tuned model is of each picture of a pool."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fewmask.augment import to_unit
from fewmask.data.cache import ImageCache
from fewmask.probing.features import pooled_inside
from fewmask.probing.splits import Rows
from fewmask.progress import Report, silent
from fewmask.segmentation import Geometry, Segmenter

BATCH = 32


def entropy(logits: Tensor) -> Tensor:
    """Logits [B,C,H,W] -> the entropy [B,H,W] of each pixel's probabilities, float32, 0 to 1.

    Divided by ln K of K classes, so that 1 is an even guess. One logit stands for two classes.
    """
    values = logits.float()
    if values.shape[1] == 1:
        values = torch.cat([torch.zeros_like(values), values], dim=1)
    log = functional.log_softmax(values, dim=1)
    return -(log.exp() * log).sum(dim=1) / math.log(values.shape[1])


def mean_entropy(
    segmenter: Segmenter,
    geometry: Geometry,
    cache: ImageCache,
    rows: Rows,
    device: torch.device,
    report: Report = silent,
) -> NDArray[np.float64]:
    """The mean entropy [n] over each picture's pixels, 0 to 1, of rows of a pool.

    At the size that the network sees, without what is padding. The pool was cached with the
    geometry's own `resize`. It is high for pictures with much boundary, too, not only for new ones.
    """
    segmenter.eval()
    found = [np.empty(0)]
    side = cache.images.shape[1]
    with torch.inference_mode():
        for i in range(0, len(rows), BATCH):
            part = rows[i : i + BATCH]
            images = torch.from_numpy(cache.images[part]).permute(0, 3, 1, 2).to(device)
            seen = to_unit(images)
            if side != geometry.size:
                seen = functional.interpolate(
                    seen, (geometry.size,) * 2, mode="bilinear", antialias=True
                )
            inside = torch.from_numpy(cache.valid[part]).to(device, torch.float32) / side
            values = pooled_inside(entropy(segmenter(seen))[:, None], inside)[:, 0]
            found.append(values.double().cpu().numpy())
            report(min(i + BATCH, len(rows)), len(rows))
    return np.concatenate(found)
