"""Verdicts from what lies in a study folder: the counts of its cells, its margin, its looks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fewmask.reporting.findings import findings, own_against_imagenet
from fewmask.reporting.folder import StudyFolder, read_study
from fewmask.reporting.judged import rules, verdicts
from fewmask.sealed import crc, write_sealed
from fewmask.types import UserError


@pytest.fixture
def counted(make_study: Callable[..., Path], tmp_path: Path) -> Path:
    """A study whose cells hold counts of 40 images that give their scores."""
    out = make_study(tmp_path, ("scratch", "imagenet"), (8,), 3, panels=False)
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    random = np.random.default_rng(0)
    union = random.integers(500, 1000, 40)
    hard = random.normal(0, 0.05, 40)
    for row, cell in zip(rows, sorted((out / "cells").iterdir()), strict=True):
        gain = 0.1 if row["arm"] == "imagenet" else 0.0
        share = 0.7 + gain + hard + random.normal(0, 0.01, 40) + random.normal(0, 0.002)
        inside = np.round(share * union)
        row["iou"] = str(inside.sum() / union.sum())
        result = json.loads((cell / "result.json").read_text()) | {"iou": float(row["iou"])}
        (cell / "result.json").write_text(json.dumps(result))
        lines = [f"i{i},{inside[i]},{union[i] - inside[i]},0,0" for i in range(40)]
        (cell / "per_image.csv").write_text("\n".join(["name,tp,fp,fn,tn", *lines]) + "\n")
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return out


def changed(out: Path, **plan: object) -> StudyFolder:
    settings = json.loads((out / "study.json").read_text()) | plan
    (out / "study.json").write_text(json.dumps(settings))
    return read_study(out)


def test_the_cells_counts_are_used(counted: Path) -> None:
    (found,) = verdicts(read_study(counted))
    assert (found.arm, found.word, found.images) == ("imagenet", "helped", 40)
    assert found.mean == pytest.approx(0.1, abs=0.01)
    assert "other runs and other test images" in findings(read_study(counted))[-1]
    (other,) = verdicts(read_study(counted), "imagenet")
    assert (other.arm, other.word, other.mean) == ("scratch", "hurt", pytest.approx(-found.mean))


def test_damaged_counts_are_told_and_not_left_out(counted: Path) -> None:
    file = next((counted / "cells").iterdir()) / "per_image.csv"
    file.write_text(file.read_text().replace(",0,0", ",1,0", 1))
    with pytest.raises(UserError, match=r"per_image.csv: damaged .*its counts give an IoU of"):
        verdicts(read_study(counted))


def test_a_score_that_its_cell_does_not_know_is_said_first(counted: Path) -> None:
    before = verdicts(read_study(counted))
    lines = (counted / "results.csv").read_text().splitlines()
    place = lines[0].split(",").index("f1")
    values = lines[1].split(",")
    values[place] = "0.9"
    (counted / "results.csv").write_text("\n".join([lines[0], ",".join(values), *lines[2:]]) + "\n")
    study = read_study(counted)
    assert findings(study)[0].startswith("results.csv and the cell key000 differ: f1 0.9 there, ")
    assert len(study.doubts) == 1
    assert verdicts(study) == before


def test_another_iou_is_said_with_what_the_intervals_lack(counted: Path) -> None:
    text = (counted / "results.csv").read_text()
    iou = text.splitlines()[1].split(",")[text.splitlines()[0].split(",").index("iou")]
    (counted / "results.csv").write_text(text.replace(iou, "0.5", 1))
    study = read_study(counted)
    assert "iou 0.5 there" in study.doubts[0]
    assert study.doubts[1].startswith("The intervals of these arms leave out")
    (found,) = verdicts(study)
    assert found.images == 0


def test_a_spreadsheet_s_fifteen_digits_are_no_change(counted: Path) -> None:
    rows = list(csv.DictReader((counted / "results.csv").read_text().splitlines()))
    for row in rows:
        row["iou"] = f"{float(row['iou']):.15g}"
    with (counted / "results.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    study = read_study(counted)
    assert study.doubts == ()
    assert verdicts(study)[0].images == 40


def test_rows_that_went_are_said(counted: Path) -> None:
    lines = (counted / "results.csv").read_text().splitlines()
    (counted / "results.csv").write_text("\n".join(lines[:-1]) + "\n")
    (doubt,) = read_study(counted).doubts
    assert doubt.startswith("results.csv lacks 1 finished cell (key005)")
    pending = [lines[0], *(line.replace(",done", ",pending") for line in lines[1:])]
    (counted / "results.csv").write_text("\n".join(pending) + "\n")
    (doubt,) = read_study(counted).doubts
    assert doubt.startswith("results.csv lacks 6 finished cells (key000; key001; key002)")


def test_rows_of_no_cell_are_said(counted: Path) -> None:
    text = (counted / "results.csv").read_text()
    row = next(csv.DictReader(text.splitlines())) | {"repeat": "7"}
    (counted / "results.csv").write_text(text + ",".join(row.values()) + "\n")
    doubt, lack = read_study(counted).doubts
    said = (
        "results.csv has 1 row (scratch, 8 masks, repeat 7) without a finished cell; the study's "
    )
    assert doubt == said + "command writes it again."
    assert lack.startswith("The intervals of these arms leave out")
    (counted / "results.csv").write_text(text)
    assert read_study(counted).doubts == ()


@pytest.fixture
def noted(counted: Path) -> Path:
    """The same, of cells that note the checksum of their counts."""
    for cell in (counted / "cells").iterdir():
        table = json.loads((cell / "result.json").read_text())
        table["per_image_csv"] = crc((cell / "per_image.csv").read_text())
        (cell / "result.json").write_text(json.dumps(table))
    return counted


def test_counts_that_went_are_said(noted: Path) -> None:
    assert read_study(noted).doubts == ()
    (noted / "cells" / "key001" / "per_image.csv").unlink()
    gone, lack = read_study(noted).doubts
    assert gone.startswith("per_image.csv is gone from 1 cell (key001); a cell whose folder")
    assert lack.startswith("The intervals of these arms leave out")


def test_counts_under_other_names_are_refused(noted: Path) -> None:
    file = noted / "cells" / "key001" / "per_image.csv"
    text = file.read_text()
    assert text.count("i7,") == 1
    file.write_text("\ufeff" + text, newline="\r\n")  # as a spreadsheet saves it
    assert read_study(noted).doubts == ()
    file.write_text(text.replace("i7,", "i77,"))  # the score is the same
    with pytest.raises(
        UserError, match=r"key001/per_image\.csv: changed since .*Bring it back, or"
    ):
        read_study(noted)
    table = json.loads((file.parent / "result.json").read_text())
    table.pop("per_image_csv")
    (file.parent / "result.json").write_text(json.dumps(table))
    assert read_study(noted).doubts == ()


def test_many_scores_that_differ_hide_nothing_else(noted: Path) -> None:
    rows = list(csv.DictReader((noted / "results.csv").read_text().splitlines()))
    for row in rows:
        row["iou"] = "0.5"
    with (noted / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (noted / "cells" / "key001" / "per_image.csv").unlink()
    *differ, more, gone, lack = read_study(noted).doubts
    assert len(differ) == 3
    assert all("iou 0.5 there" in one for one in differ)
    assert more == "So do 3 more scores."
    assert gone.startswith("per_image.csv is gone from 1 cell")
    assert lack.startswith("The intervals of these arms")


def test_the_result_of_another_cell_is_refused(counted: Path) -> None:
    cells = sorted((counted / "cells").iterdir())
    (cells[0] / "result.json").write_bytes((cells[3] / "result.json").read_bytes())
    with pytest.raises(UserError, match=r"key000/result\.json: damaged .*is of the cell key003"):
        read_study(counted)


def test_a_plan_that_was_changed_is_said_first(counted: Path) -> None:
    table = json.loads((counted / "study.json").read_text())
    write_sealed(counted / "study.json", table)
    assert read_study(counted).doubts == ()
    assert "checksum" not in read_study(counted).plan
    changed(counted, margin=0.02)
    assert "study.json was changed since" in findings(read_study(counted))[0]


def test_cells_without_counts_still_count(counted: Path) -> None:
    for cell in (counted / "cells").iterdir():
        (cell / "per_image.csv").unlink()
    (found,) = verdicts(read_study(counted))
    assert found.images == 0
    assert found.interval is not None


def test_the_plan_s_margin_and_looks_are_the_rules(counted: Path) -> None:
    assert rules(read_study(counted)).margin == 0.01
    study = changed(counted, margin=0.3, until_decided={"first": {"8": 3}, "most": 10})
    (found,) = verdicts(study)
    assert found.word == "equivalent"
    said = findings(study)[-1]
    assert "Less than 30 points" in said
    assert "from 3 repeats on, after each one up to 10; there are 3 now" in said


def test_a_cell_that_is_there_twice_is_refused(counted: Path) -> None:
    lines = (counted / "results.csv").read_text().splitlines()
    (counted / "results.csv").write_text("\n".join([*lines, lines[-1]]) + "\n")
    with pytest.raises(UserError, match="two rows of arm imagenet, budget 8, repeat 2"):
        read_study(counted)


def test_two_comparisons_are_corrected_each_by_itself(counted: Path, tmp_path: Path) -> None:
    said = findings(read_study(counted))[-1]
    assert "corrected for the number of arms at a budget. " in said
    study = changed(counted, baseline="none", arms=[{"name": a} for a in ("scratch", "imagenet")])
    assert own_against_imagenet(study)[0].arm == "scratch"
    assert own_against_imagenet(changed(counted, baseline="imagenet")) == []


def test_words_of_an_unfinished_study_are_provisional(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    whole = make_study(tmp_path / "whole", ("scratch", "imagenet", "own"), (8,), 3, panels=False)
    assert "provisional" not in findings(read_study(whole))[-1]
    assert "in either of the two comparisons by itself" in findings(read_study(whole))[-1]
    cut = make_study(tmp_path / "cut", ("scratch", "imagenet"), (8,), 3, done=5, panels=False)
    assert (
        "5 of 6 trainings are done, so the words are provisional" in findings(read_study(cut))[-1]
    )
