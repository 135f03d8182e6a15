"""What a pretext task is given, what it builds, and the measures that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewmask.augment import Views, random_views, step_generator
from fewmask.types import Batch


@dataclass(frozen=True)
class Pool:
    """What a task may know of the run that it is built for, beside encoder and image size."""

    images: int = 1
    """Images in the pool."""
    batch_size: int = 1
    """Images a step, over all processes."""
    steps: int = 1
    """Steps of the whole run."""
    classes: tuple[str, ...] = ()
    """Names of the pool's class folders; empty where it has none."""


class PretextModule(nn.Module, ABC):
    """A pretext task in training: batches to losses, through the encoder that is kept.

    `signals` holds detached scalars of the last forward pass, worth watching beside the losses.
    All random numbers come from `(batch.seed, batch.step)`, drawn for the whole global batch and
    cut, so that several processes do what one would have done.
    """

    encoder: nn.Module
    """Of smp's contract; its weights are what the run leaves behind."""
    decoder: nn.Module | None
    """A segmentation decoder that was pre-trained as well, for the tasks that do so."""
    rate = 1.0
    """Of the default base rate, where the paper's differs in kind."""
    beta1 = 0.9
    """Adam's memory of the gradient's mean."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = None
        self.signals: dict[str, Tensor] = {}

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses of a batch of images uint8 [B,3,H,W]; they are added up."""

    def after_step(self, step: int, steps: int) -> None:
        """Called on every process when the optimiser has made step `step` (from 0) of `steps`."""

    def groups(self) -> Iterable[tuple[float, nn.Module]]:
        """(rate as a ratio of the base rate, module): all that is trained."""
        return [(1.0, self)]

    def complaint(self) -> str | None:
        """Why nothing can be learnt from the last batches, by `signals`; None where all is well."""
        return None

    def samples(self, batch: Batch) -> Tensor | None:
        """Pictures float [n,3,h,w] of 0 to 1 that show what the task does now, or None."""
        return None


def width_of(encoder: nn.Module) -> int:
    """Channels of the encoder's coarsest feature map."""
    return int(encoder.out_channels[-1])  # type: ignore[index]


def pooled(encoder: nn.Module, images: Tensor) -> Tensor:
    """Normalised images [B,3,H,W] -> features [B,D], the mean over the coarsest map."""
    maps = encoder(images.contiguous(memory_format=torch.channels_last))
    features: Tensor = maps[-1].mean(dim=(2, 3))
    return features


def drawn(batch: Batch, columns: int, stream: int = 0) -> Tensor:
    """Uniform random numbers of 0 to 1, [B,columns], on the batch's device.

    A function of the batch's seed and step and of `stream`; drawn for the global batch, and the
    rows of this process cut out.
    """
    n = len(batch.images)
    generator = step_generator(batch.seed, batch.step, "cpu", stream)
    everyone = torch.rand(batch.total or batch.start + n, columns, generator=generator)
    return everyone[batch.start : batch.start + n].to(batch.images.device, non_blocking=True)


def view(batch: Batch, size: int, views: Views, stream: int = 0) -> Tensor:
    """A random view of each image: float [B,3,size,size] of 0 to 1; another one a `stream`."""
    generator = step_generator(batch.seed, batch.step, batch.images.device, stream)
    return random_views(
        batch.images,
        size,
        views,
        generator,
        start=batch.start,
        total=batch.total,
        valid=batch.valid,
    )


@torch.no_grad()
def spread(features: Tensor) -> Tensor:
    """How far the directions of [B,D] features spread: 0 all the same (collapse), 1 isotropic.

    The mean over dimensions of the standard deviation of the L2-normalised features, over
    1/sqrt(D), the value that directions without any order have (Chen & He 2021, sec. 4.1).
    """
    directions = functional.normalize(features.float(), dim=1)
    found: Tensor = directions.std(dim=0).mean() * features.shape[1] ** 0.5
    return found


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """Over how many dimensions the features [B,D] vary: 1 (collapse) to min(B - 1, D).

    exp(-sum p log p), p the share of each singular value of the features less their mean (Roy &
    Vetterli 2007; as a measure of pre-training: Garrido et al. 2023, arXiv:2210.02885, who don't
    take the mean off).
    """
    centred = features.double() - features.double().mean(dim=0)
    values = torch.linalg.svdvals(centred.cpu())
    shares = values / values.sum().clamp_min(1e-300)
    return torch.exp(-(shares * shares.clamp_min(1e-300).log()).sum())
