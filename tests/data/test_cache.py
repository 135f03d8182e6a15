"""Decoded once, whole or not there, and never for other files."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewmask.data import cache as caching
from fewmask.data.cache import cached_images, cached_pairs, in_order
from fewmask.data.check import check_pairs
from fewmask.data.images import resize_image, resize_mask
from fewmask.data.items import ImageFile
from fewmask.data.place import cache_root
from fewmask.data.sources import PairSet, open_images, open_pairs
from fewmask.types import IGNORED, Labels, Resize, UserError

Write = Callable[..., Path]
Pairs = Callable[..., Path]
BINARY = Labels(("background", "foreground"), (0, 1, *[254] * 253, 255))


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pool(tmp_path: Path, write_image: Write) -> Path:
    for i in range(5):
        write_image(tmp_path / "pool" / f"{i}.png", i, 30, 20 + i)
    return tmp_path / "pool"


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(item: ImageFile) -> None:
        raise AssertionError(f"{item.name} was decoded again")

    monkeypatch.setattr(ImageFile, "pixels", fail)


def test_the_cache_lies_where_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_root() == tmp_path / "a"
    monkeypatch.delenv("FEWMASK_CACHE")
    assert cache_root() == tmp_path / "b" / "fewmask"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "fewmask"


@pytest.mark.parametrize("resize", ["square", "keep"])
def test_a_pool_holds_what_decoding_and_resizing_give(pool: Path, resize: Resize) -> None:
    images = open_images(str(pool))
    cache = cached_images(images, 16, resize)
    assert cache.images.shape == (5, 16, 16, 3)
    assert cache.names == tuple(f"{i}.png" for i in range(5))
    assert cache.masks is None
    assert cache.valid.dtype == np.int32
    for row, item in enumerate(images.items):
        pixels, valid = resize_image(item.pixels(), 16, resize)
        np.testing.assert_array_equal(cache.images[row], pixels)
        assert tuple(cache.valid[row]) == valid


@pytest.mark.parametrize("resize", ["square", "keep"])
def test_pairs_hold_class_ids(write_pairs: Pairs, resize: Resize) -> None:
    folder = write_pairs(3)
    for path in (folder / "masks").iterdir():
        values = np.asarray(Image.open(path)) * np.uint8(1)
        values[0, :5] = 255
        Image.fromarray(values).save(path)
    pairs = open_pairs(str(folder))
    swapped = replace(BINARY, lut=(1, 0, *[254] * 253, IGNORED))
    for labels in (BINARY, swapped):
        cache = cached_pairs(pairs, labels, 24, resize)
        assert cache.names == ("pair_00", "pair_01", "pair_02")
        assert cache.masks is not None
        lut = np.asarray(labels.lut, np.uint8)
        for row, pair in enumerate(pairs.items):
            truth = resize_mask(lut[pair.mask.values()], 24, resize)
            np.testing.assert_array_equal(cache.masks[row], truth)
            assert set(np.unique(truth)) == {0, 1, IGNORED}
            pixels, valid = resize_image(pair.image.pixels(), 24, resize)
            np.testing.assert_array_equal(cache.images[row], pixels)
            assert (cache.masks[row][valid[0] :] == IGNORED).all()


def test_a_second_run_decodes_nothing_and_other_settings_decode_anew(
    pool: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(str(pool))
    first = cached_images(images, 16, "square")
    cached_images(images, 8, "square")
    cached_images(images, 16, "keep")
    assert len(list(root.glob("*/index.json"))) == 3
    forbid_decoding(monkeypatch)
    again = cached_images(open_images(str(pool)), 16, "square")
    np.testing.assert_array_equal(again.images, first.images)


def test_a_changed_file_is_decoded_anew(pool: Path, write_image: Write) -> None:
    first = np.array(cached_images(open_images(str(pool)), 16, "square").images)
    write_image(pool / "2.png", 77, 30, 22)
    changed = cached_images(open_images(str(pool)), 16, "square").images
    assert [bool((a != b).any()) for a, b in zip(first, changed, strict=True)] == [
        row == 2 for row in range(5)
    ]


def test_a_mask_drawn_anew_with_its_old_size_and_time_is_seen(write_pairs: Pairs) -> None:
    folder = write_pairs(2)
    mask = folder / "masks" / "pair_00.png"
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(mask, format="BMP")
    before = mask.stat()
    assert not np.any(cached_pairs(open_pairs(str(folder)), BINARY, 16, "square").masks[0])
    Image.fromarray(np.ones((40, 48), np.uint8)).save(mask, format="BMP")
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert mask.stat().st_size == before.st_size
    assert np.all(cached_pairs(open_pairs(str(folder)), BINARY, 16, "square").masks[0])


def test_undecodable_images_are_named_and_left_out(tmp_path: Path, write_image: Write) -> None:
    folder = tmp_path / "large"
    for i in range(100):
        write_image(folder / f"{i:03}.png", i, 4, 4)
    (folder / "007.png").write_text("-")
    for _ in range(2):  # decoded, and from the cache
        cache = cached_images(open_images(str(folder)), 4, "square")
        assert len(cache.names) == len(cache.images) == len(cache.valid) == 99
        assert "007.png" not in cache.names
        (skipped,) = cache.skipped
        assert skipped == f"{folder}/007.png: no image, by its content"
    (folder / "008.png").write_text("-")
    with pytest.raises(UserError) as caught:
        cached_images(open_images(str(folder)), 4, "square")
    assert len(caught.value.faults) == 2
    for i in range(9, 20):
        (folder / f"{i:03}.png").write_text("-")
    with pytest.raises(UserError) as caught:
        cached_images(open_images(str(folder)), 4, "square")
    assert len(caught.value.faults) == 11
    assert "007.png: no image, by its content. Replace or remove it" in caught.value.faults[0]
    assert "and 3 more; over 1 % cannot be decoded" in caught.value.faults[10]


def test_one_undecodable_image_of_a_small_pool_stops(pool: Path) -> None:
    (pool / "3.png").write_text("-")
    with pytest.raises(UserError, match=r"3\.png: no image"):
        cached_images(open_images(str(pool)), 16, "square")


def test_an_undecodable_pair_stops_and_leaves_nothing(write_pairs: Pairs, root: Path) -> None:
    folder = write_pairs(3)
    (folder / "masks" / "pair_01.png").write_text("-")
    with pytest.raises(UserError, match=r"pair_01\.png: no image"):
        cached_pairs(open_pairs(str(folder)), BINARY, 16, "square")
    assert not [path for path in root.iterdir() if path.is_dir()]


def test_progress_counts_the_images(pool: Path) -> None:
    told: list[tuple[int, int]] = []
    images = open_images(str(pool))
    cached_images(images, 16, "square", progress=lambda done, total: told.append((done, total)))
    assert told == [(i + 1, 5) for i in range(5)]


@pytest.mark.parametrize("harm", ["cut images", "no images", "broken index", "empty index"])
def test_a_cache_that_is_not_whole_is_built_again(pool: Path, root: Path, harm: str) -> None:
    images = open_images(str(pool))
    first = np.array(cached_images(images, 16, "square").images)
    (folder,) = [path for path in root.iterdir() if path.is_dir()]
    match harm:
        case "cut images":
            os.truncate(folder / "images.u8", 100)
        case "no images":
            (folder / "images.u8").unlink()
        case "broken index":
            (folder / "index.json").write_text("{")
        case "empty index":
            (folder / "index.json").write_text("{}")
    np.testing.assert_array_equal(cached_images(images, 16, "square").images, first)


# --- other processes ------------------------------------------------------------------------------


SLOWLY = """
import sys, time
from dataclasses import replace
from pathlib import Path
from fewmask.data.cache import cached_images
from fewmask.data.items import ImageFile
from fewmask.data.sources import open_images

class Slow(ImageFile):
    def pixels(self, least=None):
        with open(self.path.with_suffix(".decoded"), "a") as log:
            log.write("x")
        time.sleep(0.3)
        return super().pixels(least)

images = open_images(sys.argv[1])
slow = [Slow(item.name, Path(item.where)) for item in images.items]
cached_images(replace(images, items=slow), 16, "square")
"""


def started(pool: Path) -> subprocess.Popen[bytes]:
    """Another process that caches the pool, 0.3 s an image, and logs what it decodes."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", SLOWLY, str(pool)], env=environment)


def waited(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_runs_at_once_decode_once(pool: Path, root: Path) -> None:
    processes = [started(pool) for _ in range(2)]
    for process in processes:
        assert process.wait(60) == 0
    assert [(pool / f"{i}.decoded").read_text() for i in range(5)] == ["x"] * 5
    assert not list(root.glob("*.partial"))


def test_a_killed_build_is_swept_away_by_the_next_of_any_pool(
    pool: Path, root: Path, write_pairs: Pairs
) -> None:
    process = started(pool)
    waited(lambda: bool(list(root.glob("*.partial/images.u8"))))
    # One that is under way is left alone.
    cached_pairs(open_pairs(str(write_pairs(2))), BINARY, 8, "square")
    assert len(list(root.glob("*.partial"))) == 1
    process.kill()
    process.wait(20)
    (partial,) = root.glob("*.partial")
    assert not partial.with_suffix("").exists()
    cached_pairs(open_pairs(str(write_pairs(2, name="others"))), BINARY, 8, "square")
    assert not partial.exists()
    assert len(cached_images(open_images(str(pool)), 16, "square").names) == 5


# --- disks ----------------------------------------------------------------------------------------


def test_a_full_disk_is_told_before_anything_is_decoded(
    pool: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    forbid_decoding(monkeypatch)
    with pytest.raises(
        UserError, match=r"No space left.*it needs 0\.8 MB.*FEWMASK_CACHE"
    ) as caught:
        cached_images(open_images(str(pool)), 224, "square")
    assert str(root) in str(caught.value)
    assert not [path for path in root.iterdir() if path.is_dir()]


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    pool: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(caching.os, "fsync", full)
    with pytest.raises(UserError, match="the cache cannot be written"):
        cached_images(open_images(str(pool)), 16, "square")
    assert not [path for path in root.iterdir() if path.is_dir()]


def test_a_cache_that_is_no_folder_is_named(pool: Path, root: Path) -> None:
    root.write_text("a file")
    with pytest.raises(UserError, match=f"{root}: the cache cannot be written"):
        cached_images(open_images(str(pool)), 16, "square")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_named(pool: Path, root: Path) -> None:
    root.mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied"):
        cached_images(open_images(str(pool)), 16, "square")


def test_checked_pairs_and_their_cache_have_the_same_rows(write_pairs: Pairs) -> None:
    pairs: PairSet = open_pairs(str(write_pairs(4)))
    report = check_pairs(pairs)
    cache = cached_pairs(pairs, report.labels, 16, "square")
    assert len(report.hashes) == len(cache.names) == len(pairs.items) == report.n


def test_results_come_in_order_and_few_are_worked_ahead() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return -item

    found = in_order(work, range(100), workers=3, ahead=5)
    assert [next(found), next(found)] == [0, -1]
    assert max(begun) < 2 + 5
    found.close()
    assert len(begun) < 2 + 5
    assert list(in_order(work, range(20), workers=3, ahead=5)) == [-n for n in range(20)]
