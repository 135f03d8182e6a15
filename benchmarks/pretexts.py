"""What each pretext task learns in a quarter of an hour: its own measure, and a linear probe.

    python benchmarks/pretexts.py --images cats-vs-dogs: --out results/pretexts [TASK ...]

ResNet-18 from random weights on Cats-vs-Dogs, 64 px (96 px for the tasks that cut patches), AdamW.
At seven moments of each run the features, frozen, meet fewmask's linear probe: cats against dogs,
three draws of 1500 pictures to learn from, one fixed test set of 20 %, the same for all tasks and
for a random encoder. `supervised` trains on the probe's own classes, test pictures left out.

A task that is done is not done again: its record in --out/TASK.json goes on counting, so the table
may grow over several sittings. Writes TASK.json, table.md and curves.png.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from fewmask import encoders
from fewmask.data.loader import Stream
from fewmask.data.pools import cached_pool, pool_labels
from fewmask.data.sources import open_images
from fewmask.devices import make_fabric
from fewmask.optimisation import Optimisation
from fewmask.pretext import PRETEXTS, Pool
from fewmask.probing.classifiers import linear_probe
from fewmask.probing.features import frozen_features
from fewmask.probing.splits import Draw, draw, held_out, same_pictures
from fewmask.progress import progress
from fewmask.training import Check, Run, fit
from fewmask.workflows.pretraining import default_lr

ENCODER = "resnet18"
BATCH = 64
DRAWS = 3
LABELLED = 1500
"""Pictures that a draw of the probe learns from."""
LOOKS = 6


@dataclass(frozen=True)
class Trial:
    """A task at the size and length that two cores carry in a quarter of an hour."""

    task: str
    steps: int
    size: int = 64
    options: dict[str, Any] = field(default_factory=dict)


TRIALS = {
    "supervised": Trial("supervised", 800),
    "simclr": Trial("simclr", 400),
    "jigsaw": Trial("jigsaw", 300, size=96),
    "relative-position": Trial("relative-position", 300, size=96),
    "colorize": Trial("colorize", 500),
    "densecl": Trial("densecl", 500),
    "byol": Trial("byol", 400),
    "masked": Trial("masked", 500),
    "dino": Trial("dino", 200),
    "simclr-dcl": Trial("simclr", 400, options={"loss": "dcl"}),
    "colorize-regression": Trial("colorize", 500, options={"objective": "regression"}),
    "colorize-gan": Trial("colorize", 400, options={"objective": "gan"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trials", nargs="*", help=f"of {', '.join(TRIALS)} (default: all)")
    parser.add_argument("--images", default="cats-vs-dogs:")
    parser.add_argument("--out", type=Path, default=Path("results/pretexts"))
    parser.add_argument("--longer", type=int, default=1, help="times the steps")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.trials or TRIALS:
        suffix = f"-x{arguments.longer}" if arguments.longer > 1 else ""
        path = arguments.out / f"{name}{suffix}.json"
        if path.exists():
            print(f"{name}: done before")
        else:
            found = run(TRIALS[name], arguments.images, arguments.out / "work" / path.stem,
                        arguments.longer)  # fmt: skip
            path.write_text(json.dumps({"trial": name + suffix, **found}, indent=1) + "\n")
        write_table(arguments.out)


def run(trial: Trial, src: str, work: Path, longer: int) -> dict[str, Any]:
    """One task trained, looked at six times; what came of it."""
    torch.manual_seed(0)
    fabric = make_fabric("cpu" if not torch.cuda.is_available() else "cuda", 1, "auto")
    images = open_images(src)
    with progress("reading images") as report:
        cache = cached_pool(images, trial.size, "square", progress=report)
    labels = pool_labels(images, cache)
    assert labels is not None, f"{src}: class folders are needed"
    test = held_out(labels, same_pictures(cache), 0.2, 0)
    draws = [draw(labels, test, LABELLED, 0, number, src) for number in range(DRAWS)]
    # `supervised` must not have seen the classes of the probe's test pictures.
    rows = np.flatnonzero(~test) if trial.task == "supervised" else np.arange(len(labels))
    steps = trial.steps * longer
    stream = Stream(cache, rows.tolist(), BATCH, 0, drop_last=True, labels=labels)
    encoder = encoders.build(ENCODER)
    before = probe(encoder, cache, labels, draws, trial.size, fabric.device)
    torch.manual_seed(1)
    component = PRETEXTS[trial.task](**trial.options)
    pool = Pool(len(rows), BATCH, steps, images.label_names)
    task = component.task(encoder, trial.size, pool).to(memory_format=torch.channels_last)
    rate = default_lr("adamw", BATCH) * getattr(component, "rate", 1.0)
    optimisation = Optimisation(
        "adamw", rate, 1e-4, "cosine", 0.1, getattr(component, "beta1", 0.9)
    )
    curve: list[dict[str, Any]] = []
    probing = [0.0]

    def look(step: int) -> dict[str, float | None]:
        began = time.monotonic()
        found = probe(encoder, cache, labels, draws, trial.size, fabric.device)
        curve.append({"step": step, "accuracies": found})
        probing[0] += time.monotonic() - began
        return {"linear_probe": float(np.mean(found))}

    began = time.monotonic()
    with progress(trial.task) as report:
        fitted = fit(
            fabric,
            task,
            task.groups(),
            stream,
            Run(work, f"{trial}x{longer}", steps, optimisation, "last", report),
            Check(max(1, steps // LOOKS), look, prefix=""),
        )
    seconds = time.monotonic() - began - probing[0]
    return {
        "task": trial.task,
        "options": trial.options,
        "size": trial.size,
        "steps": steps,
        "batch_size": BATCH,
        "images": len(rows),
        "seconds": round(seconds, 1),
        "images_per_second": round(steps * BATCH / seconds, 2),
        "threads": torch.get_num_threads(),
        "random": before,
        "curve": curve,
        "log": fitted.rows,
    }


def probe(
    encoder: torch.nn.Module,
    cache: Any,
    labels: np.ndarray,
    draws: list[Draw],
    size: int,
    device: torch.device,
) -> list[float]:
    """The linear probe's accuracy on the test pictures, a draw each."""
    used = np.unique(np.concatenate([np.concatenate([d.train, d.val, d.test]) for d in draws]))
    found = frozen_features(encoder, cache, used, size, device)
    features = found.new_zeros(len(labels), found.shape[1])
    features[torch.from_numpy(used)] = found
    answers = [linear_probe(features, labels, one)[0] for one in draws]
    return [
        float((answer == labels[one.test]).mean())
        for answer, one in zip(answers, draws, strict=True)
    ]


MEASURES = (
    ("accuracy", "chance"),
    ("accuracy", "constant_accuracy"),
    ("error", "constant_error"),
)
"""(a task's own measure, that of knowing nothing), by signal names; the first that fits counts."""


def own_measure(record: dict[str, Any]) -> str:
    """The task's own measure at the end of the run, beside its reference."""
    last = record["log"][-1]
    for name, reference in MEASURES:
        if name in last and reference in last:
            return f"{name} {last[name]:.3f} ({reference.replace('_', ' ')} {last[reference]:.3f})"
    raise KeyError(f"{record['trial']} logs no measure with its reference: {sorted(last)}")


def difference(record: dict[str, Any]) -> tuple[float, float, float]:
    """Mean difference from the random encoder over the draws, and its 95 % interval (paired t)."""
    gains = np.subtract(record["curve"][-1]["accuracies"], record["random"])
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5
    return float(gains.mean()), float(gains.mean() - half), float(gains.mean() + half)


def write_table(out: Path) -> None:
    """table.md and curves.png of all records that are there."""
    records = [json.loads(p.read_text()) for p in sorted(out.glob("*.json"))]
    records.sort(key=lambda r: -float(np.mean(r["curve"][-1]["accuracies"])))
    lines = [
        "| task | px | steps x batch | minutes | own measure at the end | linear probe | "
        "random encoder | difference (95 %) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in records:
        mean, low, high = difference(r)
        lines.append(
            f"| {r['trial']} | {r['size']} | {r['steps']} x {r['batch_size']} "
            f"| {r['seconds'] / 60:.1f} | {own_measure(r)} "
            f"| {np.mean(r['curve'][-1]['accuracies']):.3f} | {np.mean(r['random']):.3f} "
            f"| {100 * mean:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}) |"
        )
    (out / "table.md").write_text("\n".join(lines) + "\n")
    draw_probes(records, out / "curves.png")


def draw_probes(records: list[dict[str, Any]], path: Path) -> None:
    """The probe's accuracy over training, a panel a task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = 4
    down = -(-len(records) // across)
    figure = Figure(figsize=(3.2 * across, 2.5 * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axis, r in zip(axes, records, strict=False):
        steps = [0, *(point["step"] for point in r["curve"])]
        values = np.array([r["random"], *(point["accuracies"] for point in r["curve"])])
        axis.plot(steps, values, color="#0072B2", alpha=0.35, linewidth=0.8)
        axis.plot(steps, values.mean(1), color="#0072B2", marker="o", markersize=3)
        axis.axhline(np.mean(r["random"]), color="#555555", linestyle="--", linewidth=0.8)
        axis.set_title(r["trial"], fontsize=9)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(records) :]:
        axis.set_visible(False)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("linear probe, cat against dog (dashed: random encoder)", fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
