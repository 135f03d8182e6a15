"""SRC: folders, kinds, what is said of mistakes, and fingerprints."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fewmask.data import items
from fewmask.data.images import Undecodable
from fewmask.data.items import ImageFile
from fewmask.data.sources import MaskOptions, open_file, open_images, open_pairs, split_source
from fewmask.types import UserError

Write = Callable[..., Path]


def test_an_unknown_kind_names_the_near_ones() -> None:
    with pytest.raises(UserError, match=r"cifar100:x: unknown kind cifar100; near: cifar10; known"):
        open_images("cifar100:x")
    with pytest.raises(UserError, match="unknown kind oxford-pets; near: oxford-iiit-pet"):
        open_pairs("oxford-pets:x")


def test_a_kind_without_its_colon_is_recognised() -> None:
    with pytest.raises(UserError, match=r"Did you mean cifar10: \(with a colon\)"):
        open_images("cifar10")


def test_a_path_with_a_colon_that_exists_is_a_folder(
    tmp_path: Path, write_image: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(Path("cifar10:new/a.png"))
    assert [item.name for item in open_images("cifar10:new").items] == ["a.png"]


@pytest.mark.parametrize("src", ["C:/data/pets", "a/b:c", "./x:y"])
def test_a_path_with_a_colon_that_is_not_there_is_no_kind(src: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_images(src)


def test_a_folder_that_is_not_there_names_the_near_ones(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for opened in (open_images, open_pairs):
        with pytest.raises(UserError, match=r"photo: no such folder; near: photos\. Mend the path"):
            opened(str(tmp_path / "photo"))


def test_a_file_is_no_source(tmp_path: Path, write_image: Write) -> None:
    path = write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="is a file; expected a folder"):
        open_images(str(path))


@pytest.mark.parametrize("kind", ["oxford-iiit-pet", "cifar10", "cats-vs-dogs"])
def test_a_known_kind_that_is_not_there_says_download(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder.*--download"):
        open_images(f"{kind}:{tmp_path / 'none'}")


@pytest.mark.parametrize("kind", ["oxford-iiit-pet", "cifar10", "cats-vs-dogs"])
def test_a_known_kind_with_other_files_says_what_it_looks_for(kind: str, tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(UserError, match=r"holds no .*--download"):
        open_images(f"{kind}:{tmp_path}")


@pytest.mark.parametrize("kind", ["oxford-iiit-pet", "cifar10", "cats-vs-dogs"])
def test_a_kind_without_a_path_lies_in_the_data_folder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWMASK_DATA", str(tmp_path / "sets"))
    with pytest.raises(UserError, match=str(tmp_path / "sets" / kind)):
        open_images(f"{kind}:")
    monkeypatch.setenv("FEWMASK_DATA", "")
    with pytest.raises(UserError, match=f"data/{kind}"):
        open_images(f"{kind}:")


def test_the_home_folder_is_understood_after_a_kind(
    tmp_path: Path, write_image: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_image(tmp_path / "pool" / "Cat" / "1.png")
    assert split_source("cats-vs-dogs:~/pool") == ("cats-vs-dogs", tmp_path / "pool")
    assert len(open_images("cats-vs-dogs:~/pool").items) == 1


@pytest.mark.parametrize("kind", ["cifar10", "cats-vs-dogs"])
def test_pools_without_masks_are_no_pairs(kind: str) -> None:
    with pytest.raises(UserError, match=f"{kind} has no masks"):
        open_pairs(f"{kind}:")


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("oxford-iiit-pet", "torchvision.datasets.OxfordIIITPet"),
        ("cifar10", "torchvision.datasets.CIFAR10"),
        ("cats-vs-dogs", "huggingface_hub.snapshot_download"),
    ],
)
def test_a_download_that_fails_is_a_mistake_in_one_line(
    kind: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(where, fail)
    with pytest.raises(UserError, match=r"the download to .* failed \(no network\)") as caught:
        open_images(f"{kind}:{tmp_path / 'new'}", download=True)
    assert "\n" not in str(caught.value)


# --- fingerprints ---------------------------------------------------------------------------------


def test_a_fingerprint_knows_content_and_names_but_neither_place_nor_time(
    tmp_path: Path, write_image: Write
) -> None:
    def pool(name: str) -> Path:
        for i in range(3):
            write_image(tmp_path / name / f"{i}.png", i)
        return tmp_path / name

    def fingerprint(folder: Path) -> str:
        return open_images(str(folder)).fingerprint()

    one, two = pool("one"), pool("two")
    os.utime(two / "1.png", (1, 1))
    first = fingerprint(one)
    assert fingerprint(two) == first
    (two / "1.png").rename(two / "9.png")
    assert fingerprint(two) != first
    flipped = bytearray((one / "2.png").read_bytes())
    flipped[-1] ^= 1
    (one / "2.png").write_bytes(flipped)
    assert fingerprint(one) != first


def test_a_fingerprint_of_pairs_knows_the_masks(
    write_pairs: Callable[..., Path], write_mask: Write
) -> None:
    folder = write_pairs(3)
    first = open_pairs(str(folder)).fingerprint()
    assert open_pairs(str(folder), MaskOptions(ignore=255)).fingerprint() == first
    write_mask(folder / "masks" / "pair_01.png", 1, 40, 48)
    assert open_pairs(str(folder)).fingerprint() != first


def test_a_large_pool_is_sampled(
    tmp_path: Path, write_image: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(40):
        write_image(tmp_path / f"{i:02}.png", i)
    monkeypatch.setattr(items, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(items, "SAMPLED_FILES", 5)
    read: list[str] = []
    real = ImageFile.read
    monkeypatch.setattr(ImageFile, "read", lambda self: read.append(self.name) or real(self))
    open_images(str(tmp_path)).fingerprint()
    assert read == ["00.png", "09.png", "19.png", "29.png", "39.png"]


def test_a_file_that_is_gone_is_undecodable(tmp_path: Path) -> None:
    with pytest.raises(Undecodable, match="No such file"):
        open_file(str(tmp_path / "gone.png")).pixels()
    assert open_file(str(tmp_path / "gone.png")).stamp() == (-1, -1)
