"""SIGTERM, which schedulers, containers and `kill` send first, stops a command as Control-C does.

What is under way is then saved, and they wait some 30 seconds for that before they kill (SLURM's
KillWait, torchrun, Kubernetes; Docker 10).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a command that was stopped so, as of one that the signal has killed."""
GRACE = 20.0
"""Seconds that another process than the first gives the first to save and end them both."""


def as_interrupt(*, first: bool) -> Callable[[], bool]:
    """From now on SIGTERM does what Control-C does; the answer says whether it came.

    Of several processes the first decides: the others leave Control-C to it (`Meeting.work`), so
    that all stop at the step after which it saves. One that only got the signal itself ends after
    `GRACE`.
    """
    mine, asked = os.getpid(), False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if os.getpid() != mine:  # a worker that was forked: ended by it, as it was meant
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        asked = True
        if not first:
            last = threading.Timer(GRACE, os._exit, [TERMINATED])
            last.daemon = True
            last.start()
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, handle)
    return lambda: asked
