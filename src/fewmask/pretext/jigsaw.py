"""Jigsaw: nine shuffled tiles, and which of k permutations shuffled them (Noroozi & Favaro 2016).

https://arxiv.org/abs/1603.09246
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, permutations
from math import factorial
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask.augment import Views
from fewmask.pretext.contract import Pool, PretextModule, drawn, spread, view, width_of
from fewmask.pretext.patches import (
    LEAST,
    check_patch_side,
    classifier,
    cut,
    encoded,
    greyed,
    input_side,
    normalise_each,
)
from fewmask.types import Batch, UserError

TILES = 9
MOST = 10_000
LEAST_SIZE = 27
"""The side of the smallest view whose tiles have 8 pixels a side."""


class Geometry(NamedTuple):
    """Lengths in pixels. A tile lies anywhere in its cell; its channels are shifted within it."""

    view: int
    cell: int
    tile: int
    shift: int


def geometry(size: int) -> Geometry:
    """The paper's 225 px view, 75 px cells, 64 px tiles and 2 px shifts, in proportion to `size`.

    A shift is 1 px at least. Raises UserError where tiles would have less than 8 px a side.
    """
    cell = size // 3
    tile = round(cell * 64 / 75)
    if tile < LEAST:
        raise UserError(
            f"--size {size}: the tiles of --pretext jigsaw would have {tile} px a side; "
            f"expected --size {LEAST_SIZE} or more"
        )
    return Geometry(3 * cell, cell, tile, max(1, round(cell * 2 / 75)))


@dataclass(frozen=True)
class Jigsaw:
    """Jigsaw's hyper-parameters."""

    name: ClassVar[str] = "jigsaw"

    permutations: int = 100
    """How many permutations there are to tell apart (the paper: 1000 on ImageNet)."""
    shuffles: int = 8
    """Permutations of each image that are asked for in one step. The tiles go through the encoder
    once for all of them (the paper: 1)."""
    grey: float = 0.3
    """Probability that an image is turned grey."""
    crop_min: float = 0.6
    """Smallest share of the image's area that the puzzle is cut from, as a square (the paper: 0.77
    always, 225 of 256 pixels a side)."""
    flip: float = 0.0
    """Probability of a left-right flip (default: 0, as the authors have it)."""
    hidden: int = 1024
    """Width of the head's hidden layer."""
    patch_side: int | None = None
    """Side in pixels at which tiles enter the encoder (default: as they are cut, but at least 5/4
    of the encoder's stride)."""

    def __post_init__(self) -> None:
        if not 2 <= self.permutations <= MOST:
            raise UserError(f"--permutations {self.permutations}: expected 2 to {MOST}")
        if not 0 <= self.grey <= 1:
            raise UserError(f"--grey {self.grey:g}: expected a probability, 0 to 1")
        if min(self.shuffles, self.hidden) < 1:
            raise UserError(
                f"--shuffles {self.shuffles} and --hidden {self.hidden}: expected 1 or more"
            )
        check_patch_side(self.patch_side)
        self.views()

    def views(self) -> Views:
        """A square crop and nothing else: the puzzle's own defences are made tile by tile."""
        return Views(
            self.crop_min, ratio=(1.0, 1.0), flip=self.flip, jitter=0.0, grey=0.0, blur=0.0
        )

    def task(self, encoder: nn.Module, size: int, pool: Pool) -> JigsawTask:
        """The task on an encoder of smp's contract, with puzzles of `size` pixels a side."""
        return JigsawTask(self, encoder, size)


class JigsawTask(PretextModule):
    """Batch -> cross-entropy of the permutation, from the features of all tiles side by side."""

    orders: Tensor
    chance: Tensor

    def __init__(self, config: Jigsaw, encoder: nn.Module, size: int) -> None:
        super().__init__(encoder)
        self.config, self.views = config, config.views()
        self.geometry = geometry(size)
        self.side = input_side(self.geometry.tile, encoder, config.patch_side)
        k = config.permutations
        self.head = classifier(TILES * width_of(encoder), config.hidden, k)
        self.register_buffer("orders", permutation_set(k).clone(), persistent=False)
        self.register_buffer("chance", torch.tensor(1 / k), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        features = encoded(self.encoder, self.tiles(batch), self.side)
        labels = self.labels(batch)
        shuffled = shuffle(features, self.orders[labels])
        logits = self.head(shuffled.flatten(0, 1).flatten(1)).float()
        right = logits.detach().argmax(dim=1) == labels.flatten()
        self.signals = {
            "accuracy": right.float().mean(),
            "chance": self.chance,
            "spread": spread(features.detach().flatten(0, 1)),
        }
        return {"cross_entropy": functional.cross_entropy(logits, labels.flatten())}

    def labels(self, batch: Batch) -> Tensor:
        """The permutations [B,shuffles] that are asked for, int64."""
        k = self.config.permutations
        return (drawn(batch, self.config.shuffles, stream=2) * k).long()

    def tiles(self, batch: Batch) -> Tensor:
        """Nine tiles [B,9,3,t,t] of each image, in reading order, each normalised on its own."""
        draws = drawn(batch, 1 + TILES * 2 + TILES * 3 * 2, stream=1)
        grey, place, shift = torch.split(draws, [1, TILES * 2, TILES * 3 * 2], dim=1)
        is_grey = grey[:, 0] < self.config.grey
        pictures = greyed(view(batch, self.geometry.view, self.views), is_grey)
        # The channels of a grey picture stay together, or it would have colours at its edges.
        shift = torch.where(is_grey[:, None], 0.5, shift)
        found = corners(
            place.reshape(-1, TILES, 1, 2), shift.reshape(-1, TILES, 3, 2), self.geometry
        )
        return normalise_each(cut(pictures, found, self.geometry.tile))


def corners(place: Tensor, shift: Tensor, g: Geometry) -> Tensor:
    """Top and left pixel int64 [B,9,3,2] of each tile in each channel.

    place [B,9,1,2] and shift [B,9,3,2] are uniform in 0..1: where the tile lies in its cell, and
    how its channels are shifted, by up to +- g.shift pixels. No channel leaves its cell, so that
    tiles at the border of the picture are like the others.
    """
    room = g.cell - g.tile
    offset = (place * (room + 1)).long()
    apart = (shift * (2 * g.shift + 1)).long() - g.shift
    cells = torch.arange(TILES, device=place.device)
    origin = g.cell * torch.stack([cells // 3, cells % 3], dim=1)
    return origin[:, None] + (offset + apart).clamp(0, room)


def shuffle(features: Tensor, orders: Tensor) -> Tensor:
    """Features [B,9,D] in the orders int64 [B,R,9] -> [B,R,9,D]: place t holds tile orders[t]."""
    image = torch.arange(len(features), device=features.device)[:, None, None]
    return features[image, orders]


@lru_cache(maxsize=8)
def permutation_set(k: int, tiles: int = TILES) -> Tensor:
    """`k` permutations int64 [k,tiles], each as far from the others as the ones before it allow.

    Greedy, by Hamming distance (in how many places two differ). The paper's algorithm 1 begins with
    a random one and goes on with the largest distance to all chosen ones together; here nothing is
    random, and no two are near. The first is the identity. Then each time the one whose distance
    to its nearest chosen one is largest; of several the one with the largest sum of distances to
    all chosen ones; of these the first in lexicographic order.
    """
    if not 1 <= k <= factorial(tiles):
        raise ValueError(f"{k} permutations of {tiles}: there are {factorial(tiles)}")
    every = np.fromiter(chain.from_iterable(permutations(range(tiles))), np.int8)
    places = np.ascontiguousarray(every.reshape(-1, tiles).T)
    nearest = np.full(places.shape[1], tiles, np.int8)
    total = np.zeros(places.shape[1], np.int32)
    chosen = [0]
    while len(chosen) < k:
        distance = np.zeros_like(nearest)
        for place in places:
            distance += place != place[chosen[-1]]
        total += distance
        np.minimum(nearest, distance, out=nearest)
        far = np.flatnonzero(nearest == nearest.max())
        chosen.append(int(far[total[far].argmax()]))
    return torch.from_numpy(places[:, chosen].T.astype(np.int64))
