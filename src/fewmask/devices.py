"""Where the work is done: device, precision, processes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fewmask.types import UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def make_fabric(device: str, devices: int, precision: str) -> Fabric:
    """Lightning Fabric for a device, a number of processes and a precision.

    Raises UserError for a device that is not there.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    # It says on every start which precision it was told to use.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    device = pick_device(device).type
    if device == "cuda" and devices > torch.cuda.device_count():
        raise UserError(f"--devices {devices}: torch sees {torch.cuda.device_count()} GPUs")
    bf16 = precision == "bf16" or (precision == "auto" and computes_bf16(device))
    strategy: str | DDPStrategy = "auto"
    if devices > 1:
        # Some encoders have weights that no map depends on: EfficientNet's classifier stem.
        strategy = DDPStrategy(start_method="spawn", find_unused_parameters=True)
    return Fabric(
        accelerator=device,
        devices=devices,
        strategy=strategy,
        precision="bf16-mixed" if bf16 else "32-true",
    )


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
