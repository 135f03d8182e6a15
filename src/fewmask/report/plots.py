"""The charts of a study: IoU against budget, and the paired differences to the baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from statistics import fmean
from typing import TYPE_CHECKING

from fewmask.files import write_bytes_atomic
from fewmask.evidence.compare import Difference, paired_differences
from fewmask.report.folder import Budget, StudyFolder, budget_label

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.0
"""Inches. At a phone's 360 px that is 72 px an inch, so a point of type is a pixel."""
DPI = 220
GROUP_GAP = 1.3
"""Lines between the last row of one arm and the heading of the next."""
MARKERS = "osD^vPXh"


@dataclass(frozen=True)
class Theme:
    """Colours of one scheme; the arms' are Okabe and Ito's, safe for colour-blind readers."""

    paper: str
    ink: str
    quiet: str
    grid: str
    baseline: str
    arms: tuple[str, ...]


LIGHT = Theme(
    paper="#ffffff",
    ink="#1c2430",
    quiet="#5b6675",
    grid="#e4e8ee",
    baseline="#4a4f57",
    arms=("#0072b2", "#d55e00", "#009e73", "#b5568f", "#b07d00", "#3d9bd6"),
)
DARK = Theme(
    paper="#171c24",
    ink="#e8ecf2",
    quiet="#9aa6b5",
    grid="#2b323d",
    baseline="#c3c9d2",
    arms=("#56b4e9", "#ff8a4c", "#2fc79a", "#e08fc0", "#e6b23a", "#9ad0ff"),
)


@dataclass(frozen=True)
class Picture:
    """A figure as PNG bytes, in both schemes; `width` is its natural width in CSS pixels."""

    name: str
    light: bytes
    dark: bytes
    width: int


def write_picture(study: StudyFolder, name: str, draw: Callable[[Theme], Figure]) -> Picture:
    """Write `figures/NAME.png` (light) and return it with its dark twin, which the page needs."""
    figure = draw(LIGHT)
    light = png(figure)
    write_bytes_atomic(study.path / "figures" / f"{name}.png", light)
    return Picture(name, light, png(draw(DARK)), round(figure.get_figwidth() * 100))


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def write_curve(study: StudyFolder) -> Picture | None:
    """`figures/iou_vs_budget.png`; None while no cell is done."""
    if not any(study.runs(arm, budget) for arm in study.arms for budget in study.budgets):
        return None
    return write_picture(study, "iou_vs_budget", lambda theme: draw_curve(study, theme))


def write_differences(study: StudyFolder) -> Picture | None:
    """`figures/differences.png`; None while no pair of an arm and the baseline is done."""
    found = paired_differences([*study.done], study.baseline)
    if not found:
        return None
    return write_picture(study, "differences", lambda theme: draw_differences(study, found, theme))


def arm_style(study: StudyFolder, arm: str, theme: Theme) -> tuple[str, str]:
    """Colour and marker; the same for an arm in every figure of a study."""
    if arm == study.baseline:
        return theme.baseline, MARKERS[0]
    place = [name for name in study.arms if name != study.baseline].index(arm)
    return theme.arms[place % len(theme.arms)], MARKERS[(place + 1) % len(MARKERS)]


def draw_curve(study: StudyFolder, theme: Theme) -> Figure:
    """Every repeat a faint point, the mean a line; IoU (0 to 1) against labelled masks."""
    from matplotlib.figure import Figure

    arms = [arm for arm in study.arms if any(study.runs(arm, b) for b in study.budgets)]
    columns, lines = legend_shape(arms)
    figure = Figure((WIDTH, 3.4 + 0.21 * lines), layout="constrained", facecolor=theme.paper)
    axes = figure.add_subplot()
    for place, arm in enumerate(arms):
        _draw_arm(axes, study, arm, theme, shift=3.5 * (place - (len(arms) - 1) / 2))
    dress(axes, theme)
    values = [v for arm in arms for b in study.budgets for v in study.runs(arm, b).values()]
    room = 0.07 * (max(values) - min(values)) or 0.02  # marks are moved: autoscale can't see them
    axes.set_ylim(min(values) - room, max(values) + room)
    axes.set_ylabel(f"{study.iou_name} on the test set", color=theme.ink, fontsize=11)
    _budget_axis(axes, study, theme)
    legend = figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=10,
        labelcolor=theme.ink,
        handlelength=1.6,
        columnspacing=1.4,
    )
    legend.set_in_layout(True)
    return figure


def _draw_arm(axes: Axes, study: StudyFolder, arm: str, theme: Theme, shift: float) -> None:
    """`shift` (points) keeps the arms of one budget from hiding each other."""
    from matplotlib.transforms import ScaledTranslation

    colour, marker = arm_style(study, arm, theme)
    figure = axes.get_figure(root=True)
    if figure is None:
        return
    moved = axes.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
    runs = {study.masks(b): [*study.runs(arm, b).values()] for b in study.budgets}
    runs = {masks: values for masks, values in runs.items() if values}
    points = [(masks, value) for masks, values in runs.items() for value in values]
    axes.plot(
        *zip(*points, strict=True), linestyle="", marker=marker, markersize=4.5, color=colour,
        alpha=0.45, markeredgewidth=0, transform=moved,
    )  # fmt: skip
    axes.plot(
        [*runs], [fmean(values) for values in runs.values()], color=colour, linewidth=1.8,
        linestyle="--" if arm == study.baseline else "-", marker=marker, markersize=7,
        markeredgecolor=theme.paper, markeredgewidth=1.2, transform=moved,
        label=shorten(arm),
    )  # fmt: skip


def _budget_axis(axes: Axes, study: StudyFolder, theme: Theme) -> None:
    masks = [study.masks(budget) for budget in study.budgets]
    total = int(study.plan.get("n_pairs") or 0)
    wide = min(masks) > 0 and max(masks) > 6 * min(masks)
    place = math.log if wide else float
    if wide:
        axes.set_xscale("log")
        axes.set_xlim(min(masks) / 1.3, max(masks) * 1.3)
    else:
        room = 0.1 * (max(masks) - min(masks)) or 0.5 * max(masks) or 1
        axes.set_xlim(min(masks) - room, max(masks) + room)
    reach = place(max(masks)) - place(min(masks)) or 1
    kept = [masks[-1]]
    for count in reversed(masks[:-1]):  # from the right: the largest budget keeps its label
        if (place(kept[-1]) - place(count)) / reach > 0.1:
            kept.append(count)
    named = {study.masks(b): budget_label(b) for b in study.budgets if isinstance(b, float)}
    shares = [named.get(n, f"{100 * n / total:.2g} %" if total else "") for n in kept]
    axes.set_xticks(kept, [f"{n}\n{share}".strip() for n, share in zip(kept, shares, strict=True)])
    axes.set_xticks([], minor=True)
    of_all = f", and their share of all {total} pairs" if total else ""
    axes.set_xlabel(f"Labelled masks{of_all}", color=theme.ink, fontsize=11)


def draw_differences(study: StudyFolder, found: list[Difference], theme: Theme) -> Figure:
    """A dot a repeat, a bar at the mean, a line for its interval; IoU points (100ths) from zero."""
    from matplotlib.figure import Figure

    groups = {arm: [d for d in found if d.arm == arm] for arm in study.arms}
    groups = {arm: sorted(ds, key=lambda d: study.masks(d.budget)) for arm, ds in groups.items()}
    groups = {arm: ds for arm, ds in groups.items() if ds}
    height = sum(len(ds) + GROUP_GAP for ds in groups.values())
    figure = Figure((WIDTH, 0.85 + 0.29 * height), layout="constrained", facecolor=theme.paper)
    axes = figure.add_subplot()
    ticks: dict[float, tuple[Budget, float]] = {}
    line = 0.0
    for arm, differences in groups.items():
        _heading(axes, line + 0.1, arm, arm_style(study, arm, theme)[0], theme)
        for place, difference in enumerate(differences, start=1):
            _draw_difference(axes, line + place, difference, arm_style(study, arm, theme), theme)
            ticks[line + place] = (difference.budget, difference.mean)
        line += len(differences) + GROUP_GAP
    axes.axvline(0, color=theme.quiet, linewidth=1.2, zorder=1)
    dress(axes, theme)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=theme.grid, linewidth=0.8)
    axes.set_ylim(line - 0.55, -0.6)
    axes.margins(x=0.06)
    axes.set_yticks([*ticks], [budget_label(budget) for budget, _ in ticks.values()])
    right = axes.secondary_yaxis("right")
    right.set_yticks([*ticks], [signed(mean) for _, mean in ticks.values()])
    right.tick_params(length=0, labelsize=10, labelcolor=theme.ink)
    right.spines["right"].set_visible(False)
    axes.set_xlabel(f"{study.iou_name} points against {shorten(study.baseline)}", color=theme.ink)
    axes.xaxis.label.set_fontsize(11)
    return figure


def _heading(axes: Axes, line: float, arm: str, colour: str, theme: Theme) -> None:
    axes.text(
        0.0, line, shorten(arm), transform=axes.get_yaxis_transform(), color=colour,
        fontsize=10.5, fontweight="bold", va="center", ha="left", zorder=5, in_layout=False,
        bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _draw_difference(
    axes: Axes, line: float, difference: Difference, style: tuple[str, str], theme: Theme
) -> None:
    colour, marker = style
    points = [100 * value for value in difference.differences]
    if difference.interval is not None:
        low, high = (100 * end for end in difference.interval)
        axes.plot([low, high], [line, line], color=colour, linewidth=1.4, alpha=0.8, zorder=2)
    axes.plot(
        points, [line] * len(points), linestyle="", marker=marker, markersize=5.5, color=colour,
        alpha=0.5, markeredgewidth=0, zorder=3,
    )  # fmt: skip
    axes.plot(
        [100 * difference.mean], [line], linestyle="", marker="|", markersize=13,
        markeredgewidth=2.6, color=theme.ink, zorder=4,
    )  # fmt: skip


def dress(axes: Axes, theme: Theme) -> None:
    """Quiet axes: horizontal grid, no box."""
    axes.set_facecolor(theme.paper)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.quiet, labelcolor=theme.ink, labelsize=10, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.quiet)


def legend_shape(names: list[str]) -> tuple[int, int]:
    """Columns and lines that fit the width, at 10 pt: about 5.6 pt a letter and 40 a mark."""
    widest = max(len(shorten(name)) for name in names)
    columns = min(len(names), max(1, int(350 / (40 + 5.6 * widest))))
    return columns, math.ceil(len(names) / columns)


def signed(difference: float, digits: int = 1) -> str:
    """A difference of scores in points, with a true minus: 0.042 -> '+4.2'."""
    text = f"{100 * difference:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if float(text[1:]) == 0 else text


def shorten(name: str, most: int = 40) -> str:
    """A name that fits a figure; `$` would start a formula."""
    name = " ".join(name.split()).replace("$", r"\$")
    return name if len(name) <= most else f"{name[: most - 1]}…"
