"""The pretext tasks. The union is the table of contents: a new task is one file and one line."""

from __future__ import annotations

from typing import get_args

from fewmask.pretext.byol import Byol
from fewmask.pretext.colorize import Colorize
from fewmask.pretext.contract import Pool, PretextModule
from fewmask.pretext.densecl import DenseCL
from fewmask.pretext.dino import Dino
from fewmask.pretext.jigsaw import Jigsaw
from fewmask.pretext.masked import Masked
from fewmask.pretext.relative_position import RelativePosition
from fewmask.pretext.simclr import SimCLR
from fewmask.pretext.supervised import Supervised

Pretext = (
    Byol | Colorize | DenseCL | Dino | Jigsaw | Masked | RelativePosition | SimCLR | Supervised
)

PRETEXTS: dict[str, type[Pretext]] = {kind.name: kind for kind in (get_args(Pretext) or (Pretext,))}
"""The tasks by the names that the command line knows."""

__all__ = ["PRETEXTS", "Pool", "Pretext", "PretextModule"]
