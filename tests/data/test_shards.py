"""Pools in tar and parquet files: what is in them, and the order in which they are read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import png

from fewmask.data import parquet, shards
from fewmask.data.images import Undecodable, decode_image
from fewmask.data.loader import Stream
from fewmask.data.parquet import GroupedRows
from fewmask.data.shards import Shards, joined
from fewmask.data.sources import open_images
from fewmask.data.store import OnDemand
from fewmask.types import UserError

Write = Callable[..., Path]


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            told = tarfile.TarInfo(name)
            told.size = len(content)
            tar.addfile(told, io.BytesIO(content))
    return path


def sample(seed: int, label: int | None = None) -> dict[str, bytes]:
    one = {f"{seed:04}.png": png(seed), f"{seed:04}.json": b"{}"}
    return one if label is None else one | {f"{seed:04}.cls": f"{label}\n".encode()}


def test_images_of_tar_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "b.tar", sample(2, 7) | sample(3, 5))
    write_tar(tmp_path / "a.tar", sample(1, 5))
    found = open_images(str(tmp_path))
    assert [item.name for item in found.items] == [
        "a.tar/0001.png",
        "b.tar/0002.png",
        "b.tar/0003.png",
    ]
    assert [item.read() for item in found.items] == [png(1), png(2), png(3)]
    assert found.items[-1].pixels().shape == (12, 16, 3)
    assert found.labels == (0, 1, 0)
    assert found.label_names == ("5", "7")
    assert found.other_files == 0
    assert found.items[1].where == f"{tmp_path / 'b.tar'}: 0002.png"


def test_a_tar_file_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / "cache"))
    path = write_tar(tmp_path / "pool" / "a.tar", sample(1) | sample(2))
    first = open_images(str(tmp_path / "pool"))
    real = shards._looked_through
    monkeypatch.setattr(shards, "_looked_through", None)
    again = open_images(str(tmp_path / "pool"))
    assert list(again.items) == list(first.items)
    assert again.fingerprint() == first.fingerprint()
    monkeypatch.setattr(shards, "_looked_through", real)
    write_tar(path, sample(1) | sample(2) | sample(3))
    assert len(open_images(str(tmp_path / "pool")).items) == 3


def test_labels_hold_for_all_images_or_none(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", sample(1, 0) | sample(2, 1) | sample(3))
    assert open_images(str(tmp_path)).labels is None


def test_a_tar_file_leads_nowhere_else(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(link)
        for name in ("/etc/x.png", "../../y.png", "z.png", "a/../z.png"):
            told = tarfile.TarInfo(name)
            told.size = len(png(1))
            tar.addfile(told, io.BytesIO(png(1)))
    names = [item.name for item in open_images(str(tmp_path)).items]
    assert len(set(names)) == 4
    for name in names:
        assert not Path(name).is_absolute()
        assert ".." not in Path(name).parts
    assert {Path(name).name for name in names} == {"x.png", "y.png", "z.png"}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b"no tar at all" * 100), "a.tar: no readable tar file"),
        (lambda p: write_tar(p, sample(1), "w:gz"), "must be stored uncompressed"),
        (lambda p: write_tar(p, {"a.txt": b"words"}), "its 1 tar files hold no images"),
        (lambda p: write_tar(p, sample(1) | {"0001.cls": b"cat"}), "0001.cls holds 'cat'"),
    ],
)
def test_tar_files_that_are_none(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / "a.tar")
    with pytest.raises(UserError, match=message):
        open_images(str(tmp_path))


def test_a_tar_file_cut_short_names_the_image(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample(1))
    (item,) = open_images(str(tmp_path)).items
    path.write_bytes(path.read_bytes()[: item.offset + 10])  # type: ignore[attr-defined]
    with pytest.raises(Undecodable, match=r"a\.tar: 0001\.png: the tar file ends within it"):
        item.pixels()


# --- parquet --------------------------------------------------------------------------------------


def test_parquet_files_of_any_folder(tmp_path: Path, write_parquet: Write) -> None:
    write_parquet(tmp_path / "data" / "part-0.parquet", "image", [1, 2, 3])
    found = open_images(str(tmp_path))
    assert [item.read() for item in found.items] == [png(1), png(2), png(3)]
    assert found.labels == (1, 0, 1)
    assert found.shards is None


def test_large_parquet_sets_are_read_by_groups(
    tmp_path: Path, write_parquet: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, seeds in enumerate(([1, 2, 3, 4, 5], [6, 7], [8, 9, 10])):
        write_parquet(tmp_path / f"train-{number}.parquet", "image", seeds)
    whole = open_images(f"cats-vs-dogs:{tmp_path}")
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    found = open_images(f"cats-vs-dogs:{tmp_path}")
    assert isinstance(found.items, GroupedRows)
    assert [item.name for item in found.items] == [item.name for item in whole.items]
    assert [item.where for item in found.items] == [item.where for item in whole.items]
    assert [item.read() for item in found.items] == [png(seed) for seed in range(1, 11)]
    assert found.items[-1].read() == png(10)
    assert found.labels == whole.labels
    assert found.shards is not None
    assert found.shards.starts.tolist() == [0, 2, 4, 5, 7, 9]  # groups of two rows


def test_a_process_holds_no_more_than_said(
    tmp_path: Path, write_parquet: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    monkeypatch.setattr(parquet, "HELD", 3 * len(png(1)))
    monkeypatch.setattr(parquet, "_held", parquet._Held())
    write_parquet(tmp_path / "a.parquet", "image", list(range(12)))
    for item in open_images(str(tmp_path)).items:
        item.read()
        assert parquet._held._bytes() <= 3 * len(png(1))


# --- order ----------------------------------------------------------------------------------------


def test_an_order_stays_with_a_few_shards_at_a_time() -> None:
    parts = Shards(np.arange(0, 100, 10), np.full(10, 100), at_once=200)
    rows = np.arange(100)
    shuffled = np.random.default_rng(0).permutation(100)
    found = parts.order(rows, shuffled, (0, 0, 1))
    assert sorted(found.tolist()) == list(range(100))
    drawn = [set(found[i : i + 10].tolist()) for i in range(0, 100, 10)]
    for some in drawn:
        assert len({row // 10 for row in some}) <= 3  # a window of two, or the end of one
    assert any(len({row // 10 for row in some}) > 1 for some in drawn)  # and mixed in it
    assert found.tolist() != parts.order(rows, shuffled, (0, 1, 1)).tolist()


def test_one_window_is_any_order() -> None:
    parts = Shards(np.array([0, 5]), np.array([10, 10]), at_once=1000)
    shuffled = np.random.default_rng(0).permutation(10)
    assert parts.order(np.arange(10), shuffled, (0, 0, 1)).tolist() == shuffled.tolist()


def test_shards_of_some_rows_and_of_several_sets() -> None:
    parts = Shards(np.array([0, 10, 20]), np.array([1, 2, 3]), at_once=4)
    assert parts.of(np.array([3, 5, 21, 29])).starts.tolist() == [0, 2, 2]
    both = joined([None, parts], [7, 30])
    assert both is not None
    assert both.starts.tolist() == [0, 7, 17, 27]
    assert both.sizes.tolist() == [0, 1, 2, 3]
    assert both.at_once == 4
    assert joined([None, None], [1, 2]) is None


def test_processes_share_a_sharded_pass_and_see_each_image_once(tmp_path: Path) -> None:
    for shard in range(4):
        members: dict[str, bytes] = {}
        for i in range(6):
            members |= sample(shard * 6 + i)
        write_tar(tmp_path / f"{shard}.tar", members)
    found = open_images(str(tmp_path))
    store = OnDemand(found.src, found.items, 8, "square")

    def stream(rank: int = 0, world: int = 1) -> Stream:
        return Stream(store, np.arange(24), 6, 0, rank, world, drop_last=True, shards=found.shards)

    alone = [stream().at(step).rows.tolist() for step in range(4)]
    assert sorted(chain.from_iterable(alone)) == list(range(24))
    for step in range(4):
        parts = [stream(rank, 2).at(step).rows.tolist() for rank in range(2)]
        assert [*parts[0], *parts[1]] == alone[step]
    batch = stream().at(0)
    for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
        expected = decode_image(png(row), "")
        assert abs(float(image.float().mean()) - float(expected.mean())) < 3
