"""A small generated data set, with something to learn.

Objects carry regular textures (stripes, checks, dots, rings), grounds irregular ones (clouds,
grain, fibres), both in two colours of one palette, so that colour alone tells nothing; and decoys,
shapes with a ground's texture, so that an outline alone tells nothing either.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fewmask.types import UserError

Array = NDArray[np.floating[Any]]
Rng = np.random.Generator

_PALETTE = (
    np.array(
        [
            (38, 70, 83), (42, 157, 143), (233, 196, 106), (244, 162, 97), (231, 111, 81),
            (109, 89, 122), (181, 101, 118), (53, 80, 112), (234, 172, 139), (132, 165, 157),
            (247, 237, 226), (61, 64, 91),
        ],
        np.float32,
    )
    / 255
)  # fmt: skip
_SHAPES = ((1.0, 1.0), (1.0, 1.0), (15 / 16, 9 / 8), (9 / 8, 15 / 16))  # height, width over size
_CONTRAST = 0.6  # the least that a texture's two colours differ by, R + G + B, each of 0..1
_FINE = 2  # drawn this many times larger, then averaged, for smooth edges


def write_toy(
    out: Path, *, pairs: int = 60, unlabelled: int = 200, size: int = 64, seed: int = 0
) -> None:
    """Write out/images and out/masks (0 ground, 1 object; same names) and out/unlabelled, as PNG.

    Sides are `size` pixels, in some pictures up to an eighth more or less. Picture i is a function
    of (seed, i), however many there are. `out` appears at once, when all is written; it must not
    hold anything yet (UserError).
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} is there already; expected a new or empty folder. Name another one."
        )
    making = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        for part in ("images", "masks", "unlabelled"):
            (making / part).mkdir(parents=True)
        for i in range(pairs):
            image, mask = draw(np.random.default_rng([seed, 0, i]), size)
            image.save(making / "images" / f"toy_{i:04d}.png")
            mask.save(making / "masks" / f"toy_{i:04d}.png")
        for i in range(unlabelled):
            image, _ = draw(np.random.default_rng([seed, 1, i]), size)
            image.save(making / "unlabelled" / f"pool_{i:04d}.png")
        if out.exists():
            out.rmdir()
        making.replace(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def draw(rng: Rng, size: int) -> tuple[Image.Image, Image.Image]:
    """One picture (RGB) and its mask (L, values 0 and 1), at least one object on a ground."""
    tall, wide = _SHAPES[rng.integers(len(_SHAPES))]
    height, width = round(size * tall), round(size * wide)
    rows, columns = np.mgrid[: height * _FINE, : width * _FINE].astype(np.float32) / _FINE / size
    canvas = _texture(rng, _GROUNDS, rows, columns)
    objects = np.zeros(rows.shape, bool)
    # Decoys first: they may be covered but cover nothing, so all of every object is to be seen.
    kinds = [False] * int(rng.integers(0, 3)) + [True] * int(rng.integers(1, 4))
    for is_object in kinds:
        shape = _shape(rng, height, width, size)
        canvas = _cast_shadow(canvas, shape, size)
        texture = _texture(rng, _OBJECTS if is_object else _GROUNDS, rows, columns)
        canvas = np.where(shape[..., None], texture, canvas)
        objects |= shape & is_object
    canvas = canvas * _light(rng, rows, columns)[..., None]
    canvas = _shrink(canvas) + rng.normal(0, 0.015, (height, width, 3))
    image = Image.fromarray((canvas.clip(0, 1) * 255).round().astype(np.uint8))
    mask = _shrink(objects[..., None].astype(np.float32))[..., 0] >= 0.5
    return image, Image.fromarray(mask.astype(np.uint8))


def _shrink(fine: Array) -> Array:
    height, width, channels = fine.shape
    blocks = fine.reshape(height // _FINE, _FINE, width // _FINE, _FINE, channels)
    averaged: Array = blocks.mean((1, 3))
    return averaged


def _shape(rng: Rng, height: int, width: int, size: int) -> NDArray[np.bool_]:
    """A filled blob, ellipse or polygon, fine pixels [H,W]; its centre is inside the picture."""
    kind = rng.choice(["blob", "ellipse", "polygon"])
    n = int(rng.integers(3, 8)) if kind == "polygon" else 90
    angles = np.linspace(0, 2 * np.pi, n, endpoint=False)
    radii = np.ones(n)
    if kind == "polygon":
        angles = angles + rng.uniform(-0.25, 0.25, n) * 2 * np.pi / n
    elif kind == "blob":
        for k in (2, 3, 5):
            radii += rng.uniform(0, 0.5 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi))
    radii = radii * rng.uniform(0.14, 0.28) * size * _FINE
    x, y = radii * np.cos(angles), radii * np.sin(angles) * rng.uniform(0.55, 1)
    turn = rng.uniform(0, np.pi)
    centre = rng.uniform(0.2, 0.8, 2) * (width, height) * _FINE
    points = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], 1)
    picture = Image.new("1", (width * _FINE, height * _FINE))
    ImageDraw.Draw(picture).polygon([(a, b) for a, b in (points + centre).tolist()], fill=1)
    return np.asarray(picture)


def _cast_shadow(canvas: Array, shape: NDArray[np.bool_], size: int) -> Array:
    """The canvas, darker where the shape, moved down and to the right, would lie."""
    step = max(1, size * _FINE // 40)
    shadow = np.zeros(shape.shape, np.float32)
    for k in range(1, 4):  # three steps of it: a soft edge
        shadow[k * step :, k * step :] += shape[: -k * step, : -k * step] / 3
    return canvas * (1 - 0.35 * shadow[..., None])


def _light(rng: Rng, rows: Array, columns: Array) -> Array:
    """A factor of 0.8 to 1.1 that falls off across the picture."""
    turn = rng.uniform(0, 2 * np.pi)
    slope = (rows - 0.5) * np.sin(turn) + (columns - 0.5) * np.cos(turn)
    light: Array = (0.97 + 0.18 * slope).clip(0.8, 1.1)
    return light


def _texture(rng: Rng, kinds: tuple[_Field, ...], rows: Array, columns: Array) -> Array:
    """RGB [H,W,3] of 0..1: two colours of the palette, mixed by a field of 0..1."""
    one = _PALETTE[rng.integers(len(_PALETTE))]
    distinct = _PALETTE[np.abs(_PALETTE - one).sum(1) > _CONTRAST]
    two = distinct[rng.integers(len(distinct))]
    field = kinds[rng.integers(len(kinds))](rng, rows, columns)[..., None]
    shades = rng.normal(0, 0.03, (2, 3)).astype(np.float32)
    mixed: Array = (one - two + shades[0]) * field + (two + shades[1])
    return mixed


_Field = Callable[[Rng, Array, Array], Array]
"""(rng, rows [H,W], columns [H,W]), both about 0..1 -> values [H,W] of 0..1."""


def _turned(rng: Rng, rows: Array, columns: Array) -> tuple[Array, Array]:
    turn = rng.uniform(0, np.pi)
    return (
        columns * np.cos(turn) + rows * np.sin(turn),
        rows * np.cos(turn) - columns * np.sin(turn),
    )


def _step(wave: Array) -> Array:
    """Waves of -1..1 with their flanks steepened, to 0..1."""
    steep: Array = (0.5 + 2 * wave).clip(0, 1)
    return steep


def _stripes(rng: Rng, rows: Array, columns: Array) -> Array:
    across, _ = _turned(rng, rows, columns)
    return _step(np.sin(2 * np.pi * rng.uniform(7, 12) * across))


def _checks(rng: Rng, rows: Array, columns: Array) -> Array:
    across, along = _turned(rng, rows, columns)
    pace = 2 * np.pi * rng.uniform(4, 7)
    return _step(2 * np.sin(pace * across) * np.sin(pace * along))


def _dots(rng: Rng, rows: Array, columns: Array) -> Array:
    across, along = _turned(rng, rows, columns)
    pace = 2 * np.pi * rng.uniform(6, 9)
    return _step(np.sin(pace * across) + np.sin(pace * along) - 0.8)


def _rings(rng: Rng, rows: Array, columns: Array) -> Array:
    y, x = rng.uniform(0.1, 0.9, 2)
    return _step(np.sin(2 * np.pi * rng.uniform(7, 12) * np.hypot(rows - y, columns - x)))


def _noise(rng: Rng, shape: tuple[int, ...], cells: tuple[float, float]) -> Array:
    """Smooth noise of 0..1 whose grains are `cells` (down, across) to a side."""
    coarse = rng.random((max(2, round(cells[0])), max(2, round(cells[1]))), np.float32)
    smooth = Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(smooth).clip(0, 1)


def _clouds(rng: Rng, rows: Array, columns: Array) -> Array:
    octaves = [_noise(rng, rows.shape, (n, n)) / k for k, n in enumerate((4, 8, 16, 32), start=1)]
    return _step((sum(octaves, start=np.zeros_like(rows)) / 2.083 - 0.5) * 1.6)


def _grain(rng: Rng, rows: Array, columns: Array) -> Array:
    n = rng.uniform(18, 30)
    return _step(_noise(rng, rows.shape, (n, n)) - 0.5)


def _fibres(rng: Rng, rows: Array, columns: Array) -> Array:
    long, short = rng.uniform(4, 7), rng.uniform(24, 36)
    cells = (long, short) if rng.random() < 0.5 else (short, long)
    return _step(_noise(rng, rows.shape, cells) - 0.5)


_OBJECTS: tuple[_Field, ...] = (_stripes, _checks, _dots, _rings)
_GROUNDS: tuple[_Field, ...] = (_clouds, _grain, _fibres)
