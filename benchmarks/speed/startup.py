"""How long until the first batch of N image files, and in how much memory?

    python benchmarks/speed/startup.py --at FOLDER [--n 1000 10000 100000 1000000] [--rounds 5]

`fewmask pretrain` (SimCLR, ResNet-18, 32 px, batches of 64) on class folders of tiny JPEG and PNG
files, for 50 steps: once with nothing kept of the folder (*first start*), once more with what the
first start has left behind (*second start*). Beside them lightly's loop and LightlyTrain on the
same folder. Each measurement is a process of its own, from its start to the end of its first
step, less a usual step, in wall and in CPU seconds. The peak of its memory is that of start and 50
steps together; loader workers are counted apart, and pages that they share count in each.

The N files lie in --at/N and stay there for the next sitting: --different pictures are written,
the rest are hard links to them (copies where the file system has none). They are in the system's
own cache when they are read: a cold disk comes on top, for all alike.

Writes startup-DEVICE.json, table.md and startup.png; more rounds are added to those that are there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
import numpy as np

FIRST, SECOND = "fewmask, first start", "fewmask, second start"
LOOP, TRAIN = "lightly loop", "LightlyTrain"
WAYS = (FIRST, SECOND, LOOP, TRAIN)
NEEDS = {LOOP: ("lightly",), TRAIN: ("lightly_train",)}
CLASSES = 10
SIDE = 40
"""Of the pictures, in pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--at", type=Path, required=True, help="a folder for the files")
    parser.add_argument("--n", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--different", type=int, default=1000, help="pictures that are written")
    parser.add_argument("--out", type=Path, default=Path("results/bench/startup"))
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--images", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        train(a)
        return
    path = a.out / f"startup-{a.device}.json"
    said = {key: getattr(a, key) for key in ("encoder", "size", "batch", "steps", "different")}
    packages = ("lightly", "lightly-train")
    record = measuring.opened(path, said | measuring.machine(a.device), *packages)
    ways = measuring.there(a.ways, NEEDS)
    for _ in range(a.rounds):
        for n in a.n:
            files = written(a.at / str(n), n, a.different)
            record["rounds"].append({"n": n, **one_round(ways, files)})
            measuring.save(path, record)
            write_table(record, a.out)
    print((a.out / "table.md").read_text())


def written(folder: Path, n: int, different: int) -> Path:
    """A folder of class folders with n image files, made where it is not there."""
    from PIL import Image

    if folder.exists():
        return folder
    making = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(making, ignore_errors=True)
    for k in range(CLASSES):
        (making / f"class_{k}").mkdir(parents=True)
    rng = np.random.default_rng(n)
    made: list[Path] = []
    for i in range(n):
        ending = "png" if i % 10 == 9 else "jpg"
        path = making / f"class_{i % CLASSES}" / f"{i:07d}.{ending}"
        source = made[i % len(made)] if i >= different else None
        if source is None or i // different >= 60_000:
            coarse = rng.integers(256, size=(5, 5, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
            made.append(path)
        else:
            path = path.with_suffix(source.suffix)
            try:
                os.link(source, path)
            except OSError:
                shutil.copyfile(source, path)
    making.rename(folder)
    return folder


def one_round(ways: list[str], files: Path) -> dict[str, Any]:
    """Every way once, in a new order; the second start follows the first one."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as kept:
        for way in measuring.shuffled([way for way in ways if way != SECOND]):
            found[way] = started(way, files, kept)
            if way == FIRST and SECOND in ways:
                found[SECOND] = started(SECOND, files, kept)
    return found


def started(way: str, files: Path, kept: str) -> dict[str, Any]:
    flags = ("--child", way, "--images", files, "--began", time.time())
    found = measuring.child(*flags, FEWMASK_CACHE=kept)
    print(f"{files.name} files, {way}: {found}", flush=True)
    return found


# --- in the child ---------------------------------------------------------------------------------


def train(a: argparse.Namespace) -> None:
    """Train for --steps steps, say how it went, and leave."""
    taken: list[tuple[float, float]] = []

    def after(done: int) -> None:
        taken.append((time.time() - a.began, measuring.cpu_seconds()))
        if done == a.steps:
            step, cpu = np.median(np.diff(taken, axis=0), axis=0).tolist()
            found = {"first_batch": taken[0][0] - step, "cpu": taken[0][1] - cpu, "step": step}
            measuring.report(found | measuring.peak_memory())
            measuring.leave()

    measuring.on_steps(after)
    with tempfile.TemporaryDirectory() as work:
        if a.child in (FIRST, SECOND):
            fewmask(a, Path(work))
        else:
            import simclr

            {LOOP: simclr.lightly_loop, TRAIN: simclr.lightly_train}[a.child](a, Path(work))
    raise SystemExit(f"{a.child} ended before {a.steps} steps")


def fewmask(a: argparse.Namespace, work: Path) -> None:
    from fewmask.cli import main as run

    run([
        "pretrain", f"--images={a.images}", f"--out={work / 'run'}", f"--encoder={a.encoder}",
        f"--size={a.size}", f"--batch-size={a.batch}", "--epochs=1000", f"--device={a.device}",
    ])  # fmt: skip


# --- the table ------------------------------------------------------------------------------------


def write_table(record: dict[str, Any], out: Path) -> None:
    rows = []
    for n in sorted({r["n"] for r in record["rounds"]}):
        for way in WAYS:
            own = [r for r in record["rounds"] if r["n"] == n and way in r]
            if not own:
                continue
            firsts = measuring.interval(r[way]["first_batch"] for r in own)
            memory = [np.median([r[way][what] for r in own]) for what in ("process", "workers")]
            pairs = [r for r in own if FIRST in r]
            times = [[r[name]["first_batch"] for r in pairs] for name in (way, FIRST)]
            slower = "-" if way == FIRST or not pairs else f"{measuring.ratio(*times).words()} x"
            workers = f"{memory[1]:,.0f} MB" if memory[1] else "-"
            cpu = measuring.interval(r[way]["cpu"] for r in own)
            rows.append([f"{n:,}", way, f"{firsts.words('.1f')} s", slower, f"{cpu.mid:.1f} s",
                         f"{memory[0]:,.0f} MB", workers, len(own)])  # fmt: skip
    head = ["files", "way", "until the first batch (95 %)", "of fewmask's first start (95 %)",
            "CPU until then", "peak memory", "its workers", "rounds"]  # fmt: skip
    (out / "table.md").write_text(measuring.table(head, rows))
    draw(record["rounds"], out / "startup.png")


def draw(rounds: list[dict[str, Any]], path: Path) -> None:
    """Seconds and memory over the number of files."""
    figure, axes = measuring.panels(2)
    for way, colour in zip(WAYS, measuring.COLOURS, strict=False):
        own = [r for r in rounds if way in r]
        sizes = sorted({r["n"] for r in own})
        for axis, what in zip(axes, ("first_batch", "process"), strict=True):
            values = [np.median([r[way][what] for r in own if r["n"] == n]) for n in sizes]
            axis.plot(sizes, values, marker="o", color=colour, label=way)
    for axis, words in zip(axes, ("seconds until the first batch", "peak memory, MB"), strict=True):
        axis.set(xscale="log", xlabel="files", ylabel=words)
        axis.set_ylim(bottom=0)  # flat is to look flat, and the goals are seconds
    axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
