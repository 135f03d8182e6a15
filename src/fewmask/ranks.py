"""The processes of one run on several machines: who this one is, and what they tell each other.

torchrun and srun start the processes; nothing here does. What they tell each other beside tensors
goes through the store that torch's processes meet at.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fewmask.types import UserError

TORCHRUN = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
            "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
SRUN = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
"""Variables that are all there where torchrun, or srun, has started this process."""

MEETING_SECONDS = 600.0
"""In which all processes have to be there."""
BEAT_SECONDS = 2.0
LOST_SECONDS = 120.0
"""Without a sign of life after which a process is given up by those that wait for it."""
LISTEN_SECONDS = 30.0
"""How long a process that stops for a mistake waits for the first one to tell it."""


_RUNS = itertools.count()


class AlreadyTold(UserError):
    """A mistake that another process of this run tells the user."""


@dataclass(frozen=True)
class Launch:
    """How this process was started, as one of several of a run. Ranks count from 0."""

    by: str
    rank: int
    size: int
    local_rank: int
    node: int
    nodes: int
    address: str
    port: int

    @property
    def first(self) -> bool:
        """Whether this is the process that checks, writes and tells."""
        return self.rank == 0

    @property
    def per_node(self) -> int:
        """Processes on each machine. Raises UserError where there are not as many on each."""
        if self.size % self.nodes:
            raise UserError(
                f"{self.by} has started {self.size} processes on {self.nodes} machines; expected "
                "as many on each"
            )
        return self.size // self.nodes

    def environment(self) -> dict[str, str]:
        """The variables that torch and Fabric read, as torchrun sets them."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "GROUP_RANK": str(self.node),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def launched() -> Launch | None:
    """How torchrun or srun has started this process with others; None where it is alone.

    A stray RANK is no launch: all that the launcher sets has to be there.
    """
    environment = os.environ
    if all(name in environment for name in TORCHRUN):
        found = _by_torchrun(environment)
    elif all(name in environment for name in SRUN) and not _in_a_shell(environment):
        found = _by_srun(environment)
    else:
        return None
    return found if found.size > 1 else None


def _by_torchrun(environment: os._Environ[str]) -> Launch:
    of = {name: int(environment[name]) for name in TORCHRUN if not name.endswith(("_ID", "_ADDR"))}
    size, per_node = of["WORLD_SIZE"], of["LOCAL_WORLD_SIZE"]
    return Launch(
        by="torchrun",
        rank=of["RANK"],
        size=size,
        local_rank=of["LOCAL_RANK"],
        node=of["GROUP_RANK"],
        nodes=int(environment.get("GROUP_WORLD_SIZE", -(-size // per_node))),
        address=environment["MASTER_ADDR"],
        port=of["MASTER_PORT"],
    )


def _by_srun(environment: os._Environ[str]) -> Launch:
    job = environment.get("SLURM_JOB_ID", "0")
    nodes = environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES", "1")
    listed = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    return Launch(
        by="srun",
        rank=int(environment["SLURM_PROCID"]),
        size=int(environment["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        node=int(environment["SLURM_NODEID"]),
        nodes=int(nodes),
        address=environment.get("MASTER_ADDR") or _first_host(listed),
        # The same for all processes of a job, another one for most other jobs.
        port=int(environment.get("MASTER_PORT") or 15000 + int(job) % 10000),
    )


def _in_a_shell(environment: os._Environ[str]) -> bool:
    return environment.get("SLURM_JOB_NAME") in ("bash", "interactive")


def _first_host(listed: str) -> str:
    """The first of SLURM's list of machines: node07 of `node[07-09,12],other3`."""
    first = re.sub(r"\[([^],-]+)[^]]*\].*", r"\1", listed)
    return first.split(",")[0] or "127.0.0.1"


def forget() -> None:
    """Take away what torchrun or srun has set, where it is meant for another program."""
    for name in (*TORCHRUN, *SRUN):
        os.environ.pop(name, None)


def refuse_many(what: str) -> None:
    """Raises UserError where several processes were started for what one does."""
    if started := launched():
        raise UserError(
            f"{started.by} has started {started.size} processes, and {what} is for one: only "
            f"pretrain and finetune share their work. Start it without {started.by}"
        )


@contextmanager
def told_by_the_first() -> Iterator[None]:
    """For mistakes that every process makes alike, before they have met."""
    try:
        yield
    except UserError as mistake:
        started = launched()
        if started is None or started.first:
            raise
        raise AlreadyTold(*mistake.faults) from None


class Ranks:
    """The processes of a run, once they have met."""

    def __init__(self, started: Launch) -> None:
        """Meet the others. Raises UserError where they don't come."""
        from torch import distributed as dist
        from torch.distributed.rendezvous import rendezvous

        self.rank, self.size, self.first = started.rank, started.size, started.first
        os.environ.update(started.environment())
        try:
            store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=MEETING_SECONDS)))
        except (dist.DistError, RuntimeError, ValueError) as problem:
            raise UserError(
                f"{socket.gethostname()}: {started.by} has started {started.size} processes, and "
                f"they have not met at {started.address}:{started.port} within "
                f"{MEETING_SECONDS:g} seconds. Start all of them, or mend MASTER_ADDR and "
                "MASTER_PORT"
            ) from problem
        # A script may train several times, and torchrun may start it again: none is to read what
        # another one has said.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        prefix = f"fewmask/{attempt}/{next(_RUNS)}"
        self.store: Any = dist.distributed_c10d.PrefixStore(prefix, store)
        self.meetings = 0
        threading.Thread(target=self._beat, daemon=True).start()

    def tell(self, name: str, value: Any) -> None:
        """Have all others hear a value, under a name used once."""
        self.store.set(name, json.dumps(value))

    def hear(self, name: str) -> Any:
        """What was told under a name, before the last meeting."""
        return json.loads(self.store.get(name))

    def meet(self) -> None:
        """Wait for all; however long it takes, as long as they live.

        Raises AlreadyTold, or UserError in the first process, where one has stopped for a mistake;
        KeyboardInterrupt where one was interrupted; RuntimeError where one is lost.
        """
        self.meetings += 1
        self.tell(f"met/{self.meetings}/{self.rank}", True)
        seen: dict[int, tuple[bytes, float]] = {}
        for other in range(self.size):
            while not self.store.check([f"met/{self.meetings}/{other}"]):
                self._stop_if_ended()
                self._lives(other, seen)
                time.sleep(0.1)
        self._stop_if_ended()

    @contextmanager
    def work(self) -> Iterator[None]:
        """For the length of the block only the first process prints, and one's end is everyone's.

        A mistake is told once, by the first process, if it still can.
        """
        with ExitStack() as quiet:
            if not self.first:
                nowhere = quiet.enter_context(open(os.devnull, "w"))
                quiet.enter_context(redirect_stderr(nowhere))
                quiet.enter_context(redirect_stdout(nowhere))
            try:
                yield
                self._leave()
            except AlreadyTold:
                raise
            except UserError as mistake:
                self._end({"faults": list(mistake.faults)})
                raise self._who_tells(mistake) from None
            except KeyboardInterrupt:
                self._end({"interrupted": True})
                raise
            except RuntimeError:  # a connection to one that has ended breaks like this
                self._stop_if_ended(wait=LISTEN_SECONDS)
                raise

    def _end(self, why: dict[str, Any]) -> None:
        """Say why this process ends, and stay until the others can have heard it."""
        with suppress(RuntimeError):
            self.store.compare_set("end", "", json.dumps(why))
            self._leave()

    def _leave(self) -> None:
        """Need the others no more; the first, which keeps the store, stays until all have left."""
        self.store.set(f"left/{self.rank}", "1")
        end = time.monotonic() + LISTEN_SECONDS / 2
        left = [f"left/{other}" for other in range(self.size)]
        while self.first and not self.store.check(left) and time.monotonic() < end:
            time.sleep(0.1)

    def _stop_if_ended(self, wait: float = 0.0) -> None:
        """Raise what another process has ended with, if one has within `wait` seconds."""
        end = time.monotonic() + wait
        try:
            while not self.store.check(["end"]):
                if time.monotonic() >= end:
                    return
                time.sleep(0.1)
            why = self.hear("end")
            self.store.set(f"left/{self.rank}", "1")
        except RuntimeError:
            if wait:  # the first, which keeps the store, is gone as well
                return
            raise
        if "faults" in why:
            raise self._who_tells(UserError(*why["faults"])) from None
        raise KeyboardInterrupt

    def _who_tells(self, mistake: UserError) -> UserError:
        """The mistake itself in the process that is to tell it, AlreadyTold in the others."""
        if not self.first:
            end = time.monotonic() + LISTEN_SECONDS
            with suppress(RuntimeError):
                while not self.store.check(["teller"]) and time.monotonic() < end:
                    time.sleep(0.1)
        try:
            teller = self.store.compare_set("teller", "", str(self.rank)).decode()
        except RuntimeError:
            teller = "0"
        if teller == str(self.rank):
            return mistake
        time.sleep(2.0)  # torchrun ends them all as soon as one has ended: let it be told
        return AlreadyTold(*mistake.faults)

    def _beat(self) -> None:
        """Show the others that this process lives."""
        count = 0
        with suppress(RuntimeError):
            while True:
                count += 1
                self.store.set(f"alive/{self.rank}", str(count))
                time.sleep(BEAT_SECONDS)

    def _lives(self, other: int, seen: dict[int, tuple[bytes, float]]) -> None:
        """Raises RuntimeError where a process has given no sign of life for too long."""
        beat: bytes = b""
        if self.store.check([f"alive/{other}"]):
            beat = self.store.get(f"alive/{other}")
        now = time.monotonic()
        last, since = seen.get(other, (None, now))
        seen[other] = (beat, since if beat == last else now)
        if beat == last and now - since > LOST_SECONDS:
            raise RuntimeError(f"process {other} of {self.size} is lost: no sign of life for "
                               f"{LOST_SECONDS:g} seconds")  # fmt: skip
