"""build(name): smp's encoders, timm's among them, under timm's names.

An encoder takes images [B,3,H,W], H and W multiples of its stride, to a list of feature maps from
fine to coarse; `out_channels` are their channels (0 where a level is empty) and `output_stride` is
the reduction of the last. The same contract serves pre-training and fine-tuning, so a transfer is
a strict load.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewmask.flags import near
from fewmask.types import UserError

NAMED_OTHERWISE = ("senet154", "mobileone")
"""Encoders whose tensors smp names unlike timm; their ImageNet weights are smp's."""


def build(name: str, *, depth: int = 5, in_channels: int = 3) -> nn.Module:
    """An encoder with random weights, drawn from torch's global generator.

    `name` is timm's (`resnet50`, `vgg16_bn`, `tu-resnet10t`). Raises UserError as `smp_name` does.
    """
    from segmentation_models_pytorch.encoders import get_encoder

    found = smp_name(name)
    encoder: nn.Module = get_encoder(found, in_channels=in_channels, depth=depth, weights=None)
    return encoder


@lru_cache(maxsize=64)
def smp_name(name: str) -> str:
    """What smp calls the encoder `name`: its own where it has that name, else the `tu-` form.

    Nothing is allocated: the encoder is tried on torch's meta device. Raises UserError for an
    unknown name (with the near ones), and for an encoder that gives no pyramid of feature maps at
    any size, as plain vision transformers don't.
    """
    import timm
    from segmentation_models_pytorch.encoders import encoders as own

    plain = name.removeprefix("tu-")
    if name in own:
        found = name
    elif name == plain and timm.is_model(name):
        # A pre-training tag (resnet50.a1_in1k) chooses weights, not an architecture.
        architecture = name.partition(".")[0]
        found = architecture if architecture in own else f"tu-{name}"
    elif name != plain and timm.is_model(plain):
        found = name
    else:
        raise UserError(
            f"unknown encoder {name}{near(plain, sorted({*own, *timm.list_models()}))}. "
            "Expected a name of timm's or of segmentation_models_pytorch's, such as resnet50"
        )
    _try_out(found, name)
    return found


def _try_out(found: str, name: str) -> None:
    try:
        with torch.random.fork_rng(devices=[]):  # a look at a model is no draw of its weights
            _try_on(found, "meta")
    except Exception as problem:  # timm's models refuse in every way there is
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise UserError(
            f"encoder {name} gives no feature maps of strides 2 to 32 at every image size "
            f"({reason}). Choose a convolutional encoder such as resnet50"
        ) from problem


def _try_on(found: str, device: str) -> None:
    from segmentation_models_pytorch.encoders import get_encoder

    try:
        with torch.device(device), torch.no_grad():
            encoder = get_encoder(found, weights=None).eval()
            # Two sizes, neither the 224 px that a model of one fixed size would take.
            for side in (96, 160):
                maps = encoder(torch.zeros(1, 3, side, side))
                shapes = [(m.shape[1], side / m.shape[2]) for m in maps]
                wanted = [(c, 2.0**i) for i, c in enumerate(encoder.out_channels)]
                if shapes != wanted:
                    raise ValueError(f"its feature maps are of strides {[s for _, s in shapes]}")
    except (NotImplementedError, RuntimeError) as problem:
        if device != "meta" or "meta" not in str(problem):
            raise
        _try_on(found, "cpu")  # a few models compute with values as they are built


def imagenet_state(name: str) -> dict[str, Tensor]:
    """ImageNet weights of an encoder, under timm's names, classifier included.

    timm's download, or smp's for the encoders that only smp has. Raises UserError where there is
    no network or there are no such weights.
    """
    import timm
    from segmentation_models_pytorch.encoders import get_encoder

    smp_name(name)
    plain = name.removeprefix("tu-")
    try:
        with torch.random.fork_rng(devices=[]):
            if timm.is_model(plain) and not name.startswith(NAMED_OTHERWISE):
                model: nn.Module = timm.create_model(plain, pretrained=True)
            else:
                model = get_encoder(name, weights="imagenet")
    except Exception as problem:  # of the hub, of requests, of timm: each version raises others
        reason = (str(problem).splitlines() or [type(problem).__name__])[0][:200]
        raise UserError(
            f"could not download ImageNet weights of {name} ({reason}). "
            "Pass --weights FILE to use a local file, or --init scratch"
        ) from problem
    return dict(model.state_dict())


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
