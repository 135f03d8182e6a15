"""What a pre-training run looks at now and then: its features, and pictures of what it does."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewmask.data.cache import cached_pairs
from fewmask.data.check import check_pairs
from fewmask.data.sources import MaskOptions, open_pairs
from fewmask.data.store import ImageStore
from fewmask.files import write_bytes_atomic
from fewmask.pretext import PretextModule
from fewmask.pretext.contract import effective_rank, spread
from fewmask.probing import dense_probe, frozen_features, probe_rows
from fewmask.progress import progress
from fewmask.settings import PretrainSettings
from fewmask.types import Batch, UserError
from fewmask.workflows.launching import say

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TIMES = 20
"""How often a run is looked at."""
WATCHED = 256
"""Images of the pool whose features are looked at: the same ones each time."""
SHOWN = 8
"""Images that a task draws its samples of."""
LEAST_SPREAD = 1e-3
"""Random encoders have a spread of 0.05 (ResNet-50) to 0.14 (DenseNet-121), trained ones 0.2 and
more; encoders that send all pictures to one point fell to between 2e-4 and 7e-4."""
LEAST_RANK = 0.1
"""Of the effective rank at the start. ResNet-18 on 256 cats and dogs: 148 when random, and never
below 144 under SimCLR (40 steps) or two classes learnt by heart (250 steps). Under losses whose
best answer is one point it fell to 1.8 (the features' norm) and 9.9 (the distance of two views
alone), though the spread stayed above 0.02; under SimCLR at a hundred times its rate to 1.0."""


@dataclass(frozen=True)
class ProbePairs:
    """Pictures with masks for the dense probe: uint8 [n,3,S,S] and class ids [n,S,S]."""

    images: Tensor
    masks: Tensor
    n_classes: int

    def iou(self, encoder: torch.nn.Module) -> float | None:
        """IoU of a linear head on the encoder's frozen features, a fraction of 1."""
        return dense_probe(encoder, self.images, self.masks, self.n_classes)


def probe_pairs(settings: PretrainSettings) -> ProbePairs | None:
    """The pairs of --probe-pairs; None where it isn't given. Raises UserError with all faults."""
    src = settings.probe_pairs
    if src is None:
        return None
    options = MaskOptions(ignore=settings.probe_ignore, mask_values=settings.probe_mask_values)
    try:
        pairs = open_pairs(src, options, download=settings.download)
        with progress("checking the probe's pairs") as report:
            checked = check_pairs(pairs, progress=report, workers=settings.workers)
        checked.raise_faults()
    except UserError as mistake:  # the flags that mend it have other names here
        faults = [fault.replace("--mask-values", "--probe-mask-values") for fault in mistake.faults]
        raise UserError(*(f.replace("--ignore", "--probe-ignore") for f in faults)) from None
    rows = probe_rows(len(pairs.items), checked.groups)
    if len(rows) < 4:
        raise UserError(
            f"--probe-pairs {src}: {len(rows)} different pictures; expected at least 4, half of "
            "them to fit and half to score. Add some"
        )
    few = replace(pairs, items=tuple(pairs.items[row] for row in rows))
    size, resize = settings.size, settings.resize
    cache = cached_pairs(few, checked.labels, size, resize, workers=settings.workers)
    masks = torch.from_numpy(np.array(cache.masks))
    images = torch.from_numpy(np.array(cache.images)).permute(0, 3, 1, 2)
    return ProbePairs(images, masks, checked.labels.n_classes)


@dataclass
class Watch:
    """Spread and effective rank of the features of some images of the pool, in evaluation mode;
    where there are pairs, the dense probe as well.

    Warns once where the features have collapsed. Tasks that draw pictures leave them in `samples/`.
    """

    fabric: Fabric
    task: PretextModule
    store: ImageStore
    rows: NDArray[np.int64]
    """Of the store, those that are trained on."""
    size: int
    seed: int
    out: Path
    pairs: ProbePairs | None = None
    start: dict[str, float | None] = field(default_factory=dict, init=False)
    """What was found before the first step."""
    warned: str | None = field(default=None, init=False)
    """What was said last of features or task; None where all is well."""

    def begin(self) -> None:
        """Look at the encoder before its first step."""
        self.task.encoder.to(self.fabric.device)
        self.start = self._look()

    def __call__(self, step: int) -> dict[str, float | None]:
        found = self._look()
        self._warn(step, found)
        self.last = found
        if self.fabric.is_global_zero:
            self._draw(step)
        if self.pairs:
            found["probe_iou_start"] = self.start.get("probe_iou")
        return found

    def _look(self) -> dict[str, float | None]:
        n = len(self.rows)
        rows = self.rows[np.unique(np.linspace(0, n - 1, min(n, WATCHED)).astype(int))]
        encoder = self.task.encoder
        features = frozen_features(encoder, self.store, rows, self.size, self.fabric.device)
        finite = bool(torch.isfinite(features).all())
        found: dict[str, float | None] = {
            "features_spread": float(spread(features)) if finite else None,
            "effective_rank": float(effective_rank(features)) if finite else None,
        }
        if self.pairs:
            found["probe_iou"] = self.pairs.iou(encoder) if finite else None
        return found

    def _warn(self, step: int, found: dict[str, float | None]) -> None:
        words = self._words(found)
        if words and self.warned is None:
            say(self.fabric, f"warning: at step {step} {words}")
        self.warned = words

    def _words(self, found: dict[str, float | None]) -> str | None:
        """What is wrong with features or task, and the mend; None where all is well."""
        if found["features_spread"] is None:
            return "the features are not finite numbers: the run diverges. Lower --lr"
        how = collapse(found, self.start) if len(self.rows) > 2 else None
        if how:
            return (
                f"the features have collapsed ({how}): the encoder tells hardly any images apart. "
                "Lower --lr, or choose another task"
            )
        words = self.task.complaint()
        return words and f"{words}. Choose another --pretext"

    def _draw(self, step: int) -> None:
        taken = self.store.take(self.rows[:SHOWN])
        batch = Batch(
            torch.from_numpy(taken.images).permute(0, 3, 1, 2),
            torch.from_numpy(taken.rows),
            self.seed,
            0,
            valid=torch.from_numpy(taken.valid),
            total=len(taken.rows),
        )
        drawn = self.task.samples(batch.to(self.fabric.device))
        if drawn is None:
            return
        picture = io.BytesIO()
        _sheet(drawn).save(picture, format="PNG")
        write_bytes_atomic(self.out / "samples" / f"step_{step:06}.png", picture.getvalue())


def collapse(found: dict[str, float | None], start: dict[str, float | None]) -> str | None:
    """In what way features have collapsed since the start; None where they have not.

    Either all their directions are the same (the spread), or they vary over few dimensions only
    (the effective rank). Of ten images or fewer the rank can't tell.
    """
    wide, rank = found["features_spread"], found["effective_rank"]
    before = start.get("effective_rank") or math.nan
    if wide is None or rank is None:
        return None
    if wide < LEAST_SPREAD:
        return f"spread {wide:.2g}, below {LEAST_SPREAD:g}"
    if rank < LEAST_RANK * before:
        return f"effective rank {rank:.3g}, at the start {before:.3g}"
    return None


def _sheet(pictures: Tensor, across: int = 8) -> Image.Image:
    """Pictures [n,3,h,w] of 0 to 1 in rows of `across`, with a pixel of white between."""
    from torchvision.utils import make_grid

    grid = make_grid(pictures.float().cpu().clamp(0, 1), across, padding=1, pad_value=1.0)
    return Image.fromarray((grid.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
