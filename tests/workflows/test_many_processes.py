"""torchrun and srun (its variables: there is no srun here) on one machine, two processes, gloo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fewmask
from fewmask.checkpoint import read_weights

FEWMASK = [sys.executable, "-m", "fewmask"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
SMALL = ("--encoder", "resnet18", "--size", "32", "--steps", "2", "--batch-size", "4")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, "--master-port", str(free_port()), "-m", "fewmask", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def srun(*arguments: str, second: tuple[str, ...] | None = None) -> list[subprocess.Popen[str]]:
    """The processes that `srun --ntasks 2` would start; the second one may be told otherwise."""
    job = {
        "SLURM_JOB_ID": "4242",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NODEID": "0",
        "MASTER_PORT": str(free_port()),
    }
    return [
        subprocess.Popen(
            [*FEWMASK, *told],
            env={**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, told in enumerate((arguments, second or arguments))
    ]


def ends(processes: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Their exit codes, and all that they have said on standard error."""
    said = [process.communicate()[1] for process in processes]
    return [process.returncode for process in processes], "".join(said)


def rows_in(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def until_a_row(log: Path, beside: int = 0) -> None:
    """Wait until steps are made, beside those of the rows that are there."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and rows_in(log) <= beside:
        time.sleep(0.05)


@pytest.mark.timeout(900)
def test_torchrun_does_what_devices_2_does(
    write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    """pretrain; that finetune is shared the same way is what srun's processes are tried on."""
    pairs, product = write_pairs(8), "encoder.safetensors"
    told = ("--images", f"{pairs}/images", *SMALL)
    found = torchrun("pretrain", *told, "--out", str(tmp_path / "run"))
    assert found.returncode == 0, found.stderr
    assert found.stdout.count(product) == 1
    fewmask.pretrain(
        images=f"{pairs}/images", out=str(tmp_path / "two"), devices=2, device="cpu",
        encoder="resnet18", size=32, steps=2, batch_size=4,
    )  # fmt: skip
    run, two = (read_weights(tmp_path / name / product) for name in ("run", "two"))
    assert run.keys() == two.keys()
    assert all((run[name] == two[name]).all() for name in run)
    files = [{p.name for p in (tmp_path / name).iterdir()} for name in ("run", "two")]
    assert files[0] == files[1]


@pytest.mark.timeout(900)
def test_srun_s_processes_are_one_run(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    pairs, out = str(write_pairs(8)), tmp_path / "run"
    told = ("finetune", "--pairs", pairs, *SMALL, "--batch-size", "5", "--out", str(out))
    codes, said = ends(srun(*told))
    assert codes == [0, 0], said
    assert said.count("the encoder starts from scratch") == 1
    assert said.count("--batch-size 5 cannot be shared by 2 devices evenly; batches hold 4") == 1
    fewmask.finetune(
        pairs=pairs, out=str(tmp_path / "two"), devices=2, device="cpu", encoder="resnet18",
        size=32, steps=2, batch_size=5,
    )  # fmt: skip
    run, two = (read_weights(folder / "model.safetensors") for folder in (out, tmp_path / "two"))
    assert all((run[name] == two[name]).all() for name in run)
    codes, said = ends(srun(*told))  # finished: nothing is done again
    assert codes == [0, 0], said
    assert said.count("nothing is trained anew") == said.count("\n") == 1


@pytest.mark.timeout(900)
def test_a_mistake_is_told_once(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    pairs, out = str(write_pairs(8)), str(tmp_path / "run")
    wrong = ("finetune", "--pairs", str(tmp_path / "none"), *SMALL, "--out", out)
    found = torchrun(*wrong)
    assert found.stderr.count("no such folder") == 1
    assert found.returncode == 1  # torchrun's own; its report names the processes' 2
    assert "exitcode  : 2" in found.stderr
    right = ("finetune", "--pairs", pairs, *SMALL, "--out", out)
    for told, second, words in (
        (wrong, None, "no such folder"),
        ((*right, "--siz", "32"), None, "unknown argument --siz"),
        (("check", "--pairs", pairs), None, "only pretrain and finetune share their work"),
        (right, (*right, "--lr", "0.5"), "was started with other settings"),
        (right, (*right, "--device", "mps"), "torch sees none here"),
    ):
        codes, said = ends(srun(*told, second=second))
        assert codes == [2, 2], said
        assert said.count(words) == 1
        assert said.count("error: ") == 1
        assert "Traceback" not in said


@pytest.mark.timeout(900)
def test_when_one_process_dies_the_other_ends_and_the_run_goes_on_later(
    write_pairs: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWMASK_SAVE_SECONDS", "0")
    pairs, out = str(write_pairs(8)), tmp_path / "run"
    long = (*SMALL, "--steps", "400")
    told = ("finetune", "--pairs", pairs, *long, "--out", str(out))
    processes = srun(*told)
    until_a_row(out / "metrics.jsonl")
    other = subprocess.run([*FEWMASK, *told], capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert f"process {processes[0].pid} (" in other.stderr
    processes[1].send_signal(signal.SIGKILL)
    codes, said = ends(processes)
    assert codes[0] == 1, said
    assert codes[1] == -signal.SIGKILL
    assert "error: process 0 of 2: another process of this run was lost (" in said
    assert "Traceback" not in said
    assert not (out / "result.json").exists()
    assert not list(out.glob(".*.tmp"))
    processes = srun(*told)
    until_a_row(out / "metrics.jsonl", beside=rows_in(out / "metrics.jsonl"))
    for process in processes:
        process.send_signal(signal.SIGINT)
    codes, said = ends(processes)
    assert codes == [130, 130], said
    assert said.count("goes on from step") == 1, said
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


@pytest.mark.timeout(900)
def test_control_c_saves_and_is_told_once(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    pairs, out = str(write_pairs(8)), tmp_path / "run"
    told = ("finetune", "--pairs", pairs, *SMALL, "--steps", "400", "--out", str(out))
    processes = srun(*told)
    until_a_row(out / "metrics.jsonl")
    for process in processes:
        process.send_signal(signal.SIGINT)
    codes, said = ends(processes)
    assert codes == [130, 130], said
    assert said.count("interrupted; the same command again goes on from here") == 1
    assert "Traceback" not in said
    assert (out / "state.pt").exists()
