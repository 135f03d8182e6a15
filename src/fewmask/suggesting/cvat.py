"""CVAT: annotations in its format "CVAT for images 1.1", and the labels of a task.

https://docs.cvat.ai/docs/manual/advanced/xml_format/: a mask is the counts of pixels outside and
inside in turn, beginning with those outside, row by row within its bounding box.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from fewmask.files import csv_text
from fewmask.types import Colour

Mask = NDArray[np.bool_]
Drawn = tuple[str, tuple[int, int], NDArray[np.uint8] | None]
"""File name, (height, width), and the class ids [H,W] where a model drew any."""


def mask_rle(mask: Mask) -> tuple[list[int], tuple[int, int, int, int]]:
    """A mask [H,W] with at least one pixel -> run lengths, and (left, top, width, height)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    flat = mask[top : top + height, left : left + width].ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, len(flat))
    lengths: list[int] = np.diff(ends, prepend=0).tolist()
    return ([0, *lengths] if flat[0] else lengths), (left, top, width, height)


def annotations_xml(drawn: Sequence[Drawn], names: Sequence[str], colours: Sequence[Colour]) -> str:
    """cvat.xml: every image with a mask for each class found but the background (class 0).

    CVAT finds an image by its name; ids follow the names' order, as in CVAT.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    about = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    for tag, text in (("name", "suggested"), ("size", str(len(drawn))), ("mode", "annotation")):
        ElementTree.SubElement(about, tag).text = text
    listed = ElementTree.SubElement(about, "labels")
    for name, colour in _foreground(names, colours):
        label = ElementTree.SubElement(listed, "label")
        for tag, text in (("name", name), ("color", colour), ("type", "any")):
            ElementTree.SubElement(label, tag).text = text
        ElementTree.SubElement(label, "attributes")
    for number, (file, (height, width), mask) in enumerate(sorted(drawn, key=lambda one: one[0])):
        image = ElementTree.SubElement(
            root, "image", id=str(number), name=file, width=str(width), height=str(height)
        )
        if mask is not None:
            _add_masks(image, mask, names)
    ElementTree.indent(root)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        + ElementTree.tostring(root, encoding="unicode")
        + "\n"
    )


def _add_masks(image: ElementTree.Element, mask: NDArray[np.uint8], names: Sequence[str]) -> None:
    for k, name in enumerate(names):
        if k == 0 or not (mask == k).any():
            continue
        runs, (left, top, width, height) = mask_rle(mask == k)
        ElementTree.SubElement(
            image,
            "mask",
            label=name,
            source="auto",
            occluded="0",
            rle=", ".join(map(str, runs)),
            left=str(left),
            top=str(top),
            width=str(width),
            height=str(height),
            z_order="0",
        )


def labels_json(names: Sequence[str], colours: Sequence[Colour]) -> str:
    """cvat_labels.json: what a new task's "Raw" labels take."""
    table = [
        {"name": name, "color": colour, "type": "any", "attributes": []}
        for name, colour in _foreground(names, colours)
    ]
    return json.dumps(table, indent=1) + "\n"


def class_table(names: Sequence[str], colours: Sequence[Colour]) -> str:
    """class_dict.csv: by which fewmask reads the coloured masks that CVAT exports of these labels.

    CVAT paints what no label covers black.
    """
    rows = [
        dict(zip(("name", "r", "g", "b"), (name, *colour), strict=True))
        for name, colour in zip(names, [(0, 0, 0), *colours[1:]], strict=True)
    ]
    return csv_text(rows, ("name", "r", "g", "b"))


def _foreground(names: Sequence[str], colours: Sequence[Colour]) -> list[tuple[str, str]]:
    hexed = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours]
    return list(zip(names, hexed, strict=True))[1:]
