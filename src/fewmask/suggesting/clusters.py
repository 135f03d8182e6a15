"""Clusters of features, and how typical each picture is of its own."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewmask.probing.splits import Rows

NEIGHBOURS = 20
"""Over which typicality is a mean, TypiClust's."""
MOST = 500
"""Clusters at most, TypiClust's."""
WHOLE = 20_000
"""Up to so many pictures, and up to 50 clusters, k-means looks at all of them in every step."""
BLOCK = 2048
NEAREST = 1e-5
"""A mean distance below this one counts as this one: pictures may have the same features."""


def clustered(directions: Tensor, n: int, seed: int) -> Rows:
    """k-means: the cluster [N] of each row of [N,D], at most n of them, numbered from 0.

    scikit-learn's, on mini-batches where there are many rows or clusters.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    values = directions.float().numpy()
    if len(values) <= WHOLE and n <= 50:
        model = KMeans(n, n_init=3, random_state=seed)
    else:
        model = MiniBatchKMeans(n, n_init=3, batch_size=4096, random_state=seed)
    with warnings.catch_warnings():
        # Fewer different features than clusters: some stay empty, which is no harm here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = model.fit_predict(values)
    _, numbered = np.unique(labels, return_inverse=True)
    found: Rows = numbered.astype(np.int64)
    return found


def typicality(directions: Tensor, labels: Rows) -> NDArray[np.float64]:
    """1 / mean distance [N] to the nearest rows of the same cluster, up to 20; 0 of a lone row.

    Hacohen et al. 2022 (arXiv:2202.02794), eq. 4. `directions` is [N,D], `labels` [N]. Memory is
    that of 2048 rows of distances.
    """
    found = np.zeros(len(labels))
    for cluster in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == cluster)
        near = min(NEIGHBOURS, len(rows) - 1)
        if near > 0:
            own = directions[torch.from_numpy(rows)]
            found[rows] = 1 / _mean_distances(own, near).clamp(min=NEAREST).numpy()
    return found


def _mean_distances(own: Tensor, near: int) -> Tensor:
    """Mean distance [n], float64, of each row of [n,D] to its nearest others."""
    found = []
    for start in range(0, len(own), BLOCK):
        distances = torch.cdist(own[start : start + BLOCK], own)
        distances.diagonal(start).fill_(torch.inf)
        found.append(distances.topk(near, dim=1, largest=False).values.double().mean(dim=1))
    return torch.cat(found)
