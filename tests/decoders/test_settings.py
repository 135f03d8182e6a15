"""Decoders as settings: flags, files, plans, keys, run folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import fewmask
from fewmask.cli import parse
from fewmask.decoders import SegNet, Unet, UNetOriginal
from fewmask.inference import load_run
from fewmask.runs import config_of, key_of
from fewmask.settings import FinetuneSettings, StudySettings
from fewmask.studies.grid import load_plan
from fewmask.types import UserError

GIVEN = ["--pairs", "a", "--out", "b"]


def test_a_decoders_own_flags_follow_it() -> None:
    said = [*GIVEN, "--decoder", "unet-original", "--padding", "valid"]
    assert parse("finetune", said).decoder == UNetOriginal(padding="valid")
    assert parse("finetune", GIVEN).decoder == Unet()
    with pytest.raises(UserError, match="--padding goes with --decoder unet-original"):
        parse("finetune", [*GIVEN, "--padding", "valid"])
    with pytest.raises(UserError, match="--padding half: expected one of same, valid"):
        parse("finetune", [*said, "--padding", "half"])
    with pytest.raises(UserError, match="--decoder segnett: unknown decoder; near: segnet"):
        parse("finetune", [*GIVEN, "--decoder", "segnett"])


def test_a_configuration_file_names_them_too(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('decoder = "segnet"\nupsample = "bilinear"\n')
    assert parse("finetune", [*GIVEN, "--config", str(config)]).decoder == SegNet("bilinear")


def test_help_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("finetune", ["--decoder", "fcn8s", "--help"])
    shown = capsys.readouterr().out
    assert "of fcn8s" in shown
    assert "--classifier-width" in shown


def test_keys_are_as_they_were() -> None:
    """Of runs begun before decoders had options."""
    settings = FinetuneSettings(pairs="a", out="b", encoder="resnet50").resolved()
    assert key_of(config_of(settings)) == "d6e527ca85e73713fdd9"
    chosen = FinetuneSettings(pairs="a", out="b", encoder="resnet50", decoder=Unet()).resolved()
    assert config_of(chosen) == config_of(settings)
    other = FinetuneSettings(
        pairs="a", out="b", encoder="resnet50", decoder=Unet(upsample="bilinear")
    ).resolved()
    assert config_of(other) == config_of(settings) | {"upsample": "bilinear"}


def test_a_plan_says_them_under_finetune(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    text = 'pairs = "p"\nencoder = "vgg11_bn"\ndecoder = "segnet"\nbudgets = [4]\n'
    text += '[finetune]\nsteps = 1\nupsample = "transpose"\n[[arms]]\ninit = "scratch"\n'
    plan.write_text(text)
    settings = StudySettings(plan=str(plan), out="x")
    assert load_plan(settings).finetune.decoder == SegNet("transpose")
    plan.write_text(text.replace("segnet", "fpn"))
    with pytest.raises(UserError, match=r"\[finetune\] unknown key upsample"):
        load_plan(settings)
    plan.write_text(text.replace("segnet", "segnett"))
    with pytest.raises(UserError, match="unknown decoder segnett; near: segnet"):
        load_plan(settings)


@pytest.fixture
def run(write_pairs: Callable[..., Path], tmp_path: Path) -> Path:
    out = tmp_path / "run"
    result = fewmask.finetune(
        pairs=str(write_pairs(4)), out=str(out), encoder="vgg11_bn", size=32, steps=1,
        decoder=SegNet("bilinear"), batch_size=2, loss="border-ce",
    )  # fmt: skip
    assert result.decoder == "segnet"
    return out


def test_a_run_folder_keeps_them(run: Path, tmp_path: Path) -> None:
    assert load_run(run).segmenter.decoder == SegNet("bilinear")
    assert 'upsample = "bilinear"' in (run / "config.toml").read_text()
    assert not (run / "config.json").exists()
    with pytest.raises(UserError, match="smp cannot build --decoder segnet --upsample bilinear"):
        fewmask.export(run=str(run), out=str(tmp_path / "export"), format="smp")
    assert not (tmp_path / "export").exists()
    described = json.loads((run / "model.json").read_text())
    del described["checksum"], described["decoder_options"]  # as written before there were any
    (run / "model.json").write_text(json.dumps(described))
    assert load_run(run).segmenter.decoder == SegNet("unpool")
