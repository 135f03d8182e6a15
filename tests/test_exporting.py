"""Exports give the original's logits, or are not written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch

import fewmask
from fewmask import exporting
from fewmask.inference import Network, load_run
from fewmask.types import UserError

NEEDS = {"onnx": "onnxscript", "openvino": "openvino"}


@pytest.fixture
def run(write_pairs: Callable[..., Path], tmp_path: Path) -> Path:
    out = tmp_path / "run"
    fewmask.finetune(
        pairs=str(write_pairs(4)), out=str(out), encoder="resnet18", size=32, steps=1, batch_size=4
    )
    return out


@pytest.mark.parametrize("kind", list(exporting.WRITERS))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exports_agree_with_the_original(run: Path, tmp_path: Path, kind: str) -> None:
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind], reason=f"the export extra ({NEEDS[kind]}) is not here")
    suffix = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2", "smp": ""}[kind]
    out = fewmask.export(run=str(run), out=str(tmp_path / f"export{suffix}"), format=kind)
    assert out.exists()
    if kind == "smp":
        assert torch.isfinite(smp.from_pretrained(str(out)).eval()(torch.rand(1, 3, 32, 32))).all()


def test_an_export_that_differs_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> Network:
        return lambda images: load_run(run).segmenter(images) + 0.5

    monkeypatch.setitem(exporting.WRITERS, "smp", wrong)
    with pytest.raises(UserError, match="differs from the original"):
        fewmask.export(run=str(run), out=str(tmp_path / "export"), format="smp")
    assert not (tmp_path / "export").exists()


def test_openvino_s_ending_is_asked_for(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"an openvino export is an \.xml file"):
        fewmask.export(run=str(run), out=str(tmp_path / "export"), format="openvino")


def test_nothing_is_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    with pytest.raises(UserError, match="exists"):
        fewmask.export(run=str(run), out=str(tmp_path / "export"), format="smp")
