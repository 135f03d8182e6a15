"""What fine-tuning looks at now and then: the validation pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fewmask.augment import to_unit
from fewmask.data.cache import ImageCache
from fewmask.losses import segmentation_losses
from fewmask.metrics import confusion, scores
from fewmask.segmentation import Segmenter, predicted


@dataclass(frozen=True)
class Validation:
    """Loss and IoU over the validation pairs, at the network's size."""

    segmenter: Segmenter
    cache: ImageCache
    rows: Sequence[int]
    loss: str
    device: torch.device
    class_weights: torch.Tensor | None = None

    def __call__(self, _: int = 0) -> dict[str, float | None]:
        if self.cache.masks is None:
            raise ValueError("validation needs masks")
        was = self.segmenter.training
        self.segmenter.eval()
        losses: list[float] = []
        k = self.segmenter.labels.n_classes
        counts = np.zeros((k, k), np.int64)
        with torch.inference_mode():
            for row in self.rows:
                image = torch.from_numpy(self.cache.images[row].copy()).permute(2, 0, 1)[None]
                truth = np.array(self.cache.masks[row])
                logits = self.segmenter(to_unit(image.to(self.device))).cpu()
                target = torch.from_numpy(truth)[None]
                parts = segmentation_losses(self.loss, logits, target, self.class_weights)
                losses.append(float(sum(parts.values())))
                counts += confusion(truth, predicted(logits)[0].numpy(), k)
        self.segmenter.train(was)
        return {"loss": float(np.mean(losses)), "iou": scores(counts)["iou"]}
