"""How a source lies about the target's pictures: by nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewmask.distances.jackknife import Estimate, Vector, jackknife
from fewmask.distances.kernels import BLOCK, Features, squared_distances

TINY = 1e-9
"""In place of a sum of distances that is 0: the target is one picture many times."""


@dataclass(frozen=True)
class Near:
    """The k+1 nearest of other pictures: distances [n,k+1], nearest first, and their rows."""

    distances: NDArray[np.float64]
    rows: NDArray[np.int64]

    @property
    def k(self) -> int:
        return int(self.distances.shape[1]) - 1


@dataclass(frozen=True)
class Surroundings:
    """What the three measures need of a source [m,D] and a target [n,D].

    `of_target` are the sources nearest to each target picture, `itself` the other target pictures.
    A ball about a target picture reaches to its k-th other one; `inside` [n] counts the sources in
    it, `inside_next` those in the ball to the (k+1)-th. `balls` [m] counts the balls that a source
    lies in.
    """

    of_target: Near
    itself: Near
    inside: Vector
    inside_next: Vector
    balls: Vector


def surroundings(source: Features, target: Features, k: int) -> Surroundings:
    """Neighbours and counts of all target pictures. Each set has at least k + 2 rows."""
    itself = nearest(target, target, k + 1, same=True)
    inside, inside_next, balls = (np.zeros(n) for n in (len(target), len(target), len(source)))
    for i in range(0, len(target), BLOCK):
        rows = slice(i, i + BLOCK)
        distances = np.sqrt(squared_distances(target[rows], source))
        within = distances <= itself.distances[rows, k - 1 : k]
        inside[rows] = within.sum(1)
        inside_next[rows] = (distances <= itself.distances[rows, k : k + 1]).sum(1)
        balls += within.sum(0)
    of_target = nearest(target, source, k + 1)
    return Surroundings(of_target, itself, inside, inside_next, balls)


def nearest(queries: Features, among: Features, k: int, *, same: bool = False) -> Near:
    """The k nearest rows of `among` to each query; with `same` the query itself is left out."""
    distances, rows = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    for i in range(0, len(queries), BLOCK):
        block = squared_distances(queries[i : i + BLOCK], among)
        here = np.arange(len(block))
        if same:
            block[here, i + here] = np.inf
        found = np.argpartition(block, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(block, found, 1), axis=1, kind="stable")
        rows[i : i + BLOCK] = found = np.take_along_axis(found, order, 1)
        distances[i : i + BLOCK] = np.sqrt(np.take_along_axis(block, found, 1))
    return Near(distances, rows)


def coverage(s: Surroundings) -> Estimate:
    """Share of the target's pictures whose ball holds a source: 0 to 1.

    Naeem et al. 2020, arXiv:2002.09797: 1/n sum_i 1[some source lies in B(target_i, r_i)], r_i the
    distance to the k-th nearest other target picture. Of two samples of one set about 1 - 2^-k is
    expected: 0.97 with their k = 5.
    """
    covered, next_covered = (s.inside > 0).astype(float), (s.inside_next > 0).astype(float)
    m, n = len(s.balls), len(covered)
    alone = np.bincount(s.of_target.rows[s.inside == 1, 0], minlength=m)
    without_source = (covered.sum() - alone) / n
    gained = _by_neighbour(s.itself, _each(next_covered - covered, s.itself.k))
    without_target = (covered.sum() - covered + gained) / (n - 1)
    e = jackknife(float(covered.mean()), without_source, without_target)
    # Where all or none are covered nothing varies, and the jackknife would be sure of a small set.
    low, high = wilson(e.value, n)
    return Estimate(e.value, max(min(e.low, low), 0.0), min(max(e.high, high), 1.0))


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927, J. Am. Stat. Assoc. 22:209)."""
    z = 1.959964
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float((middle - half) / (1 + z**2 / n)), float((middle + half) / (1 + z**2 / n))


def density(s: Surroundings) -> Estimate:
    """How many of the target's balls a source lies in, on average, over k: 0 and up, 1 alike.

    Naeem et al. 2020, arXiv:2002.09797: 1/(k m) sum_j sum_i 1[source_j in B(target_i, r_i)]. Above
    1 where the sources crowd where the target's pictures stand close.
    """
    k, m = s.itself.k, len(s.balls)
    without_source = (s.inside.sum() - s.balls) / (k * (m - 1))
    gained = _by_neighbour(s.itself, _each(s.inside_next - s.inside, k))
    without_target = (s.inside.sum() - s.inside + gained) / (k * m)
    e = jackknife(float(s.inside.sum() / (k * m)), without_source, without_target)
    return Estimate(e.value, max(e.low, 0.0), e.high)


def knn_ratio(s: Surroundings) -> Estimate:
    """Mean distance of target pictures to their k nearest sources, over that to other targets.

    sum_i d_k(target_i, sources) / sum_i d_k(target_i, other targets), d_k the mean distance to the
    k nearest (the outlier weight of Angiulli and Pizzuti 2002, doi:10.1007/3-540-45681-3_2). 1
    where the source is as near as the target is to itself; the features' scale cancels.
    """
    k, m = s.itself.k, len(s.balls)
    to_source, to_itself = s.of_target.distances, s.itself.distances
    own_source, own_itself = to_source[:, :k].mean(1), to_itself[:, :k].mean(1)
    a, b = own_source.sum(), max(own_itself.sum(), TINY)
    farther = (to_source[:, k:] - to_source[:, :k]) / k
    moved = np.bincount(s.of_target.rows[:, :k].ravel(), farther.ravel(), minlength=m)
    without_source = (a + moved) / b
    gained = _by_neighbour(s.itself, (to_itself[:, k:] - to_itself[:, :k]) / k)
    without_target = (a - own_source) / np.maximum(b - own_itself + gained, TINY)
    return jackknife(float(a / b), without_source, without_target)


def _by_neighbour(near: Near, values: NDArray[np.float64]) -> Vector:
    """Values [n,k] of each picture's k nearest, summed up for the picture that is the neighbour."""
    rows = near.rows[:, : near.k]
    return np.bincount(rows.ravel(), values.ravel(), minlength=len(rows)).astype(np.float64)


def _each(values: Vector, k: int) -> NDArray[np.float64]:
    """[n] -> [n,k], the same for each of k neighbours."""
    return np.broadcast_to(values[:, None], (len(values), k))
