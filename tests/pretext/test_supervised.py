"""Supervised: the loss against a plain loop, the constant answer it is measured by, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from tests.pretext.small import GroupNormEncoder, make_batch
from torch import nn

from fewmask.augment import normalise
from fewmask.pretext.contract import Pool, pooled, view
from fewmask.pretext.supervised import Supervised, SupervisedTask
from fewmask.types import UserError

POOL = Pool(8, 8, 10, ("cat", "dog", "horse"))


def make_task(**settings: float) -> SupervisedTask:
    torch.manual_seed(1)
    return Supervised(**settings).task(GroupNormEncoder(), 16, POOL)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_with_smoothed_labels(smoothing: float) -> None:
    task, batch = make_task(smoothing=smoothing), make_batch()
    found = task(batch)["cross_entropy"].item()
    features = pooled(task.encoder, normalise(view(batch, 16, task.views)))
    expected = 0.0
    for row, label in zip(task.head(features).detach().double(), batch.labels, strict=True):
        total = sum(math.exp(logit) for logit in row.tolist())
        for k, logit in enumerate(row.tolist()):
            target = smoothing / 3 + (1 - smoothing if k == label else 0)
            expected -= target * math.log(math.exp(logit) / total) / 8
    assert found == pytest.approx(expected, rel=1e-5)


def test_chance_is_the_share_of_the_largest_class_seen_so_far() -> None:
    task = make_task()
    task(make_batch()._replace(labels=torch.tensor([0, 0, 0, 0, 0, 0, 1, 2])))
    assert task.signals["chance"].item() == 6 / 8
    task(make_batch()._replace(labels=torch.tensor([1, 1, 1, 1, 1, 1, 1, 2])))
    assert task.signals["chance"].item() == 8 / 16
    assert task.seen.tolist() == [6, 8, 2]
    assert "seen" in task.state_dict()


def test_it_learns_to_tell_bright_from_dark() -> None:
    """No class is beyond a linear head on these, so the accuracy must leave chance behind."""
    encoder = GroupNormEncoder()
    encoder.one[1] = nn.Identity()  # normalisation takes the brightness out
    encoder.two[1] = nn.Identity()
    torch.manual_seed(1)
    task = Supervised(smoothing=0.0, colour=0.0).task(encoder, 16, POOL)
    labels = torch.arange(8) % 2
    pictures = (50 + 150 * labels).to(torch.uint8)[:, None, None, None].expand(8, 3, 24, 24)
    optimizer = torch.optim.Adam(task.parameters(), 1e-2)
    for step in range(30):
        batch = make_batch(step=step)._replace(images=pictures.contiguous(), labels=labels)
        loss = task(batch)["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert task.signals["accuracy"].item() == 1.0
    assert task.signals["chance"].item() == 0.5
    assert loss.item() < 0.2


@pytest.mark.parametrize(("classes", "found"), [((), "no classes"), (("cat",), "only the class")])
def test_a_pool_without_classes_is_refused(classes: tuple[str, ...], found: str) -> None:
    with pytest.raises(UserError, match=rf"{found}.*FOLDER/cat/1\.jpg"):
        Supervised().task(GroupNormEncoder(), 16, Pool(8, 8, 10, classes))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="--smoothing 1"):
        Supervised(smoothing=1.0)
    with pytest.raises(UserError, match="--crop-min 0"):
        Supervised(crop_min=0.0)
