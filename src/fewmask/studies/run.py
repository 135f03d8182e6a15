"""Running a study: what is done is skipped, what was under way goes on."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import tomli_w
from numpy.typing import NDArray

from fewmask import workflows
from fewmask.checkpoint import start_key
from fewmask.data.sources import Pair, open_images
from fewmask.data.split import Split, make_split, read_split_json
from fewmask.devices import make_fabric
from fewmask.evaluation import per_image_csv, score_pairs
from fewmask.evidence.verdicts import Verdict
from fewmask.files import write_text_atomic
from fewmask.inference import Pixels, save_mask
from fewmask.metrics import Scores, aggregate
from fewmask.progress import progress
from fewmask.reporting.page import write_report
from fewmask.runs import config_of, held, key_of, write_result
from fewmask.segmentation import Geometry, Segmenter
from fewmask.settings import FinetuneSettings, PretrainSettings, StudySettings
from fewmask.studies.deciding import beyond, looks_of, next_cells, undecided
from fewmask.studies.grid import load_plan
from fewmask.studies.leakage import find_leakage, tell
from fewmask.studies.own_test import prepare_both
from fewmask.studies.plan import Arm, Cell, Plan
from fewmask.studies.record import (
    PATHS,
    Study,
    describe_data,
    refuse_another,
    write_examples,
    write_facts,
    write_results,
)
from fewmask.types import StudyResult
from fewmask.workflows import Prepared


def run_study(settings: StudySettings, command: str = "") -> StudyResult:
    """Run what is missing of a study, and write its table, figures and page.

    Raises UserError for a wrong plan, faulty data, or a folder that another study owns or another
    process works in.
    """
    plan = load_plan(settings)
    out = Path(settings.out)
    study = _prepare(plan, out, settings)
    refuse_another(study)
    study.data = describe_data(study)
    out.mkdir(parents=True, exist_ok=True)
    with held(out):
        refuse_another(study)  # another process may have begun meanwhile
        return _run(study, settings, command)


def _run(study: Study, settings: StudySettings, command: str) -> StudyResult:
    out = study.out
    study.looks = looks_of(study, settings)
    cells = [*study.plan.cells(), *beyond(study)]
    write_facts(study, command, cells)
    _say_others(study, cells)
    tell(study.leakage, len(study.split.test), out)
    _run_missing(study, cells)
    while settings.until_decided:
        open_ones = undecided(out)
        new = next_cells(study, cells, open_ones)
        if not new:
            break
        _say_undecided(open_ones)
        cells += new
        write_facts(study, command, cells)
        _run_missing(study, cells)
    rows = write_results(study, cells)
    write_examples(study)
    page = write_report(out)
    return StudyResult(out=out, page=page, rows=tuple(rows))


def _run_missing(study: Study, cells: list[Cell]) -> None:
    write_results(study, cells)
    for i, cell in enumerate(cells):
        if not (study.folder(cell) / "result.json").exists():
            print(
                f"cell {i + 1} of {len(cells)}: {cell.arm.name}, budget {cell.budget}, "
                f"repeat {cell.repeat}",
                file=sys.stderr,
                flush=True,
            )
            _run_cell(study, cell)
            write_results(study, cells)


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


def _prepare(plan: Plan, out: Path, settings: StudySettings) -> Study:
    """Everything that can go wrong goes wrong here, before the first step."""
    finetune = plan.finetune
    fabric = make_fabric(settings.device, 1, settings.precision)
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
    study = Study(plan, out, prepared, split, fabric, leakage=leakage)
    for arm in plan.arms:
        study.starts[arm.name] = _start_key(study, arm, download=settings.download)
    for arm in plan.arms:
        if arm.pretrain is not None:
            workflows.try_pretraining(arm.pretrain, study.left_out(arm.pretrain.images))
        else:
            first = _cell_settings(study, Cell(arm, plan.budgets[0], 0), out / "unused")
            workflows.start_model(first, prepared.checked.labels)
    for budget in plan.budgets:
        study.budget(Cell(plan.arms[0], budget, 0))
    return study


def _split(plan: Plan, out: Path, prepared: Prepared, given: Split | None) -> Split:
    """The split that the folder holds, the one that is given, or a new one."""
    names = [pair.name for pair in prepared.pairs.items]
    path = out / "splits.json"
    if path.exists():
        return read_split_json(path, names)
    if given is not None:
        return given
    return make_split(len(names), prepared.checked.groups, test_fraction=plan.test, seed=plan.seed)


def _start_key(study: Study, arm: Arm, *, download: bool) -> str:
    """A name for the encoder that an arm starts its fine-tuning from, by content."""
    if arm.pretrain is None:
        return start_key(arm.init, arm.weights, study.plan.finetune.encoder)
    images = open_images(arm.pretrain.images, download=download)
    config = {k: v for k, v in config_of(arm.pretrain).items() if k not in PATHS}
    start = start_key(arm.init, arm.weights, arm.pretrain.encoder)
    left_out = study.left_out(arm.pretrain.images)
    return key_of(config, start, *workflows.pool_facts(images, left_out))


def _run_cell(study: Study, cell: Cell) -> None:
    """Pre-train the arm's encoder if it is not there, fine-tune, test; result.json comes last."""
    folder = study.folder(cell)
    if cell.arm.pretrain is not None:
        _encoder(study, cell.arm, cell.arm.pretrain)
    settings = _cell_settings(study, cell, folder)
    budget = study.budget(cell)
    folder.mkdir(parents=True, exist_ok=True)
    config = tomli_w.dumps(config_of(settings))
    write_text_atomic(folder / "config.toml", config)
    segmenter, result, fitted = workflows.train(
        study.fabric, settings, study.prepared, budget, folder.name
    )
    workflows.save_run(settings, segmenter, study.prepared, budget, fitted)
    facts = {
        "key": folder.name,
        "arm": cell.arm.name,
        "budget": cell.budget,
        "repeat": cell.repeat,
        "seed": settings.seed,
        "n_test": len(study.split.test),
        "size": settings.size,
        "recipe": settings.recipe,
        "whole": budget.whole,
        **_tested(study, segmenter, settings),
        "fingerprint": study.prepared.pairs.fingerprint(),
        "device": str(study.fabric.device),
        "arithmetic": study.fabric._precision.precision,  # precision is a score here
        "start": study.starts[cell.arm.name],
    }
    write_result(folder, replace(result, out=Path(folder.name)), **facts)


def _tested(study: Study, segmenter: Segmenter, settings: FinetuneSettings) -> Scores:
    """The scores on the test set; leaves masks/ and per_image.csv."""
    folder = Path(settings.out)
    test = [study.prepared.pairs.items[row] for row in study.split.test]

    def keep(pair: Pair, _: Pixels, __: Pixels, mask: NDArray[np.uint8]) -> None:
        save_mask(folder / "masks" / f"{pair.name}.png", mask)

    labels = study.prepared.checked.labels
    with progress("testing") as report:
        found = score_pairs(
            segmenter,
            Geometry(settings.size, settings.resize),
            test,
            labels,
            study.fabric.device,
            keep,
            report,
            settings.workers,
        )
    dataset, per_image, per_class = aggregate(found, labels.names)
    write_text_atomic(folder / "per_image.csv", per_image_csv(found, labels.names))
    scores = {**dataset, "iou_per_image": per_image["iou"]}
    if labels.n_classes > 2:
        scores |= {f"iou_{name}": own["iou"] for name, own in per_class.items()}
    return scores


def _encoder(study: Study, arm: Arm, pretrain: PretrainSettings) -> Path:
    """The arm's encoder, pre-trained once for all its cells."""
    folder = study.out / "encoders" / study.starts[arm.name]
    done = (folder / "result.json").exists() and (folder / "encoder.safetensors").exists()
    if not done:
        print(f"pre-training {arm.name}", file=sys.stderr, flush=True)
        (folder / "result.json").unlink(missing_ok=True)
        left_out = study.left_out(pretrain.images)
        workflows.pretrain(replace(pretrain, out=str(folder)), left_out)
    return folder


def _cell_settings(study: Study, cell: Cell, folder: Path) -> FinetuneSettings:
    arm = cell.arm
    init = arm.init
    if arm.pretrain is not None:
        init = str(study.out / "encoders" / study.starts[arm.name])
    weights = arm.weights if init == "imagenet" else None
    return replace(
        study.plan.finetune,
        out=str(folder),
        init=init,
        weights=weights,
        allow_partial=arm.allow_partial,
        seed=study.seed(cell),
    )
