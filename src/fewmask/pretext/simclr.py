"""SimCLR: two random views of a picture are each other's only positive (Chen et al. 2020).

https://arxiv.org/abs/2002.05709
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask.augment import Views, normalise
from fewmask.constants import constant
from fewmask.distributed import gather_rows
from fewmask.losses import CONTRASTIVE_LOSSES
from fewmask.pretext.contract import Pool, PretextModule, pooled, spread, view, width_of
from fewmask.types import Batch, UserError


@dataclass(frozen=True)
class SimCLR:
    """SimCLR's hyper-parameters."""

    name: ClassVar[str] = "simclr"

    temperature: float = 0.2
    """Temperature of NT-Xent. 0.2 suits small batches and short runs; the paper's long runs on
    CIFAR-10 with large batches use 0.5."""
    hidden: tuple[int, ...] = ()
    """Widths of the projection head's hidden layers, separated by commas (default: one, as wide as
    the encoder's output)."""
    projection: int = 128
    """Width of the projection, in which views are compared."""
    views: Views = field(default_factory=Views)
    """The random views."""
    loss: Literal["nt_xent", "dcl"] | None = None
    """nt_xent (Chen's, the default), or dcl, which leaves the positive out of the denominator and
    so learns faster from batches below about 512 (Yeh et al. 2021, arXiv:2110.06848)."""

    def __post_init__(self) -> None:
        if self.loss not in (None, *CONTRASTIVE_LOSSES):
            raise UserError(f"--loss {self.loss}: expected {' or '.join(CONTRASTIVE_LOSSES)}")
        if not 0 < self.temperature < torch.inf:
            raise UserError(f"--temperature {self.temperature}: expected a number above 0")
        if min(self.projection, *self.hidden, 1) < 1:
            raise UserError("--projection and --hidden: expected widths above 0")

    def task(self, encoder: nn.Module, size: int, pool: Pool) -> SimCLRTask:
        """The task on an encoder of smp's contract, with views of `size` pixels a side."""
        return SimCLRTask(self, encoder, size)


class SimCLRTask(PretextModule):
    """Batch -> NT-Xent (or DCL) between two views of each picture, over all processes' pictures.

    Batch norm, if the encoder has any, takes its statistics over each process' own views: with it
    two processes are close to one process with the whole batch, without it they are equal.
    """

    def __init__(self, config: SimCLR, encoder: nn.Module, size: int) -> None:
        super().__init__(encoder)
        self.config, self.size = config, size
        width = width_of(encoder)
        widths = (width, *(config.hidden or (width,)))
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], config.projection))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        first, second = self.project(torch.cat(self.two_views(batch))).chunk(2)
        name = self.config.loss or "nt_xent"
        loss = CONTRASTIVE_LOSSES[name](
            first,
            second,
            self.config.temperature,
            start=batch.start,
            all_first=gather_rows(first),
            all_second=gather_rows(second),
        )
        return {name: loss}

    def two_views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Two [B,3,size,size] of values 0 to 1; each picture with random parameters of its own."""
        size, views = self.size, self.config.views
        return view(batch, size, views), view(batch, size, views, stream=1)

    def project(self, images: Tensor) -> Tensor:
        """[B,3,H,W] of values 0 to 1 -> [B,projection], not normalised."""
        features = pooled(self.encoder, normalise(images))
        projected: Tensor = self.head(features)
        self.signals = {
            "accuracy": agreement(projected),
            "chance": constant(1 / (len(projected) - 1), features),
            "spread": spread(features),
        }
        return projected


@torch.no_grad()
def agreement(projected: Tensor) -> Tensor:
    """Share of views whose nearest neighbour is their own other view.

    `projected` [2N,D] holds the first views and then the second ones.
    """
    with torch.autocast(projected.device.type, enabled=False):
        z = functional.normalize(projected.float(), dim=1)
        similar = z @ z.T
    similar.fill_diagonal_(-torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return (similar.argmax(dim=1) == partner).float().mean()
