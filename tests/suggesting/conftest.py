"""Labelled discs, a pool with known copies of them, and a model fine-tuned on the discs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fewmask


def picture(number: int, height: int = 40, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A coloured disc on coarse noise uint8 [H,W,3], and its mask."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:height, :width]
    y, x = rng.uniform(0.3, 0.7, 2) * (height, width)
    mask = (rows - y) ** 2 + (columns - x) ** 2 < (0.25 * min(height, width)) ** 2
    coarse = rng.integers(0, 110, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    colour = rng.integers(60, 140, 3)
    return (coarse + colour * mask[..., None]).astype(np.uint8), mask.astype(np.uint8)


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """labelled/ holds six pairs; pool/ 20 new images, two copies of labelled ones, and one twice.

    pool/copy.png has the pixels of a labelled image, pool/near.jpg is one resized and compressed;
    pool/twice.png is pool/day_1/07.png again.
    """
    root = tmp_path_factory.mktemp("discs")
    for name in ("labelled/images", "labelled/masks", "pool/day_1", "pool/day_2"):
        (root / name).mkdir(parents=True)
    for i in range(6):
        image, mask = picture(i)
        Image.fromarray(image).save(root / f"labelled/images/{i}.png")
        Image.fromarray(mask).save(root / f"labelled/masks/{i}.png")
    for i in range(20):
        Image.fromarray(picture(100 + i)[0]).save(root / f"pool/day_{1 + i // 10}/{i:02}.png")
    Image.fromarray(picture(0)[0]).save(root / "pool/copy.png")
    Image.fromarray(picture(1)[0]).resize((72, 60)).save(root / "pool/near.jpg", quality=85)
    Image.fromarray(picture(107)[0]).save(root / "pool/twice.png")
    return root


@pytest.fixture(scope="session")
def run(discs: Path) -> Path:
    """A model fine-tuned on the six pairs, for two steps."""
    fewmask.finetune(
        pairs=str(discs / "labelled"),
        out=str(discs / "run"),
        encoder="resnet18",
        size=32,
        steps=2,
        batch_size=4,
    )
    return discs / "run"
