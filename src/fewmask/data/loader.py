"""Batches as a function of the step: nothing to save, nothing to rewind after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fewmask.data.cache import ImageCache
from fewmask.types import Batch


@dataclass(frozen=True)
class Stream:
    """An endless run of random permutations of `rows`, cut into batches of `batch_size`.

    So every image is seen once per pass, no batch is partial, and an epoch of n images is
    n / batch_size steps, rounded up. A batch larger than the set is cut down to the set. With
    `drop_last` a batch never spans two passes (the rest of a pass is left out), so that no picture
    is twice in a batch: a contrastive loss would take the second for a negative of the first.
    """

    cache: ImageCache
    rows: Sequence[int]
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    drop_last: bool = False
    labels: NDArray[np.int64] | None = None
    """The class of every image of the cache, for pools of class folders."""

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
        images = torch.from_numpy(self.cache.images[mine]).permute(0, 3, 1, 2)
        masks = None if self.cache.masks is None else torch.from_numpy(self.cache.masks[mine])
        valid = torch.from_numpy(self.cache.valid[mine])
        labels = None if self.labels is None else torch.from_numpy(self.labels[mine])
        return Batch(
            images,
            torch.from_numpy(mine),
            self.seed,
            step,
            masks,
            valid,
            labels,
            start=self.rank * part,
            total=self.size,
        )

    def global_rows(self, step: int) -> NDArray[np.int64]:
        """The rows of the whole batch of a step, over all processes."""
        n, first = len(self.rows), step * self.size
        if self.drop_last:
            first = step // self.steps_per_epoch * n + step % self.steps_per_epoch * self.size
        passes = range(first // n, (first + self.size - 1) // n + 1)
        shuffled = [np.random.default_rng((self.seed, k)).permutation(n) for k in passes]
        places = np.concatenate(shuffled)[first - passes[0] * n :][: self.size]
        chosen: NDArray[np.int64] = np.asarray(self.rows, dtype=np.int64)[places]
        return chosen
