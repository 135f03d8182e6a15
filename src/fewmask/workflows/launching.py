"""One process or several."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fewmask.data.loader import Stream
from fewmask.devices import make_fabric
from fewmask.files import appears, faults_of, write_text_atomic
from fewmask.interrupts import end_all, end_with, terminated_at_once
from fewmask.ranks import INTERRUPTED, Ranks, interrupted, launched, lost
from fewmask.runs import config_of, key_of, read_result
from fewmask.settings import FinetuneSettings, PretrainSettings
from fewmask.types import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Result = TypeVar("Result")
Trainable = TypeVar("Trainable", PretrainSettings, FinetuneSettings)


def say(fabric: Fabric, text: str) -> None:
    """A line on standard error, from the first process alone."""
    if fabric.is_global_zero:
        print(text, file=sys.stderr, flush=True)


def say_finished(out: Path) -> None:
    """That a run was finished before, so that its result is not taken for a new one's."""
    print(f"{out}: was finished before; nothing is trained anew", file=sys.stderr, flush=True)


def say_batch(fabric: Fabric, stream: Stream, what: str) -> None:
    """Where batches are not of the size that was asked for: their size, and why."""
    n, asked = len(stream.rows), stream.batch_size
    if n < asked:
        there = f"{n} {what} there are" if n > 1 else f"one {what.removesuffix('s')} there is"
        why = f"is more than the {there}"
    else:
        why = f"cannot be shared by {stream.world} devices evenly"
    if stream.size != asked:
        say(fabric, f"warning: --batch-size {asked} {why}; batches hold {stream.size}")


def provenance(fabric: Fabric, settings: Any) -> dict[str, Any]:
    """What result.json says of how a run was made, beside the data, the versions and the commit."""
    return {"config": config_of(settings), **machine_of(fabric)}


def machine_of(fabric: Fabric) -> dict[str, Any]:
    """Where and how a run computes, as result.json has it (`precision` is a score there)."""
    return {
        "device": str(fabric.device),
        "devices": fabric.world_size,
        "arithmetic": fabric._precision.precision,
    }


def launch(
    settings: Trainable,
    begun: Callable[[], AbstractContextManager[Result | None]],
    opened: Callable[[], object],
    work: Callable[[Fabric, Trainable], Result],
    kind: type[Result],
) -> Result:
    """Run `work` in one process or several; the result and the mistakes are the first's.

    `begun` checks everything, makes the run's folder and holds it, and gives the result of a run
    that is finished already; only the first process does that. `opened` reads the data that the
    first has found to be whole: the others do, before the first step.
    """
    started = launched()
    if started is not None:
        ranks = Ranks(started)
        with ranks.work():
            fabric = make_fabric(settings.device, settings.devices, settings.precision, started)
            ranks.meet()  # torch's own meeting waits half an hour for one that has ended
            part = partial(_follow, ranks, settings, opened, work, kind)
            if ranks.first:
                part = partial(_lead, ranks, settings, begun, work)
            result: Result = fabric.launch(part)
        return result
    fabric = make_fabric(settings.device, settings.devices, settings.precision)
    with begun() as done:
        if done is not None:
            return done
        if settings.devices == 1:
            return work(fabric, settings)
        return _spawned(fabric, settings, work, kind)


# --- processes that are started here --------------------------------------------------------------


def _spawned(
    fabric: Fabric,
    settings: Trainable,
    work: Callable[[Fabric, Trainable], Result],
    kind: type[Result],
) -> Result:
    """Raises what stopped them: UserError, KeyboardInterrupt, or LostProcess where one is gone."""
    from torch.multiprocessing.spawn import ProcessException

    others = set(active_children())
    rank = partial(_guarded, work=work, settings=settings, parent=os.getpid())
    try:
        with terminated_at_once():
            try:
                faults = fabric.launch(rank)
            except KeyboardInterrupt:
                ranks = set(active_children()) - others
                end_all(sorted(ranks, key=lambda process: int(process.name.rpartition("-")[2])))
                raise
    except ProcessException as problem:
        if interrupted(problem):
            raise KeyboardInterrupt from None
        told = lost(problem, settings.out)
        if told is None:
            raise
        raise told from None
    if faults:
        raise UserError(*faults)
    result = read_result(Path(settings.out), kind)
    if result is None:
        raise RuntimeError(f"{settings.out}: the first process left no result.json")
    return result


def _guarded(
    fabric: Fabric, work: Callable[[Fabric, Trainable], Any], settings: Trainable, parent: int
) -> tuple[str, ...]:
    end_with(parent)
    # Results and mistakes cross the processes as a file and as text: objects would be unpickled,
    # and an exception would reach the user as a traceback in a string.
    try:
        return faults_of(lambda: work(fabric, settings), settings.out)
    except KeyboardInterrupt:  # older torch would end a process of ours with 0
        sys.exit(INTERRUPTED)


# --- processes that torchrun or srun has started --------------------------------------------------


def _lead(
    ranks: Ranks,
    settings: Trainable,
    begun: Callable[[], AbstractContextManager[Result | None]],
    work: Callable[[Fabric, Trainable], Result],
    fabric: Fabric,
) -> Result:
    """The first process: the others wait while it checks, and read what it has written."""
    out = Path(settings.out)
    with begun() as done:
        token = out / f".seen.{secrets.token_hex(8)}.tmp"
        write_text_atomic(token, "")
        try:
            ranks.tell("run", [_said(settings), token.name, done is not None])
            ranks.meet()  # the others have waited for the checks
            ranks.meet()  # they see the folder, and have opened the data
        finally:
            token.unlink(missing_ok=True)
        result = done if done is not None else work(fabric, settings)
        ranks.meet()
        return result


def _follow(
    ranks: Ranks,
    settings: Trainable,
    opened: Callable[[], object],
    work: Callable[[Fabric, Trainable], Result],
    kind: type[Result],
    fabric: Fabric,
) -> Result:
    """Any other process."""
    out = Path(settings.out)
    ranks.meet()
    said, token, done = ranks.hear("run")
    if said != _said(settings):
        raise UserError(
            f"{socket.gethostname()}: process {ranks.rank} was started with other settings or "
            "another --out than process 0. Give all of them the same command"
        )
    appears(out / token)
    if not done:
        opened()
    ranks.meet()
    if not done:
        work(fabric, settings)
    ranks.meet()
    appears(out / "result.json")
    result = read_result(out, kind)
    if result is None:
        raise RuntimeError(f"{out}: the first process left no result.json")
    return result


def _said(settings: Trainable) -> str:
    """A name for what a process was asked to do."""
    return key_of(config_of(settings), settings.out)
