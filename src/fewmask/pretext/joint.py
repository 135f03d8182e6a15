"""A segmentation decoder that is pre-trained together with an encoder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewmask.types import UserError


def decoder_for(encoder: nn.Module, decoder: str, size: int) -> tuple[nn.Module, int]:
    """A segmentation decoder with random weights for an encoder's maps, and its output's channels.

    Raises UserError where it takes other maps (dilated encoders, three levels) or another size.
    """
    from fewmask import decoders

    going = "expected unet, unetplusplus, fpn, linknet, manet, segformer or upernet"
    with own_flag():
        network = decoders.build(decoder, name_of(encoder), 1)
    its = getattr(network, "decoder", None)
    same = ("out_channels", "output_stride")
    if its is None or any(
        _plain(getattr(encoder, k)) != _plain(getattr(network.encoder, k)) for k in same
    ):
        raise UserError(f"--with-decoder {decoder}: changes or replaces the encoder; {going}")
    was = encoder.training, its.training
    try:
        with torch.no_grad():
            found: Tensor = its.eval()(encoder.eval()(torch.zeros(1, 3, size, size)))
    except (RuntimeError, ValueError, TypeError, IndexError) as problem:
        why = " ".join(str(problem).split())[:200]
        raise UserError(
            f"--with-decoder {decoder}: cannot work at --size {size} ({why}). Choose a multiple of "
            "32, or another decoder"
        ) from problem
    finally:
        encoder.train(was[0])
        its.train(was[1])
    return its, found.shape[1]


@contextmanager
def own_flag() -> Iterator[None]:
    """Mistakes of a decoder's choice, told by the flag that pre-training has for it."""
    try:
        yield
    except UserError as mistake:
        faults = (fault.replace("--decoder ", "--with-decoder ") for fault in mistake.faults)
        raise UserError(
            *(re.sub("^unknown decoder ", "--with-decoder: unknown decoder ", f) for f in faults)
        ) from None


def _plain(value: Any) -> Any:
    return value if isinstance(value, int) else list(value)


def name_of(encoder: nn.Module) -> str:
    """A name under which smp builds an encoder of the same kind and channels.

    Decoders depend on nothing else, so the name of a sister (resnet18 of a resnet34) will do.
    Raises UserError for encoders that are neither smp's nor timm's.
    """
    from segmentation_models_pytorch.encoders import encoders as table

    if type(encoder).__name__ == "TimmUniversalEncoder":
        return f"tu-{encoder.name}"
    for name, entry in table.items():
        channels = entry["params"].get("out_channels", ())
        if type(encoder) is entry["encoder"] and list(channels) == _plain(encoder.out_channels):
            return str(name)
    raise UserError(
        f"--with-decoder: goes with smp's and timm's encoders, not with {type(encoder).__name__}. "
        "Choose one such as resnet50, or leave --with-decoder out"
    )
