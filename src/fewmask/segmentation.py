"""Segmenter, the model; and fine-tuning it, the task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fewmask import decoders
from fewmask.augment import PairAugment, augment_pair, normalise, step_generator, to_unit
from fewmask.data.classes import UNKNOWN, colours
from fewmask.decoders import Decoder
from fewmask.distributed import mean_over_processes, world_size
from fewmask.losses import segmentation_losses, weight_sums
from fewmask.types import IGNORED, Batch, Labels, Resize

LARGEST = 8192
"""The largest side in pixels that a network may see."""


@dataclass(frozen=True)
class Geometry:
    """How an image becomes what the network sees."""

    size: int
    resize: Resize


class Segmenter(nn.Module):
    """A network that takes any height and width.

    `network` is what the decoder builds; of smp's decoders it is the smp model itself, with smp's
    names, so its weights open in smp.
    """

    def __init__(self, encoder: str, decoder: str | Decoder, labels: Labels) -> None:
        super().__init__()
        self.decoder = decoders.component(decoder)
        self.network = decoders.build(self.decoder, encoder, labels.n_logits)
        self.network.to(memory_format=torch.channels_last)
        self.labels, self.encoder_name = labels, encoder

    @property
    def encoder(self) -> nn.Module:
        return self.network.encoder  # type: ignore[return-value]

    def heads(self) -> list[nn.Module]:
        """All but the encoder."""
        return [module for name, module in self.network.named_children() if name != "encoder"]

    def forward(self, images: Tensor) -> Tensor:
        """[B,3,H,W] of values 0 to 1 -> logits [B,n_logits,H,W], float32.

        Sides that are no multiple of the stride are padded at the bottom and right, by repeating
        the edge, and the logits cut back.
        """
        height, width = images.shape[-2:]
        logits: Tensor = self.network(self.seen(images))
        return logits[..., :height, :width].float()

    def seen(self, images: Tensor) -> Tensor:
        """What the network itself gets: normalised, and padded to a multiple of its stride."""
        height, width = images.shape[-2:]
        stride = int(self.encoder.output_stride)  # type: ignore[arg-type]
        pad = (0, -width % stride, 0, -height % stride)
        x = normalise(images)
        if any(pad):
            x = functional.pad(x, pad, mode="replicate")
        return x.contiguous(memory_format=torch.channels_last)

    def flops(self, size: int) -> int:
        """Floating-point operations for one square image, multiplications and additions."""
        from torch.utils.flop_counter import FlopCounterMode

        images = torch.zeros(1, 3, size, size, device=next(self.parameters()).device)
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                self(images)
        finally:
            for module, training in modes.items():
                module.training = training
        return int(counter.get_total_flops())


class SegmentationTask(nn.Module):
    """Batch of images and masks -> the named losses, under random geometry and colour.

    `class_weights` [K], float32, go to the losses that know them.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        segmenter: Segmenter,
        loss: str,
        augment: PairAugment | None,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.segmenter, self.loss, self.augment = segmenter, loss, augment
        # In no state: it follows from the settings and the masks.
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.signals: dict[str, Tensor] = {}
        self._per_image: dict[str, Tensor] | None = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, masks = self._augmented(batch)
        over = self._per_image
        if over is None and world_size() > 1:
            over = self._sums_per_image(masks)
        if over is not None:
            over = {name: value * len(masks) for name, value in over.items()}
        logits = self.segmenter(images)
        return segmentation_losses(self.loss, logits, masks, self.class_weights, over)

    def _augmented(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.masks is None:
            raise ValueError("a segmentation batch holds masks")
        if self.augment is None:
            return to_unit(batch.images), batch.masks
        generator = step_generator(batch.seed, batch.step, batch.images.device)
        return augment_pair(
            batch.images,
            batch.masks,
            self.augment,
            generator,
            start=batch.start,
            total=batch.total,
        )

    def _sums_per_image(self, masks: Tensor) -> dict[str, Tensor]:
        """What the means over pixels divide by, over the images of all processes.

        Ignored pixels are not spread evenly: means of parts would weigh them otherwise than the
        whole batch does.
        """
        sums = weight_sums(self.loss, masks, self.class_weights)
        return {name: mean_over_processes(one) / len(masks) for name, one in sums.items()}

    @property
    def divisible(self) -> bool:
        """Whether a batch in parts is the same computation: no layer looks at the whole of it."""
        return not any(isinstance(m, _BatchNorm) and m.training for m in self.modules())

    @contextmanager
    def divided(self, batch: Batch, parts: int) -> Iterator[Iterator[tuple[float, Batch]]]:
        """(share in the batch's loss, part) of a batch; within the block their losses add up to
        that of the whole."""
        with torch.no_grad():
            self._per_image = self._sums_per_image(self._augmented(batch)[1])
        try:
            n = len(batch.images)
            yield ((len(part.images) / n, part) for part in batch.parts(parts))
        finally:
            self._per_image = None

    def groups(self, encoder_lr: float) -> list[tuple[float, nn.Module]]:
        """(rate as a ratio of the base rate, module), for the optimiser."""
        heads: list[tuple[float, nn.Module]] = [(1.0, m) for m in self.segmenter.heads()]
        return [(encoder_lr, self.segmenter.encoder), *heads]


def predicted(logits: Tensor) -> Tensor:
    """Logits [...,C,H,W] -> class ids [...,H,W] uint8: probability above 0.5, or the largest."""
    if logits.shape[-3] == 1:
        return (logits[..., 0, :, :] > 0).to(torch.uint8)
    return logits.argmax(dim=-3).to(torch.uint8)


def describe(segmenter: Segmenter, geometry: Geometry) -> dict[str, Any]:
    """All that is needed, beside the weights, to build the model again."""
    return {
        "encoder": segmenter.encoder_name,
        "decoder": segmenter.decoder.name,
        "decoder_options": decoders.options_of(segmenter.decoder),
        "size": geometry.size,
        "resize": geometry.resize,
        "classes": list(segmenter.labels.names),
        "lut": list(segmenter.labels.lut),
        "border_lut": segmenter.labels.border_lut and list(segmenter.labels.border_lut),
        "colours": [list(colour) for colour in colours(segmenter.labels)],
    }


def rebuild(described: dict[str, Any]) -> tuple[Segmenter, Geometry]:
    """The inverse of `describe`, with random weights.

    Raises KeyError, TypeError or ValueError where the table is none that `describe` has made.
    """
    decoder, labels, geometry = described_by(described)
    return Segmenter(described["encoder"], decoder, labels), geometry


def described_by(described: dict[str, Any]) -> tuple[Decoder, Labels, Geometry]:
    """All that `describe` has told of a model but its network. Raises as `rebuild`."""
    _refuse_unsound(described)
    border = described["border_lut"]
    labels = Labels(
        tuple(described["classes"]),
        tuple(described["lut"]),
        None if border is None else tuple(border),
        tuple((r, g, b) for r, g, b in described.get("colours") or ()) or None,
    )
    decoder = decoders.component(described["decoder"], **described.get("decoder_options", {}))
    return decoder, labels, Geometry(described["size"], described["resize"])


def _refuse_unsound(described: dict[str, Any]) -> None:
    """The parts whose values nothing else would look at before they are used."""
    size, resize = described["size"], described["resize"]
    if type(size) is not int or not 1 <= size <= LARGEST or resize not in get_args(Resize):
        raise ValueError(f"size {size}, resize {resize}")
    names = described["classes"]
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise TypeError(f"classes {names}")
    bytes_of = [*described["lut"], *(described["border_lut"] or ())]
    bytes_of += [value for colour in described.get("colours") or () for value in colour]
    if not all(type(value) is int and 0 <= value <= 255 for value in bytes_of):
        raise ValueError("a class id or colour is not a whole number of 0 to 255")
    ids = {*described["lut"], *(described["border_lut"] or ())}
    ids -= {IGNORED, UNKNOWN}
    if max(ids, default=0) >= len(names):
        raise ValueError(f"class id {max(ids)} of {len(names)} classes")
    if type(described.get("flops", 1)) is not int:
        raise TypeError(f"flops {described['flops']}")
    options = described.get("options")
    if options is None:
        return
    many = [options.get(key) for key in ("classes", "mask_values", "table")]
    if not all(one is None or isinstance(one, list) for one in many):
        raise TypeError(f"options {options}")
    if not isinstance(options["src"], str) or type(options["ignore"]) not in (int, type(None)):
        raise TypeError(f"options {options}")
