"""The looks that all figures of a study share, and how a figure becomes a file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fewmask.files import write_bytes_atomic
from fewmask.reporting.folder import StudyFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.6
"""Inches. At a phone's 350 px that is 76 px an inch: a point of type is more than a pixel."""
DPI = 240
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
    """A figure's RGB pixels, in both schemes; `width` is its natural width in CSS pixels."""

    name: str
    light: Image.Image
    dark: Image.Image
    width: int


def write_picture(study: StudyFolder, name: str, draw: Callable[[Theme], Figure]) -> Picture:
    """Write `figures/NAME.png` (light) and return it with its dark twin, which the page needs."""
    figure = draw(LIGHT)
    light = rendered(figure)
    buffer = BytesIO()
    light.save(buffer, "PNG", dpi=(DPI, DPI))
    write_bytes_atomic(study.path / "figures" / f"{name}.png", buffer.getvalue())
    return Picture(name, light, rendered(draw(DARK)), round(figure.get_figwidth() * 100))


def rendered(figure: Figure) -> Image.Image:
    """The figure's pixels, the same for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():  # a class name in a script that the font lacks: boxes
        warnings.filterwarnings("ignore", message="Glyph")
        canvas.draw()  # type: ignore[no-untyped-call]
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]


def arm_style(study: StudyFolder, arm: str, theme: Theme) -> tuple[str, str]:
    """Colour and marker; the same for an arm in every figure of a study."""
    if arm == study.baseline:
        return theme.baseline, MARKERS[0]
    place = [name for name in study.arms if name != study.baseline].index(arm)
    return theme.arms[place % len(theme.arms)], MARKERS[(place + 1) % len(MARKERS)]


def dress(axes: Axes, theme: Theme) -> None:
    """Quiet axes: horizontal grid, no box."""
    axes.set_facecolor(theme.paper)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.quiet, labelcolor=theme.ink, labelsize=10, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.quiet)


def signed(difference: float, digits: int = 1) -> str:
    """A difference of scores in points, with a true minus: 0.042 -> '+4.2'."""
    text = f"{100 * difference:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if float(text[1:]) == 0 else text


def upper_first(text: str) -> str:
    """For the start of a label; the rest keeps its capitals.

    >>> upper_first("mean IoU")
    'Mean IoU'
    """
    return text[:1].upper() + text[1:]


def shorten(name: str, most: int = 40) -> str:
    """A name that fits a figure; `$` would start a formula."""
    name = " ".join(name.split()).replace("$", r"\$")
    return name if len(name) <= most else f"{name[: most - 1]}…"
