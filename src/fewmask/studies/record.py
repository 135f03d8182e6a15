"""A study's data and split, and the files that say what was compared and what came of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewmask.data import classes
from fewmask.data.sources import Pair
from fewmask.data.split import Budget, Split, order, split_json, take
from fewmask.decoders import component
from fewmask.files import csv_text, reading, write_json_atomic, write_text_atomic
from fewmask.inference import save_mask, save_picture
from fewmask.metrics import DEFINITIONS
from fewmask.reporting.examples import example_images
from fewmask.reporting.folder import read_study
from fewmask.reporting.read import CELL_MEND, PLAN_MEND, cell_result, read_plan
from fewmask.runs import config_of, key_of, made_by, versions
from fewmask.sealed import CHANGED, CHECKSUM, write_sealed
from fewmask.settings import PRETRAIN_EPOCHS, FinetuneSettings, PretrainSettings
from fewmask.studies.described import class_balance, nearness, some
from fewmask.studies.leakage import Leakage
from fewmask.studies.plan import Cell, Plan
from fewmask.types import IGNORED, UserError
from fewmask.workflows import Prepared
from fewmask.workflows.classes import class_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric

COLUMNS = (
    "arm", "budget", "n_train", "n_val", "n_test", "repeat", "seed", "encoder", "decoder", "size",
    "recipe", "iou", "f1", "dice_loss", "focal_loss", "bce_loss", "recall", "precision",
    "accuracy", "iou_per_image", "iou_border_foreground", "steps", "seconds", "status",
)  # fmt: skip
PANELS = 4
PATHS = {"pairs", "images", "init", "weights"}
"""Settings that name a place; what lies there is in the key by its content instead."""


@dataclass
class Study:
    """A plan with its data: what every cell needs."""

    plan: Plan
    out: Path
    prepared: Prepared
    split: Split
    fabric: Fabric
    starts: dict[str, str] = field(default_factory=dict)
    leakage: Leakage = field(default_factory=Leakage)
    data: dict[str, Any] = field(default_factory=dict)
    """As study.json's "data": the classes, and how near other pictures are to the test set."""
    looks: dict[str, Any] | None = None
    """As study.json's "until_decided": between which numbers of repeats verdicts were looked at."""
    looked: dict[str, list[int]] = field(default_factory=dict)
    """As study.json's "looked": numbers of repeats, by budget, whose verdicts were written."""
    device: str | None = None
    """Where the cells are computed, if not on the `fabric`'s device."""

    @property
    def n(self) -> int:
        """Pairs that budgets are fractions of: all, but for a test set of the user's own."""
        own = self.plan.test_pairs is not None
        return len(self.split.rest if own else self.prepared.pairs.items)

    def left_out(self, src: str) -> frozenset[str]:
        """The images of a pool that no arm pre-trains on."""
        return self.leakage.left_out.get(src, frozenset())

    def budget(self, cell: Cell) -> Budget:
        chosen = order(self.split, cell.repeat, self.plan.seed)
        return take(chosen, self.n, cell.budget, self.prepared.checked.groups)

    def folder(self, cell: Cell) -> Path:
        return self.out / "cells" / self.key(cell)

    def key(self, cell: Cell) -> str:
        """Readable, and ending in the hash of all that the cell computes."""
        budget = self.budget(cell)
        names = [self.prepared.pairs.items[row].name for row in (*budget.train, *budget.val)]
        tested = [self.prepared.pairs.items[row].name for row in self.split.test]
        config = {k: v for k, v in config_of(self.plan.finetune).items() if k not in PATHS}
        facts = (
            self.starts[cell.arm.name],
            self.prepared.pairs.fingerprint(),
            *names,
            "/",
            *tested,
        )
        name = f"{cell.arm.name}_{cell.budget}_r{cell.repeat}"
        return f"{safe(name)}_{key_of(config, str(cell.repeat), *facts)}"

    def seed(self, cell: Cell) -> int:
        """The training seed of a repeat, which all arms and budgets share."""
        digest = blake2b(f"{self.plan.seed}/{cell.repeat}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little") >> 1


def safe(name: str) -> str:
    """A name as a folder's: what is no letter, digit, dot, dash, plus or equals becomes a dash."""
    return re.sub(r"[^A-Za-z0-9.+=_-]+", "-", name)


def write_results(study: Study, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """results.csv, a row a cell of the plan, in the plan's order."""
    names = study.prepared.checked.labels.names
    columns = [*COLUMNS, *(f"iou_{name}" for name in (names if len(names) > 2 else ()))]
    rows = [_row(study, cell, columns) for cell in cells]
    write_text_atomic(study.out / "results.csv", csv_text(rows, columns))
    return rows


def _row(study: Study, cell: Cell, columns: Sequence[str]) -> dict[str, Any]:
    budget = study.budget(cell)
    settings = study.plan.finetune
    row: dict[str, Any] = dict.fromkeys(columns)
    row |= {
        "arm": cell.arm.name,
        "budget": cell.budget,
        "n_train": len(budget.train),
        "n_val": len(budget.val),
        "n_test": len(study.split.test),
        "repeat": cell.repeat,
        "seed": study.seed(cell),
        "encoder": settings.encoder,
        "decoder": component(settings.decoder).name,
        "size": settings.size,
        "recipe": settings.recipe,
        "status": "pending",
    }
    path = study.folder(cell) / "result.json"
    if path.exists():
        with reading(path, CELL_MEND):
            result = cell_result(path)
            row |= {name: _number(name, result[name]) for name in columns
                    if row[name] is None and name in result}  # fmt: skip
            row |= {"seconds": round(row["seconds"], 1), "status": "done", "iou": result["iou"]}
    return row


def _number(name: str, value: Any) -> float | None:
    """A score, None where it is not defined. Raises TypeError for what is neither."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{name} is {value!r}")
    return value


def earlier_facts(out: Path) -> dict[str, Any]:
    """study.json as an earlier command has left it; empty where there is none."""
    path = out / "study.json"
    if not path.exists():
        return {}
    found, unchanged = read_plan(path)
    if not unchanged:
        raise UserError(
            f"{path}: {CHANGED}. {PLAN_MEND}; keep a change of your own by taking its "
            f"entry {CHECKSUM} out"
        )
    missing = [name for name in ("name", "pairs", "fingerprint") if name not in found]
    if missing:
        raise UserError(f"{path}: no study's, for it has no {missing[0]}. {PLAN_MEND}")
    return found


def write_facts(study: Study, command: str, cells: Sequence[Cell]) -> None:
    """study.json, splits.json and the pictures that the panels show."""
    out = study.out
    class_weights(study.plan.finetune.class_weights, study.prepared.checked, study.split.rest)
    repeats = 1 + max(cell.repeat for cell in cells)
    orders = {r: order(study.split, r, study.plan.seed) for r in range(repeats)}
    names = [pair.name for pair in study.prepared.pairs.items]
    panels = _panels(study)
    # First, so that a study killed right here is known as one.
    write_sealed(out / "study.json", _facts(study, command, cells, panels))
    write_json_atomic(out / "splits.json", split_json(names, study.split, orders))
    _write_panels(study, panels)


def refuse_another(study: Study) -> None:
    """Raises UserError where the folder is another study's, or holds something else."""
    plan, out, pairs = study.plan, study.out, study.prepared.pairs
    if held := earlier_facts(out):
        if held.get("seed", plan.seed) != plan.seed:
            raise UserError(
                f"{out}: its test set was drawn with --seed {held['seed']}, not {plan.seed}. "
                "Choose another --out"
            )
        if held["name"] != plan.name or held["fingerprint"] != pairs.fingerprint():
            raise UserError(
                f"{out}: holds the study {held['name']} on {held['pairs']}. Choose another --out"
            )
        before = held.get("test_fraction", plan.test), held.get("test_pairs")
        now = plan.test, plan.test_pairs
        # Which pairs a test set of one's own holds is in the fingerprint; their place may change.
        if (before[1] is None) != (now[1] is None) or (now[1] is None and before[0] != now[0]):
            raise UserError(
                f"{out}: tests on {_tested(*before)}, not on {_tested(*now)}. Choose another --out"
            )
        if held.get("margin", plan.margin) != plan.margin:
            raise UserError(
                f"{out}: its verdicts have a margin of {held['margin']:g}, not {plan.margin:g}; "
                "it is fixed before the results are seen. Keep it, or choose another --out"
            )
    elif out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file. Choose another --out")
    elif not (out / "cells").exists() and _holds_more_than_data(out):
        raise UserError(f"{out}: exists and is no study folder. Choose another --out")


def _tested(fraction: object, pairs: object) -> str:
    return f"{fraction} of the pairs" if pairs is None else str(pairs)


def _facts(
    study: Study, command: str, cells: Sequence[Cell], panels: Sequence[Pair]
) -> dict[str, Any]:
    plan = study.plan
    whole = [b for b in plan.budgets if study.budget(Cell(plan.arms[0], b, 0)).whole]
    labels = study.prepared.checked.labels
    return {
        "name": plan.name,
        "title": plan.title,
        "about": plan.about,
        "baseline": plan.baseline,
        "encoder": plan.finetune.encoder,
        "decoder": component(plan.finetune.decoder).name,
        "size": plan.finetune.size,
        "recipe": plan.finetune.recipe,
        "loss": plan.finetune.loss,
        "class_weights": plan.finetune.class_weights,
        "pairs": plan.pairs,
        "fingerprint": study.prepared.pairs.fingerprint(),
        "n_pairs": study.n,
        "n_test": len(study.split.test),
        "test_fraction": plan.test,
        "test_pairs": plan.test_pairs,
        "leakage": study.leakage.facts(),
        "data": study.data,
        "budgets": list(plan.budgets),
        "whole_budgets": whole,
        "arms": [
            {"name": arm.name, "sentence": arm.sentence, "pretraining": schedule(arm.pretrain)}
            for arm in plan.arms
        ],
        "training": schedule(plan.finetune),
        "repeats": {str(k): v for k, v in plan.repeats.items()},
        "seed": plan.seed,
        "headline": f"border {plan.finetune.border}" if labels.border_lut else None,
        "classes": list(labels.names),
        "colours": [list(colour) for colour in classes.colours(labels)],
        "warnings": list(study.prepared.checked.warnings),
        "command": command,
        "versions": versions(),
        "made_by": {k: v for k, v in made_by().items() if k not in versions()},
        "device": study.device or str(study.fabric.device),
        "precision": study.fabric._precision.precision,
        "definitions": DEFINITIONS,
        "panels": {"images": [pair.name for pair in panels]},
        "margin": plan.margin,
        "targets": list(plan.targets),
        "until_decided": study.looks,
        "looked": study.looked,
        "cells": [study.key(cell) for cell in cells],
    }


def describe_data(study: Study) -> dict[str, Any]:
    """The classes, and how near the pictures that are trained on are to those of the test."""
    checked, split = study.prepared.checked, study.split
    others = {"pairs to train on": some(checked.thumbs, split.rest)}
    for pool in study.leakage.pools:
        others[pool.src if pool.name in others else pool.name] = pool.sample
    return {
        "classes": class_balance(checked, split),
        "nearness": nearness(some(checked.thumbs, split.test), others),
    }


def _holds_more_than_data(out: Path) -> bool:
    """Whether a folder holds anything but the data that a demo has put there."""
    return out.exists() and any(
        path.name != "data" and not path.name.endswith(".tmp") for path in out.iterdir()
    )


def schedule(settings: FinetuneSettings | PretrainSettings | None) -> str | None:
    """How long and how something was trained, in words; None for nothing."""
    if settings is None:
        return None
    epochs = settings.steps is None
    length = settings.epochs or PRETRAIN_EPOCHS if epochs else settings.steps
    unit = f"{'epoch' if epochs else 'step'}{'' if length == 1 else 's'}"
    rate = "" if settings.lr is None else f" at a rate of {settings.lr:g}"
    return (
        f"{length} {unit}, batches of {settings.batch_size}, {settings.optimizer}{rate}, "
        f"{settings.size} px"
    )


def _panels(study: Study) -> list[Pair]:
    """A few test pairs that hold more than background, for the panels."""
    items = study.prepared.pairs.items
    lut = np.asarray(study.prepared.checked.labels.lut, np.uint8)
    chosen: list[Pair] = []
    for row in _spread(study.split.test):
        truth = lut[items[row].mask.values()]
        if ((truth > 0) & (truth != IGNORED)).any():
            chosen.append(items[row])
        if len(chosen) == PANELS:
            break
    return chosen


def write_examples(study: Study) -> None:
    """Pictures of the test images that the results have made worth a look."""
    by_name = {pair.name: pair for pair in study.prepared.pairs.items}
    _write_panels(study, [by_name[name] for name in example_images(read_study(study.out))])


def _write_panels(study: Study, panels: Sequence[Pair]) -> None:
    """Copies of the pictures and their masks, so that the report needs no data."""
    lut = np.asarray(study.prepared.checked.labels.lut, np.uint8)
    for pair in panels:
        save_picture(study.out / "panels" / "images" / f"{pair.name}.jpg", pair.image.pixels())
        save_mask(study.out / "panels" / "masks" / f"{pair.name}.png", lut[pair.mask.values()])


def _spread(rows: Sequence[int]) -> list[int]:
    """The rows, evenly spaced ones first."""
    first = [rows[i] for i in np.linspace(0, len(rows) - 1, min(PANELS, len(rows))).astype(int)]
    return [*dict.fromkeys([*first, *rows])]
