"""Running a study: what is done is skipped, what was under way goes on."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import tomli_w

from fewmask import workflows
from fewmask.data.split import Split, make_split, read_split_json
from fewmask.devices import make_fabric
from fewmask.evidence.verdicts import Verdict
from fewmask.files import write_text_atomic
from fewmask.flags import flag_name
from fewmask.ranks import refuse_many
from fewmask.reporting.findings import findings
from fewmask.reporting.folder import read_study
from fewmask.reporting.page import write_report
from fewmask.runs import held
from fewmask.segmentation import Geometry
from fewmask.settings import StudySettings
from fewmask.studies.cells import arm_key, cell_settings
from fewmask.studies.deciding import beyond, look, looks_of, next_cells, undecided
from fewmask.studies.executing import Executor, executor
from fewmask.studies.grid import load_plan
from fewmask.studies.leakage import find_leakage, tell
from fewmask.studies.own_test import prepare_both
from fewmask.studies.plan import BudgetSize, Cell, Plan
from fewmask.studies.record import (
    Study,
    describe_data,
    earlier_facts,
    refuse_another,
    write_examples,
    write_facts,
    write_results,
)
from fewmask.types import StudyResult, UserError
from fewmask.workflows import Prepared


def run_study(settings: StudySettings, command: str = "") -> StudyResult:
    """Run what is missing of a study, and write its table, figures and page.

    Raises UserError for a wrong plan, faulty data, or a folder that another study owns or another
    process works in.
    """
    refuse_many("a study")
    plan = load_plan(settings)
    out = Path(settings.out)
    with executor(settings) as workplace:
        study = _prepare(plan, out, settings, workplace)
        refuse_another(study)
        study.data = describe_data(study)
        out.mkdir(parents=True, exist_ok=True)
        with held(out):
            refuse_another(study)  # another process may have begun meanwhile
            return _run(study, settings, command or command_of(settings), workplace)


def command_of(settings: StudySettings) -> str:
    """The command line of a study that was begun from Python."""
    words = ["fewmask", "study", settings.plan]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name == "plan" or value == field.default:
            continue
        if isinstance(value, bool):
            words.append(flag_name(field.name if value else f"no_{field.name}"))
        else:
            several = isinstance(value, tuple)
            words += [flag_name(field.name), ",".join(map(str, value)) if several else str(value)]
    return shlex.join(words)


def _run(study: Study, settings: StudySettings, command: str, workplace: Executor) -> StudyResult:
    out = study.out
    study.looked = earlier_facts(out).get("looked") or {}
    study.looks = looks_of(study, settings)
    cells = [*study.plan.cells(), *beyond(study)]
    write_facts(study, command, cells)
    write_text_atomic(out / "plan.toml", tomli_w.dumps(study.plan.entries))
    _say_others(study, cells)
    tell(study.leakage, len(study.split.test), out)
    _run_missing(study, cells, workplace)
    while settings.until_decided:
        open_ones = undecided(out)
        new = next_cells(study, cells, open_ones)
        if not new:
            break
        _say_undecided(open_ones)
        cells += new
        write_facts(study, command, cells)
        _run_missing(study, cells, workplace)
    rows = write_results(study, cells)
    if look(study, cells):
        write_facts(study, command, cells)
    write_examples(study)
    page = write_report(out)
    said = tuple(findings(read_study(out)))
    return StudyResult(out=out, page=page, rows=tuple(rows), findings=said)


def _run_missing(study: Study, cells: list[Cell], workplace: Executor) -> None:
    write_results(study, cells)
    workplace.run(study, cells, lambda: write_results(study, cells))


def _say_others(study: Study, cells: list[Cell]) -> None:
    """Finished cells of other settings are kept, but are in no table."""
    own = {study.key(cell) for cell in cells}
    done = {path.parent.name for path in (study.out / "cells").glob("*/result.json")}
    if done - own:
        print(
            f"warning: {study.out}: {len(done - own)} finished cells are of other settings; they "
            "stay in cells/ and are not in the results",
            file=sys.stderr,
        )


def _say_undecided(found: list[Verdict]) -> None:
    places = ", ".join(f"{v.arm} at {v.budget} after {len(v.repeats)}" for v in found)
    print(f"undecided: {places} repeats; one more of each", file=sys.stderr, flush=True)


def _prepare(plan: Plan, out: Path, settings: StudySettings, workplace: Executor) -> Study:
    """Everything that can go wrong goes wrong here, before the first step."""
    finetune = plan.finetune
    # A cluster's device need not be here.
    device = settings.device if workplace.device is None else "cpu"
    fabric = make_fabric(device, 1, settings.precision)
    geometry = Geometry(finetune.size, finetune.resize)
    given: Split | None = None
    if plan.test_pairs is None:
        prepared = workflows.prepare(plan.pairs, plan.mask_options, geometry, settings)
    else:
        prepared, given = prepare_both(plan, plan.test_pairs, settings)
    for warning in prepared.checked.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    split = _split(plan, out, prepared, given)
    leakage = find_leakage(plan, prepared, split, settings)
    study = Study(plan, out, prepared, split, fabric, leakage=leakage, device=workplace.device)
    for arm in plan.arms:
        study.starts[arm.name] = arm_key(study, arm, download=settings.download)
    for arm in plan.arms:
        if arm.pretrain is not None:
            workflows.try_pretraining(arm.pretrain, study.left_out(arm.pretrain.images))
        else:
            first = cell_settings(study, Cell(arm, plan.budgets[0], 0), out / "unused")
            workflows.start_model(first, prepared.checked.labels)
    for warning in same_budgets(study):
        print(f"warning: {warning}", file=sys.stderr)
    return study


def same_budgets(study: Study) -> list[str]:
    """Warnings of budgets that come to the same masks. Raises UserError for too large ones."""
    plan, left = study.plan, len(study.split.rest)
    faults: list[str] = []
    numbers: dict[int, list[BudgetSize]] = {}
    for budget in plan.budgets:
        wanted = budget if isinstance(budget, int) else round(budget * study.n)
        # A share may be one off: it and the test set's are both rounded.
        if wanted > left + (not isinstance(budget, int)):
            share = math.floor(1000 * left / study.n) / 1000
            faults.append(
                f"budget {budget}: {wanted} masks, and beside the {len(study.split.test)} pairs to "
                f"test on there are {left}. Name at most {left}, or {share:g} of all"
            )
        found = study.budget(Cell(plan.arms[0], budget, 0))
        numbers.setdefault(len(found.train) + len(found.val), []).append(budget)
    if faults:
        raise UserError(*faults)
    return [
        f"budgets {', '.join(map(str, same))} are the same {n} masks"
        for n, same in numbers.items()
        if len(same) > 1
    ]


def _split(plan: Plan, out: Path, prepared: Prepared, given: Split | None) -> Split:
    """The split that the folder holds, the one that is given, or a new one."""
    names = [pair.name for pair in prepared.pairs.items]
    path = out / "splits.json"
    if path.exists():
        return read_split_json(path, names)
    if given is not None:
        return given
    return make_split(len(names), prepared.checked.groups, test_fraction=plan.test, seed=plan.seed)
