"""What each pretext task learns in a quarter of an hour: its own measure, and a linear probe.

    python benchmarks/pretexts.py --images cats-vs-dogs: --out results/pretexts [TASK ...]

ResNet-18 from random weights on Cats-vs-Dogs, 64 px (96 px for the tasks that cut patches), AdamW.
At six moments of each run the features, frozen, meet fewmask's linear probe: cats against dogs,
three draws of 1500 pictures to learn from, one fixed test set of 20 %. At the end they meet it once
more, with half of all that is not test in each of three draws, beside a random encoder on the same
draws; the interval of the difference is over draws and test pictures together. `supervised` trains
on the probe's own classes, test pictures left out.

A task that is done is not done again: its record in --out/TASK.json goes on counting, so the table
may grow over several sittings. Writes TASK.json, table.md and curves.png.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewmask import encoders
from fewmask.checkpoint import read_weights, save_weights
from fewmask.data.cache import ImageCache
from fewmask.data.loader import Stream
from fewmask.data.pools import cached_pool, pool_labels
from fewmask.data.sources import open_images
from fewmask.devices import make_fabric
from fewmask.evidence.crossed import estimate
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


@dataclass(frozen=True)
class Data:
    """The pool at a size, its classes, and the probe's fixed test set."""

    cache: ImageCache
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    test: NDArray[np.bool_]
    fingerprint: str
    size: int
    src: str

    def draws(self, labelled: int) -> list[Draw]:
        return [draw(self.labels, self.test, labelled, 0, n, self.src) for n in range(DRAWS)]


def read(src: str, size: int) -> Data:
    images = open_images(src)
    with progress("reading images") as report:
        cache = cached_pool(images, size, "square", progress=report)
    labels = pool_labels(images, cache)
    if labels is None:
        raise SystemExit(f"{src}: has no class folders, which the probe needs")
    test = held_out(labels, same_pictures(cache), 0.2, 0)
    return Data(cache, labels, images.label_names, test, images.fingerprint(), size, src)


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
        work = arguments.out / "work" / path.stem
        record = json.loads(path.read_text()) if path.exists() else None
        if record is None:
            data = read(arguments.images, TRIALS[name].size)
            record = {"trial": name + suffix, **run(TRIALS[name], data, work, arguments.longer)}
            path.write_text(json.dumps(record, indent=1) + "\n")
            (work / "state.pt").unlink()
        if "final" not in record:
            data = read(arguments.images, TRIALS[name].size)
            record["final"] = final(data, work)
            path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{path.stem}: {record['final']}", flush=True)
        write_table(arguments.out)


def run(trial: Trial, data: Data, work: Path, longer: int) -> dict[str, Any]:
    """One task trained, looked at six times; what came of it. Leaves the encoder in `work`."""
    torch.manual_seed(0)
    fabric = make_fabric("cpu" if not torch.cuda.is_available() else "cuda", 1, "auto")
    cache, labels, draws = data.cache, data.labels, data.draws(LABELLED)
    # `supervised` must not have seen the classes of the probe's test pictures.
    rows = np.flatnonzero(~data.test) if trial.task == "supervised" else np.arange(len(labels))
    steps = trial.steps * longer
    stream = Stream(cache, rows.tolist(), BATCH, 0, drop_last=True, labels=labels)
    encoder = encoders.build(ENCODER)
    before = accuracies(encoder, data, draws, fabric.device)
    torch.manual_seed(1)
    component = PRETEXTS[trial.task](**trial.options)
    pool = Pool(len(rows), BATCH, steps, data.names)
    task = component.task(encoder, trial.size, pool).to(memory_format=torch.channels_last)
    rate = default_lr("adamw", BATCH) * task.rate
    optimisation = Optimisation("adamw", rate, 1e-4, "cosine", 0.1, task.beta1)

    def look(_: int) -> dict[str, float | None]:
        found = accuracies(encoder, data, draws, fabric.device)
        return {f"probe_{number}": accuracy for number, accuracy in enumerate(found)}

    key = f"{trial}x{longer} {data.fingerprint}"
    with progress(trial.task) as report:
        fitted = fit(
            fabric,
            task,
            task.groups(),
            stream,
            Run(
                work,
                key,
                steps,
                optimisation,
                "last",
                report,
            ),
            Check(-(-steps // LOOKS), look, prefix=""),
        )
    curve = [
        {"step": row["step"], "accuracies": [row[f"probe_{number}"] for number in range(DRAWS)]}
        for row in fitted.rows
        if "probe_0" in row
    ]
    save_weights(work / "encoder.safetensors", encoder.state_dict(), {"encoder": ENCODER})
    return {
        "task": trial.task,
        "options": trial.options,
        "size": trial.size,
        "steps": steps,
        "batch_size": BATCH,
        "images": len(rows),
        "seconds": round(fitted.seconds, 1),
        "images_per_second": round(steps * BATCH / fitted.seconds, 2),
        "threads": torch.get_num_threads(),
        "random": before,
        "curve": curve,
        "log": fitted.rows,
    }


def final(data: Data, work: Path) -> dict[str, Any]:
    """The linear probe on half of what is not test, beside a random encoder: over draws and test
    pictures together."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draws = data.draws(int((~data.test).sum()) // 2)
    torch.manual_seed(0)
    encoder = encoders.build(ENCODER)
    known = work.parent / f"random-{data.size}.npy"
    if not known.exists():
        np.save(known, right(encoder, data, draws, device))
    random = np.load(known).astype(float)
    encoder.load_state_dict(read_weights(work / "encoder.safetensors"))
    own = right(encoder, data, draws, device).astype(float)
    found = estimate(own - random)
    half = float(found.half_width())
    mean = float(found.mean)
    return {
        "labelled": len(draws[0].train) + len(draws[0].val),
        "accuracies": own.mean(axis=1).tolist(),
        "random": random.mean(axis=1).tolist(),
        "difference": mean,
        "interval": [mean - half, mean + half],
    }


def accuracies(
    encoder: torch.nn.Module, data: Data, draws: list[Draw], device: torch.device
) -> list[float]:
    """The linear probe's accuracy on the test pictures, a draw each."""
    found: list[float] = right(encoder, data, draws, device).mean(axis=1).tolist()
    return found


def right(
    encoder: torch.nn.Module, data: Data, draws: list[Draw], device: torch.device
) -> NDArray[np.bool_]:
    """[draws, test pictures]: whether the linear probe is right."""
    used = np.unique(np.concatenate([np.concatenate([d.train, d.val, d.test]) for d in draws]))
    found = frozen_features(encoder.to(device), data.cache, used, data.size, device)
    features = found.new_zeros(len(data.labels), found.shape[1])
    features[torch.from_numpy(used)] = found
    answers = [linear_probe(features, data.labels, one)[0] for one in draws]
    return np.stack([a == data.labels[d.test] for a, d in zip(answers, draws, strict=True)])


def minutes(record: dict[str, Any]) -> float:
    """Minutes of the steps at the run's median speed: a run that was paused, or shared its core for
    a while, has a longer wall time that says nothing of the task."""
    speed = float(np.median([row["images_per_second"] for row in record["log"]]))
    return float(record["steps"] * record["batch_size"] / speed / 60)


MEASURES = (
    ("accuracy", "chance"),
    ("accuracy", "constant_accuracy"),
    ("error", "constant_error"),
)
"""(a task's own measure, that of knowing nothing), by signal names; the first that fits counts."""


def own_measure(record: dict[str, Any]) -> str:
    """The task's own measure over the last tenth of the run, beside its reference."""
    log = record["log"]
    before = [0, *(row["step"] for row in log)]
    weights = np.array([row["step"] - start for row, start in zip(log, before, strict=False)])
    late = np.array([row["step"] > 0.9 * record["steps"] for row in log])
    for name, reference in MEASURES:
        if name in log[-1] and reference in log[-1]:
            own, known = (
                float(np.average([row[key] for row in log], weights=weights * late))
                for key in (name, reference)
            )
            return f"{name} {own:.3f} ({reference.replace('_', ' ')} {known:.3f})"
    raise KeyError(f"{record['trial']} logs no measure with its reference: {sorted(log[-1])}")


def write_table(out: Path) -> None:
    """table.md and curves.png of all records that are there."""
    records = [json.loads(p.read_text()) for p in sorted(out.glob("*.json"))]
    records = [r for r in records if "final" in r]
    records.sort(key=lambda r: -r["final"]["difference"])
    lines = [
        "| task | px | steps x batch | core minutes | own measure, last tenth | linear probe | "
        "random encoder | difference (95 %) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in records:
        own = r["final"]
        low, high = own["interval"]
        lines.append(
            f"| {r['trial']} | {r['size']} | {r['steps']} x {r['batch_size']} "
            f"| {minutes(r):.1f} | {own_measure(r)} "
            f"| {np.mean(own['accuracies']):.3f} | {np.mean(own['random']):.3f} "
            f"| {100 * own['difference']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}) |"
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
