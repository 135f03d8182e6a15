"""Listings of image files: their order, and when a kept one is believed."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fewmask.data import listing
from fewmask.data.cache import stamps
from fewmask.data.items import fingerprint
from fewmask.data.listing import FileList, walk
from fewmask.data.place import cache_root
from fewmask.data.sources import open_images

Write = Callable[..., Path]


@pytest.fixture
def pool(tmp_path: Path, write_image: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Class folders, of a size from which listings are kept."""
    monkeypatch.setattr(listing, "KEPT_FROM", 5)
    monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / "cache"))
    for i in range(12):
        write_image(tmp_path / "pool" / f"class{i % 3}" / f"{i:02}.png", i)
    (tmp_path / "pool" / "read.me").write_text("words")
    _age(tmp_path / "pool")
    return tmp_path / "pool"


def _age(root: Path) -> None:
    """Set the folders' times back: what was changed this moment is not kept."""
    past = time.time_ns() - 10_000_000_007
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(folder, ns=(past, past))


def test_files_come_in_the_order_of_their_whole_names(tmp_path: Path, write_image: Write) -> None:
    names = ["a/x.png", "a-b/y.png", "a.png", "a0.png", "b/c/d.png", "b/c.png", "ä/ö ü.png"]
    for seed, name in enumerate(names):
        write_image(tmp_path / name, seed)
    found, others = walk(tmp_path)
    assert [item.name for item in found] == sorted(names)
    assert list(found.names()) == sorted(names)
    assert [found.name(row) for row in range(len(found))] == sorted(names)
    assert [item.path for item in found] == [tmp_path / name for name in sorted(names)]
    assert others == 0


def test_a_list_is_a_sequence(pool: Path) -> None:
    found, others = walk(pool)
    assert (len(found), others) == (12, 1)
    assert found[-1] == found[11]
    assert found[2:5] == [found[2], found[3], found[4]]
    with pytest.raises(IndexError):
        found[12]


def test_a_kept_listing_is_taken_again_without_looking(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = walk(pool)
    monkeypatch.setattr(listing, "_listed", None)
    again, others = walk(pool)
    assert list(again) == list(first)
    assert others == 1
    assert again.fingerprint() == fingerprint(list(first))


def test_a_kept_listing_gives_labels_and_fingerprint(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_images(str(pool))
    content = first.fingerprint()
    monkeypatch.setattr(listing, "content_name", None)
    again = open_images(str(pool))
    assert again.fingerprint() == content
    assert again.labels == first.labels == (0,) * 4 + (1,) * 4 + (2,) * 4
    assert again.label_names == ("class0", "class1", "class2")


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "inside"])
def test_a_folder_that_has_changed_is_listed_anew(
    pool: Path, write_image: Write, change: str
) -> None:
    walk(pool)
    path = pool / "class0" / "00.png"
    if change == "added":
        write_image(pool / "class1" / "new.png", 99)
    elif change == "removed":
        path.unlink()
    elif change == "renamed":
        path.rename(path.with_name("other.png"))
    else:  # in its place, which no folder notices
        path.write_bytes(path.read_bytes() + b" ")
    found, _ = walk(pool)
    assert [item.name for item in found] == sorted(
        path.relative_to(pool).as_posix() for path in pool.rglob("*.png")
    )
    assert found.table.sizes.tolist() == [item.stamp()[0] for item in found]


def test_a_folder_that_was_changed_this_moment_is_not_kept(pool: Path, write_image: Write) -> None:
    write_image(pool / "class1" / "new.png", 99)
    os.utime(pool / "class1")
    walk(pool)
    assert not (cache_root() / "listings").exists()


def test_a_fingerprint_is_kept_until_a_file_changes(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = walk(pool)[0].fingerprint()

    def read(*_: object) -> str:
        raise AssertionError("the files are read again")

    with monkeypatch.context() as patched:
        patched.setattr(listing, "content_name", read)
        assert walk(pool)[0].fingerprint() == before
    path = next(pool.rglob("*.png"))
    told = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # as long as before
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns + 1))
    assert FileList(str(pool), listing._listed(str(pool))).fingerprint() != before


@pytest.mark.parametrize("kept", [False, True])
def test_a_cache_s_name_knows_a_picture_that_was_changed_in_its_place(
    pool: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a kept listing, whose sample has not seen it."""
    monkeypatch.setattr(listing, "KEPT_FROM", 1 if kept else 1000)
    monkeypatch.setattr(listing, "SAMPLED", 1)
    before = stamps(walk(pool)[0], "pool")
    assert stamps(walk(pool)[0], "pool") == before
    assert stamps(walk(pool)[0], "another") != before
    assert (walk(pool)[0]._kept is not None) == kept
    path = sorted(pool.rglob("*.png"))[5]
    path.write_bytes(path.read_bytes() + b" ")
    assert stamps(walk(pool)[0], "pool") != before


def test_a_torn_listing_is_made_anew(pool: Path) -> None:
    walk(pool)
    (place,) = (path for path in (cache_root() / "listings").iterdir() if path.is_dir())
    for name in ("sizes.npy", "table.json"):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(whole[: len(whole) // 2])
        assert len(walk(pool)[0]) == 12


def test_an_unwritable_cache_costs_the_keeping_alone(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / "file" / "below"))
    assert len(walk(pool)[0]) == 12


def test_a_list_goes_to_another_process(pool: Path) -> None:
    for found in (FileList(str(pool), listing._listed(str(pool))), walk(pool)[0]):
        assert list(pickle.loads(pickle.dumps(found))) == list(found)
    kept = pickle.dumps(walk(pool)[0])
    assert b"class0" not in kept  # by its place, not with all its names
