"""Two classifiers of frozen features: a linear one, and the vote of the nearest neighbours."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fewmask.probing.splits import Draw, Rows

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths of the regularisation that are tried: scikit-learn's C."""
TEMPERATURE = 0.07
"""Of the neighbours' vote, DINO's (Caron et al. 2021, arXiv:2104.14294, appendix F)."""


def linear_probe(features: Tensor, labels: Rows, draw: Draw) -> tuple[Rows, float]:
    """Classes [n_test] by multinomial logistic regression on features [N,D]; and the C chosen.

    Features are standardised by the training rows. C is the one of GRID with the highest accuracy
    on the validation rows, the smallest of equals.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    values = features.double().numpy()
    mean, deviation = values[draw.train].mean(axis=0), values[draw.train].std(axis=0)
    deviation[deviation == 0] = 1  # a unit that is always off
    values = (values - mean) / deviation
    train, val, test = values[draw.train], values[draw.val], values[draw.test]
    # From strong to weak, each from the last one's solution: most of the work is done once.
    model = LogisticRegression(max_iter=500, warm_start=True)
    best, answer, chosen = -1.0, np.empty(0, np.int64), GRID[0]
    for c in GRID:
        model.C = c
        with warnings.catch_warnings():
            # 500 steps on separable classes: the accuracy on the validation rows decides anyway.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(train, labels[draw.train])
        right = float((model.predict(val) == labels[draw.val]).mean())
        if right > best:
            best, answer, chosen = right, model.predict(test), c
    return answer, chosen


def knn_probe(features: Tensor, labels: Rows, draw: Draw, neighbours: int) -> Rows:
    """Classes [n_test] by the vote of the nearest training rows, by cosine, of features [N,D].

    A neighbour's vote weighs exp(cosine / 0.07), as in DINO (and Wu et al. 2018,
    arXiv:1805.01978, eq. 7). The features are not standardised.
    """
    directions = functional.normalize(features.float(), dim=1)
    known = directions[torch.from_numpy(draw.train)]
    names = torch.from_numpy(labels[draw.train])
    k, classes = min(neighbours, len(known)), int(labels.max()) + 1
    found = []
    for part in torch.split(directions[torch.from_numpy(draw.test)], 1024):
        cosines, near = (part @ known.T).topk(k, dim=1)
        votes = torch.zeros(len(part), classes)
        votes.scatter_add_(1, names[near], torch.exp(cosines / TEMPERATURE))
        found.append(votes.argmax(dim=1))
    answer: NDArray[np.int64] = torch.cat(found).numpy()
    return answer
