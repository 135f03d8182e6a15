"""What two sets share: pools, training pairs and test pairs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fewmask
from fewmask.cli import dispatch
from fewmask.data import leakage, looks
from fewmask.data.check import check_pairs
from fewmask.data.items import ImageFile
from fewmask.data.leakage import counted, first_few, overlap, pair_pictures, pool_pictures, repeats
from fewmask.data.sides import write_copies
from fewmask.data.sources import open_images, open_pairs


def copy_as_jpeg(source: Path, target: Path, *, mirrored: bool = False) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(source)
    if mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture.save(target, "JPEG", quality=60)


@pytest.fixture
def folders(tmp_path: Path, write_pairs: Callable[..., Path]) -> tuple[Path, Path]:
    """Six pairs, and a pool of four images of its own, an exact and two near copies of pairs."""
    pairs = write_pairs(6)
    pool = tmp_path / "pool"
    for path in sorted((write_pairs(10, name="others") / "images").iterdir())[6:]:
        (pool / "own").mkdir(parents=True, exist_ok=True)
        path.rename(pool / "own" / path.name)
    images = sorted((pairs / "images").iterdir())
    (pool / "again.png").write_bytes(images[0].read_bytes())
    copy_as_jpeg(images[1], pool / "worse.jpg")
    copy_as_jpeg(images[1], pool / "turned.jpg", mirrored=True)
    return pairs, pool


def test_exact_and_near_copies_are_named_by_kind(folders: tuple[Path, Path]) -> None:
    found = open_pairs(str(folders[0]))
    checked = check_pairs(found)
    pairs = pair_pictures(found, checked.hashes, checked.thumbs)
    pool = pool_pictures(open_images(str(folders[1])))
    alike = overlap(pool, pairs)
    names = [item.name for item in pool.items]
    assert [(names[i], j) for i, j in alike.exact] == [("again.png", 0)]
    assert {(names[i], j) for i, j in alike.near} == {("turned.jpg", 1), ("worse.jpg", 1)}
    shared = leakage.shared(alike, pool, pairs)
    assert [one.kind for one in shared] == ["exact", "near", "near"]
    assert counted(shared, len(pool.items)) == "3 of 7 images (1 exact, 2 near copies)"
    assert first_few(shared, 1).endswith("again.png = " + pairs.items[0].where + " and 2 more")
    own = repeats(pool)
    assert own.exact == ()
    assert {tuple(names[row] for row in pair) for pair in own.near} == {("turned.jpg", "worse.jpg")}


def test_looking_again_costs_a_listing(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(str(folders[1]))
    before = pool_pictures(images)
    alike = overlap(before, before)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("looked again")

    with monkeypatch.context() as patch:
        patch.setattr(looks, "_look_at_image", never)
        patch.setattr(leakage, "between", never)
        again = pool_pictures(open_images(str(folders[1])))
        assert again.hashes == before.hashes
        assert np.array_equal(again.thumbs, before.thumbs)
        assert overlap(again, again) == alike
    (folders[1] / "worse.jpg").write_bytes((folders[1] / "again.png").read_bytes())
    assert len(repeats(pool_pictures(open_images(str(folders[1])))).exact) == 1


def test_what_was_remembered_and_is_broken_is_looked_at_again(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / "cache"))
    expected = pool_pictures(open_images(str(folders[1])))
    for name in ("*.npy", "*.json"):
        for path in (tmp_path / "cache" / "checks").glob(name):
            path.write_bytes(b"{}")
        found = pool_pictures(open_images(str(folders[1])))
        assert found.hashes == expected.hashes
        assert np.array_equal(found.thumbs, expected.thumbs)


def test_undecodable_images_are_like_no_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            (tmp_path / name / f"{i}.png").write_bytes(b"nothing")
    left, right = (pool_pictures(open_images(str(tmp_path / name))) for name in "ab")
    assert repeats(left) == leakage.Alike()
    assert overlap(left, right) == leakage.Alike()


def test_check_warns_of_pool_images_in_the_pairs_and_writes_them_side_by_side(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    pairs, pool = map(str, folders)
    found = fewmask.check(pairs=pairs, images=(pool,), out=str(tmp_path / "out"))
    assert not found.faults
    both = [line for line in found.warnings if "are also in" in line]
    assert len(both) == 1
    assert f"{pool}: 3 of 7 images (1 exact, 2 near copies) are also in {pairs}" in both[0]
    assert f"{pool}/again.png = {pairs}/images/pair_00.png" in both[0]
    assert f"{pool}/worse.jpg: a copy of {pool}/turned.jpg" in found.warnings
    with (tmp_path / "out" / "duplicates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["near", "exact", "near", "near"]
    assert rows[1] == {
        "kind": "exact", "set_a": pool, "image_a": f"{pool}/again.png",
        "set_b": pairs, "image_b": f"{pairs}/images/pair_00.png",
    }  # fmt: skip
    sheet = Image.open(tmp_path / "out" / "duplicates.png")
    assert sheet.width > 900
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 500


def test_check_without_duplicates_says_so(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    found = fewmask.check(pairs=str(write_pairs(4)), out=str(tmp_path / "out"))
    assert any(note.startswith("no duplicates") for note in found.notes)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["duplicates.csv"]


def test_a_sheet_copes_with_many_pairs_odd_names_and_files_that_are_gone(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    data = io.BytesIO()
    Image.new("RGB", (300, 9), "red").save(data, "PNG")
    for i in range(70):
        (pool / f"{i:02}_{'long' * 20}_ä\udcff.png").write_bytes(data.getvalue())
    images = pool_pictures(open_images(str(pool)))
    shared = leakage.shared(repeats(images), images, images)
    assert len(shared) == 69
    images.items[3].path.unlink()  # type: ignore[attr-defined]
    write_copies(tmp_path / "out", [("pool", "test", one) for one in shared])
    sheet = np.asarray(Image.open(tmp_path / "out" / "duplicates.png"))
    assert (sheet == (255, 0, 0)).all(axis=2).any()
    assert len((tmp_path / "out" / "duplicates.csv").read_text().splitlines()) == 70


def test_the_pairs_own_files_are_no_copies_of_themselves(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, _ = folders
    assert dispatch(["check", "--pairs", str(pairs), "--images", str(pairs / "images")]) == 0
    said = "".join(capsys.readouterr())
    n = len(list((pairs / "images").iterdir()))
    assert f"{n} images are the pairs' own files. A study" in said
    assert "are also in" not in said


def test_a_picture_with_two_twins_is_named_once(tmp_path: Path) -> None:
    a, b, c = (ImageFile(name, tmp_path / name) for name in "abc")
    shared = [leakage.Shared(True, a, b), leakage.Shared(False, a, c), leakage.Shared(False, b, c)]
    assert first_few(shared, 1) == f"{tmp_path}/a = {tmp_path}/b and 1 more"
    assert first_few(shared, 2) == f"{tmp_path}/a = {tmp_path}/b, {tmp_path}/b = {tmp_path}/c"
