"""Plans: the packaged ones, the user's own, and what is wrong in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from fewmask.pretext.simclr import SimCLR
from fewmask.settings import StudySettings
from fewmask.studies.grid import load_plan, plan_names
from fewmask.studies.plan import Plan
from fewmask.types import UserError

OWN = """
pairs = "labelled"
encoder = "resnet18"
size = 64
budgets = [4, 0.5]
repeats = 2
[finetune]
steps = 10
[pretrain]
steps = 5
temperature = 0.3
[[arms]]
init = "scratch"
[[arms]]
images = "pool"
[[arms]]
images = "pool"
init = "imagenet"
"""


def plan_of(tmp_path: Path, text: str, **flags: object) -> Plan:
    path = tmp_path / "own.toml"
    path.write_text(text)
    return load_plan(StudySettings(plan=str(path), out="o", **flags))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", plan_names())
def test_packaged_plans_load(name: str) -> None:
    plan = load_plan(StudySettings(plan=name, out="o"))
    assert plan.baseline in [arm.name for arm in plan.arms]
    repeats = [plan.repeats[budget] for budget in plan.budgets]
    assert min(repeats) > 0
    assert len(set(plan.cells())) == len(list(plan.cells())) == len(plan.arms) * sum(repeats)


def test_the_report_s_protocol() -> None:
    plan = load_plan(StudySettings(plan="paper", out="o"))
    assert (plan.finetune.encoder, plan.finetune.size, plan.finetune.epochs) == (
        "resnet50",
        224,
        60,
    )
    assert (plan.finetune.lr, plan.finetune.loss, plan.finetune.augment) == (1e-4, "bce", False)
    by_name = {arm.name: arm.pretrain for arm in plan.arms}
    assert {
        "scratch",
        "imagenet",
        "simclr-cifar10",
        "simclr-cats-vs-dogs",
        "imagenet+simclr-cifar10",
        "imagenet+simclr-cats-vs-dogs",
    } == set(by_name)
    pretrain = by_name["simclr-cifar10"]
    assert pretrain is not None
    assert isinstance(pretrain.pretext, SimCLR)
    assert (pretrain.pretext.temperature, pretrain.pretext.hidden) == (0.1, (512,))
    assert (pretrain.batch_size, pretrain.optimizer, pretrain.lr, pretrain.epochs) == (
        120,
        "lars",
        0.3,
        20,
    )


def test_any_setting_can_be_an_axis() -> None:
    plan = load_plan(StudySettings(plan="temperature", out="o"))
    found = {a.name: a.pretrain.pretext.temperature for a in plan.arms if a.pretrain}  # type: ignore[union-attr]
    assert found["simclr-cats-vs-dogs-temperature=0.1"] == 0.1
    assert sorted(found.values()) == [0.05, 0.1, 0.2, 0.5, 1.0]


def test_an_own_plan(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, OWN)
    assert [arm.name for arm in plan.arms] == ["scratch", "simclr-pool", "imagenet+simclr-pool"]
    assert len(list(plan.cells())) == 3 * 2 * 2
    assert [cell.repeat for cell in plan.cells()] == [0] * 6 + [1] * 6
    pretrain = plan.arms[1].pretrain
    assert pretrain is not None
    assert (pretrain.encoder, pretrain.size, pretrain.steps) == ("resnet18", 64, 5)


def test_flags_take_the_plan_s_place(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        OWN,
        pairs="other",
        masks=(8,),
        epochs=3,
        repeats=1,
        size=32,
        images="x/y",
        weights="w.pt",
    )
    assert (plan.pairs, plan.budgets, plan.repeats) == ("other", (8,), {8: 1})
    assert (plan.finetune.epochs, plan.finetune.steps, plan.finetune.size) == (3, None, 32)
    assert [arm.name for arm in plan.arms] == ["scratch", "simclr-y", "imagenet+simclr-y"]
    assert [arm.weights for arm in plan.arms] == [None, None, "w.pt"]


@pytest.mark.parametrize("name", [*plan_names(), "own"])
def test_the_plan_that_a_study_keeps_is_the_same_plan(tmp_path: Path, name: str) -> None:
    flags = {"masks": (8, 16), "size": 32, "weights": "w.pt", "targets": (0.8,), "test": "other"}
    settings = StudySettings(plan=name, out="o", **flags)  # type: ignore[arg-type]
    plan = plan_of(tmp_path, OWN, **flags) if name == "own" else load_plan(settings)
    again = plan_of(tmp_path, tomli_w.dumps(plan.entries))
    assert again == replace(plan, entries=again.entries)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("encoder =", "encodr =", "near: encoder"),
        ("steps = 10", "stepps = 10", r"\[finetune\] unknown key stepps; near: steps"),
        ("temperature", "temprature", "near: temperature"),
        ("budgets = [4, 0.5]", "budgets = [0]", "budget 0"),
        ("budgets = [4, 0.5]", "budgets = [1.5]", "budget 1.5"),
        ("budgets = [4, 0.5]", "budgets = 3", "expected a list"),
        ("repeats = 2", 'repeats = "two"', "repeats"),
        ("size = 64", 'size = "big"', "size big"),
        ('init = "imagenet"', "", "two arms are called simclr-pool"),
        ("repeats = 2", 'repeats = 2\nbaseline = "none"', "baseline none is no arm"),
        ('pairs = "labelled"', "", "pairs is missing"),
        ("size = 64", "size = = 64", "not valid TOML"),
        ('pairs = "labelled"', "pairs = 5", "pairs is 5; expected text"),
        ('pairs = "labelled"', 'pairs = "labelled"\ntest = "a"', "test a: expected a share"),
        ('pairs = "labelled"', 'pairs = "labelled"\ntest = 1.5', "test 1.5: expected a share"),
        (
            "[finetune]\nsteps = 10",
            "finetune = 5",
            r"finetune is 5; expected a table, \[finetune\]",
        ),
        ("budgets = [4, 0.5]", "budgets = [true]", "budget True; expected a fraction"),
        ("budgets = [4, 0.5]", "budgets = [nan]", "own.toml: budget nan; expected a fraction"),
        ("repeats = 2", "repeats = true", "repeats 4 = True"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, before: str, after: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan_of(tmp_path, OWN.replace(before, after))


@pytest.mark.parametrize("arms", ["5", "[5]", '"scratch"'])
def test_arms_that_are_no_tables_are_named(tmp_path: Path, arms: str) -> None:
    head = OWN.split("[finetune]", maxsplit=1)[0]
    with pytest.raises(UserError, match=r"arms is .*; expected tables, \[\[arms\]\]"):
        plan_of(tmp_path, f"{head}arms = {arms}\n")


def test_flags_for_masks_reach_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('pairs = "data"\nbudgets = [2]\narms = [{ init = "scratch" }]\n')
    plan = load_plan(
        StudySettings(
            plan=str(path), out="out", mask_values=(0, 255), classes=("ground, dry", "leaf")
        )
    )
    assert plan.mask_options.mask_values == (0, 255)
    assert plan.mask_options.classes == ("ground, dry", "leaf")
