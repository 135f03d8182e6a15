"""By how much does each method of `fewmask suggest` beat random on real pairs, or doesn't it?

    python benchmarks/suggesting.py --weights FILE --out results/suggesting

Oxford-IIIT Pet, border ignored, a fixed test set of 20 %. All other pictures are the pool, as if
they had no masks. From 0, 10 or more labelled pictures each method chooses some more; a
DenseNet-121 U-Net with ImageNet weights is fine-tuned on the labelled and the chosen ones (64 px,
120 steps of 16, recipe `best`, every tenth picture validates) and tested. A repeat draws the
labelled pictures, the random choice, the seed of the clusters and that of the training; all methods
of a repeat share these. Features are those of the ImageNet weights, in `typical-weak` those that
need no weights; `uncertainty` and `uncertain-typical` (what `mix` is from 50 labelled pictures on)
ask a model fine-tuned on the labelled ones. With fewer, `mix` is `typical`.

A cell that is done is not done again. Writes cells/*.json, table.md and differences.png.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from fewmask import decoders, encoders, workflows
from fewmask.checkpoint import load_start
from fewmask.data.sources import MaskOptions
from fewmask.data.split import Split, make_split, order, take
from fewmask.devices import make_fabric
from fewmask.evaluation import score_pairs
from fewmask.metrics import aggregate
from fewmask.probing.features import frozen_features
from fewmask.probing.weak import weak_features
from fewmask.segmentation import Geometry, Segmenter
from fewmask.settings import FinetuneSettings
from fewmask.suggesting import choosing
from fewmask.suggesting.uncertainty import mean_entropy

WITHOUT_RUN = ("random", "typical", "k-centre", "typical-weak")
WITH_RUN = ("uncertainty", "uncertain-typical")


@dataclass
class Bench:
    """The pairs, the test set, the pool's features, and where the cells lie."""

    arguments: argparse.Namespace
    prepared: workflows.Prepared
    split: Split
    features: dict[str, torch.Tensor] = field(default_factory=dict)
    started: dict[tuple[int, int], Segmenter] = field(default_factory=dict)

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.arguments.size, "square")

    def labelled(self, start: int, repeat: int) -> list[int]:
        """The rows that a repeat begins with: they nest."""
        return list(order(self.split, repeat, self.arguments.seed)[:start])

    def candidates(self, labelled: list[int]) -> np.ndarray:
        """Rows of the pool that show no labelled picture, one a picture."""
        group_of = {row: i for i, g in enumerate(self.prepared.checked.groups) for row in g}
        held = {group_of[row] for row in labelled if row in group_of}
        rows = []
        for row in self.split.rest:
            if row in labelled or group_of.get(row) in held:
                continue
            if row in group_of:
                held.add(group_of[row])
            rows.append(row)
        return np.array(rows)

    def of(self, kind: str, rows: Any) -> torch.Tensor:
        """Features of rows, by the ImageNet weights or without weights."""
        if kind not in self.features:
            cache, every = self.prepared.cache, np.arange(len(self.prepared.cache.names))
            if kind == "weak":
                self.features[kind] = weak_features(cache, every)
            else:
                encoder = encoders.build(self.arguments.encoder)
                load_start(encoder, "imagenet", name=self.arguments.encoder,
                           weights=self.arguments.weights)  # fmt: skip
                self.features[kind] = frozen_features(
                    encoder, cache, every, self.arguments.size, torch.device("cpu")
                )
        return self.features[kind][torch.as_tensor(np.asarray(rows, np.int64))]


def choose(bench: Bench, method: str, start: int, n: int, repeat: int) -> list[int]:
    """The rows that a method asks to be labelled."""
    labelled = bench.labelled(start, repeat)
    rows = bench.candidates(labelled)
    if method == "random":
        return [int(row) for row in rows[choosing.at_random(len(rows), n, 1000 + repeat).rows]]
    kind = "weak" if method == "typical-weak" else "imagenet"
    own, known = bench.of(kind, rows), bench.of(kind, labelled)
    if method == "k-centre":
        chosen = choosing.k_centre(own, known, n)
    elif method in WITH_RUN:
        model = started(bench, start, repeat)
        device = next(model.parameters()).device
        unsure = mean_entropy(model, bench.geometry, bench.prepared.cache, rows, device)
        chosen = (
            choosing.most_uncertain(unsure, n)
            if method == "uncertainty"
            else choosing.uncertain_and_typical(own, known, unsure, n, repeat)
        )
    else:
        chosen = choosing.typical(own, known, n, repeat)
    return [int(row) for row in rows[chosen.rows]]


def started(bench: Bench, start: int, repeat: int) -> Segmenter:
    """The model fine-tuned on the labelled pictures that a repeat begins with."""
    if (start, repeat) not in bench.started:
        bench.started.clear()  # one model at a time
        bench.started[start, repeat] = trained(bench, bench.labelled(start, repeat), repeat)
    return bench.started[start, repeat]


def trained(bench: Bench, rows: list[int], repeat: int) -> Segmenter:
    """A model fine-tuned on rows, nine of ten to train and the tenth to validate."""
    a = bench.arguments
    # As `fewmask finetune` does: what is chosen first should not always validate.
    shuffled = np.random.default_rng((a.seed, repeat)).permutation(sorted(rows)).tolist()
    groups = bench.prepared.checked.groups
    budget = take(tuple(shuffled), len(bench.prepared.pairs.items), len(rows), groups)
    with tempfile.TemporaryDirectory(dir=a.out) as work:
        settings = FinetuneSettings(
            pairs=a.pairs, out=work, init="imagenet", weights=a.weights, encoder=a.encoder,
            size=a.size, steps=a.steps, batch_size=a.batch_size, seed=repeat,
        ).resolved()  # fmt: skip
        settings = FinetuneSettings(
            **{**vars(settings), "decoder": decoders.component(settings.decoder)}
        )
        fabric = make_fabric("auto", 1, "auto")
        return workflows.train(fabric, settings, bench.prepared, budget, "cell")[0]


def cell(bench: Bench, method: str, start: int, n: int, repeat: int) -> None:
    """Choose, train, test; nothing where that was done before."""
    folder = bench.arguments.out / "cells"
    path = folder / f"start-{start}_choose-{n}_{method}_repeat-{repeat}.json"
    if path.exists():
        return
    began = time.monotonic()
    chosen = choose(bench, method, start, n, repeat) if n else []
    names = sorted(bench.prepared.pairs.items[row].name for row in chosen)
    record: dict[str, Any] = {"start": start, "choose": n, "method": method, "repeat": repeat}
    twin = same_choice(folder, record, names)
    if twin:
        record |= {"iou": twin["iou"], "iou_per_image": twin["iou_per_image"]}
        record["same_as"] = twin["method"]
    else:
        rows = [*bench.labelled(start, repeat), *chosen]
        model = trained(bench, rows, repeat) if n else started(bench, start, repeat)
        items = bench.prepared.pairs.items
        test = [items[row] for row in bench.split.test]
        labels = bench.prepared.checked.labels
        device = next(model.parameters()).device
        dataset, per_image, _ = aggregate(
            score_pairs(model, bench.geometry, test, labels, device), labels.names
        )
        record |= {"iou": dataset["iou"], "iou_per_image": per_image["iou"]}
    a = bench.arguments
    record |= {"seconds": round(time.monotonic() - began, 1), "chosen": names}
    record["settings"] = [a.encoder, a.size, a.steps, a.batch_size, a.seed]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{path.stem}: IoU {record['iou']:.4f}", flush=True)


def same_choice(folder: Path, record: dict[str, Any], names: list[str]) -> dict[str, Any] | None:
    """A cell of the same repeat that trained on the same pictures: the result would be the same."""
    for path in sorted(folder.glob("*.json")):
        other = json.loads(path.read_text())
        shared = all(other[k] == record[k] for k in ("start", "choose", "repeat"))
        if shared and other["chosen"] == names:
            return dict(other)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", default="oxford-iiit-pet:")
    parser.add_argument("--weights", help="a file in place of timm's download")
    parser.add_argument("--encoder", default="densenet121")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--starts", type=int, nargs="*", default=[0, 10])
    parser.add_argument("--budgets", type=int, nargs="*", default=[16, 40])
    every = [*WITHOUT_RUN, *WITH_RUN]
    parser.add_argument("--methods", nargs="*", default=every, choices=every)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/suggesting"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    prepared = workflows.prepare(arguments.pairs, MaskOptions(), Geometry(arguments.size, "square"))
    split = make_split(len(prepared.pairs.items), prepared.checked.groups, seed=arguments.seed)
    bench = Bench(arguments, prepared, split)
    # Repeats outermost: one that is stopped early has compared all methods alike.
    for repeat in range(arguments.repeats):
        for start in arguments.starts:
            if start:
                cell(bench, "start", start, 0, repeat)
            for n in arguments.budgets:
                for method in WITHOUT_RUN + (WITH_RUN if start else ()):
                    if method in arguments.methods:
                        cell(bench, method, start, n, repeat)
        write_table(arguments.out)


# --- what came of it ------------------------------------------------------------------------------


def differences(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each method's mean IoU, and its difference to random in pairs of one repeat, in points."""
    table: dict[tuple[int, int, str], dict[int, float]] = {}
    for r in records:
        table.setdefault((r["start"], r["choose"], r["method"]), {})[r["repeat"]] = r["iou"]
    rows = []
    methods = ["start", *WITHOUT_RUN, *WITH_RUN]
    for (start, n, method), own in sorted(
        table.items(), key=lambda item: (*item[0][:2], methods.index(item[0][2]))
    ):
        values = np.array(list(own.values()))
        row = {"start": start, "choose": n, "method": method, "iou": values.mean(),
               "deviation": values.std(ddof=1) if len(values) > 1 else None,
               "repeats": len(values)}  # fmt: skip
        reference = table.get((start, n, "random"), {})
        paired = [100 * (own[k] - reference[k]) for k in sorted(set(own) & set(reference))]
        if method != "random" and paired:
            row |= {"difference": float(np.mean(paired)), "pairs": paired}
            if len(paired) > 2:
                spread = np.std(paired, ddof=1) / len(paired) ** 0.5
                row["half"] = float(stats.t.ppf(0.975, len(paired) - 1) * spread)
        rows.append(row)
    return rows


def write_table(out: Path) -> None:
    """table.md and differences.png of all cells that are there."""
    records = [json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))]
    rows = differences(records)
    lines = [
        "| labelled before | chosen | method | IoU | repeats | points against random (95 %) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        spread = "" if row["deviation"] is None else f" ± {row['deviation']:.3f}"
        lines.append(
            f"| {row['start']} | {row['choose']} | {row['method']} | {row['iou']:.3f}{spread} "
            f"| {row['repeats']} | {difference_words(row)} |"
        )
    (out / "table.md").write_text("\n".join(lines) + "\n")
    draw_differences([row for row in rows if "difference" in row], out / "differences.png")


def difference_words(row: dict[str, Any]) -> str:
    """`+1.2 (-0.3 to +2.7)`, or the difference alone where there are too few pairs."""
    if "difference" not in row:
        return ""
    mean = row["difference"]
    if "half" not in row:
        return f"{mean:+.1f} (too few repeats)"
    return f"{mean:+.1f} ({mean - row['half']:+.1f} to {mean + row['half']:+.1f})"


def draw_differences(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each start and budget: every pair as a dot, means with their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = sorted({(row["start"], row["choose"]) for row in rows})
    if not panels:
        return
    figure = Figure(figsize=(1.6 + 2.9 * len(panels), 3.1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    methods = [m for m in WITHOUT_RUN + WITH_RUN if any(row["method"] == m for row in rows)]
    for axis, (start, n) in zip(axes, panels, strict=True):
        for row in rows:
            if (row["start"], row["choose"]) != (start, n):
                continue
            y = methods.index(row["method"])
            below = [y + 0.18] * len(row["pairs"])
            axis.plot(row["pairs"], below, "o", color="#0072b2", alpha=0.35,
                      markersize=4, markeredgewidth=0)  # fmt: skip
            axis.errorbar(row["difference"], y, xerr=row.get("half"), fmt="D", color="#0072b2",
                          markersize=5, capsize=3)  # fmt: skip
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"{start} labelled, {n} more chosen", fontsize=9)
        axis.set_yticks(range(len(methods)), methods, fontsize=9)
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        "difference to random in IoU points, in pairs of one repeat (bars: 95 %)", fontsize=9
    )
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
