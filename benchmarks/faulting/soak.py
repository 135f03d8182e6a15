"""Studies, one after the other in one process for hours: do memory and open files stay flat?"""

from __future__ import annotations

import gc
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from faulting import children, kills, record

ALLOWED = {"memory_mb": 0.03, "open_files": 0.0, "threads": 0.0}
"""By how much the second half's median may lie above the first's, as a share."""


def main(work: Path, out: Path, minutes: float) -> int:
    """Repeat a study in this process; a row for each, of memory, open files and threads."""
    children.load_all()
    kills.prepare(work)
    import fewmask

    os.environ["FEWMASK_CACHE"] = str(work / "cache")
    plan = work / "data" / "soak.toml"
    plan.write_text(kills.PLAN.replace("../data/", f"{work}/data/"))
    end = time.monotonic() + 60 * minutes
    sitting, began, number = time.time_ns() // 10**9, time.monotonic(), 0
    rows = []
    while time.monotonic() < end:
        shutil.rmtree(work / "study", ignore_errors=True)
        shutil.rmtree(work / "drawn", ignore_errors=True)
        fewmask.study(plan=str(plan), out=str(work / "study"))
        fewmask.similarity(
            sources=(str(work / "data/toy/unlabelled"),), target=str(work / "data/toy"),
            out=str(work / "drawn"),
        )  # fmt: skip
        number += 1
        gc.collect()
        row = {"sitting": sitting, "study": number, "minutes": (time.monotonic() - began) / 60}
        rows.append({**row, **held()})
        record.add(out / "soak.jsonl", rows[-1])
    grown = growth(rows)
    for line in grown:
        print(f"FAULT {line}", flush=True)
    return len(grown)


def growth(rows: list[dict[str, Any]]) -> list[str]:
    """What did not stay flat after the first quarter, in which all is loaded once."""
    later = rows[len(rows) // 4 :]
    if len(later) < 8:
        return [f"{len(rows)} studies are too few to tell"]
    grown = []
    half = len(later) // 2
    for key, allowed in ALLOWED.items():
        parts = later[:half], later[half:]
        before, after = (np.median([row[key] for row in part]) for part in parts)
        if after > before * (1 + allowed):
            grown.append(f"{key}: {before:.0f}, later {after:.0f}")
    return grown


def held() -> dict[str, float]:
    """What this process holds of the system."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory_mb": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def draw(out: Path) -> list[str]:
    """soak.png of the longest sitting; what it shows, a line each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(record.rows(out / "soak.jsonl"))
    if not rows:
        return []
    sittings: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        sittings.setdefault(row["sitting"], []).append(row)
    longest = max(sittings.values(), key=lambda found: found[-1]["minutes"])
    minutes = np.array([row["minutes"] for row in longest])
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True)
    lines = []
    for axis, key, label in zip(
        axes, ("memory_mb", "open_files"), ("memory, MB", "open files"), strict=True
    ):
        values = np.array([row[key] for row in longest])
        axis.plot(minutes, values, color="#0072b2", linewidth=1)
        axis.set_ylim(0, values.max() * 1.15)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        later = slice(len(values) // 4, None)  # what is loaded and kept once is there by then
        slope = np.polyfit(minutes[later], values[later], 1)[0] * 60 if len(values) > 8 else np.nan
        lines.append(
            f"{label}: {values[0]:.0f} after the first study, {values[-1]:.0f} after the last, "
            f"{slope:+.2f} an hour over the last three quarters"
        )
    axes[1].set_xlabel(f"minutes ({len(longest)} studies one after the other in one process)")
    figure.savefig(out / "soak.png", dpi=110)
    return [f"{len(longest)} studies in {minutes[-1]:.0f} minutes", *lines]
