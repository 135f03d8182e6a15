"""Plain vision transformers of timm's as encoders: ViT, DeiT, DINOv2, DINOv3, EVA.

A plain transformer has one resolution. The pyramid that decoders ask for is made without a weight:
tokens of blocks at equal depths, laid out as maps and resized (Li et al. 2022, arXiv:2203.16527,
and Ranftl et al. 2021, arXiv:2103.13413, learn this step).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fewmask.encoders.pixels import renormalise

FAMILIES = ("vision_transformer", "deit", "eva")
"""timm's modules whose models take images of any size."""


def is_plain_transformer(name: str) -> bool:
    """Whether timm's model `name` (with or without a tag) is one for `ViTEncoder`."""
    from timm.models import is_model_in_modules

    return bool(is_model_in_modules(name, FAMILIES))


class ViTEncoder(nn.Module):
    """Images [B,3,H,W] of any size -> maps of strides 1 (the images), 2, 4, 8, 16 and 32.

    `model` is timm's, without its head, so timm's weights load strictly. The maps are tokens of the
    blocks at 1/4, 2/4, 3/4 and 4/4 of the depth, after the model's final norm; the last map always
    is the last block's. At stride 2 there is nothing (0 channels), as in smp's other transformers.

    Sides that are no multiple of the patch are resized to the nearest one, positions are
    interpolated, and the maps brought to H/4, H/8, ...: bilinear, by averages where they shrink to
    half or less.
    """

    model: Any

    def __init__(self, name: str, depth: int = 5, output_stride: int = 32) -> None:
        import timm

        super().__init__()
        if output_stride != 32 or depth < 3:
            raise ValueError("the strides of a vision transformer cannot be dilated")
        self.model = timm.create_model(name, dynamic_img_size=True)
        n_blocks = len(self.model.feature_info)
        self.model.prune_intermediate_layers([n_blocks - 1], prune_norm=False, prune_head=True)
        width: int = self.model.num_features
        self.depth = depth
        self.patch: int = self.model.feature_info[0]["reduction"]
        self.has_prefix_tokens: bool = self.model.num_prefix_tokens > 0
        levels = depth - 1
        self.blocks = [n_blocks * (i + 1) // levels - 1 for i in range(levels)]
        self.out_channels = [3, 0, *[width] * levels]

    @property
    def output_stride(self) -> int:
        """Reduction of the last map."""
        return int(2**self.depth)

    def set_in_channels(self, channels: int, **_: object) -> None:
        """smp asks for it. Raises ValueError for anything but RGB."""
        if channels != 3:
            raise ValueError("the vision transformers take three channels")

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [found for found, _ in self.tokens(images)]
        height, width = images.shape[-2:]
        pyramid = [resized(m, height, width, 4 << i) for i, m in enumerate(maps)]
        nothing = images.new_empty(images.shape[0], 0, -(-height // 2), -(-width // 2))
        return [images, nothing, *pyramid]

    def tokens(self, images: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """(map [B,D,h,w], prefix tokens [B,P,D] or None) of each block, at one token a patch."""
        height, width = (max(1, round(side / self.patch)) for side in images.shape[-2:])
        told = self.model.pretrained_cfg
        x = renormalise(images, told["mean"], told["std"])
        if x.shape[-2:] != (height * self.patch, width * self.patch):
            x = functional.interpolate(
                x, (height * self.patch, width * self.patch), mode="bilinear", align_corners=False
            )
        found = self.model.forward_intermediates(
            x,
            indices=self.blocks,
            return_prefix_tokens=self.has_prefix_tokens,
            norm=True,
            intermediates_only=True,
        )
        return [own if self.has_prefix_tokens else (own, None) for own in found]


def resized(tokens: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Maps [B,D,h,w] -> [B,D,height/stride,width/stride], rounded up."""
    target = (-(-height // stride), -(-width // stride))
    own = tuple(tokens.shape[-2:])
    if own == target:
        return tokens
    if own[0] >= 2 * target[0] and own[1] >= 2 * target[1]:
        if own[0] % target[0] == own[1] % target[1] == 0:  # the form that every export knows
            return functional.avg_pool2d(tokens, (own[0] // target[0], own[1] // target[1]))
        return functional.adaptive_avg_pool2d(tokens, target)
    return functional.interpolate(tokens, target, mode="bilinear", align_corners=False)
