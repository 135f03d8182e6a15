"""Who a process is among those that torchrun or srun has started, and what is no launch at all."""

from __future__ import annotations

import os

import pytest

from fewmask.ranks import AlreadyTold, forget, launched, refuse_many, told_by_the_first
from fewmask.types import UserError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "node07",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in TORCHRUN or name.startswith("SLURM_"):
            monkeypatch.delenv(name)


def setenv(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("by", ["torchrun", "srun"])
def test_the_launcher_s_variables_are_read(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, TORCHRUN if by == "torchrun" else SRUN)
    started = launched()
    assert started is not None
    assert (started.by, started.rank, started.size) == (by, 5, 8)
    assert (started.local_rank, started.node, started.nodes, started.per_node) == (1, 1, 2, 4)
    assert not started.first
    assert started.address == "node07"
    assert started.port == (29500 if by == "torchrun" else 15000 + 4567)


@pytest.mark.parametrize(
    ("listed", "first"),
    [("gpu3", "gpu3"), ("gpu[3-5,9],cpu1", "gpu3"), ("a1,a2", "a1"), ("x[007]", "x007")],
)
def test_the_first_machine_of_a_job_is_the_meeting_place(
    listed: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setenv(monkeypatch, SRUN | {"SLURM_STEP_NODELIST": listed})
    started = launched()
    assert started is not None
    assert started.address == first


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1"},
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        # A batch script in a job of several tasks, outside any srun.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        SRUN | {"SLURM_JOB_NAME": "interactive"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_stray_variables_are_no_launch(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    setenv(monkeypatch, variables)
    assert launched() is None
    refuse_many("a study")


def test_torchrun_within_srun_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, SRUN | {"SLURM_STEP_NUM_TASKS": "2"} | TORCHRUN)
    started = launched()
    assert started is not None
    assert started.by == "torchrun"


def test_what_was_started_for_another_program_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, SRUN)
    forget()
    assert launched() is None


def test_unequal_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, SRUN | {"SLURM_STEP_NUM_TASKS": "7"})
    started = launched()
    assert started is not None
    with pytest.raises(UserError, match="7 processes on 2 machines"):
        _ = started.per_node


def test_only_the_first_tells_a_mistake_that_all_make(monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, TORCHRUN)
    with pytest.raises(AlreadyTold), told_by_the_first():
        raise UserError("wrong")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError) as raised, told_by_the_first():
        raise UserError("wrong")
    assert not isinstance(raised.value, AlreadyTold)


def test_what_one_process_does_is_refused_to_several(monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, TORCHRUN)
    with pytest.raises(UserError, match="torchrun has started 8 processes, and a study is for one"):
        refuse_many("a study")
