"""Entropy of a model's probabilities, against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewmask.data.cache import ImageCache
from fewmask.segmentation import Geometry
from fewmask.suggesting.uncertainty import entropy, mean_entropy


def test_entropy_is_that_of_the_probabilities() -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = entropy(logits)
    for b, y, x in np.ndindex(2, 4, 5):
        p = torch.softmax(logits[b, :, y, x].double(), 0).tolist()
        wanted = -sum(one * math.log(one) for one in p) / math.log(3)
        assert float(found[b, y, x]) == pytest.approx(wanted, rel=1e-5)


def test_one_logit_is_two_classes() -> None:
    found = entropy(torch.tensor([0.0, 1.5, -1.5, 200.0]).reshape(1, 1, 2, 2))[0].flatten()
    p = 1 / (1 + math.exp(-1.5))
    wanted = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)
    assert found.tolist() == pytest.approx([1.0, wanted, wanted, 0.0], rel=1e-5)


class Brightness(nn.Module):
    """Unsure where it is dark: the logit is 20 times the brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape[-2:]))
        return 20 * images.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("size", [64, 32])
def test_padding_does_not_count_and_the_size_is_the_run_s(size: int) -> None:
    images = np.full((3, 64, 64, 3), 255, np.uint8)
    images[1, :32] = 0  # above, and it ends where the picture does
    images[2, :16] = 0
    valid = np.array([[64, 64], [32, 64], [32, 64]], np.int32)
    cache = ImageCache(images, valid, ("a", "b", "c"), ())
    model = Brightness()
    found = mean_entropy(
        model,  # type: ignore[arg-type]
        Geometry(size, "keep"),
        cache,
        np.array([2, 0, 1]),
        torch.device("cpu"),
    )
    assert model.sizes == [(size, size)]
    tolerance = 1e-6 if size == 64 else 0.06  # shrinking blurs the edge
    assert found == pytest.approx([0.5, 0.0, 1.0], abs=tolerance)
