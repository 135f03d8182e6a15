"""How does the cost grow with the work: images, pixels, classes, cells, test pairs?

    python benchmarks/speed/scaling.py [--axes images pixels classes cells tests] [--rounds 5]

Each point is a command of its own in a process of its own; what counts is that process' CPU
seconds, with its workers, so that others on the machine matter little. Per round each axis is gone
through once, in a random order.

- *images*: `fewmask pretrain`, one pass over N images of --images, decoding them included;
- *pixels*: `fewmask pretrain`, the same steps at S x S pixels;
- *classes*: `fewmask finetune`, the same steps on masks of K classes;
- *cells*: `fewmask study` of two arms (random weights twice), R repeats, a few steps a cell;
- *tests*: `fewmask evaluate` on N pairs.

The last three work on generated pictures. To each round's points cost = start + rate x work^p is
fitted, by relative errors, neither start nor rate negative; p's interval is Student's t over the
rounds. A p of 1 is cost in proportion to the work, beyond the start.

Writes scaling-DEVICE.json, table.md and scaling.png; more rounds are added to those that are there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measuring
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Command = list[object]

PLAN = """
name = "scaling"
pairs = {pairs}
encoder = "resnet18"
size = 32
recipe = "best"
budgets = [8]
repeats = {repeats}
baseline = "one"
[finetune]
steps = 4
batch_size = 4
[[arms]]
name = "one"
init = "scratch"
[[arms]]
name = "other"
init = {weights}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", default="cats-vs-dogs:")
    parser.add_argument("--out", type=Path, default=Path("results/bench/scaling"))
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--points", type=int, default=6, help="points of an axis, the first ones")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--steps", type=int, default=20, help="of pixels and classes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    a = parser.parse_args()
    path = a.out / f"scaling-{a.device}.json"
    said = {key: getattr(a, key) for key in ("encoder", "steps", "images")}
    record = measuring.opened(path, said | measuring.machine(a.device))
    with tempfile.TemporaryDirectory() as work:
        for _ in range(a.rounds):
            for axis in measuring.shuffled(a.axes):
                found = {"axis": axis, "points": one_round(a, axis, Path(work))}
                record["rounds"].append(found)
                measuring.save(path, record)
                write_table(record, a.out)
    write_table(record, a.out)
    print((a.out / "table.md").read_text())


def one_round(a: argparse.Namespace, axis: str, work: Path) -> list[tuple[int, float]]:
    """(work, CPU seconds) of every point; each with caches of its own."""
    values, prepared = AXES[axis]
    found = []
    for value in values[: a.points]:
        line = prepared(a, value, work)
        with tempfile.TemporaryDirectory(dir=work) as fresh:
            whole = measuring.fewmask_command(*line, "--out", f"{fresh}/out", "--device", a.device)
            cpu = measuring.timed(whole, FEWMASK_CACHE=f"{fresh}/cache").cpu
        found.append((value * value if axis == "pixels" else value, cpu))
        print(f"{axis} {value}: {cpu:.1f} s of CPU", flush=True)
    return found


# --- the axes -------------------------------------------------------------------------------------


def of_images(a: argparse.Namespace, n: int, _: Path) -> Command:
    return ["pretrain", "--images", f"{a.images}?n={n}", "--encoder", a.encoder, "--size", 32,
            "--epochs", 1, "--batch-size", 64]  # fmt: skip


def of_pixels(a: argparse.Namespace, size: int, _: Path) -> Command:
    return ["pretrain", "--images", f"{a.images}?n=64", "--encoder", a.encoder, "--size", size,
            "--steps", a.steps, "--batch-size", 16]  # fmt: skip


def of_classes(a: argparse.Namespace, classes: int, work: Path) -> Command:
    pairs = generated(work / f"classes-{classes}", 40, classes)
    named = ",".join(f"class{k}" for k in range(classes))
    return ["finetune", "--pairs", pairs, "--encoder", a.encoder, "--size", 96, "--classes", named,
            "--steps", a.steps, "--batch-size", 8]  # fmt: skip


def of_cells(a: argparse.Namespace, repeats: int, work: Path) -> Command:
    """A study of one arm twice: the second one from a file of random weights."""
    pairs = generated(work / "pairs-40", 40, 2)
    plan = work / f"plan-{repeats}.toml"
    said = {"pairs": str(pairs), "repeats": repeats, "weights": str(a_run(work) / WEIGHTS)}
    plan.write_text(PLAN.format(**{key: json.dumps(value) for key, value in said.items()}))
    return ["study", plan]


def of_tests(_: argparse.Namespace, n: int, work: Path) -> Command:
    return ["evaluate", a_run(work), "--pairs", generated(work / f"pairs-{n}", n, 2)]


AXES: dict[str, tuple[Sequence[int], Callable[[argparse.Namespace, int, Path], Command]]] = {
    "images": ((250, 500, 1000, 2000, 4000, 8000), of_images),
    "pixels": ((32, 64, 96, 128, 192, 256), of_pixels),
    "classes": ((2, 4, 8, 16, 32, 64), of_classes),
    "cells": ((1, 2, 4, 8, 16, 32), of_cells),
    "tests": ((25, 50, 100, 200, 400, 800), of_tests),
}
WEIGHTS = "model.safetensors"


def generated(folder: Path, n: int, classes: int) -> Path:
    """n pairs of pictures and masks of 96 pixels a side, every class in every mask."""
    from PIL import Image

    if folder.exists():
        return folder
    making = folder.with_name(f".{folder.name}")
    for part in ("images", "masks"):
        (making / part).mkdir(parents=True)
    rng = np.random.default_rng(classes)
    for i in range(n):
        coarse = rng.integers(256, size=(12, 12, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
        picture.save(making / "images" / f"{i:05d}.png")
        # 64 classes at most, in tiles of 12 pixels, in another order in each mask.
        tiles = rng.permutation(np.arange(64) % classes).reshape(8, 8).astype(np.uint8)
        mask = Image.fromarray(np.kron(tiles, np.ones((12, 12), np.uint8)))
        mask.save(making / "masks" / f"{i:05d}.png")
    making.rename(folder)
    return folder


def a_run(work: Path) -> Path:
    """A model to test with: a step of fine-tuning, done once."""
    out = work / "run"
    if not out.exists():
        pairs = generated(work / "pairs-40", 40, 2)
        line = ["finetune", "--pairs", pairs, "--encoder", "resnet18", "--size", 32, "--steps", 1,
                "--batch-size", 4, "--out", out]  # fmt: skip
        measuring.timed(measuring.fewmask_command(*line), FEWMASK_CACHE=str(work / "cache"))
    return out


# --- the fit --------------------------------------------------------------------------------------


FLAT = 1.2
"""Cost at the largest over that at the smallest, below which no power is read from it."""


def fitted(points: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """(start, rate, p) of cost = start + rate x work^p, the relative errors' squares the least."""
    found: NDArray[np.float64] = np.array(points, float)
    work, cost = found[:, 0] / found[:, 0].max(), found[:, 1]
    best = (np.inf, 0.0, 0.0, 0.0)
    for p in np.arange(0.05, 3.0, 0.01):
        columns = np.stack([np.ones_like(work), work**p], axis=1) / cost[:, None]
        (start, rate), rest = nnls(columns, np.ones_like(work))
        best = min(best, (rest, start, rate, float(p)))
    _, start, rate, p = best
    return start, rate / found[:, 0].max() ** p, p


def is_flat(points: Sequence[Sequence[Sequence[float]]]) -> bool:
    """Whether the cost hardly grows, by the median of the rounds."""
    return bool(np.median([p[-1][1] / p[0][1] for p in points]) < FLAT)


def write_table(record: dict[str, Any], out: Path) -> None:
    rows = []
    axes = [axis for axis in AXES if any(r["axis"] == axis for r in record["rounds"])]
    for axis in axes:
        points = [r["points"] for r in record["rounds"] if r["axis"] == axis]
        longest = max(map(len, points))
        points = [p for p in points if len(p) == longest]
        fits = [fitted(p) for p in points]
        spans = f"{points[0][0][0]:,} to {points[0][-1][0]:,}"
        start, last = np.median([f[0] for f in fits]), np.median([p[-1][1] for p in points])
        exponent = measuring.interval(p for _, _, p in fits)
        known = exponent.words() if longest > 2 else "-"
        if is_flat(points):
            start, known = np.median([p[0][1] for p in points]), "hardly any growth"
        rows.append([axis, spans, f"{start:.1f} s", f"{last:.1f} s", known, len(fits)])
    head = ["axis", "from, to", "start", "CPU at the largest", "exponent (95 %)", "rounds"]
    (out / "table.md").write_text(measuring.table(head, rows))
    draw(record["rounds"], axes, out / "scaling.png")


def draw(rounds: list[dict[str, Any]], axes: list[str], path: Path) -> None:
    """CPU seconds over the work, a panel an axis, with the fit to the mean of the rounds."""
    figure, places = measuring.panels(len(axes), 3, 3)
    for axis, name in zip(places, axes, strict=True):
        own = [r["points"] for r in rounds if r["axis"] == name]
        longest = max(map(len, own))
        points = np.array([p for p in own if len(p) == longest])
        axis.plot(*points.reshape(-1, 2).T, "o", color=measuring.COLOURS[0], markersize=3)
        mean = points.mean(axis=0)
        axis.set(xscale="log", xlabel=name, ylabel="CPU seconds")
        if is_flat(points.tolist()):
            axis.set_ylim(0, 1.5 * mean[:, 1].max())
            title = "hardly any growth"
        else:
            start, rate, p = fitted(mean)
            line = np.geomspace(mean[0, 0], mean[-1, 0], 50)
            axis.plot(line, start + rate * line**p, color=measuring.COLOURS[1], linewidth=1)
            axis.set_yscale("log")
            axis.set_yticks(mean[:, 1], [f"{value:,.4g}" for value in mean[:, 1]], fontsize=7)
            title = f"{start:.1f} s + rate x work^{p:.2f}"
        axis.set_xticks(mean[:, 0], [f"{value:,.4g}" for value in mean[:, 0]], fontsize=7)
        axis.minorticks_off()
        axis.set_title(title, fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
