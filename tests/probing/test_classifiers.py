"""The probes' classifiers against scikit-learn and a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fewmask.probing.classifiers import GRID, knn_probe, linear_probe
from fewmask.probing.features import pooled_inside
from fewmask.probing.splits import Draw


@pytest.fixture
def blobs() -> tuple[torch.Tensor, np.ndarray, Draw]:
    """Three overlapping classes in six dimensions of different scales, one of them constant."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 160)
    centres = rng.normal(size=(3, 6))
    values = (centres[labels] + rng.normal(size=(160, 6))) * [1, 10, 0.1, 1, 1, 0] + 5
    rows = rng.permutation(160)
    features = torch.from_numpy(values.astype(np.float32))
    return features, labels, Draw(rows[:90], rows[90:110], rows[110:])


def test_the_linear_probe_is_scikit_learn_s_best_on_the_validation_rows(
    blobs: tuple[torch.Tensor, np.ndarray, Draw],
) -> None:
    features, labels, draw = blobs
    values = features.double().numpy()
    found = []
    for c in GRID:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000, tol=1e-8))
        model.fit(values[draw.train], labels[draw.train])
        right = (model.predict(values[draw.val]) == labels[draw.val]).mean()
        found.append((right, -c, model.predict(values[draw.test])))
    best = max(found, key=lambda one: one[:2])
    answer, c = linear_probe(features, labels, draw)
    assert c == -best[1]
    assert (answer == best[2]).mean() >= 0.98
    assert len({right for right, _, _ in found}) > 1, "the choice of C is not tested"


def test_of_equal_strengths_the_strongest_is_taken() -> None:
    labels = np.arange(60) % 2
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 2))).float()
    features[:, 0] += 100.0 * torch.from_numpy(labels)
    rows = np.arange(60)
    answer, c = linear_probe(features, labels, Draw(rows[:40], rows[40:50], rows[50:]))
    assert c == GRID[0]
    assert (answer == labels[50:]).all()


def test_the_linear_probe_sees_no_test_row_before_it_answers(
    blobs: tuple[torch.Tensor, np.ndarray, Draw],
) -> None:
    features, labels, draw = blobs
    answer, c = linear_probe(features, labels, draw)
    changed, mixed = features.clone(), labels.copy()
    changed[draw.test[1:]] *= 100
    mixed[draw.test] = 0
    again, same = linear_probe(changed, mixed, draw)
    assert (again[0], same) == (answer[0], c)


@pytest.mark.parametrize("neighbours", [1, 7, 500])
def test_neighbours_vote_by_their_cosine(
    blobs: tuple[torch.Tensor, np.ndarray, Draw], neighbours: int
) -> None:
    features, labels, draw = blobs
    values = features.numpy()
    wanted = []
    for row in draw.test:
        cosines = [
            values[row] @ values[i] / np.linalg.norm(values[row]) / np.linalg.norm(values[i])
            for i in draw.train
        ]
        votes = np.zeros(3)
        for place in np.argsort(cosines)[::-1][:neighbours]:
            votes[labels[draw.train[place]]] += np.exp(cosines[place] / 0.07)
        wanted.append(votes.argmax())
    assert knn_probe(features, labels, draw, neighbours).tolist() == wanted


def test_a_near_neighbour_outvotes_two_far_ones() -> None:
    features = torch.tensor([[1.0, 0.1], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    draw = Draw(np.array([0, 1, 2]), np.array([0]), np.array([3]))
    assert knn_probe(features, np.array([0, 1, 1, 0]), draw, 3).tolist() == [0]


def test_features_are_means_over_what_is_no_padding() -> None:
    features = torch.arange(32.0).reshape(1, 2, 4, 4).repeat(2, 1, 1, 1)
    inside = torch.tensor([[1.0, 1.0], [0.5, 0.375]])
    found = pooled_inside(features, inside)
    torch.testing.assert_close(found[0], features[0].mean(dim=(1, 2)))
    # The first two rows; of the columns the first one and half of the second.
    weight = torch.tensor([1.0, 0.5, 0.0, 0.0])
    by_hand = (features[1, :, :2] * weight).sum(dim=(1, 2)) / 3
    torch.testing.assert_close(found[1], by_hand)
    features[1, :, 2:] = 1e6
    torch.testing.assert_close(pooled_inside(features, inside)[1], by_hand)
