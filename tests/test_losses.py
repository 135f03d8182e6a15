"""Losses against slow plain loops, torchvision and the limits they must keep."""

from __future__ import annotations

import math

import pytest
import torch
from tests.pretext.small import GroupNormEncoder, make_batch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from fewmask.flags import flat
from fewmask.losses import (
    SEGMENTATION_LOSSES,
    border_cross_entropy,
    cross_entropy,
    dcl,
    focal,
    nt_xent,
    segmentation_losses,
    soft_dice,
    weight_sums,
)
from fewmask.pretext.contract import Pool
from fewmask.pretext.simclr import SimCLR
from fewmask.types import IGNORED, UserError

PIXEL_LOSSES = [cross_entropy, soft_dice, focal]


def projections(n: int, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return both[0].requires_grad_(), both[1].requires_grad_()


def slow_nt_xent(first: Tensor, second: Tensor, temperature: float) -> float:
    """Algorithm 1 of the paper, pair by pair: rows 2k and 2k + 1 are two views of one picture."""
    z = [row.tolist() for pair in zip(first, second, strict=True) for row in pair]

    def similarity(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(z[i], z[j], strict=True))
        return dot / math.hypot(*z[i]) / math.hypot(*z[j])

    def loss(i: int, j: int) -> float:
        others = [k for k in range(len(z)) if k != i]
        denominator = sum(math.exp(similarity(i, k) / temperature) for k in others)
        return -math.log(math.exp(similarity(i, j) / temperature) / denominator)

    pairs = range(0, len(z), 2)
    return sum(loss(k, k + 1) + loss(k + 1, k) for k in pairs) / len(z)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_nt_xent_is_the_papers(n: int, temperature: float) -> None:
    first, second = projections(n)
    expected = slow_nt_xent(first, second, temperature)
    assert nt_xent(first, second, temperature).item() == pytest.approx(expected, abs=1e-10)


def test_nt_xent_of_parts_is_that_of_the_whole_with_its_gradient() -> None:
    first, second = projections(9)
    whole = nt_xent(first, second, 0.2)
    expected = torch.autograd.grad(whole, (first, second))
    parts = [
        nt_xent(
            first[part], second[part], 0.2, start=part.start, all_first=first, all_second=second
        )
        for part in (slice(0, 3), slice(3, 6), slice(6, 9))
    ]
    mean = torch.stack(parts).mean()
    assert mean.item() == pytest.approx(whole.item(), abs=1e-12)
    for found, wanted in zip(torch.autograd.grad(mean, (first, second)), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_nt_xent_heeds_directions_alone_and_computes_in_float32() -> None:
    first, second = projections(6)
    loss = nt_xent(first, second, 0.2)
    assert nt_xent(3 * first, 0.1 * second, 0.2).item() == pytest.approx(loss.item())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nt_xent(first.float(), second.float(), 0.2)
    assert inside.dtype == torch.float32
    assert inside.item() == pytest.approx(loss.item(), abs=1e-5)


def pixels(channels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits float64 [3,channels,4,5] and labels [3,4,5], some ignored; image 2 is all class 0."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, channels, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, max(2, channels), (3, 4, 5), generator=generator)
    labels[2] = 0
    labels[torch.rand(3, 4, 5, generator=generator) < 0.2] = IGNORED
    return logits.requires_grad_(), labels


def probabilities(logits: Tensor) -> Tensor:
    """[B,C,H,W] -> [B,K,H,W], with one channel written out as two classes."""
    if logits.shape[1] == 1:
        p = logits.sigmoid()
        return torch.cat([1 - p, p], 1)
    return logits.softmax(1)


def slow_mean(logits: Tensor, labels: Tensor, gamma: float) -> float:
    p, terms = probabilities(logits), []
    for b, row, column in (labels != IGNORED).nonzero().tolist():
        own = p[b, labels[b, row, column], row, column].item()
        terms.append(-((1 - own) ** gamma) * math.log(own))
    return sum(terms) / len(terms)


def slow_dice(logits: Tensor, labels: Tensor) -> float:
    p, of_images = probabilities(logits), []
    for b in range(len(labels)):
        places = (labels[b] != IGNORED).nonzero().tolist()
        present = {labels[b, row, column].item() for row, column in places}
        terms = []
        for k in [1] if logits.shape[1] == 1 else sorted(present):
            both = sum(p[b, k, y, x].item() for y, x in places if labels[b, y, x] == k)
            sizes = sum(p[b, k, y, x].item() + (labels[b, y, x] == k).item() for y, x in places)
            terms.append(1 - (2 * both + 1) / (sizes + 1))
        of_images.append(sum(terms) / len(terms))
    return sum(of_images) / len(of_images)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_pixel_losses_are_their_formulas(channels: int) -> None:
    logits, labels = pixels(channels)
    assert cross_entropy(logits, labels).item() == pytest.approx(slow_mean(logits, labels, 0))
    assert focal(logits, labels).item() == pytest.approx(slow_mean(logits, labels, 2))
    assert focal(logits, labels, 0.5).item() == pytest.approx(slow_mean(logits, labels, 0.5))
    assert soft_dice(logits, labels).item() == pytest.approx(slow_dice(logits, labels))


def test_dice_of_a_class_of_one_pixel_and_without_the_last_class() -> None:
    logits, _ = pixels(4)
    labels = torch.zeros(3, 4, 5, dtype=torch.long)
    labels[:, 1, 2] = 2
    assert soft_dice(logits, labels).item() == pytest.approx(slow_dice(logits, labels))


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_of_fewer_bits_are_computed_with_in_32(loss: type, channels: int) -> None:
    logits, labels = pixels(channels)
    short = logits.detach().bfloat16()
    assert loss(short, labels).item() == loss(short.float(), labels).item()


def test_focal_is_torchvisions_without_alpha() -> None:
    logits, labels = pixels(1)
    valid = labels != IGNORED
    expected = sigmoid_focal_loss(
        logits[:, 0][valid], labels[valid].double(), alpha=-1, gamma=2, reduction="mean"
    )
    assert focal(logits, labels).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
@pytest.mark.parametrize("channels", [1, 3])
def test_ignored_pixels_count_nowhere(loss: type, channels: int) -> None:
    logits, labels = pixels(channels)
    value = loss(logits, labels)
    (gradient,) = torch.autograd.grad(value, logits)
    ignored = (labels == IGNORED)[:, None].expand_as(gradient)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).any()
    changed = torch.where((labels == IGNORED)[:, None], 50.0, logits)
    assert loss(changed, labels).item() == pytest.approx(value.item(), abs=1e-12)


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
@pytest.mark.parametrize("channels", [1, 3])
def test_no_valid_pixel_is_zero_with_a_graph(loss: type, channels: int) -> None:
    logits, labels = pixels(channels)
    value = loss(logits, torch.full_like(labels, IGNORED))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
@pytest.mark.parametrize("channels", [1, 3])
def test_sure_answers_stay_finite(loss: type, channels: int) -> None:
    _, labels = pixels(channels)
    wanted = torch.arange(max(2, channels))[None, :, None, None] == labels[:, None]
    right = 200.0 * (2.0 * wanted[:, 1:2] - 1 if channels == 1 else wanted)
    for logits in (right, -right):
        logits = logits.half().requires_grad_()
        value = loss(logits, labels.to(torch.uint8))
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
    assert loss(right, labels).item() < 1e-6
    assert loss(-right, labels).item() > 0.4


def test_the_table_names_losses_of_one_shape() -> None:
    logits, labels = pixels(1)
    for name, loss in SEGMENTATION_LOSSES.items():
        assert loss(logits, labels).shape == (), name
    assert SEGMENTATION_LOSSES["bce"] is SEGMENTATION_LOSSES["ce"] is cross_entropy


def slow_dcl(first: Tensor, second: Tensor, temperature: float) -> float:
    """Equation 6 of the paper, anchor by anchor: negatives are both views of other pictures."""
    views = [first.tolist(), second.tolist()]

    def similarity(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    terms = []
    for k in (0, 1):
        for i, anchor in enumerate(views[k]):
            others = [z for view in views for j, z in enumerate(view) if j != i]
            negatives = sum(math.exp(similarity(anchor, z) / temperature) for z in others)
            positive = similarity(anchor, views[1 - k][i]) / temperature
            terms.append(math.log(negatives) - positive)
    return sum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("n", [2, 7])
def test_dcl_is_the_papers(n: int, temperature: float) -> None:
    first, second = projections(n)
    expected = slow_dcl(first, second, temperature)
    assert dcl(first, second, temperature).item() == pytest.approx(expected, abs=1e-10)


def test_dcl_of_parts_is_that_of_the_whole_with_its_gradient() -> None:
    first, second = projections(9)
    whole = dcl(first, second, 0.2)
    expected = torch.autograd.grad(whole, (first, second))
    parts = [
        dcl(first[part], second[part], 0.2, start=part.start, all_first=first, all_second=second)
        for part in (slice(0, 3), slice(3, 6), slice(6, 9))
    ]
    mean = torch.stack(parts).mean()
    assert mean.item() == pytest.approx(whole.item(), abs=1e-12)
    for found, wanted in zip(torch.autograd.grad(mean, (first, second)), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_dcl_computes_in_float32_and_needs_two_pictures() -> None:
    first, second = projections(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = dcl(first.bfloat16(), second.bfloat16(), 0.2)
    assert inside.dtype == torch.float32
    assert inside.item() == pytest.approx(
        dcl(first.bfloat16().double(), second.bfloat16().double(), 0.2).item(), abs=1e-5
    )
    with pytest.raises(ValueError, match=r"^dcl compares pictures: expected at least 2, found 1$"):
        dcl(first[:1], second[:1], 0.2)


def test_simclr_takes_dcl_by_name_and_its_default_is_in_no_key() -> None:
    first, second = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    for config, loss in ((SimCLR(), nt_xent), (SimCLR(loss="dcl"), dcl)):
        task = config.task(GroupNormEncoder(), 16, Pool())
        task.two_views = lambda batch: (first, second)  # type: ignore[method-assign]
        task.project = lambda views: views  # type: ignore[method-assign]
        (found,) = task(make_batch(n=4)).items()
        assert found[0] == loss.__name__
        assert torch.equal(found[1], loss(first, second, config.temperature))
    assert "loss" not in flat(SimCLR())
    with pytest.raises(UserError, match="--loss focal: expected nt_xent or dcl"):
        SimCLR(loss="focal")  # type: ignore[arg-type]


MEANS = {"ce": cross_entropy, "focal": focal, "border-ce": border_cross_entropy}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", list(MEANS))
def test_a_mean_over_something_else(name: str, weighted: bool) -> None:
    """`over` takes the place of the pixels' weights, whose sum `weight_sums` is."""
    logits, labels = pixels(3)
    weights = torch.tensor([0.5, 3.0, 1.25]) if weighted else None
    plain = MEANS[name](logits, labels, weights=weights).item()
    (total,) = weight_sums(name, labels, weights).values()
    for times in (1, 4):
        found = MEANS[name](logits, labels, weights=weights, over=times * total)
        assert found.item() == pytest.approx(plain / times)
    assert MEANS[name](logits, labels, weights=weights, over=0 * total).item() == pytest.approx(
        plain * total.item()
    )


def test_the_sum_of_weights_is_that_of_the_pixels() -> None:
    _, labels = pixels(3)
    valid = labels != IGNORED
    found = weight_sums("ce+dice+focal", labels)
    assert list(found) == ["ce", "focal"], "dice is no mean over pixels"
    assert {value.item() for value in found.values()} == {valid.sum().item()}
    weights = torch.tensor([0.5, 3.0, 1.25])
    expected = sum(float(weights[k]) for k in labels[valid].tolist())
    assert weight_sums("focal", labels, weights)["focal"].item() == pytest.approx(expected)


def test_a_batch_in_parts_has_the_whole_batchs_loss() -> None:
    logits, labels = pixels(3)
    weights = torch.tensor([0.5, 3.0, 1.25])
    loss = "ce+focal+border-ce"
    whole = segmentation_losses(loss, logits, labels, weights)
    over = {name: total / 3 for name, total in weight_sums(loss, labels, weights).items()}
    assert set(over) == set(whole)
    parts = [
        segmentation_losses(loss, logits[i : i + 1], labels[i : i + 1], weights, over)
        for i in range(3)
    ]
    for name, value in whole.items():
        mean = sum(part[name].item() for part in parts) / 3
        assert mean == pytest.approx(value.item()), name


def test_what_over_does_not_name_is_divided_by_its_own_weights() -> None:
    logits, labels = pixels(3)
    found = segmentation_losses("ce+focal", logits, labels, None, {"ce": torch.tensor(1.0)})
    assert found["focal"].item() == focal(logits, labels).item()
    assert found["ce"].item() == cross_entropy(logits, labels, None, torch.tensor(1.0)).item()
