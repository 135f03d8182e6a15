"""Two processes leave the weights that one leaves, where no layer looks at the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fewmask
from fewmask.checkpoint import read_weights
from fewmask.decoders.unet_original import UNetOriginal


def close(one: Path, two: Path, tolerance: float) -> None:
    first, second = read_weights(one), read_weights(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fine_tuning_with_unevenly_ignored_pixels(
    write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = write_pairs(10)
    for i, path in enumerate(sorted((pairs / "masks").iterdir())):
        mask = np.asarray(Image.open(path)).copy()
        mask[5 * i :] = 255  # of some pictures nearly all
        Image.fromarray(mask).save(path)
    for devices in (1, 2):
        fewmask.finetune(
            pairs=str(pairs), out=str(tmp_path / str(devices)), devices=devices, device="cpu",
            encoder="unet-original", decoder=UNetOriginal(dropout=0.0), size=32, steps=3,
            batch_size=4, ignore=255, precision="32", optimizer="sgd", lr=0.01, loss="bce+dice",
        )  # fmt: skip
    close(
        tmp_path / "1" / "model.safetensors", tmp_path / "2" / "model.safetensors", tolerance=1e-4
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pre_training(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    images = write_pairs(8) / "images"
    for devices in (1, 2):
        fewmask.pretrain(
            images=str(images), out=str(tmp_path / str(devices)), devices=devices, device="cpu",
            encoder="vgg11", pretext="simclr", size=64, steps=2, batch_size=4, precision="32",
            optimizer="sgd", lr=0.01,
        )  # fmt: skip
    close(
        tmp_path / "1" / "encoder.safetensors",
        tmp_path / "2" / "encoder.safetensors",
        tolerance=1e-4,
    )
