"""A test set of the user's own: all other pairs are to train on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fewmask.data.cache import cached_pairs
from fewmask.data.check import PairReport, check_pairs
from fewmask.data.leakage import overlap, pair_pictures, shared
from fewmask.data.sources import Pair, PairSet, open_pairs
from fewmask.data.split import Split
from fewmask.progress import progress
from fewmask.settings import StudySettings
from fewmask.studies.plan import Plan
from fewmask.types import UserError
from fewmask.workflows import Prepared

MOST_FAULTS = 20


def prepare_both(plan: Plan, src: str, settings: StudySettings) -> tuple[Prepared, Split]:
    """The plan's pairs and after them those of the test set `src`, and the split that follows.

    Raises UserError with all faults of both, and for every picture that is in both unless the plan
    allows it.
    """
    options = plan.mask_options
    rest = open_pairs(plan.pairs, options, download=settings.download)
    test = open_pairs(src, options, download=settings.download)
    with progress("checking pairs") as report:
        checked = check_pairs(rest, progress=report, workers=settings.workers)
    with progress("checking the test pairs") as report:
        tested = check_pairs(test, checked.labels, progress=report, workers=settings.workers)
    faults = [*checked.faults, *tested.faults, *_tables(rest, test)]
    if not plan.allow_overlap:
        faults += _overlaps(rest, checked, test, tested)
    if faults:
        raise UserError(*faults)
    both, report_of_both = _joined(rest, test), _reports(checked, tested)
    size, resize = plan.finetune.size, plan.finetune.resize
    with progress("reading pairs") as report:
        cache = cached_pairs(
            both, checked.labels, size, resize, progress=report, workers=settings.workers
        )
    n, n_test = len(rest.items), len(test.items)
    split = Split(tuple(range(n, n + n_test)), tuple(range(n)), plan.seed)
    return Prepared(both, report_of_both, cache), split


def _overlaps(rest: PairSet, checked: PairReport, test: PairSet, tested: PairReport) -> list[str]:
    left = pair_pictures(test, tested.hashes, tested.thumbs)
    right = pair_pictures(rest, checked.hashes, checked.thumbs)
    with progress("comparing the test pairs") as report:
        found = shared(overlap(left, right, report), left, right)
    faults = [
        f"{one.left.where}: in the test set, and {'equal to' if one.exact else 'a copy of'} "
        f"{one.right.where}, which is trained on. Remove one of them, or pass --allow-overlap"
        for one in found[:MOST_FAULTS]
    ]
    if len(found) > MOST_FAULTS:
        faults.append(f"{test.src}: and {len(found) - MOST_FAULTS} more pictures of {rest.src}")
    return faults


def _tables(rest: PairSet, test: PairSet) -> list[str]:
    """A fault where both name their classes and not alike: ids would mean two things."""
    tables = (rest.table, test.table)
    names = [table.names if table else None for table in tables]
    if None in names or names[0] == names[1]:
        return []
    said = " and ".join(", ".join(own or ()) for own in names)
    return [f"{test.src}: its class_dict.csv names other classes than {rest.src}'s ({said}). "
            "Give both the same"]  # fmt: skip


def _joined(rest: PairSet, test: PairSet) -> PairSet:
    """Both as one set; a test pair whose name is taken is called test_NAME."""
    taken = {pair.name for pair in (*rest.items, *test.items)}
    own = {pair.name for pair in rest.items}
    renamed: list[Pair] = []
    for pair in test.items:
        name = pair.name
        if name in own:
            while name in taken:
                name = f"test_{name}"
            taken.add(name)
        renamed.append(replace(pair, name=name))
    return replace(rest, items=(*rest.items, *renamed))


def _reports(checked: PairReport, tested: PairReport) -> PairReport:
    """One report of both. Groups stay within a side: the split is given."""
    n = checked.n
    return PairReport(
        faults=(),
        warnings=(*checked.warnings, *tested.warnings),
        labels=checked.labels,
        groups=(*checked.groups, *(tuple(row + n for row in g) for g in tested.groups)),
        hashes=(*checked.hashes, *tested.hashes),
        n=n + tested.n,
        mask_pixels=(*checked.mask_pixels, *tested.mask_pixels),
        thumbs=np.concatenate([checked.thumbs, tested.thumbs]),
    )
