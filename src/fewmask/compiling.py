"""torch.compile, where it is asked for, or where it is measured to pay."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from fewmask.augment import step_generator
from fewmask.types import Batch, UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BACKEND = "inductor"
TRIED = 5
"""Steps of each kind that are timed; the fastest counts, since others may want the machine too."""
WORTH = 0.95
"""The share of the plain step's time that a compiled one may take at most."""
LEAST_SECONDS = 600.0
"""Of plain steps that are left. Compiling takes a minute or two, and two more for the trial."""


@contextmanager
def compiled(task: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Within the block the submodules of these names are compiled while they are in training mode.

    Names and places of weights stay as they are. Raises UserError where torch cannot compile here.
    """
    parts = [task.get_submodule(name) for name in names]
    for part in parts:
        part.forward = _when_training(part, part.forward)
    try:
        yield
    except Exception as problem:
        if not _of_compiler(problem):
            raise
        why = " ".join(str(problem).split())[:200]
        raise UserError(
            f"--compile: torch.compile fails here ({why}). Leave it out, or choose --compile off"
        ) from None
    finally:
        for part in parts:
            del part.forward  # the class has it


def pays(fabric: Fabric, task: nn.Module, names: Sequence[str], batch: Batch, steps: int) -> bool:
    """Whether compiled steps are faster by enough to make up for the compiling.

    Both are tried on a copy of the task and on one batch, which leaves weights, statistics and
    random numbers as they are. Of several processes the first decides.
    """
    found = False
    if fabric.is_global_zero:
        trial = copy.deepcopy(task)
        plain = _seconds(fabric, trial, batch)
        if plain * steps >= LEAST_SECONDS:
            try:
                with compiled(trial, names):
                    found = _seconds(fabric, trial, batch) < WORTH * plain
            except UserError:
                found = False
    return bool(fabric.broadcast(found))


def _seconds(fabric: Fabric, task: nn.Module, batch: Batch) -> float:
    """Of the fastest of a few steps without the optimiser's, after one that warms up."""
    times = []
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        task.train()
        for _ in range(1 + TRIED):
            torch.manual_seed(step_generator(batch.seed, batch.step, "cpu", 1000).initial_seed())
            began = time.monotonic()
            with fabric.autocast():
                losses = task(batch)
            fabric.backward(torch.stack([loss.float() for loss in losses.values()]).sum())
            task.zero_grad(set_to_none=True)
            if devices:
                torch.cuda.synchronize(fabric.device)
            times.append(time.monotonic() - began)
    return min(times[1:])


def _when_training(part: nn.Module, plain: Callable[..., object]) -> Callable[..., object]:
    # In evaluation mode batches have other shapes, each of which would be compiled anew.
    fast = torch.compile(plain, backend=BACKEND)
    return lambda *given: fast(*given) if part.training else plain(*given)


def _of_compiler(problem: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(problem, TorchDynamoException)
