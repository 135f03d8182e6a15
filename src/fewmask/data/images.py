"""Files -> pixels: decoding by content, and the one geometry that image and mask share."""

from __future__ import annotations

import errno
import io
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fewmask.types import IGNORED, Resize

Pixels = NDArray[np.uint8]

PILLOWS_LIMIT = 100_000_000
"""Pixels from which Pillow warns; it refuses twice as many, --max-megapixels' 200 million."""
LIMIT_VARIABLE = "FEWMASK_MAX_MEGAPIXELS"
"""Tells the limit to processes that are started later."""


def limit_pixels(millions: float) -> None:
    """Decode no image of more pixels from now on, in this process and those that it starts."""
    os.environ[LIMIT_VARIABLE] = f"{millions:g}"
    Image.MAX_IMAGE_PIXELS = max(1, int(millions * 1e6 / 2))  # Pillow refuses twice as many


def _limit_as_told() -> None:
    try:
        limit_pixels(float(os.environ[LIMIT_VARIABLE]))
    except (KeyError, ValueError):
        Image.MAX_IMAGE_PIXELS = PILLOWS_LIMIT


_limit_as_told()


def limit_named() -> tuple[str, ...]:
    """For the names of what is remembered of images: faults depend on the limit. () for 200."""
    limit = Image.MAX_IMAGE_PIXELS
    return () if limit == PILLOWS_LIMIT else (f"limit {limit}",)


BYTES_PER_PIXEL = 8
"""Of the widest pixels that are read, four numbers of 16 bits, where nothing is compressed."""

PADDING = (124, 116, 104)
"""ImageNet's mean colour, 0 to 255: what a padded image holds beside itself."""


class Undecodable(Exception):
    """An image or mask that cannot be read, and what the user can do."""

    def __init__(self, where: str, reason: str, mend: str = "Replace or remove it") -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason, self.mend = where, reason, mend


def require_size(size: int, where: str) -> None:
    """Raises Undecodable for a file of more bytes than an image of --max-megapixels can take.

    A file with more frames than its first would be read whole for that one, too.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size > BYTES_PER_PIXEL * 2 * limit:
        raise Undecodable(
            where,
            f"{size / 1e6:.4g} MB, more than an image within --max-megapixels takes",
            "Remove it, or raise the limit if you trust it",
        )


_MENDS = {
    errno.ENOENT: "It is gone, or a link leads nowhere: bring it back, or remove the link",
    errno.ENOTDIR: "It is gone: bring it back",
    errno.EACCES: "Give the permission to read it",
    errno.EIO: "The disk cannot read it: restore it from a copy, or remove it",
}


def unreadable(where: str, problem: OSError) -> Undecodable:
    """What the system says of a file that it does not let us read."""
    reason = problem.strerror or type(problem).__name__
    mend = _MENDS.get(problem.errno or 0)
    return Undecodable(where, reason) if mend is None else Undecodable(where, reason, mend)


_quiet_lock = threading.Lock()
_quiet_threads = 0
_quiet_filters = warnings.catch_warnings()


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings about odd metadata or large pictures; the pixels decide.

    Python's filters belong to the whole process, and several threads decode at once: the first
    one in changes them and the last one out puts them back.
    """
    global _quiet_threads, _quiet_filters  # noqa: PLW0603 - they guard a state of the process
    with _quiet_lock:
        if _quiet_threads == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        _quiet_threads += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_threads -= 1
            if _quiet_threads == 0:
                _quiet_filters.__exit__(None, None, None)


@contextmanager
def _undecodable(where: str) -> Iterator[None]:
    """Whatever a decoder or a conversion raises on broken data, as Undecodable."""
    try:
        with _quiet():
            yield
    except Undecodable:
        raise
    except Image.DecompressionBombError as problem:
        held = re.search(r"\d+", str(problem))
        many = f"{int(held[0]) / 1e6:.4g} million pixels" if held else "too many pixels"
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise Undecodable(
            where,
            f"{many}, the limit is {limit:.4g} (--max-megapixels)",
            "Remove it, or raise the limit if you trust it",
        ) from None
    except Exception as problem:
        reason = " ".join(str(problem).split()) or type(problem).__name__
        if "cannot identify image file" in reason:
            reason = "no image, by its content"
        raise Undecodable(where, reason) from None


def open_image(data: bytes, where: str, least: int | None = None) -> Image.Image:
    """The first frame of an image, decoded whole, turned as its EXIF says. Raises Undecodable.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its short side is then still `least`.
    """
    if not data:
        raise Undecodable(where, "the file is empty")
    with _undecodable(where):
        image = Image.open(io.BytesIO(data))
        if least is not None:
            image.draft(image.mode, (least, least))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # copies nothing where nothing is turned
        return image


def format_of(data: bytes) -> str | None:
    """Pillow's name of a format, by content: JPEG, PNG, GIF, ...; None of what is no image."""
    try:
        with _undecodable(""):
            return Image.open(io.BytesIO(data)).format
    except Undecodable:
        return None


def decode_image(data: bytes, where: str, least: int | None = None) -> Pixels:
    """Bytes of any common format -> uint8 [H,W,3], RGB.

    Transparent pixels are laid on white, as most viewers show them. 16-bit grey is scaled to 8
    (65535 is white), grey in floating point by 1 or its own maximum. `least` as in `open_image`.
    Raises Undecodable.
    """
    image = open_image(data, where, least)
    with _undecodable(where):
        if image.mode.startswith("I") or image.mode == "F":
            values = np.nan_to_num(np.asarray(image, np.float64))
            top = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max()))
            grey = np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def decode_mask(data: bytes, where: str) -> Pixels:
    """Bytes of a mask -> uint8 [H,W], the values in the file (of a palette image the indices).

    A grey picture saved in colour (equal channels) is its grey; transparency counts for nothing.
    Raises Undecodable, also for coloured masks and for values beyond 0 to 255.
    """
    image = open_image(data, where)
    with _undecodable(where):
        values = np.array(image if image.mode not in ("CMYK", "YCbCr") else image.convert("RGB"))
    if values.ndim == 3:
        colours = values[..., : 1 if image.mode in ("LA", "PA") else 3]
        if not (colours == colours[..., :1]).all():
            raise Undecodable(
                where,
                "a coloured picture, not class ids",
                "Save it with one number a pixel, or name its colours in a class_dict.csv beside "
                "masks/ (name,r,g,b)",
            )
        values = colours[..., 0]
    whole = values.astype(np.uint8)
    beyond = values[whole != values]  # negative, above 255, or no whole number
    if beyond.size:
        raise Undecodable(where, f"holds the value {beyond[0]}; class ids are whole numbers to 255")
    return whole


def fitted(height: int, width: int, size: int, resize: Resize) -> tuple[int, int]:
    """Height and width that an image takes in its square of `size`, for images and masks alike."""
    if resize == "square":
        return size, size
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(pixels: Pixels, size: int, resize: Resize) -> tuple[Pixels, tuple[int, int]]:
    """uint8 [H,W,3] -> uint8 [size,size,3] and the (height, width) of it that is not padding.

    `square` squashes; `keep` makes the long side `size`, top left, on the padding colour. Bilinear,
    with the triangle widened where it shrinks (antialiased).
    """
    height, width = fitted(pixels.shape[0], pixels.shape[1], size, resize)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    if (height, width) == (size, size):
        return np.array(image), (size, size)
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = PADDING
    canvas[:height, :width] = np.asarray(image)
    return canvas, (height, width)


def resize_mask(labels: Pixels, size: int, resize: Resize) -> Pixels:
    """Class ids uint8 [H,W] -> uint8 [size,size]: the nearest pixel's, 255 where padded."""
    height, width = fitted(labels.shape[0], labels.shape[1], size, resize)
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
    canvas = np.full((size, size), IGNORED, np.uint8)
    canvas[:height, :width] = labels[rows[:, None], columns]
    return canvas
