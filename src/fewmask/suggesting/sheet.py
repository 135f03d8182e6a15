"""contact_sheet.png: the suggested pictures with rank, name and what spoke for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fewmask.captions import fitting

SIDE = 168
"""A picture fits into a square of so many pixels."""
GAP, HEAD, LINE = 12, 58, 17
MOST = 120
"""Pictures on a sheet; the list names all."""
INK, GREY, GROUND = "#111827", "#6b7480", "white"


@dataclass(frozen=True)
class Thumb:
    """A picture uint8 [H,W,3] no larger than the sheet's square, and the lines under it."""

    pixels: NDArray[np.uint8]
    name: str
    words: str


def small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture uint8 [H,W,3] fitted into the sheet's square, its aspect kept."""
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def contact_sheet(thumbs: Sequence[Thumb], title: str, below: str) -> Image.Image:
    """The first 120 pictures in reading order under a title and a line that says more."""
    shown = thumbs[:MOST]
    across = min(6, max(3, len(shown)))
    down = -(-len(shown) // across)
    cell = SIDE + 2 * LINE + 8
    width = across * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, HEAD + down * (cell + GAP) + GAP), GROUND)
    draw = ImageDraw.Draw(sheet)
    large, plain = ImageFont.load_default(17), ImageFont.load_default(13)
    if len(shown) < len(thumbs):
        below = f"{below}; the first {len(shown)} of {len(thumbs)}"
    draw.text((GAP, 10), fitting(title, large, width - 2 * GAP), INK, large)
    draw.text((GAP, 34), fitting(below, plain, width - 2 * GAP), GREY, plain)
    for i, thumb in enumerate(shown):
        left, top = GAP + i % across * (SIDE + GAP), HEAD + i // across * (cell + GAP)
        height, wide = thumb.pixels.shape[:2]
        # At the foot of its square, beside its words.
        place = (left + (SIDE - wide) // 2, top + SIDE - height)
        sheet.paste(Image.fromarray(thumb.pixels), place)
        name = fitting(f"{i + 1}  {thumb.name}", plain, SIDE)
        draw.text((left, top + SIDE + 4), name, INK, plain)
        draw.text((left, top + SIDE + 4 + LINE), fitting(thumb.words, plain, SIDE), GREY, plain)
    return sheet
