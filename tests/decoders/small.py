"""A small encoder for each decoder, and segmenters of them."""

from __future__ import annotations

import torch

from fewmask.decoders import Decoder
from fewmask.segmentation import Segmenter
from fewmask.types import Labels

ENCODERS = {"dpt": "vit_tiny_patch16_224", "segnet": "vgg11_bn", "unet-original": "unet-original"}
"""For those that don't take every encoder; the others are tested on RESNET."""
RESNET = "resnet18"


def encoder_of(name: str) -> str:
    return ENCODERS.get(name, RESNET)


def segmenter(decoder: str | Decoder, encoder: str, n_classes: int = 2) -> Segmenter:
    torch.manual_seed(0)
    names = tuple(f"class {i}" for i in range(n_classes))
    return Segmenter(encoder, decoder, Labels(names, tuple(range(n_classes))))
