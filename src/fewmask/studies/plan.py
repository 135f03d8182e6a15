"""A study before any data is seen: its arms, budgets and cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fewmask.data.sources import MaskOptions
from fewmask.settings import FinetuneSettings, PretrainSettings

BudgetSize = float | int


@dataclass(frozen=True)
class Arm:
    """A starting point. `pretrain` is None where the encoder is taken as it is."""

    name: str
    sentence: str
    init: str
    weights: str | None
    allow_partial: bool
    pretrain: PretrainSettings | None


@dataclass(frozen=True)
class Cell:
    """One fine-tuning and its test."""

    arm: Arm
    budget: BudgetSize
    repeat: int


@dataclass(frozen=True)
class Plan:
    """A study before any data is seen. `finetune` holds every arm's settings but start and seed."""

    name: str
    title: str
    about: str
    pairs: str
    test: float
    budgets: tuple[BudgetSize, ...]
    repeats: dict[BudgetSize, int]
    baseline: str
    arms: tuple[Arm, ...]
    finetune: FinetuneSettings
    seed: int
    margin: float
    targets: tuple[float, ...]
    entries: dict[str, Any] = field(default_factory=dict)
    """The plan as TOML, with the flags in place of its own values."""
    test_pairs: str | None = None
    """A test set of the user's own; all pairs are then to train on."""
    allow_overlap: bool = False
    keep_test_images_in_pool: bool = False

    def cells(self) -> Iterator[Cell]:
        """Repeats outermost, so that a study stopped early compares all arms on equal terms."""
        for repeat in range(max(self.repeats.values())):
            for budget in self.budgets:
                if repeat < self.repeats[budget]:
                    yield from (Cell(arm, budget, repeat) for arm in self.arms)

    @property
    def mask_options(self) -> MaskOptions:
        f = self.finetune
        return MaskOptions(f.border, f.classes, f.ignore, f.mask_values)
