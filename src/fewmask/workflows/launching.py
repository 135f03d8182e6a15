"""One process or several."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fewmask.data.loader import Stream
from fewmask.devices import make_fabric
from fewmask.files import REFUSALS, refused
from fewmask.runs import read_result
from fewmask.settings import FinetuneSettings, PretrainSettings
from fewmask.types import UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Result = TypeVar("Result")
Trainable = TypeVar("Trainable", PretrainSettings, FinetuneSettings)


def say(fabric: Fabric, text: str) -> None:
    """A line on standard error, from the first process alone."""
    if fabric.is_global_zero:
        print(text, file=sys.stderr, flush=True)


def say_batch(fabric: Fabric, stream: Stream, what: str) -> None:
    """Where batches are not of the size that was asked for: their size, and why."""
    n, asked = len(stream.rows), stream.batch_size
    if n < asked:
        why = f"is more than the {n} {what} there are"
    else:
        why = f"cannot be shared by {stream.world} devices evenly"
    if stream.size != asked:
        say(fabric, f"warning: --batch-size {asked} {why}; batches hold {stream.size}")


def launch(
    settings: Trainable, work: Callable[[Fabric, Trainable], Result], kind: type[Result]
) -> Result:
    """Run `work` in `settings.devices` processes; the result and the mistakes are the first's."""
    fabric = make_fabric(settings.device, settings.devices, settings.precision)
    if settings.devices == 1:
        return work(fabric, settings)
    faults = fabric.launch(partial(_guarded, work=work, settings=settings))
    if faults:
        raise UserError(*faults)
    result = read_result(Path(settings.out), kind)
    if result is None:
        raise RuntimeError(f"{settings.out}: the first process left no result.json")
    return result


def _guarded(
    fabric: Fabric, work: Callable[[Fabric, Trainable], Any], settings: Trainable
) -> list[str]:
    # Results and mistakes cross the processes as a file and as text: objects would be unpickled,
    # and an exception would reach the user as a traceback in a string.
    try:
        work(fabric, settings)
    except UserError as mistake:
        return list(mistake.faults)
    except OSError as problem:
        if problem.errno not in REFUSALS:
            raise
        return list(refused(problem.filename or settings.out, problem).faults)
    return []
