"""Colourisation: the three objectives against slow loops, and what holds for all of them."""

from __future__ import annotations

import math
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
from fewmask.pretext.colorize import Colorize, ColorizeTask, Head, Regression
from fewmask.pretext.colorize_bins import Bins
from fewmask.pretext.colorize_gan import Discriminator, Gan, halvings_for
from fewmask.pretext.colour import ab_bins, errors, rgb_to_lab
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


def random_case(channels: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs, lightness and true ab of three pictures of 6 x 4, the second of them grey."""
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(3, channels, 6, 4, generator=generator)
    lab = rgb_to_lab(torch.rand(3, 3, 6, 4, generator=generator))
    return output, lab[:, :1], lab[:, 1:], torch.tensor([1.0, 0.0, 1.0])


# Bins


def slow_encoding(ab: Tensor, centres: Tensor) -> Tensor:
    """Of one colour, over all bins: the 5 nearest, by a Gaussian of sigma 5, adding up to 1."""
    distances = [math.dist(ab.tolist(), centre) for centre in centres.tolist()]
    nearest = sorted(range(len(distances)), key=lambda q: distances[q])[:5]
    encoding = torch.zeros(len(centres), dtype=torch.float64)
    for q in nearest:
        encoding[q] = math.exp(-(distances[q] ** 2) / (2 * 5**2))
    return encoding / encoding.sum()


def test_the_soft_encoding_is_that_of_a_slow_loop() -> None:
    bins = Bins(0.5, 0.38)
    colours = torch.rand(1, 3, 20, 3, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    ab = rgb_to_lab(colours).flatten(2)[0, 1:].T.contiguous()
    chosen, shares = bins.encode(ab)
    found = torch.zeros(len(ab), 313).scatter_(1, chosen, shares)
    expected = torch.stack([slow_encoding(one, ab_bins()) for one in ab]).float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_the_five_nearest_bins_are_found_among_few() -> None:
    """Of all colours of a dense grid, and of means of pure ones, which lie at the edge."""
    steps = torch.linspace(0, 1, 28)
    generator = torch.Generator().manual_seed(0)
    pure = (torch.rand(40_000, 3, generator=generator) > 0.5).float()
    colours = torch.cat([torch.cartesian_prod(steps, steps, steps), pure])
    ab = rgb_to_lab(colours.T[None, :, :, None])[0, 1:, :, 0].T
    share = torch.rand(20_000, 1, generator=generator)
    ends = ab[-40_000:].view(20_000, 2, 2)
    ab = torch.cat([ab, ends[:, 0] * share + ends[:, 1] * (1 - share)])
    bins = Bins(0.5, 0.38)
    chosen, _ = bins.encode(ab)
    found = (ab[:, None] - bins.centres[chosen]).norm(dim=2)
    expected = (ab[:, None] - bins.centres).norm(dim=2).topk(5, largest=False).values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # ties may fall either way


def test_the_loss_is_zhangs_by_a_slow_loop() -> None:
    bins = Bins(prior_mix=0.5, temperature=0.38)
    output, lightness, ab, coloured = random_case(313)
    losses, _ = bins(output, lightness, ab, coloured)

    centres = ab_bins().double()
    encodings = {
        (i, y, x): slow_encoding(ab[i, :, y, x], centres)
        for i in (0, 2)
        for y in range(6)
        for x in range(4)
    }
    counts = torch.ones(313, dtype=torch.float64)
    for encoding in encodings.values():
        counts[encoding.argmax()] += 1
    prior = torch.zeros(313, dtype=torch.float64)
    for q in range(313):  # each bin's share goes to the bins about it
        kernel = torch.exp(-(centres - centres[q]).square().sum(1) / (2 * 5**2))
        prior += counts[q] / counts.sum() * kernel / kernel.sum()
    weights = 1 / (0.5 * prior + 0.5 / 313)
    weights /= (prior * weights).sum()
    loss = 0.0
    for (i, y, x), encoding in encodings.items():
        log_p = output[i, :, y, x].double().log_softmax(0)
        loss -= float(weights[encoding.argmax()] * (encoding * log_p).sum())
    assert losses["cross_entropy"].item() == pytest.approx(loss / (3 * 6 * 4), rel=1e-4)


def test_rebalancing_weights_have_a_mean_of_one_and_a_mix_of_one_weights_all_alike() -> None:
    bins = Bins(prior_mix=0.5, temperature=0.38)
    _, _, ab, coloured = random_case(313)
    bins.count(bins.encode(ab.permute(0, 2, 3, 1).reshape(-1, 2))[0][:, 0].view(3, -1), coloured)
    prior, weights = bins.rebalancing()
    assert float(prior.sum()) == pytest.approx(1, abs=1e-5)
    assert float((prior * weights).sum()) == pytest.approx(1, abs=1e-5)
    assert weights[prior.argmax()] < weights[prior.argmin()] / 2
    bins.prior_mix = 1.0
    torch.testing.assert_close(bins.rebalancing()[1], torch.ones(313))


def test_the_prior_counts_every_coloured_pixel_while_training_and_none_after() -> None:
    bins = Bins(0.5, 0.38)
    output, lightness, ab, coloured = random_case(313)
    for step in (1, 2):
        bins(output, lightness, ab, coloured)
        assert int(bins.counts.sum()) == 313 + step * 2 * 6 * 4
    bins.eval()
    bins(output, lightness, ab, coloured)
    assert int(bins.counts.sum()) == 313 + 2 * 2 * 6 * 4
    assert "counts" in bins.state_dict()


def test_the_annealed_mean_lies_between_the_mean_and_the_likeliest_colour() -> None:
    output, _, _, _ = random_case(313)
    centres = ab_bins()
    logits = output[0, :, 2, 1].double()
    sharper = torch.exp(logits.log_softmax(0) / 0.38)
    expected = (sharper / sharper.sum()) @ centres.double()
    found = Bins(0.5, 0.38).colours(output)[0, :, 2, 1]
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-3)
    likeliest = Bins(0.5, 1e-3).colours(output)[0, :, 2, 1]
    torch.testing.assert_close(likeliest, centres[logits.argmax()])


def test_signals_of_bins_tell_the_truth_from_a_constant_answer() -> None:
    bins = Bins(0.5, 0.38)
    _, lightness, ab, coloured = random_case(313)
    chosen, _ = bins.encode(ab.permute(0, 2, 3, 1).reshape(-1, 2))
    truth = functional.one_hot(chosen[:, 0], 313).view(3, 6, 4, 313).permute(0, 3, 1, 2)
    _, right = bins(50.0 * truth, lightness, ab, coloured)
    assert right["accuracy"] == 1
    assert right["error"] < 5.1  # half a bin's width, in a and in b: up to 7.07
    _, wrong = bins(-50.0 * truth, lightness, ab, coloured)
    assert wrong["accuracy"] == 0
    # The rebalanced answer of one who knows the prior and nothing else.
    prior, weights = bins.rebalancing()
    answer = (prior * weights).log()[None, :, None, None].expand(3, -1, 6, 4)
    _, constant = bins.eval()(answer, lightness, ab, coloured)
    assert float(constant["accuracy"]) == pytest.approx(float(constant["constant_accuracy"]))
    assert 0 < constant["constant_accuracy"] < 0.7
    colour = (prior @ bins.centres)[None, :, None, None].expand(3, -1, 3, 2)
    expected = errors(colour, ab[:, :, ::2, ::2], coloured)
    assert float(constant["error"]) == pytest.approx(float(expected["error"]), rel=1e-4)
    assert float(constant["constant_error"]) == pytest.approx(float(expected["constant_error"]))


# Regression


@pytest.mark.parametrize("distance", ["l2", "l1"])
def test_regression_is_its_formula(distance: Any) -> None:
    output, lightness, ab, coloured = random_case(2)
    output[0] = ab[0] / 110 + 0.004 * output[0].clamp(-1, 1)  # within one Lab unit
    losses, signals = Regression(distance)(output, lightness, ab, coloured)
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


# pix2pix


def receptive_field(discriminator: Discriminator, side: int) -> int:
    """Pixels along a side that one logit in the middle depends on."""
    picture = torch.zeros(1, 3, side, side, requires_grad=True)
    layers = [m for m in discriminator.layers if not isinstance(m, nn.InstanceNorm2d)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1.0)
            nn.init.zeros_(layer.get_parameter("bias"))
    logits = nn.Sequential(*layers)(picture)
    middle = logits.shape[2] // 2
    logits[0, 0, middle, middle].backward()
    assert picture.grad is not None
    return int((picture.grad[0, 0] != 0).any(0).sum())


@pytest.mark.parametrize(
    ("side", "halvings", "field"),
    [(256, 3, 70), (192, 3, 70), (128, 2, 34), (112, 2, 34), (64, 1, 16), (32, 1, 16)],
)
def test_the_discriminators_field_of_view_is_isolas_share_of_the_side(
    side: int, halvings: int, field: int
) -> None:
    assert halvings_for(side) == halvings
    assert receptive_field(Discriminator(side, 4), 160) == field


def test_the_widest_discriminator_has_isolas_layers() -> None:
    convolutions = [m for m in Discriminator(256).layers if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 512, 1]
    assert [m.stride[0] for m in convolutions] == [2, 2, 2, 1, 1]
    assert {m.kernel_size for m in convolutions} == {(4, 4)}


def gan_case() -> tuple[Gan, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    gan = Gan(24, l1_weight=100.0, width=4)
    generator = torch.Generator().manual_seed(0)
    lab = rgb_to_lab(torch.rand(3, 3, 24, 24, generator=generator))
    output = torch.randn(3, 2, 24, 24, generator=generator).requires_grad_()
    return gan, output, lab[:, :1], lab[:, 1:], torch.tensor([1.0, 0.0, 1.0])


def test_the_gans_losses_are_isolas() -> None:
    gan, output, lightness, ab, coloured = gan_case()
    losses, signals = gan(output, lightness, ab, coloured)
    l1, adversarial, real_loss, fake_loss = [], [], [], []
    for i in (0, 2):
        fake = output[i].tanh()
        l1.append((fake - ab[i] / 110).abs().mean().item())
        grey = lightness[i] / 50 - 1
        of_fake = gan.discriminator(torch.cat([grey, fake])[None]).sigmoid()
        of_real = gan.discriminator(torch.cat([grey, ab[i] / 110])[None]).sigmoid()
        adversarial.append(-of_fake.log().mean().item())
        real_loss.append(-of_real.log().mean().item())
        fake_loss.append(-(1 - of_fake).log().mean().item())
    assert losses["l1"].item() == pytest.approx(100 * sum(l1) / 3, rel=1e-4)
    assert losses["adversarial"].item() == pytest.approx(sum(adversarial) / 3, rel=1e-4)
    expected = 0.5 * (sum(real_loss) + sum(fake_loss)) / 3
    assert losses["discriminator"].item() == pytest.approx(expected, rel=1e-4)
    assert 0 <= signals["real_accuracy"] <= 1
    assert 0 <= signals["fake_accuracy"] <= 1


def test_each_side_of_the_gan_learns_from_its_own_loss_alone() -> None:
    def gradients(*names: str) -> tuple[Tensor | None, Tensor | None]:
        gan, output, lightness, ab, coloured = gan_case()
        losses, _ = gan(output, lightness, ab, coloured)
        torch.stack([losses[name] for name in names]).sum().backward()
        first = gan.discriminator.layers[0].weight
        return output.grad, first.grad  # type: ignore[return-value]

    painter, critic = gradients("adversarial")
    assert painter is not None
    assert painter.abs().sum() > 0
    assert critic is None
    painter, critic = gradients("discriminator")
    assert painter is None
    together = gradients("l1", "adversarial", "discriminator")
    assert torch.equal(together[1], critic)  # type: ignore[arg-type]


def test_the_gans_rate_and_momentum_are_isolas_and_the_others_are_the_defaults() -> None:
    gan = Colorize(objective="gan")
    assert (gan.rate, gan.beta1, gan.l1_weight) == (0.5, 0.5, 100)
    assert {(c.rate, c.beta1) for c in (Colorize(), Colorize(objective="regression"))} == {(1, 0.9)}


# All of them


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
