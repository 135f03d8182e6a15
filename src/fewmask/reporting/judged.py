"""The verdicts on a study folder's arms."""

from __future__ import annotations

from fewmask.evidence.counts import ScoredRun, read_scored
from fewmask.evidence.rows import parse_budget
from fewmask.evidence.verdicts import MARGIN, Rules, Verdict, judge
from fewmask.files import csv_text, reading, write_text_atomic
from fewmask.reporting.folder import StudyFolder
from fewmask.reporting.read import CELL_MEND, Budget

COLUMNS = (
    "arm", "baseline", "budget", "repeats", "iou", "baseline_iou", "difference", "low", "high",
    "verdict", "p", "p_equivalent", "more_repeats", "test_images",
)  # fmt: skip


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
    margin = float(study.plan.get("margin", MARGIN))
    looks = study.plan.get("until_decided") or {}
    if not looks:
        looked = study.plan.get("looked") or {}
        seen = [n for b, ns in looked.items() if parse_budget(b) == budget for n in ns]
        if budget is None or not seen:
            return Rules(margin)
        there = max((len(study.runs(arm, budget)) for arm in study.arms), default=0)
        return Rules(margin, first=min(seen), most=max(*seen, there))
    first = {parse_budget(b): int(n) for b, n in looks.get("first", {}).items()}
    fewest = min(first.values(), default=0)
    return Rules(
        margin=margin,
        first=fewest if budget is None else first.get(budget, fewest),
        most=int(looks.get("most", 0)),
        planned=True,
    )


def write_verdicts(study: StudyFolder, judged: list[Verdict]) -> None:
    """verdicts.csv: every arm against the baseline at every budget; IoU as a fraction of 1."""
    rows = []
    for v in judged:
        low, high = v.interval or (None, None)
        mean, against = (sum(scores) / len(v.pairs) for scores in zip(*v.pairs, strict=True))
        values = (v.arm, study.baseline, v.budget, len(v.repeats), mean, against, v.mean, low, high,
                  v.word, v.p, v.p_equivalent, v.more, v.images)  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    write_text_atomic(study.path / "verdicts.csv", csv_text(rows, COLUMNS))


def _runs(study: StudyFolder, arm: str, budget: Budget) -> dict[int, ScoredRun]:
    """Raises UserError where a cell's per_image.csv is damaged."""
    found = {}
    for repeat, score in study.runs(arm, budget).items():
        place = (arm, budget, repeat)
        cell = None if place in study.changed else study.cells.get(place)
        if cell is None:
            found[repeat] = ScoredRun(score)
            continue
        with reading(cell / "per_image.csv", CELL_MEND):
            found[repeat] = read_scored(score, cell)
    return found
