"""class_dict.csv beside images/ and masks/: the classes' names and colours.

A line a class, `name,r,g,b` (CamVid's common layout) or `name` alone. The first class is 0: grey
masks hold these numbers, coloured masks the colours.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewmask.data.images import Pixels, Undecodable, decode_mask, open_image
from fewmask.plainfiles import read_plain_text
from fewmask.types import Colour, UserError

FILES = ("class_dict.csv", "classes.csv")
CHANNELS = ("r", "g", "b")
MOST = 254
"""Classes; 255 is ignored, 254 no class."""
SHOWN = 4
"""Colours that a message lists before it stops."""
GREY = ("1", "L", "LA", "I", "F")


@dataclass(frozen=True)
class ClassTable:
    """Names and colours of the values 0, 1, ... in mask files. `colours` is None if not given."""

    where: str
    names: tuple[str, ...]
    colours: tuple[Colour, ...] | None = None

    @property
    def text(self) -> str:
        """What the table says, wherever it lies: part of the data's fingerprint."""
        return f"{self.names} {self.colours}"

    @property
    def of_greys(self) -> bool:
        """Whether all colours are greys (0,0,0 and 255,255,255): then grey masks hold them too."""
        return self.colours is not None and all(r == g == b for r, g, b in self.colours)

    def decode(self, data: bytes, where: str) -> Pixels:
        """Bytes of a mask -> uint8 [H,W], the class numbers.

        A coloured mask, a palette included, is read by its colours; a grey one holds the numbers
        themselves, unless all colours of the table are greys. Raises Undecodable, also for colours
        that the table does not name.
        """
        image = open_image(data, where)
        grey = image.mode.startswith(GREY)
        if self.colours is None or (grey and not self.of_greys):
            return decode_mask(data, where)
        if grey:
            values = decode_mask(data, where) * np.uint8(255 if image.mode == "1" else 1)
            rgb = np.repeat(values[..., None], 3, axis=2)
        else:
            rgb = np.asarray(image.convert("RGB"))
        codes = _codes(rgb)
        known = _codes(np.array(self.colours, np.uint8))
        order = np.argsort(known)
        places = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
        found: Pixels = order.astype(np.uint8)[places]
        unknown = codes[known[found] != codes]
        if unknown.size:
            raise Undecodable(where, *self._unnamed(unknown))
        return found

    def _unnamed(self, codes: NDArray[np.uint32]) -> tuple[str, str]:
        """What is wrong with pixels of these colours, and what to do."""
        colours = np.unique(codes)
        listed = " and ".join(f"{c >> 16},{c >> 8 & 255},{c & 255}" for c in colours[:SHOWN])
        more = f" and {len(colours) - SHOWN} more" if len(colours) > SHOWN else ""
        reason = (
            f"{codes.size} pixels of the colours {listed}{more}, which {self.where} does not name"
        )
        if len(colours) > MOST:
            return reason, "So many look like JPEG or soft edges: save it as PNG, not antialiased"
        return reason, "Name them there, or mend the mask"


def _codes(rgb: Pixels) -> NDArray[np.uint32]:
    """Colours uint8 [...,3] -> 0xRRGGBB [...]."""
    packed = np.zeros((*rgb.shape[:-1], 4), np.uint8)
    packed[..., 1:] = rgb
    return packed.view(">u4")[..., 0].astype(np.uint32)


def read_table(folder: Path) -> ClassTable | None:
    """The table in a pairs folder, if there is one.

    Raises UserError with every fault of the file, each with its line.
    """
    there = [folder / name for name in FILES if (folder / name).is_file()]
    if not there:
        return None
    if len(there) > 1:
        raise UserError(f"{there[0]}: {there[1].name} lies beside it. Keep one of the two")
    path = there[0]
    try:
        text = read_plain_text(path)
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read ({problem}). Save it as UTF-8 text") from None
    lines = [
        (number, [cell.strip() for cell in cells])
        for number, cells in enumerate(csv.reader(text.splitlines()), start=1)
        if any(cell.strip() for cell in cells)
    ]
    header = [cell.lower() for cell in lines[0][1]] if lines else []
    if sorted(header) not in (["name"], sorted(("name", *CHANNELS))):
        raise UserError(
            f"{path}: its first line is {','.join(header)!r}; expected name,r,g,b, or name alone"
        )
    return _table(path, header, lines[1:])


def _table(path: Path, header: list[str], lines: Sequence[tuple[int, list[str]]]) -> ClassTable:
    faults: list[str] = []
    rows: list[tuple[str, Colour | None]] = []
    first: dict[str | Colour, int] = {}
    for number, cells in lines:
        if len(cells) != len(header):
            faults.append(f"{path}: line {number} has {len(cells)} entries, not {len(header)}")
            continue
        row = dict(zip(header, cells, strict=True))
        colour = _colour(f"{path}: line {number}", row, faults) if "r" in row else None
        if not row["name"]:
            faults.append(f"{path}: line {number} names no class")
        for what, own in (("name", row["name"]), ("colour", colour)):
            if own and own in first:
                faults.append(
                    f"{path}: line {number} has the {what} of line {first[own]}. "
                    "Give each class its own"
                )
            if own:
                first.setdefault(own, number)
        rows.append((row["name"], colour))
    if not 2 <= len(lines) <= MOST:
        faults.append(f"{path}: names {len(lines)} classes; expected 2 to {MOST}")
    if faults:
        raise UserError(*faults)
    colours = tuple(colour for _, colour in rows if colour is not None)
    return ClassTable(str(path), tuple(name for name, _ in rows), colours or None)


def _colour(where: str, row: dict[str, str], faults: list[str]) -> Colour | None:
    given = [row[channel] for channel in CHANNELS]
    if not all(value.isascii() and value.isdigit() and int(value) <= 255 for value in given):
        faults.append(f"{where} has the colour {','.join(given)}; expected numbers of 0 to 255")
        return None
    red, green, blue = map(int, given)
    return red, green, blue
