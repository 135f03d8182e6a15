"""fit(): the one training loop. It knows no task by name.

A task is a module whose `forward(batch)` returns named scalar losses; the loop adds them up, steps
and logs. What a task wants to show beside its losses (feature spread, accuracy against chance) it
leaves in a dict `signals` of detached scalars. A task with a method `after_step(step, steps)` is
told when the optimiser has moved it (teachers that follow their students).

Every random number is a function of (seed, step), so a run that was killed resumes to the same
bits: the state is the step, the weights and the optimiser.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from fewmask.augment import step_generator
from fewmask.checkpoint import load_state, save_state
from fewmask.compiling import compiled, pays
from fewmask.data.loader import Stream
from fewmask.data.reading import Reading, read_ahead
from fewmask.files import UNEXPECTED, append_text, write_text_atomic
from fewmask.finite import LossWatch
from fewmask.headroom import Backward, within_memory
from fewmask.interrupts import Stop, deferred_interrupt
from fewmask.optimisation import Optimisation
from fewmask.plainfiles import read_plain_text
from fewmask.progress import Report
from fewmask.smallmaps import small_maps
from fewmask.types import Batch, Compile, UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def _save_seconds() -> float:
    said = os.environ.get("FEWMASK_SAVE_SECONDS", "60")
    try:
        return float(said)
    except ValueError:
        raise UserError(f"FEWMASK_SAVE_SECONDS={said}: expected a number of seconds") from None


SAVE_SECONDS = _save_seconds()
"""At most this much work is lost when a run is killed, beside the step that was under way."""
AVERAGE_DECAY = 0.99

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Check:
    """What the loop looks at now and then: validation scores, by whose `loss` the best is kept.

    The task is then in evaluation mode and no gradient is recorded; `score` gets the steps done.
    """

    every: int
    score: Callable[[int], Scores]
    prefix: str = "val_"
    """Before the scores' names in the log."""


@dataclass
class Fitted:
    """How a run went. `rows` are those of metrics.jsonl."""

    steps: int
    seconds: float
    loss: float
    best_step: int
    best: Scores
    rows: list[dict[str, Any]] = field(default_factory=list)
    compiled: bool = False


@dataclass
class _Memory:
    """All that a resumed run must know beside weights and optimiser."""

    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    best_step: int = -1
    best: Scores = field(default_factory=dict)
    best_weights: dict[str, Tensor] | None = None
    average: dict[str, Tensor] | None = None
    window: dict[str, Tensor] = field(default_factory=dict)
    """Sums of what is shown, over the steps since the last row of the log."""
    window_seconds: float = 0.0
    window_waiting: float = 0.0
    parts: int = 1
    """Into how many a batch is divided, for the device's memory."""
    compiled: bool | None = None
    """Whether the run is one with torch.compile, once that is decided: a resumed run stays so."""


Keep = Literal["best", "last", "average"]


@dataclass(frozen=True)
class Run:
    """One training run: its folder, its key, its length and what it keeps.

    `key` names settings and data: a state of another key is not resumed but refused.
    """

    out: Path
    key: str
    steps: int
    optimisation: Optimisation
    keep: Keep = "last"
    report: Report | None = None
    reading: Reading = field(default_factory=Reading)
    say: Callable[[str], object] | None = None
    """Takes a line that the user should read."""
    words: Callable[[Mapping[str, Any]], str] | None = None
    """A row of the log in the few words of a progress line, beside loss and speed."""
    compile: Compile = "off"
    """auto: where it is measured to pay."""
    compiles: tuple[str, ...] = ()
    """Names of the task's submodules that torch.compile would compile."""


def fit(
    fabric: Fabric,
    task: nn.Module,
    groups: Iterable[tuple[float, nn.Module]],
    stream: Stream,
    run: Run,
    check: Check | None = None,
) -> Fitted:
    """Train `task` on `stream` for `run.steps`; the task holds the kept weights afterwards.

    The folder then holds the state of the last step, so that what comes after the training can be
    killed as well; whoever writes the result removes it. Raises UserError where a loss is not a
    finite number (failed.json then names the batch; the state is that of good weights), or where
    the folder holds a state that is damaged or another run's. At Control-C and SIGTERM the step
    is finished and the state saved, and KeyboardInterrupt or Terminated is raised.
    """
    loop = _Loop(fabric, task, run.optimisation.build(groups), stream, run, check)
    with deferred_interrupt(fabric.global_rank) as interrupted:
        loop.go(interrupted)
    loop.load_kept()
    if not all(torch.isfinite(p).all() for p in task.parameters()):
        raise UserError(
            f"weights became not finite within {run.steps} steps, though the loss stayed so. "
            f"Lower --lr (now {run.optimisation.lr:g}) or choose --precision 32"
        )
    m = loop.memory
    return Fitted(m.step, m.seconds, m.loss, m.best_step, m.best, loop.rows, bool(m.compiled))


def _resume(
    path: Path, key: str, task: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> _Memory:
    """What a state file holds, loaded into task and optimiser; called when they are in place.

    Raises UserError where the file is damaged, another run's, or doesn't fit this one.
    """
    if not path.exists():
        return _Memory()
    state = load_state(path)
    try:
        if state["key"] != key:
            raise UserError(
                f"{path}: begun with other settings or other images. "
                "Choose another --out, or remove this folder to begin anew"
            )
        task.load_state_dict(state["task"])
        optimizer.load_state_dict(state["optimizer"])
        memory = _Memory(**state["memory"])
        for tensors in (memory.average, memory.best_weights, memory.window):
            for name in tensors or ():
                tensors[name] = tensors[name].to(device)  # type: ignore[index]
    except (*UNEXPECTED, RuntimeError) as problem:
        why = " ".join(str(problem).split())[:200]
        raise UserError(
            f"{path}: does not fit this run ({type(problem).__name__}: {why}); another version of "
            "fewmask may have written it. Remove it to begin this run anew"
        ) from problem
    return memory


class _Loop:
    """The loop's state between two steps; its methods are the parts of one step."""

    def __init__(
        self,
        fabric: Fabric,
        task: nn.Module,
        optimizer: torch.optim.Optimizer,
        stream: Stream,
        run: Run,
        check: Check | None,
    ) -> None:
        self.fabric, self.plain, self.stream, self.run = fabric, task, stream, run
        self.check = check
        self.task, self.optimizer = fabric.setup(task, optimizer)
        # After the set-up has moved the parameters: the optimiser's state follows them.
        self.memory = _resume(run.out / "state.pt", run.key, task, optimizer, fabric.device)
        if not self.memory.step and run.say and _holds_steps(run.out / "metrics.jsonl"):
            run.say("metrics.jsonl holds steps, but no state is there to go on from: begins anew")
        self.backward = Backward(fabric, self.task, task, self.memory.parts, run.say)
        self.log_every = max(1, run.steps // 100)
        self.log_path = run.out / "metrics.jsonl"
        self.rows = _rows_until(self.log_path, self.memory.step)
        self.saved = time.monotonic()
        mend = f"Lower --lr (now {run.optimisation.lr:g}) or choose --precision 32"
        self.watch = LossWatch(fabric, stream, run.out, mend)
        if fabric.is_global_zero:
            run.out.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self.log_path, "".join(json.dumps(r) + "\n" for r in self.rows))

    def go(self, interrupted: Callable[[], Stop | None]) -> None:
        steps = range(self.memory.step, self.run.steps)
        if steps.start and self.run.say:
            self.run.say(f"goes on from step {steps.start} of {steps.stop}")
        batches = read_ahead(self.stream, steps, self.fabric.device, self.run.reading)
        try:
            with small_maps(self.plain), self.compiled():
                self.steps(steps, batches, interrupted)
        finally:
            close = getattr(batches, "close", None)
            if close:  # whoever reads ahead stops
                close()

    def compiled(self) -> AbstractContextManager[None]:
        """The compiled parts of the task, or nothing."""
        m, run = self.memory, self.run
        if m.compiled is None and m.step < run.steps:
            m.compiled = run.compile == "on"
            if run.compile == "auto":
                batch = self.stream.at(m.step).to(self.fabric.device)
                m.compiled = pays(self.fabric, self.plain, run.compiles, batch, run.steps - m.step)
        return compiled(self.plain, run.compiles) if m.compiled else nullcontext()

    def steps(
        self, steps: range, batches: Iterator[Batch], interrupted: Callable[[], Stop | None]
    ) -> None:
        m = self.memory
        self.task.train()
        for step in steps:
            began = time.monotonic()
            self.one_step(step, batches)
            m.step = step + 1
            m.window_seconds += time.monotonic() - began
            last = m.step == self.run.steps
            checked = self.check is not None and (last or m.step % self.check.every == 0)
            if m.step % self.log_every == 0 or last or checked:
                self.log(checked)
            m.seconds += time.monotonic() - began
            stop = interrupted()
            if last or stop or time.monotonic() - self.saved > SAVE_SECONDS:
                self.save()
            if stop:
                raise stop("saved")

    def one_step(self, step: int, batches: Iterator[Batch]) -> None:
        began = time.monotonic()
        batch = next(batches).to(self.fabric.device)
        self.memory.window_waiting += time.monotonic() - began
        # Dropout draws from the global generator: a stream of its own for each process.
        drawn = step_generator(self.stream.seed, step, "cpu", 1000 + self.stream.rank)
        torch.manual_seed(drawn.initial_seed())
        factor = self.run.optimisation.factor(step, self.run.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        losses = self.backward(batch)
        self.memory.parts = self.backward.parts
        self.watch.see(step, losses)
        loss = sum(losses.values())
        with within_memory(batch, self.fabric.device, self.memory.parts):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        after: Callable[[int, int], None] | None = getattr(self.plain, "after_step", None)
        if after:
            after(step, self.run.steps)
        if self.run.keep == "average":
            self.average()
        shown = {"loss": loss, **losses, **getattr(self.plain, "signals", {})}
        for name, value in shown.items():
            value = value.detach().float()
            window = self.memory.window
            window[name] = window[name] + value if name in window else value

    def average(self) -> None:
        """Exponential moving average of all floating-point state."""
        now = {k: v for k, v in self.plain.state_dict().items() if v.is_floating_point()}
        if self.memory.average is None:
            self.memory.average = {k: v.detach().clone() for k, v in now.items()}
        else:
            held = [self.memory.average[k] for k in now]
            # Less memory at first: the start would else weigh on a short run's average to its end.
            decay = min(AVERAGE_DECAY, (1 + self.memory.step) / (10 + self.memory.step))
            torch._foreach_lerp_(held, [v.detach() for v in now.values()], 1 - decay)

    def log(self, checked: bool) -> None:
        """One row of metrics.jsonl: means over the steps since the last one."""
        self.watch.settle()
        m, done = self.memory, self.memory.step
        steps = done - (self.rows[-1]["step"] if self.rows else 0)
        row: dict[str, Any] = {"step": done, "epoch": done / self.stream.steps_per_epoch}
        row |= {k: v.item() / steps for k, v in m.window.items()}
        row["lr"] = self.optimizer.param_groups[-1]["lr"]
        row["images_per_second"] = steps * self.stream.size / max(m.window_seconds, 1e-9)
        row["waiting"] = m.window_waiting / max(m.window_seconds, 1e-9)
        m.window, m.window_seconds, m.window_waiting = {}, 0.0, 0.0
        self.memory.loss = row["loss"]
        if checked and self.check is not None:
            row |= self.validate(self.check, done)
        self.rows.append(row)
        if self.fabric.is_global_zero:
            append_text(self.log_path, json.dumps(row) + "\n")
            if self.run.report:
                self.run.report(done, self.run.steps, self.in_words(row))

    def in_words(self, row: Mapping[str, Any]) -> str:
        """A row of the log in a progress line; what was looked at before this row counts too."""
        known = {k: v for r in self.rows for k, v in r.items() if v is not None} | dict(row)
        signals = self.run.words(known) if self.run.words else ""
        words = [f"loss {row['loss']:.4g}", signals, f"{row['images_per_second']:.3g} images/s"]
        return ", ".join([*filter(None, words), f"waiting {100 * row['waiting']:.2g} %"])

    def validate(self, check: Check, done: int) -> dict[str, float | None]:
        self.plain.eval()
        with torch.inference_mode():
            scores = check.score(done)
        self.plain.train()
        loss, best = scores.get("loss"), self.memory.best.get("loss")
        if best is None or (loss is not None and loss < best):
            self.memory.best, self.memory.best_step = scores, done
            if self.run.keep == "best":
                self.memory.best_weights = _copy(self.plain)
        return {f"{check.prefix}{name}": value for name, value in scores.items()}

    def save(self) -> None:
        self.watch.settle()
        if self.fabric.is_global_zero:
            state = {
                "key": self.run.key,
                "task": self.plain.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "memory": vars(self.memory),
            }
            save_state(self.run.out / "state.pt", state)
        self.saved = time.monotonic()

    def load_kept(self) -> None:
        kept = {"best": self.memory.best_weights, "average": self.memory.average}
        weights = kept.get(self.run.keep)
        if weights is not None:
            self.plain.load_state_dict({**self.plain.state_dict(), **weights})


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows of an earlier sitting up to the step that it resumes from."""
    if step == 0 or not path.exists():
        return []
    rows = []
    for line in read_plain_text(path, "replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # torn by a full disk or a power cut
            break
        if not _is_row(row) or row["step"] > step:
            break
        rows.append(row)
    return rows


def _holds_steps(path: Path) -> bool:
    """Whether a log is there and not empty."""
    return path.exists() and path.stat().st_size > 0


def _is_row(row: object) -> bool:
    """Whether it is a table of numbers with its step, as the log's rows are."""
    return (
        isinstance(row, dict)
        and type(row.get("step")) is int
        and all(value is None or isinstance(value, int | float) for value in row.values())
    )
