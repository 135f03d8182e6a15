"""build(name): smp's encoders, timm's among them, under timm's names, and a few of our own.

An encoder takes images [B,3,H,W], H and W multiples of its stride, to a list of feature maps from
fine to coarse; `out_channels` are their channels (0 where a level is empty) and `output_stride` is
the reduction of the last. The same contract serves pre-training and fine-tuning, so a transfer is
a strict load.

Our own are `googlenet`, `unet-original`, and timm's plain vision transformers under timm's names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewmask.encoders.googlenet import GoogLeNet
from fewmask.encoders.unet import UNetEncoder
from fewmask.encoders.vit import ViTEncoder, is_plain_transformer
from fewmask.flags import near
from fewmask.types import UserError

OWN: dict[str, Callable[..., nn.Module]] = {"googlenet": GoogLeNet, "unet-original": UNetEncoder}
"""Encoders that neither smp nor timm has."""

NAMED_OTHERWISE = ("senet154", "mobileone")
"""Encoders whose tensors smp names unlike timm; their ImageNet weights are smp's."""


def build(name: str, *, depth: int = 5, in_channels: int = 3) -> nn.Module:
    """An encoder with random weights, drawn from torch's global generator.

    `name` is timm's (`resnet50`, `vgg16_bn`, `tu-resnet10t`) or one of ours. `depth` is the number
    of halvings (`unet-original` has four). Raises UserError as `smp_name` does.
    """
    return _made(smp_name(name), depth=depth, in_channels=in_channels)


def _made(found: str, **options: Any) -> nn.Module:
    from segmentation_models_pytorch.encoders import get_encoder

    if found == "unet-original":
        return UNetEncoder()
    with registered(found):
        encoder: nn.Module = get_encoder(found, weights=None, **options)
    return encoder


@lru_cache(maxsize=64)
def smp_name(name: str) -> str:
    """What smp calls the encoder `name`: its own where it has that name, else the `tu-` form.

    Encoders of our own keep their names. Nothing is allocated: the encoder is tried on torch's meta
    device. Raises UserError for an unknown name (with the near ones), and for an encoder that gives
    no pyramid of feature maps at every size.
    """
    import timm
    from segmentation_models_pytorch.encoders import encoders as smps

    plain = name.removeprefix("tu-")
    if name in OWN or name in smps:
        found = name
    elif timm.is_model(plain) and is_plain_transformer(plain):
        found = plain
    elif name == plain and timm.is_model(name):
        # A pre-training tag (resnet50.a1_in1k) chooses weights, not an architecture.
        architecture = name.partition(".")[0]
        found = architecture if architecture in smps else f"tu-{name}"
    elif name != plain and timm.is_model(plain):
        found = name
    else:
        raise UserError(
            f"unknown encoder {name}{near(plain, sorted({*OWN, *smps, *timm.list_models()}))}. "
            "Expected a name of timm's or of segmentation_models_pytorch's, such as resnet50"
        )
    _try_out(found, name)
    return found


@contextmanager
def registered(name: str) -> Iterator[None]:
    """Within the block smp builds the encoder `name`, also where it is one of ours.

    smp's models take their encoder from a table of names; ours is in it for that long.
    """
    from segmentation_models_pytorch.encoders import encoders as table

    if name in table or name.startswith("tu-") or name == "unet-original":
        yield
        return
    if name in OWN:
        entry = {"encoder": OWN[name], "params": {}}
    else:
        entry = {"encoder": ViTEncoder, "params": {"name": name}}
    table[name] = entry
    try:
        yield
    finally:
        table.pop(name, None)


def _try_out(found: str, name: str) -> None:
    try:
        with torch.random.fork_rng(devices=[]):  # a look at a model is no draw of its weights
            _try_on(found, "meta")
    except Exception as problem:  # timm's models refuse in every way there is
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise UserError(
            f"encoder {name} gives no feature maps of strides 2 to 32 at every image size "
            f"({reason}). Choose another, such as resnet50 or vit_small_patch16_224"
        ) from problem


def _try_on(found: str, device: str) -> None:
    try:
        with torch.device(device), torch.no_grad():
            encoder = _made(found).eval()
            # Two sizes, neither the 224 px that a model of one fixed size would take.
            for side in (96, 160):
                maps = encoder(torch.zeros(1, 3, side, side))
                shapes = [(m.shape[1], side / m.shape[2]) for m in maps]
                channels: Any = encoder.out_channels
                wanted = [(c, 2.0**i) for i, c in enumerate(channels)]
                if shapes != wanted:
                    raise ValueError(f"its feature maps are of strides {[s for _, s in shapes]}")
    except (NotImplementedError, RuntimeError) as problem:
        if device != "meta" or "meta" not in str(problem):
            raise
        _try_on(found, "cpu")  # a few models compute with values as they are built


def imagenet_state(name: str) -> dict[str, Tensor]:
    """ImageNet weights of an encoder, under timm's names, classifier included.

    timm's download; smp's for the encoders that only smp has, torchvision's for GoogLeNet. Raises
    UserError where there is no network or there are no such weights.
    """
    smp_name(name)
    if name == "unet-original":
        raise UserError(
            "there are no ImageNet weights of unet-original. Pass --init scratch, or pre-train it"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            model = _pretrained(name)
    except Exception as problem:  # of the hub, of requests, of timm: each version raises others
        reason = (str(problem).splitlines() or [type(problem).__name__])[0][:200]
        raise UserError(
            f"could not download ImageNet weights of {name} ({reason}). "
            "Pass --weights FILE to use a local file, or --init scratch"
        ) from problem
    return dict(model.state_dict())


def _pretrained(name: str) -> nn.Module:
    import timm
    from segmentation_models_pytorch.encoders import get_encoder

    plain = name.removeprefix("tu-")
    if name == "googlenet":
        from torchvision.models import googlenet

        model: nn.Module = googlenet(weights="IMAGENET1K_V1", progress=False)
    elif timm.is_model(plain) and not name.startswith(NAMED_OTHERWISE):
        model = timm.create_model(plain, pretrained=True)
    else:
        model = get_encoder(name, weights="imagenet")
    return model


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Keep all batch norms of `module` in evaluation mode, through later calls of `.train()` too.

    Their running statistics stay as they are; their scales and shifts still train. Returns
    `module`.
    """
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            # On the instance: a subclass made here couldn't be sent to another process.
            norm.__dict__["train"] = partial(_stay_in_evaluation, norm)
            norm.eval()
    return module


def _stay_in_evaluation(norm: nn.Module, mode: bool = True) -> Any:
    return type(norm).train(norm, False)
