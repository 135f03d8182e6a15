"""Masked image modelling for convolutional encoders, as SparK does it (Tian et al. 2023).

https://arxiv.org/abs/2301.03580. Most cells of a picture are hidden, the encoder sees the rest
sparsely (what is hidden stays zero in every map and counts in no statistics), and a light decoder
draws the hidden pixels from the maps of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask.augment import MEAN, STD, Views, normalise
from fewmask.constants import constant
from fewmask.pretext.contract import Pool, PretextModule, drawn, spread, view
from fewmask.pretext.visible import Visible, maps_of, sparsely
from fewmask.types import Batch, UserError

UNITS = (32, 16, 8, 4)
FEWEST = 5
"""Cells along a side: fewer, and there is nothing left to complete the hidden ones from."""
SHOWN = 8


@dataclass(frozen=True)
class Masked:
    """SparK's hyper-parameters."""

    name: ClassVar[str] = "masked"

    mask_ratio: float = 0.6
    """Share of the cells that is hidden (0 to 1)."""
    unit: int | None = None
    """Side of a cell in pixels: 4, 8, 16 or 32 (default: the largest that is no more than the
    encoder's stride and leaves five cells a side, so 32 from 160 pixels on, 16 from 80)."""
    decoder_width: int = 256
    """Channels of the decoder at the coarsest map; half as many a level finer, but at least 64."""
    crop_min: float = 0.67
    """Smallest share of the image's area that a view keeps (0 to 1)."""
    flip: float = 0.5
    """Probability of a left-right flip."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"--mask-ratio {self.mask_ratio}: expected a share between 0 and 1")
        if self.unit is not None and self.unit not in UNITS:
            raise UserError(f"--unit {self.unit}: expected one of {', '.join(map(str, UNITS))}")
        if self.decoder_width < 1:
            raise UserError(f"--decoder-width {self.decoder_width}: expected a number above 0")
        self.views()

    def views(self) -> Views:
        """Crops and flips alone: the colours are what is to be drawn."""
        return Views(self.crop_min, flip=self.flip, colour=0.0, jitter=0.0, grey=0.0, blur=0.0)

    def unit_for(self, size: int, stride: int) -> int:
        """The side of a cell in pixels. Raises UserError where --unit leaves under two a side."""
        if self.unit is not None and size // self.unit < 2:
            raise UserError(
                f"--unit {self.unit}: --size {size} holds {size // self.unit} of them a side; "
                "expected at least 2"
            )
        fitting = [u for u in UNITS if u <= stride and size // u >= FEWEST]
        return self.unit or (fitting or [UNITS[-1]])[0]

    def task(self, encoder: nn.Module, size: int, pool: Pool) -> MaskedTask:
        """The task on a convolutional encoder of smp's contract.

        Views are `size` pixels a side, rounded down to whole cells. Raises UserError for an
        encoder that is no stack of convolutions.
        """
        return MaskedTask(self, encoder, self.unit_for(size, int(encoder.output_stride)), size)  # type: ignore[arg-type]


class Decoder(nn.Module):
    """Maps from coarse to fine -> pixels: a light U-Net with a mask token a level."""

    def __init__(self, levels: Sequence[tuple[int, int]], side: int, cells: int, width: int):
        super().__init__()
        widths = [max(64, width >> i) for i in range(len(levels))]
        self.tokens = nn.ParameterDict()
        self.lateral, self.blocks = nn.ModuleList(), nn.ModuleList()
        for i, ((channels, own), (here, after)) in enumerate(
            zip(levels, pairwise([*widths, widths[-1]]), strict=True)
        ):
            if own >= cells:
                token = nn.init.trunc_normal_(torch.empty(1, channels, 1, 1), std=0.02)
                self.tokens[str(i)] = nn.Parameter(token)
            kernel = 3 if i else 1
            self.lateral.append(nn.Conv2d(channels, here, kernel, padding=kernel // 2))
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(here, here, 3, padding=1, bias=False),
                    nn.BatchNorm2d(here),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(here, after, 3, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                )
            )
        self.stride = side // levels[-1][1]
        self.pixels = nn.Conv2d(widths[-1], 3 * self.stride**2, 1)

    def forward(self, maps: Sequence[Tensor], visible: Visible) -> Tensor:
        """[B,C_i,H_i,W_i] from coarse to fine -> [B,3,S,S]."""
        x: Tensor | None = None
        for i, (found, lateral, block) in enumerate(
            zip(maps, self.lateral, self.blocks, strict=True)
        ):
            if str(i) in self.tokens:
                seen = visible.mask(found.shape[2]) > 0
                found = torch.where(seen, found, self.tokens[str(i)].to(found.dtype))
            here = lateral(found)
            if x is not None:
                here = here + functional.interpolate(x, here.shape[2:])
            x = block(here)
        return functional.pixel_shuffle(self.pixels(x), self.stride)


class MaskedTask(PretextModule):
    """Batch -> squared error of the hidden cells' pixels, each cell of mean 0 and variance 1."""

    def __init__(self, config: Masked, encoder: nn.Module, unit: int, size: int) -> None:
        super().__init__(encoder)
        self.unit, self.cells = unit, size // unit
        self.size, self.views = unit * self.cells, config.views()
        count = self.cells**2
        self.hidden = min(max(round(config.mask_ratio * count), 1), count - 1)
        maps = maps_of(encoder, self.size, self.cells)
        # The levels of strides 4 to 32, as the paper's; an encoder may have no map at a level.
        own = [i for i in range(1, len(maps)) if maps[i][0]]
        self.levels = [i for i in own if maps[i][1] <= self.size // 4][::-1] or own[-1:]
        levels = [maps[i] for i in self.levels]
        self.reconstruction = Decoder(levels, self.size, self.cells, config.decoder_width)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, _, hidden, reconstructed, features = self.complete(batch)
        truth, _, _ = standardised(cut(images, self.unit, hidden))
        found = cut(reconstructed.float(), self.unit, hidden)
        loss = (found - truth).square().mean()
        self.signals = {
            "error": loss.detach(),
            "constant_error": truth.square().mean(),  # of drawing each cell's own mean
            "spread": spread(features),
        }
        return {"reconstruction": loss}

    def complete(self, batch: Batch) -> tuple[Tensor, Visible, Tensor, Tensor, Tensor]:
        """Normalised views, what is visible of them, the hidden cells [B,M], the pixels drawn for
        all cells [B,3,S,S], and the features [B,D] of what is visible."""
        images = normalise(view(batch, self.size, self.views))
        order = drawn(batch, self.cells**2, stream=1).argsort(dim=1)
        hidden, shown = order.tensor_split([self.hidden], dim=1)
        visible = Visible(shown.sort(dim=1).values, self.cells)
        with sparsely(self.encoder, visible):
            seen = images * visible.mask(self.size)
            maps = self.encoder(seen.contiguous(memory_format=torch.channels_last))
        reconstructed = self.reconstruction([maps[i] for i in self.levels], visible)
        return images, visible, hidden, reconstructed, maps[-1].mean(dim=(2, 3))

    def samples(self, batch: Batch) -> Tensor:
        """Of up to 8 images [n,3,S,3S]: masked, completed, true, side by side."""
        some = batch._replace(images=batch.images[:SHOWN])
        if batch.valid is not None:
            some = some._replace(valid=batch.valid[:SHOWN])
        images, visible, _, reconstructed, _ = self.complete(some)
        mask = visible.mask(self.size)
        _, mean, scale = standardised(cut(images, self.unit))
        own = join(cut(reconstructed.float(), self.unit) * scale + mean, self.unit)
        pictures = torch.cat([images * mask, torch.where(mask > 0, images, own), images], dim=3)
        std, middle = constant(STD, images), constant(MEAN, images)
        return (pictures * std[:, None, None] + middle[:, None, None]).clamp(0, 1)


def cut(images: Tensor, unit: int, chosen: Tensor | None = None) -> Tensor:
    """Images [B,3,S,S] -> cells [B,N,3*unit*unit], row by row; or only the chosen [B,M] of them."""
    n, _, side, _ = images.shape
    grid = images.reshape(n, 3, side // unit, unit, side // unit, unit)
    cells = grid.permute(0, 2, 4, 1, 3, 5).reshape(n, (side // unit) ** 2, -1)
    if chosen is None:
        return cells
    return cells.gather(1, chosen[:, :, None].expand(-1, -1, cells.shape[2]))


def join(cells: Tensor, unit: int) -> Tensor:
    """The inverse of `cut`: cells [B,N,3*unit*unit] -> images [B,3,S,S]."""
    n, count, _ = cells.shape
    side = round(count**0.5)
    grid = cells.reshape(n, side, side, 3, unit, unit).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(n, 3, side * unit, side * unit)


def standardised(cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cells [B,N,P] of mean 0 and variance 1 each, and what mean and scale [B,N,1] they had."""
    variance, mean = torch.var_mean(cells, dim=2, keepdim=True, correction=0)
    scale = (variance + 1e-6).sqrt()
    return (cells - mean) / scale, mean, scale
