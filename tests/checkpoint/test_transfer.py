from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import Tensor, nn

from fewmask.checkpoint import moved, transfer
from fewmask.checkpoint.matching import Match, best_match, spellings, tidy
from fewmask.encoders import build
from fewmask.types import UserError

State = dict[str, Tensor]
COUNTER = "num_batches_tracked"


def randomised(module: nn.Module) -> nn.Module:
    """All floats drawn anew, so that a tensor in the wrong place shows."""
    generator = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        else:
            tensor.fill_(7)
    return module.eval()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


RESNET = randomised(torchvision.models.resnet18(weights=None))
STATE: State = RESNET.state_dict()
N = sum(not name.endswith(COUNTER) and not name.startswith("fc") for name in STATE)


def same(encoder: nn.Module, state: State = STATE) -> bool:
    return all(torch.equal(t, state[name]) for name, t in encoder.state_dict().items())


def numbered(drop: int) -> State:
    return nn.Sequential(*list(RESNET.children())[: 10 - drop]).state_dict()


def in_unet() -> State:
    network = smp.Unet("resnet18", encoder_weights=None)
    network.encoder.load_state_dict({k: v for k, v in STATE.items() if not k.startswith("fc")})
    return network.state_dict()


STYLES: dict[str, Callable[[], State]] = {
    "torchvision": lambda: STATE,
    "timm": lambda: timm.create_model("resnet18").eval().state_dict() | STATE,
    "DDP": lambda: prefixed("module.", STATE),
    "Lightning": lambda: prefixed("model.encoder.", STATE),
    "compiled": lambda: prefixed("_orig_mod.module.backbone._orig_mod.", STATE),
    "any prefix": lambda: prefixed("my.very.own_net0.", STATE),
    "lightly": lambda: prefixed("backbone.", numbered(1)),
    "lightly with head": lambda: prefixed("backbone.", numbered(0)),
    "smp full model": in_unet,
    "projection head": lambda: {**prefixed("f.", STATE), "g.0.weight": torch.ones(8, 512)},
    "half": lambda: {k: v.half() if v.is_floating_point() else v for k, v in STATE.items()},
    "without counters": lambda: {k: v for k, v in STATE.items() if not k.endswith(COUNTER)},
}


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_names_fits_whole(style: str) -> None:
    encoder, state = build("resnet18"), STYLES[style]()
    done = transfer(encoder, state, source="file")
    assert (done.tensors, done.of_tensors, done.parameter_share) == (N, N, 1.0)
    assert done.source == "file"
    counted = sum(not name.endswith(COUNTER) for name in state)
    assert done.unused == counted - N
    if style == "half":
        assert same(encoder, {k: v.to(STATE[k].dtype) for k, v in state.items()})
    elif style == "without counters":
        assert encoder.get_buffer(f"bn1.{COUNTER}") == 0
        assert same(encoder, {**encoder.state_dict(), **state})
    else:
        assert same(encoder)


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("resnet10t", "resnet10t"),  # tu-, not flattened
        ("tu-resnet18", "resnet18"),
        ("convnext_atto", "convnext_atto"),  # stages.0 -> stages_0
        ("efficientnet_b0", "efficientnet_b0"),
        ("tu-densenetblur121d", "densenetblur121d"),  # features.conv0 -> features_conv0
        ("densenet121", "densenet121"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "student.backbone."])
def test_timms_names_fit_smps_encoders(name: str, full: str, prefix: str) -> None:
    model, encoder = randomised(timm.create_model(full)), build(name).eval()
    done = transfer(encoder, prefixed(prefix, model.state_dict()), source="file")
    assert done.tensors == done.of_tensors
    mine = [t for n, t in encoder.state_dict().items() if not n.endswith(COUNTER)]
    theirs = [t for n, t in model.state_dict().items() if not n.endswith(COUNTER)]
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=False))
    assert done.unused == len(theirs) - len(mine)


def test_features_are_those_of_the_model_that_was_loaded() -> None:
    model, encoder = timm.create_model("convnext_atto").eval(), build("convnext_atto").eval()
    transfer(encoder, model.state_dict(), source="file")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        last = model.stages(model.stem(images))
        torch.testing.assert_close(encoder(images)[-1], last)


def test_our_own_encoders_fit_themselves_and_a_tu_unet() -> None:
    network = randomised(smp.Unet("tu-resnet10t", encoder_weights=None))
    encoder = build("resnet10t")
    assert transfer(encoder, network.state_dict(), source="unet").parameter_share == 1
    assert same(encoder, network.encoder.state_dict())
    other = build("resnet10t")
    assert transfer(other, encoder.state_dict(), source="run").unused == 0
    assert same(other, encoder.state_dict())


def test_old_densenet_names_and_children_by_number() -> None:
    model = randomised(torchvision.models.densenet121(weights=None))
    state = model.state_dict()
    old = {}
    for name, tensor in state.items():
        for part in ("norm", "conv"):
            for digit in "12":
                if "denselayer" in name:
                    name = name.replace(f".{part}{digit}.", f".{part}.{digit}.")
        old[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    numbered = nn.Sequential(*model.features.children()).state_dict()
    nested = nn.Sequential(*list(model.children())[:-1]).state_dict()
    for given in (old, numbered, nested, prefixed("backbone.", numbered)):
        encoder = build("densenet121")
        assert transfer(encoder, given, source="file").parameter_share == 1
        assert same(encoder, state)


@pytest.mark.parametrize(
    ("leader", "follower"),
    [
        ("module.encoder_q.", "module.encoder_k."),
        ("student.backbone.", "teacher.backbone."),
        ("online_network.", "target_network."),
        ("model.", "model_ema."),
        ("backbone.", "backbone_momentum."),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_that_fit_the_trained_one_is_taken_and_said(
    leader: str, follower: str, swapped: bool
) -> None:
    trailing = {k: v * 2 if v.is_floating_point() else v for k, v in STATE.items()}
    parts = [prefixed(leader, STATE), prefixed(follower, trailing)]
    state = {**parts[swapped], **parts[not swapped]}
    encoder = build("resnet18")
    done = transfer(encoder, state, source="file")
    assert same(encoder)
    assert done.source == f"file ({leader[:-1]}, not {follower[:-1]})"


def test_two_that_fit_with_equal_values_need_no_word() -> None:
    state = {**prefixed("a.", STATE), **prefixed("b.", STATE)}
    assert transfer(build("resnet18"), state, source="file").source == "file"


def refused(encoder: nn.Module, state: State, match: str, **more: Any) -> str:
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(UserError, match=match) as caught:
        transfer(encoder, state, source="file.pth", **more)
    assert same(encoder, before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_shallower_file_is_refused_with_counts_and_near_names() -> None:
    told = refused(build("resnet34"), STATE, r"^file.pth: fits 100 of 180 encoder tensors")
    assert "layer1.2.conv1.weight [64, 64, 3, 3] (nearest in the file: layer1." in told
    assert "and 77 more" in told
    assert "--allow-partial" in told


def test_a_deeper_file_is_refused_though_all_fits() -> None:
    state = torchvision.models.resnet34(weights=None).state_dict()
    for prefix in ("", "module.encoder."):
        encoder = build("resnet18")
        told = refused(encoder, prefixed(prefix, state), "is of another architecture")
        assert f"{prefix}layer1.2.conv1.weight" in told
        done = transfer(encoder, prefixed(prefix, state), source="file", allow_partial=True)
        assert (done.tensors, done.of_tensors, done.unused) == (N, N, 82)


@pytest.mark.parametrize("other", ["seresnet18", "resnet50", "resnet18d"])
def test_relatives_of_a_resnet18_are_refused(other: str) -> None:
    refused(build("resnet18"), timm.create_model(other).state_dict(), "file.pth: (is|fits)")


def test_one_lacking_statistic_is_refused() -> None:
    state = {k: v for k, v in STATE.items() if k != "layer2.0.bn1.running_var"}
    told = refused(build("resnet18"), state, "fits 99 of 100 encoder tensors, 100 % of parameters")
    assert "Missing: layer2.0.bn1.running_var [128] (nearest in the file: layer" in told


def test_another_shape_is_shown() -> None:
    state = STATE | {"conv1.weight": torch.ones(64, 1, 7, 7)}
    told = refused(build("resnet18"), prefixed("net.", state), "fits 99 of 100")
    assert "conv1.weight [64, 3, 7, 7] (nearest in the file: net.conv1.weight [64, 1, 7" in told


def test_a_renamed_tensor_is_the_nearest() -> None:
    state = dict(STATE)
    state["layer2.0.norm1.running_var"] = state.pop("layer2.0.bn1.running_var")
    told = refused(build("resnet18"), state, "fits 99 of 100")
    assert "(nearest in the file: layer2.0.norm1.running_var [128])" in told


def test_partial_loads_are_counted() -> None:
    state = {k: v for k, v in STATE.items() if not k.startswith("layer4")}
    encoder = build("resnet18")
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    done = transfer(encoder, state, source="file", allow_partial=True)
    loaded = sum(v.numel() for k, v in encoder.named_parameters() if not k.startswith("layer4"))
    total = sum(p.numel() for p in encoder.parameters())
    assert (done.tensors, done.of_tensors, done.unused) == (75, 100, 2)
    assert done.parameter_share == pytest.approx(loaded / total)
    assert "75 of 100 encoder tensors" in done.sentence()
    kept = {k: before[k] if k.startswith("layer4") else STATE[k] for k in before}
    assert same(encoder, kept)


@pytest.mark.parametrize("allow_partial", [False, True])
def test_nothing_in_common_is_always_refused(allow_partial: bool) -> None:
    state = {"words.embedding": torch.ones(3, 4), "words.num_batches_tracked": torch.tensor(1)}
    told = refused(build("resnet18"), state, "fits 0 of 100", allow_partial=allow_partial)
    assert "--allow-partial" not in told


def test_values_that_are_not_finite_are_refused() -> None:
    state = STATE | {"bn1.running_var": torch.full((64,), 1e6).half()}
    refused(build("resnet18"), state, "bn1.running_var holds values that are not finite")


def test_moved_is_the_relative_distance() -> None:
    encoder = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert moved(before, encoder) == 0
    with torch.no_grad():
        encoder[0].weight += torch.tensor([[3.0, 4.0]])
    encoder[1].running_mean += 100  # no parameter
    norm = sum(float(before[k].square().sum()) for k, _ in encoder.named_parameters()) ** 0.5
    assert moved(before, encoder) == pytest.approx(5 / norm)


def test_a_start_of_nothing_has_no_distance() -> None:
    encoder = nn.Linear(2, 1)
    nothing = {name: torch.zeros_like(tensor) for name, tensor in encoder.state_dict().items()}
    assert moved(nothing, encoder) == math.inf
    encoder.load_state_dict(nothing)
    assert moved(nothing, encoder) == 0


def small() -> nn.Module:
    """Five tensors, of 16 parameters."""
    return nn.ModuleDict(
        {"stem": nn.Linear(2, 3), "mid": nn.Linear(3, 1, bias=False), "end": nn.Linear(1, 2)}
    )


MEND = "Choose the --encoder that it was made with"
PARTLY = f"{MEND}, or pass --allow-partial to load what fits"
ALL = {name: tensor + 1 for name, tensor in small().state_dict().items()}


def without(*names: str) -> State:
    return {name: tensor for name, tensor in ALL.items() if name not in names}


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (
            {},
            "fits 0 of 5 encoder tensors, 0 % of parameters. Missing: stem.weight [3, 2] (nearest "
            "in the file: nothing); stem.bias [3] (nearest in the file: nothing); mid.weight "
            f"[1, 3] (nearest in the file: nothing); and 2 more. {MEND}",
        ),
        (  # three, so none more; the first of another shape, the others nearest by name
            without("end.weight", "end.bias")
            | {"mid.weight": torch.ones(3), "x": torch.ones(1, 3)},
            "fits 2 of 5 encoder tensors, 56.2 % of parameters. Missing: mid.weight [1, 3] "
            "(nearest in the file: mid.weight [3]); end.weight [2, 1] (nearest in the file: "
            "mid.weight [3]); end.bias [2] (nearest in the file: stem.bias [3]). " + PARTLY,
        ),
        (  # of the same shape, however little alike in name
            {**without("end.bias"), "end.bia": torch.ones(3), "other": torch.ones(2)},
            "fits 4 of 5 encoder tensors, 87.5 % of parameters. Missing: end.bias [2] (nearest in "
            f"the file: other [2]). {PARTLY}",
        ),
        (  # what is taken for another tensor is not near, if one of its shape is left
            prefixed("end.", without("end.bias"))
            | {"bias.of.end": torch.ones(2), "y": torch.ones(2)},
            "fits 4 of 5 encoder tensors, 87.5 % of parameters. Missing: end.bias [2] (nearest in "
            f"the file: bias.of.end [2]). {PARTLY}",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_told_with_what_is_near(state: State, told: str) -> None:
    with pytest.raises(UserError) as caught:
        transfer(small(), state, source="file")
    assert str(caught.value) == f"file: {told}"


def test_what_is_not_finite_is_told_with_its_mend() -> None:
    with pytest.raises(UserError) as caught:
        transfer(small(), ALL | {"end.bias": torch.tensor([1, torch.nan])}, source="file")
    assert str(caught.value) == (
        "file: end.bias holds values that are not finite. "
        "The run that made it diverged, or half precision was too narrow for it"
    )


def test_a_file_s_deeper_stages_are_counted_and_named() -> None:
    encoder = nn.ModuleDict({"stage0": nn.ModuleList([nn.Linear(1, 1)])})
    more = {f"stage0.{i}.{of}": torch.ones(1) for i in (1, 2) for of in ("weight", "bias")}
    state = {**encoder.state_dict(), **more, "head.weight": torch.ones(1)}
    with pytest.raises(UserError) as caught:
        transfer(encoder, state, source="file")
    assert str(caught.value) == (
        "file: is of another architecture: beside all 2 encoder tensors it holds 4 more in the "
        "same stages (stage0.1.weight, stage0.1.bias, stage0.2.weight). Choose the --encoder that "
        "it was made with, or pass --allow-partial"
    )


def test_of_several_networks_all_names_are_said() -> None:
    other = {name: tensor + 1 for name, tensor in ALL.items()}
    state = {**ALL, **prefixed("netX.", other), **prefixed("teacher.c.", other)}
    source = transfer(small(), state, source="file").source
    assert source == "file (the top level, not netX, teacher.c)"


def test_nothing_in_the_file_is_no_match() -> None:
    assert best_match(small(), {"stem": torch.ones(1)}) == (Match("", {}), [])


def test_names_are_tidied_wherever_compile_and_torchvision_marked_them() -> None:
    assert tidy("_orig_mod.net._orig_mod.layer1.0.conv1.weight") == "net.layer1.0.conv1.weight"
    old = "features.denseblock1.denselayer12.norm.1.weight"
    assert tidy(old) == "features.denseblock1.denselayer12.norm1.weight"


def test_names_are_spelled_from_every_lone_module_on_down() -> None:
    blocks = nn.ModuleDict(
        {
            "stages_0": nn.Sequential(nn.Linear(1, 1, bias=False)),
            "act": nn.ReLU(),
            "end": nn.ModuleDict({"to_out": nn.Linear(1, 1, bias=False)}),
        }
    )
    blocks.register_parameter("scale", nn.Parameter(torch.ones(1)))
    encoder = nn.ModuleDict({"net": nn.ModuleDict({"model": blocks})})
    stage, end = "net.model.stages_0.0.weight", "net.model.end.to_out.weight"
    scale = "net.model.scale"
    assert spellings(encoder) == [
        {name: name for name in (scale, stage, end)},
        {name.replace("net", "0", 1): name for name in (scale, stage, end)},
        {name.removeprefix("net."): name for name in (scale, stage, end)},
        {name.replace("net.model", "0"): name for name in (scale, stage, end)},
        {
            "scale": scale,
            "stages.0.0.weight": stage,
            "stages_0.0.weight": stage,
            "end.to_out.weight": end,
        },
        {"0.0.weight": stage, "2.to_out.weight": end},
    ]
    lone = nn.Module()
    lone.register_parameter("scale", nn.Parameter(torch.ones(1)))
    assert spellings(lone) == [{"scale": "scale"}]
