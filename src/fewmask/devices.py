"""Where the work is done: device, precision, processes."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fewmask.ranks import Launch
from fewmask.types import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_CPUS = Path("/proc/cpuinfo")


def make_fabric(device: str, devices: int, precision: str, started: Launch | None = None) -> Fabric:
    """Lightning Fabric for a device, a number of processes and a precision.

    Of several machines, the processes are those that were `started` there. Raises UserError for a
    device that is not there.
    """
    with without("torchmetrics"):
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
        from lightning_fabric.plugins.environments.lightning import LightningEnvironment
        from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

        from fewmask.ranks.quiet import QuietDDP

    # It says on every start which precision it was told to use.
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    device = pick_device(device).type
    if started is not None:
        devices = _devices_of(started, devices)
    if device == "cuda" and devices > torch.cuda.device_count():
        what = f"--devices {devices}" if started is None else f"{started.by}: {devices} processes"
        raise UserError(
            f"{what} on {socket.gethostname()}: torch sees {torch.cuda.device_count()} GPUs"
        )
    bf16 = precision == "bf16" or (precision == "auto" and computes_bf16(device))
    strategy: str | QuietDDP = "auto"
    # Named, since Fabric would take a SLURM job's batch script for one of several processes.
    environment: ClusterEnvironment = LightningEnvironment()
    if started is not None:
        environment = TorchElasticEnvironment()
        strategy = QuietDDP(find_unused_parameters=True)
    elif devices > 1:
        # Some encoders have weights that no map depends on: EfficientNet's classifier stem. Where
        # all are used, torch warns from C++ that the flag is needless, and without a name server it
        # warns of that; the processes that are spawned read this when they import torch.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        strategy = QuietDDP(start_method="spawn", find_unused_parameters=True)
    return Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=1 if started is None else started.nodes,
        strategy=strategy,
        plugins=[environment],
        precision="bf16-mixed" if bf16 else "32-true",
    )


@contextmanager
def without(package: str) -> Iterator[None]:
    """A block that imports what would import a package only to ask for its version.

    Of torchmetrics that costs four seconds. Fabric asks for a callback that is not used here (its
    SpikeDetection, which then says in this process that torchmetrics is missing).
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment] # an import of it fails
    try:
        yield
    finally:
        del sys.modules[package]


def _devices_of(started: Launch, devices: int) -> int:
    """The processes of each machine. Raises UserError where --devices says another number."""
    if devices not in (1, started.per_node):
        raise UserError(
            f"--devices {devices}: {started.by} has started {started.per_node} processes on each "
            "machine. Leave --devices out"
        )
    return started.per_node


def pick_device(device: str) -> torch.device:
    """The device of a flag; on a CPU freed memory is kept. Raises UserError for one that is not
    there."""
    chosen = _picked(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    return chosen


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of malloc.h
BLOCKS = (1 << 30, 1 << 25)
"""Bytes up to which a block is kept: the second is the most that older versions of glibc allow."""
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Have glibc keep large blocks for the next step instead of giving them back to the system.

    Each step's maps are as large as the last one's; got anew they are zeroed page by page, which
    was 6 to 11 % of the time of a step, and more of a prediction. It holds for the whole process:
    of what was freed, 1 GiB at the end of the heap, and all that lies below what is still in use,
    stays with it. Does nothing where there is another malloc.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        # Any threshold ends glibc's own adapting of them, so the one without the other would harm.
        if any(mallopt(MMAP_THRESHOLD, most) for most in BLOCKS):
            mallopt(TRIM_THRESHOLD, KEPT_BYTES)


def _picked(device: str) -> torch.device:
    there = {"cpu": True, "cuda": torch.cuda.is_available()}
    there["mps"] = torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if there["cuda"] else "cpu")
    if device not in there:
        raise UserError(f"--device {device}: expected auto or one of {', '.join(there)}")
    if not there[device]:
        raise UserError(f"--device {device}: torch sees none here. Choose --device cpu")
    return torch.device(device)


def processor() -> str:
    """The processor's name and the units that PyTorch's kernels are chosen by: "AMD EPYC (AVX512,
    bf16)". One name may stand for several generations, which differ in the last bits.
    """
    name = _told_by_linux("model name")
    units = [torch.backends.cpu.get_cpu_capability(), *["bf16"] * computes_bf16("cpu")]
    return f"{name or platform.processor() or platform.machine()} ({', '.join(units)})"


def computes_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 natively (emulation is slower than float32)."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    return bool({*_told_by_linux("flags").split()} & {"avx512_bf16", "amx_bf16"})


def _told_by_linux(key: str) -> str:
    """What /proc/cpuinfo says of the first processor; empty where it says nothing."""
    with suppress(OSError):
        for line in _CPUS.read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""
