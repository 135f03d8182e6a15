"""curves.png: how a training run went, from the rows of its metrics.jsonl."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewmask.files import write_bytes_atomic

ASIDE = {"step", "epoch", "lr", "images_per_second", "waiting", "loss", "val_loss", "val_iou"}


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Loss (training and validation), then validation IoU, then every other signal, by step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted({name for row in rows for name in row})
    signals = [n for n in names if n not in ASIDE and not n.startswith("val_")]
    panels = [["loss", "val_loss"], *([["val_iou"]] if "val_iou" in names else [])]
    parts = {n for n in signals if all(r.get(n) == r.get("loss") for r in rows)}
    panels += [[name] for name in signals if name not in parts]
    figure = Figure(figsize=(7, 2.4 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        for name in panel:
            points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                marker = "o" if name.startswith("val_") else None
                axis.plot(steps, values, label=name, marker=marker, markersize=3, linewidth=1.2)
        axis.set_ylabel(panel[0].removeprefix("val_").replace("_", " "))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if len(panel) > 1:
            axis.legend(frameon=False)
    axes[0].set_title(title, fontsize=10)
    axes[-1].set_xlabel("step")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_bytes_atomic(path, picture.getvalue())
