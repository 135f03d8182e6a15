"""Where the work is done: device, precision, processes."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fewmask.ranks import Launch
from fewmask.types import UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def make_fabric(device: str, devices: int, precision: str, started: Launch | None = None) -> Fabric:
    """Lightning Fabric for a device, a number of processes and a precision.

    Of several machines, the processes are those that were `started` there. Raises UserError for a
    device that is not there.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.fabric.strategies.ddp import DDPStrategy

    # It says on every start which precision it was told to use.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    device = pick_device(device).type
    if started is not None:
        devices = _devices_of(started, devices)
    if device == "cuda" and devices > torch.cuda.device_count():
        what = f"--devices {devices}" if started is None else f"{started.by}: {devices} processes"
        raise UserError(
            f"{what} on {socket.gethostname()}: torch sees {torch.cuda.device_count()} GPUs"
        )
    bf16 = precision == "bf16" or (precision == "auto" and computes_bf16(device))
    strategy: str | DDPStrategy = "auto"
    # Named, since Fabric would take a SLURM job's batch script for one of several processes.
    environment: ClusterEnvironment = LightningEnvironment()
    if started is not None:
        # Every process would say that it is there.
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        environment = TorchElasticEnvironment()
        strategy = DDPStrategy(find_unused_parameters=True)
    elif devices > 1:
        # Some encoders have weights that no map depends on: EfficientNet's classifier stem.
        strategy = DDPStrategy(start_method="spawn", find_unused_parameters=True)
    return Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=1 if started is None else started.nodes,
        strategy=strategy,
        plugins=[environment],
        precision="bf16-mixed" if bf16 else "32-true",
    )


def _devices_of(started: Launch, devices: int) -> int:
    """The processes of each machine. Raises UserError where --devices says another number."""
    if devices not in (1, started.per_node):
        raise UserError(
            f"--devices {devices}: {started.by} has started {started.per_node} processes on each "
            "machine. Leave --devices out"
        )
    return started.per_node


def pick_device(device: str) -> torch.device:
    """The device of a flag. Raises UserError for one that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available()}
    there["mps"] = torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if there["cuda"] else "cpu")
    if device not in there:
        raise UserError(f"--device {device}: expected auto or one of {', '.join(there)}")
    if not there[device]:
        raise UserError(f"--device {device}: torch sees none here. Choose --device cpu")
    return torch.device(device)


def computes_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 natively (emulation is slower than float32)."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    flags = Path("/proc/cpuinfo")
    words = set(flags.read_text().split()) if flags.exists() else set()
    return bool(words & {"avx512_bf16", "amx_bf16"})
