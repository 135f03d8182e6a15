"""Did it help? Every arm against the baseline, at every budget, in one word and its reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fewmask.evidence.counts import ScoredRun
from fewmask.evidence.crossed import LEVEL, Estimate, Values, estimate, of_scores
from fewmask.evidence.looking import adjusted, nominal

Word = Literal["helped", "hurt", "equivalent", "cannot tell"]
MARGIN = 0.01
"""IoU, as a fraction of 1, below which a difference is taken for none: one IoU point."""
FORESEEN = 100
"""Repeats up to which it is worth saying how many it would take."""


@dataclass(frozen=True)
class Rules:
    """How verdicts are reached; fixed before the results are seen.

    `margin` is the difference in IoU (a fraction of 1) within which two arms are called equivalent.
    `most` says that repeats were added one by one until decided, up to that many, `first` how many
    there were at the first look.
    """

    margin: float = MARGIN
    level: float = LEVEL
    first: int = 0
    most: int = 0

    @property
    def sequential(self) -> bool:
        return self.most > self.first > 0


@dataclass(frozen=True)
class Verdict:
    """An arm minus the baseline at a budget. Scores and differences are fractions of 1.

    `pairs` holds (arm's IoU, baseline's IoU) of each of `repeats`. `interval` is that of the mean
    difference at the rules' level, None for a single repeat. `p` is the p-value of no difference
    and `p_equivalent` that of a difference of the margin or more, both corrected for the number of
    arms at the budget (Holm) and for looking early.

    `images` is how many test images the interval covers the choice of; 0 says that the cells hold
    no counts and it covers the runs alone. `more` is about how many further repeats would decide:
    0 where it is decided, None where no number up to 100 would.
    """

    arm: str
    budget: int | float
    repeats: tuple[int, ...]
    pairs: tuple[tuple[float, float], ...]
    mean: float
    interval: tuple[float, float] | None
    p: float
    p_equivalent: float
    word: Word
    images: int
    more: int | None

    @property
    def differences(self) -> tuple[float, ...]:
        return tuple(first - second for first, second in self.pairs)


@dataclass(frozen=True)
class _Compared:
    arm: str
    repeats: tuple[int, ...]
    pairs: tuple[tuple[float, float], ...]
    found: Estimate


def judge(
    arms: Mapping[str, Mapping[int, ScoredRun]],
    baseline: Mapping[int, ScoredRun],
    budget: int | float,
    rules: Rules,
) -> list[Verdict]:
    """The verdicts on all arms at one budget; {repeat: tested run} of each. No pair, no verdict.

    An arm is called equivalent where its interval lies within the margin on both sides, also if it
    leaves out zero; helped or hurt where its interval leaves out zero; both after correction.
    Holm's step-down (1979, Scand. J. Stat. 6:65) is over the arms of the budget, for differences
    and for equivalence apart.
    """
    compared = [c for name, runs in arms.items() if (c := _compare(name, runs, baseline))]
    differ, alike = [], []
    for one in compared:
        p = [float(one.found.p_value(null)) for null in (0.0, -rules.margin, rules.margin)]
        inside = abs(float(one.found.mean)) < rules.margin
        differ.append(_looked(p[0], rules))
        alike.append(_looked(max(p[1:]), rules) if inside else 1.0)
    differ, alike = holm(differ), holm(alike)
    return [
        _verdict(one, budget, p, q, rules)
        for one, p, q in zip(compared, differ, alike, strict=True)
    ]


def _looked(p: float, rules: Rules) -> float:
    if math.isnan(p):
        return 1.0
    return adjusted(p, rules.first, rules.most) if rules.sequential else p


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    found, largest = [1.0] * len(p_values), 0.0
    for k, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - k) * p_values[i]))
        found[i] = largest
    return found


def _compare(
    name: str, runs: Mapping[int, ScoredRun], baseline: Mapping[int, ScoredRun]
) -> _Compared | None:
    repeats = tuple(sorted(r for r in runs if r in baseline))
    if not repeats:
        return None
    pairs = tuple((runs[r].score, baseline[r].score) for r in repeats)
    values = _differences([(runs[r], baseline[r]) for r in repeats])
    if values is not None:
        return _Compared(name, repeats, pairs, estimate(values))
    scores = np.array([first - second for first, second in pairs])
    return _Compared(name, repeats, pairs, of_scores(scores))


def _differences(pairs: Sequence[tuple[ScoredRun, ScoredRun]]) -> Values | None:
    """[R,n] where all runs were tested on the same images and hold their counts."""
    names = pairs[0][0].names
    rows = []
    for first, second in pairs:
        if first.values is None or second.values is None:
            return None
        if first.names != names or second.names != names:
            return None
        rows.append(first.values - second.values)
    return np.stack(rows) if len(names) > 1 else None


def _verdict(one: _Compared, budget: int | float, p: float, q: float, rules: Rules) -> Verdict:
    mean, alpha = float(one.found.mean), 1 - rules.level
    level = nominal(rules.level, rules.first, rules.most) if rules.sequential else rules.level
    half = float(one.found.half_width(level))
    word: Word = "cannot tell"
    if q <= alpha:
        word = "equivalent"
    elif p <= alpha:
        word = "helped" if mean > 0 else "hurt"
    return Verdict(
        arm=one.arm,
        budget=budget,
        repeats=one.repeats,
        pairs=one.pairs,
        mean=mean,
        interval=None if math.isnan(half) else (mean - half, mean + half),
        p=p,
        p_equivalent=q,
        word=word,
        images=one.found.images,
        more=0 if word != "cannot tell" else repeats_missing(one.found, level, rules.margin),
    )


def repeats_missing(found: Estimate, level: float, margin: float) -> int | None:
    """About how many more runs would decide, if they vary like these and the mean stays.

    The fewest after which the interval leaves out zero or lies within the margin; None where more
    than FORESEEN would be needed, as when the test images are too few. NaN variances: None.
    """
    mean = abs(float(found.mean))
    for runs in range(found.runs + 1, FORESEEN + 1):
        half = float(found.half_width(level, runs))
        if half < mean or mean + half < margin:
            return runs - found.runs
    return None
