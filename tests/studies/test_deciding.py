"""--until-decided: which repeats are added, where it ends, and what a later command finds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fewmask
from fewmask.reporting.folder import read_study
from fewmask.reporting.needed import label_curves, needed_rows, targets
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
    assert "from 3 repeats on, after each one up to 6; there are 6 now; intervals and words" in page


def test_a_later_command_keeps_the_repeats_and_the_rules(
    study: Callable[..., list[Cell]], tmp_path: Path
) -> None:
    study(until_decided=True, most_repeats=5)
    before = results(tmp_path / "out")
    assert study() == []
    assert results(tmp_path / "out") == before
    page = (tmp_path / "out" / "report.html").read_text()
    assert (
        "after each one up to 5; there are 5 now; intervals and words hold under that looking"
        in page
    )
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
    found = read_study(tmp_path / "out")
    curves = label_curves(found)
    rows = needed_rows(found, curves, targets(found, curves))
    assert [row["Arm"] for row in rows] == list(found.arms)
    page = (tmp_path / "out" / "report.html").read_text()
    for row in rows:
        assert row["IoU 0.62"].startswith(("about ", "at most ", "no answer: "))
        assert row["IoU 0.62"] in page


def test_repeats_added_by_hand_are_looks_and_said_to_be(
    study: Callable[..., list[Cell]], tmp_path: Path
) -> None:
    def facts() -> dict[str, object]:
        found: dict[str, object] = json.loads((tmp_path / "out" / "study.json").read_text())
        return found

    def p_value() -> float:
        with (tmp_path / "out" / "verdicts.csv").open() as file:
            return next(float(row["p"]) for row in csv.DictReader(file) if row["arm"] == "noisy")

    study()
    assert facts()["looked"] == {"8": [3]}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "added by hand" not in page
    study(repeats=5)
    assert facts()["looked"] == {"8": [3, 5]}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Repeats were added by hand after verdicts had been written, from 3 up to 5" in page
    looked = p_value()
    told = facts() | {"looked": {"8": [5]}}  # as if five had been there from the start
    del told["checksum"]
    (tmp_path / "out" / "study.json").write_text(json.dumps(told))
    fewmask.report(study=str(tmp_path / "out"))
    assert p_value() < looked
    (tmp_path / "out" / "study.json").write_text(json.dumps(told | {"looked": {"8": [3, 5]}}))
    study(repeats=5, until_decided=True, most_repeats=7)
    assert facts()["until_decided"] == {"first": {"8": 3}, "most": 7, "late": True}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "verdicts had been written before that limit was fixed" in page
    assert "words hold under that looking" not in page


def test_the_limit_of_looking_cannot_be_passed_by_hand(
    study: Callable[..., list[Cell]],
) -> None:
    study(until_decided=True, most_repeats=5)
    with pytest.raises(UserError, match="hold for up to 5 repeats, the limit when it began"):
        study(repeats=6)


def test_a_limit_that_leaves_nothing_to_add_is_refused(
    study: Callable[..., list[Cell]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has 3 repeats or more already; name more"):
        study(until_decided=True, most_repeats=3)
    study(until_decided=True, most_repeats=4)
    facts = json.loads((tmp_path / "out" / "study.json").read_text())
    assert facts["until_decided"]["most"] == 4


def test_another_share_to_test_on_is_another_study(
    study: Callable[..., list[Cell]], tmp_path: Path
) -> None:
    study()
    plan = tmp_path / "plan.toml"
    plan.write_text("test = 0.5\n" + plan.read_text())
    with pytest.raises(UserError, match=r"tests on 0\.2 of the pairs, not on 0\.5 of the pairs"):
        study()


def test_budgets_of_more_masks_than_there_are_are_refused(
    study: Callable[..., list[Cell]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.toml"
    text = plan.read_text()
    plan.write_text(text.replace("budgets = [8]", "budgets = [8, 17, 1.0]"))
    with pytest.raises(UserError) as raised:
        study()
    assert raised.value.faults == (
        "budget 17: 17 masks, and beside the 4 pairs to test on there are 16. Name at most 16, "
        "or 0.8 of all",
        "budget 1.0: 20 masks, and beside the 4 pairs to test on there are 16. Name at most 16, "
        "or 0.8 of all",
    )
    plan.write_text(text.replace("budgets = [8]", "budgets = [16, 0.8]"))
    study()
    assert "warning: budgets 16, 0.8 are the same 16 masks" in capfd.readouterr().err


def test_a_damaged_study_json_is_named(study: Callable[..., list[Cell]], tmp_path: Path) -> None:
    study()
    path = tmp_path / "out" / "study.json"
    for broken in ("{", "[]", "{}", "[" * 100_000):
        path.write_text(broken)
        with pytest.raises(UserError, match=r"study\.json: damaged \("):
            study()
    path.unlink()
    assert study() == []


def test_the_findings_are_told_and_kept(study: Callable[..., list[Cell]], tmp_path: Path) -> None:
    study()
    plan, out = str(tmp_path / "plan.toml"), tmp_path / "out"
    result = fewmask.study(plan=plan, out=str(out))
    assert any("helped in 1 of 2: clear at 8 masks" in said for said in result.findings)
    with (out / "verdicts.csv").open() as file:
        words = {row["arm"]: row["verdict"] for row in csv.DictReader(file)}
    assert words == {"clear": "helped", "noisy": "cannot tell"}


def test_a_budget_with_more_repeats_than_the_limit_goes_on_all_the_same(
    study: Callable[..., list[Cell]], tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    text = plan.read_text().replace("budgets = [8]", "budgets = [8, 4]")
    text = text.replace("repeats = 3\n", "").replace(
        "[finetune]", "[repeats]\n8=2\n4=6\n[finetune]"
    )
    plan.write_text(text)
    study(until_decided=True, most_repeats=4)
    assert study(until_decided=True) == []
    assert study() == []
    assert "by hand" not in (tmp_path / "out" / "report.html").read_text()


def test_a_budget_s_own_looks_are_not_those_of_another(
    study: Callable[..., list[Cell]], tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    text = plan.read_text().replace("budgets = [8]", "budgets = [8, 4, 6]")
    text = text.replace("repeats = 3\n", "")
    plan.write_text(text.replace("[finetune]", "[repeats]\n8=2\n4=6\n6=1\n[finetune]"))
    study()
    facts = json.loads((tmp_path / "out" / "study.json").read_text())
    assert facts["looked"] == {"8": [2], "4": [6]}
    assert "by hand" not in (tmp_path / "out" / "report.html").read_text()
    assert study(masks=(6,), repeats=2, until_decided=True, most_repeats=3)


def test_fewer_repeats_asked_for_are_no_look(
    study: Callable[..., list[Cell]], tmp_path: Path
) -> None:
    study(repeats=5)
    study(repeats=3)
    facts = json.loads((tmp_path / "out" / "study.json").read_text())
    assert facts["looked"] == {"8": [5]}
