"""Do the verdicts keep their promises? Simulated and resampled studies with a known truth.

    fewmask study benchmarks/evidence_pool.toml --weights FILE --out results/evidence/pool
    python benchmarks/evidence.py --pool results/evidence/pool --out results/evidence

The pool holds 24 real runs of two starting points, each tested on the same real images. From it:

- *simulated studies*: a run's table of pixel counts is the arm's mean table plus a normal
  combination of the real runs' own deviations, so simulated runs vary, and go together over the
  images, as real ones do; test images are drawn with replacement. `scratch` against `imagenet` has
  a known difference, which the intervals must cover; the combination is the same for both, so a
  repeat's two runs go together as the real ones of a repeat do. `imagenet` against `imagenet` has
  no difference, so every helped or hurt is false; its two runs of a repeat correlate as those of
  the two real arms do. In `arms not paired` they don't: the worst case.
- *resampled studies*: real runs of one arm, split at random into two arms; all 139 images. These
  are not paired.

Writes calibration.json, calibration.md, calibration.png (coverage and width) and power.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from fewmask.evidence.counts import ScoredRun, read_counts
from fewmask.evidence.crossed import Estimate, Values, estimate, influences
from fewmask.evidence.looking import nominal
from fewmask.evidence.verdicts import Rules, holm, judge
from fewmask.reporting.folder import read_study

REPEATS = (2, 3, 5, 10)
MOST = 10
RULES = Rules()
CALLED = ("helped", "hurt")
BOOTSTRAP = 1000
AT_ONCE = 250
FAMILY = 4


@dataclass(frozen=True)
class Arm:
    """Real runs of an arm: pixel counts [runs, images, classes] of intersections and unions."""

    inside: Values
    union: Values

    def drawn(self, random: np.random.Generator, shape: tuple[int, int]) -> tuple[Values, Values]:
        """Simulated runs [studies, runs, images, classes] of the same mean and covariance."""
        return self.combined(random.standard_normal((*shape, len(self.inside))))

    def combined(self, w: Values) -> tuple[Values, Values]:
        """The runs that standard normal numbers [studies, runs, real runs] stand for."""
        found = []
        for real in (self.inside, self.union):
            mean = real.mean(axis=0)
            own = (real - mean) / np.sqrt(len(real) - 1)
            found.append(mean + np.einsum("srk,kic->sric", w, own, optimize=True))
        return found[0], found[1]

    def expected(self, random: np.random.Generator) -> float:
        """The mean IoU over all images of very many runs."""
        inside, union = self.drawn(random, (200, 100))
        return float((inside.sum(2) / union.sum(2)).mean())


@dataclass(frozen=True)
class Simulated:
    """Studies of two arms: each arm's counts, and the values' differences [studies, runs, n]."""

    first: tuple[Values, Values]
    second: tuple[Values, Values]

    @property
    def differences(self) -> Values:
        found: Values = influences(*self.first) - influences(*self.second)
        return found


def simulate(
    random: np.random.Generator, arms: list[Arm], studies: int, runs: int, together: float
) -> list[tuple[Values, Values]]:
    """Studies of arms, each with its counts, on images drawn with replacement, for all runs alike.

    `together`: the correlation of two arms' numbers in one repeat. Real arms have their runs in one
    order, so at 1 they go together as the real ones do.
    """
    k, n = arms[0].inside.shape[:2]
    images = random.integers(0, n, (studies, 1, n, 1))
    common = random.standard_normal((studies, runs, k))
    found = []
    for arm in arms:
        own = random.standard_normal((studies, runs, k))
        counts = arm.combined(np.sqrt(together) * common + np.sqrt(1 - together) * own)
        inside, union = (np.take_along_axis(one, images, axis=2) for one in counts)
        found.append((inside, union))
    return found


def correlation(a: Arm, b: Arm) -> float:
    """Of two arms' IoU over the repeats that they share."""
    of_run = [influences(arm.inside, arm.union).mean(axis=-1) for arm in (a, b)]
    return float(np.corrcoef(*of_run)[0, 1])


# --- methods: a study's values -> (mean, half width) ----------------------------------------------

Interval = tuple[Values, Values, Values]
"""(mean, low, high), a study each."""


def ours(found: Simulated, level: float = RULES.level) -> Interval:
    one = estimate(found.differences)
    half = one.half_width(level)
    return one.mean, one.mean - half, one.mean + half


def runs_alone(found: Simulated) -> Interval:
    """Student's interval over runs, the images taken as given."""
    of_run = found.differences.mean(axis=-1)
    r = of_run.shape[-1]
    mean = of_run.mean(axis=-1)
    half = stats.t.ppf(0.975, r - 1) * of_run.std(axis=-1, ddof=1) / np.sqrt(r)
    return mean, mean - half, mean + half


def pooled_freedom(found: Simulated) -> Interval:
    """The same variances as ours, with one number of degrees of freedom (Satterthwaite)."""
    one = estimate(found.differences)
    variance = one.over_runs + one.over_images
    freedom = variance**2 / (
        one.over_runs**2 / (one.runs - 1) + one.over_images**2 / (one.images - 1)
    )
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    return one.mean, one.mean - half, one.mean + half


def percentile_bootstrap(found: Simulated) -> Interval:
    """The hierarchical paired bootstrap: runs and images drawn again, both arms alike."""
    random = np.random.default_rng(0)
    means, lows, highs = [], [], []
    for study in range(len(found.first[0])):
        tables = [counts[study, :, :, 0] for counts in (*found.first, *found.second)]
        runs, n = tables[0].shape
        of_images = random.multinomial(n, np.full(n, 1 / n), BOOTSTRAP).astype(float)
        of_runs = random.multinomial(runs, np.full(runs, 1 / runs), BOOTSTRAP) / runs
        sums = [of_images @ table.T for table in tables]
        drawn = ((sums[0] / sums[1] - sums[2] / sums[3]) * of_runs).sum(axis=1)
        whole = [table.sum(axis=1) for table in tables]
        means.append(float((whole[0] / whole[1] - whole[2] / whole[3]).mean()))
        low, high = np.quantile(drawn, [0.025, 0.975])
        lows.append(low)
        highs.append(high)
    return np.array(means), np.array(lows), np.array(highs)


METHODS: dict[str, Callable[[Simulated], Interval]] = {
    "fewmask": ours,
    "t over runs alone": runs_alone,
    "pooled degrees of freedom": pooled_freedom,
    "percentile bootstrap": percentile_bootstrap,
}


# --- what is counted ------------------------------------------------------------------------------


def wilson(k: int, n: int) -> list[float]:
    """The 95 % interval of a share."""
    found = stats.binomtest(k, n).proportion_ci(method="wilson")
    return [round(float(found.low), 4), round(float(found.high), 4)]


def record(
    method: str, repeats: int, covered: Values, widths: Values, false: Values, **more: Any
) -> dict[str, Any]:
    return {
        "repeats": repeats,
        "method": method,
        "coverage": round(float(covered.mean()), 4),
        "coverage_interval": wilson(int(covered.sum()), covered.size),
        "width": round(float(np.median(widths)), 5),
        "false_verdicts": round(float(false.mean()), 4),
        "false_verdicts_interval": wilson(int(false.sum()), false.size),
        "studies": int(false.size),
        **more,
    }


def called(low: Values, high: Values) -> Values:
    """Whether a study is called helped or hurt: zero left out, and not all within the margin."""
    outside = (low > 0) | (high < 0)
    equivalent = (low > -RULES.margin) & (high < RULES.margin)
    return np.asarray(outside & ~equivalent, float)


def fixed(
    random: np.random.Generator, a: Arm, b: Arm, studies: int, together: tuple[float, float],
    methods: dict[str, Callable[[Simulated], Interval]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Methods at every number of repeats; `together` of b against a, and of b against b."""
    truth = b.expected(random) - a.expected(random)
    found: dict[tuple[str, int], list[list[Values]]] = {}
    for repeats in REPEATS:
        for _ in range(0, studies, AT_ONCE):
            effect = Simulated(*simulate(random, [b, a], AT_ONCE, repeats, together[0]))
            nothing = Simulated(*simulate(random, [b, b], AT_ONCE, repeats, together[1]))
            for name, method in methods.items():
                _, low, high = method(effect)
                _, none_low, none_high = method(nothing)
                parts = found.setdefault((name, repeats), [[], [], []])
                parts[0].append(np.asarray((low <= truth) & (truth <= high), float))
                parts[1].append(high - low)
                parts[2].append(called(none_low, none_high))
        print(f"{repeats} repeats: done", flush=True)
    return [
        record(name, repeats, *(np.concatenate(p) for p in parts))
        for (name, repeats), parts in found.items()
    ]


def until_decided(
    random: np.random.Generator, a: Arm, b: Arm, studies: int, alike: float, late: bool = False
) -> list[dict[str, Any]]:
    """Repeats added one by one, up to MOST or twice that: interval and verdict of the last look.

    `late`: what nothing can mend, a plain study first, and --until-decided where it cannot tell.
    """
    truth = b.expected(random) - a.expected(random)
    rows = []
    for first in REPEATS:
        most = MOST if first < MOST else 2 * MOST
        level = nominal(RULES.level, first, most)
        parts: list[list[Values]] = [[], [], [], []]
        for _ in range(0, studies, AT_ONCE):
            for kind, (other, together, true) in enumerate(((a, 1.0, truth), (b, alike, 0.0))):
                arms = simulate(random, [b, other], AT_ONCE, most, together)
                y = Simulated(*arms).differences
                low, high, looks = last_look(y, first, level, RULES.level if late else None)
                if kind == 0:
                    parts[0].append(np.asarray((low <= true) & (true <= high), float))
                    parts[1].append(high - low)
                else:
                    parts[2].append(called(low, high))
                    parts[3].append(looks)
        joined = [np.concatenate(p) for p in parts]
        rows.append(
            record("a plain study, then --until-decided" if late else "fewmask --until-decided",
                   first, *joined[:3], most=most,
                   mean_repeats=round(float(joined[3].mean()), 2))
        )  # fmt: skip
    return rows


def last_look(
    y: Values, first: int, level: float, first_level: float | None = None
) -> tuple[Values, Values, Values]:
    """Intervals where each study stops: decided, or after all its repeats.

    `first_level`: of the first look, where that was taken before looking was thought of.
    """
    studies = len(y)
    low, high = np.zeros(studies), np.zeros(studies)
    looks = np.zeros(studies)
    going = np.ones(studies, bool)
    for runs in range(first, y.shape[1] + 1):
        one = estimate(y[going, :runs])
        half = one.half_width(first_level if first_level and runs == first else level)
        rows = np.flatnonzero(going)
        low[rows], high[rows], looks[rows] = one.mean - half, one.mean + half, runs
        decided = (low[rows] > 0) | (high[rows] < 0)
        decided |= (low[rows] > -RULES.margin) & (high[rows] < RULES.margin)
        going[rows[decided]] = False
    return low, high, looks


def families(
    random: np.random.Generator, b: Arm, studies: int, alike: float
) -> list[dict[str, Any]]:
    """Four arms that are all the baseline, with Holm: how often is any of them called?

    Coverage is that of each arm's own interval.
    """
    rows = []
    for repeats in REPEATS:
        covered, false, widths = [], [], []
        for _ in range(0, studies, AT_ONCE):
            arms = simulate(random, [b] * (FAMILY + 1), AT_ONCE, repeats, alike)
            values = [influences(*one) for one in arms]
            found = [estimate(one - values[0]) for one in values[1:]]
            covered += [np.asarray(np.abs(one.mean) <= one.half_width(), float) for one in found]
            widths += [2 * one.half_width() for one in found]
            false.append(any_called(found))
        rows.append(
            record(f"fewmask, {FAMILY} arms (any)", repeats,
                   np.concatenate(covered), np.concatenate(widths), np.concatenate(false))
        )  # fmt: skip
    return rows


def any_called(found: list[Estimate]) -> Values:
    p = np.stack([one.p_value() for one in found])
    alike = np.stack([np.maximum(one.p_value(-RULES.margin), one.p_value(RULES.margin))
                      for one in found])  # fmt: skip
    inside = np.stack([np.abs(one.mean) < RULES.margin for one in found])
    alike = np.where(inside, alike, 1.0)
    any_one = []
    for differ, same in zip(p.T, alike.T, strict=True):
        pairs = zip(holm(differ.tolist()), holm(same.tolist()), strict=True)
        any_one.append(any(d <= 0.05 and s > 0.05 for d, s in pairs))
    return np.array(any_one, float)


CHECKED = 25
"""Studies for each number of repeats in which the shortcuts are held against judge()."""


def check_shortcuts(random: np.random.Generator, b: Arm, alike: float) -> int:
    """Thousands of studies at once need array forms of the verdicts; these are those of judge().

    Interval and word, planned looks, and families with Holm, on small true differences of either
    sign; returns how many verdicts were compared. Raises AssertionError.
    """
    compared = 0
    for repeats in REPEATS:
        arms = simulate(random, [b] * (FAMILY + 1), CHECKED, repeats, alike)
        values = [influences(*one) for one in arms]
        for j, gain in enumerate((-0.08, 0.0, 0.003, 0.05), start=1):
            values[j] = values[j] + gain
        found = [estimate(one - values[0]) for one in values[1:]]
        whole = any_called(found)
        for study in range(CHECKED):
            runs = [_scored(one[study]) for one in values]
            family = judge(dict(zip("abcd", runs[1:], strict=True)), runs[0], 1, RULES)
            assert any(v.word in CALLED for v in family) == bool(whole[study])
            for arm, one in zip(runs[1:], found, strict=True):
                (alone,) = judge({"x": arm}, runs[0], 1, RULES)
                low, high = (one.mean + sign * one.half_width() for sign in (-1, 1))
                assert np.allclose(alone.interval or (), (low[study], high[study]), atol=1e-9)
                assert (alone.word in CALLED) == bool(called(low, high)[study])
                compared += 1
        compared += _check_looks(values[1:], values[0], repeats)
    return compared


def _check_looks(arms: list[Values], baseline: Values, most: int) -> int:
    rules = Rules(first=2, most=most, planned=True)
    for values in arms if most > 2 else []:
        level = nominal(rules.level, rules.first, most)
        low, high, looks = last_look(values - baseline, rules.first, level)
        words = called(low, high)
        for study in range(CHECKED):
            for runs in range(rules.first, most + 1):
                pair = (_scored(one[study, :runs]) for one in (values, baseline))
                (verdict,) = judge({"x": next(pair)}, next(pair), 1, rules)
                if verdict.word != "cannot tell":
                    break
            assert runs == looks[study]
            assert (verdict.word in CALLED) == bool(words[study])
    return CHECKED * len(arms) if most > 2 else 0


def _scored(values: Values) -> dict[int, ScoredRun]:
    """Runs [R,n] as judge() takes them."""
    names = tuple(map(str, range(values.shape[-1])))
    return {r: ScoredRun(float(one.mean()), names, one) for r, one in enumerate(values)}


def resampled(
    random: np.random.Generator, name: str, arm: Arm, studies: int
) -> list[dict[str, Any]]:
    """Real runs of one arm split into two: no simulation, but studies share runs and images."""
    values = influences(arm.inside, arm.union)
    rows = []
    for repeats in REPEATS:
        if 2 * repeats > len(values):
            continue
        chosen = np.stack([random.permutation(len(values))[: 2 * repeats] for _ in range(studies)])
        y = values[chosen[:, :repeats]] - values[chosen[:, repeats:]]
        one = estimate(y)
        half = one.half_width()
        low, high = one.mean - half, one.mean + half
        covered = np.asarray((low <= 0) & (high >= 0), float)
        rows.append(
            record(f"fewmask, real runs of {name} resampled", repeats, covered, high - low,
                   called(low, high), runs=len(values))
        )  # fmt: skip
    return rows


def power(random: np.random.Generator, b: Arm, studies: int, alike: float) -> dict[str, Any]:
    """How often a true gain is called helped, by its size and the number of repeats."""
    gains = [0.0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12]
    found: dict[str, Any] = {"gains": gains, "studies": studies}
    for repeats in REPEATS:
        y = Simulated(*simulate(random, [b, b], studies, repeats, alike)).differences
        rows = []
        for gain in gains:
            one = estimate(y + gain)
            half = one.half_width()
            rows.append(float((called(one.mean - half, one.mean + half) * (one.mean > 0)).mean()))
        found[str(repeats)] = rows
    return found


# --- files ----------------------------------------------------------------------------------------


def read_arm(pool: Path, name: str, budget: int) -> Arm:
    study = read_study(pool)
    tables = [
        read_counts(folder / "per_image.csv")
        for (arm, b, _), folder in sorted(study.cells.items(), key=lambda item: item[0][2])
        if arm == name and b == budget
    ]
    counts = [(inside, union) for _, inside, union in filter(None, tables)]
    return Arm(np.stack([inside for inside, _ in counts]), np.stack([union for _, union in counts]))


def components(arm: Arm) -> dict[str, float]:
    """Standard deviations of a single run's IoU by run and by image, in IoU points."""
    values = influences(arm.inside, arm.union)
    one = estimate(values)
    return {
        "runs": len(values),
        "iou": round(float(one.mean), 4),
        "run_sd_points": round(100 * float(np.sqrt(one.over_runs * one.runs)), 3),
        "images_sd_points": round(100 * float(np.sqrt(one.over_images)), 3),
    }


def draw(rows: list[dict[str, Any]], curve: dict[str, Any], out: Path) -> None:
    """Coverage, false verdicts and width by repeats, a line a method; and the power."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"]
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    names = list(dict.fromkeys(row["method"] for row in rows))
    panels = (
        ("coverage", "covers the truth", 0.95),
        ("false_verdicts", "A against A: called", 0.05),
        ("width", "median width, IoU points", None),
    )
    for axis, (key, title, line) in zip(axes, panels, strict=True):
        for name, colour in zip(names, colours, strict=False):
            own = [row for row in rows if row["method"] == name]
            scale = 100
            axis.plot([row["repeats"] for row in own], [scale * row[key] for row in own],
                      marker="o", markersize=4, color=colour, label=name)  # fmt: skip
        if line is not None:
            axis.axhline(100 * line, color="#555555", linestyle="--", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xticks(REPEATS, [str(r) for r in REPEATS])
        axis.minorticks_off()
        axis.set_xlabel("repeats (--until-decided: at the first look)", fontsize=9)
        axis.set_title(title + ("" if line is None else ", %"), fontsize=10)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[2].set_yscale("log")
    axes[2].set_yticks([5, 10, 20, 40, 80], ["5", "10", "20", "40", "80"])
    axes[2].minorticks_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  fontsize=8, frameon=False)  # fmt: skip
    figure.savefig(out / "calibration.png", dpi=110)

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for repeats, colour in zip(REPEATS, colours, strict=False):
        axis.plot([100 * g for g in curve["gains"]], [100 * p for p in curve[str(repeats)]],
                  marker="o", markersize=4, color=colour, label=f"{repeats} repeats")  # fmt: skip
    axis.set_xlabel("true gain, IoU points")
    axis.set_ylabel("called helped, % of studies")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(out / "power.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, default=Path("results/evidence/pool"))
    parser.add_argument("--out", type=Path, default=Path("results/evidence"))
    parser.add_argument("--budget", type=int, default=16)
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    a, b = (read_arm(arguments.pool, name, arguments.budget) for name in ("scratch", "imagenet"))
    alike = correlation(a, b)
    print(f"{check_shortcuts(np.random.default_rng(1), b, alike)} verdicts are those of judge()")
    studies = arguments.studies
    rows = fixed(random, a, b, studies, (1.0, alike), METHODS)
    rows += fixed(random, a, b, studies, (0.0, 0.0), {"fewmask, arms not paired": ours})
    rows += until_decided(random, a, b, studies, alike)
    rows += until_decided(random, a, b, studies, alike, late=True)
    rows += families(random, b, studies, alike)
    for name, arm in {"imagenet": b, "scratch": a}.items():
        rows += resampled(random, name, arm, studies)
    curve = power(random, b, 2000, alike)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "calibration.json").write_text(json.dumps(rows, indent=1) + "\n")
    more = {"scratch": components(a), "imagenet": components(b),
            "correlation": round(alike, 3), "power": curve}  # fmt: skip
    (arguments.out / "power.json").write_text(json.dumps(more, indent=1) + "\n")
    lines = ["| method | repeats | covers | width (points) | A against A called | studies |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for r in rows:
        cover, false = r["coverage_interval"], r["false_verdicts_interval"]
        lines.append(
            f"| {r['method']} | {r['repeats']} | {100 * r['coverage']:.1f} % "
            f"({100 * cover[0]:.1f} to {100 * cover[1]:.1f}) | {100 * r['width']:.1f} "
            f"| {100 * r['false_verdicts']:.1f} % ({100 * false[0]:.1f} to {100 * false[1]:.1f}) "
            f"| {r['studies']} |"
        )
    (arguments.out / "calibration.md").write_text("\n".join(lines) + "\n")
    draw(rows, curve, arguments.out)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
