"""Decoding by content, and one geometry for image and mask."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewmask.data.images import (
    PADDING,
    Undecodable,
    decode_image,
    decode_mask,
    format_of,
    limit_pixels,
    resize_image,
    resize_mask,
)
from fewmask.types import IGNORED, Resize

Array = np.ndarray[Any, Any]


def encoded(image: Image.Image, fmt: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


@pytest.fixture
def colours() -> Array:
    """Smooth, so that lossy formats keep it: uint8 [24,32,3]."""
    rows, columns = np.mgrid[:24, :32]
    return np.stack([rows * 10, columns * 7, 255 - rows * 5], axis=2).astype(np.uint8)


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_come_back_exactly(colours: Array, fmt: str) -> None:
    found = decode_image(encoded(Image.fromarray(colours), fmt), "x")
    np.testing.assert_array_equal(found, colours)
    assert found.flags.writeable  # torch.from_numpy warns otherwise


@pytest.mark.parametrize("fmt", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_come_back_nearly(colours: Array, fmt: str) -> None:
    found = decode_image(encoded(Image.fromarray(colours), fmt), "x")
    assert found.shape == colours.shape
    assert np.abs(found.astype(int) - colours).mean() < 12


def test_grey_and_one_bit_become_three_equal_channels() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    np.testing.assert_array_equal(
        decode_image(encoded(Image.fromarray(grey), "PNG"), "x"), np.repeat(grey[..., None], 3, 2)
    )
    bits = Image.fromarray(grey > 20)
    assert set(np.unique(decode_image(encoded(bits, "PNG"), "x"))) == {0, 255}


def test_16_bit_grey_is_scaled_to_8() -> None:
    deep = np.array([[0, 257, 32768, 65535]], np.uint16)
    for fmt in ("PNG", "TIFF"):
        found = decode_image(encoded(Image.fromarray(deep), fmt), "x")
        assert found[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparent_pixels_lie_on_white() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    found = decode_image(encoded(Image.fromarray(rgba), "PNG"), "x")
    assert found[0, 0].tolist() == [10, 20, 30]
    assert found[0, 1].tolist() == [255, 255, 255]
    assert abs(int(found[0, 2, 0]) - 127) <= 1


def test_a_palette_with_a_transparent_entry_lies_on_white() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0])
    found = decode_image(encoded(image, "PNG", transparency=1), "x")
    assert found[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_cmyk_is_converted(colours: Array) -> None:
    found = decode_image(encoded(Image.fromarray(colours).convert("CMYK"), "TIFF"), "x")
    assert np.abs(found.astype(int) - colours).max() <= 2


@pytest.mark.parametrize("decode", [decode_image, decode_mask])
def test_exif_turns_image_and_mask_alike(decode: Any) -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    found = decode(encoded(Image.fromarray(grey), "PNG", exif=exif), "x")
    np.testing.assert_array_equal(found if found.ndim == 2 else found[..., 0], np.rot90(grey, -1))


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.fromarray(np.full((4, 4), v, np.uint8)) for v in (50, 200)]
    found = decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x")
    assert (found == 50).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is a text", "no image, by its content"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "."),
    ],
)
def test_what_is_no_image_is_undecodable_and_says_where(data: bytes, reason: str) -> None:
    for decode in (decode_image, decode_mask):
        with pytest.raises(Undecodable, match=reason) as caught:
            decode(data, "pool/a.png")
        assert caught.value.where == "pool/a.png"
        assert caught.value.reason
        assert "\n" not in str(caught.value)
    assert format_of(data[:10]) is None


def test_a_cut_off_file_is_undecodable() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    for fmt in ("JPEG", "PNG"):
        data = encoded(Image.fromarray(noise), fmt)
        with pytest.raises(Undecodable):
            decode_image(data[: len(data) // 2], "x")


def test_a_picture_too_large_to_be_safe_is_undecodable(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (30, 30)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert decode_image(data, "x").shape == (30, 30, 3)  # a warning of Pillow's, and no more
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Undecodable, match="million pixels, the limit is"):
        decode_image(data, "x")


def test_threads_that_decode_leave_the_warning_filters_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encoded(Image.new("L", (30, 30)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # every decoding warns
    before = list(warnings.filters)
    failed: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(100):
                decode_image(data, "x")
        except Undecodable as problem:
            failed.append(problem)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert warnings.filters == before


# --- masks ----------------------------------------------------------------------------------------


def test_masks_keep_the_values_of_the_file() -> None:
    values = np.array([[0, 1, 2], [3, 200, 255]], np.uint8)
    palette = Image.fromarray(values)
    palette.putpalette([v for i in range(256) for v in (255 - i, i, 7)])
    ways = {
        "grey": Image.fromarray(values),
        "palette": palette,
        "equal channels": Image.fromarray(np.repeat(values[..., None], 3, 2)),
        "with alpha": Image.fromarray(np.dstack([values] * 3 + [np.full_like(values, 9)])),
        "grey with alpha": Image.fromarray(np.dstack([values, np.full_like(values, 9)])),
        "16 bits": Image.fromarray(values.astype(np.uint16)),
    }
    for way, image in ways.items():
        found = decode_mask(encoded(image, "PNG"), "x")
        assert found.dtype == np.uint8, way
        np.testing.assert_array_equal(found, values, err_msg=way)


def test_one_bit_masks_are_0_and_1() -> None:
    bits = np.array([[True, False, True]])
    assert decode_mask(encoded(Image.fromarray(bits), "PNG"), "x").tolist() == [[1, 0, 1]]


def test_masks_with_no_class_ids_are_undecodable(colours: Array) -> None:
    with pytest.raises(Undecodable, match="coloured picture"):
        decode_mask(encoded(Image.fromarray(colours), "PNG"), "x")
    for values in (np.full((2, 2), 300, np.uint16), np.full((2, 2), 0.5, np.float32)):
        with pytest.raises(Undecodable, match=f"holds the value {values[0, 0]}"):
            decode_mask(encoded(Image.fromarray(values), "TIFF"), "x")


# --- geometry -------------------------------------------------------------------------------------


def test_square_squashes_and_keep_pads() -> None:
    pixels = np.full((30, 60, 3), 200, np.uint8)
    squashed, valid = resize_image(pixels, 20, "square")
    assert valid == (20, 20)
    assert (squashed == 200).all()
    kept, valid = resize_image(pixels, 20, "keep")
    assert valid == (10, 20)
    assert (kept[:10] == 200).all()
    assert (kept[10:] == PADDING).all()
    mask = resize_mask(np.ones((30, 60), np.uint8), 20, "keep")
    assert (mask[:10] == 1).all()
    assert (mask[10:] == IGNORED).all()


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    size=st.integers(1, 40),
    resize=st.sampled_from(["square", "keep"]),
)
def test_masks_are_the_nearest_pixel_of_a_slow_loop(
    height: int, width: int, size: int, resize: Resize
) -> None:
    labels = np.random.default_rng(height * 71 + width).integers(0, 5, (height, width), np.uint8)
    small = resize_mask(labels, size, resize)
    _, (rows, columns) = resize_image(np.zeros((height, width, 3), np.uint8), size, resize)
    assert 1 <= rows <= size
    assert 1 <= columns <= size
    assert resize == "keep" or (rows, columns) == (size, size)
    assert max(rows, columns) == size
    for y in range(size):
        for x in range(size):
            if y >= rows or x >= columns:
                assert small[y, x] == IGNORED
            else:
                near = int((y + 0.5) * height / rows), int((x + 0.5) * width / columns)
                assert small[y, x] == labels[near]


@pytest.mark.parametrize("resize", ["square", "keep"])
@pytest.mark.parametrize("size", [16, 50, 128])
def test_image_and_mask_stay_aligned(resize: Resize, size: int) -> None:
    """A bright disc and its own mask: after resizing, their centres and areas still agree."""
    rows, columns = np.mgrid[:90, :60]
    disc = (rows - 25) ** 2 + (columns - 40) ** 2 < 15**2
    pixels = np.repeat((disc * 255).astype(np.uint8)[..., None], 3, 2)
    image, (height, width) = resize_image(pixels, size, resize)
    mask = resize_mask(disc.astype(np.uint8), size, resize)[:height, :width]
    seen = image[:height, :width, 0] / 255.0
    assert abs(seen.sum() / mask.sum() - 1) < 0.1
    y, x = np.mgrid[:height, :width]
    for axis in (y, x):
        assert abs((axis * seen).sum() / seen.sum() - (axis * mask).sum() / mask.sum()) < 0.25


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small, _ = resize_image(stripes, 8, "square")
    assert abs(small.astype(float).mean() - 127.5) < 2
    assert small.std() < 10


def test_an_image_of_too_many_pixels_is_named_with_the_flag(tmp_path: Path) -> None:
    Image.new("RGB", (100, 60)).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    try:
        limit_pixels(0.005)
        with pytest.raises(
            Undecodable, match=r"0\.006 million pixels, the limit is 0\.005"
        ) as told:
            decode_image((tmp_path / "a.png").read_bytes(), "a.png")
        assert "--max-megapixels" in told.value.reason
        limit_pixels(0.006)
        assert decode_image((tmp_path / "a.png").read_bytes(), "a.png").shape == (60, 100, 3)
        # A process that is started now has the same limit.
        code = "from PIL import Image; import fewmask.data.images; print(Image.MAX_IMAGE_PIXELS)"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert int(said.stdout) == Image.MAX_IMAGE_PIXELS
    finally:
        Image.MAX_IMAGE_PIXELS = before
        os.environ.pop("FEWMASK_MAX_MEGAPIXELS", None)
