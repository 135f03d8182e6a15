"""Whole studies, judged by the files they leave; killed ones too."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fewmask
from fewmask.data.loader import Stream
from fewmask.studies.record import COLUMNS
from fewmask.types import Batch, UserError

PLAN = """
pairs = "{pairs}"
encoder = "resnet18"
size = 32
budgets = [4, 0.8]
repeats = 2
[finetune]
steps = {steps}
batch_size = 4
[pretrain]
steps = {steps}
batch_size = 8
[[arms]]
init = "scratch"
[[arms]]
images = "{pairs}/images"
"""


@pytest.fixture
def plan(tmp_path: Path, write_pairs: Callable[..., Path]) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(pairs=write_pairs(12), steps=3))
    return path


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("seconds")
    return rows


def test_a_study_leaves_what_the_design_says(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = fewmask.study(plan=str(plan), out=str(out))
    assert result.page == out / "report.html"
    for name in ("splits.json", "results.csv", "table.md", "report.html"):
        assert (out / name).stat().st_size > 0
    assert list((out / "figures").glob("*.png"))
    with (out / "results.csv").open() as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    rows = rows_of(out)
    assert len(rows) == len(list((out / "cells").iterdir())) == 8
    assert {row["status"] for row in rows} == {"done"}
    assert {row["arm"] for row in rows} == {"scratch", "simclr-images"}
    assert len(list((out / "encoders").iterdir())) == 1
    small, large = rows[0], rows[2]
    assert (small["budget"], small["n_train"], small["n_val"], small["n_test"]) == (
        "4",
        "3",
        "1",
        "2",
    )
    assert (large["budget"], large["n_train"], large["n_val"]) == ("0.8", "9", "1")
    assert len({row["seed"] for row in rows}) == 2
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)


def test_a_finished_study_does_nothing_again(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    fewmask.study(plan=str(plan), out=str(out))
    before = rows_of(out)
    for path in [*out.rglob("*.safetensors"), *out.rglob("metrics.jsonl")]:
        path.unlink()  # what is not committed is not there on another machine

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr("fewmask.workflows.train", never)
    monkeypatch.setattr("fewmask.workflows.pretrain", never)
    fewmask.study(plan=str(plan), out=str(out))
    assert rows_of(out) == before

    cell = sorted(out.glob("cells/*/result.json"))[0]
    told = json.loads(cell.read_text())
    del told["checksum"]  # what follows is changed on purpose
    cell.write_text(json.dumps(told | {"n_train": "\\n"}))  # the plan knows it, not the cell
    fewmask.study(plan=str(plan), out=str(out))
    assert rows_of(out) == before
    without = {name: value for name, value in told.items() if name != "iou"}
    damaged = (told | {"iou": "high"}, told | {"f1": True}, told | {"seconds": None},
               told | {"recall": math.nan}, without)  # fmt: skip
    for one in damaged:
        cell.write_text(json.dumps(one))
        with pytest.raises(UserError, match=r"result\.json: damaged .*Remove its folder"):
            fewmask.study(plan=str(plan), out=str(out))


def test_a_study_whose_data_changed_is_refused(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fewmask.study(plan=str(plan), out=str(out), masks=(2,), repeats=1)
    image = next((tmp_path / "pairs" / "images").iterdir())
    other = sorted((tmp_path / "pairs" / "images").iterdir())[-1]
    image.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="Choose another --out"):
        fewmask.study(plan=str(plan), out=str(out), masks=(2,), repeats=1)


def test_a_folder_that_is_no_study_is_refused(plan: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no study folder"):
        fewmask.study(plan=str(plan), out=str(tmp_path / "full"))
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_a_killed_study_ends_in_the_same_results(
    tmp_path: Path, write_pairs: Callable[..., Path]
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(pairs=write_pairs(12), steps=6))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fewmask.study(plan=str(plan), out=str(whole))
    command = [sys.executable, "-m", "fewmask", "study", str(plan), "--out", str(cut)]
    # Before any cell is done, and half-way; the kill within a cell is the next test's.
    for kill_after_cells in (0, 4):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            done = len(list(cut.glob("cells/*/result.json")))
            begun = len(list(cut.glob("cells/*"))) + len(list(cut.glob("encoders/*")))
            if done >= kill_after_cells and begun > done:
                break
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished = {p: p.stat().st_mtime_ns for p in cut.glob("cells/*/result.json")}
    assert finished
    fewmask.study(plan=str(plan), out=str(cut))
    assert rows_of(cut) == rows_of(whole)
    for path, written in finished.items():
        assert path.stat().st_mtime_ns == written, "a finished cell was run again"


def test_a_cell_killed_half_way_goes_on_from_there(
    tmp_path: Path, write_pairs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "plan.toml"
    text = PLAN.format(pairs=write_pairs(12), steps=30).replace(
        "budgets = [4, 0.8]", "budgets = [4]"
    )
    plan.write_text(text.replace("repeats = 2", "repeats = 1"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fewmask.study(plan=str(plan), out=str(whole))
    command = [sys.executable, "-m", "fewmask", "study", str(plan), "--out", str(cut)]
    often = {**os.environ, "FEWMASK_SAVE_SECONDS": "0"}
    # Once within the first cell, once within the pre-training of the second.
    for part in ("cells", "encoders"):
        process = subprocess.Popen(
            command, env=often, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if max(steps_logged(cut / part), default=0) >= 10:
                break
            time.sleep(0.01)
        process.kill()
        process.wait()
        reached = max(steps_logged(cut / part))
        assert 10 <= reached < 30, "killed too late: nothing was under way"
    begun: list[int] = []
    read = Stream.at

    def at(stream: Stream, step: int) -> Batch:
        begun.append(step)
        return read(stream, step)

    monkeypatch.setattr(Stream, "at", at)
    fewmask.study(plan=str(plan), out=str(cut))
    # A row is written before the state is: one step may be made again, no more.
    assert begun[0] >= reached - 1
    assert rows_of(cut) == rows_of(whole)
    logs = [sorted((out / "cells").glob("scratch*/metrics.jsonl")) for out in (whole, cut)]
    steps = [[json.loads(line)["step"] for line in log[0].read_text().splitlines()] for log in logs]
    assert steps[0] == steps[1] == list(range(1, 31))


def steps_logged(folder: Path) -> list[int]:
    """The last step in the log of each run below a folder."""
    found = []
    for log in folder.glob("*/metrics.jsonl"):
        lines = log.read_text().splitlines()
        if lines and lines[-1].endswith("}"):
            found.append(json.loads(lines[-1])["step"])
    return found


def test_budgets_nest_and_the_test_set_is_fixed(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fewmask.study(plan=str(plan), out=str(out))
    test = set(json.loads((out / "splits.json").read_text())["test"])
    parts = {}
    for path in out.glob("cells/*/result.json"):
        result = json.loads(path.read_text())
        split = json.loads((path.parent / "split.json").read_text())
        names = {part: {e["name"] for e in split[part]} for part in ("train", "val")}
        assert not test & (names["train"] | names["val"])
        parts[result["arm"], result["budget"], result["repeat"]] = names
    for repeat in (0, 1):
        small, large = parts["scratch", 4, repeat], parts["scratch", 0.8, repeat]
        assert small["train"] < large["train"]
        assert small["val"] <= large["val"]
        assert small == parts["simclr-images", 4, repeat]
    assert parts["scratch", 4, 0] != parts["scratch", 4, 1]
