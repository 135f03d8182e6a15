"""A study folder, read once: its plan, the rows of `results.csv`, its finished cells."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewmask.data.classes import colour
from fewmask.evidence.rows import parse_budget, read_score
from fewmask.files import CHANGED, crc, read_opened, read_sealed, reading
from fewmask.reporting.sound import unsound, without_null
from fewmask.types import UserError

Budget = int | float
NEEDED = ("arm", "budget", "repeat", "status")
COUNTS = ("repeat", "n_train", "n_val")
WORDS = ("arm", "encoder", "decoder", "recipe", "status")
"""Columns of results.csv that hold words; the others hold numbers."""
COPIED = {
    "iou", "f1", "dice_loss", "focal_loss", "bce_loss", "recall", "precision", "accuracy",
    "iou_per_image", "iou_border_foreground",
}  # fmt: skip
"""Columns that are copied from the cells as they are, as is the IoU of each class."""
REWRITE = "Run the study's command again to write it"
PLAN_MEND = (
    "Bring it back. Or remove it, and the study's command writes it again from the finished cells, "
    "without what it knew of looks at verdicts"
)
MOST_DOUBTS = 3
CELL_MEND = "Remove its folder, and the study's command does that cell again"


@dataclass(frozen=True)
class StudyFolder:
    """What `study.json`, `results.csv` and `cells/` say. Scores are fractions of 1."""

    path: Path
    plan: dict[str, Any]
    rows: tuple[dict[str, str], ...]
    cells: dict[tuple[str, Budget, int], Path]
    doubts: tuple[str, ...] = ()
    """Sentences on what was changed since it was written."""
    changed: frozenset[tuple[str, Budget, int]] = frozenset()
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
    results = _results(path / "cells", plan.get("cells"))
    cells = {place: folder for place, (folder, _) in results.items()}
    if cells and not (path / "results.csv").is_file():
        raise UserError(
            f"{path}: results.csv is gone, though {len(cells)} cells are finished. Run the study's "
            "command again to write it"
        )
    rows, changed, lacking = _rows(path / "results.csv"), set(), set(results)
    unknown = []
    for row in rows:
        place = (row["arm"], parse_budget(row["budget"]), int(row["repeat"]))
        if row["status"] == "done" and results and place not in results:
            unknown.append(f"{place[0]}, {budget_label(place[1])}, repeat {place[2]}")
        if row["status"] == "done" and place in results:
            lacking -= {place}
            other = _other_scores(row, *results[place])
            doubts += other.values()
            changed |= {place} if "iou" in other else set()
    if lacking:
        named = ", ".join(sorted(cells[place].name for place in lacking)[:MOST_DOUBTS])
        doubts.append(
            f"results.csv lacks {len(lacking)} finished cell{'s' * (len(lacking) > 1)} ({named}); "
            "the study's command writes it again."
        )
    if unknown:
        doubts.append(
            f"results.csv has {len(unknown)} row{'s' * (len(unknown) > 1)} of cells that are not "
            f"there ({'; '.join(unknown[:MOST_DOUBTS])})."
        )
    if bare := [cell.name for cell, result in results.values() if _lacks_counts(cell, result)]:
        doubts.append(
            f"per_image.csv is gone from {len(bare)} cell{'s' * (len(bare) > 1)} "
            f"({', '.join(bare[:MOST_DOUBTS])})."
        )
    if changed or bare:
        doubts.append("The intervals there leave out what other test images would change.")
    if len(doubts) > MOST_DOUBTS:
        doubts = [*doubts[:MOST_DOUBTS], f"{len(doubts) - MOST_DOUBTS} more such sentences."]
    return StudyFolder(path, plan, rows, cells, tuple(doubts), frozenset(changed))


def read_plan(file: Path) -> tuple[dict[str, Any], bool]:
    """What study.json says, less its null entries, and whether it is as it was written.

    Raises UserError where it can't be read.
    """
    with reading(file, PLAN_MEND):
        table, unchanged = read_opened(file)
        plan: dict[str, Any] = without_null(table)
        if "name" not in plan:
            raise ValueError("it has no name, and so is no study's")
        if fault := unsound(plan):
            raise ValueError(fault)
    return plan, unchanged


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


def _rows(file: Path) -> tuple[dict[str, str], ...]:
    if not file.is_file():
        return ()
    seen = set()
    with reading(file, REWRITE):
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, restval="")
            missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{file} lacks the columns {', '.join(missing)}; run the study again"
                )
            rows = tuple(dict(row) for row in reader)
        for row in rows:
            _refuse_unsound(row)
            cell = (row["arm"], row["budget"], row["repeat"])
            if cell in seen:
                raise UserError(
                    f"{file} holds two rows of arm {cell[0]}, budget {cell[1]}, repeat {cell[2]}; "
                    f"each cell has one. {REWRITE}"
                )
            seen.add(cell)
    return rows


def _refuse_unsound(row: dict[str, str]) -> None:
    """Raises ValueError where a row of results.csv holds no numbers where it should."""
    if None in row:
        raise ValueError("a row has more values than there are columns")
    for name, text in row.items():
        if name in COUNTS:
            whole = text.isascii() and text.isdecimal() and len(text) < 10
            if not (whole or (text == "" and name != "repeat")):
                raise ValueError(f"{name} is {text!r}, not a whole number")
        elif name not in WORDS:
            try:
                parse_budget(text) if name == "budget" else read_score(text)
            except UserError as mistake:
                raise ValueError(*mistake.faults) from None


def _place(arm: Any, budget: Any, repeat: Any) -> tuple[str, Budget, int]:
    """A cell's, by its result. Raises ValueError where it is none."""
    if not isinstance(arm, str) or isinstance(budget, bool):
        raise ValueError(f"arm {arm!r}, budget {budget!r}")
    if type(repeat) is not int or repeat < 0:
        raise ValueError(f"repeat {repeat!r}")
    try:
        return arm, parse_budget(budget), repeat
    except UserError as mistake:
        raise ValueError(*mistake.faults) from None


def _other_scores(row: dict[str, str], cell: Path, result: dict[str, Any]) -> dict[str, str]:
    """Where results.csv gives a cell another score than its own result.json: by score, a sentence.

    Raises UserError where result.json is damaged.
    """
    found = {}
    for name, text in row.items():
        if name not in result or not (name in COPIED or name.startswith("iou_")):
            continue
        said = read_score(text)
        with reading(cell / "result.json", CELL_MEND):
            own = math.nan if result[name] in (None, "") else float(result[name])
        # Not to the last digit: a spreadsheet that saves the file keeps fifteen.
        alike = math.isclose(said, own, rel_tol=1e-9, abs_tol=1e-12)
        if not alike and not (math.isnan(said) and math.isnan(own)):
            found[name] = (
                f"results.csv and the cell {cell.name} differ: {name} {text or 'undefined'} "
                f"there, {result[name]} in its own result.json."
            )
    return found


def _lacks_counts(cell: Path, result: dict[str, Any]) -> bool:
    """Whether a cell's per_image.csv is gone. Raises UserError where it was changed."""
    said = result.get("per_image_csv")
    if said is None:  # as long as cells didn't note its checksum
        return False
    file = cell / "per_image.csv"
    if not file.is_file():
        return True
    with reading(file, CELL_MEND):
        if crc(file.read_bytes().decode()) != said:
            raise ValueError(f"{CHANGED} in result.json")
    return False


def cell_result(file: Path) -> dict[str, Any]:
    """As `read_sealed`, of a cell's result.json. Raises ValueError where it is another cell's."""
    result = read_sealed(file)
    key = result.get("key", file.parent.name)
    if key != file.parent.name:
        raise ValueError(f"is of the cell {key}")
    return result


def _results(
    folder: Path, keys: list[str] | None
) -> dict[tuple[str, Budget, int], tuple[Path, dict[str, Any]]]:
    """The plan's own cells, and what their result.json say; a folder may hold those of earlier
    settings as well.
    """
    found = {}
    for file in sorted(folder.glob("*/result.json")):
        if keys is not None and file.parent.name not in keys:
            continue
        with reading(file, CELL_MEND):
            result = cell_result(file)
            if {"arm", "budget", "repeat"} <= result.keys():
                place = _place(result["arm"], result["budget"], result["repeat"])
                found[place] = (file.parent, result)
    return found
