"""What `time_to_quality.py` does off the clock: probes, fine-tunings, the table and the picture.

A record's rounds are runs: a way, a seed and its looks, each with a clock and a step.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import measuring
import numpy as np

OURS = "fewmask"
WAYS = (OURS, "lightly", "LightlyTrain")
Run = dict[str, Any]

PLAN = """
name = "quality"
pairs = {pairs}
encoder = {encoder}
size = {size}
recipe = "best"
budgets = [{masks}]
repeats = {repeats}
baseline = "random"
[finetune]
steps = {steps}
[[arms]]
name = "random"
init = "scratch"
"""


def weights_of(a: argparse.Namespace, run: Run, look: dict[str, Any]) -> Path:
    path: Path = a.out / "work" / f"{run['way']}-{run['seed']}" / f"{look['step']}.safetensors"
    return path


def probe_all(a: argparse.Namespace, record: dict[str, Any], path: Path) -> None:
    """The linear probe's accuracies of every encoder that has none yet, and of a random one."""
    if "random" not in record:
        record["random"] = probed(a, "scratch")
    for run in record["rounds"]:
        for look in run["looks"]:
            if "accuracies" not in look:
                look["accuracies"] = probed(a, str(weights_of(a, run, look)))
                measuring.save(path, record)
                print(f"{run['way']}, step {look['step']}: {np.mean(look['accuracies']):.3f}",
                      flush=True)  # fmt: skip


def probed(a: argparse.Namespace, start: str) -> list[float]:
    import fewmask as package

    with tempfile.TemporaryDirectory() as work:
        found = package.probe(
            run=start, images=a.images, out=f"{work}/probe", encoder=a.encoder, size=a.size,
            train=a.train, reference=False, device=a.device,
        )  # fmt: skip
    return list(next(score.values for score in found.scores if score.probe == "linear"))


def finetune_all(a: argparse.Namespace, record: dict[str, Any], path: Path) -> None:
    """The IoU on one test set after fine-tuning, of every look: a study whose arms they are."""
    arms = {
        f"{run['way']}-{run['seed']}-{look['step']}": (weights_of(a, run, look), look)
        for run in record["rounds"]
        for look in run["looks"]
    }
    plan = a.out / "work" / "plan.toml"
    said = {name: json.dumps(value) for name, value in vars(a).items() if name != "out"}
    lines = [f'[[arms]]\nname = "{arm}"\ninit = "{file}"\n' for arm, (file, _) in arms.items()]
    plan.write_text(PLAN.format(**said) + "".join(lines))
    out = a.out / "work" / f"study-{a.masks}-masks-{a.steps}-steps"
    measuring.timed(measuring.fewmask_command("study", plan, "--out", out, "--device", a.device))
    ious: dict[str, list[float]] = {}
    for result in out.glob("cells/*/result.json"):
        cell = json.loads(result.read_text())
        ious.setdefault(cell["arm"], []).append(cell["iou"])
    record["random_iou"] = ious["random"]
    for arm, (_, look) in arms.items():
        look["iou"] = ious[arm]
    measuring.save(path, record)


# --- the table ------------------------------------------------------------------------------------


def curve(record: dict[str, Any], run: Run, what: str) -> list[tuple[float, float]]:
    """(clock, mean accuracy or IoU) of every look, the random encoder first."""
    start = {"accuracies": "random", "iou": "random_iou"}[what]
    looks = [(look["clock"], float(np.mean(look[what]))) for look in run["looks"] if what in look]
    return [(0.0, float(np.mean(record[start]))), *looks] if looks else []


def reached(points: list[tuple[float, float]], target: float) -> float | None:
    """When straight lines between the looks first reach the target."""
    for (began, low), (ended, high) in pairwise(points):
        if low >= target:
            return began
        if high >= target:
            return began + (ended - began) * (target - low) / (high - low)
    return None


def write_table(a: argparse.Namespace, record: dict[str, Any]) -> None:
    """Times to every target; a way that misses one in any seed has none."""
    rows = []
    kinds = [("accuracies", "probe", a.targets)] + [("iou", "IoU", a.iou)] * bool(a.pairs)
    for what, name, targets in kinds:
        for target in map(float, targets.split(",")):
            times = {
                (run["way"], run["seed"]): reached(curve(record, run, what), target)
                for run in record["rounds"]
            }
            for way in WAYS:
                own = [seconds for (of, _), seconds in times.items() if of == way]
                done = [seconds / 60 for seconds in own if seconds is not None]
                if own:
                    said = measuring.interval(done).words() if len(done) == len(own) else "-"
                    rows.append([f"{name} {target:g}", way, f"{len(done)} of {len(own)}", said,
                                 longer(times, way)])  # fmt: skip
    unit = "minutes" if record["setting"]["device"] == "cuda" else "CPU minutes"
    head = ["target", "way", "seeds that reach it", f"{unit} (95 %)", "times fewmask's (95 %)"]
    (a.out / "table.md").write_text(measuring.table(head, rows))
    draw(record, kinds, a.out / "curves.png")


def longer(times: dict[tuple[str, int], float | None], way: str) -> str:
    """A way's time over fewmask's, paired by seed."""
    pairs = [(times[way, seed], times.get((OURS, seed))) for of, seed in times if of == way]
    both = [(one, other) for one, other in pairs if one and other]
    if way == OURS or not both:
        return "-"
    return f"{measuring.ratio([p[0] for p in both], [p[1] for p in both]).words()} x"


def draw(record: dict[str, Any], kinds: list[tuple[str, str, str]], path: Path) -> None:
    """Quality over the clock, a line a seed."""
    figure, axes = measuring.panels(len(kinds))
    for axis, (what, name, targets) in zip(axes, kinds, strict=True):
        for run in record["rounds"]:
            points = np.array(curve(record, run, what)).reshape(-1, 2)
            label = run["way"] if run["seed"] == 0 else None
            colour = measuring.COLOURS[WAYS.index(run["way"])]
            axis.plot(points[:, 0] / 60, points[:, 1], ".-", color=colour, label=label, lw=1)
        for target in map(float, targets.split(",")):
            axis.axhline(target, color="#555555", linestyle="--", linewidth=0.6)
        axis.set(xlabel="minutes" if record["setting"]["device"] == "cuda" else "CPU minutes")
        axis.set_ylabel({"probe": "linear probe, accuracy"}.get(name, name))
    axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)
