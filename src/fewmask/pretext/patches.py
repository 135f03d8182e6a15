"""Patches of a view, and what keeps their puzzles from being solved without looking at content."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask.augment import step_generator
from fewmask.constants import constant
from fewmask.pretext.contract import pooled
from fewmask.types import Batch, UserError

LEAST = 8
"""Pixels a side of the smallest patch that tells anything."""

GREY_LEVEL = 1 / 255
"""One step of an 8-bit image, for values of 0 to 1."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_GREEN_MAGENTA = (-1.0, 2.0, -1.0)  # Doersch et al. 2015, sec. 3.1


def cut(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """Patches [B,P,3,side,side] of images [B,3,H,W].

    corners int64 [B,P,3,2] are the top and left pixel of each patch in each channel (or [B,P,1,2]:
    in all channels alike); the patches lie inside the images.
    """
    n, channels = images.shape[:2]
    span = torch.arange(side, device=images.device)
    image = torch.arange(n, device=images.device).view(n, 1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(channels, 1, 1)
    rows = corners[..., 0, None] + span
    columns = corners[..., 1, None] + span
    return images[image, channel, rows[..., :, None], columns[..., None, :]]


def normalise_each(patches: Tensor) -> Tensor:
    """Each patch [...,3,s,s] on its own: each channel to mean 0, the whole to variance 1.

    So brightness and contrast do not say which patches lie together. What varies by less than one
    grey level is divided by one grey level.
    """
    centred = patches - patches.mean(dim=(-2, -1), keepdim=True)
    power = centred.square().mean(dim=(-3, -2, -1), keepdim=True)
    return centred / power.sqrt().clamp_min(GREY_LEVEL)


def greyed(images: Tensor, chosen: Tensor) -> Tensor:
    """Images [B,3,H,W] with those that are chosen [B] turned grey (ITU-R BT.601)."""
    grey = (images * constant(_LUMA, images).view(3, 1, 1)).sum(dim=1, keepdim=True)
    return torch.where(chosen[:, None, None, None], grey, images)


def drop_colours(patches: Tensor, kept: Tensor, noise: Tensor) -> Tensor:
    """One channel of each patch stays; the others become noise of one grey level.

    patches [B,P,3,s,s] of 0 to 1; kept int64 [B,P] is the channel that stays; noise [B,P,3,s,s]
    uniform in 0..1. So the lens' shift of colours towards the border, by which a patch could be
    placed, cannot be seen (Doersch et al. 2015, sec. 3.1).
    """
    stays = functional.one_hot(kept, 3).bool()[..., None, None]
    return torch.where(stays, patches, (noise - 0.5) * GREY_LEVEL)


def repeat_colour(patches: Tensor, kept: Tensor) -> Tensor:
    """One channel of each patch [B,P,3,s,s], kept int64 [B,P], in place of all three.

    As `drop_colours` it hides the lens' shift of colours; the channels go together as they do in
    pictures, so that weights and running statistics fit the RGB that comes later.
    """
    index = kept[:, :, None, None, None].expand_as(patches[:, :, :1])
    return patches.gather(2, index).expand_as(patches)


def project_colours(patches: Tensor) -> Tensor:
    """Patches [...,3,s,s] without their green-magenta part: x - a (a.x) / (a.a), a = (-1, 2, -1).

    The lens' shift of green against red and blue lies along a (Doersch et al. 2015, sec. 3.1).
    """
    axis = constant(_GREEN_MAGENTA, patches).view(3, 1, 1)
    along = (patches * axis).sum(dim=-3, keepdim=True) / axis.square().sum()
    return patches - along * axis


def coarsening(side: int) -> Tensor:
    """Matrices [side+1,side,side]: the k-th shrinks `side` pixels to k and enlarges them again.

    Bilinear, shrinking with antialiasing. The last one is the identity; the first isn't used.
    """
    identity = torch.eye(side)[None, None]
    made = [torch.zeros(side, side)]
    for k in range(1, side + 1):
        small = functional.interpolate(identity, (k, side), mode="bilinear", antialias=True)
        made.append(functional.interpolate(small, (side, side), mode="bilinear")[0, 0])
    return torch.stack(made)


def coarsened(patches: Tensor, sides: Tensor, matrices: Tensor) -> Tensor:
    """Patches [B,P,3,s,s], each shrunk to sides [B,P] (1..s) pixels and back.

    `matrices` are `coarsening(s)`. So sharpness does not tell patches apart.
    """
    with torch.autocast(patches.device.type, enabled=False):
        matrix = matrices[sides][:, :, None]
        return matrix @ patches @ matrix.transpose(-2, -1)


def uniform(batch: Batch, shape: tuple[int, ...], stream: int) -> Tensor:
    """Random numbers of 0 to 1, [B,*shape], drawn on the batch's device for the global batch.

    For whole pictures of noise; `contract.drawn` serves parameters.
    """
    n, device = len(batch.images), batch.images.device
    generator = step_generator(batch.seed, batch.step, device, stream)
    whole = batch.total or batch.start + n
    everyone = torch.rand(whole, *shape, generator=generator, device=device)
    return everyone[batch.start : batch.start + n]


def input_side(side: int, encoder: nn.Module, wanted: int | None) -> int:
    """The side in pixels at which patches cut at `side` enter the encoder.

    `wanted` where it is given, else `side`, but at least 5/4 of the encoder's stride: on a coarsest
    map of one position, 3x3 convolutions train their centre alone, and the rest of their weights
    would reach the segmentation as they were drawn.
    """
    stride = int(getattr(encoder, "output_stride", 32))
    return wanted or max(side, math.ceil(1.25 * stride))


def check_patch_side(patch_side: int | None) -> None:
    """Raises UserError where --patch-side is too small."""
    if patch_side is not None and patch_side < LEAST:
        raise UserError(f"--patch-side {patch_side}: expected {LEAST} or more pixels")


def encoded(encoder: nn.Module, patches: Tensor, side: int) -> Tensor:
    """Features [B,P,D] of patches [B,P,3,s,s] that enter at `side` pixels, as one batch."""
    n, count, _, own, _ = patches.shape
    flat = patches.flatten(0, 1)
    if own != side:
        flat = functional.interpolate(flat, (side, side), mode="bilinear")
    return pooled(encoder, flat).view(n, count, -1)


def classifier(width: int, hidden: int, classes: int) -> nn.Module:
    """The head that all patch tasks have: two linear layers, [n,width] -> logits [n,classes]."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, classes),
    )
