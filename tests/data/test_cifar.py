"""CIFAR-10 in its three layouts, and a pickle that would run code."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewmask.data.images import Undecodable
from fewmask.data.sources import open_images
from fewmask.types import UserError

SHARED = Path(
    os.environ.get("FEWMASK_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
).resolve()
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")

Write = Callable[..., Path]


def batch(path: Path, content: Any) -> Path:
    """As Python 2 wrote them: protocol 2, numpy under its old name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2).replace(b"numpy._core", b"numpy.core"))
    return path


def planes(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), np.uint8)


def test_parquet_gives_the_training_rows(tmp_path: Path, write_parquet: Write) -> None:
    write_parquet(tmp_path / "plain_text" / "test-00000-of-00001.parquet", "img", [9])
    write_parquet(tmp_path / "plain_text" / "train-00001-of-00002.parquet", "img", [5])
    write_parquet(tmp_path / "plain_text" / "train-00000-of-00002.parquet", "img", [1, 2, 4])
    found = open_images(f"cifar10:{tmp_path}")
    assert [item.name for item in found.items] == [
        "train-00000-of-00002.parquet#0",
        "train-00000-of-00002.parquet#1",
        "train-00000-of-00002.parquet#2",
        "train-00001-of-00002.parquet#0",
    ]
    assert found.labels == (1, 0, 0, 1)
    assert found.label_names[3] == "cat"
    assert found.pool == "cifar10"
    for item, seed in zip(found.items, [1, 2, 4, 5], strict=True):
        truth = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
        np.testing.assert_array_equal(item.pixels(), truth)
        assert item.stamp()[0] == len(item.read())
    assert found.items[3].where.endswith("train-00001-of-00002.parquet#0")


def test_without_a_training_split_all_rows_are_the_pool(
    tmp_path: Path, write_parquet: Write
) -> None:
    write_parquet(tmp_path / "part-0.parquet", "image", [1, 2])
    assert [i.name for i in open_images(f"cifar10:{tmp_path}").items] == [
        "part-0.parquet#0",
        "part-0.parquet#1",
    ]


def test_parquet_files_that_are_none_are_named(tmp_path: Path, write_parquet: Write) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "train.parquet"
    path.write_text("not parquet")
    with pytest.raises(UserError, match=r"train\.parquet: no readable parquet file"):
        open_images(f"cifar10:{tmp_path}")
    write_parquet(path, "photo", [1])
    with pytest.raises(
        UserError, match="has no column img or image or jpg or png, only photo, label"
    ):
        open_images(f"cifar10:{tmp_path}")
    pq.write_table(pa.table({"img": [[1, 2], [3]]}), path)
    with pytest.raises(UserError, match=r"the column img holds list<.*expected encoded images"):
        open_images(f"cifar10:{tmp_path}")


def test_a_row_without_bytes_is_undecodable(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.array([None, b"no image"], pa.binary())
    pq.write_table(pa.table({"image": rows}), tmp_path / "part.parquet")
    found = open_images(f"cifar10:{tmp_path}")
    assert found.labels is None
    for item, reason in zip(found.items, ("holds no bytes", "no image"), strict=True):
        with pytest.raises(Undecodable, match=reason):
            item.pixels()
    assert len(found.fingerprint()) == 32


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_the_official_batches(tmp_path: Path, inside: str) -> None:
    data = planes(3)
    for k in (1, 2):
        content = {"data": data[: 4 - k], "labels": [6, 0, 9][: 4 - k], "filenames": ["a"] * 3}
        batch(tmp_path / inside / f"data_batch_{k}", content)
    batch(tmp_path / inside / "test_batch", {"data": data, "labels": [0, 0, 0]})
    found = open_images(f"cifar10:{tmp_path}")
    assert [item.name for item in found.items] == [
        *(f"data_batch_1#{row}" for row in range(3)),
        *(f"data_batch_2#{row}" for row in range(2)),
    ]
    assert found.labels == (6, 0, 9, 6, 0)
    pixels = found.items[1].pixels()
    assert pixels.shape == (32, 32, 3)
    for y, x, c in ((0, 0, 0), (3, 30, 1), (31, 0, 2)):
        assert pixels[y, x, c] == data[1, c * 1024 + y * 32 + x]


class _Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    batch(tmp_path / "data_batch_1", {"data": planes(1), "labels": [0], "more": _Harm(harm)})
    with pytest.raises(UserError, match=r"data_batch_1: no CIFAR-10 batch \(it would run "):
        open_images(f"cifar10:{tmp_path}")
    assert not harm.exists()
    pickle.loads((tmp_path / "data_batch_1").read_bytes().replace(b"numpy.core", b"numpy._core"))
    assert harm.exists(), "the pickle does harm where nothing holds it back"


@pytest.mark.parametrize(
    "content",
    [
        {"data": planes(2), "labels": [1]},
        {"data": planes(1), "labels": [10]},
        {"data": np.zeros((1, 100), np.uint8), "labels": [1]},
        {"labels": [1]},
        [1, 2],
    ],
)
def test_a_broken_batch_is_named(tmp_path: Path, content: Any) -> None:
    batch(tmp_path / "data_batch_1", content)
    with pytest.raises(UserError, match="data_batch_1: no CIFAR-10 batch"):
        open_images(f"cifar10:{tmp_path}")


@pytest.mark.parametrize("inside", ["", "train"])
def test_class_folders(tmp_path: Path, write_image: Write, inside: str) -> None:
    for name in ("frog/0.png", "cat/0.png", "cat/1.png"):
        write_image(tmp_path / inside / name)
    found = open_images(f"cifar10:{tmp_path}")
    assert [item.name for item in found.items] == ["cat/0.png", "cat/1.png", "frog/0.png"]
    assert found.labels == (0, 0, 1)
    assert found.label_names == ("cat", "frog")


@real
def test_the_real_ones_are_15000_of_32_pixels() -> None:
    found = open_images(f"cifar10:{SHARED / 'cifar10'}")
    assert len(found.items) == 15000
    assert found.labels is not None
    assert set(found.labels) == set(range(10))
    for row in (0, 7000, 14999):
        item = found.items[row]
        assert item.pixels().shape == (32, 32, 3)
        truth = np.asarray(Image.open(io.BytesIO(item.read())).convert("RGB"))
        np.testing.assert_array_equal(item.pixels(), truth)
