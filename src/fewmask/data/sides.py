"""Pictures that occur twice, as a table and side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fewmask.captions import fitting
from fewmask.data.images import Undecodable
from fewmask.data.items import ImageItem
from fewmask.data.leakage import Shared
from fewmask.files import write_bytes_atomic, write_text_atomic

SIDE, GAP, LINE = 150, 4, 15
ACROSS = 3
MOST = 60
"""Pairs shown; a CSV names them all."""
PAPER, INK, QUIET = "#ffffff", "#1c2430", "#5b6675"


Copy = tuple[str, str, Shared]
"""A pair and the sets that its left and its right side are of."""


def write_copies(out: Path, copies: Sequence[Copy]) -> list[str]:
    """duplicates.csv and, where there are any, duplicates.png; a line that says so."""
    write_csv(out / "duplicates.csv", copies)
    if not copies:
        return [f"no duplicates: {out / 'duplicates.csv'}"]
    title = f"{len(copies)} pairs of files that show one picture."
    write_sides(out / "duplicates.png", copies, title)
    return [f"{len(copies)} pairs of duplicates: {out / 'duplicates.csv'}, duplicates.png"]


def write_csv(path: Path, copies: Sequence[Copy]) -> None:
    """kind, set and file of both sides, a row a pair."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("kind", "set_a", "image_a", "set_b", "image_b"))
    for a, b, one in copies:
        writer.writerow((one.kind, a, one.left.where, b, one.right.where))
    # A name that is no UTF-8 is written with its odd bytes escaped.
    content = text.getvalue().encode("utf-8", "backslashreplace").decode("utf-8")
    write_text_atomic(path, content)


def write_sides(path: Path, copies: Sequence[Copy], title: str) -> None:
    """Up to MOST pairs as a PNG, exact ones first; of too many the first ones of either kind."""
    shown = _some(copies)
    width = ACROSS * (2 * SIDE + GAP) + (ACROSS + 1) * 4 * GAP
    tall = SIDE + 2 * LINE + 4 * GAP
    top = 3 * LINE
    sheet = Image.new("RGB", (width, top + tall * -(-len(shown) // ACROSS)), PAPER)
    draw = ImageDraw.Draw(sheet)
    more = f" The first {len(shown)} are shown." if len(shown) < len(copies) else ""
    draw.text((4 * GAP, LINE), fitting(title + more, _font(14), width - 8 * GAP), INK, _font(14))
    for place, (left, right, one) in enumerate(shown):
        x = 4 * GAP + place % ACROSS * (2 * SIDE + 5 * GAP)
        y = top + place // ACROSS * tall
        for column, item in enumerate((one.left, one.right)):
            at = x + column * (SIDE + GAP)
            sheet.paste(_small(item), (at, y))
            name = fitting(item.name, _font(11), SIDE)
            draw.text((at, y + SIDE + 2), name, QUIET, _font(11))
        sets = left if left == right else f"{left} | {right}"
        line = fitting(f"{one.kind}: {sets}", _font(11), 2 * SIDE + GAP)
        draw.text((x, y + SIDE + LINE), line, INK, _font(11))
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    write_bytes_atomic(path, out.getvalue())


def _some(copies: Sequence[Copy]) -> list[Copy]:
    exact, near = ([one for one in copies if one[2].exact is kind] for kind in (True, False))
    exact = exact[: max(MOST // 2, MOST - len(near))]
    return [*exact, *near[: MOST - len(exact)]]


def _small(item: ImageItem) -> Image.Image:
    """The picture within SIDE x SIDE, on grey."""
    tile = Image.new("RGB", (SIDE, SIDE), "#e1e5eb")
    try:
        picture = Image.fromarray(item.pixels())
    except Undecodable:  # it was there when it was compared
        return tile
    scale = SIDE / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    picture = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    tile.paste(picture, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return tile


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
