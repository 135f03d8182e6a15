"""A picture's visible part in a convolutional encoder: sparse convolution, imitated.

Tian et al. 2023 (SparK, arXiv:2301.03580, sec. 3.1): with submanifold sparse convolutions a map's
hidden positions stay empty, so the pattern of the mask doesn't dissolve over the layers and the
statistics are those of visible positions. Zeroing the outputs of dense ones gives the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewmask.types import UserError

OVER_POSITIONS = (_BatchNorm, nn.GroupNorm, nn.InstanceNorm2d)
"""Modules with statistics over positions: taken over the visible ones alone."""
SPREADING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.Linear, nn.LayerNorm)
"""Modules that mix positions, or add a bias at the hidden ones."""


class Visible:
    """Where the maps of one batch are visible; its methods are hooks on the encoder's modules.

    `shown` [B,K] are the numbers of the visible cells, in order, of `cells` x `cells` in all. All
    pictures show equally many, so every shape is known and nothing waits for the device.
    """

    def __init__(self, shown: Tensor, cells: int) -> None:
        self.shown, self.cells = shown, cells
        grid = torch.zeros(len(shown), cells * cells, device=shown.device)
        self.grid = grid.scatter_(1, shown, 1.0).view(-1, 1, cells, cells)
        self.masks: dict[tuple[int, torch.dtype], Tensor] = {}
        self.places: dict[int, Tensor] = {}
        self.under_way: list[int] = []

    def divides(self, height: int, width: int) -> bool:
        """Whether maps of this size are masked: those coarser than the cells are not.

        A position of theirs holds hidden and visible cells alike. Nothing leaks: beneath, what is
        hidden is zero. Raises UserError for sizes that are no multiple of the cells.
        """
        if height < self.cells:
            return False
        if height % self.cells or width != height:
            raise UserError(
                f"--pretext masked: the encoder has maps of {height} x {width}, which don't divide "
                f"into {self.cells} x {self.cells} cells. Choose an encoder such as resnet50"
            )
        return True

    def mask(self, side: int, kind: torch.dtype = torch.float32) -> Tensor:
        """[B,1,side,side]: 1 where visible, 0 where hidden."""
        if (side, kind) not in self.masks:
            times = side // self.cells
            fine = self.grid.to(kind).repeat_interleave(times, 2).repeat_interleave(times, 3)
            self.masks[side, kind] = fine
        return self.masks[side, kind]

    def rows(self, side: int) -> Tensor:
        """[B*N]: numbers of the visible ones among all B*side*side positions of a map."""
        if side not in self.places:
            times, device = side // self.cells, self.shown.device
            corner = self.shown // self.cells * times * side + self.shown % self.cells * times
            inside = torch.arange(times, device=device)
            inside = (inside[:, None] * side + inside).flatten()
            picture = torch.arange(len(self.shown), device=device)[:, None, None] * side * side
            self.places[side] = (picture + corner[:, :, None] + inside).flatten()
        return self.places[side]

    def hide(self, module: nn.Module, _: Any, out: Tensor) -> Tensor:
        """Zero where hidden: the outputs of convolutions, of poolings, of layers by position."""
        if out.ndim != 4:
            return out
        last = _channels_last(module, out)
        height, width = out.shape[1:3] if last else out.shape[2:]
        if not self.divides(height, width):
            return out
        mask = self.mask(height, out.dtype)
        return out * (mask.permute(0, 2, 3, 1) if last else mask)

    def gather(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Before a norm: [B,C,H,W] -> [B,C,N,1], the visible positions alone."""
        x = inputs[0]
        side = x.shape[2] if x.ndim == 4 and self.divides(*x.shape[2:]) else 0
        self.under_way.append(side)
        if not side:
            return inputs
        flat = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).index_select(0, self.rows(side))
        return (flat.view(len(x), -1, 1, x.shape[1]).permute(0, 3, 1, 2), *inputs[1:])

    def scatter(self, _: nn.Module, __: Any, out: Tensor) -> Tensor:
        """After a norm: back to [B,C,H,W], zero where hidden."""
        side = self.under_way.pop()
        if not side:
            return out
        n, width = out.shape[:2]
        flat = out.permute(0, 2, 3, 1).reshape(-1, width)
        whole = flat.new_zeros(n * side * side, width).index_copy(0, self.rows(side), flat)
        return whole.view(n, side, side, width).permute(0, 3, 1, 2)


def _channels_last(module: nn.Module, out: Tensor) -> bool:
    """Whether a layer's output [B,*,*,*] has its channels at the end, as ConvNeXt's blocks have."""
    if not isinstance(module, nn.LayerNorm):
        return isinstance(module, nn.Linear)
    fits = [out.shape[i] == module.normalized_shape[-1] for i in (1, 3)]
    return "2d" not in type(module).__name__ if all(fits) else fits[1]


@contextmanager
def sparsely(encoder: nn.Module, visible: Visible) -> Iterator[None]:
    """Within the block the encoder sees the visible cells alone; after it, it is as before."""
    handles = []
    for module in encoder.modules():
        if isinstance(module, OVER_POSITIONS):
            handles.append(module.register_forward_pre_hook(visible.gather))
            handles.append(module.register_forward_hook(visible.scatter))
        elif isinstance(module, SPREADING):
            handles.append(module.register_forward_hook(visible.hide))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def maps_of(encoder: nn.Module, side: int, cells: int) -> list[tuple[int, int]]:
    """(channels, side) of the encoder's maps, tried on an empty picture.

    Raises UserError where it works on tokens [B,N,C], among which nothing can be hidden here.
    """

    def refuse(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].ndim == 3:
            raise UserError(
                "--pretext masked: hides parts of the maps of convolutions, and this encoder "
                f"({getattr(encoder, 'name', type(encoder).__name__)}) works on tokens. Choose a "
                "convolutional one, such as resnet50, densenet121, vgg16_bn or convnext_tiny"
            )

    looked = [m for m in encoder.modules() if isinstance(m, nn.Linear | nn.LayerNorm)]
    handles = [module.register_forward_pre_hook(refuse) for module in looked]
    was = encoder.training
    device = next(encoder.parameters()).device
    every = torch.arange(cells * cells, device=device)[None]
    try:
        with torch.no_grad(), sparsely(encoder.eval(), Visible(every, cells)):
            maps = encoder(torch.zeros(1, 3, side, side, device=device))
    finally:
        encoder.train(was)
        for handle in handles:
            handle.remove()
    return [(m.shape[1], m.shape[2]) for m in maps]
