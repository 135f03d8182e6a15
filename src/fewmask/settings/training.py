"""The settings of the commands that train."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from fewmask.settings.base import MaskFlags, TrainingMachine
from fewmask.types import Recipe, Resize

if TYPE_CHECKING:
    from fewmask.decoders import Decoder
    from fewmask.pretext import Pretext

Optimizer = Literal["adam", "adamw", "sgd", "lars"]

Schedule = Literal["cosine", "constant"]

Loss = Literal["bce", "ce", "dice", "focal", "bce+dice", "ce+dice", "border-ce"]

Keep = Literal["best", "last", "average"]


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainingMachine):
    """Pre-train an encoder on unlabelled images."""

    images: str
    """Unlabelled images: a folder, or KIND:PATH (cifar10:, cats-vs-dogs:, oxford-iiit-pet:); a part
    of one: "SRC?classes=cat,dog&n=2000&side=32&seed=0"; several: "SRC + SRC"."""
    out: str
    """The run folder to write; the same command on it again finishes it."""
    pretext: str | Pretext = "simclr"
    """The pretext task; its own flags follow it."""
    encoder: str = "auto"
    """The encoder, by timm's name (default: that of --init's run, else resnet50)."""
    init: str = "scratch"
    """Where the weights start: scratch, imagenet, a run folder, or a weights file."""
    weights: str | None = None
    """With --init imagenet: a local file in place of timm's download."""
    allow_partial: bool = False
    """Go on although not every encoder tensor is found in the start."""
    size: int = 224
    """Side in pixels that the network sees."""
    resize: Resize = "square"
    """square squashes images to a square; keep keeps the aspect and pads."""
    epochs: int | None = None
    """Passes over the images (default 20, if --steps isn't given)."""
    steps: int | None = None
    """Optimiser steps, in place of --epochs."""
    batch_size: int = 128
    """Images a step, over all devices."""
    lr: float | None = None
    """The base rate (default: 1e-3 for adam and adamw, 0.3 for lars, 0.06 for sgd, each scaled by
    the square root of batch/256)."""
    optimizer: Optimizer = "adamw"
    """The optimiser."""
    schedule: Schedule = "cosine"
    """How the rate runs after the warm-up."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises from zero."""
    weight_decay: float = 1e-4
    """Weight decay (decoupled for adamw); biases and norms are exempt."""
    seed: int = 0
    """Of the weights, the order and the augmentation."""
    probe_pairs: str | None = None
    """A few images with masks (SRC, up to 32 are used): every so often a linear head on the frozen
    features is fitted on half of them and scored on the others. Nothing is trained on them."""
    probe_mask_values: tuple[int, ...] | None = None
    """As --mask-values of finetune, for the masks of --probe-pairs."""
    probe_ignore: int | None = None
    """As --ignore of finetune, for the masks of --probe-pairs."""
    cache_gb: float | None = None
    """Decoded images are kept on the disk up to this size, in GB; a larger set is decoded as it is
    used (default: up to 16 GB and 100,000 images)."""
    memory_gb: float = 1.0
    """Memory for batches that are read ahead, in GB, where images are decoded as they are used."""


WATCHING = {"probe_pairs", "probe_mask_values", "probe_ignore"}

NOT_WHAT_IS_COMPUTED = {f.name for f in fields(TrainingMachine)} | {"out"} | WATCHING
NOT_WHAT_IS_COMPUTED |= {"cache_gb", "memory_gb"}
"""Settings that a run may be finished with though it was begun with others."""

PRETRAIN_EPOCHS = 20
"""Where neither --epochs nor --steps is given."""

RECIPES: dict[Recipe, dict[str, Any]] = {
    "report": {
        "epochs": 60,
        "batch_size": 32,
        "lr": 1e-4,
        "optimizer": "adam",
        "loss": "bce",
        "class_weights": None,
        "schedule": "constant",
        "warmup": 0.0,
        "encoder_lr": 1.0,
        "weight_decay": 0.0,
        "augment": False,
        "keep": "best",
    },
    "best": {
        "steps": 1000,
        "batch_size": 16,
        "lr": 1e-3,
        "optimizer": "adamw",
        "loss": "bce+dice",
        "class_weights": None,
        "schedule": "cosine",
        "warmup": 0.1,
        "encoder_lr": 0.2,
        "weight_decay": 1e-2,
        "augment": True,
        "keep": "last",
    },
}
"""Fine-tuning settings by name: `report` is the seed report's, `best` the one to use."""

WEIGHTINGS = ("balanced", "median")
"""Class weights that follow from the training masks."""


def numbers(text: str | None) -> tuple[float, ...] | None:
    """Class weights `1,2.5,0` as numbers; None where they are not, or none is above 0."""
    try:
        found = tuple(float(part) for part in (text or "").split(","))
    except ValueError:
        return None
    return found if max(found) > 0 and all(0 <= value < math.inf for value in found) else None


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(MaskFlags, TrainingMachine):
    """Fine-tune a segmentation model on all pairs given (90:10 training and validation)."""

    pairs: str
    """Images and masks: a folder with images/ and masks/, or oxford-iiit-pet:PATH."""
    out: str
    """The run folder to write; the same command on it again finishes it."""
    init: str = "scratch"
    """Where the encoder starts: scratch, imagenet, a run folder, or a weights file."""
    weights: str | None = None
    """With --init imagenet: a local file in place of timm's download."""
    allow_partial: bool = False
    """Go on although not every encoder tensor is found in the start."""
    encoder: str = "auto"
    """The encoder, by timm's name (default: that of --init's run, else resnet50)."""
    decoder: str | Decoder = "unet"
    """The decoder; its own flags follow it."""
    recipe: Recipe = "best"
    """The fine-tuning settings below, where they are not given: report or best."""
    size: int = 224
    """Side in pixels that the network sees."""
    resize: Resize = "square"
    """square squashes images to a square; keep keeps the aspect and pads."""
    dev: float | None = None
    """Use this fraction of the pairs only (a random one, by --seed)."""
    masks: int | None = None
    """Use this number of pairs only (random ones, by --seed)."""
    epochs: int | None = None
    """Passes over the training pairs."""
    steps: int | None = None
    """Optimiser steps, in place of --epochs."""
    batch_size: int | None = None
    """Images a step, over all devices."""
    lr: float | None = None
    """The base rate, of the decoder; the encoder's is --encoder-lr times it."""
    optimizer: Optimizer | None = None
    """The optimiser."""
    loss: Loss | None = None
    """The loss: bce or ce (one and the same: sigmoid cross-entropy of two classes, softmax of
    more), dice, focal, a sum, or border-ce (cross-entropy weighted towards the gaps between
    objects, as in the first U-Net)."""
    class_weights: str | None = None
    """Weights of the classes in all losses but dice: balanced (all pixels / (classes x
    the class's pixels)), median (median frequency balancing), both from the training masks; or a
    number for each class, separated by commas."""
    schedule: Schedule | None = None
    """How the rate runs after the warm-up."""
    warmup: float | None = None
    """Share of the steps in which the rate rises from zero."""
    encoder_lr: float | None = None
    """The encoder's rate as a ratio of --lr."""
    weight_decay: float | None = None
    """Weight decay (decoupled for adamw); biases and norms are exempt."""
    augment: bool | None = None
    """Random flips, scale, shift, brightness and contrast."""
    keep: Keep | None = None
    """The weights to keep: best (lowest validation loss), last, or average (of the last steps)."""
    seed: int = 0
    """Of the split, the weights, the order and the augmentation."""

    def contradictions(self) -> list[str]:
        """Steps with epochs, --dev with --masks, and class weights that are none."""
        both = self.dev is not None and self.masks is not None
        more = ["--dev and --masks are both given: choose one"] if both else []
        if self.class_weights is not None and self.loss == "dice":
            more.append("--class-weights and --loss dice: dice has none. Take one of them out")
        if self.class_weights not in (None, *WEIGHTINGS) and numbers(self.class_weights) is None:
            more.append(
                f"--class-weights {self.class_weights}: expected {', '.join(WEIGHTINGS)}, or a "
                "number of 0 or more for each class, separated by commas"
            )
        return [*super().contradictions(), *more]

    def resolved(self) -> FinetuneSettings:
        """The same with every open field filled from the recipe."""
        recipe = dict(RECIPES[self.recipe])
        if self.steps is not None:
            recipe.pop("epochs", None)
        if self.epochs is not None:
            recipe.pop("steps", None)
        return replace(self, **{k: v for k, v in recipe.items() if getattr(self, k) is None})
