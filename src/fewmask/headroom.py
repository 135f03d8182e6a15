"""A device without enough memory for a batch ends the run in one line, with the numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fewmask.types import Batch, UserError


@contextmanager
def within_memory(batch: Batch, device: torch.device) -> Iterator[None]:
    """Raises UserError where the block runs out of the device's memory.

    The batch is not divided behind the user's back: batch norm and the negatives of a contrastive
    loss see the whole of it, so parts of it would be another computation.
    """
    try:
        yield
    except RuntimeError as problem:
        if not is_shortage(problem):
            raise
        n, fewer = len(batch.images), max(2, batch.total // 2)
        raise UserError(
            f"out of memory on {device.type}: {n} images of {batch.images.shape[-1]} px a step do "
            f"not fit ({_numbers(device)}). Lower --batch-size (to {fewer}, say) or --size, or "
            "choose a smaller --encoder; another --out, for it is another run"
        ) from problem


def is_shortage(problem: RuntimeError) -> bool:
    """Whether torch says that memory was short: of a GPU, or of the machine."""
    return isinstance(problem, torch.OutOfMemoryError) or "can't allocate memory" in str(problem)


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
