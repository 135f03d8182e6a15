"""One image of a set, wherever it lies, and the name of a set's content."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np

from fewmask.data.images import (
    Pixels,
    Undecodable,
    decode_image,
    decode_mask,
    require_size,
    resize_image,
    unreadable,
)
from fewmask.data.table import ClassTable
from fewmask.plainfiles import open_plain
from fewmask.types import Resize

WHOLE_BYTES = 1 << 30
WHOLE_FILES = 100_000
SAMPLED_FILES = 1024


class ImageItem(Protocol):
    """One image of a set, wherever it lies."""

    @property
    def name(self) -> str:
        """Unique in its set, the same on every machine."""
        ...

    @property
    def where(self) -> str:
        """As the user should read it in a message."""
        ...

    def read(self) -> bytes:
        """The bytes, encoded or not: what the fingerprint is made of."""
        ...

    def stamp(self) -> tuple[int, int]:
        """Size in bytes and time of the last change in ns: tells whether to look again."""
        ...

    def pixels(self, least: int | None = None) -> Pixels:
        """uint8 [H,W,3]. A JPEG may come at 1/2, 1/4 or 1/8 of its size, as long as its short
        side is not below `least`. Raises Undecodable."""
        ...


@dataclass(frozen=True)
class ImageFile:
    """An image, or a mask, in a file of its own. `table` reads a mask's colours."""

    name: str
    path: Path
    table: ClassTable | None = None

    @property
    def where(self) -> str:
        return str(self.path)

    def read(self) -> bytes:
        try:
            with open_plain(self.path) as file:
                require_size(os.fstat(file.fileno()).st_size, self.where)
                return file.read()
        except OSError as problem:
            raise unreadable(self.where, problem) from None

    def stamp(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except OSError:
            return (-1, -1)
        return status.st_size, status.st_mtime_ns

    def pixels(self, least: int | None = None) -> Pixels:
        return decode_image(self.read(), self.where, least)

    def values(self) -> Pixels:
        """Of a mask: the file's values, uint8 [H,W]. Raises Undecodable."""
        decode = decode_mask if self.table is None else self.table.decode
        return decode(self.read(), self.where)


def small_image(item: ImageItem, size: int, resize: Resize) -> tuple[Pixels, tuple[int, int]]:
    """An image at one size, as `resize_image` gives it. Raises Undecodable.

    Decoded at no less than twice the size: what a JPEG's coarser decoding loses is then averaged
    away by the resizing.
    """
    return resize_image(item.pixels(2 * size), size, resize)


def fingerprint(items: Sequence[ImageItem], *more: str) -> str:
    """A name for the content of a set, the same wherever it lies and whenever it was written.

    Of names, sizes and all bytes up to 1 GiB and 100,000 images; of a larger set the bytes of 1,024
    evenly spaced images stand for all.
    """
    sizes = [item.stamp()[0] for item in items]
    return content_name(items, (item.name for item in items), sizes, more)


def content_name(
    items: Sequence[ImageItem],
    names: Iterable[str],
    sizes: Sequence[int],
    more: Iterable[str] = (),
) -> str:
    """`fingerprint`, of names and sizes (bytes) that are known already."""
    digest = blake2b(digest_size=16)
    for text in more:
        digest.update(_bytes(text))
    for name, size in zip(names, sizes, strict=True):
        digest.update(_bytes(f"{name}:{size}"))
    chosen: Sequence[int] = range(len(items))
    if sum(sizes) > WHOLE_BYTES or len(items) > WHOLE_FILES:
        chosen = np.linspace(0, len(items) - 1, SAMPLED_FILES).astype(int).tolist()
    for i in chosen:
        try:
            digest.update(blake2b(items[i].read(), digest_size=16).digest())
        except Undecodable as problem:
            digest.update(problem.reason.encode())
    return digest.hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape") + b"\0"
