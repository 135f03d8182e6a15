"""What holds for all tests: quiet libraries, no downloads, small pairs to train on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before any test imports torch, matplotlib or the hub. The workers share the cores between them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def _no_reports() -> None:
    """OpenVINO and NNCF report their use over the network unless this package is missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the user's cache; those of one worker share one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWMASK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture
def write_pairs(tmp_path: Path) -> Callable[..., Path]:
    """Writes a pairs folder: bright discs (class 1) on dark noise, file stems pair_00, pair_01."""

    def write(n: int = 6, height: int = 40, width: int = 48, *, name: str = "pairs") -> Path:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        rows, columns = np.mgrid[:height, :width]
        for i in range(n):
            rng = np.random.default_rng(i)
            y, x = rng.uniform(0.3, 0.7, 2) * (height, width)
            mask = (rows - y) ** 2 + (columns - x) ** 2 < (0.25 * min(height, width)) ** 2
            noise = rng.integers(0, 80, (height, width, 3))
            image = (noise + 140 * mask[..., None]).astype(np.uint8)
            Image.fromarray(image).save(folder / "images" / f"pair_{i:02}.png")
            Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"pair_{i:02}.png")
        return folder

    return write
