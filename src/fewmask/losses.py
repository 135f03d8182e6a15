"""Losses, one function each: formula, shapes and paper. All compute in float32 (or float64)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fewmask.types import IGNORED


def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float,
    *,
    start: int = 0,
    all_first: Tensor | None = None,
    all_second: Tensor | None = None,
) -> Tensor:
    """NT-Xent: the mean over anchors of cross-entropy towards their other view.

    l(i, j) = -log( exp(s_ij / t) / sum over k != i of exp(s_ik / t) ), s the cosine similarity;
    L = 1/(2N) sum over k of [l(2k-1, 2k) + l(2k, 2k-1)] (Chen et al. 2020, eq. 1 and algorithm 1).

    `first` and `second` [n,D] hold the two views of the same pictures, not normalised. With several
    processes `all_first` and `all_second` [N,D] hold everybody's rows, of which ours begin at
    `start`: the anchors are ours, the contrast is with all, and the mean of the processes' losses
    is the loss of the whole batch.
    """
    everyone = torch.cat(
        [first if all_first is None else all_first, second if all_second is None else all_second]
    )
    kind = torch.promote_types(first.dtype, torch.float32)
    with torch.autocast(first.device.type, enabled=False):
        z = functional.normalize(everyone.to(kind), dim=1)
        n, total = len(first), len(everyone) // 2
        own = torch.arange(start, start + n, device=first.device)
        anchors = torch.cat([own, own + total])
        partners = torch.cat([own + total, own])
        similar = z[anchors] @ z.T / temperature
        itself = functional.one_hot(anchors, 2 * total).bool()
        return functional.cross_entropy(similar.masked_fill(itself, -torch.inf), partners)


def _valid(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(logits in float32, labels with 0 where ignored, float mask of the valid pixels)."""
    valid = labels != IGNORED
    kind = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(kind), labels.long().masked_fill(~valid, 0), valid.to(kind)


def _pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B,H,W]: sigmoid cross-entropy of one channel, softmax cross-entropy of several."""
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(
            logits[:, 0], labels.to(logits.dtype), reduction="none"
        )
    return functional.cross_entropy(logits, labels, reduction="none")


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid pixels; 0, with its graph, where there are none."""
    return (values * valid).sum() / valid.sum().clamp_min(1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over valid pixels of -log p(true class).

    Logits [B,1,H,W] (sigmoid, two classes) or [B,K,H,W] (softmax); labels [B,H,W], 255 ignored.
    """
    logits, labels, valid = _valid(logits, labels)
    return _mean(_pixel_cross_entropy(logits, labels), valid)


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean over valid pixels of -(1 - p)^gamma log p, p of the true class; no alpha.

    Lin et al. 2017, arXiv:1708.02002, eq. 4. Shapes as in `cross_entropy`.
    """
    logits, labels, valid = _valid(logits, labels)
    negative_log = _pixel_cross_entropy(logits, labels)
    return _mean((-torch.expm1(-negative_log)) ** gamma * negative_log, valid)


def soft_dice(logits: Tensor, labels: Tensor, smoothing: float = 1.0) -> Tensor:
    """Mean over images of 1 - (2 sum pt + s) / (sum p + sum t + s), s the smoothing.

    p is the probability, t the truth (0 or 1), sums are over an image's valid pixels (Milletari et
    al. 2016, arXiv:1606.04797, with plain instead of squared sums). One channel: of class 1. Of
    several: the mean over the classes that the image's truth holds, since a class that is absent
    has a loss near 1 from a few stray probabilities. An image without a valid pixel counts as 0.
    Shapes as in `cross_entropy`.
    """
    logits, labels, valid = _valid(logits, labels)
    if logits.shape[1] == 1:
        p, t = logits.sigmoid(), labels[:, None].to(logits.dtype)
    else:
        p = logits.softmax(dim=1)
        t = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    p, t = p * valid[:, None], t * valid[:, None]
    overlap, sizes = (p * t).sum((2, 3)), (p + t).sum((2, 3))
    loss = 1 - (2 * overlap + smoothing) / (sizes + smoothing)
    if logits.shape[1] == 1:
        return loss.mean()
    present = (t.sum((2, 3)) > 0).to(loss.dtype)
    return ((loss * present).sum(1) / present.sum(1).clamp_min(1)).mean()


SEGMENTATION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": cross_entropy,
    "ce": cross_entropy,
    "dice": soft_dice,
    "focal": focal,
}
"""By the names that `--loss` knows; a plus between names adds them."""
