"""Scores of a run: at the masks' resolution, in both readings of the border."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score

import fewmask
from fewmask.data import pets
from fewmask.data.sources import MaskOptions, open_pairs
from fewmask.evaluation import border_readings, score_one, score_pairs
from fewmask.metrics import scores
from fewmask.segmentation import Geometry, Segmenter
from fewmask.types import Labels, UserError


def test_the_border_counts_in_neither_or_as_pet() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(1, 4, (20, 30)).astype(np.uint8)
    mask = rng.integers(0, 2, (20, 30)).astype(np.uint8)
    found = border_readings(values, mask, pets.labels("ignore"))
    inside = values != pets.BORDER
    wanted = {
        "iou_border_ignore": jaccard_score((values == 1)[inside], mask[inside] == 1),
        "iou_border_foreground": jaccard_score((values != 2).ravel(), mask.ravel() == 1),
    }
    for name, value in wanted.items():
        assert scores(found[name])["iou"] == pytest.approx(value)
    of_three = border_readings(values, np.where(mask, 2, 0).astype(np.uint8), pets.labels("class"))
    assert (of_three["iou_border_ignore"] == found["iou_border_ignore"]).all()
    assert border_readings(values, mask, Labels(("a", "b"), tuple(range(256)))) == {}


def test_losses_are_those_of_the_logits_at_the_mask_s_resolution() -> None:
    logits = torch.tensor([[[4.0, -4.0], [4.0, -4.0]]])
    values = np.array([[1, 0], [1, 1]], np.uint8)
    labels = Labels(("a", "b"), (0, 1, *[255] * 254))
    found, mask = score_one("x", logits, values, labels)
    assert mask.tolist() == [[1, 0], [1, 0]]
    p = 1 / (1 + np.exp(-4))
    assert found.bce_loss == pytest.approx(-(3 * np.log(p) + np.log(1 - p)) / 4, rel=1e-5)
    nothing, _ = score_one("y", logits, np.full((2, 2), 7, np.uint8), labels)
    assert (nothing.bce_loss, nothing.valid_pixels) == (None, 0)


def test_evaluate_counts_what_was_seen_and_scores_every_pair(
    write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    few, many = write_pairs(4, name="few"), write_pairs(7, name="many")
    run, out = tmp_path / "run", tmp_path / "out"
    fewmask.finetune(
        pairs=str(few), out=str(run), encoder="resnet18", size=32, steps=30, batch_size=4, lr=3e-3
    )
    result = fewmask.evaluate(run=str(run), pairs=str(many), out=str(out))
    assert (result.n, result.n_seen_in_training) == (7, 4)
    table = json.loads((out / "metrics.json").read_text())
    assert {"dataset", "per_image_mean", "per_class", "definitions", "n"} <= set(table)
    assert set(table["dataset"]) <= set(table["definitions"])
    with (out / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"pair_{i:02}" for i in range(7)]
    assert sum(int(row["seen_in_training"]) for row in rows) == 4
    tp = sum(int(row["tp"]) for row in rows)
    wrong = sum(int(row["fp"]) + int(row["fn"]) for row in rows)
    assert table["dataset"]["iou"] == pytest.approx(tp / (tp + wrong))
    with Image.open(out / "overlays" / "pair_00.png") as picture:
        assert picture.size == (48, 40)
    assert table["dataset"]["accuracy"] > 0.8, "thirty steps on bright discs are enough"


def test_masks_with_other_classes_than_the_run_s_are_refused(
    write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = write_pairs(4)
    run = tmp_path / "run"
    small = {"encoder": "resnet18", "size": 32, "steps": 1, "batch_size": 4}
    fewmask.finetune(pairs=str(pairs), out=str(run), **small)
    for path in (pairs / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * 2).save(path)
    with pytest.raises(UserError, match="holds the values"):
        fewmask.evaluate(run=str(run), pairs=str(pairs), out=str(tmp_path / "out"))
    flags = {"classes": ("a", "b", "c")}
    with pytest.raises(UserError, match="3 classes"):
        fewmask.evaluate(run=str(run), pairs=str(pairs), out=str(tmp_path / "out"), **flags)
    assert not (tmp_path / "out").exists()


def test_several_classes_train_and_score(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    pairs = write_pairs(6)
    for path in (pairs / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[:, : mask.shape[1] // 2] *= 2
        mask[:3] = 255
        Image.fromarray(mask).save(path)
    run = tmp_path / "run"
    result = fewmask.finetune(
        pairs=str(pairs), out=str(run), encoder="resnet18", size=32, steps=2, batch_size=4,
        ignore=255, classes=("ground", "right", "left"),
    )  # fmt: skip
    assert result.n_val == 1
    found = fewmask.evaluate(run=str(run), pairs=str(pairs), out=str(tmp_path / "out"), ignore=255)
    assert list(found.per_class) == ["ground", "right", "left"]
    assert found.dataset["iou"] is not None


def test_a_flag_changes_its_own_part_of_the_run_s_reading_alone(
    write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    pairs, run = write_pairs(4), tmp_path / "run"
    small = {"encoder": "resnet18", "size": 32, "steps": 1, "batch_size": 4}
    fewmask.finetune(pairs=str(pairs), out=str(run), mask_values=(1, 0), **small)
    plain = fewmask.evaluate(run=str(run), pairs=str(pairs), out=str(tmp_path / "a"))
    flagged = fewmask.evaluate(run=str(run), pairs=str(pairs), out=str(tmp_path / "b"), ignore=255)
    assert plain.dataset == flagged.dataset


def test_a_finished_run_does_not_answer_for_other_masks(
    write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    pairs, run = write_pairs(4), tmp_path / "run"
    small = {"encoder": "resnet18", "size": 32, "steps": 1, "batch_size": 4}
    first = fewmask.finetune(pairs=str(pairs), out=str(run), **small)
    assert fewmask.finetune(pairs=str(pairs), out=str(run), **small) == first
    path = pairs / "masks" / "pair_00.png"
    Image.fromarray(1 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(UserError, match="finished with other images, masks"):
        fewmask.finetune(pairs=str(pairs), out=str(run), **small)


def test_weights_that_cannot_be_read_cost_no_earlier_scores(
    tmp_path: Path, write_pairs: Callable[..., Path]
) -> None:
    pairs, run, out = write_pairs(6), tmp_path / "run", tmp_path / "scores"
    fewmask.finetune(
        pairs=str(pairs), out=str(run), encoder="resnet18", size=32, steps=1, batch_size=4
    )
    fewmask.evaluate(run=str(run), pairs=str(pairs), out=str(out))
    before = sorted(path.name for path in out.rglob("*"))
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    commands = {
        "evaluate": {"run": str(run), "pairs": str(pairs), "out": str(out)},
        "export": {"run": str(run), "out": str(tmp_path / "new" / "model.pt2")},
        "predict": {"run": str(run), "paths": (str(pairs / "images"),), "out": str(tmp_path / "p")},
        "suggest": {"images": str(pairs / "images"), "run": str(run), "budget": 2,
                    "out": str(tmp_path / "s")},
    }  # fmt: skip
    for command, settings in commands.items():
        with pytest.raises(UserError, match=r"model\.safetensors|cannot be read"):
            getattr(fewmask, command)(**settings)
    assert sorted(path.name for path in out.rglob("*")) == before
    assert not [path for path in tmp_path.iterdir() if path.name in ("new", "p", "s")]


def test_a_picture_that_is_gone_is_named_with_the_mend(write_pairs: Callable[..., Path]) -> None:
    folder = write_pairs(2)
    pairs = open_pairs(str(folder), MaskOptions())
    gone = min((folder / "images").iterdir())
    gone.unlink()
    labels = Labels(("a", "b"), (0, 1, *[255] * 254))
    with pytest.raises(UserError) as told:
        score_pairs(
            Segmenter("resnet18", "unet", labels),
            Geometry(32, "square"),
            pairs.items,
            labels,
            torch.device("cpu"),
        )
    assert f"{gone.name}: cannot be decoded (No such file or directory). It is gone" in str(
        told.value
    )
