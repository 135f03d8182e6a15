"""The table of a study, in the columns of the report that the tool grew from."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev

from fewmask.evidence.rows import parse_budget
from fewmask.files import write_text_atomic
from fewmask.reporting.folder import StudyFolder, read_study
from fewmask.reporting.read import Budget
from fewmask.settings import RECIPES

SCORES = {
    "IOU": "iou",
    "F1": "f1",
    "Dice": "dice_loss",
    "Focal": "focal_loss",
    "BCE": "bce_loss",
    "Recall": "recall",
    "Accuracy": "accuracy",
}
BORDER = {"IOU border = fg": "iou_border_foreground"}
LEFT_ALIGNED = ("Model", "Loss Func")
UNDEFINED = "-"


def table_rows(study: Path) -> list[dict[str, str]]:
    """One row per arm and budget, column -> text: the mean over repeats, ± sample SD from two on.

    Columns: ID, Model, Loss Func, Dev Split (per cent of all pairs, or "8 masks"), IOU, F1, Dice,
    Focal, BCE, Recall, Accuracy, the second reading of the border where there is one, Repeats.
    Scores are fractions of 1 with 3 decimals, "-" where no finished cell defines them.
    """
    return study_rows(read_study(study))


def study_rows(study: StudyFolder) -> list[dict[str, str]]:
    """`table_rows` of a study that is already read."""
    scores = dict(SCORES)
    if any(row.get("iou_border_foreground") for row in study.done):
        scores |= BORDER
    several = len(study.classes) > 2
    pairs = [(arm, budget) for arm in study.arms for budget in study.budgets]
    table = []
    for number, (arm, budget) in enumerate(pairs):
        row = {"ID": str(number), "Model": arm, "Loss Func": loss_name(study)}
        row["Dev Split"] = dev_split(budget)
        for title, column in scores.items():
            runs = study.runs(arm, budget, column)
            row["Mean IOU" if several and title == "IOU" else title] = mean_and_sd([*runs.values()])
        row["Repeats"] = repeats(study, arm, budget)
        table.append(row)
    return table


def class_rows(study: StudyFolder) -> list[dict[str, str]]:
    """One row per arm and budget: Model, Dev Split, and `iou_CLASS` of each of several classes.

    Mean over repeats, ± sample SD, over those repeats in which the class's IoU is defined. Empty
    for two classes, and where no finished cell has them.
    """
    columns = [f"iou_{name}" for name in study.classes]
    if len(columns) <= 2 or not any(row.get(column) for row in study.done for column in columns):
        return []
    return [
        {"Model": arm, "Dev Split": dev_split(budget)}
        | {name: mean_and_sd([*study.runs(arm, budget, name).values()]) for name in columns}
        for arm in study.arms
        for budget in study.budgets
    ]


def write_table(study: Path) -> str:
    """Write `table.md` into the study folder, and return its text."""
    return write_study_table(read_study(study))


def write_study_table(study: StudyFolder) -> str:
    """`write_table` of a study that is already read."""
    # The spread of every score would make lines of 180 characters; the page has them all.
    rows = [
        {k: v if k.startswith("IOU") else v.split(" ±")[0] for k, v in row.items()}
        for row in study_rows(study)
    ]
    text = f"{markdown(rows)}\n{note(study)}\n"
    write_text_atomic(study.path / "table.md", text)
    return text


def note(study: StudyFolder) -> str:
    """What the numbers are, in one paragraph."""
    mean = f"IOU is the mean over {len(study.classes)} classes. " if len(study.classes) > 2 else ""
    headline = f" Headline: {study.plan['headline']}." if study.plan.get("headline") else ""
    images = f" on {study.plan['n_test']} test images" if study.plan.get("n_test") else ""
    shares = any(isinstance(budget, float) for budget in study.budgets)
    split = "Dev Split is the per cent of all pairs that trained and validated." if shares else ""
    return (
        f"{mean}Mean over repeats ± sample standard deviation{images}; IOU, F1, recall and "
        f"accuracy are fractions of 1, Dice, Focal and BCE are losses. {split}{headline}"
    )


def markdown(rows: list[dict[str, str]]) -> str:
    """A markdown table whose cells are padded, so that it lines up as plain text too."""
    if not rows:
        return "No arm and no budget is planned.\n"
    lines = [list(rows[0]), *([_cell(text) for text in row.values()] for row in rows)]
    columns = []
    for column in zip(*lines, strict=True):
        width = max(map(len, column))
        if column[0] in LEFT_ALIGNED:
            padded = [text.ljust(width) for text in column]
            columns.append([padded[0], "-" * width, *padded[1:]])
        else:
            padded = [text.rjust(width) for text in column]
            columns.append([padded[0], "-" * (width - 1) + ":", *padded[1:]])
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*columns, strict=True))


def dev_split(budget: Budget) -> str:
    """A share in per cent without its sign, or "8 masks"."""
    return f"{budget} masks" if isinstance(budget, int) else f"{100 * budget:.4g}"


def repeats(study: StudyFolder, arm: str, budget: Budget) -> str:
    """ "3", or "1 of 3" while cells are pending."""
    mine = [
        row for row in study.rows if row["arm"] == arm and parse_budget(row["budget"]) == budget
    ]
    done = sum(row["status"] == "done" for row in mine)
    planned = len(mine) or _planned(study, budget)
    return str(done) if done == planned else f"{done} of {planned}"


def loss_name(study: StudyFolder) -> str:
    """The fine-tuning loss, of the plan or of its recipe; of several classes BCE is CE."""
    recipes = {str(name): str(values["loss"]) for name, values in RECIPES.items()}
    recipe = str(study.plan.get("recipe", "report"))
    name = str(study.plan.get("loss") or recipes.get(recipe, recipe)).upper()
    return name.replace("BCE", "CE") if len(study.classes) > 2 else name


def mean_and_sd(values: list[float]) -> str:
    """Mean and sample standard deviation, the latter from two values on.

    >>> mean_and_sd([0.5]), mean_and_sd([0.4, 0.6]), mean_and_sd([])
    ('0.500', '0.500 ± 0.141', '-')
    """
    if not values:
        return UNDEFINED
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _planned(study: StudyFolder, budget: Budget) -> int:
    planned = study.plan.get("repeats", {})
    return int(planned.get(str(budget), 0)) if isinstance(planned, dict) else int(planned)
