"""The pretext tasks. The union is the table of contents: a new task is one file and one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, get_args

from fewmask.pretext.simclr import SimCLR

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fewmask.types import Batch

Pretext = SimCLR

PRETEXTS: dict[str, type[Pretext]] = {kind.name: kind for kind in (get_args(Pretext) or (Pretext,))}
"""The tasks by the names that the command line knows."""


class PretextTask(Protocol):
    """What `Pretext.task(encoder, size)` builds."""

    encoder: nn.Module
    signals: dict[str, Tensor]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses of a batch of uint8 images [B,3,H,W]."""
        ...
