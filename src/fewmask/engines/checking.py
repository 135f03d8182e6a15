"""How near a network computed in another way is to the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewmask.data.images import Undecodable
from fewmask.data.looks import pixel_hash
from fewmask.data.sources import MaskOptions, Pair, open_pairs
from fewmask.engines.runtimes import NEAR, agreement, halves
from fewmask.evaluation import score_pairs
from fewmask.inference import Model, Network
from fewmask.metrics import aggregate
from fewmask.runs import read_split
from fewmask.types import UserError

TOLERANCE = 1e-3
"""Largest difference of a logit between an export and the original, over the logits' spread."""
AGREEMENT = 0.999
"""Share of the pixels in which an engine of full precision has to give the original's class."""
MOST_PAIRS = 64
"""Of the run's own pairs that an IoU is compared on."""
DROP = 0.003
"""IoU that int8 may lose before it is warned of."""


@dataclass(frozen=True)
class AccuracyDrop:
    """What int8 costs: the share of agreeing pixels, and IoU on the run's own pairs, if known."""

    images: int
    agreement: float
    pairs: int = 0
    before: float | None = None
    after: float | None = None
    why_unknown: str = ""

    @property
    def too_large(self) -> bool:
        """Whether the IoU falls by more than DROP; where it is unknown, by the agreement."""
        if self.before is None or self.after is None:
            return self.agreement < NEAR
        return self.before - self.after > DROP

    def sentence(self) -> str:
        """The numbers in words; a warning where it is too large."""
        said = (
            f"{'warning: ' * self.too_large}int8 gives {100 * self.agreement:.2f} % of the pixels "
            f"of {self.images} images the original's class"
        )
        if self.before is None or self.after is None:
            return f"{said}; what it costs in IoU is not known ({self.why_unknown})"
        return (
            f"{said}; IoU on {self.pairs} of the run's own pairs {self.before:.4f} -> "
            f"{self.after:.4f} ({100 * (self.after - self.before):+.2f} points)"
        )


def difference(model: Model, network: Network, images: Tensor) -> float:
    """The largest difference of a logit on images [B,3,S,S], over the logits' spread."""
    with torch.inference_mode():
        wanted, found = model.segmenter(images), network(images)
    return float((found - wanted).abs().max() / wanted.std().clamp_min(1e-6))


def drop_of_int8(model: Model, network: Network, images: Tensor) -> AccuracyDrop:
    """What int8 costs on those of images [N,3,S,S] that it was not calibrated on, and on the run's
    own pairs, validation ones first.
    """
    others = halves(images)[1]
    agreed = agreement(model.segmenter, network, others)
    try:
        pairs = own_pairs(model)
        before, after = (_iou(model, one, pairs) for one in (model.segmenter, network))
    except (UserError, Undecodable, OSError, ValueError, KeyError) as problem:
        why = " ".join(str(problem).split())[:200]
        return AccuracyDrop(len(others), agreed, why_unknown=why)
    why = "its pairs hold no foreground" if before is None or after is None else ""
    return AccuracyDrop(len(others), agreed, len(pairs), before, after, why)


def _iou(model: Model, network: Network, pairs: Sequence[Pair]) -> float | None:
    labels = model.labels
    found = score_pairs(network, model.geometry, pairs, labels, torch.device("cpu"))
    return aggregate(found, labels.names)[0]["iou"]


def own_pairs(model: Model) -> list[Pair]:
    """Pairs that the run was validated and trained on, validation ones first, as they were then.

    Raises UserError where none of them are there any more.
    """
    told: dict[str, Any] = model.described["options"]
    named, values = (told[key] and tuple(told[key]) for key in ("classes", "mask_values"))
    options = MaskOptions(told["border"], named, told["ignore"], values)
    there = {pair.name: pair for pair in open_pairs(told["src"], options).items}
    parts = read_split(model.run, "Bring the file back, or name --images")
    split = [(one["name"], one["image"]) for name in ("val", "train") for one in parts[name]]
    found: list[Pair] = []
    for name, image in split:
        pair = there.get(name)
        if pair and len(found) < MOST_PAIRS and pixel_hash(pair.image.pixels()) == image:
            found.append(pair)
    if not found:
        raise UserError(f"{told['src']}: holds none of the pairs that the run was trained on")
    return found
