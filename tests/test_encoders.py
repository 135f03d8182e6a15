from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from segmentation_models_pytorch.encoders import encoders as smps_encoders
from torch import nn
from torchvision.models import googlenet

from fewmask.augment import normalise
from fewmask.checkpoint import transfer
from fewmask.encoders import build, freeze_batch_norm, imagenet_state, registered, smp_name
from fewmask.encoders.pixels import renormalise
from fewmask.encoders.vit import resized
from fewmask.pretext.contract import pooled
from fewmask.types import UserError


@pytest.mark.parametrize(
    "name",
    [
        "resnet18", "densenet121", "vgg11_bn", "tu-resnet10t", "convnext_atto", "pvt_v2_b0",
        "googlenet", "vit_tiny_patch16_224", "vit_small_patch14_dinov2",
        "vit_tiny_patch16_dinov3_qkvb",
    ],
)  # fmt: skip
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
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
        ("tu-vit_tiny_patch16_224", "vit_tiny_patch16_224"),
        ("vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2.lvd142m"),
        ("googlenet", "googlenet"),
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


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "swin_tiny_patch4_window7_224"])
def test_transformers_of_one_size_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"encoder {name} gives no feature maps") as caught:
        smp_name(name)
    assert "\n" not in str(caught.value)


def test_googlenet_is_torchvisions() -> None:
    """Its file loads whole, but for the heads, and the features are those that it classifies."""
    torch.manual_seed(0)
    theirs = googlenet(weights=None, transform_input=True, aux_logits=True, init_weights=False)
    # Weights under which signals neither die nor grow, so that every part of them counts.
    theirs.load_state_dict(build("googlenet").state_dict(), strict=False)
    ours = build("googlenet").eval()
    done = transfer(ours, theirs.state_dict(), source="torchvision")
    assert done.tensors == done.of_tensors == 57 * 5
    assert torch.equal(
        ours.inception5b.branch4[1].conv.weight, theirs.inception5b.branch4[1].conv.weight
    )
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        wanted = theirs.eval()(images)
        maps = ours(images)
        torch.testing.assert_close(theirs.fc(maps[-1].mean((2, 3))), wanted)
    assert torch.equal(maps[0], images)
    assert ours.out_channels == [3, 64, 192, 480, 832, 1024]


def test_the_last_map_of_a_vision_transformer_is_its_last_tokens() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True).eval()
    ours = build("vit_tiny_patch16_224").eval()
    done = transfer(ours, theirs.state_dict(), source="timm")
    assert (done.tensors, done.unused) == (done.of_tensors, 2)  # its head
    assert {f"model.{k}" for k in theirs.state_dict() if "head" not in k} == set(ours.state_dict())
    images = torch.rand(2, 3, 64, 96)
    own_pixels = (images - 0.5) / 0.5  # what this model was trained on
    with torch.inference_mode():
        tokens = theirs.forward_features(own_pixels)[:, 1:]
        maps = ours(normalise(images))
        torch.testing.assert_close(ours.tokens(normalise(images))[-1][0].flatten(2).mT, tokens)
        torch.testing.assert_close(maps[4].shape[2:], torch.Size([4, 6]))
        torch.testing.assert_close(pooled(ours, normalise(images)), tokens.mean(1))
    assert ours.blocks == [2, 5, 8, 11]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_vision_transformers_take_any_size(name: str) -> None:
    encoder = build(name).eval()
    with torch.no_grad():
        for height, width in ((48, 100), (7, 20), (63, 33)):
            maps = encoder(torch.rand(1, 3, height, width))
            wanted = [(-(-height // 2**i), -(-width // 2**i)) for i in range(6)]
            assert [tuple(m.shape[2:]) for m in maps] == wanted


def test_tokens_become_maps_without_moving() -> None:
    """Resizing keeps a ramp over the image a ramp: each value stays at its place."""
    at = torch.linspace(0, 1, 9)[:-1] + 1 / 16  # the places of 8 tokens
    ramp = at.expand(1, 2, 8, 8)
    for stride, n in ((4, 32), (8, 16), (16, 8), (32, 4)):
        found = resized(ramp, 128, 128, stride)
        places = torch.linspace(0, 1, n + 1)[:-1] + 1 / (2 * n)
        inside = (places > at[0]) & (places < at[-1])
        assert found.shape == (1, 2, n, n)
        torch.testing.assert_close(found[0, 1, 0][inside], places[inside])


def test_renormalising_is_a_change_of_statistics() -> None:
    images = torch.rand(2, 3, 4, 5)
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.5, 0.1)
    wanted = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(renormalise(normalise(images), mean, std), wanted)


def test_the_first_u_nets_encoder() -> None:
    encoder = build("unet-original")
    maps = encoder(torch.rand(1, 3, 32, 48))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (64, 32, 48), (128, 16, 24), (256, 8, 12), (512, 4, 6), (1024, 2, 3),
    ]  # fmt: skip
    assert encoder.output_stride == 16
    assert not any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())


def test_smp_knows_our_encoders_for_a_moment_only() -> None:
    assert "googlenet" not in smps_encoders
    with registered("googlenet"):
        assert "googlenet" in smps_encoders
    assert "googlenet" not in smps_encoders
    with registered("resnet18"):
        pass
    assert "resnet18" in smps_encoders


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


def test_googlenets_imagenet_weights_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    made = googlenet(weights=None, init_weights=False)
    asked = []

    def fetch(**options: object) -> nn.Module:
        asked.append(options["weights"])
        return made

    monkeypatch.setattr("torchvision.models.googlenet", fetch)
    assert imagenet_state("googlenet").keys() == made.state_dict().keys()
    assert asked == ["IMAGENET1K_V1"]


def test_there_are_no_imagenet_weights_of_the_first_u_net() -> None:
    with pytest.raises(UserError, match="no ImageNet weights of unet-original"):
        imagenet_state("unet-original")


@pytest.mark.parametrize("name", ["resnet18", "tu-resnet10t", "mit_b0", "vit_tiny_patch16_224"])
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
