"""Teachers that follow what is trained: exponential moving averages of its weights."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask.constants import constant

Module = TypeVar("Module", bound=nn.Module)


def teacher_of(student: Module) -> Module:
    """A copy that no gradient moves, to be moved by `follow`.

    It stays in the student's mode. In training its batch norms therefore take the statistics of
    its own batch, as BYOL's and DINO's code has it; its running statistics are its own too.
    """
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for all parameters."""
    held = [p.detach() for p in teacher.parameters()]
    new = [p.detach() for p in student.parameters()]
    torch._foreach_lerp_(held, new, 1 - momentum)


def default_momentum(steps: int) -> float:
    """The teacher's first momentum in a run of so many steps: 1 - 1 / (1 + 0.45 sqrt(steps)).

    The teacher remembers 1 / (1 - momentum) steps. The published runs suggest that this grows like
    the root of the run's length: BYOL's code has 0.97, 0.99, 0.99 and 0.996 for 12.5k, 31k, 94k and
    313k steps (40 to 1000 epochs), this formula 0.980, 0.988, 0.993 and 0.996; a run of 300 steps
    has 0.886, that is 9 steps, where a fixed 0.996 would leave the teacher near its random start.
    """
    return 1 - 1 / (1 + 0.45 * math.sqrt(steps))


def rising(first: float, step: int, steps: int) -> float:
    """The momentum at a step: from `first` to 1 along half a cosine (Grill et al. 2020, sec. 3.2).

    1 - (1 - first) (cos(pi step / steps) + 1) / 2
    """
    return 1 - (1 - first) * (math.cos(math.pi * step / steps) + 1) / 2


@torch.no_grad()
def retrieved(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """How often a row of `first` [n,D] has its own row of `second` [n,D] nearest, and chance, 1/n.

    Nearness is the cosine. Rows that are all the same (collapse) are retrieved at chance.
    """
    with torch.autocast(first.device.type, enabled=False):
        one, two = (functional.normalize(rows.float(), dim=1) for rows in (first, second))
        similar = one @ two.T
    own = torch.arange(len(first), device=first.device)
    share = (similar.argmax(dim=1) == own).float().mean()
    return share, constant(1 / len(first), share)
