"""Where a study's cells are computed: one after the other here, or on a Ray cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from fewmask.runs import is_finished
from fewmask.settings import StudySettings
from fewmask.studies.cells import encoder_is_there, pretrain_arm, run_cell
from fewmask.studies.plan import Cell
from fewmask.studies.record import Study


class Executor(Protocol):
    """Computes cells, and before them the encoders that they start from."""

    @property
    def device(self) -> str | None:
        """The device of the cells; None where it is the study's own."""

    def run(self, study: Study, cells: Sequence[Cell], finished: Callable[[], object]) -> None:
        """Compute the cells that are missing; `finished` is called after each.

        Raises UserError, as soon as a cell does.
        """


@contextmanager
def executor(settings: StudySettings) -> Iterator[Executor]:
    """The one that --executor names. Raises UserError where a cluster cannot be had."""
    if settings.executor == "local":
        yield Local()
        return
    from fewmask.studies.cluster import joined

    with joined(settings) as cluster:
        yield cluster


class Local:
    """One cell after the other, in this process."""

    device = None

    def run(self, study: Study, cells: Sequence[Cell], finished: Callable[[], object]) -> None:
        """As `Executor.run`."""
        for i, cell in enumerate(cells):
            if is_done(study, cell):
                continue
            say(f"cell {i + 1} of {len(cells)}: {words_of(cell)}")
            arm = cell.arm
            if arm.pretrain is not None and not encoder_is_there(study, arm):
                say(f"pre-training {arm.name}")
                pretrain_arm(study, arm)
            run_cell(study, cell)
            finished()


def is_done(study: Study, cell: Cell) -> bool:
    """Whether a cell is finished: by this command, or an earlier one."""
    return is_finished(study.folder(cell))


def words_of(cell: Cell) -> str:
    """A cell as the user reads it."""
    return f"{cell.arm.name}, budget {cell.budget}, repeat {cell.repeat}"


def say(line: str) -> None:
    """A line on standard error."""
    print(line, file=sys.stderr, flush=True)
