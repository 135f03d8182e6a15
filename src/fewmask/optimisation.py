"""Optimisers, and how their rates run: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Optimisation:
    """How the weights move. Rates are ratios of `lr`."""

    name: str
    lr: float
    weight_decay: float
    schedule: str = "cosine"
    warmup: float = 0.0
    """Share of the steps, 0 to 1."""
    beta1: float = 0.9
    """Of adam and adamw: the memory of the gradient's mean."""

    def factor(self, step: int, steps: int) -> float:
        """What the rates are multiplied by at a step, 0 to 1."""
        rise = round(self.warmup * steps)
        if step < rise:
            return (step + 1) / rise
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    def build(self, groups: Iterable[tuple[float, nn.Module]]) -> torch.optim.Optimizer:
        """An optimiser over (rate as a ratio of lr, module); no decay on biases and norms."""
        parameters: list[dict[str, Any]] = []
        for ratio, module in groups:
            weights = [p for p in module.parameters() if p.requires_grad]
            matrices = [p for p in weights if p.ndim > 1]
            others = [p for p in weights if p.ndim <= 1]
            for decay, chosen in ((self.weight_decay, matrices), (0.0, others)):
                group: dict[str, Any] = {"params": chosen, "weight_decay": decay}
                group |= {"lr": self.lr * ratio, "base_lr": self.lr * ratio}
                if self.name == "lars":
                    # timm's adapts only what decays; LARS adapts all but biases and norms.
                    group["always_adapt"] = chosen is matrices
                if chosen:
                    parameters.append(group)
        return _optimizer(self.name, parameters, self.beta1)


def _optimizer(name: str, parameters: list[dict[str, Any]], beta1: float) -> torch.optim.Optimizer:
    if name == "lars":
        from timm.optim.lars import Lars

        return Lars(parameters, momentum=0.9)
    if name == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, fused=True)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    chosen: torch.optim.Optimizer = kinds[name](parameters, betas=(beta1, 0.999), fused=True)
    return chosen
