"""curves.png: how a training run went, from the rows of its metrics.jsonl."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewmask.files import write_bytes_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIRST = ("accuracy", "error", "probe_iou", "features_spread", "effective_rank", "spread")
"""Signals that are drawn and said before the others."""
ASIDE = {"step", "epoch", "lr", "images_per_second", "waiting", "loss", "val_loss", "val_iou"}


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Loss (training and validation), then validation IoU, then every other signal, by step.

    A measure and what it is to be compared with (accuracy and chance, error and the constant
    answer's) share a panel. What was looked at now and then only is drawn with its points.
    """
    from matplotlib.figure import Figure

    drawn = panels(rows)
    figure = Figure(figsize=(7, 2.4 * len(drawn)), layout="constrained")
    axes = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, drawn, strict=True):
        for name in panel:
            _draw(axis, rows, name, reference=reference_of(name, panel) is not None)
        axis.set_ylabel(panel[0].removeprefix("val_").replace("_", " "))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if len(axis.lines) > 1:
            axis.legend(frameon=False)
    axes[0].set_title(title, fontsize=10)
    axes[-1].set_xlabel("step")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """A PNG of a figure, whole or not at all; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    write_bytes_atomic(path, picture.getvalue())


def panels(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The names in each panel, from the top; those that never have a value have none."""
    names = sorted({name for row in rows for name, value in row.items() if value is not None})
    found = {"loss": ["loss", "val_loss"]}
    if "val_iou" in names:
        found["val_iou"] = ["val_iou"]
    signals = [name for name in names if name not in ASIDE]
    signals.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    compared = {name: of for name in signals if (of := _compared_with(name, names))}
    for name in signals:
        # The only part of the loss, which is drawn already.
        is_loss = all(row.get(name) == row.get("loss") for row in rows)
        if name not in compared and not is_loss:
            found[name] = [name]
    for name, of in compared.items():
        found.setdefault(of, [of]).append(name)
    return list(found.values())


def in_words(row: Mapping[str, Any]) -> str:
    """The first signals of a row of the log, each with what no skill would get: `accuracy 0.39
    (chance 0.01), effective rank 42`; empty where there are none."""
    known = {name: value for name, value in row.items() if isinstance(value, int | float)}
    said = []
    for name in FIRST:
        if name in known and not (name == "spread" and "features_spread" in known):
            beside = [other for other in known if reference_of(other, known) == name]
            compared = "".join(f" ({_called(o, name)} {known[o]:.3g})" for o in beside[:1])
            said.append(f"{_called(name)} {known[name]:.3g}{compared}")
    return ", ".join(said)


def _called(name: str, measure: str = "") -> str:
    """A signal's name in words; of a reference without the measure's own."""
    return name.removesuffix(f"_{measure}").removeprefix(f"{measure}_").replace("_", " ")


def _compared_with(name: str, names: Collection[str]) -> str | None:
    """The measure in whose panel a signal stands: chance in accuracy's, constant_error in error's,
    val_accuracy and part_accuracy in accuracy's, probe_iou_start in probe_iou's."""
    of = reference_of(name, names)
    if of is None and name.endswith("_accuracy") and "accuracy" in names:
        return "accuracy"
    return of


def reference_of(name: str, names: Collection[str]) -> str | None:
    """The measure that a signal is what no skill would get of; None where it is no reference."""
    if name == "chance":
        of = "accuracy"
    elif name == "constant_answer":
        of = "loss"
    elif name.startswith("constant_"):
        of = name.removeprefix("constant_")
    else:
        of = name.removesuffix("_chance").removesuffix("_start")
        of = "" if of == name else of
    return of if of in names else None


def _draw(axis: Axes, rows: Sequence[Mapping[str, Any]], name: str, *, reference: bool) -> None:
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if not points:
        return
    steps, values = zip(*points, strict=True)
    style: dict[str, Any] = {"color": "0.4", "linestyle": "--"} if reference else {}
    if not reference and len(points) < max(2, len(rows)):  # looked at now and then
        style["marker"] = "o"
    axis.plot(steps, values, label=name.replace("_", " "), markersize=3, linewidth=1.2, **style)
