"""What a pre-training run looks at: the collapse alarm, and the dense probe."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fewmask
from fewmask.augment import normalise, to_unit
from fewmask.checkpoint import read_weights
from fewmask.pretext import Pool, PretextModule
from fewmask.pretext.contract import pooled
from fewmask.types import Batch, UserError
from fewmask.workflows.watching import collapse

SMALL: dict[str, Any] = {"encoder": "resnet18", "size": 32, "batch_size": 8}


@dataclass(frozen=True)
class Shrink:
    """A task whose best answer is the same for every picture: features of length 0."""

    name: ClassVar[str] = "shrink"

    def task(self, encoder: nn.Module, size: int, pool: Pool) -> ShrinkTask:
        return ShrinkTask(encoder)


class ShrinkTask(PretextModule):
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"norm": pooled(self.encoder, normalise(to_unit(batch.images))).norm(dim=1).mean()}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """24 pictures, each of a few smooth colours of its own."""
    folder = tmp_path / "pool"
    folder.mkdir()
    for i in range(24):
        coarse = np.random.default_rng(i).integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((40, 40)).save(folder / f"{i:02}.png")
    return folder


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_collapse_is_told_once_and_a_healthy_run_isn_t_accused(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {**SMALL, "images": str(pool), "steps": 12, "schedule": "constant", "warmup": 0.0}
    fewmask.pretrain(out=str(tmp_path / "a"), pretext=Shrink(), lr=3e-3, **chosen)  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert said.count("the features have collapsed") == 1
    assert "Lower --lr" in said
    fewmask.pretrain(out=str(tmp_path / "b"), lr=1e-4, **chosen)
    assert "collapsed" not in capsys.readouterr().err
    ranks = {
        name: [row["effective_rank"] for row in rows_of(tmp_path / name)] for name in ("a", "b")
    }
    start = json.loads((tmp_path / "a" / "result.json").read_text())["start"]["effective_rank"]
    assert min(ranks["a"]) < 0.1 * start < 0.3 * start < min(ranks["b"])


def test_a_run_that_learnt_nothing_says_so_and_so_does_what_starts_from_it(
    tmp_path: Path, write_pairs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    grey, run = tmp_path / "grey", tmp_path / "run"
    grey.mkdir()
    for i in range(6):
        values = np.random.default_rng(i).integers(0, 256, (40, 40)).astype(np.uint8)
        Image.fromarray(values).save(grey / f"{i}.png")
    result = fewmask.pretrain(images=str(grey), out=str(run), pretext="colorize", steps=4, **SMALL)
    coloured, unmoved = result.warnings
    assert coloured.startswith("0 % of the last batch is coloured")
    assert unmoved == "the encoder has not moved from its start: nothing was learnt"
    assert capsys.readouterr().err.count("warning: at step 1 0 % of the last batch") == 1
    again = fewmask.pretrain(images=str(grey), out=str(run), pretext="colorize", steps=4, **SMALL)
    assert again == result
    assert f"{run}: was finished before" in capsys.readouterr().err
    fewmask.finetune(
        pairs=str(write_pairs(6)), init=str(run), size=32, steps=1, out=str(tmp_path / "f")
    )
    assert f"warning: {run}: {unmoved}" in capsys.readouterr().err


def test_an_encoder_that_diverged_is_told_as_such(pool: Path, tmp_path: Path) -> None:
    result = fewmask.pretrain(
        images=str(pool), out=str(tmp_path / "run"), pretext="byol", lr=1e4, steps=6, **SMALL
    )
    (warning,) = result.warnings
    assert warning.startswith(
        ("the features are not finite numbers", "the features have collapsed")
    )


def test_what_is_watched_is_in_the_progress_line(pool: Path, tmp_path: Path) -> None:
    result = fewmask.pretrain(
        images=str(pool), out=str(tmp_path / "run"), pretext="jigsaw", steps=2, **SMALL
    )
    row = rows_of(tmp_path / "run")[-1]
    assert result.signals.startswith(f"accuracy {row['accuracy']:.3g} (chance 0.01), ")
    assert f"effective rank {row['effective_rank']:.3g}" in result.signals


def test_collapse_is_one_direction_or_few_dimensions_or_no_numbers() -> None:
    start: dict[str, float | None] = {"features_spread": 0.1, "effective_rank": 100.0}

    def told(spread: float | None, rank: float | None) -> str | None:
        return collapse({"features_spread": spread, "effective_rank": rank}, start)

    assert told(0.1, 60.0) is None
    assert told(0.03, 11.0) is None
    assert told(5e-4, 60.0) == "spread 0.0005, below 0.001"
    assert told(0.4, 9.0) == "effective rank 9, at the start 100"
    assert told(None, None) is None  # that is no collapse; the run's warning says what it is
    few: dict[str, float | None] = {"features_spread": 0.1, "effective_rank": 1.0}
    assert collapse(few, {"effective_rank": 1.9}) is None, "of three images the rank can't tell"
    assert collapse(few, {}) is None


def test_the_dense_probe_is_logged_and_changes_nothing(
    pool: Path, tmp_path: Path, write_pairs: Callable[..., Path]
) -> None:
    chosen = {**SMALL, "images": str(pool), "steps": 3}
    pairs = write_pairs(8, 32, 32)
    with_probe, without = tmp_path / "a", tmp_path / "b"
    result = fewmask.pretrain(out=str(with_probe), probe_pairs=str(pairs), **chosen)
    fewmask.pretrain(out=str(without), **chosen)
    rows = rows_of(with_probe)
    tables = [json.loads((run / "result.json").read_text()) for run in (with_probe, without)]
    assert result.probe_iou_start is not None
    assert result.probe_iou is not None
    assert 0 <= result.probe_iou <= 1
    assert [row["probe_iou_start"] for row in rows] == [result.probe_iou_start] * 3
    assert rows[-1]["probe_iou"] == result.probe_iou
    assert tables[0]["start"]["probe_iou"] == tables[0]["probe_iou_start"]
    assert tables[1]["probe_iou"] is None
    assert "probe_iou" not in rows_of(without)[-1]
    assert tables[0]["key"] == tables[1]["key"]
    weights = [read_weights(run / "encoder.safetensors") for run in (with_probe, without)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # A finished run is finished, whatever is to be watched.
    assert fewmask.pretrain(out=str(without), probe_pairs=str(pairs), **chosen).probe_iou is None


def test_masks_of_the_probe_are_read_by_flags_of_their_own(
    pool: Path, tmp_path: Path, write_pairs: Callable[..., Path]
) -> None:
    pairs, out = write_pairs(6, 32, 32), tmp_path / "out"
    for path in (pairs / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * 255).save(path)
    chosen = {**SMALL, "images": str(pool), "steps": 1, "out": str(out), "probe_pairs": str(pairs)}
    with pytest.raises(UserError, match="Pass --probe-mask-values 0,255"):
        fewmask.pretrain(**chosen)
    assert not out.exists()
    assert fewmask.pretrain(**chosen, probe_mask_values=(0, 255)).probe_iou is not None


def test_a_probe_of_too_few_pictures_is_refused(
    pool: Path, tmp_path: Path, write_pairs: Callable[..., Path]
) -> None:
    chosen = {**SMALL, "images": str(pool), "steps": 1, "out": str(tmp_path / "out")}
    with pytest.raises(UserError, match="3 different pictures; expected at least 4"):
        fewmask.pretrain(**chosen, probe_pairs=str(write_pairs(3, 32, 32)))
    assert not (tmp_path / "out").exists()
