"""The charts of a study: IoU against budget, and the paired differences to the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from fewmask.evidence.curve import Curve
from fewmask.evidence.verdicts import Verdict
from fewmask.reporting.folder import StudyFolder, budget_label
from fewmask.reporting.read import Budget
from fewmask.reporting.theme import (
    WIDTH,
    Picture,
    Theme,
    arm_style,
    dress,
    shorten,
    signed,
    upper_first,
    write_picture,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUP_GAP = 1.3
"""Lines between the last row of one arm and the heading of the next."""


def write_curve(study: StudyFolder, curves: dict[str, Curve | str]) -> Picture | None:
    """`figures/iou_vs_budget.png`; None while no cell is done."""
    if not any(study.runs(arm, budget) for arm in study.arms for budget in study.budgets):
        return None
    return write_picture(study, "iou_vs_budget", lambda theme: draw_curve(study, theme, curves))


def write_differences(study: StudyFolder, found: list[Verdict]) -> Picture | None:
    """`figures/differences.png`; None while no pair of an arm and the baseline is done."""
    if not found:
        return None
    return write_picture(study, "differences", lambda theme: draw_differences(study, found, theme))


def draw_curve(
    study: StudyFolder, theme: Theme, curves: Mapping[str, Curve | str] | None = None
) -> Figure:
    """Every repeat a faint point, the mean a line; IoU (0 to 1) against labelled masks.

    Where an arm has a label curve, its 95 % band lies behind.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    arms = [arm for arm in study.arms if any(study.runs(arm, b) for b in study.budgets)]
    columns, lines = legend_shape(arms)
    figure = Figure((WIDTH, 3.4 + 0.21 * lines), layout="constrained", facecolor=theme.paper)
    axes = figure.add_subplot()
    for arm in arms:
        known = (curves or {}).get(arm)
        if isinstance(known, Curve):
            _draw_band(axes, known, arm_style(study, arm, theme)[0])
    for place, arm in enumerate(arms):
        _draw_arm(axes, study, arm, theme, shift=3.5 * (place - (len(arms) - 1) / 2))
    dress(axes, theme)
    values = [v for arm in arms for b in study.budgets for v in study.runs(arm, b).values()]
    room = 0.1 * (max(values) - min(values)) or 0.02  # marks are moved: autoscale can't see them
    axes.set_ylim(min(values) - room, max(values) + room)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_ylabel(f"{upper_first(study.iou_name)} on the test set", color=theme.ink, fontsize=11)
    _budget_axis(axes, study, theme)
    legend = figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=9.5,
        labelcolor=theme.ink,
        handlelength=1.5,
        columnspacing=1.4,
    )
    legend.set_in_layout(True)
    return figure


def _draw_band(axes: Axes, curve: Curve, colour: str) -> None:
    masks = np.geomspace(curve.masks.min(), curve.masks.max(), 60)
    low, _, high = curve.band(masks)
    axes.fill_between(masks, low, high, color=colour, alpha=0.13, linewidth=0, zorder=1)


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
    means = [fmean(values) for values in runs.values()]
    style = "--" if arm == study.baseline else "-"
    axes.plot([*runs], means, color=colour, linewidth=1.7, linestyle=style, transform=moved)
    axes.plot(
        [*runs], means, linestyle="", color=colour, marker="_", markersize=12,
        markeredgewidth=2.6, transform=moved,
    )  # fmt: skip
    axes.plot(
        *zip(*points, strict=True), linestyle="", marker=marker, markersize=5.5, color=colour,
        alpha=0.6, markeredgecolor=theme.paper, markeredgewidth=0.6, transform=moved,
    )  # fmt: skip
    axes.plot([], [], color=colour, linestyle=style, marker=marker, label=shorten(arm))


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
    shares = [named.get(n) or _share(n, total) for n in kept]
    axes.set_xticks(kept, [f"{n}\n{share}".strip() for n, share in zip(kept, shares, strict=True)])
    axes.set_xticks([], minor=True)
    of_all = f", and their share of all {total} pairs" if total else ""
    axes.set_xlabel(f"Labelled masks{of_all}", color=theme.ink, fontsize=11)


def _share(masks: int, total: int) -> str:
    """The share of all pairs, in as few digits as tell budgets apart."""
    percent = 100 * masks / total if total else 0.0
    return "" if not total else f"{percent:.{1 if percent < 1 else 2}g} %"


def draw_differences(study: StudyFolder, found: list[Verdict], theme: Theme) -> Figure:
    """A dot a repeat, a bar at the mean, a line for its interval; IoU points (100ths) from zero."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

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
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_yticks([*ticks], [budget_label(budget) for budget, _ in ticks.values()])
    right = axes.secondary_yaxis("right")
    right.set_yticks([*ticks], [signed(mean) for _, mean in ticks.values()])
    right.tick_params(length=0, labelsize=10, labelcolor=theme.ink)
    right.spines["right"].set_visible(False)
    axes.set_xlabel(
        f"{upper_first(study.iou_name)} points against {shorten(study.baseline)}", color=theme.ink
    )
    axes.xaxis.label.set_fontsize(11)
    return figure


def _heading(axes: Axes, line: float, arm: str, colour: str, theme: Theme) -> None:
    axes.text(
        0.0, line, shorten(arm), transform=axes.get_yaxis_transform(), color=colour,
        fontsize=10.5, fontweight="bold", va="center", ha="left", zorder=5, in_layout=False,
        bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _draw_difference(
    axes: Axes, line: float, difference: Verdict, style: tuple[str, str], theme: Theme
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


def legend_shape(names: list[str]) -> tuple[int, int]:
    """Columns and lines that fit the width, filled column by column, at 9.5 pt."""
    needed = [32 + 5.5 * len(shorten(name)) for name in names]
    for columns in range(min(4, len(names)), 1, -1):
        tall = math.ceil(len(names) / columns)
        widths = [max(needed[i : i + tall]) for i in range(0, len(names), tall)]
        if sum(widths) + 14 * (len(widths) - 1) < 72 * WIDTH - 10:
            return len(widths), tall
    return 1, len(names)
