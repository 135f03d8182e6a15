"""The collectives that losses need: one with its gradient, one without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


class _Gather(torch.autograd.Function):
    """Rows of all processes. Backward: the sum over processes of the gradient of our own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.n = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.n
        return total[start : start + ctx.n]


def world_size() -> int:
    """The number of processes that train together; 1 where there is no group of them."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of every process' value, without gradient; the value itself where there is one."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def gather_rows(rows: Tensor) -> Tensor:
    """[n,D] of every process -> [world*n,D], in order of rank, differentiable in all of them.

    When each process' loss is the mean over its own anchors, and DDP averages the parameters'
    gradients over processes, the result is the gradient of the mean over all anchors: what one
    process with the whole batch would have got.
    """
    if world_size() == 1:
        return rows
    return _Gather.apply(rows)  # type: ignore[no-any-return]
