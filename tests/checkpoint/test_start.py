from __future__ import annotations

import os
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from fewmask import encoders
from fewmask.checkpoint import DEFAULT, encoder_of, load_start, save_weights, told_by
from fewmask.encoders import build
from fewmask.files import write_json_atomic
from fewmask.types import UserError

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
SHARED = Path(os.environ.get("FEWMASK_DATA", BESIDE)).resolve()
DENSENET = SHARED.parent / "weights" / "densenet121_imagenet.safetensors"
NAME = "resnet10t"


def same(encoder: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())


def start(where: object, **more: object) -> tuple[nn.Module, object]:
    encoder = build(NAME)
    return encoder, load_start(encoder, str(where), name=NAME, **more)  # type: ignore[arg-type]


def test_scratch_changes_nothing() -> None:
    encoder = build(NAME)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert load_start(encoder, "scratch", name=NAME) is None
    assert same(encoder, before)


def test_imagenet_is_timms_download(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model(NAME)
    monkeypatch.setattr(encoders, "imagenet_state", lambda name: dict(model.state_dict()))
    encoder, done = start("imagenet")
    assert same(encoder, {f"model.{k}": v for k, v in model.state_dict().items()})
    assert done.source == f"ImageNet ({NAME})"  # type: ignore[attr-defined]
    assert done.unused == 2  # type: ignore[attr-defined]


def test_imagenet_from_a_file(tmp_path: Path) -> None:
    model = timm.create_model(NAME)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    encoder, done = start("imagenet", weights=str(tmp_path / "w.pth"))
    assert same(encoder, {f"model.{k}": v for k, v in model.state_dict().items()})
    assert done.source == f"ImageNet ({tmp_path / 'w.pth'})"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"w.pt: no such file; near: w.pth"):
        start("imagenet", weights=str(tmp_path / "w.pt"))


@pytest.mark.parametrize("where", ["scratch", "run"])
def test_weights_go_with_imagenet_only(where: str) -> None:
    with pytest.raises(UserError, match=f"--weights w.pth goes with .* not with --init {where}"):
        start(where, weights="w.pth")


def test_runs_of_both_kinds(tmp_path: Path) -> None:
    source, network = build(NAME), smp.Unet(f"tu-{NAME}", encoder_weights=None)
    for folder, file, state in (
        ("pretrained", "encoder.safetensors", source.state_dict()),
        ("finetuned", "model.safetensors", network.state_dict()),
    ):
        run = tmp_path / folder
        save_weights(run / file, state, {})
        write_json_atomic(run / "result.json", {"moved": 0.25})
        for where in (run, f"{run}{os.sep}", run / file):
            encoder, done = start(where)
            wanted = source if folder == "pretrained" else network.encoder
            assert same(encoder, wanted.state_dict())
            assert done.moved == 0.25  # type: ignore[attr-defined]
            named = run / file if where == run / file else run
            assert done.source == str(named)  # type: ignore[attr-defined]


def test_a_run_without_a_result_says_nothing_of_moving(tmp_path: Path) -> None:
    save_weights(tmp_path / "encoder.safetensors", build(NAME).state_dict(), {})
    assert start(tmp_path)[1].moved is None  # type: ignore[attr-defined]
    (tmp_path / "result.json").write_text("{")
    assert start(tmp_path)[1].moved is None  # type: ignore[attr-defined]


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    save_weights(tmp_path / "runs" / "one" / "encoder.safetensors", {"w": torch.ones(1)}, {})
    neither = "holds neither encoder.safetensors nor model.safetensors"
    with pytest.raises(UserError, match=f"{neither}, so it is no run folder$"):
        start(tmp_path)
    with pytest.raises(UserError, match=f"{neither}.*the runs .*one lie in it"):
        start(tmp_path / "runs")
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(UserError, match=f"{neither}: a run that is not finished"):
        start(tmp_path)


def test_a_start_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--init imagnet: no such .*; near: imagenet"):
        start("imagnet")
    (tmp_path / "simclr").mkdir()
    with pytest.raises(UserError, match=r"--init .*simcrl: no such .*; near: .*simclr"):
        start(tmp_path / "simcrl")
    with pytest.raises(UserError, match="no such file or folder"):
        start(tmp_path / "no" / "where")


@pytest.mark.skipif(not DENSENET.is_file(), reason="the shared weights are not here")
def test_real_imagenet_weights_give_the_same_features() -> None:
    from safetensors.torch import load_file

    model, encoder = timm.create_model("densenet121"), build("densenet121")
    done = load_start(encoder, "imagenet", name="densenet121", weights=str(DENSENET))
    model.load_state_dict(load_file(DENSENET))
    assert done is not None
    assert done.tensors == done.of_tensors == 604
    assert done.parameter_share == 1
    assert done.unused == 2
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found = encoder.eval()(images)[-1].relu()  # smp ends before the last ReLU
        torch.testing.assert_close(found, model.eval().forward_features(images))


def test_the_encoder_is_the_start_s_where_none_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text('encoder = "resnet18"\nsize = 96\n')
    assert encoder_of("auto", str(run)) == "resnet18"
    assert encoder_of("vgg11", str(run)) == "vgg11"
    assert encoder_of("auto", "scratch") == encoder_of("auto", "imagenet") == DEFAULT
    assert told_by(str(run)) == {"encoder": "resnet18", "size": 96}
    (run / "config.toml").write_text("broken [")
    assert encoder_of("auto", str(run)) == DEFAULT
    save_weights(tmp_path / "w.safetensors", {"a": torch.ones(1)}, {"encoder": "vgg11"})
    assert encoder_of("auto", str(tmp_path / "w.safetensors")) == "vgg11"
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    assert told_by(str(tmp_path / "torn.safetensors")) == {}
