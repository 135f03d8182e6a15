"""Relative position: on which of eight sides of a patch another one lies (Doersch et al. 2015).

https://arxiv.org/abs/1505.05192
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask.augment import Views
from fewmask.pretext.contract import Pool, PretextModule, drawn, spread, view, width_of
from fewmask.pretext.patches import (
    LEAST,
    check_patch_side,
    classifier,
    coarsened,
    coarsening,
    cut,
    drop_colours,
    encoded,
    input_side,
    normalise_each,
    project_colours,
    repeat_colour,
    uniform,
)
from fewmask.types import Batch, UserError

PATCHES = 9
DIRECTIONS = 8
LEAST_SIZE = 32
"""The side of the smallest view whose patches have 8 pixels a side."""

Pairs = Literal["all", "centre"]
Colours = Literal["drop", "repeat", "project", "keep"]


class Geometry(NamedTuple):
    """Lengths in pixels of a 3x3 grid of patches."""

    patch: int
    gap: int
    jitter: int


def geometry(size: int) -> Geometry:
    """The paper's 96 px patches, 48 px gaps and jitter of 7 px, in proportion to `size`.

    Three patches, two gaps and the jitter at both ends are 398 px there. Raises UserError where
    patches would have less than 8 px a side.
    """
    patch, jitter = round(size * 96 / 398), round(size * 7 / 398)
    if patch < LEAST:
        raise UserError(
            f"--size {size}: the patches of --pretext relative-position would have {patch} px a "
            f"side; expected --size {LEAST_SIZE} or more"
        )
    return Geometry(patch, (size - 3 * patch - 2 * jitter) // 2, jitter)


@dataclass(frozen=True)
class RelativePosition:
    """Relative position's hyper-parameters."""

    name: ClassVar[str] = "relative-position"

    pairs: Pairs = "all"
    """The pairs among 3x3 patches of an image: all 40 ordered neighbours (as the authors' code has
    them in its grids), or centre: the middle one with each of its 8 neighbours."""
    colours: Colours = "drop"
    """Against chromatic aberration: drop keeps one channel of each patch and fills the others with
    noise, repeat fills them with that channel, project takes the green-magenta axis out, keep does
    nothing."""
    coarse: float = 0.33
    """Probability that a patch is shrunk and enlarged again, to 1 to 98 % of its area."""
    crop_min: float = 0.35
    """Smallest share of the image's area that the patches are spread over, as a square (the paper:
    398 px in images of 150,000 to 450,000 pixels, 0.35 to 1)."""
    flip: float = 0.0
    """Probability of a left-right flip (default: 0, as the authors have it)."""
    hidden: int = 512
    """Width of the head's hidden layer."""
    patch_side: int | None = None
    """Side in pixels at which patches enter the encoder (default: as they are cut, but at least 5/4
    of the encoder's stride)."""

    def __post_init__(self) -> None:
        for flag, value, known in (
            ("--pairs", self.pairs, ("all", "centre")),
            ("--colours", self.colours, ("drop", "repeat", "project", "keep")),
        ):
            if value not in known:
                raise UserError(f"{flag} {value}: expected one of {', '.join(known)}")
        if not 0 <= self.coarse <= 1:
            raise UserError(f"--coarse {self.coarse:g}: expected a probability, 0 to 1")
        if self.hidden < 1:
            raise UserError(f"--hidden {self.hidden}: expected 1 or more")
        check_patch_side(self.patch_side)
        self.views()

    def views(self) -> Views:
        """A square crop and nothing else: the patches' own defences are made one by one."""
        return Views(
            self.crop_min, ratio=(1.0, 1.0), flip=self.flip, jitter=0.0, grey=0.0, blur=0.0
        )

    def task(self, encoder: nn.Module, size: int, pool: Pool) -> RelativePositionTask:
        """The task on an encoder of smp's contract, with patches over `size` pixels a side."""
        return RelativePositionTask(self, encoder, size)


class RelativePositionTask(PretextModule):
    """Batch -> cross-entropy of the direction, from two patches' features side by side."""

    first: Tensor
    second: Tensor
    direction: Tensor
    weight: Tensor
    matrices: Tensor
    chance: Tensor

    def __init__(self, config: RelativePosition, encoder: nn.Module, size: int) -> None:
        super().__init__(encoder)
        self.config, self.size, self.views = config, size, config.views()
        self.geometry = geometry(size)
        self.side = input_side(self.geometry.patch, encoder, config.patch_side)
        self.head = classifier(2 * width_of(encoder), config.hidden, DIRECTIONS)
        first, second, direction = pair_table(config.pairs).T
        # A grid has more pairs side by side than corner to corner: all directions count the same.
        weight = (1 / direction.bincount(minlength=DIRECTIONS) / DIRECTIONS)[direction]
        for name, values in {
            "first": first,
            "second": second,
            "direction": direction,
            "weight": weight,
            "matrices": coarsening(self.geometry.patch),
            "chance": torch.tensor(1 / DIRECTIONS),
        }.items():
            self.register_buffer(name, values, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        features = encoded(self.encoder, self.patches(batch), self.side)
        pairs = torch.cat([features[:, self.first], features[:, self.second]], dim=2)
        logits = self.head(pairs.flatten(0, 1)).float()
        labels = self.direction.repeat(len(pairs))
        weight = self.weight.repeat(len(pairs)) / len(pairs)
        right = logits.detach().argmax(dim=1) == labels
        self.signals = {
            "accuracy": (right * weight).sum(),
            "chance": self.chance,
            "spread": spread(features.detach().flatten(0, 1)),
        }
        each = functional.cross_entropy(logits, labels, reduction="none")
        return {"cross_entropy": (each * weight).sum()}

    def patches(self, batch: Batch) -> Tensor:
        """3x3 patches [B,9,3,s,s] of each image in reading order, each normalised on its own."""
        side = self.geometry.patch
        draws = drawn(batch, PATCHES * 5, stream=1)
        place, coarse, channel = torch.split(draws, [PATCHES * 2, PATCHES * 2, PATCHES], dim=1)
        found = corners(place.reshape(-1, PATCHES, 1, 2), self.geometry)
        patches = cut(view(batch, self.size, self.views), found, side)
        if self.config.coarse > 0:
            sides = coarse_sides(coarse.reshape(-1, PATCHES, 2), self.config.coarse, side)
            patches = coarsened(patches, sides, self.matrices)
        kept = (channel * 3).long()
        if self.config.colours == "drop":
            patches = drop_colours(patches, kept, uniform(batch, patches.shape[1:], stream=2))
        elif self.config.colours == "repeat":
            patches = repeat_colour(patches, kept)
        elif self.config.colours == "project":
            patches = project_colours(patches)
        return normalise_each(patches)


def corners(place: Tensor, g: Geometry) -> Tensor:
    """Top and left pixel int64 [B,9,1,2] of each patch, for place [B,9,1,2] uniform in 0..1.

    A patch lies up to `g.jitter` pixels off its place in the grid, either way.
    """
    cells = torch.arange(PATCHES, device=place.device)
    origin = (g.patch + g.gap) * torch.stack([cells // 3, cells % 3], dim=1)
    return origin[:, None] + (place * (2 * g.jitter + 1)).long()


def coarse_sides(draws: Tensor, probability: float, side: int) -> Tensor:
    """To how many pixels a side patches [B,P] are shrunk; `side` is not at all.

    draws [B,P,2] are uniform in 0..1: whether, and how far. The area left is uniform between those
    of 10 and 95 of 96 pixels a side, as in the authors' code.
    """
    low, high = (10 / 96) ** 2, (95 / 96) ** 2
    left = ((low + (high - low) * draws[..., 1]).sqrt() * side).long().clamp(1, side)
    return torch.where(draws[..., 0] < probability, left, side)


def pair_table(pairs: Pairs) -> Tensor:
    """Rows (first, second, direction) int64 [n,3] of patches 0..8 of a grid in reading order.

    The direction is that of the second one as seen from the first: 0..7 in reading order.
    """
    rows = []
    for first in range(PATCHES):
        for second in range(PATCHES):
            down, right = second // 3 - first // 3, second % 3 - first % 3
            near = first != second and max(abs(down), abs(right)) == 1
            if near and (pairs == "all" or first == PATCHES // 2):
                place = 3 * (down + 1) + right + 1
                rows.append((first, second, place - (place > 4)))
    return torch.tensor(rows)
