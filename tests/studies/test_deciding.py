"""--until-decided: which repeats are added, where it ends, and what a later command finds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fewmask
from fewmask.studies import executing
from fewmask.studies.plan import Cell
from fewmask.studies.record import Study
from fewmask.types import UserError

PLAN = """
pairs = "{pairs}"
encoder = "resnet18"
size = 32
budgets = [8]
repeats = 3
[finetune]
steps = 1
[[arms]]
init = "scratch"
[[arms]]
name = "clear"
[[arms]]
name = "noisy"
"""
SHIFT = {"scratch": 0.0, "clear": 0.2, "noisy": 0.0}
NOISE = {"scratch": 0.002, "clear": 0.002, "noisy": 0.1}


@pytest.fixture
def study(
    tmp_path: Path, write_pairs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Cell]]:
    """Runs the study with made-up scores; returns the cells that were run."""
    (tmp_path / "plan.toml").write_text(PLAN.format(pairs=write_pairs(20)))
    ran: list[Cell] = []

    def scored(study: Study, cell: Cell) -> None:
        ran.append(cell)
        folder = study.folder(cell)
        folder.mkdir(parents=True)
        random = np.random.default_rng((len(cell.arm.name), cell.repeat))
        iou = 0.5 + SHIFT[cell.arm.name] + NOISE[cell.arm.name] * random.standard_normal()
        facts = {"arm": cell.arm.name, "budget": cell.budget, "repeat": cell.repeat,
                 "iou": iou, "seconds": 1.0}  # fmt: skip
        (folder / "result.json").write_text(json.dumps(facts))

    monkeypatch.setattr(executing, "run_cell", scored)

    def call(**flags: object) -> list[Cell]:
        ran.clear()
        fewmask.study(plan=str(tmp_path / "plan.toml"), out=str(tmp_path / "out"), **flags)  # type: ignore[arg-type]
        return list(ran)

    return call


def results(out: Path) -> list[tuple[str, int]]:
    with (out / "results.csv").open() as file:
        return [(row["arm"], int(row["repeat"])) for row in csv.DictReader(file)]


def test_only_what_is_undecided_gets_more_repeats(
    study: Callable[..., list[Cell]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ran = study(until_decided=True, most_repeats=6)
    counts = {name: sum(cell.arm.name == name for cell in ran) for name in SHIFT}
    assert counts == {"scratch": 6, "clear": 3, "noisy": 6}
    assert len(results(tmp_path / "out")) == 15
    assert "undecided: noisy at 8 after 3 repeats" in capfd.readouterr().err
    facts = json.loads((tmp_path / "out" / "study.json").read_text())
    assert facts["until_decided"] == {"first": {"8": 3}, "most": 6}
    assert len(facts["cells"]) == 15
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Repeats were added until decided, from 3 up to 6" in page


def test_a_later_command_keeps_the_repeats_and_the_rules(
    study: Callable[..., list[Cell]], tmp_path: Path
) -> None:
    study(until_decided=True, most_repeats=5)
    before = results(tmp_path / "out")
    assert study() == []
    assert results(tmp_path / "out") == before
    assert "until decided, from 3 up to 5" in (tmp_path / "out" / "report.html").read_text()
    assert study(until_decided=True) == []  # the limit that it began with
    with pytest.raises(UserError, match="began to look with --most-repeats 5, not 9"):
        study(until_decided=True, most_repeats=9)


def test_without_the_flag_nothing_is_added(
    study: Callable[..., list[Cell]], tmp_path: Path
) -> None:
    assert len(study()) == 9
    assert json.loads((tmp_path / "out" / "study.json").read_text())["until_decided"] is None


def test_a_limit_of_nothing_is_refused(study: Callable[..., list[Cell]]) -> None:
    with pytest.raises(UserError, match="--most-repeats 5 goes with --until-decided"):
        study(most_repeats=5)


def test_the_margin_is_fixed_once_the_study_has_begun(
    study: Callable[..., list[Cell]], tmp_path: Path
) -> None:
    study(margin=0.02)
    assert json.loads((tmp_path / "out" / "study.json").read_text())["margin"] == 0.02
    with pytest.raises(UserError, match=r"a margin of 0\.02, not 0\.03"):
        study(margin=0.03)
    with pytest.raises(UserError, match=r"margin 7\.0: expected a difference in IoU"):
        study(margin=7)


def test_targets_are_answered_on_the_page(study: Callable[..., list[Cell]], tmp_path: Path) -> None:
    study(targets=(0.62,), masks=(2, 4, 8))
    facts = json.loads((tmp_path / "out" / "study.json").read_text())
    assert facts["targets"] == [0.62]
    assert "IoU 0.62" in (tmp_path / "out" / "report.html").read_text()
