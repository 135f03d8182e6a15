"""Oxford-IIIT Pet in its official layout, small and real."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fewmask.data.check import check_pairs
from fewmask.data.sources import MaskOptions, open_images, open_pairs
from fewmask.types import IGNORED, Border, UserError

SHARED = Path(
    os.environ.get("FEWMASK_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
).resolve()
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")

Write = Callable[..., Path]


@pytest.fixture
def pets(tmp_path: Path, write_image: Write, write_mask: Write) -> Path:
    root = tmp_path / "pets"
    for i, name in enumerate(("Abyssinian_1", "beagle_2", "pug_3")):
        write_image(root / "images" / f"{name}.jpg", i)
        write_mask(root / "annotations" / "trimaps" / f"{name}.png", [1] * 5 + [2] * 7 + [3] * 4)
    return root


def names(root: Path) -> list[str]:
    return [pair.name for pair in open_pairs(f"oxford-iiit-pet:{root}").items]


@pytest.mark.parametrize("nested", [False, True])
def test_all_are_taken_where_there_is_no_list(pets: Path, nested: bool) -> None:
    root = pets
    if nested:
        root = pets.with_name("torchvision")
        root.mkdir()
        pets.rename(root / "oxford-iiit-pet")
    assert names(root) == ["Abyssinian_1", "beagle_2", "pug_3"]
    pool = open_images(f"oxford-iiit-pet:{root}")
    assert len(pool.items) == 3
    assert pool.pool == "oxford-iiit-pet"


def test_the_list_chooses_and_what_it_names_must_be_there(pets: Path) -> None:
    listed = pets / "annotations" / "list.txt"
    listed.write_text("#Image CLASS-ID\n # more\n\nAbyssinian_1 1 1 1\npug_3 2 2 1\n")
    assert names(pets) == ["Abyssinian_1", "pug_3"]
    with listed.open("a") as file:
        file.write("gone_7 1 1 1\nbeagle_2 1 1 1\n")
    (pets / "annotations" / "trimaps" / "beagle_2.png").unlink()
    found = open_pairs(f"oxford-iiit-pet:{pets}")
    assert [pair.name for pair in found.items] == ["Abyssinian_1", "pug_3"]
    assert any("gone_7.jpg: named in list.txt but not there" in fault for fault in found.faults)
    assert any("beagle_2.jpg: has no mask" in fault for fault in found.faults)
    assert len(found.faults) == 2


@pytest.mark.parametrize(
    ("border", "classes", "trimap"),
    [
        ("ignore", ("background", "pet"), {1: 1, 2: 0, 3: IGNORED}),
        ("foreground", ("background", "pet"), {1: 1, 2: 0, 3: 1}),
        ("background", ("background", "pet"), {1: 1, 2: 0, 3: 0}),
        ("class", ("background", "pet", "border"), {1: 1, 2: 0, 3: 2}),
    ],
)
def test_the_border_is_read_as_said(
    pets: Path, border: Border, classes: tuple[str, ...], trimap: dict[int, int]
) -> None:
    found = open_pairs(f"oxford-iiit-pet:{pets}", MaskOptions(border))
    assert found.labels is not None
    assert found.labels.names == classes
    assert {value: found.labels.lut[value] for value in trimap} == trimap
    assert found.labels.border_lut is not None
    assert [found.labels.border_lut[value] for value in (1, 2, 3)] == [1, 0, 1]
    report = check_pairs(found)
    assert not report.faults
    columns = {1: 5, 2: 7, 3: 4}  # of 12 pixels, in each of the 3 trimaps
    counts = [0] * len(classes)
    for value, n in columns.items():
        if trimap[value] != IGNORED:
            counts[trimap[value]] += n * 12 * 3
    assert report.class_pixels == tuple(counts)


def test_values_that_trimaps_do_not_hold_are_faults(pets: Path, write_mask: Write) -> None:
    write_mask(pets / "annotations" / "trimaps" / "pug_3.png", [0] * 8 + [1] * 8)
    (fault,) = check_pairs(open_pairs(f"oxford-iiit-pet:{pets}")).faults
    assert "pug_3.png: holds the values {0, 1}; expected the values 1, 2, 3 (96 pixels" in fault
    assert "--mask-values" not in fault


def test_flags_that_trimaps_leave_no_room_for_are_refused(pets: Path) -> None:
    src = f"oxford-iiit-pet:{pets}"
    with pytest.raises(UserError) as caught:
        open_pairs(src, MaskOptions(ignore=3, mask_values=(1, 2)))
    assert len(caught.value.faults) == 2
    assert all("--border" in fault for fault in caught.value.faults)
    with pytest.raises(UserError, match=r"3 class names \(a, b, c\); with --border ignore"):
        open_pairs(src, MaskOptions(classes=("a", "b", "c")))
    found = open_pairs(src, MaskOptions(classes=("not", "pet")))
    assert found.labels is not None
    assert found.labels.names == ("not", "pet")


@real
def test_the_real_pets_are_read_whole_odd_files_too() -> None:
    found = open_pairs(f"oxford-iiit-pet:{SHARED / 'oxford-iiit-pet'}")
    assert len(found.items) == 693
    assert found.faults == ()
    report = check_pairs(found)
    assert report.faults == ()
    assert report.n == 693
    assert len(report.groups) == 8  # looked at, one by one
    text = "\n".join(report.warnings)
    assert "Abyssinian_34.jpg: a GIF by its content" in text
    assert "Abyssinian_5.jpg: a PNG by its content" in text
    assert "Abyssinian_34.png: all background" in text
    assert len(report.warnings) == 3 + 8
    rows = {pair.name: pair for pair in found.items}
    for name in ("Abyssinian_34", "Abyssinian_5"):
        pixels = rows[name].image.pixels()
        assert pixels.shape[:2] == rows[name].mask.values().shape
        assert pixels.std() > 10
    assert set(np.unique(rows["Abyssinian_5"].mask.values())) == {1, 2, 3}
