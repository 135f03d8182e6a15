"""What views and paired augmentation share: a step's random numbers, scales of colours, pieces."""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch

from fewmask.constants import constant

if TYPE_CHECKING:
    from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean of R, G, B for values of 0 to 1."""
STD = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation of R, G, B for values of 0 to 1."""

LUMA = (0.299, 0.587, 0.114)
"""The weights of R, G, B in grey: ITU-R BT.601, as in PIL's "L" and torchvision's greyscale."""

_CACHED = 1 << 16  # pixels: a CPU works in pieces of about this size, which stay in its cache
_FEWEST = 16  # images in such a piece, so that the price of calling PyTorch is shared


def step_generator(
    seed: int, step: int, device: torch.device | str, stream: int = 0
) -> torch.Generator:
    """A generator whose state is a function of (seed, step, stream), whatever ran before.

    The three are hashed, so that neighbouring steps and seeds are unrelated. `stream` separates
    uses within a step. A generator on the CPU serves images on any device (only the parameters,
    a few dozen numbers an image, are drawn with it).
    """
    digest = blake2b(f"{seed}/{step}/{stream}".encode(), digest_size=8).digest()
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator


def to_unit(images: Tensor) -> Tensor:
    """Images uint8 [B,3,H,W] of 0..255 -> float32 [B,3,H,W] of 0..1."""
    return images.to(torch.float32).div_(255)


def normalise(images: Tensor) -> Tensor:
    """Images float [B,3,H,W] of 0..1 -> ImageNet's mean 0 and standard deviation 1 a channel."""
    scale = constant(tuple(1 / s for s in STD), images).view(3, 1, 1)
    offset = constant(tuple(-m / s for m, s in zip(MEAN, STD, strict=True)), images).view(3, 1, 1)
    return torch.addcmul(offset, images, scale)


def is_range(numbers: tuple[float, ...]) -> bool:
    """Whether these are two positive numbers, the smaller first."""
    return len(numbers) == 2 and 0 < numbers[0] <= numbers[1] < math.inf


def improper(settings: object, names: tuple[str, ...]) -> list[str]:
    """A fault for each named field that is not between 0 and 1."""
    values = {name: getattr(settings, name) for name in names}
    return [f"--{n} {v:g} must lie in 0..1." for n, v in values.items() if not 0 <= v <= 1]


def pieces(images: Tensor, size: int) -> list[slice]:
    """The batch in the pieces that are worked on at once: all of it on an accelerator."""
    n, _, height, width = images.shape
    step = max(_FEWEST, _CACHED // max(size, height, width) ** 2)
    step = step if images.device.type == "cpu" else max(n, 1)
    return [slice(i, i + step) for i in range(0, n, step)]
