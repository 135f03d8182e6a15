"""Convolutions of maps of a few pixels, computed as matrix products.

The last stages of a ResNet see 1 x 1 to 3 x 3 pixels at 32 to 96 px, where a 3 x 3 kernel mostly
multiplies its padding and a CPU's convolutions, made for large maps, are slow. There every pixel
put out is a matrix product of the pixels that its kernel covers: the same sums in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

MOST_OF_ONE = 36
"""Pixels put out, up to which products are faster for kernels of one pixel; no window is needed."""
FASTER = ((1, 1, 1), (4, 32, 1), (9, 128, 256))
"""Of larger kernels: (pixels put out at most, pictures at least, channels in and out at least).

By layers of ResNets and DenseNets on one core with AVX-512 and AMX, forward and backward, in 32 bit
and bf16 (`benchmarks/speed/small_maps.py`): 2 to 30 times faster, about even at the edges. Many
threads are not measured. A window of the kernel is copied for each pixel, and kept until backward.
"""


class _Window(NamedTuple):
    """What of its input, and so of its kernel, one pixel put out sees; the rest is padding."""

    rows: slice
    columns: slice
    kernel_rows: slice
    kernel_columns: slice


class _SmallMapConv2d(nn.Conv2d):
    """nn.Conv2d, with matrix products for small maps."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if _is_small(self, input):
            return _as_products(input, weight, bias, self.stride, self.padding)  # type: ignore[arg-type]
        found: Tensor = super()._conv_forward(input, weight, bias)
        return found


class _Matrices(torch.autograd.Function):
    """The windows of a kernel [K,h,w,C] as matrices [K,pixels seen x C].

    By slices alone, the gradient of each would be a kernel of zeros, and all of them added up.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, kernel: Tensor, windows: list[_Window]) -> tuple[Tensor, ...]:
        ctx.windows, ctx.shape = windows, kernel.shape  # type: ignore[attr-defined]
        return tuple(kernel[:, w.kernel_rows, w.kernel_columns].flatten(1) for w in windows)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        found = gradients[0].new_zeros(ctx.shape)  # type: ignore[attr-defined]
        for w, own in zip(ctx.windows, gradients, strict=True):  # type: ignore[attr-defined]
            part = found[:, w.kernel_rows, w.kernel_columns]
            part += own.reshape(part.shape)
        return found, None


@contextmanager
def small_maps(network: nn.Module) -> Iterator[None]:
    """Within the block the network's plain convolutions compute small maps as matrix products.

    Weights keep their names and places; results differ by rounding alone, and are channels-last.
    A copy that is made within the block stays as it is there.
    """
    plain = [one for one in network.modules() if type(one) is nn.Conv2d and _is_plain(one)]
    for one in plain:
        one.__class__ = _SmallMapConv2d
    try:
        yield
    finally:
        for one in plain:
            one.__class__ = nn.Conv2d


def _as_products(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """The convolution of [N,C,H,W] by [K,C,h,w], zeros around: [N,K,H',W'], channels-last.

    One group, no dilation, and each side's padding less than the kernel's.
    """
    n, _, height, width = images.shape
    pixels, kernel = images.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
    if weight.shape[2:] == (1, 1) and padding == (0, 0):
        seen = pixels[:, :: stride[0], :: stride[1]]
        return functional.linear(seen, kernel.flatten(1), bias).permute(0, 3, 1, 2)
    rows = _covered(height, weight.shape[2], stride[0], padding[0])
    columns = _covered(width, weight.shape[3], stride[1], padding[1])
    windows = [
        _Window(seen_rows, seen_columns, kernel_rows, kernel_columns)
        for seen_rows, kernel_rows in rows
        for seen_columns, kernel_columns in columns
    ]
    matrices: tuple[Tensor, ...] = _Matrices.apply(kernel, windows)
    whole = slice(0, height), slice(0, width)
    if all((w.rows, w.columns) == whole for w in windows):
        biases = None if bias is None else bias.repeat(len(windows))
        found = functional.linear(pixels.flatten(1), torch.cat(matrices), biases)
    else:
        found = torch.cat(
            [
                functional.linear(pixels[:, w.rows, w.columns].flatten(1), matrix, bias)
                for w, matrix in zip(windows, matrices, strict=True)
            ],
            dim=1,
        )
    return found.view(n, len(rows), len(columns), len(weight)).permute(0, 3, 1, 2)


def _covered(size: int, kernel: int, stride: int, padding: int) -> list[tuple[slice, slice]]:
    """Along one side: what of the input each output sees, and which part of the kernel sees it."""
    found = []
    for place in range(_put_out(size, kernel, stride, padding)):
        start = place * stride - padding
        first, last = max(0, start), min(size, start + kernel)
        found.append((slice(first, last), slice(first - start, last - start)))
    return found


def _put_out(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def _is_plain(one: nn.Conv2d) -> bool:
    if one.groups != 1 or one.dilation != (1, 1) or one.padding_mode != "zeros":
        return False
    # A kernel that may lie wholly in the padding sees nothing.
    return isinstance(one.padding, tuple) and all(
        padding < kernel for padding, kernel in zip(one.padding, one.kernel_size, strict=True)
    )


def _is_small(one: nn.Conv2d, images: Tensor) -> bool:
    if images.device.type != "cpu" or images.dim() != 4:
        return False
    sides = zip(images.shape[2:], one.kernel_size, one.stride, one.padding, strict=True)
    height, width = (_put_out(*side) for side in sides)  # type: ignore[arg-type]
    if min(height, width, len(images)) < 1:
        return False
    if one.kernel_size == (1, 1):
        return height * width <= MOST_OF_ONE
    narrow = min(one.in_channels, one.out_channels)
    return any(
        height * width <= pixels and len(images) >= pictures and narrow >= channels
        for pixels, pictures, channels in FASTER
    )
