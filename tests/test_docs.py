"""What the documents say runs: every command of the README parses, its plan loads, examples run."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import fewmask
from fewmask.cli import COMMANDS, parse
from fewmask.decoders import DECODERS
from fewmask.files import faults_of
from fewmask.pretext import PRETEXTS
from fewmask.settings import StudySettings
from fewmask.studies.grid import load_plan

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


LINES = [
    line
    for block in blocks("sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("fewmask ")
]


def test_the_readme_shows_the_main_commands() -> None:
    shown = {line.split()[1] for line in LINES}
    assert (
        {"check", "pretrain", "finetune", "evaluate", "predict", "study"} <= shown <= set(COMMANDS)
    )


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_the_readme_parses(line: str) -> None:
    _, command, *arguments = shlex.split(line, comments=True)
    assert faults_of(lambda: parse(command, arguments), "README.md") == ()


def test_the_readme_s_plan_loads(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(blocks("toml")[0])
    plan = load_plan(StudySettings(plan=str(path), out="o"))
    assert [arm.name for arm in plan.arms] == ["scratch", "imagenet", "imagenet+simclr-my-photos"]


def test_the_readme_s_python_compiles() -> None:
    """And its calls are those of functions that there are, by the names of their settings."""
    called: dict[str, set[str | None]] = {}
    for block in blocks("python"):
        compile(block, "README.md", "exec")
        for call in ast.walk(ast.parse(block)):
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("fewmask."):
                keywords = {keyword.arg for keyword in call.keywords}
                called.setdefault(ast.unparse(call.func), set()).update(keywords)
    assert {"fewmask.finetune", "fewmask.evaluate"} <= called.keys()
    for name, keywords in called.items():
        function = getattr(fewmask, name.removeprefix("fewmask."), None)
        assert callable(function), name
        assert keywords <= inspect.signature(function).parameters.keys(), name


METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*PRETEXTS, *DECODERS])
def test_every_method_has_its_row(name: str) -> None:
    rows = [line for line in METHODS.splitlines() if line.startswith("|")]
    assert any(f"`{name}" in line.split("|")[1] for line in rows)


def test_the_tests_that_pin_the_methods_are_there() -> None:
    names = set(re.findall(r"`([\w/]*test_\w+\.py)`", METHODS))
    assert len(names) > 10
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert {Path(name).name for name in names} <= there


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path / "out")])
    runpy.run_path(str(path), run_name="__main__")
    assert (tmp_path / "out" / "smp" / "config.json").exists()
