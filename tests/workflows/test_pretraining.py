"""pretrain as a whole: what it leaves, what it refuses, several processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fewmask
from fewmask.checkpoint import read_weights
from fewmask.data.pools import store_side
from fewmask.data.sources import open_images
from fewmask.optimisation import Optimisation
from fewmask.pretext import Colorize, Jigsaw, Masked, Supervised
from fewmask.types import UserError
from fewmask.workflows import pretraining
from fewmask.workflows.pretraining import default_lr

SMALL = {"encoder": "resnet18", "size": 32, "steps": 2, "batch_size": 4}


@pytest.fixture
def pool(write_pairs: Callable[..., Path]) -> Path:
    return write_pairs(8) / "images"


def test_result_and_log_say_how_it_went(pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = fewmask.pretrain(images=str(pool), out=str(out), **SMALL)
    assert (result.images, result.steps, result.pretext) == (8, 2, "simclr")
    assert result.moved > 0
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"step", "loss", "nt_xent", "spread", "lr", "images_per_second", "waiting"} <= set(row)
    assert 0 < row["spread"] < 2
    table = json.loads((out / "result.json").read_text())
    assert table["pool"] == "images"
    assert table["versions"]["torch"]


def test_a_run_can_go_on_from_another_one(pool: Path, tmp_path: Path) -> None:
    first = fewmask.pretrain(images=str(pool), out=str(tmp_path / "a"), **SMALL)
    second = fewmask.pretrain(
        images=str(pool), out=str(tmp_path / "b"), init=str(tmp_path / "a"), **SMALL
    )
    assert second.transfer is not None
    assert second.transfer.tensors == second.transfer.of_tensors
    assert second.transfer.moved == pytest.approx(first.moved)


def test_two_processes_leave_the_same_files(pool: Path, tmp_path: Path) -> None:
    """Also of an encoder with weights that no map depends on, which DDP would wait for."""
    one, two = tmp_path / "one", tmp_path / "two"
    small = SMALL | {"encoder": "efficientnet-b0"}
    fewmask.pretrain(images=str(pool), out=str(one), **small)
    result = fewmask.pretrain(images=str(pool), out=str(two), devices=2, device="cpu", **small)
    assert result.steps == 2
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    weights = [read_weights(out / "encoder.safetensors") for out in (one, two)]
    # Batch norm sees half the views in each process, so near, not equal.
    far = max(
        float((weights[0][n].float() - weights[1][n].float()).abs().max()) for n in weights[0]
    )
    assert 0 < far < 1


def test_a_pool_decoded_as_it_is_used_gives_the_same_weights(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, used = tmp_path / "kept", tmp_path / "used"
    fewmask.pretrain(images=str(pool), out=str(kept), **SMALL)
    result = fewmask.pretrain(images=str(pool), out=str(used), cache_gb=0, memory_gb=0.1, **SMALL)
    assert result.images == 8
    assert "8 images, decoded as they are used" in capsys.readouterr().err
    weights = [read_weights(out / "encoder.safetensors") for out in (kept, used)]
    for name, value in weights[0].items():
        assert value.equal(weights[1][name]), name
    # Neither is part of what is computed: the same command without them finds the run finished.
    again = fewmask.pretrain(images=str(pool), out=str(used), **SMALL)
    assert again == result


def test_a_mistake_in_a_process_is_the_user_s_own(
    pool: Path, tmp_path: Path, write_pairs: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match="no such folder"):
        fewmask.pretrain(images=str(tmp_path / "none"), out=str(tmp_path / "o"), **SMALL)
    with pytest.raises(UserError, match="unknown pretext task jigsw"):
        fewmask.pretrain(images=str(pool), out=str(tmp_path / "o"), pretext="jigsw", **SMALL)
    single = tmp_path / "single"
    single.mkdir()
    Image.new("RGB", (40, 40)).save(single / "a.png")
    with pytest.raises(UserError, match="1 usable image"):
        fewmask.pretrain(images=str(single), out=str(tmp_path / "o"), **SMALL)
    assert not (tmp_path / "o").exists()


def test_of_two_that_claim_a_folder_at_once_one_is_refused(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "run", pretraining.claim

    def the_other_was_quicker(out: Path, config: dict[str, Any]) -> None:
        real(out, {**config, "steps": 3})

    monkeypatch.setattr(pretraining, "claim", the_other_was_quicker)
    with pytest.raises(UserError, match="steps"):
        fewmask.pretrain(images=str(pool), out=str(out), **SMALL)
    assert [path.name for path in out.iterdir()] == ["config.toml"]


def test_a_pool_is_cached_with_room_for_crops_but_never_enlarged(tmp_path: Path) -> None:
    for i, side in enumerate((50, 60, 70)):
        picture = np.zeros((side, 90, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    images = open_images(str(tmp_path))
    assert store_side(images, 30) == 40
    assert store_side(images, 224) == 60


def test_rates_scale_with_the_root_of_the_batch() -> None:
    assert default_lr("adamw", 256) == 1e-3
    assert default_lr("adamw", 64) == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"pretext": Supervised()}, {}),
        ({"pretext": Jigsaw(), "size": 16}, {}),
        ({"pretext": Masked(), "encoder": "vit_tiny_patch16_224"}, {}),
    ],
)
def test_what_does_not_go_together_leaves_no_folder_behind(
    pool: Path, tmp_path: Path, wrong: dict[str, Any], right: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError):
        fewmask.pretrain(images=str(pool), out=str(out), **(SMALL | wrong))
    assert not out.exists()
    fewmask.pretrain(images=str(pool), out=str(out), **(SMALL | right))


def test_a_task_s_own_rate_and_beta1_reach_the_optimiser(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Optimisation] = []

    def recorded(*args: Any) -> None:
        asked.append(args[4].optimisation)
        raise UserError("seen")

    monkeypatch.setattr(pretraining, "fit", recorded)
    for name, task in (("gan", Colorize(objective="gan")), ("bins", Colorize())):
        with pytest.raises(UserError, match="seen"):
            fewmask.pretrain(images=str(pool), out=str(tmp_path / name), pretext=task, **SMALL)
    gan, bins = asked
    assert (gan.beta1, bins.beta1) == (0.5, 0.9)
    assert gan.lr == pytest.approx(bins.lr / 2)


def test_no_picture_is_twice_in_a_batch(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def recorded(*args: Any) -> None:
        stream = args[3]
        seen.extend(stream.global_rows(step).tolist() for step in range(20))
        raise UserError("seen")

    monkeypatch.setattr(pretraining, "fit", recorded)
    with pytest.raises(UserError, match="seen"):
        fewmask.pretrain(images=str(pool), out=str(tmp_path / "run"), **(SMALL | {"batch_size": 3}))
    assert all(len(set(rows)) == 3 for rows in seen)
