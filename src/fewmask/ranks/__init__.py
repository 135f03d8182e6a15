"""The processes of one run on several machines: who this one is, and what they tell each other."""

from fewmask.ranks.launch import (
    AlreadyTold,
    Launch,
    forget,
    launched,
    refuse_many,
    told_by_the_first,
)
from fewmask.ranks.lost import INTERRUPTED, LostProcess, interrupted, lost
from fewmask.ranks.meeting import Ranks

__all__ = [
    "INTERRUPTED",
    "AlreadyTold",
    "Launch",
    "LostProcess",
    "Ranks",
    "forget",
    "interrupted",
    "launched",
    "lost",
    "refuse_many",
    "told_by_the_first",
]
