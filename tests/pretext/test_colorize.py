"""Colourisation: the what holds for all three objectives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pretext.small import GroupNormEncoder, make_batch
from torch import Tensor, nn
from torch.nn import functional

import fewmask
from fewmask import encoders
from fewmask.pretext import Pool
from fewmask.pretext.colorize import Colorize, ColorizeTask, Head, Objective, Regression
from fewmask.pretext.colour import rgb_to_lab
from fewmask.types import Batch, UserError

OBJECTIVES = ("bins", "regression", "gan")
SIZE = 32


def build(objective: Any, **settings: Any) -> ColorizeTask:
    torch.manual_seed(1)
    config = Colorize(objective=objective, discriminator=8, **settings)
    task = config.task(GroupNormEncoder(), SIZE, Pool())
    without_batch_norm(task)
    return task


def without_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        else:
            without_batch_norm(child)


def batch_of(rank: int = 0, world: int = 1, **changes: Any) -> Batch:
    return make_batch(rank, world, side=40)._replace(**changes)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_reach_every_weight_and_padding_does_not_reach_them(objective: str) -> None:
    valid = torch.tensor([[40, 24]] * 8, dtype=torch.int32)
    batch = batch_of(valid=valid)
    changed = batch.images.clone()
    changed[..., 24:] = 255 - changed[..., 24:]
    task = build(objective)
    losses = task(batch)
    total(losses).backward()
    missing = [name for name, p in task.named_parameters() if p.grad is None]
    assert not missing
    again = build(objective)(batch._replace(images=changed))
    assert values(again) == values(losses)


@pytest.mark.parametrize("objective", ["regression", "gan"])
def test_the_mean_of_two_processes_gradients_is_that_of_the_batch(objective: str) -> None:
    """The bins' prior has to be gathered: the contract tests do it in two processes."""

    def gradient(*parts: Batch) -> Tensor:
        task = build(objective)
        for part in parts:
            (total(task(part)) / len(parts)).backward()
        return torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None])

    torch.testing.assert_close(
        gradient(batch_of(0, 2), batch_of(1, 2)), gradient(batch_of()), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_grey_pictures_do_not_count(objective: str) -> None:
    batch = batch_of()
    grey = batch.images.clone()
    grey[4:] = grey[4:, :1]
    whole, half = build(objective), build(objective)
    mixed = values(whole(batch._replace(images=grey)))
    assert whole.signals["coloured"] == 0.5
    part = batch._replace(images=grey[:4], rows=batch.rows[:4])
    alone = values(half(part))
    assert mixed == pytest.approx({k: v / 2 for k, v in alone.items()}, rel=1e-4)
    task = build(objective)
    nothing = task(batch._replace(images=batch.images[:, :1].expand(-1, 3, -1, -1)))
    assert total(nothing).item() == 0
    assert task.signals["coloured"] == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_encoder_sees_grey_alone(objective: str) -> None:
    """Three channels that are the same lightness, scaled as the encoder's input always is."""
    task = build(objective)
    seen: list[Tensor] = []
    task.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    task(batch_of())
    scale, middle = torch.tensor([0.229, 0.224, 0.225]), torch.tensor([0.485, 0.456, 0.406])
    grey = seen[0] * scale[:, None, None] + middle[:, None, None]
    torch.testing.assert_close(grey, grey[:, :1].expand(-1, 3, -1, -1), rtol=0, atol=1e-5)
    assert 0 <= grey.min() < grey.max() <= 1.0001


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_colours_that_follow_from_the_lightness_are_learned(objective: str) -> None:
    """Dark is blue and bright is orange: what a constant answer gets wrong."""
    dark, bright = torch.tensor([20.0, 40.0, 120.0]), torch.tensor([250.0, 190.0, 120.0])
    generator = torch.Generator().manual_seed(0)
    shapes = functional.interpolate(torch.rand(8, 1, 4, 4, generator=generator), (40, 40)) > 0.5
    pictures = torch.where(shapes, bright[:, None, None], dark[:, None, None]).to(torch.uint8)
    task = build(objective)
    optimizer = torch.optim.Adam(task.parameters(), 5e-3)
    for step in range(40):
        losses = task(batch_of(images=pictures, step=step))
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
    signals = {name: float(value) for name, value in task.signals.items()}
    assert signals["error"] < 0.6 * signals["constant_error"]
    if objective == "bins":
        assert signals["accuracy"] > signals["constant_accuracy"] + 0.2


@pytest.mark.parametrize("n", [3, 8, 11])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_samples_are_three_rows_of_eight(objective: str, n: int) -> None:
    batch = make_batch(n=n, side=40)
    task = build(objective).eval()
    with torch.inference_mode():
        pictures = task.samples(batch)
    assert pictures.shape == (24, 3, SIZE, SIZE)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    grey, painted, truth = pictures.split(8)
    shown = min(n, 8)
    assert bool((pictures.view(3, 8, -1)[:, shown:] == 1).all())
    lab = [rgb_to_lab(row[:shown]) for row in (grey, painted, truth)]
    assert lab[0][:, 1:].abs().max() < 0.01
    torch.testing.assert_close(lab[0][:, 0], lab[2][:, 0], rtol=0, atol=0.01)
    assert lab[2][:, 1:].abs().max() > 20
    expected = functional.interpolate(
        batch.images[:shown].float() / 255, SIZE, mode="bilinear", antialias=True
    )
    torch.testing.assert_close(truth[:shown], expected, rtol=0, atol=0.02)


def test_the_head_follows_the_encoders_levels() -> None:
    """At odd sizes, with a level that is empty, with skips and without."""
    encoder = encoders.build("convnext_atto").eval()
    assert encoder.out_channels[1] == 0
    maps = encoder(torch.zeros(2, 3, 72, 104))
    quarter = Head(encoder.out_channels, 4, 313, skips=False)
    assert quarter(maps).shape == (2, 313, 18, 26)
    assert not quarter.lateral
    half = Head(encoder.out_channels, 2, 2, skips=True)
    assert half(maps).shape == (2, 2, 36, 52)
    assert sorted(half.lateral) == ["2", "3", "4"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "bin"}, "--objective bin: expected one of bins, regression, gan"),
        ({"distance": "l3"}, "--distance l3: expected one of l1, l2"),
        ({"prior_mix": 1.5}, "--prior-mix 1.5"),
        ({"temperature": 0.0}, "--temperature 0"),
        ({"l1_weight": -1.0}, "--l1-weight -1"),
        ({"discriminator": 0}, "--discriminator 0"),
        ({"crop_min": 0.0}, "--crop-min 0"),
        ({"flip": 2.0}, "--flip 2"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("-", "[-]")):
        Colorize(**settings)


def test_a_run_paints_samples_as_it_goes(write_pairs: Any, tmp_path: Path) -> None:
    pool = write_pairs(6, 40, 48) / "images"
    out = tmp_path / "run"
    fewmask.pretrain(
        images=str(pool),
        out=str(out),
        pretext=Colorize(objective="gan", discriminator=4),
        encoder="resnet18",
        size=32,
        steps=2,
        batch_size=4,
    )
    assert (out / "samples" / "step_000002.png").exists()


@pytest.mark.parametrize("distance", ["l2", "l1"])
def test_regression_is_its_formula(distance: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(3, 2, 6, 4, generator=generator)
    ab = rgb_to_lab(torch.rand(3, 3, 6, 4, generator=generator))[:, 1:]
    coloured = torch.tensor([1.0, 0.0, 1.0])
    output[0] = ab[0] / 110 + 0.004 * output[0].clamp(-1, 1)  # within one Lab unit
    losses, signals = Regression(distance)(output, ab[:, :1], ab, coloured)
    loss = 0.0
    for i in (0, 2):
        for difference in (output[i] - ab[i] / 110).flatten().tolist():
            size = abs(difference)
            if distance == "l2":
                loss += size**2
            else:
                loss += 0.5 * 110 * size**2 if size < 1 / 110 else size - 0.5 / 110
    assert losses[distance].item() == pytest.approx(loss / output.numel(), rel=1e-4)
    assert signals["error"] > signals["constant_error"]


def test_the_gans_rate_and_momentum_are_isolas_and_the_others_are_the_defaults() -> None:
    def of(objective: Objective) -> tuple[float, float]:
        task = Colorize(objective=objective).task(GroupNormEncoder(), 32, Pool())
        return task.rate, task.beta1

    assert of("gan") == (0.5, 0.5)
    assert of("bins") == of("regression") == (1, 0.9)
