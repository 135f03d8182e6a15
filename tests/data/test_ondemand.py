"""Pools that are decoded as they are used, and batches that are read ahead."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewmask.data import pools, reading
from fewmask.data.cache import ImageCache, cached_images
from fewmask.data.images import decode_image, resize_image
from fewmask.data.items import small_image
from fewmask.data.loader import Stream
from fewmask.data.pools import opened_pool, pool_labels
from fewmask.data.reading import Reading, read_ahead
from fewmask.data.sources import ImageSet, open_file, open_images
from fewmask.data.store import OnDemand
from fewmask.types import Batch, UserError

Write = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path: Path, write_image: Write) -> ImageSet:
    for i in range(20):
        write_image(tmp_path / "pool" / "ab"[i % 2] / f"{i:02}.png", i, 20 + i, 40 - i)
    return open_images(str(tmp_path / "pool"))


@pytest.mark.parametrize("resize", ["square", "keep"])
def test_the_same_pixels_as_from_a_cache(images: ImageSet, resize: str) -> None:
    cache = cached_images(images, 16, resize)  # type: ignore[arg-type]
    store = OnDemand(images.src, images.items, 16, resize)  # type: ignore[arg-type]
    assert list(store.names) == list(cache.names)
    assert store.names[3:5] == list(cache.names[3:5])
    assert store.side == cache.side == 16
    rows = np.array([3, 0, 19, 7])
    for one, other in zip(store.take(rows), cache.take(rows), strict=True):
        np.testing.assert_array_equal(one, other)


def _batches(images: ImageSet, store: OnDemand | ImageCache, how: Reading) -> list[torch.Tensor]:
    labels = pool_labels(images, store)
    stream = Stream(store, np.arange(20), 6, seed=1, drop_last=True, labels=labels)
    found = []
    for batch in read_ahead(stream, range(2, 9), CPU, how):
        assert batch.labels is not None
        assert batch.labels.tolist() == [row // 10 for row in batch.rows.tolist()]
        found.append(batch.images)
    return found


@pytest.mark.parametrize(
    "how", [Reading(1), Reading(3, memory_gb=1e-9), Reading(2, processes=True)]
)
def test_the_same_batches_however_they_are_read(images: ImageSet, how: Reading) -> None:
    expected = _batches(images, cached_images(images, 16, "square"), Reading())
    found = _batches(images, OnDemand(images.src, images.items, 16, "square"), how)
    assert len(found) == 7
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_no_more_waits_than_memory_allows() -> None:
    assert Reading(4, memory_gb=1.0).ahead(100_000_000) == 8
    assert Reading(4, memory_gb=0.3).ahead(100_000_000) == 3
    assert Reading(4, memory_gb=0.001).ahead(100_000_000) == 1


def test_reading_ahead_stops_with_its_reader(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OnDemand(images.src, images.items, 16, "square")
    stream = Stream(store, np.arange(20), 4, seed=1)
    taken: list[int] = []
    said = threading.Event()
    real = Stream.at

    def at(self: Stream, step: int) -> Batch:
        taken.append(step)
        if step:  # the others are under way until it is said that no more is wanted
            said.wait(60)
        return real(self, step)

    monkeypatch.setattr(Stream, "at", at)
    batches = read_ahead(stream, range(1000), CPU, Reading(2))
    next(batches)
    threading.Timer(2.0, said.set).start()
    batches.close()  # type: ignore[attr-defined]
    assert set(taken) <= {0, 1, 2}  # those that were under way, and not what waits behind them


@pytest.mark.parametrize("processes", [False, True])
def test_the_next_image_stands_in_for_a_broken_one(
    tmp_path: Path, write_image: Write, processes: bool
) -> None:
    for i in range(120):
        write_image(tmp_path / f"{i:03}.png", i)
    (tmp_path / "007.png").write_bytes(b"no image")
    images = open_images(str(tmp_path))
    store = OnDemand(images.src, images.items, 8, "square")
    stream = Stream(store, np.arange(120), 10, seed=0, drop_last=True)
    read = list(read_ahead(stream, range(12), CPU, Reading(2, processes=processes)))
    rows = sorted(row for batch in read for row in batch.rows.tolist())
    assert rows == sorted([*range(7), 8, *range(8, 120)])
    assert [fault.split(": ")[0] for fault in store.skipped] == [str(tmp_path / "007.png")]


@pytest.mark.parametrize("processes", [False, True])
def test_too_many_broken_images_are_an_error_of_one_line_each(
    images: ImageSet, processes: bool
) -> None:
    path = Path(images.items[4].where)
    path.write_bytes(b"no image")
    store = OnDemand(images.src, images.items, 8, "square")
    stream = Stream(store, np.arange(20), 10, seed=0)
    with pytest.raises(UserError) as mistake:
        list(read_ahead(stream, range(2), CPU, Reading(1, processes=processes)))
    assert mistake.value.faults == (f"{path}: no image, by its content. Replace or remove it",)


def test_a_folder_that_vanishes_is_to_be_brought_back(images: ImageSet) -> None:
    store = OnDemand(images.src, images.items, 16, "square")
    store.take(np.array([0, 1]))
    for path in Path(images.src).rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"00\.png: No such file or directory\. Bring it back"):
        store.take(np.array([0]))


def test_little_shared_memory_means_threads(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_by_processes", lambda *_: iter(()))
    monkeypatch.setattr(reading, "_fits_shared_memory", lambda n: False)
    store = OnDemand(images.src, images.items, 8, "square")
    stream = Stream(store, np.arange(20), 10, seed=0)
    assert len(list(read_ahead(stream, range(3), CPU, Reading(processes=True)))) == 3


def test_a_pool_is_kept_decoded_up_to_a_size(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(opened_pool(images, 16, "square"), ImageCache)
    assert isinstance(opened_pool(images, 16, "square", cache_gb=0), OnDemand)
    monkeypatch.setattr(pools, "CACHED_IMAGES", 19)
    assert isinstance(opened_pool(images, 16, "square"), OnDemand)
    assert isinstance(opened_pool(images, 16, "square", cache_gb=1), ImageCache)


def test_a_coarser_decoding_changes_next_to_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 256, (40, 60, 3), np.uint8)
    smooth = Image.fromarray(rough).resize((1200, 800), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    smooth.save(out, "JPEG", quality=90)
    (tmp_path / "large.jpg").write_bytes(out.getvalue())
    item = open_file(str(tmp_path / "large.jpg"))
    assert item.pixels(96).shape == (100, 150, 3)  # an eighth, the short side still 96 or more
    assert item.pixels(101).shape == (200, 300, 3)
    assert item.pixels(801).shape == item.pixels().shape == (800, 1200, 3)
    exact, _ = resize_image(decode_image(out.getvalue(), ""), 96, "square")
    quick, _ = small_image(item, 96, "square")
    difference = np.abs(exact.astype(int) - quick.astype(int))
    assert difference.mean() < 1.0  # levels of 255
    assert 0 < difference.max() <= 12
