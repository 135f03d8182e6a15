"""The page of a study: one file that opens from disk, on a phone as on a desk, without network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from fewmask.evidence.curve import Curve
from fewmask.evidence.verdicts import Verdict
from fewmask.files import write_text_atomic
from fewmask.reporting import panels, plots
from fewmask.reporting.about_data import balance_rows, nearness_rows
from fewmask.reporting.examples import disagreement_panel, example_panels
from fewmask.reporting.findings import (
    covered,
    difference_rows,
    findings,
    own_against_imagenet,
)
from fewmask.reporting.folder import StudyFolder, budget_label, read_study
from fewmask.reporting.judged import rules, verdicts, write_verdicts
from fewmask.reporting.needed import label_curves, needed_rows, needed_sentence, targets
from fewmask.reporting.table import (
    BORDER,
    SCORES,
    class_rows,
    dev_split,
    loss_name,
    note,
    study_rows,
    write_study_table,
)
from fewmask.reporting.terms import OF_DIFFERENCES, OF_MASKS
from fewmask.reporting.theme import Picture

MOST_WARNINGS = 20
BOTH_SIDES = ("test", "train_or_validation")
WEBP_MOST = 16383
"""Pixels a side that the format can hold."""


@dataclass(frozen=True)
class Shown:
    """A figure as the template needs it. `width` is in CSS pixels; wider than the page scrolls."""

    light: str
    dark: str
    width: int
    alt: str


def write_report(study: Path) -> Path:
    """Write `table.md`, `verdicts.csv`, `figures/*.png` and `report.html` of a study folder.

    Copes with pending cells, a single arm or repeat, and missing panels. Raises UserError where
    `study.json` or `results.csv` can't be read.
    """
    folder = read_study(study)
    judged = verdicts(folder)
    write_study_table(folder)
    write_verdicts(folder, judged)
    page = study / "report.html"
    write_text_atomic(page, render(folder, judged))
    return page


def render(study: StudyFolder, judged: list[Verdict]) -> str:
    """The page as HTML; writes the figures, which it shows."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["unbroken"] = unbroken
    return environment.get_template("page.html").render(**contents(study, judged))


def unbroken(text: str) -> str:
    """Keep a number and its per cent sign on one line."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def contents(study: StudyFolder, judged: list[Verdict]) -> dict[str, Any]:
    """What the template shows, each value plain text, a list of rows or a figure."""
    plan = study.plan
    sentences = {str(arm["name"]): sentence(arm) for arm in plan.get("arms", [])}
    warnings = [str(warning) for warning in plan.get("warnings", [])]
    curves = label_curves(study)
    wanted = targets(study, curves)
    said = findings(study, judged)
    needed = needed_rows(study, curves, wanted)
    enough = needed_sentence(study, curves, wanted)
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    digest = sha256(script.encode()).digest()  # the page runs this script and no other
    if enough:
        said.insert(len(said) - 1, enough)
    return {
        "title": str(plan.get("title") or plan.get("name") or "Study"),
        "about": str(plan.get("about", "")),
        "done": len(study.done),
        "planned": len(study.rows),
        "findings": said,
        "facts": facts(study),
        "leakage": study.leakage,
        "copies": copies(study),
        "test_shared": study.shares_test_pictures,
        "arms": [(arm, sentences.get(arm, "")) for arm in study.arms],
        "baseline": study.baseline,
        "table": grouped(study_rows(study), "Model"),
        "note": note(study),
        "classes": grouped(class_rows(study), "Model"),
        "class_colours": class_colours(study),
        "curve": curve(study, curves),
        "needed": grouped(needed, "Arm"),
        "chart": chart(study, judged),
        "differences": grouped(difference_rows(study, judged), "Arm"),
        "beside_imagenet": grouped(difference_rows(study, own_against_imagenet(study)), "Arm"),
        "covered": covered(judged),
        "shared": [budget_label(b) for b in study.budgets if study.shares_labels(b)],
        "panels": shown_panels(
            study,
            [panels.arms_panel(study), panels.budgets_panel(study), disagreement_panel(study)],
        ),
        "examples": shown_panels(study, example_panels(study)),
        "balance": grouped(balance_rows(study), "Class"),
        "nearness": grouped(nearness_rows(study), "Pictures"),
        "warnings": warnings[:MOST_WARNINGS],
        "more_warnings": max(0, len(warnings) - MOST_WARNINGS),
        "definitions": {str(k): str(v) for k, v in plan.get("definitions", {}).items()},
        "measures": {**SCORES, **BORDER},
        "terms": (OF_DIFFERENCES if judged else {}) | (OF_MASKS if needed else {}),
        "of_differences": list(OF_DIFFERENCES),
        "of_masks": list(OF_MASKS),
        "command": str(plan.get("command", "")),
        "versions": {str(k): str(v) for k, v in plan.get("versions", {}).items()},
        "iou_name": study.iou_name,
        "iou_key": SCORES["IOU"],
        "masks_of": masks_of(study),
        "script": script,
        "script_hash": f"sha256-{base64.b64encode(digest).decode('ascii')}",
        "margin": f"{100 * rules(study).margin:g}",
    }


def sentence(arm: dict[str, Any]) -> str:
    """What a starting point is, and how long its pre-training took."""
    said, trained = str(arm.get("sentence", "")), arm.get("pretraining")
    return f"{said} ({trained})" if trained else said


def masks_of(study: StudyFolder) -> dict[str, int]:
    """Budgets as the tables write them -> numbers of masks, by which they are sorted."""
    found: dict[str, int] = {}
    for budget in study.budgets:
        label = budget_label(budget)
        found |= dict.fromkeys((label, f"{label} *", dev_split(budget)), study.masks(budget))
    return found


def class_colours(study: StudyFolder) -> dict[str, str]:
    """The colour of each class by the column of its IoU."""
    columns = (f"iou_{name}" for name in study.classes)
    return dict(zip(columns, panels.class_colours(study), strict=True))


def grouped(rows: list[dict[str, str]], column: str) -> list[tuple[str, list[dict[str, str]]]]:
    """Neighbouring rows of one arm together, without the column that names it and without IDs."""
    return [
        (name, [{k: v for k, v in row.items() if k not in ("ID", column)} for row in own])
        for name, own in groupby(rows, key=lambda row: row[column])
    ]


def facts(study: StudyFolder) -> list[tuple[str, str]]:
    """The settings that a reader asks for first; only those that the plan gives."""
    plan = study.plan
    budgets = "\n".join(
        budget_label(b) if isinstance(b, int) else f"{budget_label(b)}: {study.masks(b)} masks"
        for b in study.budgets
    )
    size = f"{plan['size']} px" if plan.get("size") else None
    found = {
        "Pairs": plan.get("n_pairs"),
        "Test images": plan.get("n_test"),
        "Budgets": budgets,
        "Classes": ", ".join(study.classes),
        "Encoder": plan.get("encoder"),
        "Decoder": plan.get("decoder"),
        "Size": size,
        "Recipe": plan.get("recipe"),
        "Loss": loss_name(study),
        "Class weights": plan.get("class_weights"),
        "Fine-tuning": plan.get("training"),
        "Headline": plan.get("headline"),
        "Data": plan.get("pairs"),
        "Test set": plan.get("test_pairs"),
    }
    return [(name, str(value)) for name, value in found.items() if value]


def curve(study: StudyFolder, curves: dict[str, Curve | str]) -> Shown | None:
    """IoU against budget, its numbers in the alternative text."""
    means = [
        f"{row['Model']} at {row['Dev Split']}: {row.get('IOU', row.get('Mean IOU'))}"
        for row in study_rows(study)
    ]
    alt = f"{study.iou_name} against the number of labelled masks. {'; '.join(means)}."
    return _shown(plots.write_curve(study, curves), alt)


def chart(study: StudyFolder, judged: list[Verdict]) -> Shown | None:
    """The paired differences to the baseline."""
    alt = f"Differences to {study.baseline}, a dot a repeat; the same numbers are in the table."
    return _shown(plots.write_differences(study, judged), alt)


def copies(study: StudyFolder) -> Shown | None:
    """The copies that were found, side by side; None where there are none to show."""
    path = study.path / "leakage.png"
    found = study.plan.get("leakage") or {}
    tables = [found.get("test", {}), found.get("within", {})]
    tables += [pool.get(side, {}) for pool in found.get("pool", {}).values() for side in BOTH_SIDES]
    if not path.is_file() or not any(t.get("exact") or t.get("near") for t in tables):
        return None
    try:
        with Image.open(path) as image:
            sheet = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):  # damaged: the numbers stay
        return None
    alt = "Pairs of files that show one picture, side by side, with their names."
    return _shown(Picture("leakage", sheet, sheet, sheet.width), alt, photographs=True)


def shown_panels(
    study: StudyFolder, chosen: Sequence[panels.Panel | None]
) -> list[tuple[str, Shown]]:
    """(caption, figure) of each panel that can be drawn."""
    found = []
    for panel in chosen:
        shown = None
        if panel is not None:
            alt = f"Test images, their true masks and the predictions of {panel.says}."
            shown = _shown(panels.write_panel(study, panel), alt, photographs=True)
        if panel is not None and shown is not None:
            found.append((panel.says, shown))
    return found


def _shown(picture: Picture | None, alt: str, *, photographs: bool = False) -> Shown | None:
    if picture is None:
        return None
    light = _data_uri(picture.light, photographs)
    dark = light if picture.dark is picture.light else _data_uri(picture.dark, photographs)
    return Shown(light, dark, picture.width, alt)


def _data_uri(picture: Image.Image, photographs: bool) -> str:
    """A figure as WebP, a quarter of the PNG: without loss, unless most of it is photographs.

    As PNG where it is larger than WebP can be.
    """
    kind, settings = "png", {}
    if max(picture.size) <= WEBP_MOST:  # method 2: half the time of the usual 4, 1 to 5 % larger
        kind, settings = "webp", {"quality": 90, "method": 2, "lossless": not photographs}
    buffer = BytesIO()
    picture.save(buffer, kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
