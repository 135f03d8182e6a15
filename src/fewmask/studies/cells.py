"""One cell of a study, and the encoder that it starts from; where they run is not decided here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewmask import workflows
from fewmask.checkpoint import start_key
from fewmask.data.sources import Pair, open_images
from fewmask.evaluation import per_image_csv, score_pairs
from fewmask.files import write_text_atomic
from fewmask.inference import Pixels, save_mask
from fewmask.metrics import Scores, aggregate
from fewmask.progress import progress
from fewmask.runs import config_of, is_finished, key_of, split_name, write_result
from fewmask.sealed import crc_of, write_sealed_toml
from fewmask.segmentation import Geometry, Segmenter
from fewmask.settings import FinetuneSettings
from fewmask.studies.plan import Arm, Cell
from fewmask.studies.record import PATHS, Study


def arm_key(study: Study, arm: Arm, *, download: bool) -> str:
    """A name for the encoder that an arm starts its fine-tuning from, by content."""
    if arm.pretrain is None:
        return start_key(arm.init, arm.weights, study.plan.finetune.encoder)
    images = open_images(arm.pretrain.images, download=download)
    config = {k: v for k, v in config_of(arm.pretrain).items() if k not in PATHS}
    start = start_key(arm.init, arm.weights, arm.pretrain.encoder)
    left_out = study.left_out(arm.pretrain.images)
    return key_of(config, start, *workflows.pool_facts(images, left_out))


def run_cell(study: Study, cell: Cell) -> None:
    """Fine-tune from the arm's encoder, which is there, and test; result.json comes last."""
    folder = study.folder(cell)
    settings = cell_settings(study, cell, folder)
    budget = study.budget(cell)
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed_toml(folder / "config.toml", config_of(settings))
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
        "per_image_csv": crc_of(folder / "per_image.csv"),
        "fingerprint": study.prepared.pairs.fingerprint(),
        "split": split_name(workflows.split_of(study.prepared, budget)),
        **workflows.machine_of(study.fabric),
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


def pretrain_arm(study: Study, arm: Arm) -> None:
    """The arm's encoder, pre-trained once for all its cells; nothing where it is there."""
    if arm.pretrain is None or encoder_is_there(study, arm):
        return
    folder = encoder_folder(study, arm)
    (folder / "result.json").unlink(missing_ok=True)
    left_out = study.left_out(arm.pretrain.images)
    workflows.pretrain(replace(arm.pretrain, out=str(folder)), left_out)


def encoder_is_there(study: Study, arm: Arm) -> bool:
    """Whether an arm's encoder is pre-trained, its weights included."""
    folder = encoder_folder(study, arm)
    return is_finished(folder) and (folder / "encoder.safetensors").exists()


def encoder_folder(study: Study, arm: Arm) -> Path:
    """Where the encoder of an arm that pre-trains lies."""
    return study.out / "encoders" / study.starts[arm.name]


def cell_settings(study: Study, cell: Cell, folder: Path) -> FinetuneSettings:
    """The plan's settings, with the cell's start, seed and folder."""
    arm = cell.arm
    init = arm.init
    if arm.pretrain is not None:
        init = str(encoder_folder(study, arm))
    weights = arm.weights if init == "imagenet" else None
    return replace(
        study.plan.finetune,
        out=str(folder),
        init=init,
        weights=weights,
        allow_partial=arm.allow_partial,
        seed=study.seed(cell),
    )
