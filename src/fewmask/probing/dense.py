"""The dense probe: can a linear map of frozen features segment a handful of pictures?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask.augment import normalise, to_unit
from fewmask.metrics import confusion, scores
from fewmask.types import IGNORED

MOST = 16
"""Pictures to fit, and as many held out."""
CELLS = 8
"""Cells along a side of the grid that features and masks are brought to."""
RIDGE = 1.0
"""Penalty on the squared weights, of standardised features, for each unit of the cells' weight."""
BATCH = 16


def probe_rows(n: int, together: Sequence[Sequence[int]] = (), seed: int = 0) -> list[int]:
    """Up to 32 of n rows, in random order: the first half to fit, the second one held out.

    Of pictures that are `together` (one picture several times) one is taken.
    """
    group_of = {row: tuple(group) for group in together for row in group}
    taken: list[int] = []
    left_out: set[int] = set()
    for row in np.random.default_rng(seed).permutation(n).tolist():
        if row not in left_out:
            taken.append(row)
            left_out.update(group_of.get(row, (row,)))
    return taken[: 2 * MOST]


def dense_probe(encoder: nn.Module, images: Tensor, masks: Tensor, n_classes: int) -> float | None:
    """Mean IoU, 0 to 1, of a linear head on frozen features; None where it is not defined.

    images uint8 [n,3,S,S]; masks uint8 class ids [n,S,S], 255 ignored. The head is fitted on the
    first half and scored on the second. It sees the encoder's two coarsest maps, on a grid of
    8 x 8 cells, and is the ridge regression on the share of each class in each cell (closed form,
    nothing random); its answers are resized to the masks' resolution and the largest is taken.
    Of two classes it is the foreground's IoU, as in every score of the project.
    """
    features = grid_features(encoder, images)
    shares, weight = grid_masks(masks.cpu(), n_classes)
    n = len(images) // 2
    answers = ridge(features[:n], shares[:n], weight[:n], features[n:])
    sized = functional.interpolate(answers, masks.shape[-2:], mode="bilinear", align_corners=False)
    predicted = sized.argmax(dim=1).to(torch.uint8).numpy()
    return scores(confusion(masks[n:].cpu().numpy(), predicted, n_classes))["iou"]


def grid_features(encoder: nn.Module, images: Tensor) -> Tensor:
    """uint8 [n,3,S,S] -> float32 [n,D,8,8] on the CPU: the two coarsest maps on the grid."""
    device = next(encoder.parameters()).device
    was = encoder.training
    encoder.eval()
    found = []
    with torch.inference_mode():
        for part in torch.split(images, BATCH):
            seen = normalise(to_unit(part.to(device)))
            maps = encoder(seen.contiguous(memory_format=torch.channels_last))
            found.append(torch.cat([_on_grid(m.float()) for m in maps[-2:]], dim=1).cpu())
    encoder.train(was)
    return torch.cat(found)


def _on_grid(features: Tensor) -> Tensor:
    if min(features.shape[-2:]) >= CELLS:
        return functional.adaptive_avg_pool2d(features, CELLS)
    return functional.interpolate(features, (CELLS, CELLS), mode="bilinear", align_corners=False)


def grid_masks(masks: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """uint8 [n,S,S] -> share of each class among a cell's valid pixels [n,K,8,8], and the share of
    its pixels that are valid [n,8,8]."""
    each = torch.stack([(masks == k).float() for k in range(n_classes)], dim=1)
    shares = functional.adaptive_avg_pool2d(each, CELLS)
    weight = functional.adaptive_avg_pool2d((masks != IGNORED).float()[:, None], CELLS)[:, 0]
    return shares / weight[:, None].clamp_min(1e-6), weight


def ridge(features: Tensor, targets: Tensor, weight: Tensor, others: Tensor) -> Tensor:
    """Answers float32 [m,K,h,w] for features `others` [m,D,h,w], from [n,D,h,w] and their targets.

    Weighted least squares of targets [n,K,h,w] with an offset, features standardised by their
    weighted mean and deviation, plus RIDGE times the weights' sum times the squared coefficients.
    Solved in the space of the cells, of which there are fewer than features (the dual form).
    """
    a, t, w = _cells(features), _cells(targets).double(), weight.reshape(-1, 1)
    total = w.sum().clamp_min(1e-6)
    mean = (a * w).sum(dim=0) / total
    deviation = ((a - mean).square() * w).sum(dim=0).div(total).sqrt()
    # Units that are always off, or differ by rounding alone, say nothing.
    scale = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0.0)
    root = w.sqrt()
    z = (a - mean) * scale * root
    offset = (t * w).sum(dim=0) / total
    gram = (z @ z.T).double()
    gram.diagonal().add_(RIDGE * float(total))
    solution = torch.linalg.solve(gram, (t - offset) * root)
    coefficients = z.T @ solution.float()
    answers = ((_cells(others) - mean) * scale) @ coefficients + offset.float()
    m, _, height, width = others.shape
    on_grid: Tensor = answers.reshape(m, height, width, -1).permute(0, 3, 1, 2)
    return on_grid


def _cells(maps: Tensor) -> Tensor:
    """[n,C,h,w] -> [n*h*w,C]."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
