"""The processes of one run on several machines: who this one is, and what they tell each other."""

from fewmask.ranks.launch import (
    AlreadyTold,
    Launch,
    forget,
    launched,
    refuse_many,
    told_by_the_first,
)
from fewmask.ranks.meeting import Ranks

__all__ = [
    "AlreadyTold",
    "Launch",
    "Ranks",
    "forget",
    "launched",
    "refuse_many",
    "told_by_the_first",
]
