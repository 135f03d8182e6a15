"""The images worth a look: the best, the median and the worst of each arm, and the disputed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fewmask.reporting.examples import disagreement_panel, example_images, example_panels
from fewmask.reporting.folder import StudyFolder, read_study
from fewmask.reporting.judged import verdicts
from fewmask.reporting.page import render

SCORES = {
    # image: (scratch's two repeats, imagenet's two repeats)
    "Abyssinian_100": ((0.9, 0.8), (0.95, 0.95)),
    "american_bulldog_12": ((0.5, 0.7), (0.9, 0.8)),
    "Bengal_7": ((0.2, 0.2), (0.99, 0.97)),
    "pug_31": ((0.7, 0.8), (0.3, 0.4)),
}


@pytest.fixture
def study(make_study: Callable[..., Path], tmp_path: Path) -> StudyFolder:
    found = read_study(make_study(tmp_path, ("scratch", "imagenet"), (8, 0.2), 2))
    for (arm, budget, repeat), cell in found.cells.items():
        place = ("scratch", "imagenet").index(arm)
        shift = 0.0 if budget == 0.2 else -0.1
        lines = [f"{name},{own[place][repeat] + shift},,," for name, own in SCORES.items()]
        (cell / "per_image.csv").write_text("\n".join(["name,iou,tp,fp,fn", *lines]) + "\n")
    return found


def test_each_arm_shows_its_own_best_median_and_worst(study: StudyFolder) -> None:
    scratch, imagenet = example_panels(study)
    assert scratch.images == ("Abyssinian_100", "american_bulldog_12", "Bengal_7")
    assert imagenet.images == ("Bengal_7", "american_bulldog_12", "pug_31")
    assert "scratch at 20 %" in scratch.says
    assert "(0.850, 0.600, 0.200)" in scratch.says
    assert [column.heading for column in scratch.columns] == ["scratch, repeat 0"]


def test_the_disputed_images_come_first(study: StudyFolder) -> None:
    panel = disagreement_panel(study)
    assert panel is not None
    assert panel.images == ("Bengal_7", "pug_31", "american_bulldog_12")
    assert [column.heading for column in panel.columns] == ["scratch", "imagenet"]
    assert set(example_images(study)) == set(SCORES)


def test_they_stand_on_the_page(study: StudyFolder) -> None:
    text = render(study, verdicts(study))
    assert "where the arms disagree most at 20" in text
    assert text.count("the best, the median and the worst test image") == 2 * 2  # and in words
    assert (study.path / "figures" / "panels_disagreements.png").is_file()


def test_images_without_a_picture_are_left_out(study: StudyFolder) -> None:
    (study.path / "panels" / "images" / "Bengal_7.jpg").unlink()
    assert example_panels(study)[0].images == ("Abyssinian_100", "american_bulldog_12")


def test_too_few_images_or_arms_show_nothing(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    assert example_panels(read_study(make_study(tmp_path / "none", done=0))) == []
    alone = read_study(make_study(tmp_path / "one", ("scratch",), (8,), 1))
    assert disagreement_panel(alone) is None
    assert len(example_panels(alone)) == 1
