"""Scores from counts, and what each of them means.

An image's confusion matrix holds all that the thresholded scores need; matrices add up, so scores
over the data set are ratios of sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fewmask.types import IGNORED

Matrix = NDArray[np.int64]
Scores = dict[str, float | None]

COUNTED = ("iou", "f1", "recall", "precision", "accuracy")
LOSSES = ("dice_loss", "focal_loss", "bce_loss")


@dataclass(frozen=True)
class ImageScores:
    """One image: pixel counts [K,K] (rows truth, columns prediction), and its losses.

    Losses are None where no pixel is valid. `readings` are further counts, each under the name
    that its IoU has among the scores.
    """

    name: str
    confusion: Matrix
    bce_loss: float | None
    dice_loss: float | None
    focal_loss: float | None
    valid_pixels: int
    readings: Mapping[str, Matrix] = field(default_factory=dict)


def confusion(labels: NDArray[np.uint8], predicted: NDArray[np.uint8], n_classes: int) -> Matrix:
    """Pixel counts int64 [K,K], rows truth, columns prediction; labels of 255 are left out.

    `labels` and `predicted` have the same shape and hold class ids 0..K-1; anything else is a
    ValueError, since it would be counted as another class.
    """
    if labels.shape != predicted.shape:
        raise ValueError(f"labels are {labels.shape}, predictions {predicted.shape}")
    valid = labels != IGNORED
    largest = max(labels.max(initial=0, where=valid), predicted.max(initial=0, where=valid))
    if largest >= n_classes:
        raise ValueError(f"class id {largest} of {n_classes} classes")
    pairs = labels[valid].astype(np.int64) * n_classes + predicted[valid]
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _of_class(matrix: Matrix, k: int) -> Scores:
    tp = matrix[k, k]
    fn, fp = matrix[k].sum() - tp, matrix[:, k].sum() - tp
    return {
        "iou": _ratio(tp, tp + fp + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "recall": _ratio(tp, tp + fn),
        "precision": _ratio(tp, tp + fp),
    }


def scores(matrix: Matrix) -> Scores:
    """iou, f1, recall, precision and accuracy, fractions of 1; None where not defined.

    Two classes: of class 1, the foreground. More: the mean over the classes where it is defined.
    """
    accuracy = _ratio(np.trace(matrix), matrix.sum())
    if len(matrix) == 2:
        return {**_of_class(matrix, 1), "accuracy": accuracy}
    each = [_of_class(matrix, k) for k in range(len(matrix))]
    found = {name: _mean([own[name] for own in each]) for name in each[0]}
    return {**found, "accuracy": accuracy}


def per_class(matrix: Matrix, names: Sequence[str]) -> dict[str, Scores]:
    """iou, f1, recall and precision of every class by name."""
    return {name: _of_class(matrix, k) for k, name in enumerate(names)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def aggregate(
    images: Sequence[ImageScores], names: Sequence[str]
) -> tuple[Scores, Scores, dict[str, Scores]]:
    """(over the data set, mean of the images', per class over the data set). See DEFINITIONS."""
    empty = np.zeros((len(names), len(names)), np.int64)
    total = sum((image.confusion for image in images), start=empty)
    dataset = scores(total)
    for name in ("bce_loss", "focal_loss"):
        each = [(getattr(image, name), image.valid_pixels) for image in images]
        known = [(value, n) for value, n in each if value is not None]
        pixels = sum(n for _, n in known)
        dataset[name] = sum(value * n for value, n in known) / pixels if pixels else None
    dataset["dice_loss"] = _mean([image.dice_loss for image in images])
    own = [scores(image.confusion) for image in images]
    mean: Scores = {name: _mean([o[name] for o in own]) for name in COUNTED}
    mean |= {name: _mean([getattr(image, name) for image in images]) for name in LOSSES}
    for reading in images[0].readings if images else ():
        matrices = [image.readings[reading] for image in images]
        dataset[reading] = scores(np.sum(matrices, axis=0))["iou"]
        mean[reading] = _mean([scores(matrix)["iou"] for matrix in matrices])
    return dataset, mean, per_class(total, names)


_CLASSES = "Two classes: of class 1, the foreground. More: the mean over classes where defined."

DEFINITIONS: dict[str, str] = {
    "iou": "TP / (TP + FP + FN), from the sums of pixels over all test images (a ratio of sums, "
    "not a mean of ratios); not defined where truth and prediction both lack the class. "
    + _CLASSES,
    "f1": "2 TP / (2 TP + FP + FN), from the same sums; the same number as the Dice coefficient. "
    + _CLASSES,
    "dice_loss": "The mean over images of 1 - (2 sum pt + 1) / (sum p + sum t + 1), p the "
    "probability, t the truth: the soft Dice loss with smoothing 1. Of more than two classes: the "
    "mean over the classes that an image's truth holds.",
    "focal_loss": "The mean over all valid pixels of -(1 - p)^2 log p, p the probability of the "
    "true class: the focal loss with gamma 2, without alpha.",
    "bce_loss": "The mean over all valid pixels of -log p, p the probability of the true class: "
    "binary cross-entropy for two classes, softmax cross-entropy for more.",
    "recall": "TP / (TP + FN), from the sums of pixels; not defined where the truth lacks the "
    "class. " + _CLASSES,
    "precision": "TP / (TP + FP), from the sums of pixels; not defined where the class is never "
    "predicted. " + _CLASSES,
    "accuracy": "Correct pixels over valid pixels, all classes together.",
    "iou_CLASS": "More than two classes: the IoU of the class of that name, from the same sums. "
    "Where it is not defined the mean leaves it out. per_class holds its F1, recall and precision "
    "as well.",
    "iou_per_image": "The mean over images of each image's own IoU, images where it is not "
    "defined left out.",
    "iou_border_foreground": "Oxford-IIIT Pet only: the IoU with its border class counted as pet.",
    "iou_border_ignore": "Oxford-IIIT Pet only: the IoU with its border class left out.",
    "per_image_mean": "Each score computed for every image on its own, then the mean over the "
    "images where it is defined.",
    "resolution": "Everything is computed at the mask's own resolution: the logits are resized to "
    "it (bilinear), then cut.",
    "threshold": "Two classes: foreground where the probability is above 0.5. More: the class of "
    "the largest probability.",
    "ignored": "Pixels whose label is ignored count nowhere.",
}
"""What every number means, by the name it has in metrics.json."""
