"""Classes of colour: encoding, prior, weights and loss against slow loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fewmask.pretext.colorize_bins import Bins
from fewmask.pretext.colour import ab_bins, errors, rgb_to_lab


def random_case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, lightness and true ab of three pictures of 6 x 4, the second of them grey."""
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(3, 313, 6, 4, generator=generator)
    lab = rgb_to_lab(torch.rand(3, 3, 6, 4, generator=generator))
    return output, lab[:, :1], lab[:, 1:], torch.tensor([1.0, 0.0, 1.0])


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
    output, lightness, ab, coloured = random_case()
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
    _, _, ab, coloured = random_case()
    bins.count(bins.encode(ab.permute(0, 2, 3, 1).reshape(-1, 2))[0][:, 0].view(3, -1), coloured)
    prior, weights = bins.rebalancing()
    assert float(prior.sum()) == pytest.approx(1, abs=1e-5)
    assert float((prior * weights).sum()) == pytest.approx(1, abs=1e-5)
    assert weights[prior.argmax()] < weights[prior.argmin()] / 2
    bins.prior_mix = 1.0
    torch.testing.assert_close(bins.rebalancing()[1], torch.ones(313))


def test_the_prior_counts_every_coloured_pixel_while_training_and_none_after() -> None:
    bins = Bins(0.5, 0.38)
    output, lightness, ab, coloured = random_case()
    for step in (1, 2):
        bins(output, lightness, ab, coloured)
        assert int(bins.counts.sum()) == 313 + step * 2 * 6 * 4
    bins.eval()
    bins(output, lightness, ab, coloured)
    assert int(bins.counts.sum()) == 313 + 2 * 2 * 6 * 4
    assert "counts" in bins.state_dict()


def test_the_annealed_mean_lies_between_the_mean_and_the_likeliest_colour() -> None:
    output, _, _, _ = random_case()
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
    _, lightness, ab, coloured = random_case()
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
