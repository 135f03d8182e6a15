"""Devices and pipes are not read: one never ends, the other waits for ever."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from fewmask.data.images import Undecodable
from fewmask.data.items import ImageFile
from fewmask.data.listing import walk
from fewmask.data.shards import TarImage
from fewmask.plainfiles import open_plain, read_plain, read_plain_text
from fewmask.predicting import named_images
from fewmask.types import UserError


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_file_s_bytes_and_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffé\r\nb\rc".encode())
    assert read_plain(tmp_path / "a.txt").startswith(b"\xef\xbb\xbf")
    assert read_plain_text(tmp_path / "a.txt") == "é\nb\nc"
    (tmp_path / "b.txt").write_bytes(b"\xff")
    assert read_plain_text(tmp_path / "b.txt", "replace") == "\ufffd"
    with pytest.raises(UnicodeDecodeError):
        read_plain_text(tmp_path / "b.txt")
    with pytest.raises(IsADirectoryError):
        open_plain(tmp_path)


def test_pipes_and_devices_are_refused_at_once(pipe: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", Path("/dev/zero")):
        with pytest.raises(OSError, match="no plain file") as refused:
            open_plain(path)
        told = refused.value
        assert (told.errno, told.strerror) == (errno.EINVAL, "no plain file")
        assert told.filename == str(path)
    with pytest.raises(UserError, match=r"pipe: is no plain file\. Name images"):
        named_images([str(pipe)])


def test_links_to_them_are_no_images(pipe: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "a.png").write_bytes(b"")
    (pool / "zero.png").symlink_to("/dev/zero")
    (pool / "pipe.png").symlink_to(pipe)
    (pool / "gone.png").symlink_to("nowhere")
    (pool / "own.png").symlink_to(pool / "a.png")
    found, others = walk(pool)
    assert [item.name for item in found] == ["a.png", "gone.png", "own.png"]
    assert others == 2
    with pytest.raises(Undecodable, match="no plain file"):
        ImageFile("zero.png", pool / "zero.png").read()


def test_a_file_larger_than_any_allowed_image_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(3 << 30)  # takes no room on the disk
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000_000)
    with pytest.raises(Undecodable, match=r"3221 MB, more than an image within --max-megapixels"):
        ImageFile("a.png", path).read()
    with pytest.raises(Undecodable, match="3221 MB"):
        TarImage("a.png", path, "a.png", 0, 3 << 30).read()
    path.write_bytes(bytes(1600))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert len(ImageFile("a.png", path).read()) == 1600
    path.write_bytes(bytes(1601))
    with pytest.raises(Undecodable, match="MB, more than"):
        ImageFile("a.png", path).read()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert len(ImageFile("a.png", path).read()) == 1601
