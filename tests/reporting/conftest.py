"""A made-up study folder: noisy numbers, drawn masks. Run it to see one."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ARMS = ("scratch", "imagenet", "simclr-cifar10", "simclr-cats-vs-dogs",
        "imagenet+simclr-cats-vs-dogs")  # fmt: skip
GAIN = {"scratch": 0.0, "imagenet": 0.11, "simclr-cifar10": 0.012, "simclr-cats-vs-dogs": 0.03,
        "imagenet+simclr-cats-vs-dogs": 0.115}  # fmt: skip
SCORES = (
    "iou", "f1", "dice_loss", "focal_loss", "bce_loss", "recall", "precision", "accuracy",
    "iou_per_image", "iou_border_foreground",
)  # fmt: skip
COLUMNS = (
    "arm", "budget", "n_train", "n_val", "n_test", "repeat", "seed", "encoder", "decoder", "size",
    "recipe", *SCORES, "steps", "seconds", "status",
)  # fmt: skip
STEMS = ("Abyssinian_100", "american_bulldog_12", "Bengal_7", "pug_31")
N_PAIRS = 693


def make_study(
    out: Path,
    arms: tuple[str, ...] = ARMS,
    budgets: tuple[float, ...] = (0.2, 0.5, 0.8),
    repeats: int = 3,
    classes: tuple[str, ...] = ("background", "pet"),
    done: int | None = None,
    panels: bool = True,
    **plan: Any,
) -> Path:
    """Write a study folder; `done` cells of the grid are finished, all by default."""
    random = np.random.default_rng(0)
    out.mkdir(parents=True, exist_ok=True)
    grid = [(arm, b, r) for arm in arms for b in budgets for r in range(repeats)]
    luck = {(b, r): random.normal(0, 0.012) for b in budgets for r in range(repeats)}
    truths = {stem: draw_mask(i, len(classes)) for i, stem in enumerate(STEMS)}
    rows = []
    for place, (arm, budget, repeat) in enumerate(grid):
        row = plan_row(arm, budget, repeat)
        if done is None or place < done:
            finish_row(row, arm, budget, luck[budget, repeat], random)
            write_cell(out / "cells" / f"key{place:03d}", row, truths if panels else {}, random)
        rows.append(row)
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    if panels:
        write_panels(out, truths)
    settings = plan_of(arms, budgets, repeats, classes) | plan
    if settings.get("leakage"):
        Image.new("RGB", (980, 240), "#cccccc").save(out / "leakage.png")
    (out / "study.json").write_text(json.dumps(settings))
    return out


def plan_row(arm: str, budget: float, repeat: int) -> dict[str, Any]:
    n = budget if isinstance(budget, int) else round(budget * N_PAIRS)
    n_val = max(1, n // 10)
    return dict.fromkeys(COLUMNS, "") | {
        "arm": arm, "budget": budget, "n_train": n - n_val, "n_val": n_val, "n_test": 139,
        "repeat": repeat, "seed": 100 + repeat, "encoder": "resnet50", "decoder": "unet",
        "size": 128, "recipe": "report", "status": "pending",
    }  # fmt: skip


def finish_row(
    row: dict[str, Any], arm: str, budget: float, luck: float, random: np.random.Generator
) -> None:
    share = budget if isinstance(budget, float) else budget / N_PAIRS
    gain = GAIN.get(arm, 0.05) * (1.25 - share)
    iou = 0.86 - 0.1 * (0.8 - share) / 0.6 + gain + luck + random.normal(0, 0.007)
    iou = float(np.clip(iou, 0.3, 0.97))
    others = dict.fromkeys(SCORES, 0.0)
    others |= {
        "iou": iou, "f1": 2 * iou / (1 + iou), "dice_loss": 1 - iou**0.5,
        "focal_loss": 0.4 * (1 - iou), "bce_loss": 1.1 * (1 - iou), "recall": iou**0.45,
        "precision": iou**0.55,
        "accuracy": iou**0.3, "iou_per_image": iou - 0.01, "iou_border_foreground": iou - 0.02,
    }  # fmt: skip
    row |= {name: f"{value:.6f}" for name, value in others.items()}
    row |= {"steps": 1000, "seconds": 61.5, "status": "done"}


def write_cell(
    cell: Path, row: dict[str, Any], truths: dict[str, Any], random: np.random.Generator
) -> None:
    (cell / "masks").mkdir(parents=True, exist_ok=True)
    result = {name: row[name] for name in ("arm", "budget", "repeat", *SCORES)} | {"key": cell.name}
    (cell / "result.json").write_text(json.dumps(result))
    lines = ["name,iou,f1,tp,fp,fn,tn"]
    for stem, truth in truths.items():
        guess = shake(truth, float(row["iou"]), random)
        Image.fromarray(guess).save(cell / "masks" / f"{stem}.png")
        tp, either = ((guess == 1) & (truth == 1)).sum(), ((guess == 1) | (truth == 1)).sum()
        lines.append(f"{stem},{tp / either:.4f},,,,,")
    if truths:
        (cell / "per_image.csv").write_text("\n".join(lines) + "\n")


def draw_mask(seed: int, n_classes: int) -> np.ndarray[Any, Any]:
    """An animal of ellipses with an ignored rim; the size differs from image to image."""
    height, width = ((240, 320), (320, 230), (213, 320), (300, 300))[seed % 4]
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    body = ((x - 0.5) / 0.3) ** 2 + ((y - 0.62) / 0.25) ** 2
    head = ((x - 0.35 - 0.08 * seed) / 0.16) ** 2 + ((y - 0.32) / 0.17) ** 2
    far = np.minimum(body, head)
    mask = np.where(far < 1, 1, 0).astype(np.uint8)
    if n_classes > 2:
        mask[head < 1] = 2
    mask[(far > 0.93) & (far < 1.1)] = 255
    return mask


def shake(
    truth: np.ndarray[Any, Any], iou: float, random: np.random.Generator
) -> np.ndarray[Any, Any]:
    """A prediction: the truth pushed aside, and with a piece that is not there."""
    guess = np.where(truth == 255, 1, truth).astype(np.uint8)
    far = int((1 - iou) * 60)
    guess = np.roll(guess, (int(random.integers(-far, far + 1)), far), (0, 1))
    top = int(random.integers(0, guess.shape[0] - 30))
    guess[top : top + int(20 * (1 - iou) * 5), :25] = 1
    return guess


def write_panels(out: Path, truths: dict[str, Any]) -> None:
    for name in ("images", "masks"):
        (out / "panels" / name).mkdir(parents=True, exist_ok=True)
    for place, (stem, truth) in enumerate(truths.items()):
        y, x = np.mgrid[: truth.shape[0], : truth.shape[1]]
        picture = np.stack([90 + x / 4, 120 + y / 5, 100 + 20 * np.sin(x / 17 + place)], -1)
        fur = np.array([196, 150 - 20 * place, 92]) + 12 * np.sin(y / 5)[..., None]
        pixels = np.where(truth[..., None] > 0, fur, picture).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(out / "panels" / "images" / f"{stem}.jpg")
        Image.fromarray(truth).save(out / "panels" / "masks" / f"{stem}.png")


def plan_of(
    arms: tuple[str, ...], budgets: tuple[float, ...], repeats: int, classes: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "name": "quick",
        "title": "Is pre-training worth it on cats and dogs?",
        "about": "Five starting points of one U-Net are fine-tuned on few masks and scored on the "
        "same held-out test images. Everything else is equal.",
        "baseline": "scratch", "encoder": "resnet50", "decoder": "unet", "size": 128,
        "recipe": "report", "pairs": "oxford-iiit-pet:data/oxford-iiit-pet", "n_pairs": N_PAIRS,
        "n_test": 139, "budgets": list(budgets), "repeats": {str(b): repeats for b in budgets},
        "arms": [{"name": arm, "sentence": f"The encoder starts from {arm}."} for arm in arms],
        "seed": 0, "headline": "border ignored", "classes": list(classes), "device": "cpu",
        "warnings": ["images/Abyssinian_34.jpg is a GIF; its first frame was read",
                     "images/Abyssinian_5.jpg has an alpha channel; it was dropped"],
        "command": "fewmask study quick --pairs oxford-iiit-pet:data/oxford-iiit-pet --out study",
        "versions": {"fewmask": "0.1.0", "torch": "2.15.0", "python": "3.11.9"},
        "definitions": {
            "iou": "Intersection over union of the foreground, from counts summed over all test "
            "images (a ratio of sums); border pixels are not counted.",
            "iou_per_image": "The mean of each image's own IoU, over the images that define one.",
            "dice_loss": "1 minus the soft Dice coefficient with smoothing 1, mean over images.",
        },
        "panels": {"images": list(STEMS)}, "whole_budgets": [0.8] if 0.8 in budgets else [],
    }  # fmt: skip


@pytest.fixture(name="make_study", scope="session")
def make_study_fixture() -> Callable[..., Path]:
    return make_study


if __name__ == "__main__":
    from fewmask.reporting.page import write_report

    print(write_report(make_study(Path(sys.argv[1]))))
