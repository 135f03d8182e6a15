"""Figures: what is drawn, that no text is cut or on top of other text, and what is chosen."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fewmask.reporting import panels, plots
from fewmask.reporting.folder import StudyFolder, read_study
from fewmask.reporting.judged import verdicts
from fewmask.reporting.theme import DARK, LIGHT, arm_style, signed


def texts(figure: Figure) -> list[Any]:
    """The boxes of all words that are drawn, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    hidden = set()
    for axis in figure.findobj(Axis):  # ticks out of view exist, but are not drawn
        low, high = sorted(axis.get_view_interval())
        places = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        hidden |= {label for place, label in places if not low <= place <= high}
    for axes in figure.axes:
        if not axes.axison:
            hidden |= {*axes.xaxis.findobj(Text), *axes.yaxis.findobj(Text)}
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t not in hidden]
    boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in shown]
    return [(name, box) for name, box in boxes if name.strip()]


def check_words(figure: Figure) -> None:
    """Nothing is cut at the figure's edge, no two words overlap."""
    boxes = texts(figure)
    width, height = figure.canvas.get_width_height()
    for name, box in boxes:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, name
    for (one, first), (two, second) in combinations(boxes, 2):
        assert not first.padded(-1).overlaps(second.padded(-1)), (one, two)


@pytest.fixture
def study(make_study: Callable[..., Path], tmp_path: Path) -> StudyFolder:
    return read_study(make_study(tmp_path))


def test_curve_draws_every_repeat_and_the_means(study: StudyFolder) -> None:
    figure = plots.draw_curve(study, LIGHT)
    axes = figure.axes[0]
    drawn = [line.get_xydata() for line in axes.lines]
    points = [tuple(point) for data in drawn for point in np.asarray(data)]
    for row in study.done:
        masks = int(row["n_train"]) + int(row["n_val"])
        assert (masks, float(row["iou"])) in points
    means = [np.mean([*study.runs("imagenet", b).values()]) for b in study.budgets]
    assert any(len(data) == 3 and np.allclose(np.asarray(data)[:, 1], means) for data in drawn)
    low, high = axes.get_ylim()
    assert all(low < float(row["iou"]) < high for row in study.done)
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels[::-1] == ["139\n20 %", "346\n50 %", "554\n80 %"]


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"arms": ("scratch",), "budgets": (0.8,), "repeats": 1},
        {"budgets": (2, 4, 8, 16, 32, 64, 128, 256), "arms": ("scratch", "simclr-" * 9)},
        {"budgets": (0.1, 0.11, 0.12, 0.5), "arms": ("scratch", "imagenet")},
        {"classes": ("background", "a long class name here", "another long class name")},
    ],
)
def test_no_word_is_cut_or_covered(
    make_study: Callable[..., Path], tmp_path: Path, plan: dict[str, Any]
) -> None:
    study = read_study(make_study(tmp_path, **plan))
    check_words(plots.draw_curve(study, LIGHT))
    differences = verdicts(study)
    if differences:
        check_words(plots.draw_differences(study, differences, DARK))
    for panel in (panels.arms_panel(study), panels.budgets_panel(study)):
        assert panel is not None
        check_words(panels.draw_panel(study, panel, LIGHT))


def test_differences_are_drawn_in_points(study: StudyFolder) -> None:
    found = verdicts(study)
    axes = plots.draw_differences(study, found, LIGHT).axes[0]
    drawn = np.concatenate([np.asarray(line.get_xdata(), float) for line in axes.lines])
    for difference in found:
        for value in (*difference.differences, difference.mean, *(difference.interval or ())):
            assert np.isclose(drawn, 100 * value).any()
    assert any(np.allclose(line.get_xdata(), 0) for line in axes.lines)


def test_an_arm_looks_the_same_everywhere_and_like_no_other(study: StudyFolder) -> None:
    for theme in (LIGHT, DARK):
        assert len({arm_style(study, arm, theme) for arm in study.arms}) == len(study.arms)


def test_panel_shows_the_largest_budget_that_is_done(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    study = read_study(make_study(tmp_path, arms=("scratch", "imagenet"), done=14))
    panel = panels.arms_panel(study)  # scratch 0.2 0.5 0.8, imagenet 0.2 and two of 0.5
    assert panel is not None
    assert "80 % (554 masks)" in panel.says
    assert [column.cell is None for column in panel.columns] == [False, True]
    words = [name for name, _ in texts(panels.draw_panel(study, panel))]
    assert "pending" in words


def test_budgets_panel_is_of_the_best_pretrained_arm(study: StudyFolder) -> None:
    panel = panels.budgets_panel(study)
    assert panel is not None
    assert panel.says.startswith("imagenet+simclr-cats-vs-dogs,")
    assert [column.heading[:4] for column in panel.columns] == ["80 %", "50 %", "20 %"]


def test_panel_writes_each_images_own_iou(study: StudyFolder) -> None:
    panel = panels.arms_panel(study)
    assert panel is not None
    words = {t.get_text() for t in panels.draw_panel(study, panel).findobj(Text)}
    for column in panel.columns:
        assert column.cell is not None
        for stem in panel.images:
            score = panels.image_scores(column.cell)[stem]
            assert f"IoU {score:.3f}" in words


def test_paint_marks_right_missed_and_wrong(study: StudyFolder) -> None:
    truth = np.array([[0, 0, 1, 1, 255]], np.uint8)
    mask = np.array([[0, 1, 0, 1, 1]], np.uint8)
    painted = ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in panels.paint(study, mask, truth)[0]]
    assert painted == [panels.GROUND, panels.WRONG, panels.MISSED, panels.FOUND, panels.UNSCORED]


def test_pictures_that_cannot_be_shown_are_left_out(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    out = make_study(tmp_path, arms=("scratch",), budgets=(8,), repeats=1)
    (out / "panels" / "images" / "Bengal_7.jpg").write_bytes(b"no picture")
    (out / "panels" / "masks" / "pug_31.png").unlink()
    folder = read_study(out)
    folder.plan["panels"]["images"] += ["../images/Abyssinian_100", "gone"]
    assert panels.shown_images(folder) == ("Abyssinian_100", "american_bulldog_12")


def test_palette_masks_keep_their_class_ids(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    out = make_study(tmp_path, arms=("scratch",), budgets=(8,), repeats=1)
    file = out / "panels" / "masks" / "pug_31.png"
    plain = np.asarray(Image.open(file))
    palette = Image.fromarray(plain).convert("P")
    palette.putdata(plain.ravel().tolist())
    palette.putpalette([200, 10, 10] * 256)
    palette.save(file)
    truth = panels._truth(read_study(out), "pug_31")
    assert truth is not None
    assert np.array_equal(truth, plain)


@pytest.mark.parametrize(
    ("difference", "text"),
    [(0.042, "+4.2"), (-0.013, "\N{MINUS SIGN}1.3"), (0.0, "0.0"), (-0.0001, "0.0")],
)
def test_signed(difference: float, text: str) -> None:
    assert signed(difference) == text
