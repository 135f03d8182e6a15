"""What the speed benchmarks share: records, the machine, processes of their own, paired ratios.

A benchmark is a script that asks for its own ways one after the other, each in a process of its
own, in a new order in every round. Its record is a JSON file to which each sitting adds rounds.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from fewmask.files import write_text_atomic

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5568f", "#b07d00", "#3d9bd6", "#4a4f57")
"""Okabe and Ito's, safe for colour-blind readers."""
MARK = "MEASURED "
"""Before the JSON that a child prints; progress bars may share its line."""

# --- what was measured, and where -----------------------------------------------------------------


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the numbers depend on beside the programs."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    return {
        "processor": _processor(),
        "vectors": _vectors(),
        "cores": cores,
        "threads": int(os.environ.get("OMP_NUM_THREADS", cores)),
        "memory_gb": round(pages / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu() if device == "cuda" else None,
    }


def _processor() -> str:
    return _told_by_linux("model name") or platform.processor() or "unknown"


def _vectors() -> list[str]:
    """The wide units that kernels are chosen by: one processor's name may stand for several."""
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = _told_by_linux("flags").split()
    return [flag for flag in known if flag in flags]


def _told_by_linux(key: str) -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def versions(*packages: str) -> dict[str, str]:
    """Of Python, fewmask, torch and these; "missing" where one is not installed."""
    found = {"python": platform.python_version()}
    for name in ("fewmask", "torch", *packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def command() -> str:
    """The command line as typed; of absolute paths the last part only."""
    script, *flags = sys.argv
    said = [f".../{Path(flag).name}" if flag.startswith("/") else flag for flag in flags]
    return " ".join(["python", f"benchmarks/speed/{Path(script).name}", *said])


def opened(path: Path, setting: Mapping[str, Any], *packages: str) -> dict[str, Any]:
    """The record of a file with this sitting added, or a new one: its `rounds` are to be added to.

    `setting` and the machine are what all rounds of a record share. Exits where they differ.
    """
    record: dict[str, Any] = {"setting": dict(setting), "rounds": [], "sittings": []}
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        before = record["setting"]
        other = [key for key in setting if before.get(key) != json.loads(json.dumps(setting[key]))]
        if other:
            raise SystemExit(
                f"{path}: its {other[0]} is {before.get(other[0])}, now {setting[other[0]]}. "
                "Choose another --out"
            )
    sitting = {"command": command(), "versions": versions(*packages), "from": len(record["rounds"])}
    record["sittings"].append(sitting)
    return record


def save(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record whole, or not at all."""
    write_text_atomic(path, json.dumps(record, indent=1) + "\n")


def there(ways: Sequence[str], needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Those of the ways whose packages are installed; of the others it is said what they lack."""
    found = []
    for way in ways:
        missing = [name for name in needs.get(way, ()) if find_spec(name) is None]
        if missing:
            print(
                f"{way} is left out: {', '.join(missing)} is not installed. "
                "Install the extra `bench` (pip install '.[bench]')",
                file=sys.stderr,
            )
        else:
            found.append(way)
    return found


def shuffled(ways: Sequence[str]) -> list[str]:
    """The ways in a new order: what the machine does beside us hits none of them more often."""
    return random.sample(list(ways), len(ways))


# --- processes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What a process cost, in seconds, and what it said."""

    cpu: float
    wall: float
    out: str
    err: str


def timed(line: Sequence[str], **environment: str) -> Ran:
    """Run a command to its end; its workers count. Exits where it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    own = {**os.environ, **environment}
    ran = subprocess.run(line, capture_output=True, text=True, check=False, env=own)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ran.returncode:
        raise SystemExit(f"{' '.join(line)}: {ran.stdout[-2000:]}{ran.stderr[-4000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ran(cpu, wall, ran.stdout, ran.stderr)


def fewmask_command(*arguments: object) -> list[str]:
    """The command line of `fewmask` with this Python."""
    return [sys.executable, "-m", "fewmask", *map(str, arguments)]


def child(*flags: object, **environment: str) -> dict[str, Any]:
    """Run this script again with more flags, in a process of its own: what it `reports`."""
    ran = timed([sys.executable, *sys.argv, *map(str, flags)], **environment)
    _, mark, said = ran.out.rpartition(MARK)
    if not mark:
        raise SystemExit(f"{' '.join(map(str, flags))}: {ran.out[-2000:]}{ran.err[-4000:]}")
    found: dict[str, Any] = json.JSONDecoder().raw_decode(said)[0]
    return found


def report(found: Mapping[str, Any]) -> None:
    """Tell the parent what was measured, wherever the program under way sends its words."""
    print(MARK + json.dumps(found), file=sys.__stdout__, flush=True)


def leave() -> None:
    """End this process and its workers at once; what is under way doesn't matter any more."""
    import psutil

    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            one.kill()
    os._exit(0)


def cpu_seconds() -> float:
    """Of this process and its workers, those that have ended too."""
    import psutil

    me = psutil.Process()
    total = 0.0
    for one in [me, *me.children(recursive=True)]:
        with suppress(psutil.Error):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def peak_memory() -> dict[str, float]:
    """MB that this process, and each worker that lives, held at most. Shared pages count in each.

    Read from /proc: what getrusage gives also knows the process that this one was forked from.
    """
    import psutil

    me = psutil.Process()
    workers = sum(_peak(one.pid) for one in me.children(recursive=True))
    return {"process": _peak(me.pid), "workers": workers}


def _peak(process: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1000
    return 0.0


def on_steps(after: Callable[[int], None]) -> None:
    """Call `after` with the number of steps done whenever an optimiser has made one.

    PyTorch's own hook, so it takes every trainer alike; a GPU has done its work by then.
    """
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    done = 0

    def hook(*_: object) -> None:
        nonlocal done
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        done += 1
        after(done)

    register_optimizer_step_post_hook(hook)


def time_steps(warm: int, steps: int, images: int) -> None:
    """Report the speed of `steps` steps, which take `images` images, after `warm` others; leave."""
    taken: list[tuple[float, float]] = []

    def after(done: int) -> None:
        if done in (warm, warm + steps):
            taken.append((time.perf_counter(), cpu_seconds()))
        if done == warm + steps:
            (began, before), (ended, now) = taken
            found = {"images_per_second": images / (ended - began)}
            report(found | {"images_per_cpu_second": images / (now - before)})
            leave()

    on_steps(after)


# --- numbers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; the ends are NaN of a single value."""

    mid: float
    low: float
    high: float

    def words(self, form: str = ".2f", unit: str = "") -> str:
        """1.23 x (1.20 to 1.26)"""
        if np.isnan(self.low):
            return f"{self.mid:{form}}{unit}"
        return f"{self.mid:{form}}{unit} ({self.low:{form}} to {self.high:{form}})"


def interval(values: Iterable[float]) -> Interval:
    """The mean, with Student's t."""
    found = np.array(list(values), float)
    if len(found) < 2:
        return Interval(float(found.mean()), np.nan, np.nan)
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5
    mean = float(found.mean())
    return Interval(mean, mean - float(half), mean + float(half))


def ratio(above: Iterable[float], below: Iterable[float]) -> Interval:
    """The ratio of pairs, each pair of one round: mean and interval on a log scale."""
    logs = np.log(list(above)) - np.log(list(below))
    found = interval(logs)
    return Interval(*(float(np.exp(value)) for value in (found.mid, found.low, found.high)))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def panels(across: int, width: float = 4.2, height: float = 3.2) -> tuple[Any, list[Any]]:
    """A figure and its axes in one row, with a quiet grid; no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * across, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, across, squeeze=False).ravel())
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
