"""Colours for colourisation: sRGB to CIE Lab and back, and the 313 bins of Lab's ab plane.

Lab is that of CIE 15 under the white D65, sRGB that of IEC 61966-2-1: L is lightness, 0 to 100; a
runs from green to red and b from blue to yellow, for sRGB within -86..98 and -108..94.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewmask.constants import constant

BIN = 10.0
"""Width of a bin in Lab units (Zhang et al. 2016)."""
SMALLEST = -120.0
"""A multiple of the width below every bin, on both axes; -SMALLEST is above every bin."""

# Linear RGB -> XYZ. The white is what (1, 1, 1) comes to, so greys have a = b = 0.
_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_WHITE = tuple(sum(row) for row in _XYZ)
_KNEE = 6 / 29  # of CIE's cube root, which is a straight line for dark colours


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB [B,3,H,W] of 0..1 -> Lab [B,3,H,W], in the same floating-point type."""
    with torch.autocast(rgb.device.type, enabled=False):
        linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        matrix = constant(_XYZ, rgb) / constant(_WHITE, rgb)[:, None]
        xyz = matrix @ linear.flatten(2)
        straight = xyz / (3 * _KNEE**2) + 4 / 29
        x, y, z = torch.where(xyz > _KNEE**3, xyz.clamp(min=0) ** (1 / 3), straight).unbind(1)
        return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1).view_as(rgb)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Lab [B,3,H,W] -> sRGB [B,3,H,W] of 0..1; colours that sRGB doesn't have are clamped."""
    with torch.autocast(lab.device.type, enabled=False):
        lightness, a, b = lab.flatten(2).unbind(1)
        y = (lightness + 16) / 116
        f = torch.stack([y + a / 500, y, y - b / 200], 1)
        xyz = torch.where(f > _KNEE, f**3, 3 * _KNEE**2 * (f - 4 / 29))
        matrix = constant(_XYZ, lab) / constant(_WHITE, lab)[:, None]
        linear = (torch.linalg.inv(matrix) @ xyz).clamp(0, 1)
        rgb = torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
        return rgb.view_as(lab)


def ab_bins() -> Tensor:
    """Centres (a, b) of the in-gamut bins, [313,2], in order of a and then of b.

    Of the grid of multiples of 10, the points less than 10 away, in a and in b, from the convex
    hull of the ab values of sRGB: the corners of the grid's cells that the hull touches. Means of
    colours lie in the hull, so each colour and each mean has its four corners among the bins.
    These are the 313 of Zhang et al. 2016 (arXiv:1603.08511, sec. 2.1), who name no rule; the
    points that are themselves in the gamut at some lightness would be 229, and those with an sRGB
    colour in the cell around them 261.
    """
    from scipy.spatial import ConvexHull

    steps = torch.linspace(0, 1, 64, dtype=torch.float64)
    cube = torch.cartesian_prod(steps, steps, steps)
    faces = cube[((cube == 0) | (cube == 1)).any(1)]
    ab = rgb_to_lab(faces.T[None, :, :, None])[0, 1:, :, 0].T
    hull = ab[ConvexHull(ab.numpy()).vertices]
    square = torch.tensor([[-BIN, -BIN], [-BIN, BIN], [BIN, -BIN], [BIN, BIN]], dtype=ab.dtype)
    grown = ConvexHull((hull[:, None] + square).reshape(-1, 2).numpy())
    planes = torch.from_numpy(grown.equations)
    line = torch.arange(SMALLEST, -SMALLEST + 1, BIN, dtype=ab.dtype)
    grid = torch.cartesian_prod(line, line)
    inside = (grid @ planes[:, :2].T + planes[:, 2] < -1e-6).all(1)
    return grid[inside].float()


def errors(predicted: Tensor, ab: Tensor, coloured: Tensor) -> dict[str, Tensor]:
    """Root mean square distance of predicted from true ab, in Lab units, over coloured pictures.

    predicted and ab [B,2,h,w], coloured [B] of 0 or 1. `constant_error` is that of the best
    constant answer, the batch's own mean colour.
    """
    share = coloured / coloured.sum().clamp(min=1)
    constant = (ab.mean((2, 3)) * share[:, None]).sum(0)[:, None, None]
    squares = torch.stack([(predicted - ab).square(), (constant - ab).square()]).sum(2)
    error, constant_error = (squares.mean((2, 3)) * share).sum(1).sqrt().unbind()
    return {"error": error, "constant_error": constant_error}


def over_coloured(values: Tensor, coloured: Tensor) -> Tensor:
    """The mean over all pictures of each one's mean of values [B,...]; grey ones count as 0.

    Over all, so that the mean over processes is the mean over the whole batch.
    """
    return (values.flatten(1).mean(1) * coloured).mean()
