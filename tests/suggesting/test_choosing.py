"""The methods on features of which it is known what they should choose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fewmask.suggesting import clusters
from fewmask.suggesting.choosing import (
    at_random,
    k_centre,
    most_uncertain,
    typical,
    uncertain_and_typical,
)
from fewmask.suggesting.clusters import clustered, typicality


def blobs(sizes: tuple[int, ...], seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Features [N,8] of well separated directions, and which each row belongs to."""
    generator = torch.Generator().manual_seed(seed)
    of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    scatter = 0.15 * torch.randn(len(of), 8, generator=generator)
    return 3 * torch.eye(8)[of] + scatter, of.numpy()


NOTHING = torch.empty(0, 8)


def test_typical_takes_one_of_each_cluster_the_largest_first() -> None:
    features, of = blobs((30, 12, 20))
    chosen = typical(features, NOTHING, 3, seed=0)
    assert of[chosen.rows].tolist() == [0, 2, 1]
    assert chosen.cluster_size is not None
    assert chosen.cluster_size.tolist() == [30, 20, 12]


def test_typical_passes_over_clusters_that_hold_a_labelled_picture() -> None:
    features, of = blobs((30, 12, 20, 15))
    labelled = features[:1]  # of the largest
    chosen = typical(features[1:], labelled, 3, seed=0)
    assert sorted(of[1:][chosen.rows].tolist()) == [1, 2, 3]
    # More than there are clusters without: again from the one with the fewest, then the largest.
    labelled = torch.cat([labelled, features[of == 2][:1]])
    chosen = typical(features, labelled, 2, seed=0)
    assert sorted(of[chosen.rows].tolist()) == [1, 3]


def test_the_most_typical_of_a_cluster_is_found_by_a_plain_loop() -> None:
    features, of = blobs((30, 25))
    chosen = typical(features, NOTHING, 2, seed=0)
    unit = functional.normalize(features).double().numpy()
    for row, score in zip(chosen.rows, chosen.typicality, strict=True):  # type: ignore[arg-type]
        own = np.flatnonzero(of == of[row])
        values = {}
        for one in own:
            distances = sorted(np.linalg.norm(unit[one] - unit[k]) for k in own if k != one)
            values[one] = 1 / np.mean(distances[:20])
        assert row == max(values, key=lambda one: values[one])
        assert score == pytest.approx(values[row], rel=1e-4)


def test_typicality_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = blobs((40,))
    labels = np.zeros(40, np.int64)
    whole = typicality(features, labels)
    monkeypatch.setattr(clusters, "BLOCK", 7)
    np.testing.assert_allclose(typicality(features, labels), whole, rtol=1e-5)
    assert typicality(features[:3], np.array([0, 0, 1]))[2] == 0, "a lone row"
    a, b, c = features[:3].double()
    few = typicality(features[:3], np.zeros(3, np.int64))
    assert few[0] == pytest.approx(2 / float((a - b).norm() + (a - c).norm()), rel=1e-4)
    assert np.isfinite(typicality(torch.ones(3, 8), np.zeros(3, np.int64))).all(), "all alike"


def test_small_clusters_come_last() -> None:
    features, of = blobs((4, 30, 30))
    labelled = torch.stack([features[10], features[40]])
    assert of[typical(features, labelled, 1, seed=0).rows[0]] != 0, "though it has none labelled"


def test_a_small_pool_is_not_taken_from_a_few_clusters_alone() -> None:
    features, of = blobs((7,) * 8)
    chosen = of[typical(features, torch.empty(0, features.shape[1]), 20, seed=0).rows]
    assert sorted(set(chosen.tolist())) == list(range(8))
    assert np.bincount(chosen).max() <= 4


def test_mini_batches_find_the_same_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    features, of = blobs((30, 12, 20))
    monkeypatch.setattr(clusters, "WHOLE", 10)
    found = clustered(functional.normalize(features), 3, seed=0)
    assert sorted(set(found.tolist())) == [0, 1, 2]
    assert len({(int(a), int(b)) for a, b in zip(of, found, strict=True)}) == 3


def test_k_centre_is_farthest_first_as_a_plain_loop_has_it() -> None:
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    labelled = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    chosen = k_centre(features, labelled, 6)
    unit = functional.normalize(features).double().numpy()
    held = list(functional.normalize(labelled).double().numpy())
    for row, distance in zip(chosen.rows, chosen.distance, strict=True):  # type: ignore[arg-type]
        apart = [min(np.linalg.norm(one - other) for other in held) for one in unit]
        assert row == int(np.argmax(apart))
        assert distance == pytest.approx(max(apart), rel=1e-4)
        held.append(unit[row])


def test_k_centre_of_nothing_labelled_begins_in_the_middle() -> None:
    middle = torch.tensor([[1.0, 1.0]])
    around = torch.tensor([[1.0, 0.1], [0.0, 1.0], [1.0, 0.3]])
    chosen = k_centre(torch.cat([around, middle]), torch.empty(0, 2), 2)
    assert chosen.rows.tolist() == [3, 1]
    # Rows of the same features are still different pictures.
    assert sorted(k_centre(torch.ones(4, 2), torch.ones(1, 2), 4).rows) == [0, 1, 2, 3]


def test_uncertainty_and_chance() -> None:
    chosen = most_uncertain(np.array([0.1, 0.9, 0.5, 0.9]), 3)
    assert chosen.rows.tolist() == [1, 3, 2]
    assert chosen.uncertainty is not None
    assert chosen.uncertainty.tolist() == [0.9, 0.9, 0.5]
    drawn = at_random(1000, 10, seed=3).rows
    assert len(set(drawn)) == 10
    assert drawn.tolist() == at_random(1000, 10, seed=3).rows.tolist()
    assert drawn.tolist() != at_random(1000, 10, seed=4).rows.tolist()


def test_the_uncertain_are_chosen_among_the_typical_of_each_cluster() -> None:
    features, of = blobs((30, 20))
    unsure = np.linspace(0, 0.5, 50)
    density = typical(features, NOTHING, 50, seed=0)
    chosen = uncertain_and_typical(features, NOTHING, unsure, 2, seed=0)
    assert of[chosen.rows].tolist() == [0, 1]
    assert density.rows.shape == (50,)
    unit = functional.normalize(features)
    values = typicality(unit, of)
    for row in chosen.rows:
        own = np.flatnonzero(of == of[row])
        half = own[values[own] >= np.median(values[own])]
        assert row == half[np.argmax(unsure[half])]
    assert chosen.uncertainty is not None
    assert chosen.uncertainty.tolist() == unsure[chosen.rows].tolist()


def test_every_picture_can_be_chosen_and_none_twice() -> None:
    features, _ = blobs((7, 3, 2))
    for chosen in (
        typical(features, features[:2], 12, seed=0),
        uncertain_and_typical(features, NOTHING, np.zeros(12), 12, seed=0),
        k_centre(features, NOTHING, 12),
    ):
        assert sorted(chosen.rows) == list(range(12))
