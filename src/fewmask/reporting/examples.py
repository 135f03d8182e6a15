"""Which test images to look at: each arm's best, median and worst, and where the arms disagree."""

from __future__ import annotations

from statistics import fmean

from fewmask.reporting.folder import StudyFolder, budget_label
from fewmask.reporting.panels import Column, Panel, image_scores, shown_images
from fewmask.reporting.read import Budget

DISAGREEMENTS = 3


def example_images(study: StudyFolder) -> list[str]:
    """Stems of all images that the example panels show; their pictures have to be there."""
    chosen = [stem for arm in study.arms for stem, _ in _examples(study, arm)]
    return [*dict.fromkeys([*chosen, *_disagreements(study)])]


def example_panels(study: StudyFolder) -> list[Panel]:
    """A panel an arm: best, median and worst test image by IoU, mean over its repeats."""
    found = []
    for number, arm in enumerate(study.arms):
        budget = _budget(study)
        chosen = _examples(study, arm)
        if budget is None or not chosen:
            continue
        repeat = min(r for a, b, r in study.cells if (a, b) == (arm, budget))
        column = Column(f"{arm}, repeat {repeat}", study.cells[arm, budget, repeat])
        scores = ", ".join(f"{score:.3f}" for _, score in chosen)
        says = (
            f"{arm} at {budget_label(budget)}: the best, the median and the worst test image by "
            f"its IoU, mean over the repeats ({scores})"
        )
        images = shown_images(study, [stem for stem, _ in chosen])
        if images:
            found.append(Panel(f"examples_{number}", says, images, (column,)))
    return found


def disagreement_panel(study: StudyFolder) -> Panel | None:
    """The test images on which the arms' IoU lies furthest apart, every arm a column."""
    budget = _budget(study)
    images = shown_images(study, _disagreements(study))
    if budget is None or not images:
        return None
    columns = []
    for arm in study.arms:
        repeats = [r for a, b, r in study.cells if (a, b) == (arm, budget)]
        columns.append(Column(arm, study.cells[arm, budget, min(repeats)] if repeats else None))
    says = f"where the arms disagree most at {budget_label(budget)}, the first repeat of each"
    return Panel("panels_disagreements", says, images, tuple(columns))


def _budget(study: StudyFolder) -> Budget | None:
    """The largest budget of which most arms have a finished cell."""
    arms = {b: len({arm for arm, own, _ in study.cells if own == b}) for b in study.budgets}
    most = max(arms.values(), default=0)
    return max((b for b in study.budgets if arms[b] == most), key=study.masks) if most else None


def _scores(study: StudyFolder, arm: str) -> dict[str, float]:
    """Every test image's IoU, mean over the arm's repeats at the budget shown; best first."""
    budget = _budget(study)
    cells = [folder for (a, b, _), folder in study.cells.items() if (a, b) == (arm, budget)]
    each = [image_scores(folder) for folder in cells]
    shared = set.intersection(*(set(own) for own in each)) if each else set()
    means = {stem: fmean(own[stem] for own in each) for stem in sorted(shared)}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _examples(study: StudyFolder, arm: str) -> list[tuple[str, float]]:
    found = [*_scores(study, arm).items()]
    if len(found) < 3:
        return []
    return [found[0], found[len(found) // 2], found[-1]]


def _disagreements(study: StudyFolder) -> list[str]:
    each = [own for arm in study.arms if (own := _scores(study, arm))]
    if len(each) < 2:
        return []
    shared = sorted(set.intersection(*(set(own) for own in each)))
    apart = {stem: max(o[stem] for o in each) - min(o[stem] for o in each) for stem in shared}
    return sorted(apart, key=lambda stem: -apart[stem])[:DISAGREEMENTS]
