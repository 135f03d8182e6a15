"""Batches in order, read ahead of the work within a set amount of memory."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from fewmask.data.cache import in_order
from fewmask.data.loader import Stream
from fewmask.data.store import OnDemand
from fewmask.types import Batch, UserError

SHARED_MEMORY = "/dev/shm"
"""Where processes hand batches over; in containers it is often 64 MB."""


@dataclass(frozen=True)
class Reading:
    """How batches are read ahead."""

    workers: int | None = None
    """Threads or processes (default: one a core, up to 8)."""
    memory_gb: float = 1.0
    """Memory that batches which wait may take, in 10^9 bytes; one batch waits in any case."""
    processes: bool | None = None
    """Processes instead of threads (default: where a GPU does the rest of the work, so that
    decoding does not take turns with what drives it)."""

    def ahead(self, batch_bytes: int) -> int:
        """How many batches may wait."""
        return max(1, min(2 * self.n_workers, int(self.memory_gb * 1e9) // max(1, batch_bytes)))

    @property
    def n_workers(self) -> int:
        return self.workers or min(8, os.cpu_count() or 1)


def read_ahead(
    stream: Stream, steps: range, device: torch.device, reading: Reading
) -> Iterator[Batch]:
    """The batches of a stream at some steps, in order, on the CPU; pinned where a GPU takes them.

    The same batches however they are read. Raises UserError where too many cannot be decoded.
    """
    pinned = device.type == "cuda"
    if not isinstance(stream.store, OnDemand):
        return _by_threads(stream, steps, 1, 2, pinned) if pinned else map(stream.at, steps)
    ahead = reading.ahead(stream.batch_bytes)
    alone = stream.shards is not None and stream.shards.one_process
    workers = min(ahead, reading.n_workers)
    processes = pinned if reading.processes is None else reading.processes
    if processes and not alone and _fits_shared_memory(ahead * stream.batch_bytes):
        return _by_processes(stream, stream.store, steps, workers, ahead, pinned)
    return _by_threads(stream, steps, workers, ahead, pinned)


def _by_threads(
    stream: Stream, steps: range, workers: int, ahead: int, pinned: bool
) -> Iterator[Batch]:
    def read(step: int) -> Batch:
        batch = stream.at(step)
        return batch.pinned() if pinned else batch

    return in_order(read, steps, workers, ahead)


class _Read(NamedTuple):
    """A batch from another process, the rows that it could not decode, and mistakes instead."""

    batch: Batch | None
    faults: dict[int, str]
    mistakes: tuple[str, ...] = ()


class _Steps(Dataset[_Read]):
    """A stream by step, for worker processes."""

    def __init__(self, stream: Stream, store: OnDemand) -> None:
        self.stream, self.store = stream, store

    def __getitem__(self, step: int) -> _Read:
        try:
            return _Read(self.stream.at(step), self.store.faults)
        except UserError as mistake:  # an exception would come with the worker's traceback in it
            return _Read(None, {}, mistake.faults)


def _by_processes(
    stream: Stream, store: OnDemand, steps: range, workers: int, ahead: int, pinned: bool
) -> Iterator[Batch]:
    with warnings.catch_warnings():  # of more workers than cores: as many as --workers asks for
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        reads = iter(
            DataLoader(
                _Steps(stream, store),
                batch_size=None,
                sampler=steps,
                num_workers=workers,
                prefetch_factor=max(1, ahead // workers),
                collate_fn=_as_it_is,
                pin_memory=pinned,
                worker_init_fn=_leave_interrupts,
                multiprocessing_context="spawn",
                generator=torch.Generator(),  # else it draws from the global one
            )
        )
    for read in reads:
        if read.batch is None:
            raise UserError(*read.mistakes)
        store.missed(read.faults)
        yield read.batch


def _as_it_is(read: Any) -> Any:
    return read


def _leave_interrupts(_: int) -> None:
    """Control-C reaches every process; the first one ends the others, if need be by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fits_shared_memory(n_bytes: int) -> bool:
    try:
        return shutil.disk_usage(SHARED_MEMORY).free > 1.2 * n_bytes
    except OSError:  # macOS has none, and needs none
        return True
