"""rerun: the same comes out, or what differs is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import fewmask
from fewmask.checkpoint import read_weights, save_weights
from fewmask.inference import open_run, trained_hashes
from fewmask.runs import made_by
from fewmask.sealed import write_sealed
from fewmask.types import UserError

SMALL = {"encoder": "resnet18", "size": 32, "steps": 2, "batch_size": 4}


def test_a_run_comes_out_the_same(
    tmp_path: Path, write_pairs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_pairs(8)
    fewmask.pretrain(
        images=str(pairs / "images"), out=str(tmp_path / "a"), pretext="jigsaw", **SMALL
    )
    again = fewmask.rerun(result=str(tmp_path / "a"), out=str(tmp_path / "b"))
    assert (again.same, again.differences, again.surroundings) == (True, (), ())
    fewmask.finetune(
        pairs=str(pairs), out=str(tmp_path / "c"), init=str(tmp_path / "a"), decoder="fpn", **SMALL
    )
    assert fewmask.rerun(result=str(tmp_path / "c"), out=str(tmp_path / "d")).same
    assert "warning" not in capsys.readouterr().err


def test_every_result_says_how_it_was_made(
    tmp_path: Path, write_pairs: Callable[..., Path]
) -> None:
    pairs, tables = write_pairs(8), {}
    fewmask.pretrain(images=str(pairs / "images"), out=str(tmp_path / "pre"), **SMALL)
    for seed in (0, 1):
        out = tmp_path / f"run{seed}"
        fewmask.finetune(pairs=str(pairs), out=str(out), seed=seed, **SMALL)
        tables[out] = json.loads((out / "result.json").read_text())
    fewmask.evaluate(run=str(tmp_path / "run0"), pairs=str(pairs), out=str(tmp_path / "scores"))
    for table in (*tables.values(), json.loads((tmp_path / "pre" / "result.json").read_text())):
        assert table["config"]["size"] == 32
        assert (table["device"], table["devices"]) == ("cpu", 1)
        assert table["arithmetic"] in ("32-true", "bf16-mixed")
        assert {"commit", "processor", "threads"} <= table["made_by"].keys()
        assert table["fingerprint"]
    assert len({table["split"] for table in tables.values()}) == 2  # the seed drew another one
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert scores["fingerprint"] == tables[tmp_path / "run0"]["fingerprint"]
    assert scores["device"] == "cpu"
    assert scores["config"]["pairs"] == str(pairs)
    assert scores["versions"]["torch"]
    assert "commit" in scores["made_by"]


def test_what_differs_is_said(
    tmp_path: Path, write_pairs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, run = write_pairs(8), tmp_path / "a"
    fewmask.finetune(pairs=str(pairs), out=str(run), **SMALL)
    told = json.loads((run / "result.json").read_text())
    assert told["made_by"]["threads"] == made_by()["threads"]
    del told["checksum"]  # changed on purpose
    told["versions"]["torch"] = "1.0"
    (run / "result.json").write_text(json.dumps(told))
    weights = read_weights(run / "model.safetensors")
    name = next(name for name, value in weights.items() if value.is_floating_point())
    weights[name] += 0.25
    save_weights(run / "model.safetensors", weights, {})
    again = fewmask.rerun(result=str(run), out=str(tmp_path / "b"))
    assert not again.same
    assert again.differences == ("model.safetensors: weights differ by up to 0.25",)
    assert again.surroundings == (f"torch is {made_by()['torch']} here, was 1.0",)
    assert "warning: torch is" in capsys.readouterr().err
    # Without the weights the numbers speak.
    (run / "model.safetensors").unlink()
    told["val_loss"] += 1
    (run / "result.json").write_text(json.dumps(told))
    (line,) = fewmask.rerun(result=str(run), out=str(tmp_path / "c")).differences
    assert line.startswith(f"val_loss: {told['val_loss']} before, ")


@pytest.mark.parametrize("name", ["config.toml", "model.json", "result.json", "split.json"])
def test_a_digit_that_changed_is_not_believed(
    tmp_path: Path, write_pairs: Callable[..., Path], name: str
) -> None:
    pairs, run = write_pairs(8), tmp_path / "a"
    fewmask.finetune(pairs=str(pairs), out=str(run), **SMALL)
    place = {"config.toml": "size = ", "model.json": '"size": ', "result.json": '"steps": ',
             "split.json": '"image": "'}[name]  # fmt: skip
    text = (run / name).read_text()
    (run / name).write_text(text.replace(place, f"{place}1", 1))
    look: dict[str, Callable[[], object]] = {
        "config.toml": lambda: fewmask.finetune(pairs=str(pairs), out=str(run), **SMALL),
        "model.json": lambda: open_run(run),
        "result.json": lambda: fewmask.rerun(result=str(run), out=str(tmp_path / "b")),
        "split.json": lambda: trained_hashes(run),
    }
    with pytest.raises(UserError) as told:
        look[name]()
    assert str(told.value).startswith(f"{run / name}: ")
    said = "it is not the split that" if name == "split.json" else "changed since it was written"
    assert said in str(told.value)
    (run / name).write_text(text)
    assert open_run(run).geometry.size == SMALL["size"]
    assert len(trained_hashes(run)) == 8
    assert fewmask.finetune(pairs=str(pairs), out=str(run), **SMALL).out == run


def test_damaged_weights_are_told_before_the_training(
    tmp_path: Path, write_pairs: Callable[..., Path]
) -> None:
    pairs, run = write_pairs(8), tmp_path / "a"
    fewmask.finetune(pairs=str(pairs), out=str(run), **SMALL)
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"model\.safetensors: is damaged"):
        fewmask.rerun(result=str(run), out=str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_other_data_and_no_results_are_mistakes(
    tmp_path: Path, write_pairs: Callable[..., Path]
) -> None:
    pairs, run = write_pairs(8), tmp_path / "a"
    fewmask.finetune(pairs=str(pairs), out=str(run), **SMALL)
    mask = sorted((pairs / "masks").iterdir())[0]
    before = mask.read_bytes()
    Image.new("L", (48, 40), 1).save(mask)
    with pytest.raises(UserError, match="holds other images or masks now"):
        fewmask.rerun(result=str(run), out=str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()
    mask.write_bytes(before)
    with pytest.raises(UserError, match="is the result itself"):
        fewmask.rerun(result=str(run), out=str(run))
    with pytest.raises(UserError, match=r"holds neither study\.json nor"):
        fewmask.rerun(result=str(tmp_path), out=str(tmp_path / "b"))
    (run / "result.json").write_text("[]")
    with pytest.raises(UserError, match=r"result\.json: damaged \(TypeError: holds a list"):
        fewmask.rerun(result=str(run), out=str(tmp_path / "b"))


def test_a_study_comes_out_the_same_or_says_which_cell_does_not(
    tmp_path: Path, write_pairs: Callable[..., Path]
) -> None:
    plan, out = tmp_path / "plan.toml", tmp_path / "study"
    plan.write_text(
        f'pairs = "{write_pairs(8)}"\nencoder = "resnet18"\nsize = 32\nbudgets = [4]\nrepeats = 2\n'
        '[finetune]\nsteps = 2\nbatch_size = 4\n[[arms]]\ninit = "scratch"\n'
    )
    fewmask.study(plan=str(plan), out=str(out))
    assert fewmask.rerun(result=str(out), out=str(tmp_path / "again")).same
    table = (out / "results.csv").read_text().splitlines()
    columns = table[0].split(",")
    row = table[2].split(",")
    row[columns.index("iou")] = "0.5"
    (out / "results.csv").write_text("\n".join([*table[:2], ",".join(row), *table[3:]]) + "\n")
    found = fewmask.rerun(result=str(out), out=str(tmp_path / "again"))
    (line,) = found.differences
    assert line.startswith("scratch at 4, repeat 1: IoU 0.500000 before, ")


def test_damaged_tables_are_told_before_a_study_is_done_again(
    tmp_path: Path, write_pairs: Callable[..., Path]
) -> None:
    write_sealed(
        tmp_path / "study.json", {"name": "x", "command": "fewmask study 'x", "fingerprint": ""}
    )
    with pytest.raises(UserError, match=r"study\.json: damaged .*No closing quotation"):
        fewmask.rerun(result=str(tmp_path), out=str(tmp_path / "b"))
    (tmp_path / "results.csv").write_text("arm;budget\nx;y\n")
    with pytest.raises(UserError, match=r"results\.csv: damaged \(KeyError"):
        fewmask.rerun(result=str(tmp_path), out=str(tmp_path / "b"))


def test_a_study_s_cell_is_not_a_run_by_itself(tmp_path: Path) -> None:
    """Its pairs are drawn by the study, so that the same settings alone would train on others."""
    (tmp_path / "config.toml").write_text('decoder = "unet"\n')
    write_sealed(
        tmp_path / "result.json", {"arm": "scratch", "budget": 8, "repeat": 0, "versions": None}
    )
    with pytest.raises(UserError, match=r"a study's cell, .* Name the study's folder"):
        fewmask.rerun(result=str(tmp_path), out=str(tmp_path / "b"))


def test_a_rerun_takes_the_run_s_own_limit_of_pixels(
    tmp_path: Path, write_pairs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "a"
    monkeypatch.setenv("FEWMASK_MAX_MEGAPIXELS", "200")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000_000)
    fewmask.finetune(pairs=str(write_pairs(8)), out=str(run), max_megapixels=7, **SMALL)
    monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / "cache"))  # nothing is decoded already
    monkeypatch.setenv("FEWMASK_MAX_MEGAPIXELS", "0.00002")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert fewmask.rerun(result=str(run), out=str(tmp_path / "b")).same
    assert Image.MAX_IMAGE_PIXELS == 3_500_000  # Pillow refuses twice as many
