"""How near a network computed in another way is to the original."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewmask.data.sources import MaskOptions, Pair, open_pairs
from fewmask.engines.runtimes import agreement
from fewmask.evaluation import score_pairs
from fewmask.inference import Model, Network
from fewmask.metrics import aggregate
from fewmask.types import UserError

TOLERANCE = 1e-3
"""Largest difference of a logit between an export and the original, over the logits' spread."""
AGREEMENT = 0.999
"""Share of the pixels in which an engine of full precision has to give the original's class."""
MOST_PAIRS = 64
"""Of the run's own pairs that an IoU is compared on."""
LOST = 0.003
"""IoU that int8 may lose before it is warned of."""


@dataclass(frozen=True)
class Loss:
    """What a quantised network loses: agreeing pixels, and IoU on the run's own pairs if there."""

    images: int
    agreement: float
    pairs: int = 0
    before: float | None = None
    after: float | None = None

    @property
    def too_much(self) -> bool:
        """Whether the IoU falls by more than LOST."""
        known = self.before is not None and self.after is not None
        return known and (self.before or 0) - (self.after or 0) > LOST

    def sentence(self) -> str:
        """The numbers in words."""
        said = (
            f"int8 gives {100 * self.agreement:.2f} % of the pixels of {self.images} images the "
            "original's class"
        )
        if self.before is None or self.after is None:
            return f"{said}; its IoU is not known, for the run's own pairs are gone"
        return (
            f"{said}; IoU on {self.pairs} of the run's own pairs {self.before:.4f} -> "
            f"{self.after:.4f} ({100 * (self.after - self.before):+.2f} points)"
        )


def difference(model: Model, network: Network, images: Tensor) -> float:
    """The largest difference of a logit on images [B,3,S,S], over the logits' spread."""
    with torch.inference_mode():
        wanted, found = model.segmenter(images), network(images)
    return float((found - wanted).abs().max() / wanted.std().clamp_min(1e-6))


def loss_of_int8(model: Model, network: Network, images: Tensor) -> Loss:
    """What int8 costs on images [N,3,S,S] and on the run's own pairs, validation ones first."""
    agreed = agreement(model.segmenter, network, images)
    pairs = own_pairs(model)
    if not pairs:
        return Loss(len(images), agreed)
    before, after = (_iou(model, one, pairs) for one in (model.segmenter, network))
    return Loss(len(images), agreed, len(pairs), before, after)


def _iou(model: Model, network: Network, pairs: Sequence[Pair]) -> float | None:
    labels = model.segmenter.labels
    found = score_pairs(network, model.geometry, pairs, labels, torch.device("cpu"))
    return aggregate(found, labels.names)[0]["iou"]


def own_pairs(model: Model) -> list[Pair]:
    """Pairs that the run was validated and trained on; none where they are not there any more."""
    told: dict[str, Any] = model.described["options"]
    named, values = (told[key] and tuple(told[key]) for key in ("classes", "mask_values"))
    options = MaskOptions(told["border"], named, told["ignore"], values)
    try:
        there = {pair.name: pair for pair in open_pairs(told["src"], options).items}
        split = json.loads((model.run / "split.json").read_text(encoding="utf-8"))
    except (UserError, OSError, ValueError):
        return []
    names = [one["name"] for part in ("val", "train") for one in split[part]]
    return [there[name] for name in names if name in there][:MOST_PAIRS]
