"""From the normalisation that all of fewmask uses to the one that some weights were made with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewmask.augment import MEAN, STD
from fewmask.constants import constant


def renormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images [B,3,H,W] normalised by ImageNet's statistics -> normalised by others, a channel each.

    `mean` and `std` are of pixels of 0 to 1. ImageNet's own leave the images as they are.
    """
    if tuple(mean) == MEAN and tuple(std) == STD:
        return images
    scale = tuple(ours / theirs for ours, theirs in zip(STD, std, strict=True))
    shift = tuple((ours - theirs) / s for ours, theirs, s in zip(MEAN, mean, std, strict=True))
    return images * constant(scale, images)[:, None, None] + constant(shift, images)[:, None, None]
