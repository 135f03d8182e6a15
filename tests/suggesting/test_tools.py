"""What the labelling tools are given, read by decoders written from their documentation."""

from __future__ import annotations

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fewmask.data.table import read_table
from fewmask.suggesting import cvat, label_studio
from fewmask.suggesting.folder import stems

NAMES, COLOURS = ("background", "leaf", "stem & root"), ((0, 0, 0), (230, 159, 0), (86, 180, 233))


def ids(height: int = 37, width: int = 53) -> np.ndarray:
    """Class ids uint8 [H,W] of three classes, with single pixels and whole rows."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (height, width)).astype(np.uint8)
    mask[5:20] = 1
    mask[:, 30:] = 0
    return mask


def decode_brush(rle: list[int]) -> np.ndarray:
    """thi.ng's rle-pack, as https://labelstud.io/tags/brushlabels has it: bytes to values."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def read(n: int) -> int:
        nonlocal place
        place += n
        return int(bits[place - n : place], 2)

    total, width = read(32), read(5) + 1
    counters = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        same = read(1)
        count = read(counters[read(2)]) + 1
        values += [read(width)] * count if same else [read(width) for _ in range(count)]
    return np.array(values)


def decode_cvat(element: ElementTree.Element, shape: tuple[int, int]) -> np.ndarray:
    """Counts of 0 and 1 in turn, row by row within the box."""
    left, top, width, height = (int(element.get(n, "")) for n in ("left", "top", "width", "height"))
    counts = [int(count) for count in element.get("rle", "").split(",")]
    flat = np.concatenate([np.full(count, i % 2) for i, count in enumerate(counts)])
    mask = np.zeros(shape, int)
    mask[top : top + height, left : left + width] = flat.reshape(height, width)
    return mask.astype(bool)


@pytest.mark.parametrize(
    "mask",
    [
        ids() == 1,
        np.ones((3, 5), bool),
        np.zeros((3, 5), bool),
        np.eye(9, dtype=bool),
        np.pad(np.ones((200, 200), bool), 60),  # runs longer than the largest counter
    ],
)
def test_a_brush_is_the_mask_in_all_four_channels(mask: np.ndarray) -> None:
    values = decode_brush(label_studio.brush_rle(mask)).reshape(*mask.shape, 4)
    assert (values == 255 * mask[..., None]).all()


def test_label_studio_s_tasks_hold_a_region_for_each_class() -> None:
    mask = ids()
    drafts = label_studio.regions(mask, NAMES, 7)
    (task,) = json.loads(
        label_studio.tasks_json(
            [label_studio.task("a b.png", {"rank": 7}, drafts, "fewmask leaves")]
        )
    )
    assert task["data"] == {"image": "/data/local-files/?d=images/a%20b.png", "rank": 7}
    (prediction,) = task["predictions"]
    assert prediction["model_version"] == "fewmask leaves"
    assert [r["value"]["brushlabels"] for r in prediction["result"]] == [["leaf"], ["stem & root"]]
    assert len({r["id"] for r in prediction["result"]}) == 2
    for k, region in enumerate(prediction["result"], 1):
        assert (region["original_height"], region["original_width"]) == mask.shape
        values = decode_brush(region["value"]["rle"]).reshape(*mask.shape, 4)
        assert ((values[..., 3] == 255) == (mask == k)).all()
    assert "predictions" not in label_studio.task("a.png", {}, None, "")
    view = ElementTree.fromstring(label_studio.interface(NAMES, COLOURS))
    brush = view.find("BrushLabels")
    assert brush is not None
    assert [one.get("value") for one in brush] == ["leaf", "stem & root"]
    # The tasks find the interface by these names.
    assert brush.get("name") == drafts[0]["from_name"]
    assert brush.get("toName") == view.find("Image").get("name") == drafts[0]["to_name"]  # type: ignore[union-attr]
    assert view.find("Image").get("value") == "$image"  # type: ignore[union-attr]


def test_cvat_s_masks_are_those_that_were_drawn() -> None:
    mask, empty = ids(), np.zeros((4, 6), np.uint8)
    drawn: list[cvat.Drawn] = [("b.png", mask.shape, mask), ("a.png", (4, 6), empty)]
    drawn.append(("c.png", (2, 2), None))
    root = ElementTree.fromstring(cvat.annotations_xml(drawn, NAMES, COLOURS))
    assert root.findtext("version") == "1.1"
    images = root.findall("image")
    assert [(i.get("id"), i.get("name")) for i in images] == [
        ("0", "a.png"), ("1", "b.png"), ("2", "c.png"),
    ]  # fmt: skip
    assert (images[1].get("height"), images[1].get("width")) == ("37", "53")
    found = images[1].findall("mask")
    assert [one.get("label") for one in found] == ["leaf", "stem & root"]
    for k, one in enumerate(found, 1):
        assert (decode_cvat(one, mask.shape) == (mask == k)).all()
    assert not images[0].findall("mask")
    assert not images[2].findall("mask")
    labels = json.loads(cvat.labels_json(NAMES, COLOURS))
    assert [(one["name"], one["color"]) for one in labels] == [
        ("leaf", "#e69f00"), ("stem & root", "#56b4e9"),
    ]  # fmt: skip
    assert [one.findtext("name") for one in root.iter("label")] == ["leaf", "stem & root"]


def test_cvat_s_counts_begin_with_the_pixels_outside() -> None:
    corner = np.array([[0, 0, 0], [0, 1, 1], [0, 0, 1]], bool)
    assert cvat.mask_rle(corner) == ([0, 2, 1, 1], (1, 1, 2, 2))
    assert cvat.mask_rle(corner[:, ::-1]) == ([0, 3, 1], (0, 1, 2, 2))
    assert cvat.mask_rle(~corner)[0][0] == 0


def test_names_become_files_that_no_other_name_becomes() -> None:
    found = stems(["a/b.png", "a__b.jpg", "A__B.png", "x?:.png", "é ü.jpg", "\udcff.png"])
    assert found == ["a__b", "a__b-2", "A__B-3", "x__", "é ü", "_"]


def test_what_cvat_exports_is_read_by_the_class_table(tmp_path: Path) -> None:
    names, colours = (
        ("background", "cat, striped", "dog"),
        ((9, 9, 9), (230, 159, 0), (86, 180, 233)),
    )
    (tmp_path / "class_dict.csv").write_text(cvat.class_table(names, colours))
    table = read_table(tmp_path)
    assert table is not None
    assert table.names == names
    mask = np.random.default_rng(0).integers(0, 3, (11, 13)).astype(np.uint8)
    painted = np.array([(0, 0, 0), *colours[1:]], np.uint8)[mask]  # black where nothing is drawn
    file = io.BytesIO()
    Image.fromarray(painted).save(file, "PNG")
    np.testing.assert_array_equal(table.decode(file.getvalue(), "mask"), mask)
