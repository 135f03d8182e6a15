"""Did it help? Every arm against the baseline, at every budget, in one word and its reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fewmask.evidence.counts import ScoredRun
from fewmask.evidence.crossed import LEVEL, Estimate, Values, estimate, of_scores
from fewmask.evidence.looking import adjusted, adjusted_ahead, nominal

Word = Literal["helped", "hurt", "equivalent", "cannot tell"]
MARGIN = 0.01
"""IoU, as a fraction of 1, below which a difference is taken for none: one IoU point."""
FORESEEN = 100
"""Repeats up to which it is worth saying how many it would take."""


@dataclass(frozen=True)
class Rules:
    """How verdicts are reached; fixed before the results are seen.

    `margin` is the difference in IoU (a fraction of 1) within which two arms are called equivalent.
    `most` says that repeats were added after a look at the verdicts, up to that many, `first` how
    many there were at the first look. `planned`: the limit was fixed before that look and repeats
    were added until decided; else somebody added them by hand.
    """

    margin: float = MARGIN
    level: float = LEVEL
    first: int = 0
    most: int = 0
    planned: bool = False

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
    no counts and it covers the runs alone. `more` is about how many further repeats of every arm
    would decide: 0 where it is decided, None where no number up to 100 (or up to the limit of
    looking) would; `images_short` where no number at all would, for the test images are too few.
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
    images_short: bool = False

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
    differ, alike = (values[:, 0] for values in _corrected(compared, np.zeros(1), rules))
    ahead = np.append(np.arange(1.0, FORESEEN + 1), np.inf)
    later = np.minimum(*_corrected(compared, ahead, rules)) <= 1 - rules.level
    return [
        _verdict(one, budget, (float(p), float(q)), decided, rules)
        for one, p, q, decided in zip(compared, differ, alike, later, strict=True)
    ]


def _corrected(compared: Sequence[_Compared], more: Values, rules: Rules) -> tuple[Values, Values]:
    """p-values of no difference and of one of the margin or more, [arms, len(more)], corrected.

    `more`: with that many further runs of every arm, if they vary as those that there are and the
    means stay.
    """
    differ, alike = np.ones((2, len(compared), len(more)))
    for i, one in enumerate(compared):
        runs = one.found.runs + more
        differ[i] = _looked(one.found.p_value(0.0, runs), one.found.runs, rules)
        if abs(float(one.found.mean)) < rules.margin:
            ends = [one.found.p_value(null, runs) for null in (-rules.margin, rules.margin)]
            alike[i] = _looked(np.maximum(*ends), one.found.runs, rules)
    for table in (differ, alike):
        for j in range(len(more)):
            table[:, j] = holm(table[:, j].tolist())
    return differ, alike


def _looked(p_values: Values, runs: int, rules: Rules) -> Values:
    """p-values now, or after 1, 2, ... and any number of further runs, corrected for looking.

    Whoever adds repeats to what has been judged looks again each time, planned or not; a number of
    repeats without end needs none of this.
    """
    known = np.nan_to_num(p_values, nan=1.0)
    if len(known) == 1 or rules.planned:
        if not rules.sequential:
            return known
        return np.array([adjusted(p, rules.first, rules.most) for p in known.tolist()])
    first = rules.first if rules.sequential else max(runs, 2)
    return np.append(adjusted_ahead(known[:-1], first, runs), known[-1])


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


def _verdict(
    one: _Compared,
    budget: int | float,
    p_values: tuple[float, float],
    decided: NDArray[np.bool_],
    rules: Rules,
) -> Verdict:
    """`p_values` as in Verdict; `decided` by 1, 2, ... FORESEEN more runs, and by any number."""
    (p, q), mean, alpha = p_values, float(one.found.mean), 1 - rules.level
    level = nominal(rules.level, rules.first, rules.most) if rules.sequential else rules.level
    half = float(one.found.half_width(level))
    word: Word = "cannot tell"
    if q <= alpha:
        word = "equivalent"
    elif p <= alpha:
        word = "helped" if mean > 0 else "hurt"
    unsure = word == "cannot tell"
    most = min(FORESEEN, rules.most - one.found.runs) if rules.planned else FORESEEN
    enough = np.flatnonzero(decided[: max(most, 0)])
    more: int | None = int(enough[0]) + 1 if len(enough) else None
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
        more=more if unsure else 0,
        images_short=unsure and one.found.images > 0 and not decided[-1],
    )
