"""The generated data set: what it holds, that it is the same every time, that colour is no help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewmask.data import toy
from fewmask.data.toy import draw, write_toy
from fewmask.types import UserError


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_writes_matching_pairs_of_class_ids(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", pairs=12, unlabelled=5, size=32, seed=3)
    images = sorted((tmp_path / "toy" / "images").iterdir())
    masks = sorted((tmp_path / "toy" / "masks").iterdir())
    assert [f.name for f in images] == [f.name for f in masks]
    assert len(images) == 12
    assert len(list((tmp_path / "toy" / "unlabelled").iterdir())) == 5
    sizes = set()
    for image_file, mask_file in zip(images, masks, strict=True):
        with Image.open(image_file) as image, Image.open(mask_file) as mask:
            assert (image.mode, mask.mode, image.size) == ("RGB", "L", mask.size)
            assert set(np.unique(mask)) == {0, 1}
            sizes.add(image.size)
    assert sizes == {(32, 32), (30, 36), (36, 30)}
    assert [f.name for f in tmp_path.iterdir()] == ["toy"]


def test_is_a_function_of_seed_and_index(tmp_path: Path) -> None:
    write_toy(tmp_path / "few", pairs=3, unlabelled=1, size=24)
    write_toy(tmp_path / "more", pairs=5, unlabelled=2, size=24)
    write_toy(tmp_path / "other", pairs=3, unlabelled=1, size=24, seed=1)
    few, more, other = (_contents(tmp_path / name) for name in ("few", "more", "other"))
    assert few.items() < more.items()
    assert all(few[name] != other[name] for name in few)
    assert len(set(more.values())) == len(more)


def test_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        write_toy(tmp_path, pairs=1, unlabelled=1)
    assert _contents(tmp_path) == {"own.txt": b"mine"}


def test_takes_an_empty_folder_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy").mkdir()
    real, calls = toy.draw, iter(range(100))

    def failing(rng: np.random.Generator, size: int) -> tuple[Image.Image, Image.Image]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(rng, size)

    monkeypatch.setattr(toy, "draw", failing)
    with pytest.raises(KeyboardInterrupt):
        write_toy(tmp_path / "toy", pairs=4, unlabelled=1, size=24)
    assert _contents(tmp_path) == {}
    write_toy(tmp_path / "toy", pairs=4, unlabelled=1, size=24)
    assert len(_contents(tmp_path)) == 9
    assert [f.name for f in tmp_path.iterdir()] == ["toy"]


def test_one_pixels_colour_does_not_tell_the_classes_apart() -> None:
    pictures = [draw(np.random.default_rng([7, i]), 48) for i in range(60)]
    colours = np.concatenate([np.asarray(image).reshape(-1, 3) for image, _ in pictures]) // 64
    labels = np.concatenate([np.asarray(mask).ravel() for _, mask in pictures])
    cells = colours @ np.array([16, 4, 1])
    inside = np.bincount(cells, labels, minlength=64)
    rule = inside > np.bincount(cells, minlength=64) / 2  # the best there is, on its own data
    found = rule[cells]
    iou = (found & (labels == 1)).sum() / (found | (labels == 1)).sum()
    assert iou < 0.35
    assert 0.1 < labels.mean() < 0.3
