"""What `fewmask suggest` works on: the pictures, and what they are compared by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewmask.checkpoint import start_key
from fewmask.data.cache import ImageCache, cached_images
from fewmask.data.pools import cached_pool
from fewmask.data.sources import ImageSet, PairSet
from fewmask.inference import Model, trained_hashes
from fewmask.probing import command as probing
from fewmask.probing.features import frozen_features
from fewmask.probing.splits import Rows
from fewmask.probing.weak import weak_features
from fewmask.progress import progress
from fewmask.settings import ProbeSettings, SuggestSettings
from fewmask.suggesting.candidates import Candidates, candidates, image_hashes
from fewmask.types import Transfer, UserError

WEAK_SIZE = 64
"""Side in pixels at which pictures are compared without weights."""

# --- what the pictures are compared by ------------------------------------------------------------


def is_model(run: str | None) -> bool:
    """Whether a run is a fine-tuning run's folder."""
    return run is not None and (Path(run) / "model.json").is_file()


def _start(settings: SuggestSettings) -> str | None:
    return settings.weights or settings.run


def described(settings: SuggestSettings) -> SuggestSettings:
    """The same with encoder, size and resize filled in, from the weights where no flag says them.

    Raises UserError where neither names an encoder, and where two sets of weights are named.
    """
    if settings.weights and settings.run not in (None, "imagenet") and not is_model(settings.run):
        raise UserError(
            f"--run {settings.run} and --weights {settings.weights}: both are weights to compare "
            "images by, for that run is no finished fine-tuning run. Take one of them out"
        )
    if _start(settings) is None:
        return replace(
            settings, size=settings.size or WEAK_SIZE, resize=settings.resize or "square"
        )
    whole = probing.described(_as_probe(settings))
    return replace(settings, encoder=whole.encoder, size=whole.size, resize=whole.resize)


def _as_probe(settings: SuggestSettings) -> ProbeSettings:
    """The encoder of these settings, in the words of `fewmask probe`, which opens it."""
    return ProbeSettings(
        run=_start(settings) or "",
        images=settings.images,
        out=settings.out,
        encoder=settings.encoder,
        size=settings.size,
        resize=settings.resize,
        allow_partial=settings.allow_partial,
        seed=settings.seed,
    )


def started(settings: SuggestSettings) -> tuple[nn.Module | None, Transfer | None]:
    """The encoder that the pictures are compared by; None where there are no weights."""
    if _start(settings) is None:
        return None, None
    return probing.started(_as_probe(settings))


def worth(settings: SuggestSettings) -> str:
    """What the pictures are compared by, and what that is worth, in a line."""
    if settings.method == "random":
        return "drawn at random: nothing was compared"
    if settings.method == "uncertainty":
        return f"uncertainty of {settings.run}: the mean entropy of its pixels, 0 to 1"
    start = _start(settings)
    if start is None:
        return "weak features: no weights were given; expect little more than random"
    return f"compared by {settings.encoder} at {settings.size} px, weights of {start}"


def facts(settings: SuggestSettings, images: ImageSet, pairs: PairSet | None) -> list[str]:
    """The contents that the result follows from."""
    facts = [images.fingerprint(), pairs.fingerprint() if pairs else ""]
    for start in (settings.run, settings.weights):
        facts.append(start_key(start, None, settings.encoder or "") if start else "")
    return facts


# --- what there is to choose from -----------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """The pictures, those with masks at the same side, and which are left to choose from."""

    images: ImageSet
    cache: ImageCache
    labelled: ImageCache | None
    candidates: Candidates
    trained_on: int
    """Pictures that the run was trained on."""

    @property
    def n_labelled(self) -> int:
        """Labelled pictures, by the pairs and the run: the larger number, for they may overlap."""
        paired = 0 if self.labelled is None else len(self.labelled.names)
        return max(paired, self.trained_on)

    @classmethod
    def opened(
        cls, settings: SuggestSettings, images: ImageSet, pairs: PairSet | None, model: Model | None
    ) -> Pool:
        size, resize, workers = settings.size or 0, settings.resize or "square", settings.workers
        with progress("reading images") as report:
            cache = cached_pool(images, size, resize, progress=report, workers=workers)
        labelled = None
        if pairs is not None:
            items = [pair.image for pair in pairs.items]
            side = cache.images.shape[1]
            own = ImageSet(pairs.src, pairs.pool, items)
            with progress("reading labelled images") as report:
                labelled = cached_images(own, side, resize, progress=report, workers=workers)
        hashes = trained_hashes(model.run) if model else frozenset()
        trained = [False] * len(cache.names)
        if hashes:
            with progress("looking for the run's own images") as report:
                by_name = image_hashes(images.items, report, workers)
            trained = [by_name.get(name, "") in hashes for name in cache.names]
        found = candidates(cache, labelled, trained, keep_near=settings.keep_near)
        return cls(images, cache, labelled, found, len(hashes))


def require_budget(settings: SuggestSettings, found: Candidates) -> None:
    """Raises UserError where there are fewer images to choose from than are to be suggested."""
    left = len(found.rows)
    if settings.budget <= left:
        return
    near = ", or pass --keep-near to have near copies, too" if len(found.repeated) else ""
    near = "" if settings.keep_near else near
    raise UserError(
        f"--budget {settings.budget}: {settings.images} leaves {left} images to choose from "
        f"({len(found.labelled)} show a labelled one, {len(found.repeated)} repeat another). "
        f"{f'Choose a smaller --budget{near}' if left else f'Name other images{near}'}"
    )


class Features:
    """The features of the candidates and of the labelled pictures, once they are asked for."""

    def __init__(
        self,
        settings: SuggestSettings,
        encoder: nn.Module | None,
        device: torch.device,
        pool: Pool,
    ) -> None:
        self.settings, self.encoder, self.device, self.pool = settings, encoder, device, pool

    def both(self) -> tuple[Tensor, Tensor]:
        """Of the candidates [N,D] and of the labelled [L,D], float32 on the CPU."""
        found = self.pool.candidates
        own = self._of(self.pool.cache, found.rows, "comparing images")
        known = self._of(self.pool.cache, found.known, "comparing labelled images")
        if self.pool.labelled is not None:
            rows = np.arange(len(self.pool.labelled.names))
            more = self._of(self.pool.labelled, rows, "comparing labelled images")
            known = torch.cat([more, known])
        return own, known

    def _of(self, cache: ImageCache, rows: Rows, title: str) -> Tensor:
        if not len(rows):
            return torch.empty(0, self._width())
        with progress(title) as report:
            if self.encoder is None:
                return weak_features(cache, rows, report)
            self.encoder.to(memory_format=torch.channels_last)
            found = frozen_features(
                self.encoder, cache, rows, self.settings.size or 0, self.device, report
            )
        if not torch.isfinite(found).all():
            raise UserError(
                f"{_start(self.settings)}: its features are not finite numbers. The run that made "
                "it diverged: train it again with a lower --lr"
            )
        return found

    def _width(self) -> int:
        channels: Any = getattr(self.encoder, "out_channels", None)
        return int(channels[-1]) if channels else weak_features(self.pool.cache, []).shape[1]
