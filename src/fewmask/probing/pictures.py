"""probe.csv, probe.png, confusion.csv and confusion.png."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fewmask.curves import save_figure
from fewmask.files import csv_text, write_text_atomic
from fewmask.types import ProbeScore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"run": "#0072b2", "random": "#6b7480"}
NUMBERED = 12
"""Up to so many classes a confusion matrix shows its numbers."""


@dataclass(frozen=True)
class Counts:
    """Counts int64 [K,K] of test images over all draws, rows truth, columns prediction."""

    encoder: str
    probe: str
    matrix: NDArray[np.int64]


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A CSV file of rows that share their columns."""
    write_text_atomic(path, csv_text(rows, list(rows[0])))


def confusion_rows(counts: Counts, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row a true class: how many there were, the share found, and what they were taken for."""
    found = []
    for k, name in enumerate(names):
        row = counts.matrix[k]
        head = {"encoder": counts.encoder, "probe": counts.probe, "class": name}
        as_counts = {f"as_{other}": int(n) for other, n in zip(names, row, strict=True)}
        found.append({**head, "n": int(row.sum()), "accuracy": row[k] / row.sum(), **as_counts})
    return found


def draw_scores(path: Path, scores: Sequence[ProbeScore], chance: float, title: str) -> None:
    """Every draw's accuracy as a dot, the mean as a bar with its interval, chance as a line."""
    from matplotlib.figure import Figure

    probes = list(dict.fromkeys(score.probe for score in scores))
    encoders = list(dict.fromkeys(score.encoder for score in scores))
    figure = Figure(figsize=(2.2 + 1.6 * len(probes), 3.6), layout="constrained")
    axes = figure.subplots()
    for score in scores:
        middle = (len(encoders) - 1) / 2
        place = probes.index(score.probe) + 0.3 * (encoders.index(score.encoder) - middle)
        _draw_score(axes, place, score, labelled=score.probe == probes[0])
    axes.axhline(chance, color="black", linestyle="--", linewidth=1, label="chance")
    axes.set_xticks(range(len(probes)), probes)
    axes.set_xlim(-0.6, len(probes) - 0.4)
    axes.set_ylabel("accuracy on the test images")
    axes.set_title(title, fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, path)


def _draw_score(axes: Axes, place: float, score: ProbeScore, *, labelled: bool) -> None:
    colour = COLOURS[score.encoder]
    places = place + np.linspace(-0.05, 0.05, len(score.values))
    axes.plot(places, score.values, "o", color=colour, alpha=0.6, markersize=5, markeredgewidth=0)
    axes.plot(
        [place - 0.1, place + 0.1], [score.mean] * 2, color=colour, linewidth=2.4,
        label=score.encoder if labelled else None,
    )  # fmt: skip
    if score.interval:
        axes.plot([place] * 2, score.interval, color=colour, linewidth=1.2)


def draw_confusion(path: Path, counts: Counts, names: Sequence[str]) -> None:
    """Shares of each true class (rows) by what it was taken for (columns)."""
    from matplotlib.figure import Figure

    shares = counts.matrix / counts.matrix.sum(axis=1, keepdims=True)
    n = len(names)
    side = float(np.clip(1.8 + 0.45 * n, 3, 14))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = float(np.clip(90 / n, 4, 9))
    axes.set_xticks(range(n), names, rotation=90, fontsize=size)
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true class")
    axes.set_title(f"{counts.probe} probe of the {counts.encoder}", fontsize=9)
    if n <= NUMBERED:
        for (i, j), share in np.ndenumerate(shares):
            ink = "white" if share > 0.5 else "black"
            axes.text(j, i, f"{share:.2f}", ha="center", va="center", color=ink, fontsize=7)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="share of the true class")
    save_figure(figure, path)
