"""What turns pictures into features: encoders of runs and files, and one without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fewmask.checkpoint import start_key
from fewmask.data.cache import ImageCache
from fewmask.distances.kernels import Features
from fewmask.probing.command import described, started
from fewmask.probing.features import frozen_features
from fewmask.probing.weak import weak_features
from fewmask.progress import Report, silent
from fewmask.settings import ProbeSettings, SimilaritySettings
from fewmask.types import Resize, UserError

WEAK = "weak"
WEAK_SIZE = 96
"""Pixels a side at which pictures are kept for the weak features, and for nearest.png."""


@dataclass(frozen=True)
class Extractor:
    """Pictures -> features. `encoder` is None for the weak one; `key` says what is computed."""

    name: str
    size: int
    resize: Resize
    key: str
    encoder: nn.Module | None = None

    def features(
        self, cache: ImageCache, rows: Sequence[int], device: torch.device, report: Report = silent
    ) -> Features:
        """float64 [n,D] of rows of a pool. Raises UserError where they are not finite."""
        if self.encoder is None:
            found = weak_features(cache, rows, report)
        else:
            self.encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            found = frozen_features(self.encoder, cache, rows, self.size, device, report)
        if not torch.isfinite(found).all():
            raise UserError(
                f"the features of {self.name} are not finite numbers. The run that made it "
                "diverged: train it again with a lower --lr"
            )
        return found.double().numpy()


def open_extractors(settings: SimilaritySettings) -> list[Extractor]:
    """The extractors asked for, with their weights; without any asked for, those at hand.

    Raises UserError where a run, a file or its encoder's name is missing.
    """
    asked = settings.extractor or (*(("imagenet",) if settings.weights else ()), WEAK)
    found = [_weak(settings) if one == WEAK else _encoder(one, settings) for one in asked]
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--extractor: two are called {twice[0]}. Rename one's folder, or its file")
    return found


def _weak(settings: SimilaritySettings) -> Extractor:
    size, resize = settings.size or WEAK_SIZE, settings.resize or "square"
    return Extractor(WEAK, size, resize, f"{WEAK}/{size}/{resize}")


def _encoder(start: str, settings: SimilaritySettings) -> Extractor:
    if start == "scratch" or (start != "imagenet" and not Path(start).exists()):
        raise UserError(
            f"--extractor {start}: no such file or folder. Expected a run folder, a weights file, "
            "imagenet or weak"
        )
    asked = ProbeSettings(
        run=start,
        images=settings.target,
        out=settings.out,
        encoder=settings.encoder,
        weights=settings.weights if start == "imagenet" else None,
        allow_partial=settings.allow_partial,
        size=settings.size,
        resize=settings.resize,
        seed=settings.seed,
    )
    try:
        said = described(asked)
        encoder, _ = started(said)
    except UserError as mistake:
        raise UserError(*(f"--extractor {start}: {fault}" for fault in mistake.faults)) from None
    name = said.encoder or ""
    key = f"{start_key(start, asked.weights, name)}/{name}/{said.size}/{said.resize}"
    called = start if start == "imagenet" else Path(start).resolve().stem
    return Extractor(called, said.size or 0, said.resize or "square", key, encoder)


def scale_of(features: Features) -> float:
    """The root mean square of the target's features, which all sets are divided by; 1 if 0."""
    return float(np.sqrt(np.square(features).mean())) or 1.0
