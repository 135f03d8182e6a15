"""Label Studio: tasks to import, with masks as drafts, and the labelling interface they are for.

Tasks with predictions: https://labelstud.io/guide/predictions, masks as brush regions:
https://labelstud.io/tags/brushlabels. Their run lengths are a stream of bits, as in thi.ng's
rle-pack: the number of values (32 bits), the bits a value has less 1 (5), four lengths of counters
less 1 (4 each); then for each run a 1, which counter follows (2), the count less 1, and the value.
The values are the bytes of an RGBA image, row by row, all four 255 where the mask is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from fewmask.types import Colour

COUNTERS = (3, 4, 8, 16)
"""Bits of the four counters."""
CONTROL, PICTURE = "label", "image"
"""Names that the tasks and the interface share."""

Mask = NDArray[np.bool_]


def brush_rle(mask: Mask) -> list[int]:
    """A mask [H,W] as the bytes, 0 to 255, of Label Studio's run lengths."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, len(flat))
    lengths = 4 * np.diff(ends, prepend=0)
    header = f"{4 * len(flat):032b}{8 - 1:05b}" + "".join(f"{bits - 1:04b}" for bits in COUNTERS)
    text = [header]
    for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
        value = "1" * 8 if flat[end - 1] else "0" * 8
        most = 1 << COUNTERS[-1]
        text += [_run(most, value)] * (length // most)
        if length % most:
            text.append(_run(length % most, value))
    bits = np.frombuffer("".join(text).encode(), np.uint8) - ord("0")
    packed: list[int] = np.packbits(bits).tolist()
    return packed


def _run(length: int, value: str) -> str:
    which = next(i for i, bits in enumerate(COUNTERS) if length <= 1 << bits)
    return f"1{which:02b}{length - 1:0{COUNTERS[which]}b}{value}"


def regions(mask: NDArray[np.uint8], names: Sequence[str], task: int) -> list[dict[str, Any]]:
    """A brush region for each class that is in a mask [H,W]; class 0 is the background.

    `task` is a number of the picture's own: no two regions of a project may share their names.
    """
    height, width = mask.shape
    return [
        {
            "id": f"{task}-class-{k}",
            "type": "brushlabels",
            "from_name": CONTROL,
            "to_name": PICTURE,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": brush_rle(mask == k), "brushlabels": [name]},
        }
        for k, name in enumerate(names)
        if k > 0 and (mask == k).any()
    ]


def task(
    file: str, about: dict[str, Any], drafts: Sequence[dict[str, Any]] | None, model: str
) -> dict[str, Any]:
    """A task for `images/FILE`; `drafts` are its regions, None where no model made any.

    The image's address is that of Label Studio's local files, whose root is the folder that holds
    images/. `about` are further columns of the task.
    """
    address = f"/data/local-files/?d={quote(f'images/{file}')}"
    found: dict[str, Any] = {"data": {PICTURE: address, **about}}
    if drafts is not None:
        found["predictions"] = [{"model_version": model, "result": list(drafts)}]
    return found


def interface(names: Sequence[str], colours: Sequence[Colour]) -> str:
    """The labelling interface, XML: a brush for every class but the background."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=PICTURE, value=f"${PICTURE}", zoom="true")
    brush = ElementTree.SubElement(view, "BrushLabels", name=CONTROL, toName=PICTURE)
    for name, (red, green, blue) in list(zip(names, colours, strict=True))[1:]:
        background = f"#{red:02x}{green:02x}{blue:02x}"
        ElementTree.SubElement(brush, "Label", value=name, background=background)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def tasks_json(tasks: Sequence[dict[str, Any]]) -> str:
    """label_studio.json; a task a line, for run lengths would take a line each otherwise."""
    lines = ",\n".join(json.dumps(one) for one in tasks)
    return f"[\n{lines}\n]\n"
