"""BYOL: predict a slowly moving teacher's projection of the other view (Grill et al. 2020).

https://arxiv.org/abs/2006.07733
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask.augment import Views, normalise
from fewmask.pretext.contract import Pool, PretextModule, pooled, spread, view, width_of
from fewmask.pretext.momentum import default_momentum, follow, retrieved, rising, teacher_of
from fewmask.types import Batch, UserError


@dataclass(frozen=True)
class Byol:
    """BYOL's hyper-parameters."""

    name: ClassVar[str] = "byol"

    momentum: float | None = None
    """Share of itself that the teacher keeps at the first step, 0 to 1; it rises to 1 along half a
    cosine (default: 1 - 1/(1 + 0.45 sqrt(steps)), which is the paper's 0.996 for its longest run
    and 0.93 for 1000 steps)."""
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers of projector and predictor, separated by commas (default: one,
    twice as wide as the encoder's output: the paper's 4096 for a ResNet-50)."""
    projection: int = 256
    """Width of the projection, which is predicted."""
    output_norm: Literal["batch", "none"] = "batch"
    """Batch norm after the projector, or none (the paper's). Without it all projections share a
    direction, and short runs predict that alone."""
    views: Views = field(default_factory=Views)
    """The random views."""

    def __post_init__(self) -> None:
        if self.momentum is not None and not 0 <= self.momentum <= 1:
            raise UserError(f"--momentum {self.momentum}: expected a number of 0 to 1")
        if self.output_norm not in ("batch", "none"):
            raise UserError(f"--output-norm {self.output_norm}: expected batch or none")
        if min(self.projection, *self.hidden, 1) < 1:
            raise UserError("--projection and --hidden: expected widths above 0")

    def task(self, encoder: nn.Module, size: int, pool: Pool) -> ByolTask:
        """The task on an encoder of smp's contract, with views of `size` pixels a side."""
        return ByolTask(self, encoder, size, pool)


class ByolTask(PretextModule):
    """Batch -> squared distance of predictions from the teacher's projections of the other view.

    Both views go through the networks together, so a batch norm takes its statistics over both
    (the paper's code: over each view apart) and over each process' own pictures. The views are of
    one kind; the paper's differ in blur and solarisation.
    """

    def __init__(self, config: Byol, encoder: nn.Module, size: int, pool: Pool) -> None:
        super().__init__(encoder)
        self.config, self.size = config, size
        width = width_of(encoder)
        hidden = config.hidden or (2 * width,)
        self.projector = mlp((width, *hidden, config.projection))
        if config.output_norm == "batch":
            self.projector.append(nn.BatchNorm1d(config.projection, affine=False))
        self.predictor = mlp((config.projection, *hidden, config.projection))
        self.teacher_encoder = teacher_of(encoder)
        self.teacher_projector = teacher_of(self.projector)
        first = config.momentum
        self.momentum = default_momentum(pool.steps) if first is None else first

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = [view(batch, self.size, self.config.views, stream) for stream in (0, 1)]
        images = normalise(torch.cat(views))
        features = pooled(self.encoder, images)
        predictions = self.predictor(self.projector(features))
        with torch.no_grad():
            projections = self.teacher_projector(pooled(self.teacher_encoder, images))
        targets = torch.cat(projections.chunk(2)[::-1])  # each prediction's is the other view's
        distances = squared_distances(predictions, targets)
        accuracy, chance = retrieved(predictions[: len(batch.images)], targets[: len(batch.images)])
        self.signals = {
            "spread": spread(features),
            "cosine": 1 - distances.detach().mean() / 2,
            "accuracy": accuracy,
            "chance": chance,
        }
        return {"byol": 2 * distances.mean()}  # the mean over pictures of both directions' sum

    def after_step(self, step: int, steps: int) -> None:
        """Move the teacher towards what has just been trained."""
        momentum = rising(self.momentum, step, steps)
        follow(self.teacher_encoder, self.encoder, momentum)
        follow(self.teacher_projector, self.projector, momentum)


def mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of these widths, with batch norm and ReLU after all but the last, unbiased."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=False))


def squared_distances(predictions: Tensor, targets: Tensor) -> Tensor:
    """[n] of [n,D]: || p / |p| - t / |t| ||^2 = 2 - 2 cos(p, t), 0 to 4 (Grill et al., eq. 2)."""
    kind = torch.promote_types(predictions.dtype, torch.float32)
    with torch.autocast(predictions.device.type, enabled=False):
        cosines = functional.cosine_similarity(predictions.to(kind), targets.to(kind), dim=1)
        return 2 - 2 * cosines
