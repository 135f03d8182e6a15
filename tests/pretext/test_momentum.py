"""Teachers: what moves them, how fast, and what does not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewmask.pretext.momentum import default_momentum, follow, retrieved, rising, teacher_of


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_a_teacher_is_a_frozen_copy_of_its_own() -> None:
    student = network()
    teacher = teacher_of(student)
    assert all(p.requires_grad for p in student.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1)
    for held, new in zip(teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new - held, torch.ones_like(held))


def test_a_teacher_keeps_its_share_of_every_weight_and_its_own_statistics() -> None:
    teacher, student = teacher_of(network()), network()
    with torch.no_grad():
        for p in student.parameters():
            p.normal_()
        student[1].running_mean.fill_(7)  # type: ignore[union-attr, operator]
    before = [p.clone() for p in teacher.parameters()]
    follow(teacher, student, 0.9)
    for held, old, new in zip(teacher.parameters(), before, student.parameters(), strict=True):
        torch.testing.assert_close(held, 0.9 * old + 0.1 * new.detach())
    assert (teacher[1].running_mean == 0).all()  # type: ignore[index]


def test_momentum_rises_to_one_along_half_a_cosine() -> None:
    steps = [rising(0.9, step, 1000) for step in range(1001)]
    assert steps[0] == pytest.approx(0.9)
    assert steps[500] == pytest.approx(0.95)
    assert steps[250] == pytest.approx(1 - 0.05 * (1 + math.sqrt(0.5)))
    assert steps[1000] == pytest.approx(1)
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("steps", "published"), [(12_512, 0.97), (31_280, 0.99), (93_840, 0.99), (312_800, 0.996)]
)
def test_the_default_is_near_what_byol_published(steps: int, published: float) -> None:
    """BYOL's presets for 40 to 1000 epochs of ImageNet at batch 4096: memories of 33 to 250 steps.

    The formula's memory is within a factor of 1.6 of each.
    """
    ratio = (1 - published) / (1 - default_momentum(steps))
    assert 1 / 1.6 < ratio < 1.6


def test_the_default_leaves_short_runs_a_teacher_that_moves() -> None:
    assert default_momentum(300) == pytest.approx(0.886, abs=1e-3)
    assert default_momentum(1000) == pytest.approx(0.934, abs=1e-3)
    assert 0 < default_momentum(1) < default_momentum(10)


def test_retrieval_is_one_for_equal_rows_and_chance_for_equal_answers() -> None:
    torch.manual_seed(0)
    z = torch.randn(64, 16)
    assert [float(v) for v in retrieved(z, 3 * z)] == [1.0, 1 / 64]
    assert retrieved(z, z.roll(1, dims=0))[0] == 0
    assert retrieved(torch.ones(64, 16), torch.ones(64, 16))[0] == 1 / 64
