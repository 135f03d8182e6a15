"""Pictures with their masks laid over them.

They are drawn in strips: a picture of a hundred million pixels leaves no room for a number a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewmask.data import classes
from fewmask.types import IGNORED, Colour, Labels

Pixels = NDArray[np.uint8]
RIGHT, ADDED, MISSED, LEFT_OUT = (0, 158, 115), (230, 97, 1), (0, 114, 178), (200, 200, 200)


def overlay(pixels: Pixels, mask: Pixels, colours: Sequence[Colour]) -> Pixels:
    """The image uint8 [H,W,3] with each class tinted and outlined in its colour, but for black."""
    palette, outlined, drawn = np.array(colours, np.uint8), edges(mask), np.empty_like(pixels)
    for rows in strips(mask):
        painted = palette[mask[rows]]
        inside = np.any(painted, axis=2, keepdims=True)
        tinted = np.where(inside, 0.55 * pixels[rows] + 0.45 * painted, pixels[rows])
        drawn[rows] = np.where(outlined[rows][..., None] & inside, painted, tinted)
    return drawn


def strips(mask: Pixels) -> Iterator[slice]:
    """The rows of a picture [H,W], about a million pixels at once."""
    height, width = mask.shape
    step = max(1, (1 << 20) // max(1, width))
    return (slice(first, first + step) for first in range(0, height, step))


def edges(mask: Pixels) -> NDArray[np.bool_]:
    """Pixels that touch another class, above, below or beside them."""
    found = np.zeros(mask.shape, bool)
    for one, other in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        found[one] |= mask[one] != mask[other]
        found[:, one] |= mask[:, one] != mask[:, other]
    return found


def error_overlay(pixels: Pixels, truth: Pixels, mask: Pixels, labels: Labels) -> Image.Image:
    """The image [H,W,3] with what is right and wrong in the predicted mask [H,W].

    Two classes: what was found in green, wrongly added in orange, missed in blue, grey where the
    truth is ignored. More: the image in pale grey, and in the colour of the class that was
    predicted where that is wrong.
    """
    drawn = np.empty_like(pixels)
    for rows in strips(mask):
        drawn[rows] = _errors(pixels[rows], truth[rows], mask[rows], labels)
    return Image.fromarray(drawn)


def _errors(pixels: Pixels, truth: Pixels, mask: Pixels, labels: Labels) -> Pixels:
    """`error_overlay` of some rows."""
    if labels.n_classes > 2:
        grey = (pixels @ np.array([0.299, 0.587, 0.114]))[..., None].repeat(3, axis=2)
        pale = 0.5 * grey + 0.5 * 255
        painted = np.array(classes.colours(labels), np.uint8)[mask]
        wrong = ((truth != IGNORED) & (truth != mask))[..., None]
        mixed = np.where(wrong, 0.15 * grey + 0.85 * painted, pale)
        return np.asarray(mixed, np.uint8)
    colours = np.zeros((*mask.shape, 3), np.float32)
    known = truth != IGNORED
    states = (
        (known & (truth > 0) & (truth == mask), RIGHT),
        (known & (mask > 0) & (truth != mask), ADDED),
        (known & (truth > 0) & (mask == 0), MISSED),
        (~known, LEFT_OUT),
    )
    tint = np.zeros(mask.shape, bool)
    for where, colour in states:
        colours[where] = colour
        tint |= where
    mixed = np.where(tint[..., None], 0.5 * pixels + 0.5 * colours, pixels)
    return np.asarray(mixed, np.uint8)
