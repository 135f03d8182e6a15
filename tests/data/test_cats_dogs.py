"""Cats-vs-Dogs: folders, Kaggle's names, parquet."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fewmask.data.sources import open_images

SHARED = Path(
    os.environ.get("FEWMASK_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
).resolve()

Write = Callable[..., Path]


@pytest.mark.parametrize("inside", ["", "PetImages"])
def test_two_folders(tmp_path: Path, write_image: Write, inside: str) -> None:
    for name in ("Cat/10.jpg", "Cat/2.jpg", "Dog/1.jpg"):
        write_image(tmp_path / inside / name)
    (tmp_path / inside / "Dog" / "Thumbs.db").write_text("-")
    found = open_images(f"cats-vs-dogs:{tmp_path}")
    assert [item.name for item in found.items] == ["Cat/10.jpg", "Cat/2.jpg", "Dog/1.jpg"]
    assert found.labels == (0, 0, 1)
    assert found.label_names == ("cat", "dog")
    assert found.pool == "cats-vs-dogs"
    assert found.other_files == 1


@pytest.mark.parametrize("inside", ["", "train"])
def test_flat_names(tmp_path: Path, write_image: Write, inside: str) -> None:
    for name in ("cat.0.jpg", "dog.0.jpg", "dog.1.jpg", "cover.jpg"):
        write_image(tmp_path / inside / name)
    found = open_images(f"cats-vs-dogs:{tmp_path}")
    assert [item.name for item in found.items] == ["cat.0.jpg", "dog.0.jpg", "dog.1.jpg"]
    assert found.labels == (0, 1, 1)
    assert found.other_files == 1


def test_parquet(tmp_path: Path, write_parquet: Write) -> None:
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    write_parquet(path, "image", [3, 4, 6], label="labels")
    found = open_images(f"cats-vs-dogs:{tmp_path}")
    assert found.labels == (1, 0, 0)
    assert found.items[2].pixels().shape == (12, 16, 3)


@pytest.mark.parametrize("there", [False, True])
def test_a_download_is_opened(
    tmp_path: Path, write_parquet: Write, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    def download(repo: str, *, repo_type: str, allow_patterns: str, local_dir: Path) -> None:
        assert (repo, repo_type) == ("microsoft/cats_vs_dogs", "dataset")
        write_parquet(Path(local_dir) / "data" / "train-0.parquet", "image", [1, 2])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    root = tmp_path / "pool"
    if there:
        root.mkdir()
    assert len(open_images(f"cats-vs-dogs:{root}", download=True).items) == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_the_real_ones_are_12000() -> None:
    found = open_images(f"cats-vs-dogs:{SHARED / 'cats-vs-dogs'}")
    assert len(found.items) == 12000
    assert found.labels is not None
    assert sum(found.labels) == 6000
    assert found.items[0].pixels().ndim == 3
