"""Pictures of what the models see: test images, their true masks, and the predictions."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from fewmask.evidence.rows import read_score
from fewmask.files import reading
from fewmask.reporting.folder import StudyFolder, budget_label
from fewmask.reporting.read import CELL_MEND, Budget
from fewmask.reporting.theme import LIGHT, Picture, Theme, shorten, write_picture
from fewmask.types import IGNORED

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

MOST_IMAGES = 6
SIDE = 300
"""Pixels of a picture's longer side; more would only make the page heavy."""
CELL, GAP, SCORE = 1.28, 0.09, 0.23
"""Inches: the side of a picture, the space between two, the line under a prediction."""
FOUND, MISSED, WRONG, UNSCORED, GROUND = "#f6f1e4", "#2f8fdd", "#e0641a", "#868c96", "#20252d"


@dataclass(frozen=True)
class Column:
    """A heading and the folder of a finished cell; None where it is pending."""

    heading: str
    cell: Path | None


@dataclass(frozen=True)
class Panel:
    """One figure: rows are test images (stems), columns are cells; `says` names what is shown."""

    name: str
    says: str
    images: tuple[str, ...]
    columns: tuple[Column, ...]


def arms_panel(study: StudyFolder) -> Panel | None:
    """Every arm at the largest budget of which a cell is done, in the repeat that has the most."""
    images = shown_images(study)
    for budget in reversed(study.budgets):
        repeat = _fullest_repeat(study, [(arm, budget) for arm in study.arms])
        if repeat is None or not images:
            continue
        columns = [Column(arm, study.cells.get((arm, budget, repeat))) for arm in study.arms]
        says = f"every arm at {_named(study, budget)}, repeat {repeat}"
        return Panel("panels_arms", says, images, tuple(columns))
    return None


def budgets_panel(study: StudyFolder) -> Panel | None:
    """The best pre-trained arm by mean IoU, at its budgets from the most masks to the fewest."""
    images, arm = shown_images(study), best_arm(study)
    if arm is None or not images:
        return None
    repeat = _fullest_repeat(study, [(arm, budget) for budget in study.budgets])
    if repeat is None:
        return None
    columns = [
        Column(_named(study, budget), study.cells.get((arm, budget, repeat)))
        for budget in reversed(study.budgets)
    ]
    return Panel("panels_budgets", f"{arm}, repeat {repeat}", images, tuple(columns))


def best_arm(study: StudyFolder) -> str | None:
    """Of the arms with the most budgets done, that of the highest mean IoU; baseline if alone."""
    arms = [arm for arm in study.arms if arm != study.baseline] or [study.baseline]
    means = {}
    for arm in arms:
        runs = [[*study.runs(arm, budget).values()] for budget in study.budgets]
        if any(runs):
            means[arm] = (sum(map(bool, runs)), fmean(fmean(values) for values in runs if values))
    return max(means, key=lambda arm: means[arm]) if means else None


def shown_images(study: StudyFolder, chosen: Sequence[str] | None = None) -> tuple[str, ...]:
    """Those of the chosen stems (else the plan's) whose picture and mask can be opened."""
    planned = study.plan.get("panels", {}).get("images", [])
    stems = [str(stem) for stem in (planned if chosen is None else chosen)]
    plain = [stem for stem in stems if Path(stem).name == stem]  # no way out of the folder
    good = [s for s in plain if _picture(study, s) is not None and _truth(study, s) is not None]
    return tuple(good[:MOST_IMAGES])


def write_panel(study: StudyFolder, panel: Panel) -> Picture:
    """Write `figures/NAME.png`."""
    return write_picture(study, panel.name, lambda theme: draw_panel(study, panel, theme))


def draw_panel(study: StudyFolder, panel: Panel, theme: Theme = LIGHT) -> Figure:
    """Columns: image, truth, predictions with the IoU of that image. Laid out by hand, in inches,
    so that nothing can overlap whatever the names."""
    from matplotlib.figure import Figure

    headings = [wrap("image"), wrap("truth"), *(wrap(column.heading) for column in panel.columns)]
    top = 0.17 * max(text.count("\n") + 1 for text in headings) + 0.12
    width = len(headings) * (CELL + GAP) + GAP
    legend = _flow(legend_entries(study), width)
    bottom = 0.12 + 0.24 * (1 + max(line for _, line, *_ in legend))
    heights = [_height(study, stem) for stem in panel.images]
    height = top + sum(heights) + (SCORE + GAP) * len(heights) + bottom
    figure = Figure((width, height), facecolor=theme.paper)
    for place, text in enumerate(headings):
        middle = (GAP + place * (CELL + GAP) + CELL / 2) / width
        figure.text(middle, 1 - (top - 0.09) / height, text, ha="center", va="baseline",
                    fontsize=9.5, color=theme.ink, linespacing=1.1)  # fmt: skip
    # One for all cells: to make an axes takes longer than to show a picture.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
    axes.set_axis_off()
    y = height - top
    for stem, tall in zip(panel.images, heights, strict=True):
        y -= tall
        _draw_row(axes, study, panel, stem, (y, tall), theme)
        y -= SCORE + GAP
    for left, line, colour, text in legend:
        _legend_entry(figure, (left, bottom - 0.22 - 0.24 * line), colour, text, theme)
    return figure


def _draw_row(
    axes: Axes, study: StudyFolder, panel: Panel, stem: str, band: tuple[float, float],
    theme: Theme,
) -> None:  # fmt: skip
    """`band`: the row's lower edge and height, in inches, which are what the axes counts in."""
    picture, truth = _picture(study, stem), _truth(study, stem)
    if picture is None or truth is None:
        return
    cells: list[tuple[Pixels | None, str]] = [
        (picture, ""),
        (paint(study, truth, truth), ""),
        *(_prediction(study, column, stem, truth) for column in panel.columns),
    ]
    for place, (pixels, score) in enumerate(cells):
        middle = GAP + place * (CELL + GAP) + CELL / 2
        if pixels is None:
            axes.text(middle, band[0] + band[1] / 2, score, ha="center", va="center",
                      fontsize=9.5, color=theme.quiet, style="italic")  # fmt: skip
            continue
        scale = min(CELL / pixels.shape[1], band[1] / pixels.shape[0])
        wide, tall = scale * pixels.shape[1] / 2, scale * pixels.shape[0] / 2
        center = band[0] + band[1] / 2
        extent = (middle - wide, middle + wide, center - tall, center + tall)
        axes.imshow(pixels, aspect="auto", extent=extent, interpolation="antialiased")
        axes.text(middle, band[0] - 0.06, score, ha="center", va="top",
                  fontsize=9.5, color=theme.ink)  # fmt: skip


def _prediction(
    study: StudyFolder, column: Column, stem: str, truth: Pixels
) -> tuple[Pixels | None, str]:
    if column.cell is None:
        return None, "pending"
    mask = _open(column.cell / "masks" / f"{stem}.png", "L")
    if mask is None:
        return None, "no mask"
    if mask.shape != truth.shape:
        return None, "other size"
    iou = image_scores(column.cell).get(stem)
    said = f"{study.iou_name} " + ("undefined" if iou is None else f"{iou:.3f}")
    return paint(study, mask, truth), said


def image_scores(cell: Path) -> dict[str, float]:
    """IoU of each test image that defines one, by stem, from `per_image.csv`."""
    file = cell / "per_image.csv"
    if not file.is_file():
        return {}
    with reading(file, CELL_MEND), file.open(encoding="utf-8-sig", newline="") as lines:
        scores = {row["name"]: read_score(row.get("iou")) for row in csv.DictReader(lines)}
    return {name: score for name, score in scores.items() if not math.isnan(score)}


def paint(study: StudyFolder, mask: Pixels, truth: Pixels) -> Pixels:
    """Class ids [H,W] -> RGB [H,W,3]. Two classes are painted by right, missed and wrong."""
    import numpy as np

    colours = np.full((256, 3), _rgb(GROUND), np.uint8)
    for label, colour in enumerate(class_colours(study)):
        colours[label] = _rgb(colour)
    if len(study.classes) <= 2:
        colours[1] = _rgb(FOUND)
    painted = colours[mask]
    if len(study.classes) <= 2:
        painted[(mask == 1) & (truth == 0)] = _rgb(WRONG)
        painted[(mask == 0) & (truth == 1)] = _rgb(MISSED)
    painted[truth == IGNORED] = _rgb(UNSCORED)
    return np.asarray(painted, np.uint8)


def class_colours(study: StudyFolder) -> list[str]:
    """The classes' colours; black, the background, in a softer one that a dark page still shows."""
    return [GROUND if colour == "#000000" else colour for colour in study.colours]


def legend_entries(study: StudyFolder) -> list[tuple[str, str]]:
    """(colour, meaning) of what `paint` uses."""
    if len(study.classes) > 2:
        named = zip(class_colours(study), study.classes, strict=True)
        return [*((colour, shorten(n, 20)) for colour, n in named), (UNSCORED, "not scored")]
    name = shorten(study.classes[-1], 14) if study.classes else "foreground"
    return [(FOUND, name), (MISSED, f"{name}, missed"), (WRONG, f"wrongly {name}"),
            (UNSCORED, "not scored")]  # fmt: skip


def _flow(entries: list[tuple[str, str]], width: float) -> list[tuple[float, int, str, str]]:
    """Legend entries in lines, as words in a paragraph: (left in inches, line, colour, text)."""
    left, line, placed = GAP, 0, []
    for colour, text in entries:
        needed = 0.5 + 0.085 * len(text)
        if left > GAP and left + needed > width:
            left, line = GAP, line + 1
        placed.append((left, line, colour, text))
        left += needed
    return placed


def _legend_entry(
    figure: Figure, corner: tuple[float, float], colour: str, text: str, theme: Theme
) -> None:
    from matplotlib.patches import Rectangle

    wide, tall = figure.get_size_inches()
    left, low = corner
    box = Rectangle(
        (left / wide, low / tall), 0.15 / wide, 0.15 / tall, facecolor=colour,
        edgecolor=theme.quiet, linewidth=0.6, transform=figure.transFigure,
    )  # fmt: skip
    figure.add_artist(box)
    figure.text((left + 0.22) / wide, (low + 0.07) / tall, text, va="center", fontsize=9.5,
                color=theme.ink)  # fmt: skip


def wrap(name: str, most: int = 16) -> str:
    """Break a name into lines after a hyphen or a space, or before a plus."""
    lines = [""]
    for part in re.findall(r"\+?[^-+ ]*[- ]?", shorten(name, 48)):
        if lines[-1] and len(lines[-1] + part) > most:
            lines.append("")
        lines[-1] += part
    pieces = [line[i : i + most] for line in lines for i in range(0, len(line), most)]
    return "\n".join(piece.strip() for piece in pieces)


def _fullest_repeat(study: StudyFolder, wanted: Iterable[tuple[str, Budget]]) -> int | None:
    """The repeat that most of the wanted cells have finished; the first of equals."""
    wanted = set(wanted)
    repeats = [repeat for arm, budget, repeat in study.cells if (arm, budget) in wanted]
    return max(sorted(set(repeats)), key=repeats.count) if repeats else None


def _named(study: StudyFolder, budget: Budget) -> str:
    masks = f"{study.masks(budget)} masks"
    return masks if isinstance(budget, int) else f"{budget_label(budget)} ({masks})"


def _height(study: StudyFolder, stem: str) -> float:
    picture = _picture(study, stem)
    ratio = 1.0 if picture is None else picture.shape[0] / picture.shape[1]
    return CELL * min(max(ratio, 0.45), 1.35)


def _picture(study: StudyFolder, stem: str) -> Pixels | None:
    return _open(study.path / "panels" / "images" / f"{stem}.jpg", "RGB")


def _truth(study: StudyFolder, stem: str) -> Pixels | None:
    return _open(study.path / "panels" / "masks" / f"{stem}.png", "L")


def _open(file: Path, mode: str) -> Pixels | None:
    """Pixels of at most SIDE, masks without mixing their classes; None if it can't be read."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(file) as image:
            # A palette's indices are the class ids: converting would turn them into greys.
            whole = image.convert(mode) if mode == "RGB" or image.mode not in ("L", "P") else image
            scale = min(1.0, SIDE / max(whole.size))
            size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
            how = Image.Resampling.LANCZOS if mode == "RGB" else Image.Resampling.NEAREST
            return np.asarray(whole.resize(size, how), np.uint8)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
