"""The table: its columns, means, spreads, and what it does where cells are missing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fewmask.reporting.folder import read_study
from fewmask.reporting.table import table_rows, write_table
from fewmask.types import UserError

SEED_COLUMNS = ["ID", "Model", "Loss Func", "Dev Split", "IOU", "F1", "Dice", "Focal", "BCE",
                "Recall", "Accuracy"]  # fmt: skip


def test_columns_and_order_are_the_seed_reports(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    rows = table_rows(make_study(tmp_path, arms=("scratch", "simclr-cifar10"), panels=False))
    assert list(rows[0]) == [*SEED_COLUMNS, "IOU border = fg", "Repeats"]
    assert [(r["ID"], r["Model"], r["Dev Split"]) for r in rows] == [
        ("0", "scratch", "20"), ("1", "scratch", "50"), ("2", "scratch", "80"),
        ("3", "simclr-cifar10", "20"), ("4", "simclr-cifar10", "50"), ("5", "simclr-cifar10", "80"),
    ]  # fmt: skip
    assert {(row["Loss Func"], row["Repeats"]) for row in rows} == {("BCE", "3")}


@pytest.mark.parametrize(
    ("title", "column"),
    [("IOU", "iou"), ("F1", "f1"), ("Dice", "dice_loss"), ("Focal", "focal_loss"),
     ("BCE", "bce_loss"), ("Recall", "recall"), ("Accuracy", "accuracy")],
)  # fmt: skip
def test_cells_are_mean_and_sample_deviation(
    make_study: Callable[..., Path], tmp_path: Path, title: str, column: str
) -> None:
    study = make_study(tmp_path, arms=("scratch", "imagenet"), panels=False)
    with (study / "results.csv").open() as lines:
        runs = [float(r[column]) for r in csv.DictReader(lines)
                if r["arm"] == "imagenet" and r["budget"] == "0.5"]  # fmt: skip
    assert len(runs) == 3
    assert table_rows(study)[4][title] == f"{np.mean(runs):.3f} ± {np.std(runs, ddof=1):.3f}"


def test_text_lines_up_and_is_what_lies_in_the_file(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    text = write_table(make_study(tmp_path, arms=("scratch", "a|b"), panels=False, done=7))
    assert text == (tmp_path / "table.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 6
    assert len({len(line) for line in lines}) == 1
    assert r"a\|b" in lines[5]
    assert "139 test images" in text
    assert "border ignored" in text
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_one_repeat_has_no_deviation_and_masks_are_named(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    (row,) = table_rows(make_study(tmp_path, ("scratch",), (8,), 1, panels=False))
    assert row["Dev Split"] == "8 masks"
    assert row["Repeats"] == "1"
    assert "±" not in row["IOU"]


def test_pending_cells_are_counted_and_left_empty(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    rows = table_rows(make_study(tmp_path, ("scratch",), done=4, panels=False))
    assert [row["Repeats"] for row in rows] == ["3", "1 of 3", "0 of 3"]
    assert rows[2]["IOU"] == "-"


def test_several_classes_say_mean(make_study: Callable[..., Path], tmp_path: Path) -> None:
    study = make_study(tmp_path, ("scratch",), classes=("background", "cat", "dog"), panels=False)
    assert "Mean IOU" in table_rows(study)[0]
    assert table_rows(study)[0]["Loss Func"] == "CE"
    assert "mean over 3 classes" in write_table(study)


def test_the_recipe_best_names_its_loss(make_study: Callable[..., Path], tmp_path: Path) -> None:
    study = make_study(tmp_path, ("scratch",), recipe="best", panels=False)
    assert table_rows(study)[0]["Loss Func"] == "BCE+DICE"


def test_no_results_yet(make_study: Callable[..., Path], tmp_path: Path) -> None:
    study = make_study(tmp_path, ("scratch",), panels=False, done=0)
    (study / "results.csv").unlink()
    assert [row["Repeats"] for row in table_rows(study)] == ["0 of 3"] * 3


def test_results_that_are_gone_are_no_empty_table(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    study = make_study(tmp_path, ("scratch",), panels=False)
    (study / "results.csv").unlink()
    with pytest.raises(UserError, match=r"results\.csv is gone, though 9 cells are finished"):
        table_rows(study)


def test_what_is_no_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no study\.json"):
        table_rows(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(UserError, match=r"study\.json: damaged \(JSONDecodeError.*Bring it back"):
        table_rows(tmp_path)
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(UserError, match=r"study\.json: damaged \(TypeError: holds a list"):
        table_rows(tmp_path)


def test_missing_columns_are_named(make_study: Callable[..., Path], tmp_path: Path) -> None:
    study = make_study(tmp_path, ("scratch",), panels=False)
    (study / "results.csv").write_text("arm,budget\nscratch,0.2\n")
    with pytest.raises(UserError, match="lacks the columns repeat, status"):
        table_rows(study)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"leakage": True}, "leakage is True"),
        ({"leakage": {"pool": {"a": {"test": {"exact": "1"}}}}}, "leakage is {"),
        ({"arms": [{"sentence": "no name"}]}, "which has no name"),
        ({"budgets": [[8]]}, r"budgets is \[\[8\]\]"),
        ({"data": {"nearness": [{"name": "a", "kid": []}]}}, "data is {"),
        ({"data": {"nearness": [{"name": "a", "kid": 0.1, "low": 0.0}]}}, "data is {"),
        ({"data": {"classes": [{"name": "a", "masks_rest": 3}]}}, "data is {"),
        ({"leakage": {"test": {"exact": 1, "near": None}}}, "leakage is {"),
        ({"colours": [[0, 0, 256]]}, "colours holds"),
        ({"margin": True}, "margin is True"),
        ({"panels": {"images": ["../../secret"]}}, "lies elsewhere"),
    ],
)
def test_a_damaged_study_is_refused_by_the_entry(
    tmp_path: Path, entry: dict[str, object], fault: str
) -> None:
    whole = {"name": "quick", "arms": [{"name": "scratch"}], "budgets": [8], "leakage": None}
    (tmp_path / "study.json").write_text(json.dumps(whole))
    assert read_study(tmp_path).arms == ("scratch",)
    (tmp_path / "study.json").write_text(json.dumps(whole | entry))
    with pytest.raises(UserError, match=rf"study\.json: damaged \(.*{fault}"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("column", "text"),
    [("n_train", "\\n"), ("repeat", ""), ("n_val", "1.5"), ("iou", "0.9%5"), ("budget", "0x")],
)
def test_counts_that_are_none_are_named(
    make_study: Callable[..., Path], tmp_path: Path, column: str, text: str
) -> None:
    study = make_study(tmp_path, ("scratch",), panels=False)
    with (study / "results.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    rows[0] |= {"n_train": "6", "n_val": "2", column: text}
    with (study / "results.csv").open("w", newline="") as lines:
        writer = csv.DictWriter(lines, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(UserError) as raised:
        read_study(study)
    assert "results.csv: damaged (ValueError: " in str(raised.value)
    assert repr(text) in str(raised.value)
    assert str(raised.value).endswith("Run the study's command again to write it")


@pytest.mark.parametrize(
    "damage",
    [{"repeat": "x"}, {"repeat": 1.5}, {"repeat": True}, {"repeat": -3}, {"budget": None},
     {"budget": "x"}, {"budget": True}, {"arm": None}],
)  # fmt: skip
def test_a_cell_of_no_place_is_named(
    make_study: Callable[..., Path], tmp_path: Path, damage: dict[str, object]
) -> None:
    study = make_study(tmp_path, ("scratch",), panels=False)
    cell = study / "cells" / "broken"
    cell.mkdir(parents=True)
    sound = {"arm": "scratch", "budget": 0.2, "repeat": 7}
    (cell / "result.json").write_text(json.dumps(sound | damage))
    with pytest.raises(UserError, match=r"broken/result\.json: damaged .*Remove its folder"):
        read_study(study)


@pytest.mark.parametrize(
    "damage", [b"\xae", b"1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26\n"]
)
def test_a_table_of_other_bytes_is_named(
    make_study: Callable[..., Path], tmp_path: Path, damage: bytes
) -> None:
    study = make_study(tmp_path, ("scratch",), panels=False)
    with (study / "results.csv").open("ab") as file:
        file.write(damage)
    with pytest.raises(UserError, match=r"results\.csv: damaged .*again to write it"):
        read_study(study)
