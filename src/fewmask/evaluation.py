"""Scoring a model on pairs, at the masks' own resolution."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewmask.data import pets
from fewmask.data.check import PairReport, check_pairs
from fewmask.data.classes import UNKNOWN, of_run
from fewmask.data.images import Undecodable
from fewmask.data.looks import cannot
from fewmask.data.sources import MaskOptions, Pair, PairSet, open_pairs
from fewmask.devices import pick_device
from fewmask.files import csv_text, write_json_atomic, write_text_atomic
from fewmask.inference import (
    LEGEND,
    Model,
    Network,
    Pixels,
    decoded_logits,
    load_run,
    own_folder,
    save_legend,
    save_picture,
    trained_hashes,
)
from fewmask.losses import cross_entropy, focal, soft_dice
from fewmask.metrics import DEFINITIONS, ImageScores, aggregate, confusion, per_class, scores
from fewmask.overlays import LEFT_OUT, error_overlay
from fewmask.progress import Report, progress, silent
from fewmask.runs import config_of, made_by, versions
from fewmask.segmentation import Geometry, predicted
from fewmask.settings import EvaluateSettings
from fewmask.types import IGNORED, EvaluateResult, Labels, UserError

Keep = Callable[[Pair, Pixels, NDArray[np.uint8], NDArray[np.uint8]], None]
"""Called with the pair, its image [H,W,3], its true labels [H,W] and the predicted mask [H,W]."""


def score_pairs(
    network: Network,
    geometry: Geometry,
    pairs: Sequence[Pair],
    labels: Labels,
    device: torch.device,
    keep: Keep | None = None,
    report: Report = silent,
    workers: int | None = None,
) -> list[ImageScores]:
    """The scores of every pair, in order. `labels` says how the masks' values are read.

    Raises UserError for a file that cannot be read any more.
    """
    try:
        return _scored(network, geometry, pairs, labels, device, keep, report, workers)
    except Undecodable as problem:
        raise UserError(cannot(problem)) from problem


def _scored(
    network: Network,
    geometry: Geometry,
    pairs: Sequence[Pair],
    labels: Labels,
    device: torch.device,
    keep: Keep | None,
    report: Report,
    workers: int | None,
) -> list[ImageScores]:
    if isinstance(network, torch.nn.Module):
        network.eval()
    found = []
    items = [pair.image for pair in pairs]
    stream = decoded_logits(network, geometry, items, device, workers)
    for i, (pair, (pixels, logits)) in enumerate(zip(pairs, stream, strict=True)):
        values = pair.mask.values()
        image_scores, mask = score_one(pair.name, logits, values, labels)
        found.append(image_scores)
        if keep:
            keep(pair, pixels, np.asarray(labels.lut, np.uint8)[values], mask)
        report(i + 1, len(pairs))
    return found


def score_one(
    name: str, logits: torch.Tensor, values: NDArray[np.uint8], labels: Labels
) -> tuple[ImageScores, NDArray[np.uint8]]:
    """Scores and predicted mask of one image: logits [C,H,W], mask file values [H,W]."""
    truth = np.asarray(labels.lut, np.uint8)[values]
    mask: NDArray[np.uint8] = predicted(logits).numpy()
    valid = int((truth != IGNORED).sum())
    target = torch.from_numpy(truth)[None]
    losses = [
        loss(logits[None], target).item() if valid else None
        for loss in (cross_entropy, soft_dice, focal)
    ]
    return (
        ImageScores(
            name=name,
            confusion=confusion(truth, mask, labels.n_classes),
            bce_loss=losses[0],
            dice_loss=losses[1],
            focal_loss=losses[2],
            valid_pixels=valid,
            readings=border_readings(values, mask, labels),
        ),
        mask,
    )


def border_readings(
    values: NDArray[np.uint8], mask: NDArray[np.uint8], labels: Labels
) -> dict[str, NDArray[np.int64]]:
    """Oxford-IIIT Pet only: the 2x2 confusions with the border as foreground and with it ignored.

    A predicted border class counts as foreground in both.
    """
    if labels.border_lut is None:
        return {}
    foreground = np.asarray(labels.border_lut, np.uint8)[values]
    pet_or_border = np.minimum(mask, 1)
    border = values == pets.BORDER
    ignored = np.where(border, IGNORED, foreground).astype(np.uint8)
    return {
        "iou_border_foreground": confusion(foreground, pet_or_border, 2),
        "iou_border_ignore": confusion(ignored, pet_or_border, 2),
    }


def evaluate(settings: EvaluateSettings) -> EvaluateResult:
    """Score a run on all pairs; leaves metrics.json (last), per_image.csv and overlays/.

    Of more than two classes also `legend.png`, the overlays' colours. Masks are read as the run's
    own were, where no flag says otherwise; a class_dict.csv of the pairs goes by its names. Raises
    UserError with all faults of the pairs before anything is written.
    """
    device = pick_device(settings.device)
    out = Path(settings.out)
    own_folder(out, {"metrics.json", "per_image.csv", "overlays", LEGEND})
    model = load_run(settings.run, device)
    pairs, checked = _checked_pairs(settings, model)
    own = model.labels
    for old in ("metrics.json", "per_image.csv"):
        (out / old).unlink(missing_ok=True)
    shutil.rmtree(out / "overlays", ignore_errors=True)
    if own.n_classes > 2:
        save_legend(out / LEGEND, own, ("right, or not scored", LEFT_OUT))

    def keep(pair: Pair, pixels: Pixels, truth: Pixels, mask: Pixels) -> None:
        picture = error_overlay(pixels, truth, mask, own)
        save_picture(out / "overlays" / f"{pair.name}.png", picture)

    with progress("scoring") as report:
        found = score_pairs(
            model.segmenter,
            model.geometry,
            pairs.items,
            checked.labels,
            device,
            keep,
            report,
            settings.workers,
        )
    trained = trained_hashes(model.run)
    seen = [picture in trained for picture in checked.hashes]
    dataset, per_image, per_class = aggregate(found, own.names)
    result = EvaluateResult(out, len(found), sum(seen), dataset, per_image, per_class, DEFINITIONS)
    write_text_atomic(out / "per_image.csv", per_image_csv(found, own.names, seen))
    table = {
        "dataset": dataset,
        "per_image_mean": per_image,
        "per_class": per_class,
        "definitions": DEFINITIONS,
        "n": result.n,
        "n_seen_in_training": result.n_seen_in_training,
        "run": settings.run,
        "pairs": settings.pairs,
        "fingerprint": pairs.fingerprint(),
        "config": config_of(settings),
        "device": str(device),
        "versions": versions(),
        "made_by": {k: v for k, v in made_by().items() if k not in versions()},
    }
    write_json_atomic(out / "metrics.json", table)
    return result


def _checked_pairs(settings: EvaluateSettings, model: Model) -> tuple[PairSet, PairReport]:
    """The pairs, read as the run's own were. Raises UserError with all their faults."""
    pairs = open_pairs(settings.pairs, _options(settings, model), download=settings.download)
    own = model.labels
    with progress("checking pairs") as report:
        checked = check_pairs(
            pairs, _reading(settings, pairs, model), progress=report, workers=settings.workers
        )
    checked.raise_faults()
    for warning in checked.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if checked.labels.n_classes != own.n_classes:
        raise UserError(
            f"{settings.pairs}: its masks hold {checked.labels.n_classes} classes, {settings.run} "
            f"knows {own.n_classes} ({', '.join(own.names)}). "
            "Pass --border or --mask-values to match"
        )
    return pairs, checked


def _said(settings: EvaluateSettings) -> bool:
    """Whether a flag says how the masks are to be read."""
    flags = (settings.border, settings.classes, settings.ignore, settings.mask_values)
    return any(flag is not None for flag in flags)


def _reading(settings: EvaluateSettings, pairs: PairSet, model: Model) -> Labels | None:
    """How the run reads these masks; None where that follows from the pairs' options."""
    own, trained = model.labels, model.described["options"]
    if pairs.table is None or settings.classes or settings.mask_values:
        return None if _said(settings) else own
    before = enumerate(trained.get("table") or ())
    ignored = {name for value, name in before if own.lut[value] == IGNORED}
    ignored |= {name for k, name in enumerate(pairs.table.names) if k == settings.ignore}
    found = of_run(pairs.table, own, ignored)
    if set(found.lut) <= {IGNORED, UNKNOWN}:
        raise UserError(
            f"{pairs.table.where}: names none of the classes that {model.run} knows "
            f"({', '.join(own.names)}). Pass --classes to call its classes by the run's names"
        )
    return found


def _options(settings: EvaluateSettings, model: Model) -> MaskOptions:
    """The run's own reading of masks, flags in place of its parts."""
    trained = model.described["options"]
    of_pets = settings.pairs.partition(":")[0] == "oxford-iiit-pet"
    border = settings.border or (trained["border"] if of_pets else "ignore")
    names = model.labels.names if border == trained["border"] or not of_pets else None
    if of_pets:
        return MaskOptions(border, settings.classes or names, settings.ignore, settings.mask_values)
    values = settings.mask_values or trained["mask_values"]
    return MaskOptions(
        border,
        settings.classes or names,
        trained["ignore"] if settings.ignore is None else settings.ignore,
        None if values is None else tuple(values),
    )


def per_image_csv(
    all_scores: Sequence[ImageScores], names: Sequence[str], seen: Sequence[bool] | None = None
) -> str:
    """One line an image: name, scores, pixel counts, whether it was seen in training.

    Two classes: the counts tp, fp, fn, tn. More: tp_CLASS, fp_CLASS and fn_CLASS of each, and its
    own iou_CLASS. Scores over images are ratios of the counts' sums.
    """
    rows = []
    for i, image in enumerate(all_scores):
        own = scores(image.confusion)
        row: dict[str, Any] = {"name": image.name, "iou": own["iou"], "f1": own["f1"]}
        row |= {"dice_loss": image.dice_loss, "focal_loss": image.focal_loss}
        row |= {"bce_loss": image.bce_loss}
        row |= {name: own[name] for name in ("recall", "precision", "accuracy")}
        row |= {name: scores(c)["iou"] for name, c in image.readings.items()}
        if len(names) > 2:
            each = per_class(image.confusion, names)
            row |= {f"iou_{name}": found["iou"] for name, found in each.items()}
        row["valid_pixels"] = image.valid_pixels
        row |= _counts(image.confusion, names)
        if seen is not None:
            row["seen_in_training"] = int(seen[i])
        rows.append(row)
    return csv_text(rows, list(rows[0]) if rows else ["name"])


def _counts(matrix: NDArray[np.int64], names: Sequence[str]) -> dict[str, int]:
    if len(matrix) == 2:
        (tn, fp), (fn, tp) = matrix.tolist()
        return {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    right, found, there = np.diag(matrix), matrix.sum(0), matrix.sum(1)
    counts = {"tp": right, "fp": found - right, "fn": there - right}
    return {f"{of}_{name}": int(counts[of][k]) for k, name in enumerate(names) for of in counts}
