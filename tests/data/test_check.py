"""Every fault and warning at once, each with its file and the mend."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewmask.data import looks
from fewmask.data.check import PairReport, check, check_pairs
from fewmask.data.place import cache_root
from fewmask.data.sources import MaskOptions, open_pairs
from fewmask.settings import CheckSettings
from fewmask.types import IGNORED, Labels, UserError

Write = Callable[..., Path]
Pairs = Callable[..., Path]


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / "cache"))


def checked(folder: Path, options: MaskOptions | None = None) -> PairReport:
    return check_pairs(open_pairs(str(folder), options or MaskOptions()))


def test_good_pairs_have_neither_faults_nor_warnings(write_pairs: Pairs) -> None:
    folder = write_pairs(5)
    report = checked(folder)
    assert (report.faults, report.warnings, report.groups, report.n) == ((), (), (), 5)
    report.raise_faults()
    assert report.labels.names == ("background", "foreground")
    assert len(set(report.hashes)) == 5
    masks = [np.asarray(Image.open(path)) for path in (folder / "masks").iterdir()]
    ones = int(sum(mask.sum() for mask in masks))
    assert report.class_pixels == (5 * 40 * 48 - ones, ones)


def test_all_faults_come_at_once_each_with_its_file(
    write_pairs: Pairs, write_mask: Write, write_image: Write
) -> None:
    folder = write_pairs(8)
    (folder / "masks" / "pair_00.png").unlink()
    (folder / "images" / "pair_01.png").unlink()
    write_mask(folder / "masks" / "pair_02.png", 1, 30, 48)
    (folder / "images" / "pair_03.png").write_text("no picture")
    (folder / "masks" / "pair_04.png").write_bytes(b"")
    write_image(folder / "masks" / "pair_05.png", 0, 40, 48)
    write_mask(folder / "masks" / "pair_06.png", [255] * 48, 40, 48)
    report = checked(folder)
    expected = [
        ("images/pair_00.png", "has no mask"),
        ("masks/pair_01.png", "has no image"),
        ("masks/pair_02.png", "48 x 30 pixels, its image 48 x 40"),
        ("images/pair_03.png", "cannot be decoded (no image, by its content)"),
        ("masks/pair_04.png", "cannot be decoded (the file is empty)"),
        ("masks/pair_05.png", "a coloured picture"),
        ("masks/pair_06.png", "holds the values {255}"),
    ]
    assert len(report.faults) == len(expected)
    for (file, what), fault in zip(expected, report.faults, strict=True):
        assert fault.startswith(str(folder / file))
        assert what in fault
        assert "\n" not in fault
    with pytest.raises(UserError) as caught:
        report.raise_faults()
    assert caught.value.faults == report.faults


def test_masks_of_0_and_255_say_what_to_pass_and_passing_it_works(
    write_pairs: Pairs,
) -> None:
    folder = write_pairs(3)
    for path in sorted((folder / "masks").iterdir())[:2]:
        Image.fromarray(np.asarray(Image.open(path)) * 255).save(path)
    report = checked(folder)
    assert len(report.faults) == 2
    assert (
        "masks/pair_00.png: holds the values {0, 255}; expected class ids 0..1" in report.faults[0]
    )
    third = sorted((folder / "masks").iterdir())[2]
    Image.fromarray(np.asarray(Image.open(third)) * 255).save(third)
    report = checked(folder)
    assert len(report.faults) == 3
    assert all("Pass --mask-values 0,255 to map them" in fault for fault in report.faults)
    report = checked(folder, MaskOptions(mask_values=(0, 255)))
    assert not report.faults
    assert report.class_pixels[1] > 0


def test_a_name_that_is_no_utf_8_is_a_fault(write_pairs: Pairs) -> None:
    folder = write_pairs(3)
    for kind in ("images", "masks"):
        one = min((folder / kind).iterdir())
        one.rename(one.with_name(os.fsdecode(b"caf\xe9.png")))
    faults = [fault.rpartition("/")[2] for fault in checked(folder).faults]
    assert faults == ["caf\udce9.png: the name is no UTF-8. Rename image and mask"]


def test_ignored_pixels_do_not_count(write_pairs: Pairs, write_mask: Write) -> None:
    folder = write_pairs(2)
    write_mask(folder / "masks" / "pair_00.png", [0] * 10 + [1] * 10 + [255] * 28, 40, 48)
    assert "Pass --ignore 255" in checked(folder).faults[0]
    report = checked(folder, MaskOptions(ignore=255))
    assert not report.faults
    assert report.labels.lut[255] == IGNORED
    assert sum(report.class_pixels) == 40 * 20 + 40 * 48


def test_masks_of_ignored_pixels_alone_teach_nothing(write_pairs: Pairs, write_mask: Write) -> None:
    folder = write_pairs(2)
    for i in range(2):
        write_mask(folder / "masks" / f"pair_0{i}.png", [255] * 48, 40, 48)
    (fault,) = checked(folder, MaskOptions(ignore=255)).faults
    assert fault == f"{folder}: every pixel of every mask is ignored. Mend --ignore"


def test_a_raised_limit_has_images_looked_at_again(
    write_pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pairs(2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert "--max-megapixels" in checked(folder).faults[0]
    low = looks.look_at_images([pair.image for pair in open_pairs(str(folder)).items])
    assert len(low.faults) == 2
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000_000)
    assert not checked(folder).faults
    assert not looks.look_at_images([pair.image for pair in open_pairs(str(folder)).items]).faults


def test_contradicting_flags_are_faults_of_the_source(write_pairs: Pairs) -> None:
    folder = write_pairs(2)
    report = checked(folder, MaskOptions(mask_values=(0, 1), ignore=1))
    assert any("holds --ignore's 1" in fault for fault in report.faults)


def test_labels_of_a_trained_run_bind(write_pairs: Pairs, write_mask: Write) -> None:
    folder = write_pairs(2)
    write_mask(folder / "masks" / "pair_00.png", [0] * 40 + [2] * 8, 40, 48)
    trained = Labels(("background", "cell"), (0, 1, *[254] * 254))
    (fault,) = check_pairs(open_pairs(str(folder)), trained).faults
    assert "holds the values {0, 2}; expected class ids 0..1 (320 pixels are outside)" in fault


def test_masks_of_one_class_and_classes_without_pixels_are_warnings(
    write_pairs: Pairs, write_mask: Write
) -> None:
    folder = write_pairs(3)
    write_mask(folder / "masks" / "pair_01.png", 0, 40, 48)
    (warning,) = checked(folder).warnings
    assert warning.startswith(str(folder / "masks/pair_01.png"))
    assert "all background" in warning
    for i in range(3):
        write_mask(folder / "masks" / f"pair_{i:02}.png", 0, 40, 48)
    report = checked(folder)
    assert not report.faults
    assert report.labels.n_classes == 2
    assert any("no mask holds the class foreground" in text for text in report.warnings)
    write_mask(folder / "masks" / "pair_02.png", 255, 40, 48)
    report = checked(folder, MaskOptions(ignore=255))
    assert any("every pixel is ignored" in text for text in report.warnings)


def test_pictures_that_occur_twice_are_grouped_and_named(write_pairs: Pairs) -> None:
    folder = write_pairs(5)
    shutil.copy(folder / "images" / "pair_01.png", folder / "images" / "pair_04.png")
    shutil.copy(folder / "masks" / "pair_01.png", folder / "masks" / "pair_04.png")
    with Image.open(folder / "images" / "pair_00.png") as image:
        image.save(folder / "images" / "pair_02.png", format="JPEG", quality=85)
    report = checked(folder)
    assert report.groups == ((0, 2), (1, 4))
    assert report.hashes[1] == report.hashes[4]
    assert report.hashes[0] != report.hashes[2]
    text = "\n".join(report.warnings)
    assert "pair_02.png: a JPEG by its content, read as such" in text
    assert f"{folder}/images/pair_01.png, {folder}/images/pair_04.png: one picture 2 times" in text


# --- remembering ----------------------------------------------------------------------------------


def test_a_second_check_decodes_nothing_and_says_the_same(
    write_pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pairs(4)
    (folder / "masks" / "pair_02.png").write_text("broken")
    first = checked(folder)
    calls: list[str] = []
    real = looks._look
    monkeypatch.setattr(looks, "_look", lambda pair: calls.append(pair.name) or real(pair))
    assert checked(folder) == first
    assert checked(folder, MaskOptions(mask_values=(1, 0))).labels.lut[0] == 1
    assert calls == []
    shutil.copy(folder / "masks" / "pair_01.png", folder / "masks" / "pair_02.png")
    assert not checked(folder).faults
    assert len(calls) == 4


@pytest.mark.parametrize("broken", ["", "[]", "[{}, {}]", '[{"thumb": "?"}, {"nonsense": 1}]'])
def test_a_broken_memory_is_looked_past(write_pairs: Pairs, broken: str) -> None:
    folder = write_pairs(2)
    first = checked(folder)
    (memo,) = (cache_root() / "checks").iterdir()
    memo.write_text(broken)
    assert checked(folder) == first


def test_a_cache_that_cannot_be_written_stops_no_check(write_pairs: Pairs, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert not checked(write_pairs(2)).faults


def test_progress_counts_the_pairs(write_pairs: Pairs) -> None:
    told: list[tuple[int, int]] = []
    pairs = open_pairs(str(write_pairs(3)))
    check_pairs(pairs, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


# --- pools, and the command -----------------------------------------------------------------------


def test_a_pool_is_decoded_whole(tmp_path: Path, write_image: Write) -> None:
    pool = tmp_path / "pool"
    for i in range(4):
        write_image(pool / f"{i}.png", min(i, 2))
    (pool / "text.jpg").write_text("no picture")
    write_image(pool / "odd.gif", 9)
    found = check(CheckSettings(images=(str(pool),)))
    (fault,), warnings = found.faults, found.warnings
    assert "text.jpg: cannot be decoded (no image, by its content). Replace or remove it" in fault
    assert len(warnings) == 2
    assert f"{pool}/3.png: the same pixels as {pool}/2.png" in warnings
    assert f"{pool}/odd.gif: a PNG by its content" in "\n".join(warnings)


def test_the_command_reports_on_every_source(
    tmp_path: Path, write_pairs: Pairs, write_image: Write
) -> None:
    folder = write_pairs(3)
    (folder / "masks" / "pair_00.png").unlink()
    write_image(tmp_path / "pool" / "a.png")
    (tmp_path / "pool" / "b.png").write_text("-")
    sources = (str(tmp_path / "pool"), str(tmp_path / "gone"), str(tmp_path / "pool"))
    found = check(CheckSettings(pairs=str(folder), images=sources))
    assert len(found.faults) == 4
    assert "pair_00.png: has no mask" in found.faults[0]
    assert "b.png: cannot be decoded" in found.faults[1]
    assert "gone: no such folder" in found.faults[2]
    assert len(found.notes) == 3
    assert "2 pairs; pixels: background" in found.notes[0]
    assert found.notes[1].endswith("2 images, 0 other files")


def test_the_command_wants_something_to_check() -> None:
    with pytest.raises(UserError, match="pass --pairs SRC, --images SRC, or both"):
        check(CheckSettings())
