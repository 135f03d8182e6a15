"""The files of a study's folder, each looked at before it is believed."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from fewmask.evidence.rows import parse_budget, read_score
from fewmask.files import reading
from fewmask.reporting.sound import unsound, without_null
from fewmask.sealed import CHECKSUM, crc_of, read_opened, read_sealed
from fewmask.types import UserError

Budget = int | float
Place = tuple[str, Budget, int]
"""A cell's arm, budget and repeat."""
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
CELL_MEND = "Remove its folder, and the study's command does that cell again"


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


def read_rows(file: Path) -> tuple[dict[str, str], ...]:
    """The rows of results.csv; none where there is no such file. Raises UserError."""
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


def read_cells(folder: Path, keys: list[str] | None) -> dict[Place, tuple[Path, dict[str, Any]]]:
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


def cell_result(file: Path) -> dict[str, Any]:
    """As `read_sealed`, of a cell's result.json. Raises ValueError where it is another cell's."""
    result = read_sealed(file)
    key = result.get("key", file.parent.name)
    if key != file.parent.name:
        raise ValueError(f"is of the cell {key}")
    return result


def _place(arm: Any, budget: Any, repeat: Any) -> Place:
    """A cell's, by its result. Raises ValueError where it is none."""
    if not isinstance(arm, str) or isinstance(budget, bool):
        raise ValueError(f"arm {arm!r}, budget {budget!r}")
    if type(repeat) is not int or repeat < 0:
        raise ValueError(f"repeat {repeat!r}")
    try:
        return arm, parse_budget(budget), repeat
    except UserError as mistake:
        raise ValueError(*mistake.faults) from None


def other_scores(row: dict[str, str], cell: Path, result: dict[str, Any]) -> dict[str, str]:
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


def lacks_counts(cell: Path, result: dict[str, Any]) -> bool:
    """Whether a cell's per_image.csv is gone. Raises UserError where it was changed."""
    said = result.get("per_image_csv")
    if said is None:  # a cell of before its result.json noted this checksum
        return False
    file = cell / "per_image.csv"
    if not file.is_file():
        return True
    with reading(file, CELL_MEND):
        if crc_of(file) == said:
            return False
    raise UserError(
        f"{file}: changed since it was written, by the checksum in result.json. Bring it back, or "
        f"keep the change by taking per_image_csv and {CHECKSUM} out of {cell / 'result.json'}"
    )
