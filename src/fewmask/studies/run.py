"""Running a study: what is done is skipped, what was under way goes on."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w
from numpy.typing import NDArray
from PIL import Image

from fewmask import workflows
from fewmask.files import write_json_atomic, write_text_atomic
from fewmask.data.sources import Pair, open_images
from fewmask.data.split import Budget, Split, make_split, order, read_split_json, split_json, take
from fewmask.evaluation import per_image_csv, score_pairs
from fewmask.inference import Pixels, save_mask
from fewmask.metrics import DEFINITIONS, aggregate
from fewmask.progress import progress
from fewmask.reporting.page import write_report
from fewmask.runs import config_of, key_of, versions, write_result
from fewmask.segmentation import Geometry
from fewmask.settings import FinetuneSettings, PretrainSettings, StudySettings
from fewmask.studies.grid import Arm, Cell, Plan, load_plan
from fewmask.training import make_fabric
from fewmask.types import IGNORED, StudyResult, UserError
from fewmask.workflows import Prepared

if TYPE_CHECKING:
    from lightning.fabric import Fabric

COLUMNS = (
    "arm", "budget", "n_train", "n_val", "n_test", "repeat", "seed", "encoder", "decoder", "size",
    "recipe", "iou", "f1", "dice_loss", "focal_loss", "bce_loss", "recall", "precision",
    "accuracy", "iou_per_image", "iou_border_foreground", "steps", "seconds", "status",
)  # fmt: skip
PANELS = 4
PATHS = {"pairs", "images", "init", "weights"}
"""Settings that name a place; what lies there is in the key by its content instead."""


@dataclass
class _Study:
    """A plan with its data: what every cell needs."""

    plan: Plan
    out: Path
    prepared: Prepared
    split: Split
    fabric: Fabric
    starts: dict[str, str] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.prepared.pairs.items)

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
        facts = (self.starts[cell.arm.name], self.prepared.pairs.fingerprint(), *names, "/", *tested)
        name = f"{cell.arm.name}_{cell.budget}_r{cell.repeat}"
        return f"{safe(name)}_{key_of(config, str(cell.repeat), *facts)}"

    def seed(self, cell: Cell) -> int:
        """The training seed of a repeat, which all arms and budgets share."""
        digest = blake2b(f"{self.plan.seed}/{cell.repeat}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little") >> 1


def safe(name: str) -> str:
    """A name as a folder's: what is no letter, digit, dot, dash, plus or equals becomes a dash."""
    return re.sub(r"[^A-Za-z0-9.+=_-]+", "-", name)


def run_study(settings: StudySettings, command: str = "") -> StudyResult:
    """Run what is missing of a study, and write its table, figures and page.

    Raises UserError for a wrong plan, faulty data, or a folder that another study owns.
    """
    plan = load_plan(settings)
    out = Path(settings.out)
    study = _prepare(plan, out, settings)
    cells = list(plan.cells())
    _write_facts(study, settings, command)
    for i, cell in enumerate(cells):
        if not (study.folder(cell) / "result.json").exists():
            print(f"cell {i + 1} of {len(cells)}: {cell.arm.name}, budget {cell.budget}, "
                  f"repeat {cell.repeat}", file=sys.stderr, flush=True)  # fmt: skip
            _run_cell(study, cell)
            _write_results(study, cells)
    rows = _write_results(study, cells)
    page = write_report(out)
    return StudyResult(out=out, page=page, rows=tuple(rows))


def _prepare(plan: Plan, out: Path, settings: StudySettings) -> _Study:
    """Everything that can go wrong goes wrong here, before the first step."""
    finetune = plan.finetune
    fabric = make_fabric(settings.device, 1, settings.precision)
    geometry = Geometry(finetune.size, finetune.resize)
    prepared = workflows.prepare(plan.pairs, plan.mask_options, geometry,
                                 download=settings.download)  # fmt: skip
    split = _split(plan, out, prepared)
    study = _Study(plan, out, prepared, split, fabric)
    for arm in plan.arms:
        study.starts[arm.name] = _start_key(study, arm, download=settings.download)
    for arm in plan.arms:
        if arm.pretrain is None:
            first = _cell_settings(study, Cell(arm, plan.budgets[0], 0), out / "unused")
            workflows.start_model(first, prepared.checked.labels)
    for budget in plan.budgets:
        study.budget(Cell(plan.arms[0], budget, 0))
    return study


def _split(plan: Plan, out: Path, prepared: Prepared) -> Split:
    """The split that the folder holds, or a new one."""
    names = [pair.name for pair in prepared.pairs.items]
    path = out / "splits.json"
    if path.exists():
        return read_split_json(path, names)
    return make_split(len(names), prepared.checked.groups, test_fraction=plan.test, seed=plan.seed)


def _start_key(study: _Study, arm: Arm, *, download: bool) -> str:
    """A name for the encoder that an arm starts its fine-tuning from, by content."""
    if arm.pretrain is None:
        return _weights_key(arm.init, arm.weights, study.plan.finetune.encoder)
    images = open_images(arm.pretrain.images, download=download)
    config = {k: v for k, v in config_of(arm.pretrain).items() if k not in PATHS}
    start = _weights_key(arm.init, arm.weights, arm.pretrain.encoder)
    return f"{safe(arm.name)}_{key_of(config, start, images.fingerprint())}"


def _weights_key(init: str, weights: str | None, encoder: str) -> str:
    if init == "scratch" or (init == "imagenet" and weights is None):
        return f"{init}/{encoder}"
    path = Path(weights or init)
    if path.is_dir():
        inside = [path / name for name in ("encoder.safetensors", "model.safetensors")]
        path = next((p for p in inside if p.exists()), path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file or run folder. Mend the path")
    digest = blake2b(digest_size=10)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _run_cell(study: _Study, cell: Cell) -> None:
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
    test = [study.prepared.pairs.items[row] for row in study.split.test]

    def keep(pair: Pair, _: Pixels, __: Pixels, mask: NDArray[np.uint8]) -> None:
        save_mask(folder / "masks" / f"{pair.name}.png", mask)

    labels = study.prepared.checked.labels
    with progress("testing") as report:
        found = score_pairs(segmenter, Geometry(settings.size, settings.resize), test, labels,
                            study.fabric.device, keep, report)  # fmt: skip
    dataset, per_image, per_class = aggregate(found, labels.names)
    write_text_atomic(folder / "per_image.csv", per_image_csv(found))
    scores = {**dataset, "iou_per_image": per_image["iou"]}
    if labels.n_classes > 2:
        scores |= {f"iou_{name}": own["iou"] for name, own in per_class.items()}
    facts = {
        "key": folder.name, "arm": cell.arm.name, "budget": cell.budget, "repeat": cell.repeat,
        "seed": settings.seed, "n_test": len(test), "size": settings.size,
        "recipe": settings.recipe, "whole": budget.whole, **scores,
        "fingerprint": study.prepared.pairs.fingerprint(),
        "start": study.starts[cell.arm.name],
    }  # fmt: skip
    write_result(folder, replace(result, out=Path(folder.name)), **facts)


def _encoder(study: _Study, arm: Arm, pretrain: PretrainSettings) -> Path:
    """The arm's encoder, pre-trained once for all its cells."""
    folder = study.out / "encoders" / study.starts[arm.name]
    done = (folder / "result.json").exists() and (folder / "encoder.safetensors").exists()
    if not done:
        print(f"pre-training {arm.name}", file=sys.stderr, flush=True)
        (folder / "result.json").unlink(missing_ok=True)
        workflows.pretrain(replace(pretrain, out=str(folder)))
    return folder


def _cell_settings(study: _Study, cell: Cell, folder: Path) -> FinetuneSettings:
    arm = cell.arm
    init = arm.init
    if arm.pretrain is not None:
        init = str(study.out / "encoders" / study.starts[arm.name])
    weights = arm.weights if init == "imagenet" else None
    return replace(study.plan.finetune, out=str(folder), init=init, weights=weights,
                   allow_partial=arm.allow_partial, seed=study.seed(cell))  # fmt: skip


# --- what a study writes -------------------------------------------------------------------------


def _write_results(study: _Study, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """results.csv, a row a cell of the plan, in the plan's order."""
    names = study.prepared.checked.labels.names
    columns = [*COLUMNS, *(f"iou_{name}" for name in (names if len(names) > 2 else ()))]
    rows = [_row(study, cell, columns) for cell in cells]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(study.out / "results.csv", text.getvalue())
    return rows


def _row(study: _Study, cell: Cell, columns: Sequence[str]) -> dict[str, Any]:
    budget = study.budget(cell)
    settings = study.plan.finetune
    row: dict[str, Any] = dict.fromkeys(columns)
    row |= {
        "arm": cell.arm.name, "budget": cell.budget, "n_train": len(budget.train),
        "n_val": len(budget.val), "n_test": len(study.split.test), "repeat": cell.repeat,
        "seed": study.seed(cell), "encoder": settings.encoder, "decoder": settings.decoder,
        "size": settings.size, "recipe": settings.recipe, "status": "pending",
    }  # fmt: skip
    path = study.folder(cell) / "result.json"
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        row |= {name: result[name] for name in columns if name in result} | {"status": "done"}
        row["seconds"] = round(result["seconds"], 1)
    return row


def _write_facts(study: _Study, settings: StudySettings, command: str) -> None:
    """study.json, splits.json and the pictures that the panels show; refuses another's folder."""
    plan, out, pairs = study.plan, study.out, study.prepared.pairs
    names = [pair.name for pair in pairs.items]
    identity = key_of({"arms": [study.starts[a.name] for a in plan.arms]}, pairs.fingerprint(),
                      str(study.split.test))  # fmt: skip
    before = out / "study.json"
    if before.exists():
        held = json.loads(before.read_text(encoding="utf-8"))
        if held["name"] != plan.name or held["fingerprint"] != pairs.fingerprint():
            raise UserError(
                f"{out}: holds the study {held['name']} on {held['pairs']}. Choose another --out"
            )
    elif out.exists() and any(p.name != "data" for p in out.iterdir()):
        if not (out / "cells").exists():
            raise UserError(f"{out}: exists and is no study folder. Choose another --out")
    orders = {r: order(study.split, r, plan.seed) for r in range(max(plan.repeats.values()))}
    write_json_atomic(out / "splits.json", split_json(names, study.split, orders))
    whole = [b for b in plan.budgets if study.budget(Cell(plan.arms[0], b, 0)).whole]
    labels = study.prepared.checked.labels
    facts = {
        "name": plan.name, "title": plan.title, "about": plan.about, "identity": identity,
        "baseline": plan.baseline, "encoder": plan.finetune.encoder,
        "decoder": plan.finetune.decoder, "size": plan.finetune.size,
        "recipe": plan.finetune.recipe, "loss": plan.finetune.loss, "pairs": plan.pairs,
        "fingerprint": pairs.fingerprint(), "n_pairs": study.n, "n_test": len(study.split.test),
        "budgets": list(plan.budgets), "whole_budgets": whole,
        "arms": [{"name": arm.name, "sentence": arm.sentence} for arm in plan.arms],
        "repeats": {str(k): v for k, v in plan.repeats.items()}, "seed": plan.seed,
        "headline": f"border {plan.finetune.border}" if labels.border_lut else None,
        "classes": list(labels.names), "warnings": list(study.prepared.checked.warnings),
        "command": command, "versions": versions(),
        "device": str(study.fabric.device), "precision": study.fabric._precision.precision,
        "definitions": DEFINITIONS, "panels": {"images": _panels(study)},
    }  # fmt: skip
    write_json_atomic(before, facts)


def _panels(study: _Study) -> list[str]:
    """Copies of a few test pictures and their masks, so that the report needs no data."""
    items = study.prepared.pairs.items
    lut = np.asarray(study.prepared.checked.labels.lut, np.uint8)
    chosen: list[str] = []
    for row in _spread(study.split.test):
        pair = items[row]
        truth = lut[pair.mask.values()]
        if not ((truth > 0) & (truth != IGNORED)).any():
            continue
        chosen.append(pair.name)
        picture = Image.fromarray(pair.image.pixels())
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            path = study.out / "panels" / kind / f"{pair.name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            (picture if kind == "images" else Image.fromarray(truth)).save(path)
        if len(chosen) == PANELS:
            break
    return chosen


def _spread(rows: Sequence[int]) -> list[int]:
    """The rows, evenly spaced ones first."""
    first = [rows[i] for i in np.linspace(0, len(rows) - 1, min(PANELS, len(rows))).astype(int)]
    return [*dict.fromkeys([*first, *rows])]
