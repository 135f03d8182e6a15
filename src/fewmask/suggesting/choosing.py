"""Which pictures to label next: one small function a method, on features or uncertainties.

All take the pictures to choose from as rows of `features` [N,D] (float32, on the CPU) or of
`uncertainty` [N], and return n of them, best first. Features are compared by direction: they are
L2-normalised here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fewmask.probing.splits import Rows
from fewmask.suggesting.clusters import MOST, clustered, typicality

SMALL = 5
"""Clusters of so many pictures or fewer come last, as TypiClust leaves them out."""

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Chosen:
    """Rows [n], best first, and what spoke for each: scores [n], clusters and their sizes [n]."""

    rows: Rows
    typicality: Scores | None = None
    distance: Scores | None = None
    uncertainty: Scores | None = None
    cluster: Rows | None = None
    cluster_size: Rows | None = None


def at_random(total: int, n: int, seed: int) -> Chosen:
    """n of `total` rows, all equally likely."""
    return Chosen(np.random.default_rng(seed).permutation(total)[:n])


def typical(features: Tensor, labelled: Tensor, n: int, seed: int) -> Chosen:
    """TypiClust (Hacohen et al. 2022, arXiv:2202.02794): the most typical picture of a cluster.

    As many k-means clusters as labelled and chosen pictures together (up to 500), so that some hold
    no labelled one; the largest of these first. `labelled` [L,D] are the features of the labelled
    pictures. Typicality is measured once, among all pictures of a cluster.
    """
    clusters = _Clusters(features, labelled, n, seed)
    return clusters.chosen(n, clusters.typicality)


def k_centre(features: Tensor, labelled: Tensor, n: int) -> Chosen:
    """Greedy k-centre (Sener and Savarese 2018, arXiv:1708.00489, algorithm 1).

    Again and again the picture that is farthest from all labelled and chosen ones. Where nothing
    is labelled, the first is the picture nearest to the mean of all; its distance is 0. Each
    choice costs one pass over the features.
    """
    own, known = functional.normalize(features), functional.normalize(labelled)
    squares = own.square().sum(dim=1)

    def distance(one: Tensor) -> Tensor:
        return (squares + one.square().sum() - 2 * (own @ one)).clamp(min=0).sqrt()

    apart = torch.full((len(own),), torch.inf)
    for one in known:
        apart = torch.minimum(apart, distance(one))
    rows: list[int] = []
    distances: list[float] = []
    for _ in range(n):
        if rows or len(known):
            row = int(apart.argmax())
            distances.append(float(apart[row]))
        else:
            row = int(distance(own.mean(dim=0)).argmin())
            distances.append(0.0)
        rows.append(row)
        apart = torch.minimum(apart, distance(own[row]))
        apart[rows] = -1.0  # pictures with the same features are still different rows
    return Chosen(np.array(rows, np.int64), distance=np.array(distances))


def most_uncertain(uncertainty: Scores, n: int) -> Chosen:
    """The largest uncertainties first (Lewis and Gale 1994), earlier rows before later ones."""
    rows = np.argsort(-uncertainty, kind="stable")[:n]
    return Chosen(rows, uncertainty=uncertainty[rows])


def uncertain_and_typical(
    features: Tensor, labelled: Tensor, uncertainty: Scores, n: int, seed: int
) -> Chosen:
    """As `typical`, but of each cluster's more typical half the most uncertain picture.

    So a choice is spread over the features, and no outlier is chosen for being odd.
    """
    clusters = _Clusters(features, labelled, n, seed)
    typical_half = clusters.more_typical_half()
    # Uncertainties are 0 to 1, so the half decides first.
    chosen = clusters.chosen(n, uncertainty + 2 * typical_half)
    return Chosen(**{**vars(chosen), "uncertainty": uncertainty[chosen.rows]})


class _Clusters:
    """Clusters of labelled and other pictures, in the order in which they are chosen from."""

    def __init__(self, features: Tensor, labelled: Tensor, n: int, seed: int) -> None:
        everyone = functional.normalize(torch.cat([labelled, features]))
        number = min(MOST, len(labelled) + n, len(everyone))
        labels = clustered(everyone, number, seed)
        self.sizes = np.bincount(labels)
        self.labelled = np.bincount(labels[: len(labelled)], minlength=len(self.sizes))
        self.labels = labels[len(labelled) :]
        self.typicality = typicality(everyone, labels)[len(labelled) :]

    def more_typical_half(self) -> NDArray[np.bool_]:
        """[N]: whether a picture is at least as typical as half of its cluster's unlabelled."""
        found = np.zeros(len(self.labels), bool)
        for cluster in np.unique(self.labels):
            own = self.labels == cluster
            found[own] = self.typicality[own] >= np.median(self.typicality[own])
        return found

    def chosen(self, n: int, score: Scores) -> Chosen:
        """n pictures, each the one of highest score of the cluster whose turn it is.

        That with the fewest labelled and chosen ones, of equals the largest.
        """
        left = {
            int(cluster): list(own[np.argsort(-score[own], kind="stable")][::-1])
            for cluster in np.unique(self.labels)
            for own in [np.flatnonzero(self.labels == cluster)]
        }
        # Where pictures are few for so many clusters, most are small: then only the smallest wait.
        small = min(SMALL, 0.5 * self.sizes.mean())
        held, rows = self.labelled.copy(), []
        for _ in range(n):
            cluster = min(left, key=lambda k: (self.sizes[k] <= small, held[k], -self.sizes[k], k))
            rows.append(int(left[cluster].pop()))
            held[cluster] += 1
            if not left[cluster]:
                del left[cluster]
        found = np.array(rows, np.int64)
        clusters = self.labels[found]
        return Chosen(
            found,
            typicality=self.typicality[found],
            cluster=clusters,
            cluster_size=self.sizes[clusters],
        )
