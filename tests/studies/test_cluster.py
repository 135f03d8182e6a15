"""Studies on a Ray cluster (here: of this machine's cores) leave what local ones leave."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import fewmask
from fewmask.runs import _holder
from fewmask.settings import StudySettings
from fewmask.studies import cluster
from fewmask.types import UserError

pytestmark = pytest.mark.xdist_group("cluster")  # what they share is made once

PLAN = """
pairs = "{pairs}"
encoder = "resnet18"
size = 32
budgets = [4]
repeats = 2
[finetune]
steps = {steps}
batch_size = 4
[pretrain]
steps = 2
batch_size = 8
[[arms]]
init = "scratch"
[[arms]]
images = "{pairs}/images"
"""


@pytest.fixture(scope="module")
def two_cores() -> Iterator[None]:
    """One small cluster for all tests of this file; its workers save their state at every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("FEWMASK_SAVE_SECONDS", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        import ray

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def plan(tmp_path: Path, write_pairs: Callable[..., Path]) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(pairs=write_pairs(12), steps=2))
    return path


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def results_of(out: Path) -> dict[str, Any]:
    """All that result.json says of every cell, but how long it took."""
    found = {}
    for path in out.glob("cells/*/result.json"):
        table = json.loads(path.read_text())
        if table["transfer"]:
            table["transfer"]["source"] = Path(table["transfer"]["source"]).name
        del table["seconds"], table["checksum"]  # which the seconds are part of
        found[path.parent.name] = table
    return found


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("two_cores")
def test_ray_leaves_what_local_leaves(
    plan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags: dict[str, Any] = {"plan": str(plan), "until_decided": True, "most_repeats": 3}
    fewmask.study(out=str(tmp_path / "local"), **flags)
    capfd.readouterr()
    fewmask.study(out=str(tmp_path / "ray"), executor="ray", **flags)
    said = capfd.readouterr().err
    local, ray = results_of(tmp_path / "local"), results_of(tmp_path / "ray")
    assert len(ray) > 4, "nothing was added: --until-decided was not tried"
    assert ray == local
    assert rows_of(tmp_path / "ray") == rows_of(tmp_path / "local")
    assert {row["status"] for row in rows_of(tmp_path / "ray")} == {"done"}
    assert (tmp_path / "ray" / "report.html").exists()
    assert not list((tmp_path / "ray").glob(".*"))
    assert said.count("pre-training simclr-images\n") == 1
    assert "5 of 5 done, on " in said
    assert "warning: --batch-size 4 is more than the 3 training pairs there are" in said


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("two_cores")
def test_a_lost_worker_s_cell_goes_on_elsewhere(plan: Path, tmp_path: Path) -> None:
    only = "[[arms]]\ninit"
    text = plan.read_text().replace("steps = 2\nbatch_size = 4", "steps = 12\nbatch_size = 4")
    plan.write_text(
        text[: text.index(only)].replace("repeats = 2", "repeats = 1") + f"{only} = 'scratch'\n"
    )
    local, ray = tmp_path / "local", tmp_path / "ray"
    fewmask.study(plan=str(plan), out=str(local))
    killed: list[list[dict[str, Any]]] = []

    def kill() -> None:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            for log in ray.glob("cells/*/metrics.jsonl"):
                rows = [json.loads(line) for line in log.read_text().splitlines()]
                if len(rows) >= 4:
                    os.kill(holder(log.parent), signal.SIGKILL)
                    killed.append(rows)
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    fewmask.study(plan=str(plan), out=str(ray), executor="ray")
    killer.join()
    assert rows_of(ray) == rows_of(local)
    assert killed
    assert len(killed[0]) < 12, "killed too late: nothing was under way"
    log = next(ray.glob("cells/*/metrics.jsonl")).read_text().splitlines()
    # Rows hold their speed, so these would be others if the cell had begun anew.
    assert [json.loads(line) for line in log][:3] == killed[0][:3]
    assert len(log) == 12


def holder(folder: Path) -> int:
    """The id of the process that holds a folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        return int(_holder(opened).split()[1])
    finally:
        os.close(opened)


@pytest.mark.usefixtures("two_cores")
def test_a_mistake_in_a_worker_is_the_user_s_own(plan: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"became not finite .*Lower --lr"):
        fewmask.study(plan=str(plan), out=str(tmp_path / "out"), executor="ray", lr=1e30)
    assert not list(tmp_path.glob("out/cells/*/result.json"))


@pytest.mark.usefixtures("two_cores")
def test_a_folder_that_workers_do_not_see_is_refused(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(path: Path, text: str) -> None:
        path.write_text(f"not {text}")

    monkeypatch.setattr(cluster, "write_text_atomic", elsewhere)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=f"^{out}: is not seen on .*, or is another folder there"):
        fewmask.study(plan=str(plan), out=str(out), executor="ray")
    assert not (out / "cells").exists()


@pytest.mark.usefixtures("two_cores")
def test_more_than_any_machine_has_is_refused_at_once(plan: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a cell asks for 4096 CPUs, and none of the cluster's 1"):
        fewmask.study(plan=str(plan), out=str(tmp_path / "out"), executor="ray", cpus_per_cell=4096)
    with pytest.raises(UserError, match="--device mps: with --executor ray expected"):
        fewmask.study(plan=str(plan), out=str(tmp_path / "out"), executor="ray", device="mps")
    assert not (tmp_path / "out").exists()


def test_ray_that_is_missing_is_named(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'pip install "fewmask\[cluster\]"'):
        fewmask.study(plan=str(plan), out=str(tmp_path / "out"), executor="ray")


def test_what_is_no_cluster_is_named(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--cpus-per-cell 2 goes with --executor ray"):
        StudySettings(plan="paper", out="o", cpus_per_cell=2)
    assert "executor" in {field.name for field in fields(StudySettings)}
    monkeypatch.setattr(cluster.import_module("ray"), "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UserError, match="Ray's client is not supported"):
        fewmask.study(plan=str(plan), out=str(tmp_path / "out"), executor="ray")


@pytest.mark.timeout(900)
def test_control_c_keeps_what_is_there(tmp_path: Path, write_pairs: Callable[..., Path]) -> None:
    path, out = tmp_path / "plan.toml", tmp_path / "out"
    path.write_text(PLAN.format(pairs=write_pairs(12), steps=1000))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fewmask",
            "study",
            str(path),
            "--out",
            str(out),
            "--executor",
            "ray",
        ],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    )
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        logs = list(out.glob("cells/*/metrics.jsonl"))
        if any(len(log.read_text().splitlines()) >= 2 for log in logs):
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    try:
        _, said = process.communicate(timeout=300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 130, said
    assert "they save where they are" in said
    assert "the same command again goes on from here" in said
    assert "Traceback" not in said
    assert list(out.glob("cells/*/state.pt"))
    assert not list(out.glob(".*.tmp"))
