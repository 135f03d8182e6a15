"""DINO: small crops predict a teacher's soft assignment of large ones (Caron et al. 2021).

https://arxiv.org/abs/2104.14294
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fewmask.augment import Views, normalise
from fewmask.distributed import gather_rows
from fewmask.pretext.contract import Pool, PretextModule, pooled, spread, view, width_of
from fewmask.pretext.momentum import default_momentum, follow, retrieved, rising, teacher_of
from fewmask.types import Batch, UserError


@dataclass(frozen=True)
class GlobalViews(Views):
    """DINO's large crops; small ones differ in their share of the area alone."""

    crop_min: float = 0.4
    """Smallest share of the image's area that a large crop keeps (0 to 1)."""
    crop_max: float = 1.0
    """Largest share of the image's area that a large crop keeps (0 to 1)."""
    colour: float = 0.5
    """Strength s of the colour jitter: brightness, contrast and saturation change by a factor of
    up to 1 +- 0.8 s, hue by up to +- 0.2 s of the circle (DINO: 0.4, 0.4, 0.2 and 0.1)."""


@dataclass(frozen=True)
class Dino:
    """DINO's hyper-parameters."""

    name: ClassVar[str] = "dino"

    local_crops: int = 8
    """Small crops of each picture, which the student alone sees."""
    local_size: int | None = None
    """Side of the small crops in pixels (default: 96/224 of --size, in whole strides of the
    encoder)."""
    local_min: float = 0.05
    """Smallest share of the image's area that a small crop keeps (0 to 1)."""
    local_max: float = 0.4
    """Largest share of the image's area that a small crop keeps (0 to 1)."""
    prototypes: int | None = None
    """Outputs of the head, over which assignments are spread (default: the power of two nearest to
    the number of images, 64 to 65536; the paper's is 65536)."""
    hidden: tuple[int, ...] = (2048, 2048)
    """Widths of the head's hidden layers, separated by commas."""
    projection: int = 256
    """Width of the head's bottleneck, in which features are compared with prototypes."""
    temperature: float = 0.1
    """The student's temperature."""
    teacher_start: float = 0.04
    """The teacher's temperature at the first step."""
    teacher_temperature: float = 0.07
    """The teacher's temperature after its warm-up."""
    teacher_warmup: float = 0.3
    """Share of the steps in which the teacher's temperature rises (0 to 1)."""
    head_norm: Literal["batch", "none"] = "batch"
    """Batch norm after the head's hidden layers, or none (the paper's choice for transformers)."""
    centring: float | None = None
    """Memory of the running mean of the teacher's outputs, which is taken off them: 0 (the mean of
    this batch) to 1 (default: a 25th of the teacher's own memory, so 0.9 where --momentum is the
    paper's 0.996, and 0 where it is below 0.96)."""
    freeze_last: float = 0.01
    """Share of the steps, the first ones, in which the prototypes stay as they are (0 to 1)."""
    momentum: float | None = None
    """Share of itself that the teacher keeps at the first step, 0 to 1; it rises to 1 along half a
    cosine (default: 1 - 1/(1 + 0.45 sqrt(steps)), which is 0.994 for the paper's shortest run, that
    has 0.996, and 0.93 for 1000 steps)."""
    views: GlobalViews = field(default_factory=GlobalViews)
    """The large crops, and the colours of all."""

    def __post_init__(self) -> None:
        faults = [
            f"--{name.replace('_', '-')} {value}: expected a number above 0"
            for name in ("temperature", "teacher_start", "teacher_temperature")
            if not 0 < (value := getattr(self, name)) < math.inf
        ]
        faults += [
            f"--{name.replace('_', '-')} {value}: expected a number of 0 to 1"
            for name in ("teacher_warmup", "centring", "freeze_last", "momentum")
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1
        ]
        if not 0 < self.local_min <= self.local_max <= 1:
            faults.append(
                f"--local-min {self.local_min:g} and --local-max {self.local_max:g} must satisfy "
                "0 < local_min <= local_max <= 1; they are shares of the image's area"
            )
        if self.head_norm not in ("batch", "none"):
            faults.append(f"--head-norm {self.head_norm}: expected batch or none")
        if self.local_crops < 0:
            faults.append(f"--local-crops {self.local_crops}: expected 0 or more")
        if self.local_size is not None and self.local_size < 8:
            faults.append(f"--local-size {self.local_size}: expected 8 pixels or more")
        if self.prototypes is not None and self.prototypes < 2:
            faults.append(f"--prototypes {self.prototypes}: expected at least 2")
        if min(self.projection, *self.hidden, 1) < 1:
            faults.append("--projection and --hidden: expected widths above 0")
        if faults:
            raise UserError(*faults)

    def task(self, encoder: nn.Module, size: int, pool: Pool) -> DinoTask:
        """The task on an encoder of smp's contract, with large crops of `size` pixels a side."""
        return DinoTask(self, encoder, size, pool)


def default_prototypes(images: int) -> int:
    """The power of two nearest to the number of images (on a log scale), 64 to 65536."""
    return 1 << min(max(round(math.log2(max(images, 1))), 6), 16)


def default_centring(momentum: float) -> float:
    """The centre's memory for a teacher's: a 25th of its steps, at least the one batch.

    1 - 25 (1 - momentum) or 0: 0.9 for 0.996, the paper's two numbers. The centre has to find the
    teacher's mean output much sooner than the teacher moves.
    """
    return max(0.0, 1 - 25 * (1 - momentum))


def default_local_size(size: int, stride: int) -> int:
    """96/224 of `size` in whole strides, at least one: 96 at 224 pixels and stride 32."""
    return stride * max(1, round(size * 96 / 224 / stride))


class DinoTask(PretextModule):
    """Batch -> cross-entropy of the student's assignments of all crops to the teacher's of two.

    The networks see the mean over the coarsest map, not a class token, so the encoder may be
    convolutional or a transformer. Crops of one size go through them together. What is kept is the
    student (the paper: the teacher; they meet at the end, where the rate is zero).
    """

    center: Tensor

    def __init__(self, config: Dino, encoder: nn.Module, size: int, pool: Pool) -> None:
        super().__init__(encoder)
        self.config, self.size, self.steps = config, size, pool.steps
        stride = int(encoder.output_stride)  # type: ignore[arg-type]
        self.local_size = config.local_size or default_local_size(size, stride)
        self.local_views = replace(
            config.views, crop_min=config.local_min, crop_max=config.local_max
        )
        prototypes = config.prototypes or default_prototypes(pool.images)
        widths = (width_of(encoder), *config.hidden, config.projection)
        self.head = Head(widths, prototypes, config.head_norm == "batch")
        self.teacher_encoder = teacher_of(encoder)
        self.teacher_head = teacher_of(self.head)
        self.register_buffer("center", torch.zeros(prototypes))
        first = config.momentum
        self.momentum = default_momentum(pool.steps) if first is None else first
        given = config.centring
        self.centring = default_centring(self.momentum) if given is None else given

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        n = len(batch.images)
        views = [view(batch, self.size, self.config.views, stream) for stream in (0, 1)]
        large = normalise(torch.cat(views))
        features = pooled(self.encoder, large)
        free = batch.step >= round(self.config.freeze_last * self.steps)
        student = self.head(torch.cat([features, *self.small_features(batch)]), free)
        student = student.unflatten(0, (-1, n))
        with torch.no_grad():
            outputs = self.teacher_head(pooled(self.teacher_encoder, large)).unflatten(0, (2, n))
            self.move_center(outputs, batch.step)
            teacher = self.assigned(outputs, batch.step)
            accuracy, chance = retrieved(student[0] - self.center, outputs[1] - self.center)
        loss = assignment_loss(student, teacher, self.config.temperature)
        self.signals = {
            "spread": spread(features),
            "teacher_entropy": entropy(teacher).mean() / math.log(teacher.shape[2]),
            "constant_answer": entropy(teacher.mean((0, 1))),
            "accuracy": accuracy,
            "chance": chance,
        }
        return {"dino": loss}

    def small_features(self, batch: Batch) -> list[Tensor]:
        """The student's features [local_crops*B,D] of the small crops, in a list; or no item."""
        if not self.config.local_crops:
            return []
        streams = range(2, 2 + self.config.local_crops)
        small = [view(batch, self.local_size, self.local_views, stream) for stream in streams]
        with running_statistics_kept(self.encoder):
            return [pooled(self.encoder, normalise(torch.cat(small)))]

    def assigned(self, outputs: Tensor, step: int) -> Tensor:
        """The teacher's outputs [2,B,K], centred and sharpened: probabilities."""
        c = self.config
        risen = min(1.0, step / max(1.0, c.teacher_warmup * self.steps))
        temperature = c.teacher_start + (c.teacher_temperature - c.teacher_start) * risen
        return ((outputs - self.center) / temperature).softmax(dim=2)

    def move_center(self, outputs: Tensor, step: int) -> None:
        """The running mean of the teacher's outputs [2,B,K], over all processes' pictures.

        A plain mean at first, and with this batch in it before this batch is centred. (The paper's
        code starts from zero and centres before it moves. In a short run the outputs are then all
        but alike until the centre has found them, and the student has learnt that by then.)
        """
        if self.training:
            ours = outputs.mean((0, 1)).unsqueeze(0)
            memory = min(self.centring, step / (step + 1))
            self.center.lerp_(gather_rows(ours).mean(0), 1 - memory)

    def after_step(self, step: int, steps: int) -> None:
        """Move the teacher towards what has just been trained."""
        momentum = rising(self.momentum, step, steps)
        follow(self.teacher_encoder, self.encoder, momentum)
        follow(self.teacher_head, self.head, momentum)


class Head(nn.Module):
    """Features [n,D] -> cosines [n,K] of -1 to 1 between their projections and K prototypes.

    Linear layers with GELU between; weights as in the paper's code. The prototypes are a linear
    layer whose rows have length 1 (weight norm with its gain fixed at 1).
    """

    def __init__(self, widths: tuple[int, ...], prototypes: int, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise(widths[:-1]):
            norm = [nn.BatchNorm1d(after)] if batch_norm else []
            layers += [nn.Linear(before, after), *norm, nn.GELU()]
        self.project = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
        for layer in self.project:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Linear(widths[-1], prototypes, bias=False)

    def forward(self, features: Tensor, free: bool = True) -> Tensor:
        projected = self.project(features)
        # In float32: the teacher's temperature multiplies a rounding error by 25.
        with torch.autocast(features.device.type, enabled=False):
            directions = functional.normalize(self.prototypes.weight, dim=1)
            if not free:  # a gradient of zero, not none: several processes wait for each
                directions = directions.detach() + 0 * directions
            return functional.linear(functional.normalize(projected.float(), dim=1), directions)


def assignment_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over pictures and pairs of crops of -sum over k of p_teacher(k) log p_student(k).

    `student` [V,B,K] holds the outputs of all crops, `teacher` [T,B,K] the probabilities of the
    first T of them. A crop is not compared with itself: T (V - 1) pairs (Caron et al., eq. 3).
    """
    with torch.autocast(student.device.type, enabled=False):
        logs = (student / temperature).log_softmax(dim=2)
        # Products are linear in the crops, so the sum over all pairs is the product of the sums.
        pairs = (teacher.sum(0) * logs.sum(0)).sum(1)
        same = (teacher * logs[: len(teacher)]).sum((0, 2))
        return (same - pairs).mean() / (len(teacher) * (len(student) - 1))


def entropy(probabilities: Tensor) -> Tensor:
    """[...] of [...,K]: -sum p log p in nats, 0 (one) to log K (uniform)."""
    found: Tensor = torch.special.entr(probabilities).sum(-1)
    return found


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Within the block the batch norms' running statistics stay as they are.

    Small crops would else be half of them, and the encoder is later used on whole images.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
