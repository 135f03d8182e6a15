"""Pictures at one size, by row: from a cache, or decoded when they are asked for."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fewmask.data.images import Pixels, Undecodable
from fewmask.data.items import ImageItem, small_image
from fewmask.data.listing import FileList
from fewmask.types import Resize, UserError

Rows = NDArray[np.int64]


class Taken(NamedTuple):
    """Some rows of a store: `rows` int64 [n] (those that were asked for, or what stands in for
    them), images uint8 [n,S,S,3], valid int32 [n,2] the height and width of each that is not
    padding, masks uint8 class ids [n,S,S] where the store has some.
    """

    rows: Rows
    images: NDArray[np.uint8]
    valid: NDArray[np.int32]
    masks: NDArray[np.uint8] | None = None


class ImageStore(Protocol):
    """What a stream takes its batches from."""

    @property
    def names(self) -> Sequence[str]:
        """[N], unique."""
        ...

    @property
    def skipped(self) -> Sequence[str]:
        """What could not be decoded so far, and why; a line each."""
        ...

    @property
    def side(self) -> int:
        """S, in pixels."""
        ...

    def take(self, rows: Rows) -> Taken:
        """Some rows, in the order given."""
        ...


class OnDemand:
    """A pool that is decoded as it is used: for sets that are too large to be kept decoded.

    In the place of an image that cannot be decoded comes the next one that can; more than 1 in 100
    of the set is an error.
    """

    def __init__(self, src: str, items: Sequence[ImageItem], size: int, resize: Resize) -> None:
        self.src, self.items, self.side, self.resize = src, items, size, resize
        self._faults: dict[int, str] = {}

    @property
    def names(self) -> Sequence[str]:
        return Names(self.items)

    @property
    def skipped(self) -> Sequence[str]:
        return [fault for _, fault in sorted(self._faults.items())]

    def take(self, rows: Rows) -> Taken:
        """Raises UserError where too many cannot be decoded."""
        images = np.empty((len(rows), self.side, self.side, 3), np.uint8)
        valid = np.empty((len(rows), 2), np.int32)
        found = np.array(rows, np.int64)
        for place, row in enumerate(rows.tolist()):
            found[place], images[place], valid[place] = self._nearest(row)
        return Taken(found, images, valid)

    def _nearest(self, row: int) -> tuple[int, Pixels, tuple[int, int]]:
        """The first image from `row` on that can be decoded."""
        for ahead in range(len(self.items)):
            other = (row + ahead) % len(self.items)
            if other not in self._faults:
                try:
                    return other, *small_image(self.items[other], self.side, self.resize)
                except Undecodable as problem:
                    self.missed({other: f"{problem.where}: {problem.reason}"})
        raise UserError(f"{self.src}: no image can be decoded. Name a folder of images")

    def missed(self, faults: dict[int, str]) -> None:
        """Take note of rows that cannot be decoded, also of those that another process met."""
        self._faults |= faults
        refuse_too_many(self.src, self.skipped, len(self.items))

    @property
    def faults(self) -> dict[int, str]:
        """The rows that could not be decoded so far."""
        return dict(self._faults)


class Names(Sequence[str]):
    """The names of images, each made when it is asked for."""

    def __init__(self, items: Sequence[ImageItem]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, row):  # type: ignore[no-untyped-def] # a str, or a list for a slice
        if isinstance(row, slice):
            return [item.name for item in self._items[row]]
        items = self._items
        return items.name(row) if isinstance(items, FileList) else items[row].name

    def __iter__(self) -> Iterator[str]:
        items = self._items
        return items.names() if isinstance(items, FileList) else (item.name for item in items)


def refuse_too_many(src: str, skipped: Sequence[str], n: int) -> None:
    """Raises UserError where more than 1 in 100 of `n` images could not be decoded."""
    if len(skipped) * 100 > n:
        shown = [f"{fault}. {_mend(fault)}" for fault in skipped[:10]]
        more = len(skipped) - len(shown)
        rest = [f"{src}: and {more} more; over 1 % cannot be decoded"] if more else []
        raise UserError(*shown, *rest)


def _mend(fault: str) -> str:
    """Of a pool that is being read: a file that is gone was there when it was listed."""
    gone = fault.endswith(os.strerror(errno.ENOENT))
    return "Bring it back" if gone else "Replace or remove it"
