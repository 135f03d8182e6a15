"""What holds for every decoder: a new one is tested because it is in the union."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.decoders.small import RESNET, encoder_of, segmenter

from fewmask import decoders, encoders
from fewmask.checkpoint import load_start
from fewmask.decoders import DECODERS
from fewmask.segmentation import Geometry, describe, rebuild
from fewmask.types import UserError

SIDES = {"pan": 128}
"""Smallest sides of decoders that don't work at 64."""


def side_of(name: str) -> int:
    return SIDES.get(name, 64)


@pytest.mark.parametrize("name", DECODERS)
def test_any_size_gives_logits_of_that_size(name: str) -> None:
    model = segmenter(name, encoder_of(name)).eval()
    side = side_of(name)
    for height, width in ((side + 9, side + 40), (side + 40, side)):
        with torch.inference_mode():
            logits = model(torch.rand(1, 3, height, width))
        assert logits.shape == (1, 1, height, width)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        assert logits.std() > 0


@pytest.mark.parametrize("name", DECODERS)
def test_gradients_reach_every_weight_that_is_trained(name: str) -> None:
    model = segmenter(name, encoder_of(name), n_classes=3)
    side = side_of(name)
    logits = model(torch.rand(2, 3, side, side))
    assert logits.shape == (2, 3, side, side)
    logits.square().mean().backward()
    parts = [model.encoder, *model.heads()]
    held = {id(p) for part in parts for p in part.parameters()}
    for what, parameter in model.named_parameters():
        assert id(parameter) in held, f"{what} is in no group of the optimiser"
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{what} has no gradient; DDP would wait for it"
            assert parameter.grad.isfinite().all()
    assert any(p.grad.abs().sum() > 0 for p in model.encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", DECODERS)
def test_what_describes_it_builds_it_again(name: str) -> None:
    model = segmenter(name, encoder_of(name), n_classes=3).eval()
    described = json.loads(json.dumps(describe(model, Geometry(96, "keep"))))
    again, geometry = rebuild(described)
    assert (again.decoder, geometry) == (model.decoder, Geometry(96, "keep"))
    again.network.load_state_dict(model.network.state_dict())
    images = torch.rand(1, 3, side_of(name), side_of(name))
    with torch.inference_mode():
        assert torch.equal(again.eval()(images), model(images))


@pytest.mark.parametrize("name", DECODERS)
def test_an_encoder_alone_loads_strictly(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    alone = encoders.build(encoder_of(name))
    save_file(
        {k: v.contiguous() for k, v in alone.state_dict().items()}, tmp_path / "e.safetensors"
    )
    model = segmenter(name, encoder_of(name))
    done = load_start(model.encoder, str(tmp_path / "e.safetensors"), name=encoder_of(name))
    assert done is not None
    assert (done.tensors, done.unused) == (done.of_tensors, 0)
    loaded = model.encoder.state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in alone.state_dict().items())


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_it_can_be_exported(name: str) -> None:
    model = segmenter(name, encoder_of(name)).eval()
    images = torch.rand(2, 3, side_of(name), side_of(name))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},), strict=False)
    more = torch.cat([images, images[:1]])
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(more), model(more), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dpt", "segnet", "unet-original"])
def test_a_wrong_encoder_is_refused_with_what_goes(name: str) -> None:
    for tried in (decoders.try_out, lambda d, e: decoders.build(d, e, 1)):
        with pytest.raises(UserError, match=f"--decoder {name} does not go .*{RESNET}") as caught:
            tried(name, RESNET)
        assert encoder_of(name).partition("11")[0][:4] in str(caught.value)
        listed = str(caught.value).rpartition("go --decoder ")[2].split(", ")
        assert listed == [d for d in DECODERS if d not in ("dpt", "segnet", "unet-original")]


@pytest.mark.parametrize("encoder", ["vgg11_bn", "googlenet", "vit_tiny_patch16_224"])
def test_encoders_that_cannot_be_dilated_are_refused(encoder: str) -> None:
    with pytest.raises(UserError, match=f"deeplabv3plus does not go together with .*{encoder}"):
        decoders.try_out("deeplabv3plus", encoder)


@pytest.mark.parametrize("name", ["unet", "unetplusplus", "fpn", "pspnet", "linknet", "manet"])
@pytest.mark.parametrize("encoder", ["googlenet", "vit_tiny_patch16_224"])
def test_our_encoders_go_with_smps_decoders(name: str, encoder: str) -> None:
    model = segmenter(name, encoder)
    model(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert decoders.smp_config(model.network) is None


@pytest.mark.parametrize("name", ["segformer", "upernet", "fcn8s"])
def test_decoders_of_pyramids_take_vision_transformers(name: str) -> None:
    with pytest.raises(UserError) as caught:
        decoders.try_out("deeplabv3plus", "vit_tiny_patch16_224")
    assert name in str(caught.value).rpartition("go --decoder ")[2].split(", ")
    decoders.try_out(name, "vit_tiny_patch16_224")
    with torch.inference_mode():
        logits = segmenter(name, "vit_tiny_patch16_224").eval()(torch.rand(1, 3, 73, 104))
    assert logits.shape == (1, 1, 73, 104)


def test_a_decoder_that_is_none() -> None:
    with pytest.raises(UserError, match="unknown decoder unett; near: unet"):
        decoders.component("unett")
    with pytest.raises(UserError, match="unknown decoder 5"):
        decoders.component(5)  # type: ignore[arg-type]
