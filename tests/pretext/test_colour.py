"""Lab against the CIE's formula, one colour at a time; the 313 bins against Zhang's."""

from __future__ import annotations

import torch
from torch import Tensor

from fewmask.pretext.colour import ab_bins, errors, lab_to_rgb, over_coloured, rgb_to_lab

# The lowest and the highest b of each a among the points of Zhang et al.'s pts_in_hull.npy.
ZHANG = {
    -90: (50, 90),
    -80: (20, 90),
    -70: (0, 90),
    -60: (-20, 90),
    -50: (-30, 100),
    -40: (-40, 100),
    -30: (-50, 100),
    -20: (-50, 100),
    -10: (-60, 100),
    0: (-70, 100),
    10: (-80, 90),
    20: (-80, 90),
    30: (-90, 90),
    40: (-100, 90),
    50: (-100, 80),
    60: (-110, 80),
    70: (-110, 80),
    80: (-110, 70),
    90: (-110, 70),
    100: (-90, 0),
}


def slow_lab(red: float, green: float, blue: float) -> tuple[float, float, float]:
    """CIE 15:2018, eq. 8.3 to 8.8, of a colour by IEC 61966-2-1; the white is D65's."""

    def linear(v: float) -> float:
        return v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4

    def f(t: float) -> float:
        return t ** (1 / 3) if t > (24 / 116) ** 3 else (841 / 108) * t + 16 / 116

    r, g, b = linear(red), linear(green), linear(blue)
    x = f((0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047)
    y = f(0.2126729 * r + 0.7151522 * g + 0.0721750 * b)
    z = f((0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def dense(n: int) -> Tensor:
    """All colours of a grid of n steps an axis, as one picture [1,3,n^3,1]."""
    steps = torch.linspace(0, 1, n)
    return torch.cartesian_prod(steps, steps, steps).T[None, :, :, None].contiguous()


def test_lab_is_the_formula() -> None:
    colours = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    colours[:100] *= 0.1  # the straight part, too
    expected = torch.tensor([slow_lab(*row) for row in colours.tolist()])
    found = rgb_to_lab(colours.T.reshape(1, 3, 25, 20)).reshape(3, -1).T
    # The standard rounds its matrix to four digits; the formula above has seven.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_lab_of_known_colours() -> None:
    """White, a mid grey, and the primaries as they are commonly given."""
    colours = torch.tensor([[1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    expected = [
        [100, 0, 0],
        [53.39, 0, 0],
        [53.24, 80.09, 67.20],
        [87.73, -86.18, 83.18],
        [32.30, 79.19, -107.86],
    ]
    found = rgb_to_lab(colours[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=0.03)
    assert rgb_to_lab(torch.full((1, 3, 1, 1), 0.3))[0, 1:].abs().max() < 1e-3


def test_lab_and_back() -> None:
    pictures = dense(18)
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(pictures)), pictures, rtol=0, atol=2e-5)


def test_lab_is_computed_in_full_precision_under_autocast() -> None:
    pictures = dense(6)
    expected = rgb_to_lab(pictures)
    with torch.autocast("cpu", torch.bfloat16):
        found, back = rgb_to_lab(pictures), lab_to_rgb(expected)
    assert torch.equal(found, expected)
    torch.testing.assert_close(back, pictures, rtol=0, atol=2e-5)


def test_colours_that_srgb_lacks_are_clamped() -> None:
    outside = torch.tensor([50.0, -120.0, 120.0]).view(1, 3, 1, 1)
    rgb = lab_to_rgb(outside)
    assert bool(rgb.isfinite().all())
    assert 0 <= rgb.min() <= rgb.max() <= 1


def test_there_are_313_bins_and_they_are_zhangs() -> None:
    bins = ab_bins()
    assert bins.shape == (313, 2)
    expected = [[a, b] for a, (low, high) in ZHANG.items() for b in range(low, high + 1, 10)]
    assert bins.tolist() == expected


def test_every_colour_has_a_bin_at_each_of_its_four_corners() -> None:
    ab = rgb_to_lab(dense(52))[0, 1:, :, 0].T
    assert corners_of(ab) <= {(int(a), int(b)) for a, b in ab_bins().tolist()}


def test_every_mean_of_colours_has_them_as_well() -> None:
    """Of the cube's corners, which reach farthest: means of four, by random shares."""
    generator = torch.Generator().manual_seed(0)
    pure = (torch.rand(50_000 * 4, 3, generator=generator) > 0.5).float()
    colours = rgb_to_lab(pure.T[None, :, :, None])[0, 1:, :, 0].T.view(-1, 4, 2)
    share = torch.rand(len(colours), 4, 1, generator=generator) ** 3
    means = (colours * share).sum(1) / share.sum(1)
    assert corners_of(means) <= {(int(a), int(b)) for a, b in ab_bins().tolist()}


def corners_of(ab: Tensor) -> set[tuple[int, int]]:
    low = torch.floor(ab / 10).long() * 10
    shifts = ((0, 0), (0, 10), (10, 0), (10, 10))
    found = torch.cat([low + torch.tensor(shift) for shift in shifts]).unique(dim=0)
    return {(int(a), int(b)) for a, b in found}


def test_errors_are_those_of_a_slow_loop_over_coloured_pictures() -> None:
    generator = torch.Generator().manual_seed(3)
    predicted, ab = 20 * torch.randn(2, 4, 2, 3, 5, generator=generator)
    coloured = torch.tensor([1.0, 0.0, 1.0, 1.0])
    pixels = [(i, y, x) for i in (0, 2, 3) for y in range(3) for x in range(5)]
    mean = torch.stack([ab[i, :, y, x] for i, y, x in pixels]).mean(0)
    squares = [float((predicted[i, :, y, x] - ab[i, :, y, x]).square().sum()) for i, y, x in pixels]
    constant = [float((mean - ab[i, :, y, x]).square().sum()) for i, y, x in pixels]
    found = errors(predicted, ab, coloured)
    assert abs(float(found["error"]) - (sum(squares) / 45) ** 0.5) < 1e-3
    assert abs(float(found["constant_error"]) - (sum(constant) / 45) ** 0.5) < 1e-3


def test_nothing_coloured_is_no_error_and_no_loss() -> None:
    ab = torch.zeros(2, 2, 3, 3)
    found = errors(ab + 1, ab, torch.zeros(2))
    assert found["error"] == found["constant_error"] == 0
    assert over_coloured(torch.ones(2, 3), torch.zeros(2)) == 0


def test_the_mean_over_processes_is_the_mean_of_the_batch() -> None:
    values, coloured = torch.rand(6, 2, 3), torch.tensor([1.0, 0, 1, 1, 1, 1])
    halves = [over_coloured(values[i : i + 3], coloured[i : i + 3]) for i in (0, 3)]
    torch.testing.assert_close(sum(halves) / 2, over_coloured(values, coloured))
