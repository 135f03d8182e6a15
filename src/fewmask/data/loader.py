"""Batches as a function of the step: nothing to save, nothing to rewind after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fewmask.data.shards import Shards
from fewmask.data.store import ImageStore
from fewmask.types import Batch


@dataclass(frozen=True)
class Stream:
    """An endless run of random permutations of `rows`, cut into batches of `batch_size`.

    So every image is seen once per pass, no batch is partial, and an epoch of n images is
    n / batch_size steps, rounded up. A batch larger than the set is cut down to the set. With
    `drop_last` a batch never spans two passes (the rest of a pass is left out), so that no picture
    is twice in a batch: a contrastive loss would take the second for a negative of the first.
    With `shards` a pass goes through a few shards at a time.
    """

    store: ImageStore
    rows: Sequence[int] | NDArray[np.int64]
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    drop_last: bool = False
    labels: NDArray[np.int64] | None = None
    """The class of every image of the store, for pools of class folders."""
    shards: Shards | None = None
    _orders: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", np.asarray(self.rows, np.int64))

    @property
    def size(self) -> int:
        """Images in a batch, over all processes; a multiple of their number."""
        # A single image may stand twice in a batch: batch norm needs two values a channel, and at
        # the coarsest level of a small image there is one a picture.
        fewest = 1 if self.drop_last else min(self.batch_size, 2)
        whole = max(min(self.batch_size, len(self.rows)), fewest)
        return max(self.world, whole - whole % self.world)

    @property
    def steps_per_epoch(self) -> int:
        n = len(self.rows)
        return n // self.size if self.drop_last else -(-n // self.size)

    def at(self, step: int) -> Batch:
        """This process' part of the batch of a step, on the CPU."""
        everyone = self.global_rows(step)
        part = self.size // self.world
        mine = everyone[self.rank * part : (self.rank + 1) * part]
        taken = self.store.take(mine)
        return Batch(
            torch.from_numpy(taken.images).permute(0, 3, 1, 2),
            torch.from_numpy(taken.rows),
            self.seed,
            step,
            None if taken.masks is None else torch.from_numpy(taken.masks),
            torch.from_numpy(taken.valid),
            None if self.labels is None else torch.from_numpy(self.labels[taken.rows]),
            start=self.rank * part,
            total=self.size,
        )

    @property
    def batch_bytes(self) -> int:
        """Of the pixels of this process' part of a batch."""
        return self.size // self.world * self.store.side**2 * 3

    def global_rows(self, step: int) -> NDArray[np.int64]:
        """The rows of the whole batch of a step, over all processes."""
        n, first = len(self.rows), step * self.size
        if self.drop_last:
            first = step // self.steps_per_epoch * n + step % self.steps_per_epoch * self.size
        passes = range(first // n, (first + self.size - 1) // n + 1)
        places = np.concatenate([self._order(k) for k in passes])[first - passes[0] * n :]
        chosen: NDArray[np.int64] = np.asarray(self.rows)[places[: self.size]]
        return chosen

    def _order(self, k: int) -> NDArray[np.int64]:
        """The order of a pass, places in `rows`; of a million images it takes a while to draw."""
        found = self._orders.get(k)
        if found is None:
            found = np.random.default_rng((self.seed, k)).permutation(len(self.rows))
            if self.shards is not None:
                found = self.shards.order(np.asarray(self.rows), found, (self.seed, k, 1))
            for old in [old for old in self._orders if old < k - 1]:
                self._orders.pop(old, None)
            self._orders[k] = found
        return found
