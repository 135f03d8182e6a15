"""Does pre-training on similar pictures help more? Gains of a study against distances of its pools.

    fewmask study similarity --out studies/similarity
    python benchmarks/similarity.py studies/similarity --out results/similarity \
        [--extractor weak --extractor imagenet --encoder densenet121 --weights FILE]

STUDY is finished, or at least every arm has its first repeats. A pool's gain is the mean difference
of its arm's test IoU to the baseline, over the repeats that all arms have. Its distance to the
target's images is `fewmask similarity`'s, in --out/distances. Between the two: Spearman's rank
correlation, over all pools and over those of the commonest size and resolution, with

- a 95 % bootstrap interval that draws pools and, for all of them alike, repeats: so it carries the
  uncertainty of the gains; 10 and 16 simulated pools, 3 and 5 repeats: it covers in 97 to 99 %,
- a permutation test over pools,
- the range of the correlation as one pool is left out,
- the reliability of the gains: the share of their variance that is the pools' and not the repeats'.
  The true correlation is at least diluted by its square root.

Pools that share pictures are no independent draws, and each is pre-trained once: the interval says
what other pools like these would change, if they were. Writes table.md, similarity.png and
results.json.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

import fewmask
from fewmask.data.images import Undecodable
from fewmask.data.sources import open_images
from fewmask.settings import StudySettings
from fewmask.studies.grid import load_plan
from fewmask.studies.plan import Plan
from fewmask.types import SimilarityResult

Array = NDArray[np.float64]
MEASURES = {"kid": "KID", "mmd2": "MMD², Gaussian", "knn": "k-NN distance", "coverage": "coverage"}
FARTHER = {"kid": 1, "mmd2": 1, "knn": 1, "coverage": -1}
"""Whether the measure grows with the distance, or falls."""
FAR = {"coverage": "1 - coverage"}
"""What a measure that falls with the distance is called where it is turned over."""
ALL, ALIKE = "all pools", "one size and resolution"
DRAWS = 10_000
COLOURS = {True: "#0072b2", False: "#d55e00"}


@dataclass(frozen=True)
class Pool:
    """A pool of the study: its arm, its SRC, and what else tells it from the others."""

    arm: str
    src: str
    images: int
    side: int
    """Short side in pixels, the median of some."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--plan", default="similarity", help="the study's plan")
    parser.add_argument("--out", type=Path, default=Path("results/similarity"))
    parser.add_argument("--extractor", action="append", help="as fewmask similarity's")
    parser.add_argument("--encoder")
    parser.add_argument("--weights")
    parser.add_argument("--size", type=int)
    parser.add_argument("--most", type=int, default=2000)
    arguments = parser.parse_args()
    plan = load_plan(StudySettings(plan=arguments.plan, out="unused"))
    pools = pools_of(plan)
    gains = read_gains(arguments.study / "results.csv", plan, [pool.arm for pool in pools])
    result = fewmask.similarity(
        sources=tuple(dict.fromkeys(pool.src for pool in pools)),
        target=plan.pairs,
        out=str(arguments.out / "distances"),
        extractor=tuple(arguments.extractor or ()),
        encoder=arguments.encoder,
        weights=arguments.weights,
        size=arguments.size,
        most=arguments.most,
    )
    found = compare(pools, gains, result)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "table.md").write_text(table(found))
    draw(found, arguments.out / "similarity.png")
    print(table(found))


# --- what is compared -----------------------------------------------------------------------------


def pools_of(plan: Plan) -> list[Pool]:
    """The pools of the arms that pre-train from scratch."""
    found = []
    for arm in plan.arms:
        if arm.pretrain is None or arm.init != "scratch":
            continue
        images = open_images(arm.pretrain.images)
        sides = []
        for i in np.linspace(0, len(images.items) - 1, 16).astype(int):
            try:
                sides.append(min(images.items[i].pixels().shape[:2]))
            except Undecodable:
                continue
        side = int(np.median(sides))
        found.append(Pool(arm.name, arm.pretrain.images, len(images.items), side))
    return found


def read_gains(path: Path, plan: Plan, arms: list[str]) -> dict[str, Array]:
    """Differences of test IoU to the baseline [R] of every arm, over the repeats that all have."""
    scores: dict[tuple[str, int], float] = {}
    budget = str(plan.budgets[0])
    for row in csv.DictReader(path.read_text().splitlines()):
        if row["status"] == "done" and row["budget"] == budget and row["iou"]:
            scores[row["arm"], int(row["repeat"])] = float(row["iou"])
    wanted = [plan.baseline, *arms]
    repeats = sorted(r for r in {r for _, r in scores} if all((arm, r) in scores for arm in wanted))
    if len(repeats) < 2:
        raise SystemExit(f"{path}: {len(repeats)} repeats are done of all arms; 2 are needed")
    base = np.array([scores[plan.baseline, r] for r in repeats])
    return {arm: np.array([scores[arm, r] for r in repeats]) - base for arm in arms}


def compare(pools: list[Pool], gains: dict[str, Array], result: SimilarityResult) -> dict[str, Any]:
    """Everything that table, picture and results.json show."""
    name_of = {src: name for name, src in result.sources.items()}
    common, _ = Counter((pool.images, pool.side) for pool in pools).most_common(1)[0]
    rows = []
    for pool in pools:
        distances = {
            f"{d.extractor}/{d.measure}": [d.value, d.low, d.high]
            for d in result.distances
            if d.source == name_of[pool.src] and d.measure in MEASURES
        }
        rows.append({
            **vars(pool), "alike": (pool.images, pool.side) == common,
            "gain": float(gains[pool.arm].mean()), "gains": gains[pool.arm].tolist(),
            "distances": distances,
        })  # fmt: skip
    found = []
    for group, members in ((ALL, rows), (ALIKE, [row for row in rows if row["alike"]])):
        if len(members) < 4:
            continue
        table_of_gains = np.array([row["gains"] for row in members])
        for extractor in result.extractors:
            for measure in MEASURES:
                key = f"{extractor}/{measure}"
                far = np.array([FARTHER[measure] * row["distances"][key][0] for row in members])
                found.append({
                    "group": group, "pools": len(members), "extractor": extractor,
                    "measure": measure, **correlation(far, table_of_gains),
                })  # fmt: skip
    return {
        "target": result.target, "images_a_set": result.n, "weak": list(result.weak),
        "repeats": len(next(iter(gains.values()))), "reliability": reliability(gains),
        "alike": {"images": common[0], "side": common[1]},
        "pools": rows, "correlations": found,
    }  # fmt: skip


# --- statistics -----------------------------------------------------------------------------------


def spearman(x: Array, y: Array) -> Array:
    """Rank correlation along the last axis; 0 where one side is constant."""
    a, b = (rankdata(v, axis=-1) - (v.shape[-1] + 1) / 2 for v in (x, y))
    norm = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    found: Array = np.divide((a * b).sum(-1), norm, out=np.zeros(norm.shape), where=norm > 0)
    return found


def correlation(far: Array, gains: Array, seed: int = 0) -> dict[str, Any]:
    """Spearman's of distances [P] and mean gains, from gains [P,R]: see this file's head."""
    rng = np.random.default_rng(seed)
    p, r = gains.shape
    means = gains.mean(1)
    pools, repeats = rng.integers(p, size=(DRAWS, p)), rng.integers(r, size=(DRAWS, r))
    drawn = np.take_along_axis(gains.T[repeats].mean(1), pools, 1)
    ends = np.quantile(spearman(far[pools], drawn), [0.025, 0.975])
    rho = float(spearman(far, means))
    others = rng.permuted(np.tile(means, (DRAWS, 1)), axis=1)
    shuffled = spearman(np.broadcast_to(far, (DRAWS, p)), others)
    left_out = [float(spearman(np.delete(far, i), np.delete(means, i))) for i in range(p)]
    return {
        "rho": rho,
        "interval": [float(end) for end in ends],
        "p_permutation": float((1 + (np.abs(shuffled) >= abs(rho) - 1e-12).sum()) / (1 + DRAWS)),
        "leaving_one_out": [min(left_out), max(left_out)],
    }


def reliability(gains: dict[str, Array]) -> float:
    """Share of the variance of mean gains between pools that the repeats' noise doesn't explain.

    1 - MS_residual / MS_pools of the two-way layout pools x repeats; what a repeat does to all
    pools alike (its baseline's luck) doesn't change their order and is taken out.
    """
    values = np.array(list(gains.values()))
    p, r = values.shape
    means = values.mean(1, keepdims=True)
    residual = values - means - values.mean(0) + values.mean()
    within = np.square(residual).sum() / ((p - 1) * (r - 1))
    between = r * np.square(means - values.mean()).sum() / (p - 1)
    return max(0.0, float(1 - within / between)) if between > 0 else 0.0


# --- what is written ------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """The pools with gain and distances, then the correlations."""
    keys = list(found["pools"][0]["distances"])
    lines = [
        f"Gain over scratch in IoU points ({found['repeats']} repeats; reliability "
        f"{found['reliability']:.2f}) and distance to {found['target']} ({found['images_a_set']} "
        "images a set).",
        "",
        f"| pool | images | px | gain | {' | '.join(keys)} |",
        "| --- " * (4 + len(keys)) + "|",
    ]
    for row in sorted(found["pools"], key=lambda row: -row["gain"]):
        cells = [f"{row['distances'][key][0]:.3f}" for key in keys]
        spread = np.std(row["gains"], ddof=1) / len(row["gains"]) ** 0.5
        lines.append(
            f"| {row['arm']} | {row['images']} | {row['side']} "
            f"| {100 * row['gain']:+.1f} ± {100 * spread:.1f} | {' | '.join(cells)} |"
        )
    lines += [
        "",
        "± is the standard error over the repeats, without the luck of pre-training. Below: "
        "Spearman's rank correlation of distance and gain (below 0: nearer pools gain more).",
        "",
        "| pools | extractor | measure | correlation | 95 % | permutation p | one pool left out |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["correlations"]:
        low, high = row["interval"]
        first, last = row["leaving_one_out"]
        measure = FAR.get(row["measure"], MEASURES[row["measure"]])
        lines.append(
            f"| {row['group']} ({row['pools']}) | {row['extractor']} | {measure} "
            f"| {row['rho']:+.2f} | {low:+.2f} to {high:+.2f} | {row['p_permutation']:.3f} "
            f"| {first:+.2f} to {last:+.2f} |"
        )
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Gain against distance, a row an extractor, a column a measure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    extractors = list(dict.fromkeys(row["extractor"] for row in found["correlations"]))
    measures = ("kid", "knn", "coverage")
    figure = Figure(figsize=(4.6 * len(measures), 3.9 * len(extractors)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(extractors), len(measures), squeeze=False, sharey=True)
    for (i, j), axes in np.ndenumerate(grid):
        extractor, measure = extractors[i], measures[j]
        for row in found["pools"]:
            value, low, high = row["distances"][f"{extractor}/{measure}"]
            gain = 100 * row["gain"]
            error = 100 * np.std(row["gains"], ddof=1) / len(row["gains"]) ** 0.5
            colour = COLOURS[row["alike"]]
            axes.errorbar(
                value, gain, xerr=[[value - low], [high - value]], yerr=error, color=colour,
                fmt="o" if row["alike"] else "s", markersize=5, elinewidth=0.7, alpha=0.8,
            )  # fmt: skip
            axes.annotate(row["arm"], (value, gain), (4, 3), textcoords="offset points", fontsize=6)
        one = next(
            row for row in found["correlations"]
            if (row["group"], row["extractor"], row["measure"]) == (ALL, extractor, measure)
        )  # fmt: skip
        sign = FARTHER[measure]
        low, high = sorted(sign * end for end in one["interval"])
        axes.set_title(
            f"{extractor}: rank correlation {sign * one['rho']:+.2f} ({low:+.2f} to {high:+.2f})",
            fontsize=9,
        )
        axes.axhline(0, color="0.4", linewidth=0.8, linestyle="--")
        axes.set_xlabel(f"{MEASURES[measure]}, to {found['target']}", fontsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("gain over scratch, IoU points", fontsize=8)
    size = found["alike"]
    figure.suptitle(
        f"A dot a pool; blue: {size['images']} images of {size['side']} px, orange: others. Bars: "
        "95 % of the distance, standard error of the gain",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
