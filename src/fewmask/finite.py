"""A loss that stops being a finite number ends the run, and names the batch it came from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewmask.data.loader import Stream
from fewmask.files import write_json_atomic
from fewmask.types import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SHOWN = 3
"""Images that the message names; the file names all."""


@dataclass
class _Seen:
    """Losses of a step on their way from the device."""

    step: int
    names: tuple[str, ...]
    values: Tensor
    ready: torch.cuda.Event | None


class LossWatch:
    """Looks at every step's losses, on a CPU before the weights move.

    A GPU is not waited for: its losses are looked at a step later, when the next one is under way.
    Of several processes all see the mean, so that they stop together.
    """

    def __init__(self, fabric: Fabric, stream: Stream, out: Path, mend: str) -> None:
        self.fabric, self.stream, self.out, self.mend = fabric, stream, out, mend
        self._waiting: _Seen | None = None

    def see(self, step: int, losses: dict[str, Tensor]) -> None:
        """Take a step's named losses. Raises UserError for those of this step, or of the last."""
        values = torch.stack([value.detach().float() for value in losses.values()])
        if self.fabric.world_size > 1:
            values = self.fabric.all_reduce(values, reduce_op="mean")  # type: ignore[assignment]
        last, ready = self._waiting, None
        if values.device.type == "cuda":
            host = torch.empty(values.shape, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        self._waiting = _Seen(step, tuple(losses), values, ready)
        if last is not None:
            self._look(last)
        if ready is None:
            self.settle()

    def settle(self) -> None:
        """Look at what has not been looked at yet: before the weights are saved."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._look(waiting)

    def _look(self, seen: _Seen) -> None:
        if seen.ready is not None:
            seen.ready.synchronize()
        if not bool(torch.isfinite(seen.values).all()):
            self._waiting = None
            self._stop(seen)

    def _stop(self, seen: _Seen) -> None:
        named = dict(zip(seen.names, seen.values.tolist(), strict=True))
        rows = self.stream.global_rows(seen.step).tolist()
        images = [self.stream.store.names[row] for row in rows]
        place = self.out / "failed.json"
        if self.fabric.is_global_zero:
            as_text = {name: str(value) for name, value in named.items()}  # JSON has no nan
            told = {"step": seen.step, "seed": self.stream.seed, "losses": as_text}
            write_json_atomic(place, told | {"images": images})
        faulty = ", ".join(f"{k} {v}" for k, v in named.items() if not math.isfinite(v))
        raise UserError(
            f"the loss became not finite at step {seen.step + 1} ({faulty}) on a batch of "
            f"{len(images)} images, {', '.join(images[:SHOWN])} and so on (all in {place}). "
            f"{self.mend}, with another --out; the same command again replays it from the last "
            "good weights"
        )
