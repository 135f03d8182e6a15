"""How torchrun or srun has started this process, if one of them has. They do; nothing here does."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fewmask.types import UserError

TORCHRUN = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
            "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
SRUN = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
"""Variables that are all there where torchrun, or srun, has started this process."""


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
