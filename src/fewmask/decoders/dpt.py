"""DPT: tokens of four blocks of a vision transformer, reassembled and fused (Ranftl et al. 2021).

https://arxiv.org/abs/2103.13413; decoder and head are smp's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fewmask import encoders
from fewmask.encoders.vit import ViTEncoder, resized


@dataclass(frozen=True)
class DPT:
    """DPT's decoder, on plain vision transformers."""

    name: ClassVar[str] = "dpt"

    def network(self, encoder: str, n_logits: int) -> nn.Module:
        """The network. Raises ValueError for an encoder that is no plain vision transformer."""
        found = encoders.build(encoder)
        if not isinstance(found, ViTEncoder):
            raise ValueError(
                "it reads the tokens of a plain vision transformer: timm's vit_*, deit_*, eva02_*, "
                "*_dinov2 or *_dinov3, such as vit_small_patch16_224"
            )
        return DPTNetwork(found, n_logits)


class DPTNetwork(nn.Module):
    """Images [B,3,H,W] -> logits [B,n_logits,H,W]; H and W are multiples of 32.

    Patches of 14 pixels don't fit strides of powers of two, so their maps are resized to stride 16
    first. The class token is read out by concatenation ("project"), where there is one.
    """

    def __init__(self, encoder: ViTEncoder, n_logits: int) -> None:
        from segmentation_models_pytorch.base import initialization
        from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead

        super().__init__()
        self.encoder = encoder
        self.stride = 2 ** round(math.log2(encoder.patch))
        self.decoder = DPTDecoder(
            encoder_out_channels=[encoder.out_channels[-1]] * 4,
            encoder_output_strides=[self.stride] * 4,
            encoder_has_prefix_tokens=encoder.has_prefix_tokens,
            readout="cat" if encoder.has_prefix_tokens else "ignore",
        )
        self.segmentation_head = DPTSegmentationHead(256, n_logits)
        initialization.initialize_decoder(self.decoder)
        initialization.initialize_head(self.segmentation_head)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        found = self.encoder.tokens(images)
        maps = [resized(own, height, width, self.stride) for own, _ in found]
        logits: Tensor = self.segmentation_head(self.decoder(maps, [prefix for _, prefix in found]))
        return logits
