"""The decoders, by name: smp's."""

from __future__ import annotations

import inspect

import segmentation_models_pytorch as smp
from torch import nn

from fewmask import encoders
from fewmask.flags import near
from fewmask.types import UserError

DECODERS: dict[str, type[nn.Module]] = {
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "fpn": smp.FPN,
    "pspnet": smp.PSPNet,
    "deeplabv3": smp.DeepLabV3,
    "deeplabv3plus": smp.DeepLabV3Plus,
    "linknet": smp.Linknet,
    "manet": smp.MAnet,
    "pan": smp.PAN,
    "segformer": smp.Segformer,
    "upernet": smp.UPerNet,
}
"""Names of the command line -> smp's classes."""


def build(decoder: str, encoder: str, n_logits: int) -> nn.Module:
    """A network with random weights: images [B,3,H,W] -> logits [B,n_logits,H,W].

    H and W are multiples of the encoder's stride. Raises UserError for an unknown decoder or
    encoder (with near names), or where the two do not go together.
    """
    check_name(decoder)
    name = encoders.smp_name(encoder)
    try:
        return DECODERS[decoder](encoder_name=name, encoder_weights=None, classes=n_logits)
    except (ValueError, KeyError, RuntimeError, TypeError) as problem:
        raise UserError(
            f"--decoder {decoder} does not go together with --encoder {encoder} ({problem}). "
            "Choose a convolutional encoder such as resnet50, or --decoder unet"
        ) from problem


def check_name(decoder: str) -> None:
    """Raises UserError for a decoder that is not there, naming the near ones."""
    if decoder not in DECODERS:
        known = list(DECODERS)
        raise UserError(
            f"unknown decoder {decoder}{near(decoder, known)}; known: {', '.join(known)}"
        )


def smp_config(network: nn.Module) -> dict[str, object]:
    """What `smp.from_pretrained` reads from config.json to build the same network."""
    config = dict(network.config)  # type: ignore[arg-type]
    known = inspect.signature(type(network).__init__).parameters
    config = {k: v for k, v in config.items() if k in known}
    return {**config, "encoder_weights": None, "_model_class": type(network).__name__}
