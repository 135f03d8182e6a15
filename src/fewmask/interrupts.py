"""Control-C and SIGTERM: when they are answered, and how processes that share a run end by them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType

from fewmask.ranks import launched
from fewmask.types import Terminated

Stop = type[KeyboardInterrupt]


@contextmanager
def deferred_interrupt(rank: int = 0) -> Iterator[Callable[[], Stop | None]]:
    """Within the block Control-C and SIGTERM stop nothing: the function it gives says what is to be
    raised, once there is a moment for it. A second Control-C stops at once.

    Of several processes the first decides, since all have to stop at the same step: the others are
    deaf.
    """
    asked: Stop | None = None

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if rank:
            return
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        asked = asked or (Terminated if number == signal.SIGTERM else KeyboardInterrupt)

    with _heard_by(ask):
        yield lambda: asked


@contextmanager
def terminated_at_once() -> Iterator[None]:
    """Within the block SIGTERM is raised as Control-C is, once; for a process that waits for
    others.
    """

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # they are being ended
        raise Terminated

    with _heard_by(stop, interrupts=False):
        yield


@contextmanager
def _heard_by(handler: Callable[..., None], *, interrupts: bool = True) -> Iterator[None]:
    """SIGTERM is left to whoever has a handler for it (Ray), and to torchrun and srun: they end a
    lost process's others by it. A handler that is not Python's can't be put back, and stays.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    heard = [signal.SIGINT] if interrupts and signal.getsignal(signal.SIGINT) is not None else []
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and launched() is None:
        heard.append(signal.SIGTERM)
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def end_with(parent: int) -> None:
    """End this process as soon as the one that has started it is gone: it held the run's folder.

    Torch asks the system to send SIGINT then, which is lost where it is ignored, as in the
    background of a script.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_all(ranks: Sequence[BaseProcess]) -> None:
    """Have the first of a run's processes save and end, then end the others, which write nothing.

    SIGTERM, unlike a second Control-C, stops nothing where the first has come already: in a
    terminal Control-C reaches all processes, and what was sent to one alone does not.
    """
    try:
        for process in ranks:
            process.terminate()
        for first in ranks[:1]:
            first.join()
    finally:  # also at a second Control-C: none may write once the run's folder is let go
        for process in ranks:
            process.kill()
            process.join()
