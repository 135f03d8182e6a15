"""Flags, configuration files and their errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fewmask.cli import error_text, parse
from fewmask.flags import flat
from fewmask.pretext.simclr import SimCLR
from fewmask.settings import CheckSettings, FinetuneSettings, PredictSettings, StudySettings
from fewmask.types import UserError


def test_flags_reach_settings_and_component() -> None:
    settings = parse(
        "pretrain",
        [
            "--images",
            "a",
            "--out",
            "b",
            "--temperature",
            "0.1",
            "--hidden",
            "512,256",
            "--crop-min",
            "0.08",
            "--steps=7",
        ],
    )
    assert (settings.images, settings.steps) == ("a", 7)
    assert isinstance(settings.pretext, SimCLR)
    assert settings.pretext.temperature == 0.1
    assert settings.pretext.hidden == (512, 256)
    assert settings.pretext.views.crop_min == 0.08


def test_the_last_of_a_repeated_flag_counts_but_check_takes_every_pool() -> None:
    assert parse("finetune", ["--pairs", "a", "--pairs", "b", "--out", "c"]).pairs == "b"
    assert parse("check", ["--images", "a", "--images", "b"]).images == ("a", "b")


def test_a_flag_beats_the_file_which_beats_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('pairs = "p"\nbatch-size = 5\nlr = 1\nsteps = 9\n')
    settings = parse("finetune", ["--config", str(path), "--out", "o", "--lr", "0.5"]).resolved()
    assert (settings.pairs, settings.batch_size, settings.lr, settings.steps) == ("p", 5, 0.5, 9)
    assert settings.loss == "bce+dice"
    assert settings.epochs is None


def test_recipes_differ_as_documented() -> None:
    report = FinetuneSettings(pairs="p", out="o", recipe="report").resolved()
    assert (report.optimizer, report.lr, report.loss, report.epochs) == ("adam", 1e-4, "bce", 60)
    assert (report.augment, report.keep, report.steps) == (False, "best", None)
    assert FinetuneSettings(pairs="p", out="o", steps=3, recipe="report").resolved().epochs is None


def test_a_configuration_written_by_a_run_is_read_back() -> None:
    settings = parse("pretrain", ["--images", "a", "--out", "b", "--temperature", "0.3"])
    table = flat(settings)
    assert table["pretext"] == "simclr"
    assert table["temperature"] == 0.3
    assert table["ratio"] == [3 / 4, 4 / 3]


@pytest.mark.parametrize(
    ("command", "argv", "words"),
    [
        ("finetune", ["--out", "o"], ["--pairs is missing"]),
        ("finetune", ["--pairs", "a", "--out", "o", "--stpes", "3"], ["--stpes", "--steps"]),
        ("finetune", ["--pairs", "a", "--out", "o", "--steps", "x"], ["--steps x", "whole number"]),
        ("finetune", ["--pairs", "a", "--out", "o", "--recipe", "bst"], ["bst", "near: best"]),
        (
            "finetune",
            ["--pairs", "a", "--out", "o", "--steps", "2", "--epochs", "2"],
            ["choose one"],
        ),
        ("finetune", ["--pairs", "a", "--out", "o", "--size", "-4"], ["--size -4", "16 to 8192"]),
        ("finetune", ["--pairs", "a", "--out", "o", "--seed", "-1"], ["--seed -1"]),
        ("finetune", ["--pairs", "a", "--out", "o", "--warmup", "3"], ["--warmup 3", "0 to 1"]),
        ("finetune", ["--pairs", "a", "--out", "o", "--lr", "inf"], ["--lr inf"]),
        ("finetune", ["--pairs", "a", "--out", "o", "--batch-size", "1"], ["--batch-size 1"]),
        ("finetune", ["--pairs", "a", "--out", "o", "--dev", "1.5"], ["--dev 1.5"]),
        ("finetune", ["--pairs", "a", "--out", ""], ["--out: is empty"]),
        ("finetune", ["--pairs", "a", "--out", "o", "--steps", "9" * 10], ["up to a billion"]),
        ("finetune", ["--pairs", "a", "--out", "o", "--mask-values="], ["--mask-values: is empty"]),
        ("pretrain", ["--images", "a", "--out", "o", "--projection", "9" * 20], ["up to 92233"]),
        ("study", ["quick", "--out", "o", "--dev="], ["--dev: is empty"]),
        ("study", ["quick", "--out", "o", "--repeats", "1001"], ["--repeats 1001", "1 to 1000"]),
        ("pretrain", ["--images", "a", "--out", "o", "--hidden", "0"], ["--hidden"]),
        ("pretrain", ["--images", "a", "--out", "o", "--ratio", "3"], ["--ratio"]),
        ("pretrain", ["--images", "a", "--out", "o", "--pretext", "simcl"], ["simcl", "simclr"]),
        ("pretrain", ["--images", "a", "--out", "o", "--config", "none.toml"], ["none.toml"]),
        ("study", ["--out", "o"], ["PLAN is missing"]),
        ("study", ["quick", "--out"], ["--out", "expected one argument"]),
    ],
)
def test_mistakes_are_one_line_each(command: str, argv: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        parse(command, argv)
    text = error_text(raised.value)
    assert text.startswith("error: ")
    assert "\n" not in text
    for word in words:
        assert word in text


def test_python_arguments_pass_the_same_checks() -> None:
    with pytest.raises(UserError, match="--size 'big': expected int"):
        FinetuneSettings(pairs="a", out="o", size="big")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--masks 2\.5"):
        FinetuneSettings(pairs="a", out="o", masks=2.5)  # type: ignore[arg-type]
    settings = FinetuneSettings(pairs=Path("a/"), out="o/", lr=1)  # type: ignore[arg-type]
    assert (settings.pairs, settings.out, settings.lr) == ("a", "o", 1.0)
    one = PredictSettings(run="r", paths="a.png", out="o")  # type: ignore[arg-type]
    assert one.paths == ("a.png",)


def test_every_wrong_key_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('pairs = "p"\nbatchsize = 5\nsteps = "many"\n')
    with pytest.raises(UserError) as raised:
        parse("finetune", ["--config", str(path), "--out", "o"])
    assert error_text(raised.value).startswith("error: 2 faults\n")
    assert "near: batch_size" in str(raised.value)
    assert "steps many" in str(raised.value)


def test_an_empty_path_is_a_slip_not_the_folder_that_one_is_in() -> None:
    for words in ({"images": ""}, {"pairs": ""}, {"images": ("a", "")}):
        with pytest.raises(UserError, match=r"--(images|pairs): is empty; expected a path"):
            CheckSettings(**words)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pairs = 3", "pairs is 3; expected a text, in quotes"),
        ('pairs = ["d"]', "pairs is ['d']; expected a text, in quotes"),
        ("lr = [0.1]", "lr is [0.1]; expected one value"),
        ("steps = {a = 1}", "steps is {'a': 1}; expected one value"),
        ('classes = ["a", ["b"]]', "classes is ['b']; expected a text, in quotes"),
        (f"seed = {'9' * 5000}", "not valid TOML"),
        (f"seed = {'9' * 20}", "expected a whole number up to 9223372036854775807"),
        ("steps = true", "steps True: expected a whole number"),
    ],
    ids=lambda text: text[:12],
)
def test_values_of_another_kind_are_named_with_file_and_key(
    line: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"{line}\n")
    with pytest.raises(UserError) as raised:
        parse("finetune", ["--config", str(path), "--out", "o"])
    assert error_text(raised.value).startswith(f"error: {path}: ")
    assert said in str(raised.value)


def test_arrays_are_tuples() -> None:
    settings = StudySettings(plan="quick", out="o", targets=np.array([0.5, 0.75]))  # type: ignore[arg-type]
    assert settings.targets == (0.5, 0.75)
    with pytest.raises(UserError, match="--targets: is empty"):
        StudySettings(plan="quick", out="o", targets=np.array([]))  # type: ignore[arg-type]


def test_weights_of_classes_may_stand_in_a_list(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('pairs = "p"\nclass-weights = [1, "2.5"]\nclasses = ["a, b", "c"]\n')
    settings = parse("finetune", ["--config", str(path), "--out", "o"])
    assert settings.class_weights == "1,2.5"
    assert settings.classes == ("a, b", "c")
