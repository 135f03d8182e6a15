"""The settings of the commands that compare images, or encoders by their features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewmask.settings.base import Machine, TrainingMachine
from fewmask.types import Resize

Suggesting = Literal["random", "typical", "k-centre", "uncertainty", "mix"]


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(TrainingMachine):
    """How far an encoder's frozen features tell labelled classes apart, beside a random one's."""

    run: str
    """A run folder, a weights file, scratch, or imagenet."""
    images: str
    """Labelled images: a folder of class folders, cats-vs-dogs:PATH or cifar10:PATH."""
    out: str
    """The folder to write probe.csv, probe.png, confusion.csv and confusion.png to."""
    encoder: str | None = None
    """The encoder, by timm's name (default: the run's)."""
    weights: str | None = None
    """With imagenet: a local file in place of timm's download."""
    allow_partial: bool = False
    """Go on although not every encoder tensor is found."""
    size: int | None = None
    """Side in pixels that the network sees (default: the run's, or 224)."""
    resize: Resize | None = None
    """square squashes images to a square; keep keeps the aspect and pads (default: the run's)."""
    train: int | None = None
    """Labelled images a draw takes, of all classes together; a fifth of them chooses the
    regularisation (default: half of those that are not test, so that draws differ)."""
    test: float = 0.2
    """Share of the images, of every class, to test on: the same ones in every draw."""
    draws: int = 3
    """How often the training images are drawn."""
    neighbours: int = 20
    """Neighbours that vote in the k-NN probe."""
    reference: bool = True
    """Measure an encoder of random weights in the same way, for comparison."""
    finetune: bool = False
    """Train a classifier whole as well, encoder and linear head, in every draw."""
    steps: int | None = None
    """With --finetune: optimiser steps (default: 500)."""
    batch_size: int | None = None
    """With --finetune: images a step (default: 64)."""
    lr: float | None = None
    """With --finetune: the rate of AdamW, for encoder and head (default: 5e-4)."""
    seed: int = 0
    """Of the test set, the draws and the random weights."""

    def contradictions(self) -> list[str]:
        """Flags of a training that isn't asked for, weights for another start, many devices."""
        given = [f"--{n.replace('_', '-')}" for n in ("steps", "batch_size", "lr")
                 if getattr(self, n) is not None]  # fmt: skip
        faults = []
        if given and not self.finetune:
            faults.append(f"{', '.join(given)}: of the classifier trained whole. Pass --finetune")
        if self.weights is not None and self.run != "imagenet":
            faults.append(
                f"--weights {self.weights} goes with imagenet only, not with {self.run}. "
                f"Name that file in place of {self.run}"
            )
        if self.devices > 1:
            faults.append(f"--devices {self.devices}: a probe works on one. Leave it out")
        return faults


@dataclass(frozen=True, kw_only=True)
class SuggestSettings(Machine):
    """Which images to label next, with drafts of their masks for Label Studio and CVAT."""

    images: str
    """The images to choose from: a folder, or KIND:PATH (cifar10:, cats-vs-dogs:, ...)."""
    budget: int
    """How many to suggest."""
    out: str
    """The folder to write the list, the contact sheet and the labelling tools' files to."""
    method: Suggesting = "mix"
    """random; typical (a typical image of each cluster); k-centre (far from all others);
    uncertainty (of a fine-tuned run); mix: typical below 50 labelled images or without such a run,
    else the most uncertain of the typical ones."""
    pairs: str | None = None
    """The images with masks so far; they and their copies are not suggested."""
    run: str | None = None
    """What the images are compared by: a run folder, a weights file, or imagenet. A fine-tuning
    run also draws the drafts; what it was trained on is not suggested."""
    weights: str | None = None
    """A weights file to compare the images by, in place of the run's encoder."""
    encoder: str | None = None
    """The encoder of the run or the weights, by timm's name (default: the one that they name)."""
    allow_partial: bool = False
    """Go on although not every encoder tensor is found."""
    size: int | None = None
    """Side in pixels at which images are compared (default: the run's, or 224; 64 without)."""
    resize: Resize | None = None
    """square squashes images to a square; keep keeps the aspect and pads (default: the run's)."""
    keep_near: bool = False
    """Suggest near duplicates too (frames of a fixed camera); equal images are never repeated."""
    seed: int = 0
    """Of the random draw and of the clusters."""

    def contradictions(self) -> list[str]:
        """Uncertainty without a run, an encoder of nothing, and a run that knows nothing."""
        faults = []
        if self.method == "uncertainty" and self.run is None:
            faults.append("--method uncertainty: of a fine-tuned model. Name its folder as --run")
        if self.run == "scratch":
            faults.append(
                "--run scratch: random weights say little of images. Leave it out to compare them "
                "by colours and edges"
            )
        given = self.run is not None or self.weights is not None
        if self.encoder is not None and not given:
            faults.append(f"--encoder {self.encoder}: of which weights? Pass --run or --weights")
        return faults


@dataclass(frozen=True, kw_only=True)
class SimilaritySettings(Machine):
    """How far image sets are from a target set, under several extractors of features."""

    sources: tuple[str, ...]
    """Image sets: a folder, KIND:PATH, a part "SRC?classes=cat,dog&n=2000&side=32&seed=0", or a
    mixture "SRC + SRC"."""
    target: str
    """The set that they are compared with, the images you have masks of, say (a pairs folder stands
    for its images)."""
    out: str
    """The folder to write similarity.csv, similarity.png, map.png and nearest.png to."""
    extractor: tuple[str, ...] = ()
    """What turns pictures into features: a run folder, a weights file, imagenet, or weak (colours
    and edges, no weights); may be given several times (default: weak, and imagenet if --weights
    says where)."""
    encoder: str | None = None
    """The encoder of a weights file or of imagenet, by timm's name (default: the run's)."""
    weights: str | None = None
    """With imagenet: a local file in place of timm's download."""
    allow_partial: bool = False
    """Go on although not every encoder tensor is found."""
    size: int | None = None
    """Side in pixels that the network sees (default: the run's, or 224; weak: 96)."""
    resize: Resize | None = None
    """square squashes images to a square; keep keeps the aspect and pads (default: the run's)."""
    most: int = 2000
    """Images a set to compare at most, drawn by --seed. All sets give as many: what the smallest
    has, or half of the target's."""
    neighbours: int = 5
    """Neighbours of the k-NN distance, of coverage and of density."""
    seed: int = 0
    """Of the images drawn and of the target's halves."""

    def contradictions(self) -> list[str]:
        """No sources, weights that nothing reads, imagenet without its encoder."""
        faults = [] if self.sources else ["SOURCES is missing. See fewmask similarity --help"]
        read = not self.extractor or "imagenet" in self.extractor
        if self.weights is not None and not read:
            faults.append(
                f"--weights {self.weights} goes with --extractor imagenet only. "
                f"Name that file as --extractor, or add --extractor imagenet"
            )
        if len(set(self.extractor)) < len(self.extractor):
            faults.append(f"--extractor {', '.join(self.extractor)}: one is given twice")
        return faults
