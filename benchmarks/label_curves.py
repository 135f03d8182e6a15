"""Do forecasts of the label curve come true? Fitted on small budgets, held against larger ones.

    fewmask study benchmarks/evidence_pool.toml --weights FILE --out results/evidence/pool
    python benchmarks/label_curves.py --pool results/evidence/pool --out results/evidence

For each arm of the pool, each number of small budgets (from three on) and each choice of repeats, a
curve is fitted and asked for every larger budget up to four times the largest known, and, without
one of the inner budgets, for that: the IoU there, and how many masks reach the IoU that was really
found there (its mean over all repeats).

Two arms of one data set are few, so the same is asked of simulated studies, whose truth is known:
of five shapes, three of them in none of the families that are fitted, with a noise over repeats
that falls with the masks and is shared by nested subsets to a degree that varies.

Writes label_curves.json, label_curves.md and label_curves.png.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fewmask.evidence.crossed import Values
from fewmask.evidence.curve import Curve, fit_curve
from fewmask.evidence.masks import FURTHEST, curve_of, masks_for
from fewmask.reporting.folder import read_study

REPEATS = (2, 3, 4)
KNOWN = (3, 4, 6)
"""Budgets that a simulated study has."""
MASKS: Values = np.array([4.0, 8, 16, 32, 64, 128, 256, 512])
INNER = "inside"


def table_of(pool: Path, arm: str) -> tuple[Values, Values]:
    """(masks [J], IoU [R,J]) of the repeats that every budget has."""
    study = read_study(pool)
    runs = {study.masks(b): study.runs(arm, b) for b in study.budgets}
    shared = sorted(set.intersection(*(set(own) for own in runs.values())))
    return np.array([*runs], float), np.array([[own[r] for own in runs.values()] for r in shared])


def trials(pool: Path) -> list[dict[str, Any]]:
    """Every forecast that was asked for, and what was found."""
    rows = []
    for arm in read_study(pool).arms:
        masks, scores = table_of(pool, arm)
        found = scores.mean(axis=0)
        for repeats in REPEATS:
            for chosen in combinations(range(len(scores)), repeats):
                for known in range(3, len(masks)):
                    own = forecasts(masks, scores[list(chosen)], found, known)
                    rows += [{"curves": "real", "repeats": repeats, **row} for row in own]
    return rows


def simulated(studies: int) -> list[dict[str, Any]]:
    """As `trials`, of studies whose true curves are known."""
    rows = []
    for repeats in REPEATS:
        for known in KNOWN:
            for number in range(studies):
                random = np.random.default_rng((77, repeats, known, number))
                truth = true_curve(random)
                scores = np.asarray(truth + deviations(repeats, random))
                own = forecasts(MASKS, scores, truth, known)
                rows += [{"curves": "simulated", "repeats": repeats, **row} for row in own]
    return rows


def true_curve(random: np.random.Generator) -> Values:
    """IoU at MASKS: one power law, an exponential, a logistic curve, two powers, a dented one."""
    top = random.uniform(0.5, 0.97)
    gain = top * random.uniform(0.1, 0.6)
    n = MASKS / MASKS[0]
    shape = random.integers(5)
    if shape == 0:
        left = n ** -random.uniform(0.3, 1.5)
    elif shape == 1:
        left = np.exp(-(MASKS - MASKS[0]) / np.exp(random.uniform(np.log(4), np.log(150))))
    elif shape == 2:
        middle, steep = random.uniform(np.log(6), np.log(80)), random.uniform(0.8, 2.0)
        left = 1 / (1 + np.exp(steep * (np.log(MASKS) - middle)))
    elif shape == 3:
        share = random.uniform(0.3, 0.7)
        slow, fast = random.uniform(0.2, 0.6), random.uniform(1, 2.5)
        left = share * n**-slow + (1 - share) * n**-fast
    else:
        wave = np.sin(np.log2(MASKS) * random.uniform(0.7, 1.2) + random.uniform(0, 6))
        left = n ** -random.uniform(0.3, 1.2) * (1 + 0.15 * wave)
    return np.asarray(top - gain * left / left[0])


def deviations(repeats: int, random: np.random.Generator) -> Values:
    """[R,J]: 2 to 7 points at the smallest budget, falling to what does not fall."""
    falling = random.uniform(0.02, 0.07) * (MASKS / MASKS[0]) ** (-random.uniform(0.2, 1.4) / 2)
    size = np.hypot(falling, random.uniform(0.002, 0.008))
    nested = random.uniform(0.2, 1)
    alike = np.sqrt(np.minimum(MASKS[:, None] / MASKS, MASKS / MASKS[:, None]))
    together = nested * alike + (1 - nested) * np.eye(len(MASKS))
    drawn = random.standard_normal((repeats, len(MASKS))) @ np.linalg.cholesky(together).T
    return np.asarray(drawn * size)


def forecasts(masks: Values, scores: Values, found: Values, known: int) -> list[dict[str, Any]]:
    """What `known` budgets tell of the larger ones, and of one between them that was left out."""
    curve = curve_of(masks[:known], scores[:, :known])
    rows = [
        {"times": float(masks[j] / masks[known - 1]), **asked(curve, masks[j], float(found[j]))}
        for j in range(known, len(masks))
        if masks[j] <= FURTHEST * masks[known - 1]
    ]
    inner = known // 2
    others = [j for j in range(known + 1) if j != inner]
    curve = curve_of(masks[others], scores[:, others])
    return [*rows, {"times": INNER, **asked(curve, masks[inner], float(found[inner]))}]


def asked(curve: Curve | str, masks: float, iou: float) -> dict[str, Any]:
    """The forecast at a number of masks whose IoU is known, and the masks for that IoU."""
    if isinstance(curve, str):
        return {"error_points": None, "inside": None, "refused": True, "masks_ratio": None}
    low, middle, high = (float(end[0]) for end in curve.band(np.array([masks])))
    needed = masks_for(curve, iou)
    least, most = needed.low, needed.high
    number = needed.masks
    if needed.at_most is not None:
        least, most, number = 1, needed.at_most, needed.at_most
    return {
        "error_points": 100 * (middle - iou),
        "width_points": 100 * (high - low),
        "inside": low <= iou <= high,
        "refused": number is None,
        "masks_ratio": None if number is None else number / masks,
        "masks_error": None if number is None else number - masks,
        "masks_inside": None if least is None or most is None else least <= masks <= most,
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By repeats and how far out: errors, how often the band holds the truth, refusals."""
    out = []
    for curves in ("real", "simulated"):
        for repeats in REPEATS:
            own = [r for r in rows if r["curves"] == curves and r["repeats"] == repeats]
            for place, (low, high) in {"1 to 2.5 times": (1, 2.5), "2.5 to 4": (2.5, 4.01)}.items():
                beyond = [r for r in own if r["times"] != INNER and low < r["times"] <= high]
                out.append({"curves": curves, "repeats": repeats, "where": place, **of(beyond)})
            inner = [r for r in own if r["times"] == INNER]
            out.append({"curves": curves, "repeats": repeats, "where": INNER, **of(inner)})
    return out


def of(own: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors, coverage and refusals of some forecasts."""
    errors = [abs(r["error_points"]) for r in own if r["error_points"] is not None]
    answers = [r for r in own if r["masks_ratio"] is not None]
    off = [max(r["masks_ratio"], 1 / r["masks_ratio"]) for r in answers]
    return {
        "forecasts": len(own),
        "median_error_points": round(float(np.median(errors)), 2),
        "worst_error_points": round(max(errors), 2),
        "band_holds": round(float(np.mean([r["inside"] for r in own])), 3),
        "median_width_points": round(float(np.median([r["width_points"] for r in own])), 2),
        "refused": round(1 - len(answers) / len(own), 3),
        "masks_off_by": round(float(np.median(off)), 2) if off else None,
        "masks_error": round(float(np.median([abs(r["masks_error"]) for r in answers])), 1)
        if off
        else None,
        "masks_inside": round(float(np.mean([r["masks_inside"] for r in answers])), 3)
        if off
        else None,
    }


def draw(pool: Path, path: Path) -> None:
    """Every arm's curve from its smaller half of the budgets, over the runs that came after."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = read_study(pool).arms
    figure = Figure(figsize=(4.5 * len(arms), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(arms), squeeze=False)[0]
    for axis, arm in zip(axes, arms, strict=True):
        masks, scores = table_of(pool, arm)
        known = max(4, len(masks) // 2 + 1)
        grid = np.geomspace(masks[0], min(masks[-1], FURTHEST * masks[known - 1]), 80)
        low, middle, high = fit_curve(masks[:known], scores[:, :known]).band(grid)
        axis.fill_between(grid, low, high, color="#0072B2", alpha=0.18, linewidth=0)
        axis.plot(grid, middle, color="#0072B2", label=f"from up to {masks[known - 1]:g} masks")
        for row in scores:
            axis.plot(masks[:known], row[:known], "o", color="#0072B2", markersize=4, alpha=0.6)
            axis.plot(masks[known:], row[known:], "o", color="#D55E00", markersize=4, alpha=0.6)
        axis.plot([], [], "o", color="#D55E00", markersize=4, label="held out")
        axis.set_xscale("log")
        axis.set_xticks(masks, [f"{m:g}" for m in masks])
        axis.minorticks_off()
        axis.set_title(arm, fontsize=10)
        axis.set_xlabel("masks")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    axes[0].set_ylabel("IoU")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, default=Path("results/evidence/pool"))
    parser.add_argument("--out", type=Path, default=Path("results/evidence"))
    parser.add_argument("--studies", type=int, default=150, help="simulated, of each kind")
    arguments = parser.parse_args()
    found = summary(trials(arguments.pool) + simulated(arguments.studies))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "label_curves.json").write_text(json.dumps(found, indent=1) + "\n")
    names = list(found[0])
    lines = [f"| {' | '.join(n.replace('_', ' ') for n in names)} |", "| --- " * len(names) + "|"]
    lines += [f"| {' | '.join(str(row[n]) for n in names)} |" for row in found]
    (arguments.out / "label_curves.md").write_text("\n".join(lines) + "\n")
    draw(arguments.pool, arguments.out / "label_curves.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
