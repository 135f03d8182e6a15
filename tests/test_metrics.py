"""Scores against scikit-learn and torchmetrics, with absent classes and ignored pixels."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk
from torchmetrics.functional import jaccard_index

from fewmask.metrics import (
    DEFINITIONS,
    ImageScores,
    Matrix,
    aggregate,
    confusion,
    per_class,
    scores,
)
from fewmask.types import IGNORED

Ids = NDArray[np.uint8]


@st.composite
def images(draw: st.DrawFn, n_classes: int) -> tuple[Ids, Ids]:
    """Labels and predictions [H,W]; classes may be absent, pixels ignored, all of them too."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    known = draw(st.lists(st.integers(0, n_classes - 1), min_size=1, max_size=n_classes))
    guessed = draw(st.lists(st.integers(0, n_classes - 1), min_size=1, max_size=n_classes))
    labels = rng.choice(known, shape).astype(np.uint8)
    labels[rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = IGNORED
    return labels, rng.choice(guessed, shape).astype(np.uint8)


def expected(labels: Ids, predicted: Ids, n_classes: int) -> dict[str, float | None]:
    """The scores by scikit-learn, whose NaN is our None."""
    valid = labels != IGNORED
    truth, guess = labels[valid], predicted[valid]
    if not valid.any():
        return dict.fromkeys(("iou", "f1", "recall", "precision", "accuracy"))
    wanted = [1] if n_classes == 2 else list(range(n_classes))
    both = {k for k in wanted if k in truth or k in guess}
    found: dict[str, float | None] = {"accuracy": sk.accuracy_score(truth, guess)}
    for name, function, defined in (
        ("iou", sk.jaccard_score, both),
        ("f1", sk.f1_score, both),
        ("recall", sk.recall_score, {k for k in wanted if k in truth}),
        ("precision", sk.precision_score, {k for k in wanted if k in guess}),
    ):
        each = function(truth, guess, labels=sorted(defined), average=None) if defined else None
        found[name] = None if each is None else float(np.mean(each))
    return found


@pytest.mark.parametrize("n_classes", [2, 4])
def test_scores_are_scikit_learns(n_classes: int) -> None:
    @settings(max_examples=80, deadline=None)
    @given(images(n_classes))
    def check(image: tuple[Ids, Ids]) -> None:
        found = scores(confusion(*image, n_classes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = expected(*image, n_classes)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found[name] == (None if value is None else pytest.approx(value)), name

    check()


@pytest.mark.parametrize("n_classes", [2, 4])
def test_class_ious_are_torchmetrics(n_classes: int) -> None:
    rng = np.random.default_rng(n_classes)
    labels = rng.integers(0, n_classes, (30, 40)).astype(np.uint8)
    predicted = np.where(rng.random(labels.shape) < 0.6, labels, 0).astype(np.uint8)
    labels[:5] = IGNORED
    wanted = jaccard_index(
        torch.from_numpy(predicted).long(),
        torch.from_numpy(labels).long(),
        "multiclass",
        num_classes=n_classes,
        ignore_index=IGNORED,
        average="none",
    )
    names = [f"class {k}" for k in range(n_classes)]
    found = per_class(confusion(labels, predicted, n_classes), names)
    assert list(found) == names
    assert [own["iou"] for own in found.values()] == pytest.approx(wanted.tolist(), abs=1e-6)


def test_confusion_counts_truth_in_rows_and_every_valid_pixel_once() -> None:
    labels = np.array([[0, 0, 1], [2, IGNORED, 1]], np.uint8)
    predicted = np.array([[0, 2, 1], [0, 2, 0]], np.uint8)
    found = confusion(labels, predicted, 3)
    assert found.tolist() == [[1, 0, 1], [1, 1, 0], [1, 0, 0]]
    assert found.dtype == np.int64


@pytest.mark.parametrize("bad", ["labels", "predicted", "shape"])
def test_confusion_refuses_what_it_would_miscount(bad: str) -> None:
    labels, predicted = np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8)
    if bad == "shape":
        predicted = predicted.T
    else:
        (labels if bad == "labels" else predicted)[0, 0] = 2
    with pytest.raises(ValueError, match=r"labels are|class id 2"):
        confusion(labels, predicted, 2)


def test_what_is_predicted_where_labels_are_ignored_is_of_no_account() -> None:
    labels, predicted = np.array([[0, 1, IGNORED]], np.uint8), np.array([[0, 1, 9]], np.uint8)
    assert confusion(labels, predicted, 2).tolist() == [[1, 0], [0, 1]]


def test_an_undefined_score_is_none_not_one_or_zero() -> None:
    empty = np.zeros((2, 2), np.int64)
    assert set(scores(empty).values()) == {None}
    nothing_there = np.array([[9, 0], [0, 0]])
    assert scores(nothing_there) == {
        "iou": None,
        "f1": None,
        "recall": None,
        "precision": None,
        "accuracy": 1.0,
    }
    all_missed, invented = np.array([[5, 0], [4, 0]]), np.array([[5, 4], [0, 0]])
    assert (scores(all_missed)["iou"], scores(all_missed)["precision"]) == (0, None)
    assert (scores(invented)["iou"], scores(invented)["recall"]) == (0, None)


def image(
    name: str, matrix: list[list[int]], loss: float | None, reading: Matrix | None = None
) -> ImageScores:
    counts = np.array(matrix)
    readings = {} if reading is None else {"iou_border_foreground": reading}
    return ImageScores(name, counts, loss, loss, loss, int(counts.sum()), readings)


def test_data_set_scores_are_ratios_of_sums_and_image_means_are_means() -> None:
    found = [
        image("a", [[50, 10], [0, 40]], 0.1),  # IoU 40/50
        image("b", [[290, 0], [5, 5]], 0.5),  # IoU 5/10
        image("empty", [[100, 0], [0, 0]], 0.2),  # not defined
        image("ignored", [[0, 0], [0, 0]], None),
    ]
    dataset, mean, classes = aggregate(found, ("ground", "pet"))
    assert dataset["iou"] == pytest.approx(45 / 60)
    assert mean["iou"] == pytest.approx((0.8 + 0.5) / 2)
    assert dataset["bce_loss"] == pytest.approx((10 + 150 + 20) / 500)
    assert dataset["focal_loss"] == dataset["bce_loss"]
    assert dataset["dice_loss"] == pytest.approx((0.1 + 0.5 + 0.2) / 3)
    assert mean["bce_loss"] == pytest.approx((0.1 + 0.5 + 0.2) / 3)
    assert classes["pet"]["iou"] == dataset["iou"]
    assert classes["ground"]["iou"] == pytest.approx(440 / 455)
    assert dataset.keys() == mean.keys()
    assert dataset.keys() <= DEFINITIONS.keys()


def test_a_second_reading_is_scored_beside_the_first() -> None:
    foreground = np.array([[50, 0], [0, 50]])
    found = [
        image("a", [[50, 10], [0, 40]], 0.1, foreground),
        image("b", [[9, 0], [1, 1]], 0.1, np.array([[6, 2], [2, 1]])),
    ]
    dataset, mean, _ = aggregate(found, ("ground", "pet"))
    assert dataset["iou_border_foreground"] == pytest.approx(51 / 55)
    assert mean["iou_border_foreground"] == pytest.approx((1 + 0.2) / 2)


def test_one_image_is_a_data_set() -> None:
    only = image("a", [[50, 10], [0, 40]], 0.1, np.array([[50, 0], [0, 50]]))
    dataset, mean, _ = aggregate([only], ("ground", "pet"))
    assert dataset["iou_border_foreground"] == mean["iou_border_foreground"] == 1
    assert dataset["iou"] == mean["iou"] == pytest.approx(0.8)


def test_no_image_at_all_is_undefined() -> None:
    dataset, mean, _ = aggregate([], ("ground", "pet"))
    assert set(dataset.values()) == set(mean.values()) == {None}
