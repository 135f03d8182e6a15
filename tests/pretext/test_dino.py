"""DINO: its loss, targets and crops by hand, and what must stay where it is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.pretext.small import GroupNormEncoder, make_batch
from torch import Tensor, nn

from fewmask import encoders
from fewmask.augment import normalise
from fewmask.pretext.contract import Pool, pooled, view
from fewmask.pretext.dino import (
    Dino,
    DinoTask,
    GlobalViews,
    Head,
    assignment_loss,
    default_centring,
    default_local_size,
    default_prototypes,
    entropy,
)
from fewmask.pretext.momentum import rising
from fewmask.types import UserError


def make_task(encoder: nn.Module | None = None, steps: int = 40, **settings: Any) -> DinoTask:
    encoder = encoder or GroupNormEncoder()
    torch.manual_seed(1)
    config = Dino(**{"hidden": (32, 32), "projection": 16, "local_crops": 3, **settings})
    return config.task(encoder, 16, Pool(images=8, batch_size=8, steps=steps))


def slow_loss(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """Equation 3 of the paper, pair by pair."""
    terms = []
    for t, of_teacher in enumerate(teacher.tolist()):
        for v, of_student in enumerate(student.tolist()):
            for p, logits in zip(of_teacher, of_student, strict=True) if v != t else ():
                total = sum(math.exp(x / temperature) for x in logits)
                logs = [math.log(math.exp(x / temperature) / total) for x in logits]
                terms.append(-sum(a * b for a, b in zip(p, logs, strict=True)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("crops", [2, 5])
def test_the_loss_is_the_papers(crops: int) -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(crops, 4, 6, generator=generator, dtype=torch.float64)
    teacher = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64).softmax(2)
    expected = slow_loss(student, teacher, 0.3)
    assert assignment_loss(student, teacher, 0.3).item() == pytest.approx(expected, abs=1e-12)


def test_a_constant_student_loses_at_least_the_entropy_of_the_mean_assignment() -> None:
    teacher = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0)).softmax(2)
    best = entropy(teacher.mean((0, 1)))
    answer = teacher.mean((0, 1)).log().expand(5, 9, 6)
    assert assignment_loss(answer, teacher, 1.0).item() == pytest.approx(best.item(), rel=1e-5)
    uniform = torch.zeros(5, 9, 6)
    assert assignment_loss(uniform, teacher, 1.0).item() == pytest.approx(math.log(6), rel=1e-5)


def test_entropy_runs_from_one_answer_to_all() -> None:
    p = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    assert entropy(p).tolist() == pytest.approx([0, math.log(4)])


def test_targets_are_centred_and_sharpened_less_and_less() -> None:
    task = make_task(steps=100, teacher_start=0.05, teacher_temperature=0.25, teacher_warmup=0.4)
    torch.nn.init.uniform_(task.center)
    outputs = torch.rand(2, 3, len(task.center))
    for step, temperature in ((0, 0.05), (20, 0.15), (40, 0.25), (90, 0.25)):
        raised = ((outputs - task.center) / temperature).exp()
        expected = raised / raised.sum(2, keepdim=True)
        torch.testing.assert_close(task.assigned(outputs, step), expected)


def test_the_centre_is_the_running_mean_of_the_teachers_outputs() -> None:
    task = make_task(centring=0.7)
    means, expected = [], None
    for step in range(5):
        means.append(torch.rand(len(task.center)))
        task.move_center(means[-1] + torch.tensor([-0.5, 0.5])[:, None, None].expand(2, 3, 1), step)
        plain = torch.stack(means).mean(0)  # while it remembers less than 1 / (1 - 0.7) steps
        expected = plain if step < 3 else 0.7 * expected + 0.3 * means[-1]
        torch.testing.assert_close(task.center, expected)
    task.eval()
    task.move_center(torch.rand(2, 3, len(task.center)), 5)
    torch.testing.assert_close(task.center, expected)


def test_a_batch_is_centred_with_itself() -> None:
    """By default, in a short run, its own mean is all that is taken off."""
    task, batch = make_task(), make_batch()
    task.center.fill_(100.0)
    large = torch.cat([view(batch, 16, task.config.views, stream) for stream in (0, 1)])
    mean = task.teacher_head(pooled(task.teacher_encoder, normalise(large))).mean(0)
    task(batch)
    assert task.centring == 0
    torch.testing.assert_close(task.center, mean)


def test_the_loss_is_made_of_all_crops_one_by_one() -> None:
    task, batch = make_task(head_norm="none"), make_batch(step=0)
    nn.init.normal_(task.teacher_head.prototypes.weight)  # another than the student's
    large = [normalise(view(batch, 16, task.config.views, stream)) for stream in (0, 1)]
    small = [normalise(view(batch, 8, task.local_views, 2 + k)) for k in range(3)]
    student = torch.stack([task.head(pooled(task.encoder, one)) for one in (*large, *small)])
    outputs = torch.stack([task.teacher_head(pooled(task.teacher_encoder, one)) for one in large])
    teacher = ((outputs - outputs.mean((0, 1))) / task.config.teacher_start).softmax(2)
    expected = slow_loss(student.detach().double(), teacher.double(), 0.1)
    assert task(batch)["dino"].item() == pytest.approx(expected, rel=1e-4)


def test_small_crops_are_smaller_parts() -> None:
    task = make_task()
    assert task.local_size == 8
    assert (task.local_views.crop_min, task.local_views.crop_max) == (0.05, 0.4)
    assert (task.config.views.crop_min, task.config.views.crop_max) == (0.4, 1.0)
    assert task.local_views.colour == task.config.views.colour


def test_prototypes_are_frozen_at_first_with_a_gradient_of_zero() -> None:
    task = make_task(steps=100, freeze_last=0.1)
    for step, frozen in ((0, True), (9, True), (10, False)):
        task.zero_grad()
        task(make_batch(step=step))["dino"].backward()
        gradient = task.head.prototypes.weight.grad
        assert gradient is not None  # several processes would wait for it
        assert (gradient.abs().max() == 0) == frozen
        assert task.head.project[0].weight.grad.abs().max() > 0


def test_outputs_are_cosines_whatever_the_prototypes_lengths() -> None:
    torch.manual_seed(0)
    head, features = Head((6, 8, 5), 40, batch_norm=True), torch.randn(3, 6)
    before = head(features)
    assert before.abs().max() <= 1
    with torch.no_grad():
        head.prototypes.weight.mul_(torch.rand(40, 1) + 0.5)
    torch.testing.assert_close(head(features), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(features).dtype == torch.float32


def test_crops_of_one_size_go_through_the_encoder_together() -> None:
    task, shapes = make_task(), []
    task.encoder.register_forward_pre_hook(lambda _, images: shapes.append(images[0].shape))
    task(make_batch())
    assert shapes == [(16, 3, 16, 16), (24, 3, 8, 8)]
    alone = make_task(local_crops=0)
    assert alone(make_batch())["dino"].isfinite()


def test_small_crops_leave_the_running_statistics_alone() -> None:
    statistics = []
    for crops in (0, 3):
        torch.manual_seed(0)
        task = make_task(encoders.build("resnet18"), local_crops=crops)
        task(make_batch(side=64))
        state = task.encoder.state_dict()
        statistics.append({k: v for k, v in state.items() if "running" in k or "tracked" in k})
        assert all(m.track_running_stats for m in norms(task.encoder))
    assert statistics[0]["bn1.running_mean"].abs().sum() > 0
    for name, value in statistics[0].items():
        assert torch.equal(value, statistics[1][name]), name


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def test_the_teacher_gets_no_gradient_and_follows() -> None:
    task = make_task(momentum=0.5)
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], 1.0)
    task(make_batch())["dino"].backward()
    optimizer.step()
    pairs = [(task.teacher_encoder, task.encoder), (task.teacher_head, task.head)]
    before = [distance(teacher, student) for teacher, student in pairs]
    assert all(p.grad is None for teacher, _ in pairs for p in teacher.parameters())
    task.after_step(10, 40)
    share = rising(0.5, 10, 40)  # half a cosine, as BYOL's
    assert share == pytest.approx(1 - 0.5 * (math.cos(math.pi * 10 / 40) + 1) / 2)
    for far, (teacher, student) in zip(before, pairs, strict=True):
        assert far > 0
        assert distance(teacher, student) == pytest.approx(share * far, rel=1e-4)


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return sum(float((a - b).detach().abs().sum()) for a, b in pairs)


def test_defaults_are_the_papers_at_its_scale() -> None:
    assert default_local_size(224, 32) == default_local_size(224, 16) == 96
    assert [default_local_size(size, 32) for size in (32, 64, 96, 128)] == [32, 32, 32, 64]
    assert default_centring(0.996) == pytest.approx(0.9)
    assert default_centring(0.9) == 0
    assert default_prototypes(1_281_167) == 65536
    assert [default_prototypes(n) for n in (1, 1000, 12_000, 15_000)] == [64, 1024, 16384, 16384]


def test_it_learns_to_tell_pictures_apart() -> None:
    """Pictures that differ in brightness alone, views that leave it alone: easily told apart."""
    levels = torch.linspace(10, 245, 8).to(torch.uint8)[:, None, None, None]
    batch = make_batch()._replace(images=levels.expand(8, 3, 24, 24).contiguous())
    encoder = GroupNormEncoder()
    encoder.one[1] = nn.Identity()  # normalisation takes the brightness out
    encoder.two[1] = nn.Identity()
    views = GlobalViews(colour=0.0, grey=0.0, blur=0.0)
    task = make_task(encoder, steps=60, prototypes=32, views=views)
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], 3e-3)
    shown: list[dict[str, float]] = []
    for step in range(60):
        loss = task(batch._replace(step=step))["dino"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step(step, 60)
        shown.append({"loss": loss.item(), **{k: v.item() for k, v in task.signals.items()}})
    last = {k: sum(row[k] for row in shown[-10:]) / 10 for k in shown[0]}
    assert last["loss"] < 0.3 * last["constant_answer"]
    assert last["accuracy"] > 0.6
    assert last["chance"] == 1 / 8
    assert last["teacher_entropy"] < 0.5


def test_settings_out_of_range_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"temperature": 0.0}, "--temperature 0.0: expected a number above 0"),
        ({"teacher_warmup": 2.0}, "--teacher-warmup 2.0: expected a number of 0 to 1"),
        ({"momentum": -0.1}, "--momentum -0.1"),
        ({"local_min": 0.5}, "--local-min 0.5 and --local-max 0.4"),
        ({"head_norm": "layer"}, "--head-norm layer: expected batch or none"),
        ({"local_crops": -1}, "--local-crops -1"),
        ({"local_size": 4}, "--local-size 4"),
        ({"prototypes": 1}, "--prototypes 1"),
        ({"hidden": (0,)}, "--projection and --hidden"),
    ]
    for settings, message in wrong:
        with pytest.raises(UserError, match=message):
            Dino(**settings)
