"""Another process of a run is gone: killed, out of memory, or its machine is."""

from __future__ import annotations

import re

BROKEN = ("by peer", ": Broken pipe", "is lost: no sign of life", "ncclRemoteError")
"""Words of gloo's, our own and NCCL's errors where the other end of a connection is gone. (Python's
own broken pipe, of an output that nobody reads, has no colon.)"""


class LostProcess(RuntimeError):
    """A process of a run has ended without a word; the command line prints it and exits with 1."""


def lost(problem: Exception, place: str) -> LostProcess | None:
    """What is told of an error that comes of the loss of a process; None where it doesn't.

    `place` begins the line: the run's folder, or what tells the processes apart.
    """
    from torch.multiprocessing.spawn import ProcessExitedException

    ended = isinstance(problem, ProcessExitedException)
    if not ended and not any(words in str(problem) for words in BROKEN):
        return None
    lines = [line for line in str(problem).splitlines() if any(w in line for w in BROKEN)]
    why = lines[-1] if lines else str(problem)
    why = re.sub(r"^.*?Error: |\[[^\]]*\.\w+:\d+\] ", "", why).partition(". ")[0].strip()[:200]
    return LostProcess(
        f"{place}: another process of this run was lost ({why}). If nobody has stopped it, memory "
        "may have run out. The same command again goes on from the last saved state"
    )


def interrupted(problem: Exception) -> bool:
    """Whether a process that was started here has ended by Control-C."""
    return str(problem).rstrip().endswith("KeyboardInterrupt")
