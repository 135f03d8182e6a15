"""Colourisation: a picture's colours from its lightness alone.

Zhang et al. 2016 (https://arxiv.org/abs/1603.08511) choose among bins of colours; plain regression
is what they compare with; Isola et al. 2017 (https://arxiv.org/abs/1611.07004) add a discriminator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask.augment import Views, normalise
from fewmask.pretext.colorize_bins import Bins
from fewmask.pretext.colorize_gan import AB, Gan
from fewmask.pretext.colour import errors, lab_to_rgb, over_coloured, rgb_to_lab
from fewmask.pretext.contract import Pool, PretextModule, spread, view
from fewmask.types import Batch, UserError

Objective = Literal["bins", "regression", "gan"]
Distance = Literal["l1", "l2"]

GREY = 5.0
"""A picture whose a and b are all within this of 0 is grey: it has no colours to learn (Zhang)."""
WIDEST, NARROWEST = 256, 64
ACROSS = 8  # samples in a row


@dataclass(frozen=True)
class Colorize:
    """Colourisation's hyper-parameters."""

    name: ClassVar[str] = "colorize"

    objective: Objective = "bins"
    """bins (Zhang: 313 classes of colour, rare ones weighted up), regression (on ab), or gan
    (pix2pix: L1 on ab and a discriminator of patches)."""
    distance: Distance = "l2"
    """regression: l2 (squared error) or l1 (smooth, quadratic below one Lab unit), on ab / 110."""
    prior_mix: float = 0.5
    """bins: share of the uniform distribution that is mixed into the prior of the colours before
    they are weighted by its inverse (Zhang's lambda; 1 weights all alike)."""
    temperature: float = 0.38
    """bins: of the annealed mean, which the samples are painted by (Zhang: 0.38; 1 is the mean)."""
    l1_weight: float = 100.0
    """gan: weight of L1 on ab / 110 against the adversarial loss (Isola's lambda)."""
    discriminator: int = 64
    """gan: channels of the discriminator's first layer (Isola: 64)."""
    crop_min: float = 0.5
    """Smallest share of the image's area that a crop keeps (0 to 1)."""
    flip: float = 0.5
    """Probability of a left-right flip."""

    def __post_init__(self) -> None:
        for flag, value, kind in (
            ("objective", self.objective, Objective),
            ("distance", self.distance, Distance),
        ):
            if value not in get_args(kind):
                raise UserError(f"--{flag} {value}: expected one of {', '.join(get_args(kind))}")
        if not 0 <= self.prior_mix <= 1:
            raise UserError(f"--prior-mix {self.prior_mix:g}: expected a share, 0 to 1")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"--temperature {self.temperature:g}: expected a number above 0")
        if not 0 <= self.l1_weight < math.inf:
            raise UserError(f"--l1-weight {self.l1_weight:g}: expected a number of 0 or more")
        if self.discriminator < 1:
            raise UserError(f"--discriminator {self.discriminator}: expected a width above 0")
        self.views()

    def views(self) -> Views:
        """Crops and flips: the colours are the answer, so they are left as they are."""
        return Views(self.crop_min, flip=self.flip, colour=0.0, jitter=0.0, grey=0.0, blur=0.0)

    def task(self, encoder: nn.Module, size: int, pool: Pool) -> ColorizeTask:
        """The task on an encoder of smp's contract, with views of `size` pixels a side."""
        return ColorizeTask(self, encoder, size)


class Regression(nn.Module):
    """ab / 110 at a quarter of the side -> mean squared error, or smooth L1 (Huber's)."""

    stride = 4
    skips = False
    channels = 2

    def __init__(self, distance: Distance) -> None:
        super().__init__()
        self.distance = distance

    def forward(
        self, output: Tensor, lightness: Tensor, ab: Tensor, coloured: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Output [B,2,h,w], ab [B,2,h,w], coloured [B] -> losses, signals."""
        output, target = output.float(), ab / AB
        if self.distance == "l2":
            values = (output - target).square()
        else:
            values = functional.smooth_l1_loss(output, target, reduction="none", beta=1 / AB)
        found = errors(self.colours(output.detach()), ab, coloured)
        return {self.distance: over_coloured(values, coloured)}, found

    def colours(self, output: Tensor) -> Tensor:
        """Output [B,2,h,w] -> ab [B,2,h,w]."""
        return AB * output.float()


class Head(nn.Module):
    """The encoder's maps -> [B,out,h,w] at `stride`: a convolution at each level, bilinear between.

    Without skips, as Zhang's, all that is known of the colours has to pass through the encoder's
    coarsest map, so that is where it is learned. With them, as Isola's U-Net has, the finer maps
    are added on the way, for edges.
    """

    def __init__(self, channels: Sequence[int], stride: int, out: int, skips: bool) -> None:
        super().__init__()
        finest = min(stride.bit_length(), len(channels)) - 1
        self.levels = list(range(len(channels) - 1, finest - 1, -1))  # level k has stride 2^k
        self.blocks, self.lateral = nn.ModuleList(), nn.ModuleDict()
        before = channels[-1]
        for i, level in enumerate(self.levels):
            width = max(NARROWEST, WIDEST >> i)
            if skips and i and channels[level]:
                self.lateral[str(level)] = nn.Conv2d(channels[level], before, 1)
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                )
            )
            before = width
        self.out = nn.Conv2d(before, out, 1)
        nn.init.normal_(self.out.weight, 0, 0.02)  # near to grey, or to all bins alike, at first
        nn.init.zeros_(self.out.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B,C_k,H_k,W_k] from fine to coarse; the result has the last level's size."""
        x = maps[-1]
        for level, block in zip(self.levels, self.blocks, strict=True):
            found = maps[level]
            if x.shape[2:] != found.shape[2:]:
                x = functional.interpolate(x, found.shape[2:], mode="bilinear")
            if str(level) in self.lateral:
                x = x + self.lateral[str(level)](found)
            x = block(x)
        painted: Tensor = self.out(x)
        return painted


LEAST_COLOURED = 0.1
"""The share of coloured pictures in a batch below which the task complains."""


class ColorizeTask(PretextModule):
    """Batch -> how far the colours painted from the lightness are from the true ones.

    The encoder sees the lightness as three equal channels, so its weights fit RGB afterwards.
    Pictures that are grey themselves don't count.
    """

    objective: Bins | Regression | Gan

    def __init__(self, config: Colorize, encoder: nn.Module, size: int) -> None:
        super().__init__(encoder)
        self.size, self.views = size, config.views()
        if config.objective == "bins":
            self.objective = Bins(config.prior_mix, config.temperature)
        elif config.objective == "regression":
            self.objective = Regression(config.distance)
        else:
            side = -(-size // Gan.stride)
            self.objective = Gan(side, config.l1_weight, config.discriminator)
            # Isola's beta1, and about Isola's rate: 2e-4 at a batch of 40.
            self.rate, self.beta1 = 0.5, 0.5
        kind = self.objective
        self.head = Head(encoder.out_channels, kind.stride, kind.channels, kind.skips)  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        lab = rgb_to_lab(view(batch, self.size, self.views))
        features, output = self.paint(lab[:, :1])
        small = functional.adaptive_avg_pool2d(lab, (output.shape[2], output.shape[3]))
        lightness, ab = small[:, :1], small[:, 1:]
        coloured = (ab.abs() > GREY).flatten(1).any(1).float()
        losses: dict[str, Tensor]
        losses, found = self.objective(output, lightness, ab, coloured)
        self.signals = {**found, "coloured": coloured.mean(), "spread": spread(features)}
        return losses

    def paint(self, lightness: Tensor) -> tuple[Tensor, Tensor]:
        """Lightness [B,1,S,S] of 0..100 -> pooled features [B,D] and the head's output."""
        grey = normalise((lightness / 100).expand(-1, 3, -1, -1))
        maps = self.encoder(grey.contiguous(memory_format=torch.channels_last))
        return maps[-1].detach().mean((2, 3)), self.head(maps)

    def complaint(self) -> str | None:
        """Where next to no picture is coloured."""
        share = float(self.signals["coloured"]) if self.signals else 1.0
        if share >= LEAST_COLOURED:
            return None
        return f"{100 * share:.3g} % of the last batch is coloured: there are no colours to learn"

    @torch.no_grad()
    def samples(self, batch: Batch) -> Tensor:
        """Rows of grey, painted and true pictures of up to eight images, [24,3,S,S]; white pads."""
        whole = Views(1.0, ratio=(1e-3, 1e3), flip=0.0, colour=0.0, jitter=0.0, grey=0.0, blur=0.0)
        truth = view(batch, self.size, whole)[:ACROSS]
        lab = rgb_to_lab(truth)
        _, output = self.paint(lab[:, :1])
        ab = functional.interpolate(self.objective.colours(output), self.size, mode="bilinear")
        grey = lab_to_rgb(torch.cat([lab[:, :1], torch.zeros_like(lab[:, 1:])], 1))
        painted = lab_to_rgb(torch.cat([lab[:, :1], ab.to(lab.dtype)], 1))
        missing = ACROSS - len(truth)
        rows = [
            functional.pad(r, (0, 0) * 3 + (0, missing), value=1.0) for r in (grey, painted, truth)
        ]
        return torch.cat(rows)
