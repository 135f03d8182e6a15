"""curves.png: which signals stand together, and that what is missing is not drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from PIL import Image

from fewmask.curves import draw_curves, in_words, panels

ROWS: list[dict[str, Any]] = [
    {
        "step": step,
        "epoch": step / 10,
        "loss": 1 / step,
        "masked": 1 / step,
        "error": 1 / step,
        "constant_error": 1.0,
        "accuracy": step / 10,
        "chance": 0.1,
        "part_accuracy": 0.2,
        "spread": 0.3,
        "lr": 1e-3,
        "waiting": 0.0,
        "images_per_second": 3.0,
    }
    for step in range(1, 9)
]
ROWS[3] |= {"effective_rank": 30.0, "probe_iou": 0.4, "probe_iou_start": 0.3, "undefined": None}
ROWS[7] |= {"effective_rank": 40.0, "probe_iou": None, "probe_iou_start": 0.3, "undefined": None}


def test_a_measure_and_its_reference_share_a_panel() -> None:
    found = panels(ROWS)
    assert found[0] == ["loss", "val_loss"]
    rest = found[1:]
    assert ["accuracy", "chance", "part_accuracy"] in rest
    assert ["error", "constant_error"] in rest, "though the error is the loss"
    assert ["probe_iou", "probe_iou_start"] in rest
    assert ["spread"] in rest
    assert ["effective_rank"] in rest
    assert len(rest) == 5, "the loss' only part and what never had a value are not drawn"


def test_references_without_their_measure_stand_alone() -> None:
    rows = [{"step": 1, "loss": 1.0, "chance": 0.5, "constant_answer": 2.0, "val_accuracy": 0.5}]
    assert panels(rows) == [["loss", "val_loss", "constant_answer"], ["chance"], ["val_accuracy"]]
    rows = [{"step": 1, "loss": 1.0, "val_loss": 1.0, "val_iou": 0.5}]
    assert panels(rows) == [["loss", "val_loss"], ["val_iou"]]


def test_what_is_looked_at_now_and_then_has_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, tuple[list[int], list[float], dict[str, Any]]] = {}
    plot = Axes.plot

    def spy(axes: Axes, steps: Any, values: Any, **style: Any) -> Any:
        drawn[style["label"]] = (list(steps), list(values), style)
        return plot(axes, steps, values, **style)

    monkeypatch.setattr(Axes, "plot", spy)
    draw_curves(ROWS, tmp_path / "curves.png", "title")
    assert drawn["effective rank"][:2] == ([4, 8], [30.0, 40.0])
    assert drawn["effective rank"][2].get("marker") == "o"
    assert drawn["probe iou"][:2] == ([4], [0.4])
    assert drawn["probe iou"][2].get("marker") == "o"
    assert "marker" not in drawn["accuracy"][2]
    assert drawn["chance"][2].get("linestyle") == "--"
    assert len(drawn["accuracy"][0]) == 8
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.height > 6 * 200


def test_signals_in_words_stand_beside_what_no_skill_gets() -> None:
    said = in_words(ROWS[-1])
    compared = "accuracy 0.8 (chance 0.1), error 0.125 (constant 1)"
    assert said == f"{compared}, effective rank 40, spread 0.3"
    assert in_words({"probe_iou": 0.51, "probe_iou_start": 0.4, "effective_rank": 42.4}) == (
        "probe iou 0.51 (start 0.4), effective rank 42.4"
    )
    assert in_words({"loss": 1.0, "nt_xent": 1.0}) == ""
