"""Several classes the whole way: coloured masks with a table in, scores and pictures out."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewmask.cli import dispatch
from fewmask.data.sources import MaskOptions
from fewmask.evaluation import score_pairs
from fewmask.inference import load_run
from fewmask.metrics import aggregate
from fewmask.segmentation import Geometry, predicted
from fewmask.types import UserError
from fewmask.workflows import prepare
from fewmask.workflows.finetuning import Prepared, Validation

pytestmark = pytest.mark.xdist_group("multiclass")  # what they share is made once

ROWS = (
    ("ground", (0, 0, 0)),
    ("disc", (200, 30, 30)),
    ("void", (255, 255, 255)),
    ("bar", (30, 200, 30)),
    ("box", (30, 30, 200)),
)
"""The table: the third row is left out with --ignore 2, so box, row 4, is class 3."""
NAMES = ("ground", "disc", "bar", "box")
SMALL = ("--encoder", "resnet18", "--size", "32", "--batch-size", "4")


def draw(seed: int, height: int = 40, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """An image and its rows of the table: a shape a class, each with its own colour and texture."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    ids = np.zeros((height, width), np.uint8)
    for k in rng.permutation([1, 3, 4]):
        y, x = rng.uniform(0.2, 0.8, 2) * (height, width)
        far = np.abs(rows - y), np.abs(columns - x)
        shape = {1: np.hypot(*far) < 9, 3: (far[0] < 3) & (far[1] < 18), 4: np.maximum(*far) < 7}
        ids[shape[int(k)]] = k
    stripes = {1: rows % 4 < 2, 3: columns % 4 < 2, 4: (rows + columns) % 6 < 3}
    image = rng.integers(60, 110, (height, width, 3)).astype(np.float64)
    for k, (red, green, blue) in {1: (220, 90, 60), 3: (80, 210, 80), 4: (60, 110, 230)}.items():
        shade = np.where(stripes[k], 1.0, 0.75)[..., None]
        image = np.where((ids == k)[..., None], shade * (red, green, blue), image)
    ids[:2] = ids[-2:] = 2
    return image.astype(np.uint8), ids


def write(folder: Path, n: int, order: tuple[int, ...] = (0, 1, 2, 3, 4), first: int = 0) -> Path:
    """A pairs folder of coloured masks; `order` is that of the table's rows."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    colours = np.array([rgb for _, rgb in ROWS], np.uint8)
    for i in range(first, first + n):
        image, ids = draw(i)
        Image.fromarray(image).save(folder / "images" / f"p{i:02}.png")
        Image.fromarray(colours[ids]).save(folder / "masks" / f"p{i:02}.png")
    lines = ["name,r,g,b", *(f"{ROWS[i][0]},{','.join(map(str, ROWS[i][1]))}" for i in order)]
    (folder / "class_dict.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pairs/, and run/: a model trained on them with weighted cross-entropy and dice."""
    work = tmp_path_factory.mktemp("several")
    pairs = write(work / "pairs", 12)
    code = dispatch(
        ["finetune", "--pairs", str(pairs), "--out", str(work / "run"), "--ignore", "2", *SMALL,
         "--loss", "ce+dice", "--class-weights", "median", "--steps", "40", "--lr", "3e-3"]
    )  # fmt: skip
    assert code == 0
    return work


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_check_tells_every_class_by_name(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["check", "--pairs", str(work / "pairs"), "--ignore", "2"]) == 0
    said = capsys.readouterr().out
    assert "12 pairs; pixels: ground " in said
    assert all(f", {name} " in said for name in NAMES[1:])
    assert "void" not in said
    assert said.endswith("no faults\n")


def test_the_run_keeps_names_and_colours(work: Path) -> None:
    described = read_json(work / "run" / "model.json")
    assert described["classes"] == list(NAMES)
    assert described["colours"] == [list(dict(ROWS)[name]) for name in NAMES]
    assert described["lut"][:6] == [0, 1, 255, 2, 3, 254]
    lines = (work / "run" / "metrics.jsonl").read_text().splitlines()
    assert {"ce", "dice"} <= set(json.loads(lines[0]))


def test_evaluate_scores_each_class(work: Path) -> None:
    out = work / "scores"
    dispatch(["evaluate", str(work / "run"), "--pairs", str(work / "pairs"), "--out", str(out)])
    found = read_json(out / "metrics.json")
    assert list(found["per_class"]) == list(NAMES)
    for score in ("iou", "f1", "recall", "precision"):
        each = [own[score] for own in found["per_class"].values()]
        assert found["dataset"][score] == pytest.approx(np.mean(each))
    assert found["dataset"]["iou"] > 0.5, "ground alone would be 0.2"
    rows = table(out / "per_image.csv")
    assert len(rows) == 12
    for name in NAMES:
        tp, fp, fn = (sum(int(row[f"{of}_{name}"]) for row in rows) for of in ("tp", "fp", "fn"))
        own = found["per_class"][name]
        assert own["iou"] == pytest.approx(tp / (tp + fp + fn))
        assert (own["recall"], own["precision"]) == pytest.approx((tp / (tp + fn), tp / (tp + fp)))
    one = rows[0]
    ious = [float(one[f"iou_{name}"]) for name in NAMES if one[f"iou_{name}"]]
    assert float(one["iou"]) == pytest.approx(np.mean(ious))
    right = sum(int(one[f"tp_{name}"]) for name in NAMES)
    assert float(one["accuracy"]) == pytest.approx(right / int(one["valid_pixels"]))
    assert int(one["valid_pixels"]) == 36 * 48
    with Image.open(out / "legend.png") as legend, Image.open(out / "overlays/p00.png") as picture:
        shown = {rgb for _, rgb in legend.convert("RGB").getcolors(1 << 20) or ()}
        assert {dict(ROWS)[name] for name in NAMES} <= shown
        assert picture.size == (48, 40)


def test_a_table_in_another_order_goes_by_its_names(work: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", 12, order=(4, 2, 0, 1, 3))
    scores = []
    for pairs in (work / "pairs", other):
        out = tmp_path / f"of_{pairs.name}"
        dispatch(["evaluate", str(work / "run"), "--pairs", str(pairs), "--out", str(out)])
        scores.append(read_json(out / "metrics.json")["per_class"])
    assert scores[0] == scores[1]
    text = (other / "class_dict.csv").read_text()
    (other / "class_dict.csv").write_text(text.replace("bar", "pipe"))
    evaluate = ["evaluate", str(work / "run"), "--pairs", str(other), "--out", str(tmp_path / "c")]
    with pytest.raises(UserError, match="The run knows no pipe, only ground, disc, bar, box"):
        dispatch(evaluate)
    (other / "class_dict.csv").write_text("name,r,g,b\na,1,1,1\nb,2,2,2\n")
    with pytest.raises(UserError, match="names none of the classes that"):
        dispatch(evaluate)
    assert not (tmp_path / "c").exists()


def test_predict_writes_class_ids_and_overlays_in_the_classes_colours(
    work: Path, tmp_path: Path
) -> None:
    out = tmp_path / "predicted"
    dispatch(["predict", str(work / "run"), str(work / "pairs" / "images"), "--out", str(out)])
    drawn = set()
    for path in sorted((out / "masks").iterdir()):
        with Image.open(path) as mask, Image.open(out / "overlays" / path.name) as picture:
            assert (mask.mode, mask.size) == ("L", (48, 40))
            ids, colours = np.asarray(mask), np.asarray(picture)
        image = np.asarray(Image.open(work / "pairs" / "images" / path.name))
        assert ids.max() < 4
        assert (colours[ids == 0] == image[ids == 0]).all(), "black is background: left as it is"
        drawn |= set(map(tuple, colours[ids > 0].tolist()))
    assert {ROWS[k][1] for k in (1, 3, 4)} <= drawn, "outlines are in the full colour"
    assert (out / "legend.png").exists()


def test_a_study_reports_each_class(work: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'pairs = "{work / "pairs"}"\nencoder = "resnet18"\nsize = 32\nignore = 2\n'
        'budgets = [4]\nrepeats = 2\n[finetune]\nsteps = 4\nbatch_size = 4\nloss = "ce"\n'
        'class_weights = "balanced"\n[[arms]]\ninit = "scratch"\n'
    )
    out = tmp_path / "study"
    assert dispatch(["study", str(plan), "--out", str(out)]) == 0
    rows = table(out / "results.csv")
    assert [name for name in rows[0] if name.startswith("iou_")][2:] == [f"iou_{n}" for n in NAMES]
    for row in rows:
        ious = [float(row[f"iou_{name}"]) for name in NAMES if row[f"iou_{name}"]]
        assert float(row["iou"]) == pytest.approx(np.mean(ious))
        assert all(0 <= float(row[s]) <= 1 for s in ("f1", "recall", "precision", "accuracy"))
    facts = read_json(out / "study.json")
    assert facts["colours"] == [list(dict(ROWS)[name]) for name in NAMES]
    page = (out / "report.html").read_text()
    assert "IoU of each class" in page
    assert "Class weights" in page
    assert 'style="background: #c81e1e"></span>disc' in page
    cell = next((out / "cells").iterdir())
    assert {"iou_disc", "tp_box"} <= set(table(cell / "per_image.csv")[0])
    before = (out / "results.csv").read_bytes()
    plan.write_text(plan.read_text().replace('"balanced"', "[1, 2, 3]"))
    with pytest.raises(UserError, match="3 weights for 4 classes"):
        dispatch(["study", str(plan), "--out", str(out)])
    assert (out / "results.csv").read_bytes() == before


def test_weights_that_do_not_fit_stop_before_anything_is_written(
    work: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"2 weights for 4 classes \(ground, disc, bar, box\)"):
        dispatch(
            ["finetune", "--pairs", str(work / "pairs"), "--out", str(tmp_path / "run"),
             "--ignore", "2", "--class-weights", "1,2", "--steps", "1", *SMALL]
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_class_weights_reach_training_and_validation(work: Path, tmp_path: Path) -> None:
    """Where only disc weighs anything, everything becomes disc, and the loss nothing."""
    run, out = tmp_path / "run", tmp_path / "predicted"
    dispatch(
        ["finetune", "--pairs", str(work / "pairs"), "--out", str(run), "--ignore", "2", *SMALL,
         "--loss", "ce", "--class-weights", "0,1,0,0", "--steps", "30", "--lr", "1e-2"]
    )  # fmt: skip
    dispatch(["predict", str(run), str(work / "pairs" / "images"), "--out", str(out)])
    ids = np.array([np.asarray(Image.open(path)) for path in (out / "masks").iterdir()])
    assert (ids == 1).mean() > 0.95
    assert read_json(run / "result.json")["val_loss"] < 0.1


def test_validation_iou_is_the_mean_over_defined_classes(work: Path) -> None:
    model, prepared, rows = load_run(work / "run"), prepared_pairs(work), [3, 7]
    found = Validation(model.segmenter, prepared.cache, rows, "ce", torch.device("cpu"))()
    masks = prepared.cache.masks
    assert masks is not None
    above, below = np.zeros(4), np.zeros(4)
    for row in rows:
        pixels = torch.from_numpy(prepared.cache.images[row].copy()).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            guess = predicted(model.segmenter(pixels))[0].numpy()
        for k in range(4):
            here = masks[row] != 255
            above[k] += ((guess == k) & (masks[row] == k) & here).sum()
            below[k] += (((guess == k) | (masks[row] == k)) & here).sum()
    assert found["iou"] == pytest.approx(np.mean((above / below)[below > 0]))


def prepared_pairs(work: Path) -> Prepared:
    return prepare(str(work / "pairs"), MaskOptions(ignore=2), Geometry(32, "square"))


def grey(folder: Path, masks: list[np.ndarray]) -> Path:
    """Pairs whose masks are class ids in grey, without a table."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i, mask in enumerate(masks):
        image, _ = draw(i, *mask.shape)
        Image.fromarray(image).save(folder / "images" / f"p{i}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"p{i}.png")
    return folder


@pytest.mark.parametrize(
    ("loss", "weights"), [("bce+dice", ()), ("focal", ("--class-weights", "balanced"))]
)
def test_absent_classes_and_images_of_one_class_are_undefined_not_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], loss: str, weights: tuple[str, ...]
) -> None:
    """Class 1 is in few masks, class 3 in none; masks of one class, and one all ignored."""
    whole = [np.full((24, 24), value) for value in (0, 2, 0, 2, 255)]
    mixed = np.kron([[0, 1], [2, 255]], np.ones((12, 12)))
    pairs = grey(tmp_path / "pairs", [*whole, mixed, np.rot90(mixed)])
    code = dispatch(
        ["finetune", "--pairs", str(pairs), "--out", str(tmp_path / "run"), *SMALL, "--steps", "3",
         "--classes", "a,b,c,d", "--ignore", "255", "--loss", loss, "--masks", "3", *weights]
    )  # fmt: skip
    assert code == 0
    result = read_json(tmp_path / "run" / "result.json")
    assert math.isfinite(result["val_loss"])
    split = read_json(tmp_path / "run" / "split.json")
    trained = {entry["name"] for entry in split["train"]}
    said = capfd.readouterr().err
    assert "no mask holds the class d" in said
    assert ("no training mask holds the class b" in said) == (not trained & {"p5", "p6"})
    out = tmp_path / "scores"
    dispatch(["evaluate", str(tmp_path / "run"), "--pairs", str(pairs), "--out", str(out)])
    found = read_json(out / "metrics.json")
    rows = table(out / "per_image.csv")
    assert rows[4]["iou"] == rows[4]["iou_a"] == rows[4]["bce_loss"] == ""
    assert found["per_class"]["d"]["recall"] is None
    assert found["per_class"]["b"]["recall"] is not None
    defined = [own["iou"] for own in found["per_class"].values() if own["iou"] is not None]
    assert found["dataset"]["iou"] == pytest.approx(np.mean(defined))


def test_a_class_that_is_never_predicted_counts_as_missed(work: Path, tmp_path: Path) -> None:
    model = load_run(work / "run")
    with torch.no_grad():
        bias = model.segmenter.network.segmentation_head[0].bias
        bias.copy_(torch.tensor([0.0, -1e4, 0.0, 0.0]))
    prepared = prepared_pairs(work)
    found = score_pairs(
        model.segmenter, model.geometry, prepared.pairs.items[:3], prepared.checked.labels,
        torch.device("cpu"),
    )  # fmt: skip
    dataset, _, each = aggregate(found, NAMES)
    assert (each["disc"]["iou"], each["disc"]["recall"], each["disc"]["precision"]) == (0, 0, None)
    assert dataset["iou"] == pytest.approx(np.mean([own["iou"] for own in each.values()]))
    assert math.isfinite(dataset["bce_loss"] or 0)
