"""Class weights: the losses against plain loops and torch's own, the formulas against others'."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional

from fewmask.data.check import PairReport
from fewmask.losses import (
    SEGMENTATION_LOSSES,
    balanced_weights,
    cross_entropy,
    focal,
    median_weights,
    segmentation_losses,
    soft_dice,
)
from fewmask.settings import FinetuneSettings
from fewmask.types import IGNORED, Labels, UserError
from fewmask.workflows.classes import class_weights, unseen

WEIGHTS = torch.tensor([0.5, 3.0, 0.0, 1.25])
"""The third class counts nowhere."""


def pixels(channels: int) -> tuple[Tensor, Tensor]:
    """Logits float64 [2,channels,4,5] and labels [2,4,5], some ignored."""
    generator = torch.Generator().manual_seed(channels)
    logits = 2 * torch.randn(2, channels, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, max(2, channels), (2, 4, 5), generator=generator)
    labels[torch.rand(2, 4, 5, generator=generator) < 0.2] = IGNORED
    return logits.requires_grad_(), labels


def slow(logits: Tensor, labels: Tensor, weights: Tensor, gamma: float) -> float:
    """sum w (1 - p)^gamma -log p / sum w, pixel by pixel."""
    above = below = 0.0
    for b, y, x in (labels != IGNORED).nonzero().tolist():
        k = int(labels[b, y, x])
        own = logits[b, :, y, x].tolist()
        if len(own) == 1:
            p = 1 / (1 + math.exp(-own[0] if k else own[0]))
        else:
            p = math.exp(own[k]) / sum(map(math.exp, own))
        above -= float(weights[k]) * (1 - p) ** gamma * math.log(p)
        below += float(weights[k])
    return above / below


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_weighted_losses_are_their_formulas(channels: int) -> None:
    logits, labels = pixels(channels)
    weights = WEIGHTS[: max(2, channels)]
    found = cross_entropy(logits, labels, weights)
    assert found.item() == pytest.approx(slow(logits, labels, weights, 0))
    found = focal(logits, labels, weights=weights)
    assert found.item() == pytest.approx(slow(logits, labels, weights, 2))


def test_weighted_cross_entropy_is_torch_s_with_its_gradient() -> None:
    logits, labels = pixels(4)
    own = cross_entropy(logits, labels, WEIGHTS)
    theirs = functional.cross_entropy(logits, labels, WEIGHTS.double(), ignore_index=IGNORED)
    assert own.item() == pytest.approx(theirs.item(), abs=1e-12)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (own, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("loss", [cross_entropy, focal])
def test_weights_of_one_size_change_nothing(channels: int, loss: type) -> None:
    logits, labels = pixels(channels)
    plain = loss(logits, labels).item()
    for size in (1.0, 1e-3, 7.0):
        weights = torch.full((max(2, channels),), size)
        assert loss(logits, labels, weights=weights).item() == pytest.approx(plain)
    nothing = loss(logits, labels, weights=torch.zeros(max(2, channels)))
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, logits)[0].abs().max() == 0


def test_one_logit_and_two_mean_the_same() -> None:
    """A sigmoid of z is the softmax of (0, z), and so are the losses on them."""
    one, labels = pixels(1)
    two = torch.cat([torch.zeros_like(one), one], 1)
    weights = torch.tensor([0.3, 2.0])
    for name in ("bce", "ce", "focal"):
        first = segmentation_losses(name, one, labels, weights)[name]
        second = segmentation_losses(name, two, labels, weights)[name]
        assert first.item() == pytest.approx(second.item()), name


@pytest.mark.parametrize("loss", ["bce+dice", "ce+dice", "dice", "focal", "ce"])
@pytest.mark.parametrize("channels", [1, 4])
def test_a_loss_is_the_sum_of_its_parts_and_dice_is_never_weighted(
    loss: str, channels: int
) -> None:
    logits, labels = pixels(channels)
    weights = WEIGHTS[: max(2, channels)]
    for given in (None, weights):
        found = segmentation_losses(loss, logits, labels, given)
        assert list(found) == loss.split("+")
        for name, value in found.items():
            weighted = given is not None and name != "dice"
            more = {"weights": given} if weighted else {}
            assert value.item() == SEGMENTATION_LOSSES[name](logits, labels, **more).item()
    if "dice" in loss:
        assert found["dice"].item() == soft_dice(logits, labels).item()


def masks(seed: int = 0) -> list[np.ndarray]:
    """Four masks of unequal sizes with ids 0, 1, 3 of 4 classes; 3 is in one mask alone."""
    rng = np.random.default_rng(seed)
    found = [rng.choice([0, 1], (5 + i, 6), p=[0.8, 0.2]) for i in range(3)]
    return [*found, rng.choice([0, 3], (9, 9), p=[0.7, 0.3])]


def counts(some: list[np.ndarray]) -> Tensor:
    return torch.tensor(np.array([np.bincount(mask.ravel(), minlength=4) for mask in some]))


def test_balanced_is_scikit_learns() -> None:
    every = np.concatenate([mask.ravel() for mask in masks()])
    wanted = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=every)
    found = balanced_weights(counts(masks()))
    assert found[[0, 1, 3]].tolist() == pytest.approx(wanted.tolist())
    assert found[2] == 1, "a class that is not there weighs as much as a pixel does in the mean"
    assert np.mean(found.numpy()[every]) == pytest.approx(1)


def test_median_is_the_papers() -> None:
    frequency = {}
    for k in range(4):
        holding = [mask for mask in masks() if (mask == k).any()]
        if holding:
            total = sum(mask.size for mask in holding)
            frequency[k] = sum((mask == k).sum() for mask in holding) / total
    middle = median(frequency.values())
    found = median_weights(counts(masks()))
    for k in range(4):
        assert found[k].item() == pytest.approx(middle / frequency[k] if k in frequency else 1)
    of_two = median_weights(counts(masks())[:3])
    assert of_two[0] * 2 == pytest.approx(1 + of_two[0] / of_two[1]), "the mean of the middle two"


def test_a_class_of_one_pixel() -> None:
    pixels = torch.tensor([[98, 1, 0], [50, 0, 0], [0, 0, 1]])
    assert balanced_weights(pixels).tolist() == pytest.approx([150 / 3 / 148, 50, 50])
    shares = [148 / 149, 1 / 99, 1.0]
    middle = median(shares)
    assert median_weights(pixels).tolist() == pytest.approx([middle / share for share in shares])


@pytest.mark.parametrize("formula", [balanced_weights, median_weights])
def test_masks_without_a_pixel_weigh_all_alike(formula: type) -> None:
    assert formula(torch.zeros(3, 4, dtype=torch.long)).tolist() == [1, 1, 1, 1]


def report() -> PairReport:
    labels = Labels(("ground", "disc", "bar", "box"), (0,) * 256)
    each = tuple(tuple(row) for row in counts(masks()).tolist())
    return PairReport((), (), labels, (), ("",) * 4, 4, each)


def test_weights_are_those_of_the_training_masks_alone() -> None:
    for name, formula in (("balanced", balanced_weights), ("median", median_weights)):
        found = class_weights(name, report(), (2, 0))
        assert found is not None
        assert torch.equal(found, formula(counts([masks()[2], masks()[0]])))
        assert not torch.equal(found, formula(counts(masks())))
    given = class_weights("1,0,2.5,3", report(), (0,))
    assert given is not None
    assert given.tolist() == [1, 0, 2.5, 3]
    assert class_weights(None, report(), (0,)) is None


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError) as raised:
        class_weights("1,2", report(), (0,))
    assert str(raised.value) == (
        "--class-weights 1,2: 2 weights for 4 classes (ground, disc, bar, box). "
        "Give one for each, in this order"
    )
    for wrong in ("heavy", "1,x", "1,-1", "0,0", "1,nan", "inf,1", ""):
        with pytest.raises(UserError, match="expected balanced, median, or a number of 0 or more"):
            FinetuneSettings(pairs="p", out="o", class_weights=wrong)
    with pytest.raises(UserError, match="dice has none"):
        FinetuneSettings(pairs="p", out="o", class_weights="median", loss="dice")


def test_classes_that_only_other_masks_hold_are_named() -> None:
    assert unseen(report(), (0, 1)) == ["box"]
    assert unseen(report(), (3,)) == ["disc"]
    assert unseen(report(), (0, 3)) == []
