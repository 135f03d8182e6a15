"""Several classes in the report: each one's IoU and colour, on the page and in the pictures."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from fewmask.data.classes import colour
from fewmask.reporting import panels
from fewmask.reporting.folder import StudyFolder, read_study
from fewmask.reporting.page import write_report
from fewmask.reporting.table import class_rows

NAMES = ("background", "Model", "bird & <bat>")
COLOURS = [[0, 0, 0], [200, 30, 30], [7, 8, 255]]


@pytest.fixture
def out(make_study: Callable[..., Path], tmp_path: Path) -> Path:
    """A study of three classes, the third undefined in all cells but one."""
    study = make_study(
        tmp_path, arms=("scratch", "imagenet"), budgets=(0.2, 0.8), repeats=2, classes=NAMES,
        colours=COLOURS,
    )  # fmt: skip
    with (study / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        row |= {"iou_background": str(0.9 + i / 100), "iou_Model": str(0.5 + i / 50)}
        row[f"iou_{NAMES[2]}"] = "0.25" if i == 0 else ""
    with (study / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return study


def test_each_class_has_its_mean_over_the_repeats_that_define_it(out: Path) -> None:
    rows = class_rows(read_study(out))
    assert [(row["Model"], row["Dev Split"]) for row in rows] == [
        ("scratch", "20"), ("scratch", "80"), ("imagenet", "20"), ("imagenet", "80"),
    ]  # fmt: skip
    assert rows[0]["iou_background"] == "0.905 ± 0.007"  # cells 0 and 1
    assert rows[3]["iou_Model"] == "0.630 ± 0.014"  # cells 6 and 7
    assert [row[f"iou_{NAMES[2]}"] for row in rows] == ["0.250", "-", "-", "-"]


def test_the_page_shows_them_with_their_colours(out: Path) -> None:
    text = write_report(out).read_text()
    assert "IoU of each class" in text
    assert 'style="background: #20252d"></span>background<' in text
    assert 'style="background: #c81e1e"></span>Model<' in text
    assert 'style="background: #0708ff"></span>bird &amp; &lt;bat&gt;<' in text
    assert ">0.905<" in text


def test_two_classes_have_no_such_table(make_study: Callable[..., Path], tmp_path: Path) -> None:
    out = make_study(tmp_path, ("scratch",), (0.2,), 1, panels=False)
    with (out / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    row |= {"iou_background": "0.9", "iou_pet": row["iou"]}  # though they may be known
    (out / "results.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    assert class_rows(read_study(out)) == []
    assert "IoU of each class" not in write_report(out).read_text()


def as_text(pixels: np.ndarray) -> list[str]:
    return ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in pixels.reshape(-1, 3)]


def test_pictures_are_painted_in_the_classes_colours_and_say_which(out: Path) -> None:
    study = read_study(out)
    mask, truth = np.array([[0, 1, 2, 1]], np.uint8), np.array([[0, 1, 1, 255]], np.uint8)
    wanted = [panels.GROUND, "#c81e1e", "#0708ff", panels.UNSCORED]
    assert as_text(panels.paint(study, mask, truth)) == wanted
    names = [*NAMES, "not scored"]
    assert panels.legend_entries(study) == list(zip(wanted, names, strict=True))
    panel = panels.arms_panel(study)
    assert panel is not None
    words = {text.get_text() for text in panels.draw_panel(study, panel).findobj(Text)}
    assert set(NAMES) <= words
    assert any(word.startswith("mean IoU 0.") for word in words)


def test_a_study_that_names_no_colours_has_those_of_the_ids(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    names = tuple(f"class {k}" for k in range(15))
    study: StudyFolder = read_study(make_study(tmp_path, ("scratch",), (8,), 1, names))
    assert study.colours == tuple("#{:02x}{:02x}{:02x}".format(*colour(k)) for k in range(15))
