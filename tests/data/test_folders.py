"""What counts as an image in a folder, and which mask belongs to which image."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fewmask.data.sources import open_images, open_pairs
from fewmask.types import UserError

Write = Callable[..., Path]


def test_images_are_listed_by_name_through_all_folders(tmp_path: Path, write_image: Write) -> None:
    for name in ("b.JPG", "a.png", "x/y/c.Tiff", "x/a.webp"):
        write_image(tmp_path / name)
    found = open_images(str(tmp_path))
    assert [item.name for item in found.items] == ["a.png", "b.JPG", "x/a.webp", "x/y/c.Tiff"]
    assert found.items[0].where == str(tmp_path / "a.png")
    assert found.pool == tmp_path.name
    assert found.labels is None
    assert found.items[3].pixels().shape == (12, 16, 3)


def test_content_makes_an_image_where_the_ending_does_not(
    tmp_path: Path, write_image: Write
) -> None:
    write_image(tmp_path / "no_ending")
    write_image(tmp_path / "scan.dat")
    (tmp_path / "text.jpg").write_text("I say that I am an image")
    (tmp_path / "notes.txt").write_text("BM is how this text begins, and how bitmaps do")
    (tmp_path / "empty").touch()
    found = open_images(str(tmp_path))
    assert [item.name for item in found.items] == ["no_ending", "scan.dat", "text.jpg"]
    assert found.other_files == 2


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path, write_image: Write) -> None:
    for name in ("a.png", "._a.png", ".thumbs/b.png", "x/.c.png"):
        write_image(tmp_path / name)
    found = open_images(str(tmp_path))
    assert [item.name for item in found.items] == ["a.png"]
    assert found.other_files == 0


@pytest.mark.timeout(20)
def test_links_and_pipes_do_not_hang(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "x" / "a.png")
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe")
    found = open_images(str(tmp_path))
    assert [item.name for item in found.items] == ["nowhere.png", "x/a.png"]


def test_a_folder_without_images_says_how_much_else_it_holds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no images \(0 other files\)"):
        open_images(str(tmp_path))
    for i in range(3):
        (tmp_path / f"{i}.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"holds no images \(3 other files\)"):
        open_images(str(tmp_path))


def test_a_single_class_folder_is_named_but_labels_nothing(
    tmp_path: Path, write_image: Write
) -> None:
    write_image(tmp_path / "Cat" / "1.png")
    found = open_images(str(tmp_path))
    assert (found.labels, found.label_names) == (None, ("Cat",))


def test_class_folders_are_labels(tmp_path: Path, write_image: Write) -> None:
    for name in ("dog/1.png", "cat/1.png", "cat/2.png"):
        write_image(tmp_path / name)
    found = open_images(str(tmp_path))
    assert found.label_names == ("cat", "dog")
    assert found.labels == (0, 0, 1)
    write_image(tmp_path / "loose.png")
    assert open_images(str(tmp_path)).labels is None


def test_a_pairs_folder_as_a_pool_is_its_images(write_pairs: Callable[..., Path]) -> None:
    found = open_images(str(write_pairs(4)))
    assert [item.name for item in found.items] == [f"pair_{i:02}.png" for i in range(4)]
    assert found.pool == "pairs"


# --- pairs ----------------------------------------------------------------------------------------


def test_pairs_match_by_path_without_ending(
    tmp_path: Path, write_image: Write, write_mask: Write
) -> None:
    for stem in ("b", "sub/a", "sub/b.c"):
        write_image(tmp_path / "images" / f"{stem}.jpg")
        write_mask(tmp_path / "masks" / f"{stem}.png")
    found = open_pairs(str(tmp_path))
    assert found.faults == ()
    assert [pair.name for pair in found.items] == ["b", "sub/a", "sub/b.c"]
    assert found.items[1].image.where == str(tmp_path / "images/sub/a.jpg")
    assert found.items[1].mask.where == str(tmp_path / "masks/sub/a.png")
    assert found.items[1].mask.values().shape == (12, 16)


def test_masks_missing_and_left_over_and_doubled_are_all_named(
    write_pairs: Callable[..., Path],
) -> None:
    folder = write_pairs(5)
    (folder / "masks" / "pair_00.png").unlink()
    (folder / "images" / "pair_01.png").unlink()
    shutil.copy(folder / "images" / "pair_02.png", folder / "images" / "pair_02.jpg")
    shutil.copy(folder / "masks" / "pair_03.png", folder / "masks" / "pair_03.tif")
    found = open_pairs(str(folder))
    assert [pair.name for pair in found.items] == ["pair_02", "pair_03", "pair_04"]
    text = "\n".join(found.faults)
    assert len(found.faults) == 4
    assert "images/pair_00.png: has no mask; expected masks/pair_00.png" in text
    assert "masks/pair_01.png: has no image of this name" in text
    assert "images/pair_02.png: a second image called pair_02" in text
    assert "masks/pair_03.tif: a second mask called pair_03" in text


def test_a_folder_without_images_or_masks_says_which(tmp_path: Path, write_image: Write) -> None:
    with pytest.raises(UserError, match="has no images/ and no masks/"):
        open_pairs(str(tmp_path))
    write_image(tmp_path / "images" / "a.png")
    with pytest.raises(UserError, match="has no masks/"):
        open_pairs(str(tmp_path))


def test_empty_images_and_masks_are_refused(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    (tmp_path / "masks" / "readme.txt").write_text("-")
    with pytest.raises(UserError, match=r"hold no images \(1 other files\)"):
        open_pairs(str(tmp_path))
