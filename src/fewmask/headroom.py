"""A device without enough memory for a batch: the batch is divided, or the run ends in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fewmask.types import Batch, UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@contextmanager
def within_memory(batch: Batch, device: torch.device, parts: int = 1) -> Iterator[None]:
    """Raises UserError where the block runs out of the device's memory.

    It is for batches that cannot be divided (further): batch norm and the negatives of a
    contrastive loss see the whole of one, so parts of it would be another computation.
    """
    try:
        yield
    except RuntimeError as problem:
        if not is_shortage(problem):
            raise
        n, fewer = -(-len(batch.images) // parts), max(2, batch.total // 2)
        raise UserError(
            f"out of memory on {device.type}: {n} images of {batch.images.shape[-1]} px at once do "
            f"not fit ({_numbers(device)}). Lower --batch-size (to {fewer}, say) or --size, or "
            "choose a smaller --encoder; another --out, for it is another run"
        ) from problem


class Backward:
    """The losses of a batch and their gradients, within the device's memory.

    Where it is short, the batch is halved, and its halves again, if that is the same computation (a
    task says so by `divisible` and gives the parts by `divided`); it stays so from then on.
    """

    def __init__(
        self,
        fabric: Fabric,
        task: nn.Module,
        plain: nn.Module,
        parts: int = 1,
        say: Callable[[str], object] | None = None,
    ) -> None:
        """`task` is `plain` as Fabric has set it up; `parts` those of an earlier sitting."""
        self.fabric, self.task, self.plain = fabric, task, plain
        self.parts, self.say = parts, say

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """The batch's named losses; the gradients are left in the parameters. Raises UserError."""
        while self.could_halve(batch):
            try:
                return self.once(batch)
            except RuntimeError as problem:
                if not is_shortage(problem):
                    raise
            self.plain.zero_grad(set_to_none=True)
            if self.say:
                self.say(
                    f"out of memory at {-(-len(batch.images) // self.parts)} images at once: a "
                    f"step is computed in {2 * self.parts} parts from now on, which is the same "
                    "computation"
                )
            self.parts *= 2
        with within_memory(batch, self.fabric.device, self.parts):
            return self.once(batch)

    def could_halve(self, batch: Batch) -> bool:
        """Not with several processes: they would have to halve theirs at the same moment."""
        small = 2 * self.parts > len(batch.images)
        return not small and self.fabric.world_size == 1 and getattr(self.plain, "divisible", False)

    def once(self, batch: Batch) -> dict[str, Any]:
        if self.parts == 1:
            losses: dict[str, Any] = self.task(batch)
            self.fabric.backward(sum(losses.values()))
            return losses
        total: dict[str, Any] = {}
        with self.plain.divided(batch, self.parts) as divided:  # type: ignore[operator]
            for share, part in divided:
                own = {name: share * value for name, value in self.task(part).items()}
                self.fabric.backward(sum(own.values()))
                for name, value in own.items():
                    total[name] = total.get(name, 0) + value.detach()
        return total


def is_shortage(problem: RuntimeError) -> bool:
    """Whether torch says that memory was short: of a GPU, or of the machine."""
    said = ("can't allocate memory", "backend out of memory")  # the CPU's and MPS' words
    return isinstance(problem, torch.OutOfMemoryError) or any(s in str(problem) for s in said)


def _numbers(device: torch.device) -> str:
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        held = torch.cuda.max_memory_allocated(device)
        return f"{held / 1e9:.1f} GB held at most, {free / 1e9:.1f} of {whole / 1e9:.1f} GB free"
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not every system says
        return "the machine's memory"
    return f"the machine has {whole / 1e9:.1f} GB"
