"""Random views of whole batches, on the batch's own device.

Everything is a function of the generator: one call of `torch.rand` draws the parameters of the
global batch, each process cuts out its rows, and the arithmetic after it holds no chance.

Crop, resize, flip and blur are linear and act on rows and columns separately, so an image's whole
geometry is one matrix for its columns and one for its rows (`_resampling`), and a view is two
batched matrix products. Brightness, contrast, saturation, hue and greyscale are affine in RGB, so
an image's whole colour change is one 3x4 matrix (`_colour_matrices`), applied in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from fewmask.augment.basics import LUMA, improper, is_range, pieces
from fewmask.constants import constant
from fewmask.types import UserError

if TYPE_CHECKING:
    from torch import Tensor

_WINDOWED = 80
"""Pixels of a view's side from which a CPU works on each crop by itself: fewer pixels are touched
(one thread, 96 px: 16 % faster, 224 px: 23 %), at the price of calling PyTorch for each image."""
_TRIES = 10  # crops drawn per image before the largest fitting one is taken, as in Inception's code


@dataclass(frozen=True)
class Views:
    """Random views of SimCLR (Chen et al. 2020, arXiv:2002.05709, appendix A)."""

    # Chen's is 0.08, at batches of 4096. A small batch has few negatives, and views that share
    # nothing then mostly add noise to the positives.
    crop_min: float = 0.2
    """Smallest share of the image's area that a crop keeps (0 to 1; Chen: 0.08)."""
    crop_max: float = 1.0
    """Largest share of the image's area that a crop keeps (0 to 1)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width over its height, drawn evenly on a log scale."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    colour: float = 1.0
    """Strength s of the colour jitter: brightness, contrast and saturation change by a factor of
    up to 1 +- 0.8 s, hue by up to +- 0.2 s of the circle (Chen: 1 on ImageNet, 0.5 on CIFAR)."""
    jitter: float = 0.8
    """Probability that a view's colours are jittered at all."""
    grey: float = 0.2
    """Probability that a view is turned grey."""
    blur: float = 0.5
    """Probability of a Gaussian blur (Chen: 0.5 on ImageNet, 0 on CIFAR)."""
    sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels of the view; the kernel is a tenth of the
    view's side wide."""

    def __post_init__(self) -> None:
        faults = improper(self, ("flip", "jitter", "grey", "blur"))
        if not 0 < self.crop_min <= self.crop_max <= 1:
            faults.append(
                f"--crop-min {self.crop_min:g} and --crop-max {self.crop_max:g} must satisfy "
                "0 < crop_min <= crop_max <= 1; they are shares of the image's area."
            )
        if not 0 <= self.colour <= 2.5:
            faults.append(f"--colour {self.colour:g} must lie in 0..2.5; Chen has 0.5 and 1.")
        if not is_range(self.ratio):
            faults.append(
                f"--ratio {_said(self.ratio)} must be two positive numbers, smaller first."
            )
        if not is_range(self.sigma):
            faults.append(
                f"--sigma {_said(self.sigma)} must be two positive numbers, smaller first."
            )
        if faults:
            raise UserError(*faults)


def _said(numbers: tuple[float, ...]) -> str:
    """As they were given on the command line."""
    return ",".join(f"{number:g}" for number in numbers)


def random_views(
    images: Tensor,
    size: int,
    views: Views,
    generator: torch.Generator,
    *,
    start: int = 0,
    total: int | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """One random view of each image: crop, flip, colour jitter, greyscale and blur.

    images uint8 [B,3,H,W]; returns float32 [B,3,size,size] of 0..1. `valid` [B,2] holds each
    image's own height and width in pixels where the images fill only the top left of the batch;
    nothing outside is ever read. Parameters are drawn for `total` images and the rows
    start..start+B are used, so the parts of a batch get the views that the whole would get.

    Resampling is bilinear with the triangle widened to the shrinking factor (what PIL and
    torchvision call antialiasing), at fractional crop positions. It differs from torchvision's
    transforms in four ways. Colours are clamped to 0..1 once, at the end, not after each operation.
    The order of the jitter is fixed, since without the clamps it hardly matters. Hue turns about
    the grey axis of RGB, not on HSV's hexagon: at +-0.2 of the circle the two are 0.018 apart on
    CIFAR-10 (mean over pixels, of 0..1), where the HSV turn itself changes them by 0.056. The
    blur's kernel is renormalised at the border, where torchvision mirrors the image.
    """
    with torch.autocast(images.device.type, enabled=False):
        n = images.shape[0]
        whole = total or start + n
        draws = torch.rand(whole, 2 * _TRIES + 11, generator=generator, device=generator.device)
        draws = draws[start : start + n].to(images.device, non_blocking=True)
        if valid is None:
            valid = images.new_tensor(images.shape[-2:], dtype=torch.float32).expand(n, 2)
        valid = valid.to(images.device, torch.float32)
        out = torch.empty(n, 3, size, size, device=images.device)
        for part in pieces(images, size):
            _make_views(images[part], draws[part], valid[part], views, out[part])
        return out


def _make_views(images: Tensor, draws: Tensor, valid: Tensor, views: Views, out: Tensor) -> None:
    """Write views of images [B,3,H,W], by random numbers `draws` [B,31], into out [B,3,s,s]."""
    n, _, height, width = images.shape
    size = out.shape[-1]
    crop, flip, colour, blur = torch.split(draws, [2 * _TRIES + 2, 1, 6, 2], dim=1)
    top, left, tall, wide = _crops(crop, valid, views)
    flipped = flip[:, 0] < views.flip
    start, extent = torch.where(flipped, left + wide, left), torch.where(flipped, -wide, wide)
    rows = _resampling(top, tall, valid[:, 0], size, height)
    columns = _resampling(start, extent, valid[:, 1], size, width)
    kernels = None
    if views.blur > 0 and size >= 20:  # the kernel of a smaller view is one pixel wide
        kernels = _blurring(blur, views, size)
    if images.device.type == "cpu" and size >= _WINDOWED:
        down = _reached(top, tall, valid[:, 0], size)
        across = _reached(left, wide, valid[:, 1], size)
        windows = zip(*down, *across, strict=True)
        blurred = (blur[:, 0] < views.blur).tolist()
        own = [None if kernels is None or not one else kernels[i] for i, one in enumerate(blurred)]
        planes = _one_by_one(images, rows, columns, own, windows)
    else:
        planes = _all_at_once(images, rows, columns, kernels)
    planes = planes.view(n, size, 3, size).transpose(1, 2).reshape(n, 3, size * size)
    matrix, offset = _colour_matrices(colour, planes.mean(2), views)
    torch.baddbmm(offset, matrix, planes, out=out.view(n, 3, size * size))
    out.clamp_(0, 1)


def _all_at_once(images: Tensor, rows: Tensor, columns: Tensor, kernels: Tensor | None) -> Tensor:
    """images [B,3,H,W] resampled and blurred, [B,s*3,s]: rows of the view, its channels within."""
    n, _, height, width = images.shape
    if kernels is not None:
        rows, columns = kernels @ rows, kernels @ columns
    # [B,H,3,W], so that both products take the memory as it lies.
    pixels = images.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    pixels = rows @ pixels.reshape(n, height, 3 * width)
    return pixels.view(n, -1, width) @ columns.transpose(1, 2)


def _one_by_one(
    images: Tensor,
    rows: Tensor,
    columns: Tensor,
    kernels: Sequence[Tensor | None],
    windows: Iterable[tuple[int, int, int, int]],
) -> Tensor:
    """As `_all_at_once`, of each image only what its crop reaches: top, bottom, left and right."""
    n, size, _ = rows.shape
    found = torch.empty(n, size * 3, size)
    for i, (top, bottom, left, right) in enumerate(windows):
        pixels = images[i, :, top:bottom, left:right].transpose(0, 1)
        pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        down, across, kernel = rows[i, :, top:bottom], columns[i, :, left:right], kernels[i]
        if kernel is not None:
            down, across = kernel @ down, kernel @ across
        pixels = down @ pixels.reshape(bottom - top, -1)
        torch.mm(pixels.view(size * 3, -1), across.T, out=found[i])
    return found


def _reached(
    origin: Tensor, extent: Tensor, valid: Tensor, size: int
) -> tuple[list[int], list[int]]:
    """First and behind-the-last pixel that `_resampling` gives a weight, of each image."""
    reach = (extent / size).clamp(min=1)
    first = (origin - reach).floor().clamp(min=0)
    last = torch.minimum((origin + extent + reach).ceil(), valid)
    return first.int().tolist(), last.int().tolist()


def _crops(draws: Tensor, valid: Tensor, views: Views) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width [B] of the crops, in pixels, inside valid [B,2].

    As in torchvision: of ten drawn shapes the first that fits; where none does (an image far from
    square), the largest window of an allowed ratio.
    """
    height, width = valid[:, :1], valid[:, 1:]
    low, high = views.ratio
    share = views.crop_min + (views.crop_max - views.crop_min) * draws[:, :_TRIES]
    area = share * height * width
    ratio = torch.exp(math.log(low) + math.log(high / low) * draws[:, _TRIES : 2 * _TRIES])
    tall, wide = torch.sqrt(area / ratio), torch.sqrt(area * ratio)
    fits = (tall <= height) & (wide <= width)
    order = torch.arange(_TRIES, 0, -1, device=draws.device)  # argmax promises no order of ties
    first = (fits * order).argmax(1, keepdim=True)
    some = fits.any(1, keepdim=True)
    tall = torch.where(some, tall.gather(1, first), torch.minimum(height, width / low))
    wide = torch.where(some, wide.gather(1, first), torch.minimum(width, height * high))
    top, left = draws[:, -2:-1] * (height - tall), draws[:, -1:] * (width - wide)
    return top[:, 0], left[:, 0], tall[:, 0], wide[:, 0]


def _resampling(origin: Tensor, extent: Tensor, valid: Tensor, size: int, length: int) -> Tensor:
    """Matrices [B,size,length] that resample `extent` pixels from `origin` on to `size` pixels.

    A negative extent runs backwards. Rows are triangles about the source position, as wide as the
    shrinking factor (at least 1), and add up to 1 over the first `valid` pixels.
    """
    targets = torch.arange(0.5, size, device=origin.device)
    sources = torch.arange(0.5, length, device=origin.device)
    step = (extent / size)[:, None]
    reach = step.abs().clamp(min=1)[:, :, None]
    centres = origin[:, None] + targets * step
    weights = (sources / reach - centres[:, :, None] / reach).abs_().neg_().add_(1).clamp_(min=0)
    weights *= (sources < valid[:, None])[:, None]
    return weights.div_(weights.sum(2, keepdim=True))


def _blurring(draws: Tensor, views: Views, size: int) -> Tensor:
    """Matrices [B,size,size] of a Gaussian blur along one axis; the identity where none is drawn.

    The kernel is 2 * (size // 20) + 1 pixels wide, about a tenth of the side, as in SimCLR's code.
    """
    low, high = views.sigma
    sigma = low + (high - low) * draws[:, 1]
    sigma = torch.where(draws[:, 0] < views.blur, sigma, torch.full_like(sigma, 1e-3))
    radius = size // 20
    steps = torch.arange(-radius, radius + 1, device=draws.device)
    taps = torch.exp(-(steps**2) / (2 * sigma[:, None] ** 2))
    # Windows that slide over the zero-padded kernel are the matrix's rows, the last one first.
    weights = functional.pad(taps, [size - 1 - radius] * 2).unfold(1, size, 1).flip(1)
    return weights.div_(weights.sum(2, keepdim=True))


def _colour_matrices(draws: Tensor, mean: Tensor, views: Views) -> tuple[Tensor, Tensor]:
    """Matrices [B,3,3] and offsets [B,3,1] that take RGB of 0..255 to the jittered RGB of 0..1.

    mean [B,3] is each view's mean colour, 0..255: contrast is stretched about its luma. The order
    is brightness, contrast, saturation, hue, greyscale; all but the first two leave greys alone,
    so the offset passes through them.
    """
    spread = (2 * draws[:, 1:5] - 1) * (views.colour * constant((0.8, 0.8, 0.8, 0.2), draws))
    spread = spread.masked_fill(draws[:, :1] >= views.jitter, 0)
    brightness, contrast, saturation = (1 + spread[:, :3]).clamp(min=0).unbind(1)
    angle = (2 * math.pi * spread[:, 3])[:, None, None]
    identity = torch.eye(3, device=draws.device)
    luma = constant(LUMA, draws).expand(3, 3)
    saturate = luma + saturation[:, None, None] * (identity - luma)
    # Rodrigues' rotation about (1, 1, 1): `across` is the cross product with the unit axis.
    axis = torch.full_like(identity, 1 / 3)
    across = constant(((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0)), draws) / math.sqrt(3)
    turn = axis + torch.cos(angle) * (identity - axis) + torch.sin(angle) * across
    matrix = turn @ saturate
    matrix = torch.where(draws[:, 5, None, None] < views.grey, luma @ matrix, matrix)
    gain = brightness * contrast / 255
    level = (mean @ luma[0]) * brightness * (1 - contrast) / 255
    return matrix * gain[:, None, None], level[:, None, None].expand(-1, 3, 1)
