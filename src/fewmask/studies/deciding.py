"""Repeats one by one until the verdicts are reached: which cells come next, and up to where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fewmask.evidence.verdicts import Verdict
from fewmask.reporting.folder import read_study
from fewmask.reporting.judged import verdicts
from fewmask.settings import StudySettings
from fewmask.studies.plan import Cell
from fewmask.studies.record import Study, earlier_facts
from fewmask.types import UserError

MOST = 10


def looks_of(study: Study, settings: StudySettings) -> dict[str, Any] | None:
    """What study.json says of looking early: {"first": {budget: repeats}, "most": repeats}.

    "late" stands beside where verdicts had been written before the limit was fixed.

    A study that has looked goes on being judged so. Raises UserError for another limit than it
    began with, also by --repeats: the verdicts hold for the limit that was fixed before the first
    look. And for a limit that leaves nothing to add.
    """
    before: dict[str, Any] | None = earlier_facts(study.out).get("until_decided")
    for budget, planned in study.plan.repeats.items():
        if before and planned > max(before["most"], before["first"].get(str(budget), 0)):
            raise UserError(
                f"{study.out}: its verdicts hold for up to {before['most']} repeats, the limit "
                f"when it began to look, not for {planned}. Keep to it, or choose another --out"
            )
    if not settings.until_decided:
        return before
    most = settings.most_repeats or (before["most"] if before else MOST)
    if before and before["most"] != most:
        raise UserError(
            f"{study.out}: began to look with --most-repeats {before['most']}, not {most}; its "
            "verdicts hold for that limit alone. Keep it, or choose another --out"
        )
    if most <= min(study.plan.repeats.values()):
        raise UserError(
            f"--most-repeats {most}: every budget of the plan has {most} repeats or more already; "
            "name more, or leave out --until-decided"
        )
    first = {
        str(budget): min([planned, *study.looked.get(str(budget), [])])
        for budget, planned in study.plan.repeats.items()
    }
    return before or {"first": first, "most": most} | ({"late": True} if study.looked else {})


def look(study: Study, cells: Iterable[Cell]) -> bool:
    """Take note of the numbers of repeats whose verdicts are now to be seen; whether one is new.

    Repeats that are added by hand after that are added by somebody who has seen the verdicts.
    """
    there: dict[str, int] = {}
    for cell in cells:
        if (study.folder(cell) / "result.json").exists():
            there[str(cell.budget)] = max(there.get(str(cell.budget), 0), cell.repeat + 1)
    new = False
    for budget, repeats in there.items():
        if repeats > 1 and repeats not in study.looked.get(budget, []):
            study.looked[budget] = sorted([*study.looked.get(budget, []), repeats])
            new = True
    return new


def beyond(study: Study) -> list[Cell]:
    """Finished cells of more repeats than the plan has, from an earlier --until-decided."""
    found = []
    for arm in study.plan.arms:
        for budget in study.plan.budgets:
            repeat = study.plan.repeats[budget]
            while (study.folder(cell := Cell(arm, budget, repeat)) / "result.json").exists():
                found.append(cell)
                repeat += 1
    return _in_order(study, found)


def _in_order(study: Study, cells: Iterable[Cell]) -> list[Cell]:
    """Repeats outermost, then budgets, then arms, as a plan's own cells."""
    arms, budgets = study.plan.arms, study.plan.budgets
    return sorted(cells, key=lambda c: (c.repeat, budgets.index(c.budget), arms.index(c.arm)))


def undecided(out: Path) -> list[Verdict]:
    """The verdicts that cannot tell yet."""
    return [verdict for verdict in verdicts(read_study(out)) if verdict.word == "cannot tell"]


def next_cells(study: Study, cells: Sequence[Cell], open_ones: Iterable[Verdict]) -> list[Cell]:
    """One more repeat of every undecided arm, and of the baseline where it lacks that repeat."""
    arms = {arm.name: arm for arm in study.plan.arms}
    there = set(cells)
    added: dict[Cell, None] = {}
    for verdict in open_ones:
        repeat = max(verdict.repeats) + 1
        if study.looks and repeat < study.looks["most"]:
            for name in (study.plan.baseline, verdict.arm):
                cell = Cell(arms[name], verdict.budget, repeat)
                if cell not in there:
                    added[cell] = None
    return _in_order(study, added)
