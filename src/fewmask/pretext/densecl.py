"""DenseCL: contrast between whole pictures and between their parts (Wang et al. 2021).

https://arxiv.org/abs/2011.09157
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask.augment import Views, normalise
from fewmask.distributed import gather_rows
from fewmask.pretext.contract import Pool, PretextModule, spread, view, width_of
from fewmask.pretext.joint import decoder_for, own_flag
from fewmask.pretext.momentum import default_momentum, follow, teacher_of
from fewmask.types import Batch, UserError

FEWEST = 5
"""Cells a side that make a map dense enough to match its parts."""


@dataclass(frozen=True)
class DenseCL:
    """DenseCL's hyper-parameters."""

    name: ClassVar[str] = "densecl"

    dense_weight: float = 0.5
    """Weight of the dense loss (the paper's lambda, 0 to 1); the global one has the rest."""
    temperature: float = 0.2
    """Temperature of both losses."""
    projection: int = 128
    """Width of the projections, in which pictures and their parts are compared."""
    grid: int = 7
    """Parts along a side, at most: a finer map is averaged down to it."""
    queue: int | None = None
    """Pictures whose keys are kept as negatives (default: whole batches, up to the paper's 65536,
    to the pool's images and to what the teacher remembers, batch / (1 - momentum))."""
    momentum: float | None = None
    """The teacher's momentum (default: by the run's length, 1 - 1 / (1 + 0.45 sqrt(steps)); the
    paper has 0.999 for a million steps)."""
    with_decoder: str | None = None
    """Pre-train this segmentation decoder (unet, fpn, ...) together with the encoder: the parts are
    then those of its output. fewmask finetune --decoder of that name starts from both."""
    crop_min: float = 0.2
    """Smallest share of the image's area that a view keeps (0 to 1)."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    colour: float = 0.5
    """Strength of the colour jitter: at 0.5 brightness, contrast and saturation change by a factor
    of up to 1 +- 0.4, hue by up to +- 0.1 of the circle, as in MoCo v2."""
    grey: float = 0.2
    """Probability that a view is turned grey."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""

    def __post_init__(self) -> None:
        faults = []
        if not 0 <= self.dense_weight <= 1:
            faults.append(f"--dense-weight {self.dense_weight}: expected a share, 0 to 1")
        if not 0 < self.temperature < torch.inf:
            faults.append(f"--temperature {self.temperature}: expected a number above 0")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            faults.append(f"--momentum {self.momentum}: expected a share, 0 up to but not 1")
        for flag in ("projection", "grid", "queue"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                faults.append(f"--{flag} {value}: expected a number above 0")
        if faults:
            raise UserError(*faults)
        self.views()
        if self.with_decoder is not None:
            from fewmask import decoders

            with own_flag():
                decoders.component(self.with_decoder)  # names the near ones

    def views(self) -> Views:
        """The random views, those of MoCo v2."""
        return Views(
            self.crop_min, flip=self.flip, colour=self.colour, grey=self.grey, blur=self.blur
        )

    def task(self, encoder: nn.Module, size: int, pool: Pool) -> DenseCLTask:
        """The task on an encoder of smp's contract, with views of `size` pixels a side.

        Raises UserError where the encoder and `with_decoder` don't go together at this size.
        """
        return DenseCLTask(self, encoder, size, pool)


class Projected(NamedTuple):
    """What one branch, student or teacher, makes of views; nothing is normalised."""

    features: Tensor
    """[B,W], the mean over the encoder's coarsest map."""
    whole: Tensor
    """[B,D], the pictures' projections."""
    parts: Tensor
    """[B,D,S*S], their parts' projections."""
    matched: Tensor
    """[B,C,S*S], the encoder's own features of the parts, by which they are matched."""


class DenseCLTask(PretextModule):
    """Batch -> InfoNCE of whole views and of their parts against queues of a teacher's keys.

    The parts of a picture's second view that match those of its first are found by the encoder's
    own features, without labels or geometry.

    Parts are taken from the coarsest map of at least five cells a side: the paper's stride of 32
    from 160 pixels on (7 x 7 at 224), a stride of 16 from 80 on (6 x 6 at 96). The encoder's last
    stage then learns from the whole views alone.

    The queues hold the batch's own keys as well, and begin empty: in a short run the paper's random
    keys would be easy negatives for too long. Keys that show the query's own picture, of this batch
    or of an older one, don't count as negatives.

    The teacher's batch norms take the statistics of its own batch and nothing is shuffled. MoCo's
    shuffle works between the batches of several GPUs only; without it the statistics that query
    and key share can tell the model which keys are of this batch (He et al. 2020, sec. 3.3), though
    not which of them is the query's own.
    """

    keys: Tensor
    part_keys: Tensor
    rows: Tensor
    place: Tensor

    def __init__(self, config: DenseCL, encoder: nn.Module, size: int, pool: Pool) -> None:
        super().__init__(encoder)
        self.config, self.size, self.views = config, size, config.views()
        channels: list[int] = list(encoder.out_channels)  # type: ignore[arg-type]
        self.level = dense_level(channels, size)
        width, part_width = width_of(encoder), channels[self.level]
        if config.with_decoder is not None:
            self.decoder, part_width = decoder_for(encoder, config.with_decoder, size)
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, config.projection)
        )
        # As wide within as the encoder is, also on a decoder of few channels.
        self.part_head = nn.Sequential(
            nn.Conv2d(part_width, width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, config.projection, 1),
        )
        self.teacher = teacher_of(self.student())
        given = config.momentum
        self.momentum = default_momentum(pool.steps) if given is None else given
        length = config.queue or queue_length(pool, self.momentum)
        self.register_buffer("keys", torch.zeros(length, config.projection))
        self.register_buffer("part_keys", torch.zeros(length, config.projection))
        self.register_buffer("rows", torch.full((length,), -1, dtype=torch.int64))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def student(self) -> nn.ModuleDict:
        """What is trained; the teacher is a copy of it."""
        found = {"encoder": self.encoder, "head": self.head, "part_head": self.part_head}
        if self.decoder is not None:
            found["decoder"] = self.decoder
        return nn.ModuleDict(found)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        query = self.project(self.student(), view(batch, self.size, self.views))
        with torch.no_grad():
            key = self.project(self.teacher, view(batch, self.size, self.views, stream=1))
        rows = batch.rows.to(self.rows.device)
        with torch.autocast(batch.images.device.type, enabled=False):
            self.remember(key, rows)
            left_out = (rows[:, None] == self.rows) | (self.rows < 0)
            loss, first = info_nce(
                query.whole, key.whole, self.keys, left_out, self.config.temperature
            )
            matches = best_matches(query.matched, key.matched)
            positives = key.parts.gather(2, matches[:, None].expand_as(key.parts))
            part_loss, part_first = info_nce(
                query.parts.transpose(1, 2),
                positives.transpose(1, 2),
                self.part_keys,
                left_out[:, None],
                self.config.temperature,
            )
        self.signals = {
            "accuracy": first,
            "part_accuracy": part_first,
            "chance": (1 / (1 + (~left_out).sum(dim=1))).mean(),
            "spread": spread(query.features),
        }
        weight = self.config.dense_weight
        return {"whole": (1 - weight) * loss, "parts": weight * part_loss}

    def project(self, branch: nn.ModuleDict | nn.Module, images: Tensor) -> Projected:
        """Views [B,3,H,W] of values 0 to 1 through the student or the teacher."""
        own: Mapping[str, Any] = dict(branch.named_children())
        x = normalise(images).contiguous(memory_format=torch.channels_last)
        maps = own["encoder"](x)
        features = maps[-1].mean(dim=(2, 3))
        dense = own["decoder"](maps) if "decoder" in own else maps[self.level]
        side = min(self.config.grid, *dense.shape[2:])
        parts = own["part_head"](functional.adaptive_avg_pool2d(dense, side))
        matched = functional.adaptive_avg_pool2d(maps[self.level], side)
        return Projected(features, own["head"](features), parts.flatten(2), matched.flatten(2))

    @torch.no_grad()
    def remember(self, key: Projected, rows: Tensor) -> None:
        """Everybody's keys in place of the queues' oldest."""
        parts = key.parts.float().mean(dim=2)
        found = (functional.normalize(new.float(), dim=1) for new in (key.whole, parts))
        whole, parts = (gather_rows(new)[-len(self.keys) :] for new in found)
        everyone = gather_rows(rows[:, None])[-len(self.keys) :, 0]
        places = self.place + torch.arange(len(everyone), device=rows.device)
        places = places % len(self.keys)
        self.keys.index_copy_(0, places, whole)
        self.part_keys.index_copy_(0, places, parts)
        self.rows.index_copy_(0, places, everyone)
        self.place.copy_((self.place + len(everyone)) % len(self.keys))

    def after_step(self, step: int, steps: int) -> None:
        """Move the teacher."""
        follow(self.teacher, self.student(), self.momentum)


def info_nce(
    queries: Tensor, positives: Tensor, keys: Tensor, left_out: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """InfoNCE, and how often the positive is the most similar of all (Wang et al., eq. 1 and 2).

    Mean over queries of -log( exp(q.k+ / t) / (exp(q.k+ / t) + sum over keys exp(q.k / t)) ), all
    of length 1. queries, positives [...,D], not normalised; keys [Q,D], of length 1; left_out
    [...,Q], or what expands to it, True for the keys that are no negatives of the query.
    """
    q = functional.normalize(queries.float(), dim=-1)
    positive = (q * functional.normalize(positives.float(), dim=-1)).sum(dim=-1)
    negative = (q @ keys.T).masked_fill(left_out, -torch.inf)
    first = (positive > negative.amax(dim=-1)).float().mean()
    # -log of the positive's share in the softmax.
    others = (negative / temperature).logsumexp(dim=-1)
    own = positive / temperature
    return (torch.logaddexp(own, others) - own).mean(), first


@torch.no_grad()
def best_matches(first: Tensor, second: Tensor) -> Tensor:
    """For each part of `first` [B,C,N] the most similar of `second` [B,C,M], by cosine: [B,N]."""
    a = functional.normalize(first.float(), dim=1)
    b = functional.normalize(second.float(), dim=1)
    return (a.transpose(1, 2) @ b).argmax(dim=2)


def dense_level(channels: list[int], size: int) -> int:
    """The number of the coarsest map of at least five cells a side; else of the finest there is."""
    own = [i for i in range(1, len(channels)) if channels[i]]
    fitting = [i for i in own if -(-size // 2**i) >= FEWEST]
    return fitting[-1] if fitting else own[0]


def queue_length(pool: Pool, momentum: float) -> int:
    """Whole batches of keys, none older than what the teacher remembers; at least one batch.

    As in the paper's run, where 65536 keys are 256 steps and the teacher remembers 1000.
    """
    remembered = pool.batch_size / (1 - momentum)
    most = min(65536, pool.images, remembered)
    return max(int(most / pool.batch_size), 1) * pool.batch_size
