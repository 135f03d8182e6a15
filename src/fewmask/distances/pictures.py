"""similarity.png, map.png and nearest.png."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fewmask.curves import save_figure
from fewmask.data.cache import ImageCache
from fewmask.distances.kernels import Features
from fewmask.distances.neighbours import nearest
from fewmask.distances.outcome import SHOWN, TITLES, distance_of, ordered
from fewmask.types import SimilarityResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOURCE, TARGET, FLOOR = "#0072b2", "#9aa6b5", "#d55e00"
"""Okabe and Ito's blue and vermilion, safe for colour-blind readers, and a grey."""
COLUMNS = 4
"""Panels in a row of the map, at most."""
DOTS = 400
"""Pictures of a set that the map shows."""
LOOKED_AT = 6
"""Pictures of the target in nearest.png."""
WIDEST = 10
"""Sources in nearest.png: the nearest of them."""


@dataclass(frozen=True)
class Pictured:
    """The features of every set by one extractor; `target` and `floor` name the target's halves."""

    extractor: str
    features: Mapping[str, Features]
    target: str
    floor: str

    @property
    def sources(self) -> list[str]:
        return [name for name in self.features if name not in (self.target, self.floor)]


def draw_distances(path: Path, result: SimilarityResult, floor: str) -> None:
    """Every source's distances with their intervals, the nearest on top; a row an extractor.

    The band is the interval of the target's own other half.
    """
    from matplotlib.figure import Figure

    n = len(result.sources) + 1
    longest = max(len(name) for name in (floor, *result.sources))
    names_width = 0.075 * min(longest, 40) + 0.3
    height = 0.95 + 0.26 * n
    figure = Figure(
        figsize=(names_width + 2.5 * len(SHOWN), height * len(result.extractors)),
        layout="constrained",
    )
    grid = figure.subplots(len(result.extractors), len(SHOWN), squeeze=False, sharey="row")
    for extractor, row in zip(result.extractors, grid, strict=True):
        names = ordered(result, extractor)
        for measure, axes in zip(SHOWN, row, strict=True):
            _draw_measure(axes, result, extractor, names, measure, floor)
        row[0].set_yticks(range(n), [_short(name, 40) for name in names], fontsize=8)
        row[0].set_ylim(n - 0.5, -0.5)
        weak = " (no weights)" if extractor in result.weak else ""
        row[0].set_title(f"extractor {extractor}{weak}", fontsize=9, loc="left", fontweight="bold")
    save_figure(figure, path, dpi=130)


def _draw_measure(
    axes: Axes,
    result: SimilarityResult,
    extractor: str,
    names: Sequence[str],
    measure: str,
    floor: str,
) -> None:
    own = distance_of(result, extractor, floor, measure)
    axes.axvspan(own.low, own.high, color=FLOOR, alpha=0.15, linewidth=0)
    for place, name in enumerate(names):
        d = distance_of(result, extractor, name, measure)
        colour = FLOOR if name == floor else SOURCE
        axes.plot([d.low, d.high], [place, place], color=colour, linewidth=1.6)
        axes.plot(d.value, place, "D" if name == floor else "o", color=colour, markersize=5)
    axes.set_xlabel(TITLES[measure], fontsize=8)
    axes.tick_params(labelsize=8, length=0)
    axes.grid(axis="x", color="#e4e8ee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_map(path: Path, pictured: Sequence[Pictured], result: SimilarityResult) -> None:
    """Where the sets lie: a panel a source over the target's pictures, two components of a PCA.

    The PCA is fitted on all sets of an extractor together, the target's two halves included.
    """
    from matplotlib.figure import Figure

    rows = math.ceil(len(result.sources) / COLUMNS)
    columns = math.ceil(len(result.sources) / rows)
    height = 0.75 + 2.15 * rows
    figure = Figure(figsize=(max(2.3 * columns, 4.2), height * len(pictured)), layout="constrained")
    blocks: Any = figure.subfigures(len(pictured), 1, squeeze=False)[:, 0]
    for block, one in zip(blocks, pictured, strict=True):
        names = [name for name in ordered(result, one.extractor) if name != one.floor]
        places, shares = components(one)
        grid = block.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.ravel()[len(names) :]:
            axes.set_visible(False)
        for name, axes in zip(names, grid.ravel(), strict=False):
            _draw_cloud(axes, places, one, name)
        _within_sight(grid[0, 0], places)
        block.suptitle(
            f"extractor {one.extractor}: first two components, {100 * shares[0]:.0f} and "
            f"{100 * shares[1]:.0f} % of the variance\ngrey {_short(one.target, 30)}, blue the "
            "source, nearest (by KID) first",
            fontsize=8, x=0.01, ha="left",
        )  # fmt: skip
    save_figure(figure, path, dpi=130)


def _draw_cloud(axes: Axes, places: Mapping[str, Features], one: Pictured, name: str) -> None:
    target = np.concatenate([places[one.target], places[one.floor]])[:DOTS]
    for points, colour in ((target, TARGET), (places[name][:DOTS], SOURCE)):
        axes.scatter(points[:, 0], points[:, 1], s=7, color=colour, alpha=0.5, linewidths=0)
    axes.set_title(_lines(name, 32), fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right", "left", "bottom"]].set_color("#c3c9d2")


def _within_sight(axes: Axes, places: Mapping[str, Features]) -> None:
    """Limits that leave out the farthest few, for all panels of a block."""
    points = np.concatenate(list(places.values()))
    low, high = np.quantile(points, 0.005, axis=0), np.quantile(points, 0.995, axis=0)
    room = 0.06 * (high - low) + 1e-9
    axes.set_xlim(low[0] - room[0], high[0] + room[0])
    axes.set_ylim(low[1] - room[1], high[1] + room[1])


def components(one: Pictured) -> tuple[dict[str, Features], NDArray[np.float64]]:
    """Every set's places [n,2] on the first two principal components of all, and their shares."""
    points = np.concatenate(list(one.features.values()))
    middle = points.mean(0)
    values, vectors = np.linalg.eigh(np.cov(points - middle, rowvar=False))
    axes = vectors[:, :-3:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), [0, 1]])  # the same picture every time
    places = {name: (features - middle) @ axes for name, features in one.features.items()}
    return places, values[:-3:-1] / max(values.sum(), 1e-12)


def draw_nearest(
    path: Path,
    one: Pictured,
    cache: Callable[[str], ImageCache],
    rows: Mapping[str, Sequence[int]],
) -> None:
    """Some pictures of the target, each beside the nearest of its other half and each source."""
    from matplotlib.figure import Figure

    target = one.features[one.target][:LOOKED_AT]
    found = {n: nearest(target, one.features[n], 1) for n in (one.floor, *one.sources)}
    close = sorted(one.sources, key=lambda name: float(found[name].distances.mean()))[:WIDEST]
    columns = [one.target, one.floor, *close]
    figure = Figure(figsize=(1.12 * len(columns), 0.75 + 1.08 * len(target)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)  # type: ignore[union-attr, call-arg]
    grid = figure.subplots(len(target), len(columns), squeeze=False)
    for (i, j), axes in np.ndenumerate(grid):
        name = columns[j]
        row = rows[name][i if name == one.target else found[name].rows[i, 0]]
        own = cache(name)
        height, width = own.valid[row]
        axes.imshow(own.images[row, :height, :width])
        axes.axis("off")
        if i == 0:
            colour = {one.target: "black", one.floor: FLOOR}.get(name, SOURCE)
            axes.set_title(_lines(name, 17), fontsize=6.5, color=colour)
    figure.suptitle(
        f"Left: the target. Beside it the picture of each set that {one.extractor} finds nearest",
        fontsize=8,
    )
    save_figure(figure, path, dpi=130)


def _lines(name: str, width: int) -> str:
    """A name broken behind its dashes and pluses; of a long one the first four lines."""
    found = [""]
    for piece in re.findall(r"[^-+ ]*[-+ ]?", name):
        if len(found[-1] + piece) > width and found[-1]:
            found.append("")
        found[-1] += piece
    return "\n".join(found[:4]) + "…" * (len(found) > 4)


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
