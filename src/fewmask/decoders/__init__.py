"""The decoders. The union is the table of contents: a new decoder is one file and one line."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from functools import lru_cache
from typing import Any, get_args

import torch
from torch import nn

from fewmask import encoders
from fewmask.decoders.dpt import DPT
from fewmask.decoders.fcn import FCN8s, FCN16s, FCN32s
from fewmask.decoders.segnet import SegNet
from fewmask.decoders.smp import (
    FPN,
    PAN,
    DeepLabV3,
    DeepLabV3Plus,
    Linknet,
    MAnet,
    PSPNet,
    Segformer,
    Unet,
    UnetPlusPlus,
    UPerNet,
)
from fewmask.decoders.unet_original import UNetOriginal
from fewmask.flags import near
from fewmask.types import UserError

Decoder = (
    Unet
    | UnetPlusPlus
    | FPN
    | PSPNet
    | DeepLabV3
    | DeepLabV3Plus
    | Linknet
    | MAnet
    | PAN
    | Segformer
    | UPerNet
    | DPT
    | FCN32s
    | FCN16s
    | FCN8s
    | SegNet
    | UNetOriginal
)

DECODERS: dict[str, type[Decoder]] = {kind.name: kind for kind in get_args(Decoder)}
"""The decoders by the names that the command line knows."""


def build(decoder: str | Decoder, encoder: str, n_logits: int) -> nn.Module:
    """A network with random weights: images [B,3,H,W] -> logits [B,n_logits,H,W].

    H and W are multiples of the encoder's stride; the encoder is the network's `encoder`. Raises
    UserError for an unknown decoder or encoder (with near names), or where the two do not go
    together (with what does).
    """
    chosen = component(decoder)
    encoders.smp_name(encoder)
    try:
        return chosen.network(encoder, n_logits)
    except (ValueError, KeyError, RuntimeError, TypeError, AssertionError) as problem:
        raise UserError(_refusal(chosen, encoder, _reason(problem))) from problem


def try_out(decoder: str | Decoder, encoder: str) -> None:
    """Raises UserError as `build` does, without building anything in memory."""
    chosen = component(decoder)
    encoders.smp_name(encoder)
    reason = _obstacle(chosen, encoder)
    if reason is not None:
        raise UserError(_refusal(chosen, encoder, reason))


@lru_cache(maxsize=256)
def _obstacle(decoder: Decoder, encoder: str, device: str = "meta") -> str | None:
    """Why the two make no network, or None; found out on torch's meta device where it can be."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            decoder.network(encoder, 1)
    except Exception as problem:  # smp's and timm's models refuse in every way there is
        if device == "meta" and "meta" in str(problem):  # they compute as they are built
            return _obstacle(decoder, encoder, "cpu")
        return _reason(problem)
    return None


def _reason(problem: Exception) -> str:
    return " ".join(str(problem).split()).rstrip(".!") or type(problem).__name__


def _refusal(decoder: Decoder, encoder: str, reason: str) -> str:
    """What to tell the user: the reason, and which decoders go with the encoder."""
    others = [name for name, kind in DECODERS.items() if _obstacle(kind(), encoder) is None]
    return (
        f"--decoder {decoder.name} does not go together with --encoder {encoder} ({reason}). "
        f"With this encoder go --decoder {', '.join(others)}"
    )


def component(decoder: str | Decoder, **options: Any) -> Decoder:
    """The decoder of a name, with these options or its defaults; a decoder as it is.

    Raises UserError for an unknown name, with the near ones.
    """
    if isinstance(decoder, Decoder):
        return decoder
    name = str(decoder)
    if name not in DECODERS:
        known = list(DECODERS)
        raise UserError(f"unknown decoder {name}{near(name, known)}; known: {', '.join(known)}")
    return DECODERS[name](**options)


def options_of(decoder: Decoder) -> dict[str, Any]:
    """The options that are given or have a default of their own: all but None."""
    return {name: value for name, value in asdict(decoder).items() if value is not None}


def smp_config(network: nn.Module) -> dict[str, object] | None:
    """What `smp.from_pretrained` reads from config.json to build the same network.

    None for a network that smp cannot build: one with modules of our own in it.
    """
    if any(type(module).__module__.startswith("fewmask.") for module in network.modules()):
        return None
    config = dict(network.config)  # type: ignore[arg-type]
    known = inspect.signature(type(network).__init__).parameters
    config = {k: v for k, v in config.items() if k in known}
    return {**config, "encoder_weights": None, "_model_class": type(network).__name__}
