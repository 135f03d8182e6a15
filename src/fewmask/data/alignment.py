"""Whether two pictures are copies: one laid on the other, and compared in detail."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewmask.data.candidates import CROPS, Candidates, Thumbs

SIDE = 24
"""Cells a side in which aligned pictures are compared: half a thumbnail's, so that what a crop
blurs does not count."""
COARSE = 12
LEAST_COARSE = 0.8
"""Correlation after the coarse fit below which two pictures are not looked at any longer."""
FARTHEST = (-0.03, 0.14)
"""How far the fit may cut off a side, as a share of it."""
DETAIL = 0.8
TILE = 0.35
"""Least correlation of the Laplacians (edges and spots, whatever the light), and of the worst of
the tiles (a quarter of a side, overlapping by half), at which two pictures are one. Of 8,800 copies
(see candidates.LIKE) the Laplacians correlate at 0.87 and more (0.98 in the median) and the worst
tile at 0.44 and more. Different pictures of Cats-vs-Dogs and of Oxford-IIIT Pet stay below 0.70;
pictures of one motif, such as a car turned a little (CIFAR-10), reach 0.89 with a worst tile of
0.09."""
CONTRAST = 0.08
"""A tile stands for itself where it holds this share of the contrast of one of the pictures."""
FAINT = 1.0
"""The others are taken together, those that vary by more than so many grey levels in both pictures:
inside a bright frame or a dish they are all there is. No copy of the 8,800 is lost to it."""
BATCH = 1024


def copies(thumbs: Thumbs, pairs: Candidates) -> NDArray[np.bool_]:
    """Which of the pairs [P] of thumbnails uint8 [N,S,S] are copies of one picture."""
    found = [np.zeros(0, np.bool_)]
    for start in range(0, len(pairs), BATCH):
        rows = slice(start, start + BATCH)
        whole, part = (
            torch.from_numpy(np.array(thumbs[which[rows]])).float()
            for which in (pairs.whole, pairs.part)
        )
        mirrored = torch.from_numpy(pairs.mirrored[rows])
        place = torch.tensor(CROPS)[torch.from_numpy(pairs.crop[rows])]
        # The crop is of the picture before it is mirrored.
        place = torch.where(mirrored[:, None], place[:, [2, 1, 0, 3]], place)
        part = torch.where(mirrored[:, None, None], part.flip(2), part)
        found.append(agree(whole, part, place).numpy())
    return np.concatenate(found)


def agree(whole: Tensor, part: Tensor, place: Tensor) -> Tensor:
    """Bool [B]: whether `whole` shows the crop of `part` near `place`, all float32.

    Pictures are [B,S,S]; `place` [B,4] is the share cut off left, top, right and bottom. A coarse
    fit, then a fine one; brightness and contrast are fitted as well.
    """
    place, near = fitted(whole, part, place, COARSE, 3)
    result = torch.zeros(len(near), dtype=torch.bool)
    likely = torch.nonzero(near >= LEAST_COARSE)[:, 0]
    if not len(likely):
        return result
    whole, part = whole[likely], part[likely]
    place, _ = fitted(whole, part, place[likely], SIDE, 6)
    one, other = _cut(whole, torch.zeros_like(place), SIDE), _cut(part, place, SIDE)
    same = (_cosine(_laplacian(one), _laplacian(other)) >= DETAIL) & (worst(one, other) >= TILE)
    result[likely] = same
    return result


def fitted(
    whole: Tensor, part: Tensor, place: Tensor, side: int, steps: int
) -> tuple[Tensor, Tensor]:
    """The place [B,4] at which `part` is likest to `whole`, and the correlation there [B].

    Gauss-Newton over the four edges together with gain and offset; the best place met counts, the
    first one included.
    """
    goal = _normed(_cut(whole, torch.zeros_like(place), side))
    best, best_score = place, torch.full((len(place),), -2.0)
    for step in range(steps + 1):
        cut = _cut(part, place, side)
        score = (_normed(cut) * goal).sum((1, 2))
        better = score > best_score
        best = torch.where(better[:, None], place, best)
        best_score = torch.where(better, score, best_score)
        if step < steps:
            place = (place + _step(goal, cut, place)).clamp(*FARTHEST)
    return best, best_score


def _step(goal: Tensor, cut: Tensor, place: Tensor) -> Tensor:
    """How to move the edges: the least squares of goal = gain (cut + slopes x move) + offset."""
    side = goal.shape[-1]
    along = (torch.arange(side) + 0.5) / side
    down, across = torch.gradient(cut, dim=(1, 2))
    across = across * side / (1 - place[:, 0] - place[:, 2])[:, None, None]
    down = down * side / (1 - place[:, 1] - place[:, 3])[:, None, None]
    slopes = [across * (1 - along), down * (1 - along[:, None]), -across * along,
              -down * along[:, None], cut, torch.ones_like(cut)]  # fmt: skip
    columns = torch.stack(slopes, dim=-1).flatten(1, 2)
    scale = columns.norm(dim=1, keepdim=True) + 1e-6
    columns = columns / scale
    square = columns.mT @ columns + 1e-4 * torch.eye(6)  # of a plain picture too there is a step
    solved = torch.linalg.solve(square, columns.mT @ goal.flatten(1)[:, :, None])[:, :, 0]
    solved = solved / scale[:, 0]
    gain = solved[:, 4:5]
    move: Tensor = solved[:, :4] / torch.where(gain.abs() > 1e-6, gain, 1.0)
    return move.clamp(-0.05, 0.05)


def _cut(pictures: Tensor, place: Tensor, side: int) -> Tensor:
    """[B,S,S] -> [B,side,side]: what lies inside `place`, each cell the mean of its pixels."""
    across = _means(place[:, 0], 1 - place[:, 2], side, pictures.shape[-1])
    down = _means(place[:, 1], 1 - place[:, 3], side, pictures.shape[-1])
    return down @ pictures @ across.mT


def _means(low: Tensor, high: Tensor, side: int, pixels: int) -> Tensor:
    """[B,side,pixels]: how much of each cell between `low` and `high` each pixel fills."""
    edges = torch.arange(pixels + 1) / pixels
    cells = (edges - low[:, None]) / (high - low)[:, None] * side
    filled: Tensor = (cells[:, None] - torch.arange(side)[:, None]).clamp(0, 1).diff(dim=2)
    return filled


def _normed(pictures: Tensor) -> Tensor:
    """Mean 0 and norm 1, each."""
    centred: Tensor = pictures - pictures.mean((1, 2), keepdim=True)
    norm: Tensor = centred.flatten(1).norm(dim=1)
    normed: Tensor = centred / (norm + 1e-6)[:, None, None]
    return normed


def _laplacian(x: Tensor) -> Tensor:
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    return (x[:, 1:-1, 1:-1] - around / 4).flatten(1)


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    product: Tensor = x.norm(dim=-1) * y.norm(dim=-1)
    cosine: Tensor = (x * y).sum(-1) / (product + 1e-9)
    return cosine


def worst(one: Tensor, other: Tensor) -> Tensor:
    """The least correlation of a tile [B], or of all the faint ones together, if there are two.

    Of aligned pictures [B,SIDE,SIDE] in grey levels.
    """
    x, y = _tiles(one), _tiles(other)
    share = torch.maximum(x.norm(dim=-1) / _spread(one), y.norm(dim=-1) / _spread(other))
    strong = share > CONTRAST
    alone = torch.where(strong, _cosine(x, y), 1.0).amin(dim=1)
    faint = ~strong & (torch.minimum(x.std(dim=-1), y.std(dim=-1)) > FAINT)
    together = _cosine((x * faint[..., None]).flatten(1), (y * faint[..., None]).flatten(1))
    return torch.where(faint.sum(dim=1) >= 2, torch.minimum(alone, together), alone)


def _spread(pictures: Tensor) -> Tensor:
    """The norm of each picture without its mean [B,1]."""
    norm: Tensor = (pictures - pictures.mean((1, 2), keepdim=True)).flatten(1).norm(dim=1)
    return norm[:, None] + 1e-6


def _tiles(pictures: Tensor) -> Tensor:
    """[B,SIDE,SIDE] -> [B,49,pixels], each without its mean."""
    quarter, step = SIDE // 4, SIDE // 8
    tiles = pictures.unfold(1, quarter, step).unfold(2, quarter, step).flatten(3).flatten(1, 2)
    centred: Tensor = tiles - tiles.mean(-1, keepdim=True)
    return centred
