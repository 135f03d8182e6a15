"""A study's encoders and cells as tasks on a Ray cluster."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fewmask.files import appears, write_text_atomic
from fewmask.interrupts import deferred_interrupt
from fewmask.progress import progress
from fewmask.runs import versions
from fewmask.settings import StudySettings
from fewmask.studies import worker
from fewmask.studies.cells import encoder_folder, encoder_is_there
from fewmask.studies.executing import is_done, say, words_of
from fewmask.studies.plan import Cell
from fewmask.studies.record import Study
from fewmask.types import UserError

RETRIES = 3
"""How often the work of a lost worker is given to another one."""
LOOK_SECONDS = 300.0
"""In which every machine has to answer: it starts Python and imports torch."""
GRACE_SECONDS = 60.0
"""In which cells that are stopped finish their step and save where they are."""
PASSED_ON = ("FEWMASK_CACHE", "FEWMASK_DATA", "FEWMASK_MAX_MEGAPIXELS")
"""Variables that workers get from here."""


@contextmanager
def joined(settings: StudySettings) -> Iterator[Cluster]:
    """The cluster of RAY_ADDRESS, else one that runs on this machine, else this machine alone.

    Nothing is reported over the network, and no dashboard is started. Raises UserError where Ray is
    missing, no cluster answers, or none of its machines has what a cell asks for.
    """
    if find_spec("ray") is None:
        raise UserError(
            '--executor ray: Ray is not installed. Run pip install "fewmask[cluster]", here and '
            "on every machine of the cluster"
        )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray warns that this will be its default: a task without GPUs leaves their variable alone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = import_module("ray")
    own = not ray.is_initialized()
    if own:
        _connect(ray)
    try:
        yield Cluster(ray, settings)
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS {address}: Ray's client is not supported. Give the command on a machine "
            "of the cluster, with RAY_ADDRESS=HOST:PORT"
        )
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as problem:  # a busy machine's is of no class of its own
        ray.shutdown()
        why = " ".join(str(problem).split())[:300]
        named = f"RAY_ADDRESS {address}" if address else "--executor ray"
        raise UserError(
            f"{named}: no Ray cluster can be joined or started ({why}). Mend RAY_ADDRESS, start a "
            "cluster with ray start, or try again when the machine is less busy"
        ) from problem


@dataclass
class Task:
    """What was asked of the cluster: in words, and the file that makes it done."""

    words: str
    result: Path


class Cluster:
    """A Ray cluster that computes cells; `device` is that of all of them."""

    def __init__(self, ray: Any, settings: StudySettings) -> None:
        self.ray, self.settings = ray, settings
        if settings.device not in ("auto", "cpu", "cuda"):
            raise UserError(
                f"--device {settings.device}: with --executor ray expected auto, cpu or cuda"
            )
        has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
        auto = "cuda" if has_gpus else "cpu"
        self.device: str = auto if settings.device == "auto" else settings.device
        self.cpus = settings.cpus_per_cell or torch.get_num_threads()
        self.gpus = 1 if self.device == "cuda" else 0
        self.looked: set[str] = set()
        self._nodes()

    def run(self, study: Study, cells: Sequence[Cell], finished: Callable[[], object]) -> None:
        """As `Executor.run`; at Control-C the cells under way save where they are."""
        missing = [cell for cell in cells if not is_done(study, cell)]
        if not missing:
            return
        with _ordered(study, self) as order:
            self._look(order)
            pending = self._submit(study, self.ray.put(order), missing)
            try:
                self._watch(pending, finished)
            except BaseException:
                self._stop(pending)
                raise

    def _nodes(self) -> list[dict[str, Any]]:
        """The machines on which a cell has room. Raises UserError where there is none."""
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        most = max((int(node["Resources"].get("CPU", 0)) for node in nodes), default=0)
        fit = [
            node
            for node in nodes
            if node["Resources"].get("CPU", 0) >= self.cpus
            and node["Resources"].get("GPU", 0) >= self.gpus
        ]
        if not fit:
            gpu = " and a GPU" if self.gpus else ""
            raise UserError(
                f"--executor ray: a cell asks for {self.cpus} CPUs{gpu}, and none of the "
                f"cluster's {len(nodes)} machines has that (the most CPUs are {most}). Pass "
                "a smaller --cpus-per-cell" + (", or --device cpu" if self.gpus else "")
            )
        return fit

    def _look(self, order: worker.Order) -> None:
        """Have every machine see the study folder. Raises UserError naming those that don't."""
        new = [node for node in self._nodes() if node["NodeID"] not in self.looked]
        pinned = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        look = self.ray.remote(worker.look)
        asked = {
            look.options(
                num_cpus=0, scheduling_strategy=pinned(node_id=node["NodeID"], soft=False)
            ).remote(order): node
            for node in new
        }
        self.ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_SECONDS)
        faults: dict[str, None] = {}
        for ref, node in asked.items():
            faults |= dict.fromkeys(self._answer(ref, node["NodeManagerHostname"]))
            self.looked.add(node["NodeID"])
        if faults:
            raise UserError(*faults)

    def _answer(self, ref: Any, host: str) -> tuple[str, ...]:
        """What a machine that was asked to look finds wrong."""
        errors = self.ray.exceptions
        try:
            came: worker.Came = self.ray.get(ref, timeout=1)
        except errors.GetTimeoutError:
            return (f"{host}: has started no worker within {LOOK_SECONDS:g} seconds",)
        except errors.RayError as problem:
            if "No module named" not in str(problem):
                raise
            missing = str(problem).rpartition("No module named")[2].split()[0]
            return (f"{host}: its Python has no module {missing}. Install fewmask there",)
        return came.faults

    def _submit(self, study: Study, order: Any, missing: Sequence[Cell]) -> dict[Any, Task]:
        """All tasks, the encoders' first; a cell waits for its arm's encoder."""
        needs = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": RETRIES}
        pretrain = self.ray.remote(worker.pretrain).options(**needs)
        train = self.ray.remote(worker.train).options(**needs)
        arms = {cell.arm.name: cell.arm for cell in missing}
        encoders: dict[str, Any] = {}
        pending: dict[Any, Task] = {}
        for name, arm in arms.items():
            if arm.pretrain is not None and not encoder_is_there(study, arm):
                encoders[name] = pretrain.remote(order, arm)
                done = encoder_folder(study, arm) / "result.json"
                pending[encoders[name]] = Task(f"pre-training {name}", done)
        for cell in missing:
            ref = train.remote(order, cell, encoders.get(cell.arm.name))
            pending[ref] = Task(words_of(cell), study.folder(cell) / "result.json")
        return pending

    def _watch(self, pending: dict[Any, Task], finished: Callable[[], object]) -> None:
        """Wait for all of them, telling of each; what is done is taken out of `pending`."""
        total = len(pending)
        # A KeyboardInterrupt that a signal raises inside Ray's own calls can be lost there.
        with progress("trainings on the cluster") as report, deferred_interrupt() as interrupted:
            while pending:
                done, _ = self.ray.wait(list(pending), num_returns=1, timeout=1.0)
                for ref in done:
                    self._settle(ref, pending.pop(ref), f"{total - len(pending)} of {total}")
                    finished()
                report(total - len(pending), total)
                if stop := interrupted():
                    raise stop("the cells save what they have")

    def _settle(self, ref: Any, task: Task, count: str) -> None:
        """Tell of a task that is done. Raises UserError with the user's mistakes in it."""
        errors = self.ray.exceptions
        lost = (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError,
                errors.LocalRayletDiedError, errors.ObjectLostError)  # fmt: skip
        try:
            came: worker.Came = self.ray.get(ref)
        except lost as problem:
            why = str(problem).strip().splitlines()[0]
            raise UserError(
                f"{task.words}: its worker was lost {RETRIES + 1} times, the last time so: {why} "
                "If it is memory, let fewer run at once (a larger --cpus-per-cell) or lower "
                "--batch-size"
            ) from problem
        if came.faults:
            raise UserError(*came.faults)
        appears(task.result)
        say(f"{count} done, on {came.host}: {task.words}")
        for line in came.warnings:
            say(line)

    def _stop(self, pending: dict[Any, Task]) -> None:
        """Cancel what is left, and give what is under way the time to save where it is."""
        if not pending:
            return
        say("stopping the cells under way; they save where they are")
        for ref in pending:
            self.ray.cancel(ref)
        self.ray.wait(list(pending), num_returns=len(pending), timeout=GRACE_SECONDS)


@contextmanager
def _ordered(study: Study, cluster: Cluster) -> Iterator[worker.Order]:
    """What workers are told, and meanwhile a file in the study folder for them to look for."""
    study.prepared.pairs.fingerprint()  # so that it goes with the pairs
    checked = study.prepared.checked
    order = worker.Order(
        plan=study.plan,
        out=study.out,
        pairs=study.prepared.pairs,
        checked=replace(checked, thumbs=checked.thumbs[:0]),
        split=study.split,
        starts=study.starts,
        left_out=study.leakage.left_out,
        device=cluster.device,
        precision=cluster.settings.precision,
        workers=cluster.settings.workers,
        threads=cluster.cpus,
        folder=Path.cwd(),
        token=secrets.token_hex(8),
        environment={name: os.environ[name] for name in PASSED_ON if name in os.environ},
        version=versions()["fewmask"],
    )
    write_text_atomic(order.token_path, order.token)
    try:
        yield order
    finally:
        order.token_path.unlink(missing_ok=True)
