"""Another process of a run is gone: killed, out of memory, or its machine is."""

from __future__ import annotations

import re

BROKEN = ("by peer", "Broken pipe", "is lost: no sign of life", "ncclRemoteError")
"""Words of gloo's, our own and NCCL's errors where the other end of a connection is gone."""
INTERRUPTED = 130
"""Exit code of a process that Control-C has ended."""


class LostProcess(RuntimeError):
    """A process of a run has ended without a word; the command line prints it and exits with 1."""


def lost(problem: Exception, place: str) -> LostProcess | None:
    """What is told of an error that comes of the loss of a process; None where it doesn't.

    `place` begins the line: the run's folder, or what tells the processes apart.
    """
    from torch.multiprocessing.spawn import ProcessExitedException

    lines = [line for line in str(problem).splitlines() if _is_broken(line)]
    if not lines and not isinstance(problem, ProcessExitedException):
        return None
    why = lines[-1] if lines else str(problem)
    why = re.sub(r"^.*?Error: |\[[^\]]*\.\w+:\d+\] ", "", why).partition(". ")[0].strip()[:200]
    return LostProcess(
        f"{place}: another process of this run was lost ({why}). If nobody has stopped it, memory "
        "may have run out. The same command again goes on from the last saved state"
    )


def _is_broken(line: str) -> bool:
    """Python's own errors, of an output that nobody reads or of a download, have an [Errno]."""
    return "[Errno" not in line and any(words in line for words in BROKEN)


def interrupted(problem: Exception) -> bool:
    """Whether a process that was started here has ended by Control-C, sent to it alone."""
    return getattr(problem, "exit_code", None) == INTERRUPTED
