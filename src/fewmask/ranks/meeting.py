"""The processes of one run, once they have met: what they tell each other beside tensors.

All goes through the store that torch's processes meet at.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import Any

from fewmask.ranks.launch import AlreadyTold, Launch
from fewmask.ranks.lost import lost
from fewmask.types import UserError

MEETING_SECONDS = 600.0
"""In which all processes have to be there."""
BEAT_SECONDS = 2.0
LOST_SECONDS = 120.0
"""Without a sign of life after which a process is given up by those that wait for it."""
LISTEN_SECONDS = 30.0
"""How long a process that stops for a mistake waits for the first one to tell it."""


_RUNS = itertools.count()


class Ranks:
    """The processes of a run, once they have met."""

    def __init__(self, started: Launch) -> None:
        """Meet the others. Raises UserError where they don't come."""
        from torch import distributed as dist
        from torch.distributed.rendezvous import rendezvous

        self.rank, self.size, self.first = started.rank, started.size, started.first
        os.environ.update(started.environment())
        try:
            store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=MEETING_SECONDS)))
        except (dist.DistError, RuntimeError, ValueError) as problem:
            raise UserError(
                f"{socket.gethostname()}: {started.by} has started {started.size} processes, and "
                f"they have not met at {started.address}:{started.port} within "
                f"{MEETING_SECONDS:g} seconds. Start all of them, or mend MASTER_ADDR and "
                "MASTER_PORT"
            ) from problem
        # A script may train several times, and torchrun may start it again: none is to read what
        # another one has said.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        prefix = f"fewmask/{attempt}/{next(_RUNS)}"
        self.store: Any = dist.distributed_c10d.PrefixStore(prefix, store)
        self.meetings = 0
        self.why: dict[str, Any] | None = None
        """Why another process has ended, once that is heard."""
        self.ending = False

    def tell(self, name: str, value: Any) -> None:
        """Have all others hear a value, under a name used once."""
        self.store.set(name, json.dumps(value))

    def hear(self, name: str) -> Any:
        """What was told under a name, before the last meeting."""
        return json.loads(self.store.get(name))

    def meet(self) -> None:
        """Wait for all; however long it takes, as long as they live.

        Raises AlreadyTold, or UserError in the first process, where one has stopped for a mistake;
        KeyboardInterrupt where one was interrupted; RuntimeError where one is lost.
        """
        self.meetings += 1
        self.tell(f"met/{self.meetings}/{self.rank}", True)
        seen: dict[int, tuple[bytes, float]] = {}
        for other in range(self.size):
            while not self.store.check([f"met/{self.meetings}/{other}"]):
                self._stop_if_ended()
                self._lives(other, seen)
                time.sleep(0.1)
        self._stop_if_ended()

    @contextmanager
    def work(self) -> Iterator[None]:
        """For the length of the block only the first process prints, and one's end is everyone's.

        A mistake is told once, by the first process, if it still can. Control-C is for the first
        alone, so that all stop at the step after which it saves.
        """
        with ExitStack() as quiet:
            if not self.first:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                quiet.callback(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGINT})
                nowhere = quiet.enter_context(open(os.devnull, "w"))
                quiet.enter_context(redirect_stderr(nowhere))
                quiet.enter_context(redirect_stdout(nowhere))
            threading.Thread(target=self._beat, daemon=True).start()
            try:
                yield
                self._leave()
            except AlreadyTold:
                raise
            except UserError as mistake:
                self._end({"faults": list(mistake.faults)})
                raise self._who_tells(mistake) from None
            except KeyboardInterrupt:
                self._end({"interrupted": True})
                raise
            except RuntimeError as problem:  # a connection to one that has ended breaks like this
                self._stop_if_ended(wait=LISTEN_SECONDS)
                told = lost(problem, f"process {self.rank} of {self.size}")
                if told is None:
                    raise
                raise told from None

    def _end(self, why: dict[str, Any]) -> None:
        """Say why this process ends, and stay until the others can have heard it."""
        self.ending = True
        with suppress(RuntimeError):
            self.store.compare_set("end", "", json.dumps(why))
            self._leave()

    def _leave(self) -> None:
        """Need the others no more; the first, which keeps the store, stays until all have left."""
        self.ending = True
        self.store.set(f"left/{self.rank}", "1")
        end = time.monotonic() + LISTEN_SECONDS / 2
        left = [f"left/{other}" for other in range(self.size)]
        while self.first and not self.store.check(left) and time.monotonic() < end:
            time.sleep(0.1)

    def _stop_if_ended(self, wait: float = 0.0) -> None:
        """Raise what another process has ended with, if one has within `wait` seconds."""
        end = time.monotonic() + wait
        while not self._heard_an_end():
            if time.monotonic() >= end:
                return
            time.sleep(0.1)
        self.ending = True
        if self.why and "faults" in self.why:
            raise self._who_tells(UserError(*self.why["faults"])) from None
        raise KeyboardInterrupt

    def _heard_an_end(self) -> bool:
        """Whether another process has said that it ends."""
        if self.why is None:
            with suppress(RuntimeError):  # the first, which keeps the store, may be gone
                if self.store.check(["end"]):
                    self.why = self.hear("end")
                    self.store.set(f"left/{self.rank}", "1")
        return self.why is not None

    def _who_tells(self, mistake: UserError) -> UserError:
        """The mistake itself in the process that is to tell it, AlreadyTold in the others."""
        if not self.first:
            end = time.monotonic() + LISTEN_SECONDS
            with suppress(RuntimeError):
                while not self.store.check(["teller"]) and time.monotonic() < end:
                    time.sleep(0.1)
        try:
            teller = self.store.compare_set("teller", "", str(self.rank)).decode()
        except RuntimeError:
            teller = "0"
        if teller == str(self.rank):
            return mistake
        time.sleep(2.0)  # torchrun ends them all as soon as one has ended: let it be told
        return AlreadyTold(*mistake.faults)

    def _beat(self) -> None:
        """Show the others that this process lives, and end it where the run has ended.

        One that waits for tensors of an ended process cannot be woken; it has nothing to write.
        """
        count = 0
        with suppress(RuntimeError):
            while not self.ending:
                count += 1
                self.store.set(f"alive/{self.rank}", str(count))
                if self._heard_an_end() and not self.first:
                    time.sleep(LISTEN_SECONDS / 10)
                    if not self.ending:
                        os._exit(2 if self.why and "faults" in self.why else 130)
                time.sleep(BEAT_SECONDS)

    def _lives(self, other: int, seen: dict[int, tuple[bytes, float]]) -> None:
        """Raises RuntimeError where a process has given no sign of life for too long."""
        beat: bytes = b""
        if self.store.check([f"alive/{other}"]):
            beat = self.store.get(f"alive/{other}")
        now = time.monotonic()
        last, since = seen.get(other, (None, now))
        seen[other] = (beat, since if beat == last else now)
        if beat == last and now - since > LOST_SECONDS:
            raise RuntimeError(f"process {other} of {self.size} is lost: no sign of life for "
                               f"{LOST_SECONDS:g} seconds")  # fmt: skip
