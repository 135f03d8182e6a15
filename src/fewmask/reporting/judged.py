"""The verdicts on a study folder's arms."""

from __future__ import annotations

from fewmask.evidence.counts import ScoredRun, read_scored
from fewmask.evidence.rows import parse_budget
from fewmask.evidence.verdicts import MARGIN, Rules, Verdict, judge
from fewmask.reporting.folder import Budget, StudyFolder


def verdicts(study: StudyFolder, baseline: str | None = None) -> list[Verdict]:
    """Every arm against the baseline (the plan's, or another arm), by arm and budget."""
    against = baseline or study.baseline
    found = []
    for budget in study.budgets:
        arms = {arm: _runs(study, arm, budget) for arm in study.arms if arm != against}
        found += judge(arms, _runs(study, against, budget), budget, rules(study, budget))
    place = {arm: number for number, arm in enumerate(study.arms)}
    return sorted(found, key=lambda v: (place[v.arm], study.masks(v.budget)))


def rules(study: StudyFolder, budget: Budget | None = None) -> Rules:
    """The plan's margin, and between which numbers of repeats it looked (at a budget)."""
    looks = study.plan.get("until_decided") or {}
    first = {parse_budget(b): int(n) for b, n in looks.get("first", {}).items()}
    fewest = min(first.values(), default=0)
    return Rules(
        margin=float(study.plan.get("margin", MARGIN)),
        first=fewest if budget is None else first.get(budget, fewest),
        most=int(looks.get("most", 0)),
    )


def _runs(study: StudyFolder, arm: str, budget: Budget) -> dict[int, ScoredRun]:
    return {
        repeat: read_scored(score, study.cells.get((arm, budget, repeat)))
        for repeat, score in study.runs(arm, budget).items()
    }
