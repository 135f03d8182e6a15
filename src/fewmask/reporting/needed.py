"""How many masks are enough: the label curves of a study's arms, in a table and a sentence."""

from __future__ import annotations

import numpy as np

from fewmask.evidence.curve import Curve
from fewmask.evidence.masks import Needed, curve_of, masks_for, masks_saved
from fewmask.reporting.folder import StudyFolder
from fewmask.types import UserError

STEP = 0.05
MOST_TARGETS = 4


def label_curves(study: StudyFolder) -> dict[str, Curve | str]:
    """Every arm's curve over the numbers of masks, or why it has none."""
    found = {}
    for arm in study.arms:
        runs = {study.masks(budget): study.runs(arm, budget) for budget in study.budgets}
        repeats = sorted({r for scores in runs.values() for r in scores})
        scores = np.full((len(repeats), len(runs)), np.nan)
        for j, own in enumerate(runs.values()):
            for repeat, score in own.items():
                scores[repeats.index(repeat), j] = score
        found[arm] = curve_of(np.array([*runs], float), scores)
    return found


def targets(study: StudyFolder, curves: dict[str, Curve | str]) -> list[float]:
    """The plan's targets, else up to four steps of 0.05 between what the arms reach."""
    given = study.plan.get("targets")
    if given:
        return check_targets(given)
    means = [curve.means for curve in curves.values() if isinstance(curve, Curve)]
    if not means:
        return []
    low, high = min(float(m.min()) for m in means), max(float(m.max()) for m in means)
    steps = np.arange(np.floor(low / STEP) + 1, np.floor(high / STEP) + 1) * STEP
    chosen = steps[
        np.linspace(0, len(steps) - 1, min(MOST_TARGETS, len(steps))).round().astype(int)
    ]
    return [round(float(value), 2) for value in chosen]


def check_targets(values: object) -> list[float]:
    """IoUs between 0 and 1. Raises UserError."""
    found: list[float] = []
    for value in values if isinstance(values, list | tuple) else [values]:
        if not isinstance(value, int | float) or not 0 < value < 1:
            raise UserError(f"targets {value}: expected IoUs between 0 and 1, such as 0.85")
        found.append(float(value))
    return found


def needed_rows(
    study: StudyFolder, curves: dict[str, Curve | str], iou: list[float]
) -> list[dict[str, str]]:
    """Arm, one column a target, and what is saved against the baseline.

    Without any curve: [], unless the plan asks for targets, which then each get the reason.
    """
    asked = bool(study.plan.get("targets"))
    if not iou or not (asked or any(isinstance(curve, Curve) for curve in curves.values())):
        return []
    most = max(study.masks(budget) for budget in study.budgets)
    rows = []
    for arm, curve in curves.items():
        row = {"Arm": arm}
        row |= {f"{study.iou_name} {value:g}": phrase(masks_for(curve, value)) for value in iou}
        if arm == study.baseline:
            row[f"As good as {study.baseline} with {most} masks"] = ""
        else:
            saved = masks_saved(curve, curves.get(study.baseline, "it has no run"), most)
            row[f"As good as {study.baseline} with {most} masks"] = phrase(saved.needed)
        rows.append(row)
    return rows


def phrase(needed: Needed) -> str:
    """A table's cell.

    >>> phrase(Needed(0.85, 60, 45, 90))
    'about 60 (45 to 90)'
    >>> phrase(Needed(0.85, refusal="no budget was repeated"))
    'no answer: no budget was repeated'
    >>> phrase(Needed(0.85, at_most=8))
    'at most 8'
    """
    if needed.at_most is not None:
        return f"at most {needed.at_most}"
    if needed.masks is None:
        return f"no answer: {needed.refusal}"
    return f"about {needed.masks} ({needed.low} to {needed.high})"


def needed_sentence(
    study: StudyFolder, curves: dict[str, Curve | str], iou: list[float]
) -> str | None:
    """The highest target that any arm has a number for, and every arm's answer to it."""
    for value in sorted(iou, reverse=True):
        found = {arm: masks_for(curve, value) for arm, curve in curves.items()}
        known = {arm: one for arm, one in found.items() if not one.refusal}
        if any(one.masks is not None for one in known.values()):
            said = ", ".join(f"{arm} {phrase(one)}" for arm, one in known.items())
            rest = "" if len(known) == len(found) else "; of the others it cannot be said"
            return f"To reach {study.iou_name} {value:g} takes, in masks: {said}{rest}."
    return None
