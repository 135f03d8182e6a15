"""BYOL: the loss by hand, what the teacher is and is not, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from tests.pretext.small import GroupNormEncoder, make_batch
from torch import Tensor, nn

from fewmask import encoders
from fewmask.augment import Views, normalise
from fewmask.pretext.byol import Byol, ByolTask, squared_distances
from fewmask.pretext.contract import Pool, pooled, view
from fewmask.pretext.momentum import rising
from fewmask.types import Batch, UserError


def make_task(encoder: nn.Module | None = None, **settings: object) -> ByolTask:
    encoder = encoder or GroupNormEncoder()
    torch.manual_seed(1)
    config = Byol(projection=8, **settings)  # type: ignore[arg-type]
    return config.task(encoder, 16, Pool(images=8, batch_size=8, steps=40))


def test_distances_are_those_of_the_unit_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    p, t = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    for row, one, two in zip(squared_distances(p, t).tolist(), p.tolist(), t.tolist(), strict=True):
        parts = [x / math.hypot(*one) - y / math.hypot(*two) for x, y in zip(one, two, strict=True)]
        assert row == pytest.approx(sum(part**2 for part in parts), abs=1e-12)
    assert squared_distances(p, -p).tolist() == pytest.approx([4.0] * 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert squared_distances(p.bfloat16(), t.bfloat16()).dtype == torch.float32


def test_the_loss_is_that_of_both_directions_one_picture_at_a_time() -> None:
    """Heads in evaluation mode: a picture's answer doesn't depend on the others in its batch."""
    task, batch = make_task(), make_batch()
    nn.init.normal_(task.teacher_projector[0].weight)  # another than the student's
    for head in (task.projector, task.predictor, task.teacher_projector):
        head.eval()
    first, second = (normalise(view(batch, 16, Views(), stream)) for stream in (0, 1))

    def one_way(seen: Tensor, wanted: Tensor) -> list[float]:
        distances = []
        for one, other in zip(seen.split(1), wanted.split(1), strict=True):
            p = task.predictor(task.projector(pooled(task.encoder, one)))[0]
            t = task.teacher_projector(pooled(task.teacher_encoder, other))[0]
            distances.append((p / p.norm() - t / t.norm()).detach().square().sum().item())
        return distances

    both = zip(one_way(first, second), one_way(second, first), strict=True)
    expected = sum(a + b for a, b in both) / len(batch.images)
    assert task(batch)["byol"].item() == pytest.approx(expected, rel=1e-5)
    assert task.signals["cosine"].item() == pytest.approx(1 - expected / 4, abs=1e-5)


def test_the_teacher_follows_by_its_momentum_and_gets_no_gradient() -> None:
    task = make_task(momentum=0.8)
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], 1.0)
    start = [p.clone() for p in task.teacher_encoder.parameters()]
    task(make_batch())["byol"].backward()
    assert all(p.grad is None for p in task.teacher_encoder.parameters())
    assert all(p.grad is None for p in task.teacher_projector.parameters())
    optimizer.step()
    task.after_step(10, 40)
    share = rising(0.8, 10, 40)
    pairs = zip(task.teacher_encoder.parameters(), task.encoder.parameters(), strict=True)
    for (held, new), old in zip(pairs, start, strict=True):
        torch.testing.assert_close(held, share * old + (1 - share) * new.detach())
    assert task.teacher_projector[0].weight.ne(task.projector[0].weight).any()


def test_the_teachers_batch_norm_takes_its_own_batchs_statistics() -> None:
    task = make_task(encoders.build("resnet18"))
    batch = make_batch(side=32)
    before = task(batch)["byol"].item()
    for module in (*task.teacher_encoder.modules(), *task.teacher_projector.modules()):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.fill_(3.0)  # type: ignore[union-attr]
    assert task(batch)["byol"].item() == before


def test_widths_are_the_papers_for_a_resnet50() -> None:
    encoder = GroupNormEncoder()
    encoder.out_channels = (3, 8, 2048)  # type: ignore[assignment]
    task = Byol().task(encoder, 16, Pool())
    shapes = [tuple(p.shape) for p in (task.projector[0].weight, task.projector[3].weight)]
    assert shapes == [(4096, 2048), (256, 4096)]
    shapes = [tuple(p.shape) for p in (task.predictor[0].weight, task.predictor[3].weight)]
    assert shapes == [(4096, 256), (256, 4096)]
    assert Byol(hidden=(5, 6)).task(GroupNormEncoder(), 16, Pool()).predictor[3].out_features == 6


def test_it_learns_to_tell_pictures_apart() -> None:
    """Pictures that differ in brightness alone, views that leave it alone: easily told apart."""
    levels = torch.linspace(10, 245, 8).to(torch.uint8)[:, None, None, None]
    batch = make_batch()._replace(images=levels.expand(8, 3, 24, 24).contiguous())
    encoder = GroupNormEncoder()
    encoder.one[1] = nn.Identity()  # normalisation takes the brightness out
    encoder.two[1] = nn.Identity()
    task = make_task(encoder, views=Views(colour=0.0, grey=0.0, blur=0.0))
    accuracies, losses = trained(task, batch, 100)
    assert losses[-1] < 0.2 * losses[0]
    assert sum(accuracies[-10:]) / 10 >= 0.7
    assert task.signals["chance"].item() == 1 / 8
    assert task.signals["spread"].item() > 0.1


def trained(task: ByolTask, batch: Batch, steps: int) -> tuple[list[float], list[float]]:
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], 1e-2)
    accuracies, losses = [], []
    for step in range(steps):
        loss = task(batch._replace(step=step))["byol"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step(step, steps)
        losses.append(loss.item())
        accuracies.append(task.signals["accuracy"].item())
    return accuracies, losses


def test_a_constant_prediction_has_a_cosine_near_zero() -> None:
    """With batch norm after the projector; the paper's projections share a direction."""
    constant = {}
    for norm in ("batch", "none"):
        task = make_task(encoders.build("resnet18"), output_norm=norm)
        images = normalise(view(make_batch(n=64, side=32), 32, Views()))
        z = nn.functional.normalize(task.teacher_projector(pooled(task.encoder, images)), dim=1)
        constant[norm] = z.mean(0).norm().item()  # the best one: along the mean direction
    assert constant["batch"] < 0.2
    assert constant["none"] > 0.4


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"--momentum 1\.5: expected a number of 0 to 1"):
        Byol(momentum=1.5)
    with pytest.raises(UserError, match="--output-norm layer: expected batch or none"):
        Byol(output_norm="layer")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--projection and --hidden"):
        Byol(hidden=(0,))
