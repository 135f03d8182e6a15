"""Supervised: the pool's class folders as labels, plain transfer from a solved problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask.augment import Views, normalise
from fewmask.distributed import gather_rows
from fewmask.pretext.contract import Pool, PretextModule, pooled, spread, view, width_of
from fewmask.types import Batch, UserError


@dataclass(frozen=True)
class Supervised:
    """Classification of the pool's own class folders."""

    name: ClassVar[str] = "supervised"

    smoothing: float = 0.1
    """Label smoothing: the share of each label that is spread evenly over all classes (Szegedy et
    al. 2016, arXiv:1512.00567, sec. 7; 0 is plain cross-entropy)."""
    crop_min: float = 0.25
    """Smallest share of the image's area that a view keeps (0 to 1)."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    colour: float = 0.5
    """Strength of the colour jitter: at 0.5 brightness, contrast and saturation change by a factor
    of up to 1 +- 0.4, hue by up to +- 0.1 of the circle."""

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UserError(f"--smoothing {self.smoothing}: expected a share, 0 up to but not 1")
        self.views()

    def views(self) -> Views:
        """Milder than SimCLR's: a class may hang on its colour, and blur hides fur from skin."""
        return Views(self.crop_min, flip=self.flip, colour=self.colour, grey=0.0, blur=0.0)

    def task(self, encoder: nn.Module, size: int, pool: Pool) -> SupervisedTask:
        """The task on an encoder of smp's contract, with views of `size` pixels a side.

        Raises UserError where the pool has no classes, or only one.
        """
        if len(pool.classes) < 2:
            found = f"only the class {pool.classes[0]}" if pool.classes else "no classes"
            raise UserError(
                f"--pretext supervised: the images have {found}. Expected --images FOLDER with a "
                "folder of images a class (FOLDER/cat/1.jpg, FOLDER/dog/1.jpg), or another task"
            )
        return SupervisedTask(self, encoder, size, len(pool.classes))


class SupervisedTask(PretextModule):
    """Batch -> cross-entropy of a linear head on the mean over the encoder's coarsest map."""

    seen: Tensor

    def __init__(self, config: Supervised, encoder: nn.Module, size: int, classes: int) -> None:
        super().__init__(encoder)
        self.config, self.size, self.views = config, size, config.views()
        self.head = nn.Linear(width_of(encoder), classes)
        # How often each class was seen: its largest share is what a constant answer would get.
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.int64))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if batch.labels is None:
            raise ValueError("a supervised batch holds labels")
        views = view(batch, self.size, self.views)
        features = pooled(self.encoder, normalise(views))
        logits = self.head(features).float()
        loss = functional.cross_entropy(logits, batch.labels, label_smoothing=self.config.smoothing)
        self.count(batch.labels)
        self.signals = {
            "accuracy": (logits.detach().argmax(dim=1) == batch.labels).float().mean(),
            "chance": self.seen.max() / self.seen.sum(),
            "spread": spread(features),
        }
        return {"cross_entropy": loss}

    @torch.no_grad()
    def count(self, labels: Tensor) -> None:
        """Add everybody's labels [B] to `seen`; exact shares of the pool after a whole pass."""
        everyone = gather_rows(labels[:, None])
        self.seen += (everyone == torch.arange(len(self.seen), device=labels.device)).sum(dim=0)
