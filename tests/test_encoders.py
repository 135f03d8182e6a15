from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from fewmask.encoders import build, freeze_batch_norm, imagenet_state, smp_name
from fewmask.types import UserError


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "vgg11_bn", "tu-resnet10t", "convnext_atto", "pvt_v2_b0"]
)
def test_an_encoder_gives_maps_from_fine_to_coarse(name: str) -> None:
    encoder = build(name).eval()
    with torch.no_grad():
        maps = encoder(torch.rand(2, 3, 64, 96))
    assert [m.shape[1] for m in maps] == encoder.out_channels
    assert [tuple(m.shape[2:]) for m in maps] == [(64 >> i, 96 >> i) for i in range(6)]
    assert encoder.output_stride == 32


def test_depth_and_input_channels() -> None:
    encoder = build("resnet18", depth=3, in_channels=1).eval()
    maps = encoder(torch.rand(1, 1, 32, 32))
    assert [m.shape[1] for m in maps] == [1, 64, 64, 128]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", "resnet50"),
        ("resnet50.a1_in1k", "resnet50"),
        ("vgg16_bn", "vgg16_bn"),
        ("resnet10t", "tu-resnet10t"),
        ("tu-resnet10t", "tu-resnet10t"),
        ("tu-resnet50", "tu-resnet50"),
        ("efficientnet_b0", "tu-efficientnet_b0"),
    ],
)
def test_smp_names(name: str, expected: str) -> None:
    assert smp_name(name) == expected


@pytest.mark.parametrize("name", ["resnet5", "tu-resnet5"])
def test_an_unknown_name_brings_the_near_ones(name: str) -> None:
    with pytest.raises(UserError, match=f"unknown encoder {name}; near: .*resnet50"):
        build(name)


@pytest.mark.parametrize("name", ["", "tu-", "tu-tu-resnet18", "hf-hub:someone/else", "."])
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(UserError, match="unknown encoder"):
        smp_name(name)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_transformers_of_one_size_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"encoder {name} gives no feature maps") as caught:
        smp_name(name)
    assert "\n" not in str(caught.value)


def test_weights_depend_on_the_seed_alone() -> None:
    def first() -> torch.Tensor:
        torch.manual_seed(3)
        return next(build("resnet10t").parameters()).detach()

    smp_name.cache_clear()  # the look at the model must draw nothing
    before = first()
    assert torch.equal(before, first())
    assert torch.equal(before, first())


def test_imagenet_weights_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    made = timm.create_model("resnet18")
    asked = []

    def create_model(name: str, *, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        torch.rand(1)
        return made

    monkeypatch.setattr(timm, "create_model", create_model)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    state = imagenet_state("resnet18")
    assert torch.equal(torch.rand(1), expected)
    assert asked == [("resnet18", True)]
    assert "fc.weight" in state
    assert torch.equal(state["conv1.weight"], made.state_dict()["conv1.weight"])


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet10t", "mit_b0"])
def test_no_network_is_a_users_error(name: str) -> None:
    # conftest.py sets HF_HUB_OFFLINE
    with pytest.raises(UserError, match=f"ImageNet weights of {name} .*--weights FILE") as caught:
        imagenet_state(name)
    assert "\n" not in str(caught.value)


def _pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))  # type: ignore[no-any-return]


@pytest.mark.parametrize("through", [lambda m: m, copy.deepcopy, _pickled])
def test_frozen_batch_norm_stays_frozen(through: object) -> None:
    encoder = through(freeze_batch_norm(build("resnet18")))  # type: ignore[operator]
    encoder.train()
    assert encoder.layer1.training
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    encoder(torch.rand(2, 3, 32, 32))[-1].sum().backward()
    after = encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert encoder.bn1.weight.grad is not None
    assert not encoder.bn1.training
