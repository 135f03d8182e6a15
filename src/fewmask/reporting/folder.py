"""A study folder, read once: its plan, the rows of `results.csv`, its finished cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewmask.data.classes import colour
from fewmask.evidence.rows import parse_budget, read_score
from fewmask.reporting.read import (
    Budget,
    Place,
    lacks_counts,
    other_scores,
    read_cells,
    read_plan,
    read_rows,
)
from fewmask.sealed import CHANGED
from fewmask.types import UserError

MOST_DOUBTS = 3


@dataclass(frozen=True)
class StudyFolder:
    """What `study.json`, `results.csv` and `cells/` say. Scores are fractions of 1."""

    path: Path
    plan: dict[str, Any]
    rows: tuple[dict[str, str], ...]
    cells: dict[Place, Path]
    doubts: tuple[str, ...] = ()
    """Sentences on what was changed since it was written, or is gone."""
    changed: frozenset[Place] = frozenset()
    """Cells of which results.csv says another IoU than they do themselves."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Names in the plan's order, then those that only the results know."""
        planned = [str(arm["name"]) for arm in self.plan.get("arms", [])]
        return tuple(dict.fromkeys(planned + [row["arm"] for row in self.rows]))

    @property
    def baseline(self) -> str:
        return str(self.plan.get("baseline", "scratch"))

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """From the fewest masks to the most."""
        found = [parse_budget(value) for value in self.plan.get("budgets", [])]
        found += [parse_budget(row["budget"]) for row in self.rows]
        return tuple(sorted(dict.fromkeys(found), key=self.masks))

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(str(name) for name in self.plan.get("classes", []))

    @property
    def colours(self) -> tuple[str, ...]:
        """Of the classes, as #rrggbb; a fixed one of its id where the study names none."""
        given = self.plan.get("colours") or map(colour, range(len(self.classes)))
        return tuple("#{:02x}{:02x}{:02x}".format(*rgb) for rgb in given)

    @property
    def iou_name(self) -> str:
        return "mean IoU" if len(self.classes) > 2 else "IoU"

    @property
    def done(self) -> tuple[dict[str, str], ...]:
        return tuple(row for row in self.rows if row["status"] == "done")

    @property
    def leakage(self) -> tuple[str, ...]:
        """What was found when pools, test set and other pairs were searched for one picture.

        Also says where there was nothing; () where a study folder knows of no search.
        """
        found = self.plan.get("leakage")
        if not found:
            return ()
        said = []
        if words := _copies(found.get("test", {}), "test picture"):
            said.append(f"{words} among the pairs to train on, too: the scores may flatter.")
        else:
            said.append(
                "No test picture, nor a copy of one, was found among the pairs to train on."
            )
        if words := _copies(found.get("within", {}), "labelled image", "show"):
            said.append(
                f"{words} what another one shows; such ones stand on one side of the split."
            )
        for src, pool in found.get("pool", {}).items():
            name = pool.get("pool", src)
            if words := _copies(pool.get("test", {}), f"image of the pool {name}", "show"):
                done = "left out of" if pool.get("left_out") else "used in"
                said.append(f"{words} test pictures; they were {done} pre-training.")
            else:
                said.append(f"No image of the pool {name} was found to show a test picture.")
            rest = pool.get("train_or_validation", {})
            if words := _copies(rest, f"image of the pool {name}", "show"):
                why = "they stayed in, for pre-training sees no mask"
                said.append(f"{words} pictures to train or validate on; {why}.")
        for one in found.get("not_searched", []):
            said.append(f"Not searched, for its pictures are not at hand: {one}.")
        return tuple(said)

    @property
    def shares_test_pictures(self) -> bool:
        """Whether some test picture is among the pairs to train on, too."""
        found = (self.plan.get("leakage") or {}).get("test", {})
        return any(int(found.get(kind, 0)) for kind in ("exact", "near"))

    def masks(self, budget: Budget) -> int:
        """The labelled pairs of a budget, those for validation included."""
        for row in self.rows:
            if parse_budget(row["budget"]) == budget and row.get("n_train"):
                return int(row["n_train"]) + int(row.get("n_val") or 0)
        if isinstance(budget, int):
            return budget
        return round(budget * int(self.plan.get("n_pairs") or 100))

    def runs(self, arm: str, budget: Budget, score: str = "iou") -> dict[int, float]:
        """The score of each finished repeat in which it is defined."""
        found = {
            int(row["repeat"]): read_score(row.get(score))
            for row in self.done
            if row["arm"] == arm and parse_budget(row["budget"]) == budget
        }
        return {repeat: found[repeat] for repeat in sorted(found) if not math.isnan(found[repeat])}

    def shares_labels(self, budget: Budget) -> bool:
        """Whether the budget takes the whole of the rest, so that repeats differ in seed alone."""
        return budget in [parse_budget(value) for value in self.plan.get("whole_budgets", [])]


def read_study(path: Path) -> StudyFolder:
    """Read what lies in a study folder; only `study.json` must be there. Raises UserError."""
    file = path / "study.json"
    if not file.is_file():
        if (path / "cells").is_dir():
            raise UserError(f"{path}: holds no study.json; its study's command writes it again")
        raise UserError(f"{path} holds no study.json; give the --out folder of a `fewmask study`")
    plan, unchanged = read_plan(file)
    doubts = [] if unchanged else [f"study.json was {CHANGED}."]
    results = read_cells(path / "cells", plan.get("cells"))
    cells = {place: folder for place, (folder, _) in results.items()}
    if cells and not (path / "results.csv").is_file():
        raise UserError(
            f"{path}: results.csv is gone, though {len(cells)} cells are finished. Run the study's "
            "command again to write it"
        )
    rows = read_rows(path / "results.csv")
    told, changed = _compared(rows, results)
    doubts += told
    return StudyFolder(path, plan, rows, cells, tuple(doubts), frozenset(changed))


def _compared(
    rows: tuple[dict[str, str], ...], results: dict[Place, tuple[Path, dict[str, Any]]]
) -> tuple[list[str], set[Place]]:
    """results.csv beside the cells: sentences on what differs or is gone, and the cells of which
    results.csv gives another IoU.
    """
    scores: list[str] = []
    changed: set[Place] = set()
    lacking, unknown = set(results), []
    for row in rows:
        place = (row["arm"], parse_budget(row["budget"]), int(row["repeat"]))
        if row["status"] != "done" or not results:
            continue
        if place not in results:
            unknown.append(f"{place[0]}, {budget_label(place[1])}, repeat {place[2]}")
            continue
        lacking -= {place}
        other = other_scores(row, *results[place])
        scores += other.values()
        changed |= {place} if "iou" in other else set()
    doubts = scores[:MOST_DOUBTS]
    if len(scores) > MOST_DOUBTS:
        doubts.append(f"So do {len(scores) - MOST_DOUBTS} more scores.")
    if lacking:
        named = sorted(results[place][0].name for place in lacking)
        doubts.append(
            f"results.csv lacks {_some(named, 'finished cell')}; the study's command writes it "
            "again."
        )
    if unknown:
        doubts.append(
            f"results.csv has {_some(unknown, 'row')} without a finished cell; the study's command "
            "writes it again."
        )
    bare = [cell.name for cell, result in results.values() if lacks_counts(cell, result)]
    if bare:
        doubts.append(
            f"per_image.csv is gone from {_some(bare, 'cell')}; a cell whose folder is removed is "
            "done again by the study's command."
        )
    if changed or unknown or bare:
        doubts.append("The intervals of these arms leave out what other test images would change.")
    return doubts, changed


def _some(names: list[str], what: str) -> str:
    """`4 cells (a; b; c)`: their number, and the first of their names."""
    shown = "; ".join(names[:MOST_DOUBTS])
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({shown})"


def budget_label(budget: Budget) -> str:
    """A budget in words.

    >>> budget_label(0.2), budget_label(8)
    ('20 %', '8 masks')
    """
    return f"{budget} masks" if isinstance(budget, int) else f"{100 * budget:.4g} %"


def _copies(shared: dict[str, Any], what: str, verb: str | None = None) -> str:
    """`3 images of the pool (1 with equal pixels, 2 copies) show`; empty where there are none."""
    exact, near = int(shared.get("exact", 0)), int(shared.get("near", 0))
    n = exact + near
    if not n:
        return ""
    named = what if n == 1 else what.replace("image", "images", 1).replace("picture", "pictures", 1)
    does = ("is" if n == 1 else "are") if verb is None else f"{verb}{'s' * (n == 1)}"
    copies = f"{near} altered cop{'y' if near == 1 else 'ies'}"
    return f"{n} {named} ({exact} of equal pixels, {copies}) {does}"
