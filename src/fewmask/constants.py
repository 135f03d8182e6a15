"""Constants on a device: copied there once, so that no forward pass waits for them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

Numbers = float | tuple["Numbers", ...]


def constant(values: Numbers, like: Tensor) -> Tensor:
    """Numbers, nested as they are, in the dtype and on the device of a tensor. Not to be changed.

    `like.new_tensor(values)` would copy them from the host's memory each time, and a GPU's host
    waits for that until all work before it is done.
    """
    if torch.compiler.is_compiling() or type(like) is not Tensor:
        return like.new_tensor(values)  # a traced value must not outlive its trace
    return _kept(values, like.dtype, like.device)


@lru_cache(maxsize=256)
def _kept(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # else a first use in inference mode bars it from training
        return torch.tensor(values, dtype=dtype, device=device)
