"""A part of a source, and several sources as one.

    cifar10:?classes=cat,dog&n=2000            2,000 of CIFAR-10's cats and dogs
    cats-vs-dogs:?n=500&side=32                500 pictures, shrunk to a short side of 32 px
    cats-vs-dogs:?n=500 + photos?n=1500        both in one pool

`n` pictures are drawn at random by `seed` (0); with one seed the smaller draw lies in the larger.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewmask.data.images import Pixels
from fewmask.data.items import ImageItem
from fewmask.data.shards import joined
from fewmask.data.sources import ImageSet, open_images
from fewmask.flags import near
from fewmask.types import UserError

OPTIONS = ("classes", "n", "side", "seed")
MIX = " + "
Rows = NDArray[np.int64]
LEAST = {"n": 1, "side": 4, "seed": 0}
"""The smallest value of an option that is a number."""


@dataclass(frozen=True)
class Part:
    """What a SRC asks of another one, `src`. Nothing asked: the whole of it."""

    src: str
    classes: tuple[str, ...] = ()
    n: int | None = None
    side: int | None = None
    seed: int | None = None

    def named(self, pool: str) -> str:
        """The pool's name with what was asked: cifar10-cat+dog-2000-32px."""
        said = [pool, "+".join(self.classes)]
        said += [f"{value}{unit}" for value, unit in ((self.n, ""), (self.side, "px")) if value]
        said += [f"seed{self.seed}"] if self.seed else []
        return "-".join(filter(None, said))


def split(src: str) -> tuple[Part, ...]:
    """The parts that a SRC is made of; none where it is a source as it stands.

    Raises UserError naming what is no option, with the near ones.
    """
    if os.path.lexists(src):
        return ()
    head, mark, tail = src.rpartition("?")
    folder = mark and MIX not in tail and os.path.lexists(head)  # which may be called "a + b"
    if not folder and MIX.strip() in src.split(" "):
        pieces = [piece.strip() for piece in f" {src} ".split(MIX)]
        if "" in pieces:
            raise UserError(f"{src}: nothing beside a +; expected SRC + SRC")
        return tuple(_part(piece) for piece in pieces)
    return (_part(src),) if mark else ()


def _part(src: str) -> Part:
    """One piece, `SRC` or `SRC?name=value&name=value`."""
    head, mark, tail = src.rpartition("?")
    if not mark or os.path.lexists(src):
        return Part(src)
    said: dict[str, str] = {}
    for word in tail.split("&"):
        name, equals, value = word.partition("=")
        if name not in OPTIONS or not equals or not value:
            raise UserError(
                f"{src}: {word!r} after the ? is no part of it"
                f"{near(name, OPTIONS)}; known: classes=A,B n=COUNT side=PX seed=N, joined by &"
            )
        if name in said:
            raise UserError(f"{src}: gives {name} twice. Take one out")
        said[name] = value
    numbers = {name: _number(src, name, said[name]) for name in LEAST if name in said}
    if "seed" in numbers and "n" not in numbers:
        raise UserError(f"{src}: seed={said['seed']} draws nothing without n=COUNT. Take it out")
    classes = tuple(name for name in said.get("classes", "").split(",") if name)
    return Part(head, classes, **numbers)


def _number(src: str, name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= LEAST[name]):
        raise UserError(f"{src}: {name}={text}; expected a whole number from {LEAST[name]}")
    return int(text)


def pool_name(parts: Sequence[Part], pools: Sequence[str]) -> str:
    """The name of a part or a mixture, from the names of the pools it is taken from."""
    return "-and-".join(part.named(pool) for part, pool in zip(parts, pools, strict=True))


def open_parts(src: str, parts: Sequence[Part], *, download: bool = False) -> ImageSet:
    """The images of a part or of a mixture. Raises UserError where there are too few."""
    wholes = [open_images(part.src, download=download) for part in parts]
    sets = [taken(whole, part, src) for whole, part in zip(wholes, parts, strict=True)]
    pool = pool_name(parts, [whole.pool for whole in wholes])
    images = sets[0] if len(sets) == 1 else mixture(sets, src)
    if len(images.label_names) < 2:  # one class tells nothing apart
        images = replace(images, labels=None, label_names=())
    return replace(images, src=src, pool=pool)


def taken(images: ImageSet, part: Part, src: str) -> ImageSet:
    """The images of a part, in the order of the set. `src` is named in errors."""
    rows = np.arange(len(images.items))
    if part.classes:
        rows = _of_classes(images, part.classes, src)
    if part.n is not None:
        if part.n > len(rows):
            raise UserError(f"{src}: n={part.n}, but there are {len(rows)} images. Lower n")
        rows = drawn(rows, part.n, part.seed or 0)
    return chosen(images, rows.tolist(), part.side)


def drawn(rows: Rows, n: int, seed: int) -> Rows:
    """`n` of the rows at random, in their order; of one seed, fewer are among more."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:n])


def chosen(images: ImageSet, rows: Sequence[int], side: int | None = None) -> ImageSet:
    """The images of some rows; classes that none of them shows are dropped."""
    items: list[ImageItem] = [images.items[row] for row in rows]
    if side is not None:
        items = [Shrunk(item, side) for item in items]
    images = replace(images, shards=images.shards and images.shards.of(np.asarray(rows, np.int64)))
    if images.labels is None:
        return replace(images, items=items)
    shown = sorted({images.labels[row] for row in rows})
    labels = tuple(shown.index(images.labels[row]) for row in rows)
    names = tuple(images.label_names[label] for label in shown)
    return replace(images, items=items, labels=labels, label_names=names)


def _of_classes(images: ImageSet, classes: Sequence[str], src: str) -> Rows:
    if images.labels is None:
        raise UserError(
            f"{src}: {images.src} has no classes; expected cifar10:, cats-vs-dogs: or a folder of "
            "class folders. Leave classes= out"
        )
    names = list(images.label_names)
    for name in classes:
        if name not in names:
            raise UserError(
                f"{src}: no class {name}{near(name, names)}; classes: {', '.join(names)}"
            )
    wanted = [names.index(name) for name in classes]
    return np.flatnonzero(np.isin(images.labels, wanted))


def mixture(sets: Sequence[ImageSet], src: str) -> ImageSet:
    """Several sets as one; a class keeps its name wherever it comes from.

    Raises UserError where a picture is in two of them: a pool shows each once.
    """
    counts = Counter(item.where for images in sets for item in images.items)
    twice = [where for where, n in counts.items() if n > 1]
    if twice:
        raise UserError(
            f"{src}: {len(twice)} images are in two parts, the first is {twice[0]}. "
            "Name parts that share none"
        )
    items = [
        Named(item, f"{number}/{item.name}")
        for number, images in enumerate(sets, start=1)
        for item in images.items
    ]
    names = list(dict.fromkeys(name for images in sets for name in images.label_names))
    labels = None
    if all(images.labels is not None for images in sets):
        labels = tuple(
            names.index(images.label_names[label])
            for images in sets
            for label in images.labels or ()
        )
    others = sum(images.other_files for images in sets)
    shards = joined([images.shards for images in sets], [len(images.items) for images in sets])
    return ImageSet(src, "", items, labels, tuple(names) if labels else (), others, shards)


@dataclass(frozen=True)
class Named:
    """An image under another name."""

    item: ImageItem
    name: str

    @property
    def where(self) -> str:
        return self.item.where

    def read(self) -> bytes:
        return self.item.read()

    def stamp(self) -> tuple[int, int]:
        return self.item.stamp()

    def pixels(self, least: int | None = None) -> Pixels:
        return self.item.pixels(least)


@dataclass(frozen=True)
class Shrunk:
    """An image shrunk to a short side; one that is smaller stays as it is.

    Place and bytes say the side: caches and fingerprints tell it from the image itself.
    """

    item: ImageItem
    side: int

    @property
    def name(self) -> str:
        return self.item.name

    @property
    def where(self) -> str:
        return f"{self.item.where}?side={self.side}"

    def read(self) -> bytes:
        return self.item.read() + f"?side={self.side}".encode()

    def stamp(self) -> tuple[int, int]:
        return self.item.stamp()

    def pixels(self, least: int | None = None) -> Pixels:
        """uint8 [H,W,3], bilinear with the triangle widened (antialiased)."""
        pixels = self.item.pixels()
        height, width = pixels.shape[:2]
        scale = self.side / min(height, width)
        if scale >= 1:
            return pixels
        shape = (max(self.side, round(width * scale)), max(self.side, round(height * scale)))
        return np.array(Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR))
