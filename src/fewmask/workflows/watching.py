"""What a pre-training run looks at now and then: its features, and pictures of what it does."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewmask.augment import normalise, to_unit
from fewmask.data.cache import ImageCache
from fewmask.files import write_bytes_atomic
from fewmask.pretext import PretextModule
from fewmask.pretext.contract import effective_rank, pooled, spread
from fewmask.types import Batch
from fewmask.workflows.launching import say

if TYPE_CHECKING:
    from lightning.fabric import Fabric

TIMES = 20
"""How often a run is looked at."""
WATCHED = 256
"""Images of the pool whose features are looked at: the same ones each time."""
SHOWN = 8
"""Images that a task draws its samples of."""


@dataclass
class Watch:
    """Spread and effective rank of the features of some images of the pool, in evaluation mode.

    Warns once where they have collapsed. Tasks that draw pictures leave them in `samples/`.
    """

    fabric: Fabric
    task: PretextModule
    cache: ImageCache
    size: int
    seed: int
    out: Path
    warned: bool = field(default=False, init=False)

    def __call__(self, step: int) -> dict[str, float | None]:
        features = torch.cat([pooled(self.task.encoder, part).float() for part in self._images()])
        found = {
            "features_spread": float(spread(features)),
            "effective_rank": float(effective_rank(features)),
        }
        self._warn(step, found)
        if self.fabric.is_global_zero:
            self._draw(step)
        return dict(found)

    def _images(self) -> list[Tensor]:
        """Normalised images [n,3,S,S] at the network's size, in parts of 64."""
        n = len(self.cache.names)
        rows = np.unique(np.linspace(0, n - 1, min(n, WATCHED)).astype(int))
        return [self._part(rows[i : i + 64]) for i in range(0, len(rows), 64)]

    def _part(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        images = torch.from_numpy(self.cache.images[rows]).permute(0, 3, 1, 2)
        shape = (self.size, self.size)
        sized = torch.nn.functional.interpolate(
            to_unit(images), shape, mode="bilinear", antialias=True
        )
        return normalise(sized.to(self.fabric.device))

    def _warn(self, step: int, found: dict[str, float]) -> None:
        collapsed = found["features_spread"] < 1e-3 or found["effective_rank"] < 1.5
        if collapsed and not self.warned and len(self.cache.names) > 2:
            self.warned = True
            say(
                self.fabric,
                f"warning: the features have collapsed at step {step} (spread "
                f"{found['features_spread']:.2g}, effective rank {found['effective_rank']:.3g}): "
                "all images look alike to the encoder. Lower --lr, or choose another task",
            )

    def _draw(self, step: int) -> None:
        rows = np.arange(min(SHOWN, len(self.cache.names)))
        batch = Batch(
            torch.from_numpy(self.cache.images[rows]).permute(0, 3, 1, 2),
            torch.from_numpy(rows),
            self.seed,
            0,
            valid=torch.from_numpy(self.cache.valid[rows]),
            total=len(rows),
        )
        drawn = self.task.samples(batch.to(self.fabric.device))
        if drawn is None:
            return
        picture = io.BytesIO()
        _sheet(drawn).save(picture, format="PNG")
        write_bytes_atomic(self.out / "samples" / f"step_{step:06}.png", picture.getvalue())


def _sheet(pictures: Tensor, across: int = 8) -> Image.Image:
    """Pictures [n,3,h,w] of 0 to 1 in rows of `across`, with a pixel of white between."""
    from torchvision.utils import make_grid

    grid = make_grid(pictures.float().cpu().clamp(0, 1), across, padding=1, pad_value=1.0)
    return Image.fromarray((grid.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
