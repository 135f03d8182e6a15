"""What a Ray worker does: one cell, or one encoder, of a study that another process has planned."""

from __future__ import annotations

import io
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fewmask import ranks
from fewmask.data.cache import cached_pairs
from fewmask.data.check import PairReport
from fewmask.data.sources import PairSet
from fewmask.data.split import Split
from fewmask.devices import make_fabric
from fewmask.files import appears, faults_of
from fewmask.runs import held, versions
from fewmask.studies.cells import arm_key, encoder_folder, pretrain_arm, run_cell
from fewmask.studies.executing import is_done
from fewmask.studies.leakage import Leakage
from fewmask.studies.plan import Arm, Cell, Plan
from fewmask.studies.record import Study
from fewmask.types import Precision, UserError
from fewmask.workflows import Prepared

LOST_SECONDS = 300.0
"""A machine that lost the cluster may go on with its cell for about a minute before it gives up."""


@dataclass(frozen=True)
class Order:
    """What a worker needs of a study: everything but the pixels, which it reads itself."""

    plan: Plan
    out: Path
    pairs: PairSet
    checked: PairReport
    split: Split
    starts: Mapping[str, str]
    left_out: dict[str, frozenset[str]]
    device: str
    precision: Precision
    workers: int | None
    threads: int
    """That one cell computes with."""
    folder: Path
    """In which the command was given: paths of plans and flags are relative to it."""
    token: str
    """What the file `token_path` in the study folder holds."""
    environment: Mapping[str, str]
    version: str

    @property
    def token_path(self) -> Path:
        return self.out / f".seen.{self.token}.tmp"


@dataclass(frozen=True)
class Came:
    """What came of a task: where it ran, what it warned of, and the user's mistakes."""

    host: str
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def look(order: Order) -> Came:
    """Whether this machine can work on the study at all."""
    return _told(order, lambda: None)


def pretrain(order: Order, arm: Arm) -> Came:
    """Pre-train the encoder of an arm."""

    def work() -> None:
        if arm.pretrain is None:
            return
        study = _study(order)
        if arm_key(study, arm, download=False) != study.starts[arm.name]:
            raise _other_files(arm.pretrain.images)
        with _free(encoder_folder(study, arm)):
            pass  # the run holds its folder itself
        pretrain_arm(study, replace(arm, pretrain=replace(arm.pretrain, device=order.device)))

    return _told(order, work)


def train(order: Order, cell: Cell, encoder: Came | None) -> Came:
    """Train and test a cell, once its `encoder` is there; a half-finished one goes on."""
    if encoder is not None and encoder.faults:
        return encoder

    def work() -> None:
        study = _study(order)
        if cell.arm.pretrain is not None:
            appears(encoder_folder(study, cell.arm) / "result.json")
        with _free(study.folder(cell)):
            if not is_done(study, cell):
                run_cell(study, cell)

    return _told(order, work)


def _told(order: Order, work: Callable[[], object]) -> Came:
    """Do the work as the order says. Mistakes go back as text: exceptions would be unpickled."""
    host = socket.gethostname()
    printed = io.StringIO()

    def whole() -> None:
        _enter(order, host)
        work()

    with redirect_stderr(printed):
        faults = faults_of(whole, order.out)
    warnings = [line for line in printed.getvalue().splitlines() if line.startswith("warning: ")]
    print(printed.getvalue(), file=sys.stderr)  # into Ray's own log
    return Came(host, faults, tuple(warnings))


def _enter(order: Order, host: str) -> None:
    """Be as the process that planned the study: its folder, its variables, its threads."""
    ranks.forget()  # where srun has started Ray, its variables are of no run of ours
    os.environ.update(order.environment)
    torch.set_num_threads(order.threads)
    own = versions()["fewmask"]
    if order.version != own:
        raise UserError(
            f"{host}: has fewmask {own}, the study was begun with {order.version}. Install the "
            "same version on all machines"
        )
    with _seen(order.folder, host):
        os.chdir(order.folder)
    with _seen(order.out, host):
        if order.token_path.read_text(encoding="ascii") != order.token:
            raise FileNotFoundError


@contextmanager
def _seen(path: Path, host: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise UserError(
            f"{path.absolute()}: is not seen on {host}, or is another folder there. With "
            "--executor ray the study folder, the data and the folder that the command is given "
            "in lie where all machines see them, under the same path"
        ) from None


@contextmanager
def _free(folder: Path) -> Iterator[None]:
    """Hold a folder, after waiting for a lost worker that still writes into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, wait=LOST_SECONDS):
        yield


def _study(order: Order) -> Study:
    """The study as the order says, with its pixels read here."""
    plan = order.plan
    _refuse_other_pairs(order)
    cache = cached_pairs(
        order.pairs,
        order.checked.labels,
        plan.finetune.size,
        plan.finetune.resize,
        workers=order.workers,
    )
    return Study(
        plan,
        order.out,
        Prepared(order.pairs, order.checked, cache),
        order.split,
        make_fabric(order.device, 1, order.precision),
        dict(order.starts),
        Leakage(left_out=order.left_out),
    )


_CHECKED: set[str] = set()
"""Fingerprints of pairs that this process has found to be the same here."""


def _refuse_other_pairs(order: Order) -> None:
    """Raises UserError where the files of the pairs are not those that the study was begun with."""
    found = order.pairs.fingerprint()
    if found in _CHECKED:
        return
    if replace(order.pairs).fingerprint() != found:  # a copy, which has to read them
        raise _other_files(order.pairs.src)
    _CHECKED.add(found)


def _other_files(src: str) -> UserError:
    return UserError(
        f"{src}: holds other files on {socket.gethostname()} than where the study was begun. Let "
        "all machines see the same ones"
    )
