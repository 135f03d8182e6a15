"""The pretext tasks. The union is the table of contents: a new task is one file and one line."""

from __future__ import annotations

from typing import get_args

from fewmask.pretext.contract import Pool, PretextModule
from fewmask.pretext.simclr import SimCLR

Pretext = SimCLR

PRETEXTS: dict[str, type[Pretext]] = {kind.name: kind for kind in (get_args(Pretext) or (Pretext,))}
"""The tasks by the names that the command line knows."""

__all__ = ["PRETEXTS", "Pool", "Pretext", "PretextModule"]
