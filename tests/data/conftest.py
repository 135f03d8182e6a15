"""Small files to open: pictures of every layout."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def png(seed: int, height: int = 12, width: int = 16) -> bytes:
    """A picture of its own, encoded."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """Writes a random picture under a path, its folders as well; the seed makes it its own."""

    def write(path: Path, seed: int = 0, height: int = 12, width: int = 16) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed, height, width))
        return path

    return write


@pytest.fixture
def write_mask() -> Callable[..., Path]:
    """Writes an array (or a constant) as a grey PNG."""

    def write(path: Path, values: Any = 0, height: int = 12, width: int = 16) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.broadcast_to(np.asarray(values, np.uint8), (height, width))
        Image.fromarray(np.ascontiguousarray(array)).save(path)
        return path

    return write


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """Writes encoded pictures as Hugging Face does: a struct of bytes and path, and a label."""

    def write(path: Path, column: str, seeds: list[int], label: str = "label") -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"bytes": png(seed), "path": f"{seed}.png"} for seed in seeds]
        labels = [seed % 2 for seed in seeds]
        pq.write_table(pa.table({column: rows, label: labels}), path, row_group_size=2)
        return path

    return write
