"""The border loss of the first U-Net against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fewmask.losses import border_cross_entropy, border_weights, cross_entropy, segmentation_losses


def objects(mask: NDArray[np.uint8]) -> list[list[tuple[int, int]]]:
    """The pixels of each connected region of a class above 0, by flood fill over eight sides."""
    left = {(y, x) for y, x in np.argwhere((mask > 0) & (mask < 255)).tolist()}
    found = []
    while left:
        queue = [left.pop()]
        region = list(queue)
        while queue:
            y, x = queue.pop()
            around = [(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
            for place in around:
                if place in left and mask[place] == mask[y, x]:
                    left.remove(place)
                    queue.append(place)
                    region.append(place)
        found.append(region)
    return found


def slow_weights(mask: NDArray[np.uint8], weight: float, sigma: float) -> NDArray[np.float64]:
    regions = objects(mask)
    out = np.zeros(mask.shape)
    for y, x in np.ndindex(*mask.shape):
        distances = sorted(min(math.dist((y, x), p) for p in region) for region in regions)
        if len(distances) > 1:
            out[y, x] = weight * math.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return out


def masks() -> NDArray[np.uint8]:
    """Objects near, far, touching corner to corner, of two classes side by side; a lone one."""
    found = np.zeros((2, 26, 34), np.uint8)
    found[0, 2:7, 2:7] = 1
    found[0, 3:8, 9:14] = 1
    found[0, 7:9, 7:9] = 1  # touches the first at a corner: one object
    found[0, 14:20, 10:16] = 2
    found[0, 14:20, 16:19] = 1
    found[0, 24, 33] = 1
    found[0, :, 26] = 255
    found[1, 5:12, 5:12] = 1
    return found


@pytest.mark.parametrize(("weight", "sigma"), [(10.0, 5.0), (4.0, 1.5)])
def test_weights_against_a_slow_loop(weight: float, sigma: float) -> None:
    found = border_weights(torch.from_numpy(masks()), weight, sigma)
    wanted = np.stack([slow_weights(mask, weight, sigma) for mask in masks()])
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6 * weight)
    assert found[0].max() > 0.5 * weight
    assert not found[1].any()  # one object has no second


def test_the_papers_weight_and_sigma_unless_given() -> None:
    labels = torch.from_numpy(masks())
    assert torch.equal(border_weights(labels), border_weights(labels, 10.0, 5.0))


def test_two_objects_after_a_mask_with_one() -> None:
    two = np.zeros((26, 34), np.uint8)
    two[3:8, 3:8] = two[3:8, 10:15] = 1
    labels = np.stack([masks()[1], two])
    found = border_weights(torch.from_numpy(labels))
    assert not found[0].any()
    np.testing.assert_allclose(found[1].numpy(), slow_weights(two, 10, 5), atol=1e-5)


@pytest.mark.parametrize("n_logits", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_weighted_mean(n_logits: int, weighted: bool) -> None:
    torch.manual_seed(0)
    labels = torch.from_numpy(masks())
    if n_logits == 1:
        labels[labels == 2] = 1
    logits = torch.randn(2, n_logits, *labels.shape[1:])
    classes = torch.tensor([0.5, 2.0] if n_logits == 1 else [0.5, 2.0, 3.0]) if weighted else None
    extra = border_weights(labels)
    top, bottom = 0.0, 0.0
    scores = logits if n_logits > 1 else torch.cat([torch.zeros_like(logits), logits], 1)
    logs = functional.log_softmax(scores, dim=1)
    for b, y, x in np.ndindex(*labels.shape):
        k = int(labels[b, y, x])
        if k != 255:
            w = (1.0 if classes is None else float(classes[k])) + float(extra[b, y, x])
            top, bottom = top - w * float(logs[b, k, y, x]), bottom + w
    found = border_cross_entropy(logits, labels, classes)
    assert found.item() == pytest.approx(top / bottom, rel=1e-5)


def test_without_two_objects_it_is_cross_entropy() -> None:
    logits, labels = torch.randn(1, 1, 26, 34), torch.from_numpy(masks())[1:]
    assert torch.allclose(border_cross_entropy(logits, labels), cross_entropy(logits, labels))
    nothing = torch.full_like(labels, 255)
    logits.requires_grad_()
    loss = border_cross_entropy(logits, nothing)
    loss.backward()
    assert loss.item() == 0


def test_it_goes_by_its_name() -> None:
    logits, labels = torch.randn(2, 3, 26, 34), torch.from_numpy(masks())
    weights = torch.tensor([1.0, 2.0, 3.0])
    found = segmentation_losses("border-ce", logits, labels, weights)
    assert found == {"border-ce": border_cross_entropy(logits, labels, weights)}
