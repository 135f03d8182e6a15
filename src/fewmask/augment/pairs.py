"""Augmentation of whole batches of images with their masks, on the batch's own device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from fewmask.augment.basics import LUMA, improper, is_range, pieces, to_unit
from fewmask.constants import constant
from fewmask.types import IGNORED, UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PairAugment:
    """Augmentation of images with their masks, for fine-tuning."""

    flip: float = 0.5
    """Probability of a left-right flip."""
    scale: tuple[float, float] = (0.6, 1.2)
    """Range of the window's side over the image's side: below 1 zooms in, above 1 out."""
    shift: float = 0.1
    """The window moves by up to this fraction of the side, along each axis."""
    rotate: float = 0.0
    """The window turns by up to this many degrees, either way."""
    brightness: float = 0.2
    """Brightness changes by a factor of up to 1 +- this."""
    contrast: float = 0.2
    """Contrast about the image's mean grey changes by a factor of up to 1 +- this."""

    def __post_init__(self) -> None:
        faults = improper(self, ("flip", "shift", "brightness", "contrast"))
        if not is_range(self.scale):
            faults.append(f"scale {self.scale} must be two positive numbers, smaller first.")
        if faults:
            raise UserError(*faults)


def augment_pair(
    images: Tensor,
    masks: Tensor,
    settings: PairAugment,
    generator: torch.Generator,
    *,
    start: int = 0,
    total: int | None = None,
) -> tuple[Tensor, Tensor]:
    """One random geometry for each image and its mask, and one change of light for the image.

    images uint8 [B,3,H,W] -> float32 [B,3,H,W] of 0..1, bilinear, mirrored beyond the border.
    masks uint8 [B,H,W] -> uint8 [B,H,W], nearest pixel, 255 (ignored) beyond the border.
    `start` and `total` as in `random_views`.
    """
    with torch.autocast(images.device.type, enabled=False):
        n, _, height, width = images.shape
        whole = total or start + n
        draws = torch.rand(whole, 7, generator=generator, device=generator.device)
        draws = draws[start : start + n].to(images.device, non_blocking=True)
        theta = _windows(draws[:, :5], settings, height / width)
        light = 1 + (2 * draws[:, 5:] - 1) * constant(
            (settings.brightness, settings.contrast), draws
        )
        new_images = torch.empty(images.shape, device=images.device)
        new_masks = torch.empty_like(masks)
        for part in pieces(images, 1):
            column, row = _sources(theta[part], height, width)
            new_masks[part] = _sample_nearest(masks[part], column, row)
            grid = torch.stack([column * (2 / width) - 1, row * (2 / height) - 1], dim=3)
            new_images[part] = _light(_sample_linear(images[part], grid), light[part])
        return new_images, new_masks


def _windows(draws: Tensor, settings: PairAugment, aspect: float) -> Tensor:
    """Affine maps [B,2,3] of (x, y, 1), -1..1 edge to edge, by numbers [B,5]; aspect is H / W."""
    flip = 1 - 2 * (draws[:, 0] < settings.flip).float()
    low, high = settings.scale
    scale = low + (high - low) * draws[:, 1]
    shift = 2 * settings.shift * (2 * draws[:, 2:4] - 1)  # the side is 2
    angle = math.radians(settings.rotate) * (2 * draws[:, 4] - 1)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    # x and y are in halves of different sides: `aspect` keeps the turn a turn.
    across = torch.stack([cos * flip, -sin * aspect, shift[:, 0]], dim=1)
    down = torch.stack([sin / aspect * flip, cos, shift[:, 1]], dim=1)
    return torch.stack([across, down], dim=1)


def _sources(theta: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each pixel comes from: columns and rows [B,H,W], in pixels from the image's corner."""
    x = torch.arange(1 - width, width, 2, device=theta.device) / width
    y = torch.arange(1 - height, height, 2, device=theta.device) / height
    across = theta[..., :1] * x + theta[..., 2:] + 1  # [B,2,W]
    down = theta[..., 1:2] * y  # [B,2,H]
    column = (across[:, 0, None] + down[:, 0, :, None]) * (width / 2)
    row = (across[:, 1, None] + down[:, 1, :, None]) * (height / 2)
    return column, row


def _sample_linear(images: Tensor, grid: Tensor) -> Tensor:
    """uint8 [B,3,H,W] at the grid [B,H,W,2] of -1..1 -> float32 [B,3,H,W] of 0..1."""
    return functional.grid_sample(
        to_unit(images), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def _sample_nearest(masks: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Masks [B,H,W] at the columns and rows [B,H,W]: the pixel that holds the point, or 255."""
    height, width = masks.shape[-2:]
    column, row = column.floor().int(), row.floor().int()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = (row * width + column).masked_fill_(~inside, 0).flatten(1).long()
    values = masks.flatten(1).gather(1, index).view_as(masks)
    return values.masked_fill_(~inside, IGNORED)


def _light(images: Tensor, factors: Tensor) -> Tensor:
    """Images [B,3,H,W] of 0..1 with brightness and contrast times factors [B,2], clamped."""
    brightness, contrast = factors[:, 0], factors[:, 1]
    grey = images.mean((2, 3)) @ constant(LUMA, images)
    level = brightness * (1 - contrast) * grey
    gain = (brightness * contrast)[:, None, None, None]
    return torch.addcmul(level[:, None, None, None], images, gain).clamp_(0, 1)
