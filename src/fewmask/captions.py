"""Words drawn into pictures: names of files may be of any length and hold any bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont


def fitting(text: str, font: FreeTypeFont | ImageFont, width: int) -> str:
    """The text in one line, its middle left out where it is wider than `width` pixels.

    Bytes of a name that are no UTF-8 become question marks.
    """
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        # Names differ at their ends: two thirds of what stays are of there.
        short = f"{text[: kept // 3]}...{text[len(text) - (kept - kept // 3) :]}"
        if font.getlength(short) <= width:
            return short
    return "..."
