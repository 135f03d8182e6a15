"""Files -> pixels: decoding by content, and the one geometry that image and mask share."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fewmask.types import IGNORED, Resize

Pixels = NDArray[np.uint8]

PADDING = (124, 116, 104)
"""ImageNet's mean colour, 0 to 255: what a padded image holds beside itself."""


class Undecodable(Exception):
    """An image or mask that cannot be read."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


def open_image(data: bytes, where: str) -> Image.Image:
    """The first frame of an image, decoded whole, turned as its EXIF says."""
    if not data:
        raise Undecodable(where, "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # odd metadata; the pixels decide
            image = Image.open(io.BytesIO(data))
            image.load()
            turned = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError:
        raise Undecodable(where, "more pixels than is safe to decode") from None
    except Exception as problem:  # noqa: BLE001 - decoders raise whatever they like on broken data
        reason = " ".join(str(problem).split()) or type(problem).__name__
        if "cannot identify image file" in reason:
            reason = "no image, by its content"
        raise Undecodable(where, reason) from None
    return turned


def format_of(data: bytes) -> str | None:
    """Pillow's name of a format, by content: JPEG, PNG, GIF, ...; None of what is no image."""
    try:
        return Image.open(io.BytesIO(data)).format
    except Exception:  # noqa: BLE001 - see open_image
        return None


def decode_image(data: bytes, where: str) -> Pixels:
    """Bytes of any common format -> uint8 [H,W,3], RGB.

    Transparent pixels are laid on white, as most viewers show them. 16-bit grey is scaled to 8.
    Raises Undecodable.
    """
    image = open_image(data, where)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max()))
        grey = np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def decode_mask(data: bytes, where: str) -> Pixels:
    """Bytes of a mask -> uint8 [H,W], the values in the file (of a palette image the indices).

    Raises Undecodable, also for coloured masks and values above 255.
    """
    image = open_image(data, where)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in ("L", "P"):
        return np.asarray(image)
    values = np.asarray(image.convert("RGB") if image.mode == "CMYK" else image)
    if values.ndim == 3:
        colours = values[..., : 1 if image.mode == "LA" else 3]
        if not (colours == colours[..., :1]).all():
            raise Undecodable(
                where, "a coloured picture, not class ids; save it with one number a pixel"
            )
        values = colours[..., 0]
    if values.min() < 0 or values.max() > 255:
        raise Undecodable(where, f"holds the value {values.max()}; class ids go up to 254")
    return values.astype(np.uint8)


def fitted(height: int, width: int, size: int, resize: Resize) -> tuple[int, int]:
    """Height and width that an image takes in its square of `size`."""
    if resize == "square":
        return size, size
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(pixels: Pixels, size: int, resize: Resize) -> tuple[Pixels, tuple[int, int]]:
    """uint8 [H,W,3] -> uint8 [size,size,3] and the (height, width) of it that is not padding.

    `square` squashes; `keep` makes the long side `size`, top left, on the padding colour. Bilinear,
    with the triangle widened where it shrinks (antialiased).
    """
    height, width = fitted(*pixels.shape[:2], size, resize)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    if (height, width) == (size, size):
        return np.asarray(image), (size, size)
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = PADDING
    canvas[:height, :width] = np.asarray(image)
    return canvas, (height, width)


def resize_mask(labels: Pixels, size: int, resize: Resize) -> Pixels:
    """Class ids uint8 [H,W] -> uint8 [size,size]: the nearest pixel's, 255 where padded."""
    height, width = fitted(*labels.shape, size, resize)
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
    canvas = np.full((size, size), IGNORED, np.uint8)
    canvas[:height, :width] = labels[rows[:, None], columns]
    return canvas
