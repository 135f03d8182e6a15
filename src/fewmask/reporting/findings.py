"""What the verdicts of a study come to, in sentences that claim no more than they carry."""

from __future__ import annotations

from collections.abc import Mapping

from fewmask.evidence.verdicts import FORESEEN, Rules, Verdict
from fewmask.reporting.folder import StudyFolder, budget_label
from fewmask.reporting.judged import rules, verdicts
from fewmask.reporting.theme import signed

IMAGENET = "imagenet"
NAMED = 2
"""Comparisons that a sentence names before it counts the rest, where those are two or more."""
BESIDE_BASELINE = {
    "helped": "helped",
    "hurt": "hurt",
    "equivalent": "made no difference that matters",
    "cannot tell": "these runs cannot tell",
}
BESIDE_IMAGENET = BESIDE_BASELINE | {"helped": "better", "hurt": "worse"}


def findings(study: StudyFolder, against: list[Verdict] | None = None) -> list[str]:
    """The sentences, most important first: what was changed since it was written, then own
    pre-training against ImageNet where it is an arm.

    `against`: the verdicts against the plan's baseline, where they are known already.
    """
    against = verdicts(study) if against is None else against
    own = own_against_imagenet(study)
    said = list(study.doubts)
    if own:
        said.append(
            verdict_sentence(own, "Own pre-training against ImageNet weights", BESIDE_IMAGENET)
        )
    if against:
        said.append(verdict_sentence(against, f"Against the baseline, {study.baseline}"))
        said.append(trust_sentence(study, against, twice=bool(own)))
    elif study.done:
        said.append(f"No arm has a finished run that pairs with one of {study.baseline} yet.")
    return said


def own_against_imagenet(study: StudyFolder) -> list[Verdict]:
    """The arms of own pre-training held against ImageNet weights, where those are an arm."""
    if IMAGENET not in study.arms or study.baseline == IMAGENET:
        return []
    return [v for v in verdicts(study, IMAGENET) if v.arm != study.baseline]


def verdict_sentence(
    found: list[Verdict], subject: str, phrases: Mapping[str, str] = BESIDE_BASELINE
) -> str:
    """Each verdict that was reached, how often, and for whom; the largest differences first."""
    if len(found) == 1:
        return f"{subject}: {phrases[found[0].word]}, {_place(found[0])}."
    parts = []
    for word, phrase in phrases.items():
        own = [v for v in found if v.word == word]
        own.sort(key=lambda v: (v.interval is None, -abs(v.mean)))
        if own:
            many = NAMED if len(own) > NAMED + 1 else len(own)
            named = ", ".join(_place(v) for v in own[:many])
            more = f" and {len(own) - many} more" if len(own) > many else ""
            parts.append(f"{phrase} in {len(own)} of {len(found)}: {named}{more}")
    return f"{subject}: {'; '.join(parts)}."


def trust_sentence(study: StudyFolder, found: list[Verdict], *, twice: bool = False) -> str:
    """What the intervals and words cover, and what they don't; `twice`: ImageNet's, too."""
    fixed = rules(study)
    sure = [v for v in found if v.interval is not None]
    if not sure:
        return f"{too_few(max(len(v.repeats) for v in found))}: these differences may be chance."
    apart = ", in either of the two comparisons by itself" if twice else ""
    said = (
        f"The 95 % intervals of differences cover what {covered(found)} would change, each for its "
        f"own arm. Words are corrected for the number of arms at a budget{apart}. Less than "
        f"{100 * fixed.margin:g} point{'' if fixed.margin == 0.01 else 's'} of {study.iou_name} "
        "counts as no difference that matters."
    )
    alone = [v for v in found if v.interval is None]
    if alone:
        said += f" {len(alone)} of {len(found)} have a single pair, which tells nothing."
    by_hand = {} if fixed.planned else {v.budget: rules(study, v.budget) for v in found}
    added = [
        f"from {own.first} up to {own.most} at {budget_label(budget)}"
        for budget, own in by_hand.items()
        if own.sequential
    ]
    if added:
        said += (
            " Repeats were added by hand after verdicts had been written, "
            f"{', '.join(added)}. The words are corrected for that looking; but who "
            "goes on until one shows is wrong more often than 1 in 20. --until-decided fixes the "
            "limit beforehand."
        )
    elif fixed.sequential:
        there = max(len(v.repeats) for v in found)
        said += (
            f" Verdicts are looked at from {fixed.first} repeats on, after each one up to "
            f"{fixed.most}; there are {there} now"
        )
        if (study.plan.get("until_decided") or {}).get("late"):
            said += (
                ". But verdicts had been written before that limit was fixed, and who would have "
                "stopped at them is wrong more often than 1 in 20: begin a study with "
                "--until-decided for words that hold."
            )
        else:
            said += "; intervals and words hold under that looking."
    if len(study.done) < len(study.rows):
        said += (
            f" {len(study.done)} of {len(study.rows)} trainings are done, so the words are "
            "provisional: who stops at them because of what they say is wrong more often than 1 in "
            "20."
        )
    shared = [v for v in found if study.shares_labels(v.budget)]
    if shared:
        budgets = ", ".join(dict.fromkeys(budget_label(v.budget) for v in shared))
        said += f" At {budgets} the repeats differ in the training seed alone."
    return said


def covered(found: list[Verdict]) -> str:
    """What the intervals of differences admit to be otherwise."""
    if any(v.interval is not None and v.images == 0 for v in found):
        return "other runs, on these test images"
    return "other runs and other test images"


def too_few(repeats: int) -> str:
    """What is said in place of an interval.

    >>> too_few(1)
    '1 repeat: too few to tell'
    """
    return f"{repeats} repeat{'' if repeats == 1 else 's'}: too few to tell"


def difference_rows(study: StudyFolder, found: list[Verdict]) -> list[dict[str, str]]:
    """Arm, Budget, differences, Mean, interval, Verdict, p, To decide; in IoU points."""
    return [
        {
            "Arm": verdict.arm,
            "Budget": budget_label(verdict.budget)
            + (" *" if study.shares_labels(verdict.budget) else ""),
            "Differences, pair by pair": ", ".join(signed(d) for d in verdict.differences),
            "Mean": signed(verdict.mean),
            "95 % interval": _interval(verdict) or too_few(len(verdict.repeats)),
            "Verdict": _word(verdict),
            "p": _p(verdict),
            "To decide": _to_decide(verdict, rules(study, verdict.budget)),
        }
        for verdict in found
    ]


def _to_decide(verdict: Verdict, fixed: Rules) -> str:
    if verdict.word != "cannot tell":
        return ""
    if verdict.interval is None:
        return "at least 2 repeats"
    if verdict.images_short:
        return "more test images"
    if verdict.more is None:
        return (
            f"more repeats than the limit of {fixed.most}"
            if fixed.planned
            else f"more than {FORESEEN} more repeats"
        )
    return f"about {verdict.more} more repeat{'' if verdict.more == 1 else 's'}"


def _word(verdict: Verdict) -> str:
    """The verdict; said where it is the number of arms that keeps it open."""
    low, high = verdict.interval or (0.0, 0.0)
    alone = verdict.word == "cannot tell" and (low > 0 or high < 0)
    return "cannot tell, for so many arms" if alone else verdict.word


def _p(verdict: Verdict) -> str:
    """The p-value that the word goes by."""
    if verdict.interval is None:
        return ""
    value = verdict.p_equivalent if verdict.word == "equivalent" else verdict.p
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _interval(verdict: Verdict) -> str:
    if verdict.interval is None:
        return ""
    low, high = verdict.interval
    return f"{signed(low)} to {signed(high)}"


def _place(verdict: Verdict) -> str:
    interval = _interval(verdict) or "one pair"
    budget = budget_label(verdict.budget)
    return f"{verdict.arm} at {budget} ({signed(verdict.mean)} points, {interval})"
