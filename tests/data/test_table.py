"""class_dict.csv: what it says, what is wrong with it, and coloured masks read by it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewmask.data.cache import cached_pairs
from fewmask.data.check import check_pairs
from fewmask.data.images import Undecodable
from fewmask.data.sources import MaskOptions, PairSet, open_pairs
from fewmask.data.table import ClassTable, read_table
from fewmask.types import UserError

CAMVID = "name,r,g,b\nSky,128,128,128\nRoad,128,64,128\nCar,64,0,128\nVoid,0,0,0\n"
TABLE = ClassTable(
    "class_dict.csv",
    ("Sky", "Road", "Car", "Void"),
    ((128, 128, 128), (128, 64, 128), (64, 0, 128), (0, 0, 0)),
)


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def painted(ids: np.ndarray, table: ClassTable = TABLE) -> Image.Image:
    return Image.fromarray(np.array(table.colours, np.uint8)[ids])


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, (7, 9)).astype(np.uint8)


@pytest.mark.parametrize("name", ["class_dict.csv", "classes.csv"])
@pytest.mark.parametrize(
    "text",
    [
        CAMVID,
        "\ufeff" + CAMVID.replace(",", " , ").replace("\n", "\r\n"),
        "B,Name,R,G\n128,Sky,128,128\n\n128,Road,128,64\n128,Car,64,0\n0,Void,0,0\n",
    ],
)
def test_names_and_colours_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    table = read_table(tmp_path)
    assert table is not None
    assert (table.names, table.colours) == (TABLE.names, TABLE.colours)
    assert table.where == str(tmp_path / name)


def test_names_alone_and_no_table_at_all(tmp_path: Path) -> None:
    assert read_table(tmp_path) is None
    (tmp_path / "classes.csv").write_text('name\nsky\n"car, red"\n"van, blue"\n')
    table = read_table(tmp_path)
    assert table is not None
    assert table.names == ("sky", "car, red", "van, blue")
    assert table.colours is None


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["its first line is ''; expected name,r,g,b"]),
        ("Sky,128,128,128\nRoad,1,2,3\n", ["its first line is 'sky,128,128,128'; expected name"]),
        ("name,r,g\nSky,1,2\nRoad,1,3\n", ["expected name,r,g,b, or name alone"]),
        ("id,name,r,g,b\n0,a,1,2,3\n", ["expected name,r,g,b, or name alone"]),
        ("name\nSky\n", ["names 1 classes; expected 2 to 254"]),
        (
            "name,r,g,b\na,1,2\nb,256,0,0\nc,-1,0,0\n,4,4,4\n",
            [
                "line 2 has 3 entries, not 4",
                "line 3 has the colour 256,0,0; expected numbers of 0 to 255",
                "line 4 has the colour -1,0,0",
                "line 5 names no class",
            ],
        ),
        (
            "name,r,g,b\na,1,2,3\na,3,2,1\nc,1,2,3\n",
            ["line 3 has the name of line 2", "line 4 has the colour of line 2"],
        ),
    ],
)
def test_every_fault_of_a_table_is_named(tmp_path: Path, text: str, faults: list[str]) -> None:
    (tmp_path / "class_dict.csv").write_text(text)
    with pytest.raises(UserError) as raised:
        read_table(tmp_path)
    assert len(raised.value.faults) == len(faults)
    for found, wanted in zip(raised.value.faults, faults, strict=True):
        assert found.startswith(str(tmp_path / "class_dict.csv"))
        assert wanted in found


def test_two_tables_are_one_too_many(tmp_path: Path) -> None:
    for name in ("class_dict.csv", "classes.csv"):
        (tmp_path / name).write_text(CAMVID)
    with pytest.raises(UserError, match="Keep one of the two"):
        read_table(tmp_path)


def test_coloured_masks_are_read_by_their_colours(ids: np.ndarray) -> None:
    picture = painted(ids)
    transparent = picture.convert("RGBA")
    transparent.putalpha(7)
    palette = Image.frombytes("P", (9, 7), (3 - ids).tobytes())  # indices that are no class ids
    palette.putpalette(np.array(TABLE.colours, np.uint8)[::-1].tobytes())
    for one in (picture, transparent, palette):
        assert np.array_equal(TABLE.decode(encoded(one), "m.png"), ids), one.mode


def test_grey_masks_hold_the_numbers_themselves(ids: np.ndarray) -> None:
    grey = encoded(Image.fromarray(ids))
    assert np.array_equal(TABLE.decode(grey, "m.png"), ids)
    names = ClassTable("classes.csv", TABLE.names)
    assert np.array_equal(names.decode(grey, "m.png"), ids)
    with pytest.raises(Undecodable, match="a coloured picture"):
        names.decode(encoded(painted(ids)), "m.png")


def test_of_greys_alone_a_grey_mask_is_a_coloured_one(ids: np.ndarray) -> None:
    binary = ClassTable("class_dict.csv", ("other", "road"), ((255, 255, 255), (0, 0, 0)))
    road = (ids > 1).astype(np.uint8)
    for picture in (
        painted(road, binary),
        Image.fromarray(255 * (1 - road)),
        Image.fromarray(road == 0),
        Image.fromarray(255 * (1 - road)).convert("LA"),
    ):
        assert np.array_equal(binary.decode(encoded(picture), "m.png"), road), picture.mode
    with pytest.raises(Undecodable, match="the colours 1,1,1, which"):
        binary.decode(encoded(Image.fromarray(road)), "m.png")


def test_unknown_colours_are_counted_and_named(ids: np.ndarray) -> None:
    pixels = np.array(painted(ids))
    pixels[0, :3] = (1, 2, 3)
    pixels[1, 0] = (128, 128, 127)
    with pytest.raises(Undecodable) as raised:
        TABLE.decode(encoded(Image.fromarray(pixels)), "m.png")
    assert raised.value.reason == (
        "4 pixels of the colours 1,2,3 and 128,128,127, which class_dict.csv does not name"
    )
    assert "Name them there" in raised.value.mend
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    with pytest.raises(Undecodable) as raised:
        TABLE.decode(encoded(Image.fromarray(noise)), "m.png")
    assert "more, which" in raised.value.reason
    assert "JPEG" in raised.value.mend


def pairs_of(folder: Path, n: int = 3, text: str = CAMVID) -> PairSet:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        rng = np.random.default_rng(i)
        image = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        painted(rng.integers(0, 4, (8, 8))).save(folder / "masks" / f"{i}.png")
    (folder / "class_dict.csv").write_text(text)
    return open_pairs(str(folder), MaskOptions(ignore=3))


def test_a_folder_s_table_names_colours_and_reads(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path)
    report = check_pairs(pairs)
    assert not report.faults
    assert report.labels.names == ("Sky", "Road", "Car")
    assert report.labels.colours == TABLE.colours[:3]  # type: ignore[index]
    for row, pair in enumerate(pairs.items):
        wanted = np.random.default_rng(row)
        wanted.integers(0, 256, (8, 8, 3))
        values = wanted.integers(0, 4, (8, 8))
        assert np.array_equal(pair.mask.values(), values)
        assert report.mask_pixels[row] == tuple((values == k).sum() for k in range(3))
    assert report.class_pixels == tuple(np.sum(report.mask_pixels, 0))


def test_a_changed_table_is_not_answered_from_what_was_remembered(tmp_path: Path) -> None:
    first = pairs_of(tmp_path)
    labels = check_pairs(first).labels
    before = cached_pairs(first, labels, 8, "square").masks
    swapped = CAMVID.replace("Sky,128,128,128", "Sky,64,0,128").replace(
        "Car,64,0,128", "Car,128,128,128"
    )
    second = pairs_of(tmp_path, text=swapped)
    assert second.fingerprint() != first.fingerprint()
    assert check_pairs(second).class_pixels == check_pairs(first).class_pixels[::-1]
    after = cached_pairs(second, labels, 8, "square").masks
    assert before is not None
    assert after is not None
    assert np.array_equal(np.array([2, 1, 0])[before[before < 3]], after[after < 3])


def test_faults_of_coloured_masks_come_all_at_once(tmp_path: Path) -> None:
    pairs_of(tmp_path, 4, CAMVID.replace("Road,128,64,128\n", ""))
    faults = check_pairs(open_pairs(str(tmp_path))).faults
    assert len(faults) == 4
    assert all("128,64,128" in fault and "Name them there" in fault for fault in faults)


def test_without_a_table_a_coloured_mask_says_how_to_get_one(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "masks" / "a.png", 1)
    (fault,) = check_pairs(open_pairs(str(tmp_path))).faults
    assert "a coloured picture" in fault
    assert "class_dict.csv" in fault
