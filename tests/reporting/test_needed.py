"""How many masks are enough, as a table and a sentence, from curves of known shape."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fewmask.evidence.curve import Curve, fit_curve
from fewmask.reporting.folder import StudyFolder, read_study
from fewmask.reporting.needed import (
    check_targets,
    label_curves,
    needed_rows,
    needed_sentence,
    targets,
)
from fewmask.types import UserError

MASKS = np.array([8.0, 16, 32, 64, 128])
SAVED = "As good as scratch with 128 masks"


def rising(start: float) -> Curve:
    """IoU 0.9 - start / sqrt(n), three repeats a hundredth of a point apart."""
    exact = 0.9 - start / np.sqrt(MASKS)
    return fit_curve(MASKS, np.stack([exact - 1e-4, exact, exact + 1e-4]))


@pytest.fixture
def study(make_study: Callable[..., Path], tmp_path: Path) -> StudyFolder:
    """Two arms on 8 to 128 masks."""
    return read_study(
        make_study(tmp_path, ("scratch", "imagenet"), (8, 16, 32, 64, 128), 2, panels=False)
    )


def test_a_row_an_arm_a_column_a_target_and_what_is_saved(study: StudyFolder) -> None:
    # 0.9 - 1.2 / sqrt(n) = 0.7 at n = 36, 0.9 - 0.6 / sqrt(n) = 0.7 at n = 9; 0.9 needs no end.
    curves: dict[str, Curve | str] = {"scratch": rising(1.2), "imagenet": rising(0.6)}
    scratch, imagenet = needed_rows(study, curves, [0.3, 0.7, 0.95])
    assert list(scratch) == ["Arm", "IoU 0.3", "IoU 0.7", "IoU 0.95", SAVED]
    assert scratch["IoU 0.3"] == imagenet["IoU 0.3"] == "at most 8"
    about, low, high = map(int, re.findall(r"\d+", scratch["IoU 0.7"]))
    assert low <= 36 <= high
    assert about == pytest.approx(36, abs=3)
    assert scratch["IoU 0.95"].startswith("no answer: ")
    assert scratch[SAVED] == ""
    about, low, high = map(int, re.findall(r"\d+", imagenet[SAVED]))
    assert low <= 32 <= high  # a quarter of 128
    assert about == pytest.approx(32, abs=3)


def test_the_sentence_is_on_the_highest_target_that_has_an_answer(study: StudyFolder) -> None:
    curves: dict[str, Curve | str] = {"scratch": rising(1.2), "imagenet": rising(0.6)}
    said = needed_sentence(study, curves, [0.3, 0.7, 0.75, 0.95])
    assert said is not None
    assert re.fullmatch(
        r"To reach IoU 0\.75 takes, in masks: scratch about \d+ \(\d+ to \d+\), "
        r"imagenet about \d+ \(\d+ to \d+\)\.",
        said,
    )
    curves["scratch"] = "no budget was repeated"
    said = needed_sentence(study, curves, [0.3, 0.7, 0.75, 0.95])
    assert said is not None
    assert "scratch" not in said
    assert said.endswith("; of the others it cannot be said.")
    assert needed_sentence(study, curves, [0.3, 0.95]) is None


def test_without_curves_only_targets_that_were_asked_for_get_a_reason(study: StudyFolder) -> None:
    curves: dict[str, Curve | str] = dict.fromkeys(study.arms, "no budget was repeated")
    assert needed_rows(study, curves, [0.7]) == []
    study.plan["targets"] = [0.7]
    rows = needed_rows(study, curves, targets(study, curves))
    assert [row["IoU 0.7"] for row in rows] == ["no answer: no budget was repeated"] * 2
    assert rows[1][SAVED] == "no answer: of the baseline no budget was repeated"


def test_curves_are_those_of_the_table_s_runs(study: StudyFolder) -> None:
    found = label_curves(study)["imagenet"]
    assert isinstance(found, Curve)
    with (study.path / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "imagenet"]
    wanted = [np.mean([float(r["iou"]) for r in rows if r["budget"] == f"{n:g}"]) for n in MASKS]
    assert found.masks.tolist() == MASKS.tolist()
    assert found.means.tolist() == pytest.approx(wanted)


def test_targets_are_steps_of_005_between_what_the_arms_reach(study: StudyFolder) -> None:
    low, high = rising(1.2), rising(0.6)
    # From 0.476 to 0.847, seven steps; four of them.
    assert targets(study, {"scratch": low, "imagenet": high}) == [0.5, 0.6, 0.7, 0.8]
    assert targets(study, {"scratch": "none"}) == []
    with pytest.raises(UserError, match="targets 85: expected IoUs between 0 and 1"):
        check_targets([85])
