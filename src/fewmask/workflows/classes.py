"""What a budget's training masks hold of each class: weights, and classes that are missing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fewmask.data.check import PairReport
from fewmask.losses import balanced_weights, median_weights
from fewmask.settings import WEIGHTINGS, numbers
from fewmask.types import UserError


def class_weights(
    wanted: str | None, checked: PairReport, rows: Sequence[int]
) -> torch.Tensor | None:
    """The weights float32 [K] that --class-weights asks for, by the masks in `rows`; None without.

    Raises UserError where it names more or fewer weights than there are classes.
    """
    names = checked.labels.names
    if wanted is None:
        return None
    if wanted in WEIGHTINGS:
        pixels = torch.tensor([checked.mask_pixels[row] for row in rows])
        return balanced_weights(pixels) if wanted == "balanced" else median_weights(pixels)
    given = numbers(wanted) or ()
    if len(given) != len(names):
        raise UserError(
            f"--class-weights {wanted}: {len(given)} weights for {len(names)} classes "
            f"({', '.join(names)}). Give one for each, in this order"
        )
    return torch.tensor(given)


def unseen(checked: PairReport, rows: Sequence[int]) -> list[str]:
    """Names of the classes that other masks hold, but none in `rows`."""
    there = zip(checked.labels.names, checked.class_pixels, strict=True)
    return [
        name
        for k, (name, pixels) in enumerate(there)
        if pixels and not any(checked.mask_pixels[row][k] for row in rows)
    ]
