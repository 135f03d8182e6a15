"""The dense probe against slow solutions, and on features whose worth is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask import encoders
from fewmask.probing import dense
from fewmask.probing.dense import dense_probe, grid_masks, probe_rows, ridge


class Seeing(nn.Module):
    """Two maps of strides 16 and 32: the picture itself, or nothing."""

    out_channels = (3, 3, 3)

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.zeros(()) if blind else torch.ones(()))

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = functional.avg_pool2d(images, 4) * self.one
        return [images, fine, functional.avg_pool2d(fine, 2)]


def bright_squares(n: int = 12, side: int = 64) -> tuple[Tensor, Tensor]:
    """Pictures uint8 [n,3,S,S] of a bright square (class 1) on dark noise, and their masks."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (n, 3, side, side)).astype(np.uint8)
    masks = np.zeros((n, side, side), np.uint8)
    for i, (y, x) in enumerate(rng.integers(0, side // 2, (n, 2))):
        masks[i, y : y + side // 2, x : x + side // 2] = 1
    images += (180 * masks[:, None]).astype(np.uint8)
    return torch.from_numpy(images), torch.from_numpy(masks)


def test_the_ridge_is_weighted_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(3, 5, 2, 2, generator=generator) * 10
    targets, weight = torch.rand(3, 2, 2, 2, generator=generator), torch.rand(3, 2, 2)
    weight[0, 0, 0] = 0
    others = torch.rand(2, 5, 2, 2, generator=generator) * 10

    def cells(maps: Tensor) -> np.ndarray:
        return maps.permute(0, 2, 3, 1).reshape(12 if len(maps) == 3 else 8, -1).double().numpy()

    a, t, w = cells(features), cells(targets), weight.reshape(-1).double().numpy()
    mean = np.average(a, axis=0, weights=w)
    deviation = np.sqrt(np.average((a - mean) ** 2, axis=0, weights=w))
    z = (a - mean) / deviation
    offset = np.average(t, axis=0, weights=w)
    left = z.T @ np.diag(w) @ z + dense.RIDGE * w.sum() * np.eye(5)
    solution = np.linalg.solve(left, z.T @ np.diag(w) @ (t - offset))
    wanted = (cells(others) - mean) / deviation @ solution + offset
    found = ridge(features, targets, weight, others).permute(0, 2, 3, 1).reshape(8, 2)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_a_unit_that_says_nothing_does_no_harm() -> None:
    features = torch.rand(3, 4, 8, 8)
    features[:, 1] = 0.3  # its mean is not quite 0.3 in single precision
    targets, weight = features[:, :2].clone(), torch.ones(3, 8, 8)
    found = ridge(features, targets, weight, features)
    assert found.isfinite().all()
    moved = features.clone()
    moved[:, 1] = 5
    torch.testing.assert_close(ridge(features, targets, weight, moved), found)


def test_cells_hold_the_shares_of_their_valid_pixels() -> None:
    rng = np.random.default_rng(0)
    masks = rng.choice([0, 1, 2, 255], (2, 16, 16)).astype(np.uint8)
    masks[0, :2, :2] = 255
    shares, weight = grid_masks(torch.from_numpy(masks), 3)
    for i, y, x in np.ndindex(2, 8, 8):
        cell = masks[i, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel()
        valid = cell[cell != 255]
        assert float(weight[i, y, x]) == pytest.approx(len(valid) / 4)
        for k in range(3):
            share = (valid == k).mean() if len(valid) else 0
            assert float(shares[i, k, y, x]) == pytest.approx(share)


def test_features_that_hold_the_answer_score_high_and_none_score_nothing() -> None:
    images, masks = bright_squares()
    seeing = dense_probe(Seeing(), images, masks, 2)
    assert seeing is not None
    assert seeing > 0.85
    assert dense_probe(Seeing(), images, masks, 2) == seeing
    assert dense_probe(Seeing(blind=True), images, masks, 2) == 0.0


def test_only_the_second_half_is_scored_and_ignored_pixels_count_nowhere() -> None:
    images, masks = bright_squares()
    whole = dense_probe(Seeing(), images, masks, 2)
    hidden = masks.clone()
    hidden[6:, :, :40] = 255
    assert dense_probe(Seeing(), images, hidden, 2) != whole
    # No pixel of the held-out half is labelled: nothing to score.
    hidden[6:] = 255
    assert dense_probe(Seeing(), images, hidden, 2) is None
    hidden = masks.clone()
    hidden[:6] = 255
    assert dense_probe(Seeing(), images, hidden, 2) == 0.0


def test_a_real_encoder_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    encoder = encoders.build("resnet18").train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    images, masks = bright_squares(8)
    found = dense_probe(encoder, images, masks, 2)
    assert found is not None
    assert 0 <= found <= 1
    assert encoder.training
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("n", "together", "wanted"), [(50, [], 32), (10, [[0, 1, 2], [5, 7]], 7), (1, [], 1)]
)
def test_a_handful_of_different_pictures(
    n: int, together: Sequence[Sequence[int]], wanted: int
) -> None:
    rows = probe_rows(n, together)
    assert len(rows) == len(set(rows)) == wanted
    assert rows == probe_rows(n, together)
    for group in together:
        assert len(set(group) & set(rows)) == 1
