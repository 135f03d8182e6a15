"""What the numbers of a study say, in sentences that claim no more than the numbers carry."""

from __future__ import annotations

from fewmask.evidence.compare import Difference, paired_differences
from fewmask.reporting.folder import StudyFolder, budget_label
from fewmask.reporting.theme import signed

IMAGENET = "imagenet"


def findings(study: StudyFolder) -> list[str]:
    """The sentences, most important first: own pre-training against ImageNet where it is an arm."""
    rows = [*study.done]
    against = paired_differences([*rows], study.baseline)
    said = []
    if IMAGENET in study.arms and study.baseline != IMAGENET:
        own = [d for d in paired_differences([*rows], IMAGENET) if d.arm != study.baseline]
        if own:
            said.append(compare_sentence(study, own, "own pre-training", "ImageNet weights"))
    if against:
        arms = dict.fromkeys(difference.arm for difference in against)
        who = next(iter(arms)) if len(arms) == 1 else "the other starting points"
        said.append(compare_sentence(study, against, who, f"the baseline, {study.baseline}"))
        said.append(trust_sentence(study, against))
    elif rows:
        said.append(f"No arm has a finished run that pairs with one of {study.baseline} yet.")
    return said


def compare_sentence(study: StudyFolder, found: list[Difference], who: str, whom: str) -> str:
    """The range of the mean differences, and where its ends are."""
    low, high = min(found, key=lambda d: d.mean), max(found, key=lambda d: d.mean)
    above = sum(difference.mean > 0 for difference in found)
    below = sum(difference.mean < 0 for difference in found)
    start = f"Against {whom}, {who}"
    if len(found) == 1:
        return f"{start} changed the {study.iou_name} by {_place(low)}, {_repeats(found)}."
    if above == len(found):
        verdict = f"scored higher in the mean in all {above} comparisons"
    elif below == len(found):
        verdict = f"scored lower in the mean in all {below} comparisons"
    else:
        verdict = f"scored higher in the mean in {above} of {len(found)} comparisons"
    return (
        f"{start} {verdict}: from {_place(low)} to {_place(high)} in {study.iou_name}, "
        f"{_repeats(found)}."
    )


def trust_sentence(study: StudyFolder, found: list[Difference]) -> str:
    """How far the differences can be trusted."""
    tested = [difference for difference in found if difference.interval is not None]
    if not tested:
        most = max(len(difference.repeats) for difference in found)
        return f"{too_few(most)}: these differences may be chance."
    clear = sum(excludes_zero(difference) for difference in tested)
    untested = len(found) - len(tested)
    rest = f" ({untested} more have too few repeats)" if untested else ""
    shared = [d for d in found if study.shares_labels(d.budget)]
    budgets = ", ".join(dict.fromkeys(budget_label(d.budget) for d in shared))
    alone = f" At {budgets} the repeats differ in the training seed alone." if shared else ""
    return (
        f"The 95 % interval over runs leaves out zero in {clear} of {len(tested)} comparisons"
        f"{rest}; it is not corrected for their number and does not cover the choice of test "
        f"images.{alone}"
    )


def too_few(repeats: int) -> str:
    """What is said in place of an interval.

    >>> too_few(1), too_few(2)
    ('1 repeat: too few to tell', '2 repeats: too few to tell')
    """
    return f"{repeats} repeat{'' if repeats == 1 else 's'}: too few to tell"


def excludes_zero(difference: Difference) -> bool:
    """Whether there is an interval, and it lies on one side of zero."""
    return difference.interval is not None and not (
        difference.interval[0] <= 0 <= difference.interval[1]
    )


def difference_rows(study: StudyFolder, found: list[Difference]) -> list[dict[str, str]]:
    """Arm, Budget, Pairs, Mean, 95 % interval, Repeats; differences in IoU points."""
    place = {arm: number for number, arm in enumerate(study.arms)}
    ordered = sorted(found, key=lambda d: (place[d.arm], study.masks(d.budget)))
    return [
        {
            "Arm": difference.arm,
            "Budget": budget_label(difference.budget)
            + (" *" if study.shares_labels(difference.budget) else ""),
            "Differences, pair by pair": ", ".join(signed(d) for d in difference.differences),
            "Mean": signed(difference.mean),
            "95 % interval": too_few(len(difference.repeats))
            if difference.interval is None
            else f"{signed(difference.interval[0])} to {signed(difference.interval[1])}",
            "Repeats": str(len(difference.repeats)),
        }
        for difference in ordered
    ]


def _place(difference: Difference) -> str:
    where = f"{difference.arm} at {budget_label(difference.budget)}"
    return f"{signed(difference.mean)} points ({where})"


def _repeats(found: list[Difference]) -> str:
    counts = sorted({len(difference.repeats) for difference in found})
    if counts == [1]:
        return "one paired repeat each" if len(found) > 1 else "one paired repeat"
    if len(counts) == 1:
        return f"{counts[0]} paired repeats" + (" each" if len(found) > 1 else "")
    return f"{counts[0]} to {counts[-1]} paired repeats each"
