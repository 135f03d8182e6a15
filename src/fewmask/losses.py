"""Losses, one function each: formula, shapes and paper. All compute in float32 (or float64)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
    with torch.autocast(first.device.type, enabled=False):
        similar, partners = _contrast(first, second, temperature, start, all_first, all_second)
        return functional.cross_entropy(similar, partners)


def dcl(
    first: Tensor,
    second: Tensor,
    temperature: float,
    *,
    start: int = 0,
    all_first: Tensor | None = None,
    all_second: Tensor | None = None,
) -> Tensor:
    """Decoupled contrastive loss: NT-Xent without the positive in the denominator.

    l(i, j) = -s_ij / t + log sum over k != i, j of exp(s_ik / t), the mean over anchors (Yeh et al.
    2021, arXiv:2110.06848, eq. 6). The positive there scales an anchor's gradient down the more,
    the fewer the negatives. Unlike NT-Xent it may be negative.

    Arguments as in `nt_xent`. Raises ValueError for a single picture, which has no negatives.
    """
    if len(first if all_first is None else all_first) < 2:
        raise ValueError("dcl compares pictures: expected at least 2, found 1")
    with torch.autocast(first.device.type, enabled=False):
        similar, partners = _contrast(first, second, temperature, start, all_first, all_second)
        positives = similar.gather(1, partners[:, None])
        negatives = similar.scatter(1, partners[:, None], -torch.inf)
        return (negatives.logsumexp(dim=1) - positives[:, 0]).mean()


def _contrast(
    first: Tensor,
    second: Tensor,
    temperature: float,
    start: int,
    all_first: Tensor | None,
    all_second: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Cosines over temperature [2n,2N] of our views with all views, and where the partners stand.

    Anchors and columns are in the order first views, second views; -inf where a view meets itself;
    partners [2n] are the columns of the anchors' other views.
    """
    everyone = torch.cat(
        [first if all_first is None else all_first, second if all_second is None else all_second]
    )
    kind = torch.promote_types(first.dtype, torch.float32)
    z = functional.normalize(everyone.to(kind), dim=1)
    n, total = len(first), len(everyone) // 2
    own = torch.arange(start, start + n, device=first.device)
    anchors = torch.cat([own, own + total])
    partners = torch.cat([own + total, own])
    similar = z[anchors] @ z.T / temperature
    itself = functional.one_hot(anchors, 2 * total).bool()
    return similar.masked_fill(itself, -torch.inf), partners


CONTRASTIVE_LOSSES: dict[str, Callable[..., Tensor]] = {"nt_xent": nt_xent, "dcl": dcl}
"""By the names that SimCLR's `--loss` knows."""


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


def _share(labels: Tensor, valid: Tensor, weights: Tensor | None) -> Tensor:
    """[B,H,W]: what a pixel counts. That of its true class, 1 without weights, 0 where ignored."""
    return valid if weights is None else valid * weights.to(valid)[labels]


def _mean(values: Tensor, share: Tensor, over: Tensor | None) -> Tensor:
    """sum wv / sum w, or / `over`; 0, with its graph, where the weights are all 0."""
    total = share.sum() if over is None else over.to(share)
    return (values * share).sum() / torch.where(total > 0, total, 1)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    over: Tensor | None = None,
) -> Tensor:
    """Mean over valid pixels of -log p(true class), weighted by the true class.

    Logits [B,1,H,W] (sigmoid, two classes) or [B,K,H,W] (softmax); labels [B,H,W], 255 ignored;
    weights [K] (of two classes [2]), all 1 by default. The weighted mean is sum wl / sum w, that of
    `torch.nn.functional.cross_entropy`.

    `over`: what to divide by instead of sum w. With a batch in parts, their mean over images of the
    whole batch's sum w gives each part its share in the whole batch's loss.
    """
    logits, labels, valid = _valid(logits, labels)
    return _mean(_pixel_cross_entropy(logits, labels), _share(labels, valid, weights), over)


def focal(
    logits: Tensor,
    labels: Tensor,
    gamma: float = 2.0,
    weights: Tensor | None = None,
    over: Tensor | None = None,
) -> Tensor:
    """Mean over valid pixels of -(1 - p)^gamma log p, p of the true class; no alpha.

    Lin et al. 2017, arXiv:1708.02002, eq. 4. Shapes, weights and `over` as in `cross_entropy`.
    """
    logits, labels, valid = _valid(logits, labels)
    negative_log = _pixel_cross_entropy(logits, labels)
    values = (-torch.expm1(-negative_log)) ** gamma * negative_log
    return _mean(values, _share(labels, valid, weights), over)


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


def border_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    over: Tensor | None = None,
) -> Tensor:
    """Cross-entropy, weighted towards the gaps between objects: sum wl / sum w over valid pixels.

    w(x) = w_c(x) + w0 exp(-(d1 + d2)^2 / (2 sigma^2)), w0 = 10, sigma = 5 pixels, d1 and d2 the
    distances to the nearest and the second nearest object (Ronneberger et al. 2015,
    arXiv:1505.04597, eq. 2, which leaves the sum undivided). w_c is the class weight, 1 by
    default (the paper's balances the classes: `--class-weights balanced`). Shapes and `over` as in
    `cross_entropy`. The distances are computed on the CPU, mask by mask.
    """
    near = border_weights(labels).to(logits.device)
    logits, labels, valid = _valid(logits, labels)
    share = _share(labels, valid, weights) + valid * near.to(valid)
    return _mean(_pixel_cross_entropy(logits, labels), share, over)


def border_weights(labels: Tensor, weight: float = 10.0, sigma: float = 5.0) -> Tensor:
    """The second term of the border loss' weights: float32 [B,H,W] on the CPU, 0 to `weight`.

    Labels [B,H,W], 255 ignored. Objects are the connected regions (by edges and corners) of each
    class but 0; distances are to their nearest pixel, in pixels, so 0 inside. 0 in a mask of fewer
    than two objects.
    """
    from scipy import ndimage

    found = torch.zeros(labels.shape, dtype=torch.float32)
    reach = int(6 * sigma)  # beyond, the term is below 1e-7 of the weight
    for own, out in zip(labels.cpu().numpy(), found.numpy(), strict=True):
        regions, n = _objects(own, ndimage)
        if n < 2:
            continue
        first, where = ndimage.distance_transform_edt(regions == 0, return_indices=True)
        nearest = regions[tuple(where)]
        boxes = ndimage.find_objects(regions)
        for region, box in enumerate(boxes, start=1):
            # The second nearest of the pixels around an object: the nearest without that object.
            part = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
            others = (regions[part] > 0) & (regions[part] != region)
            if others.any():
                mine = nearest[part] == region
                both = first[part] + ndimage.distance_transform_edt(~others)
                out[part][mine] = weight * np.exp(-(both[mine] ** 2) / (2 * sigma**2))
    return found


def _objects(labels: NDArray[np.uint8], ndimage: Any) -> tuple[NDArray[np.int32], int]:
    """Regions [H,W] numbered from 1, 0 elsewhere, and how many there are."""
    regions, n = np.zeros(labels.shape, np.int32), 0
    for value in np.unique(labels):
        if value not in (0, IGNORED):
            own, count = ndimage.label(labels == value, structure=np.ones((3, 3)))
            regions[own > 0] = own[own > 0] + n
            n += count
    return regions, n


SEGMENTATION_LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": cross_entropy,
    "ce": cross_entropy,
    "dice": soft_dice,
    "focal": focal,
    "border-ce": border_cross_entropy,
}
"""By the names that `--loss` knows; a plus between names adds them."""
WEIGHTED = ("bce", "ce", "focal", "border-ce")
"""Those that class weights apply to: the means over pixels."""


def segmentation_losses(
    loss: str,
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    over: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The parts of a loss such as `ce+dice`, by name. Class weights [K] go to all but dice.

    Shapes as in `cross_entropy`. `bce` and `ce` are one function: sigmoid of one logit, softmax of
    several. `over`: what the means over pixels divide by, by name, as `weight_sums` gives it.
    """
    found = {}
    for part in loss.split("+"):
        more = {"weights": weights} if part in WEIGHTED else {}
        if over is not None and part in over:
            more["over"] = over[part]
        found[part] = SEGMENTATION_LOSSES[part](logits, labels, **more)
    return found


def weight_sums(loss: str, labels: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
    """What each mean over pixels in a loss divides by: the sum of its pixels' weights."""
    valid = (labels != IGNORED).float()
    share = _share(labels.long().masked_fill(valid == 0, 0), valid, weights)
    sums = {}
    for part in loss.split("+"):
        if part in WEIGHTED:
            near = border_weights(labels).to(share) if part == "border-ce" else 0
            sums[part] = (share + valid * near).sum()
    return sums


def balanced_weights(pixels: Tensor) -> Tensor:
    """Inverse frequency: w_k = sum of all n / (K n_k), n_k the pixels of class k.

    `pixels` [N,K] counts each class in each mask, ignored pixels left out; K counts the classes
    that there are, so a pixel's mean weight is 1. A class without a pixel gets 1 as well. float32
    [K]. (scikit-learn's `class_weight="balanced"`.)
    """
    n = pixels.double().sum(0)
    there = n > 0
    weights = n.sum() / (there.sum() * n.clamp_min(1))
    return torch.where(there, weights, 1).float()


def median_weights(pixels: Tensor) -> Tensor:
    """Median frequency balancing: w_k = median of all f / f_k.

    f_k is the pixels of class k over all pixels of the masks that hold it, the median that of the
    classes that there are (Eigen & Fergus 2015, arXiv:1411.4734; taken over by SegNet). Shapes as
    in `balanced_weights`; a class without a pixel gets 1.
    """
    n = pixels.double()
    held = ((n > 0) * n.sum(1, keepdim=True)).sum(0)
    there = held > 0
    frequency = n.sum(0) / held.clamp_min(1)
    median = frequency[there].quantile(0.5) if there.any() else frequency.new_ones(())
    return torch.where(there, median / frequency.clamp_min(1e-300), 1).float()
