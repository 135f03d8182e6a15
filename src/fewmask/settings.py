"""The settings of every command: the flags, the configuration files and the Python arguments.

One frozen dataclass a command. The strings under the fields become the help texts. A field whose
default is None takes its value from the recipe or from the data, as its text says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from os import PathLike
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from fewmask.types import Border, Precision, Recipe, Resize, UserError, is_union

if TYPE_CHECKING:
    from fewmask.decoders import Decoder
    from fewmask.pretext import Pretext

Optimizer = Literal["adam", "adamw", "sgd", "lars"]
Schedule = Literal["cosine", "constant"]
Loss = Literal["bce", "ce", "dice", "focal", "bce+dice", "ce+dice", "border-ce"]
Keep = Literal["best", "last", "average"]
Format = Literal["onnx", "openvino", "smp", "torch"]
Suggesting = Literal["random", "typical", "k-centre", "uncertainty", "mix"]


RANGES: dict[str, tuple[float, float, str]] = {
    "size": (16, 8192, "16 to 8192 pixels"),
    "epochs": (1, math.inf, "a number above 0"),
    "steps": (1, math.inf, "a number above 0"),
    "batch_size": (2, math.inf, "at least 2 (batch norm and contrast compare images)"),
    "lr": (1e-300, math.inf, "a number above 0"),
    "warmup": (0, 1, "a share of the steps, 0 to 1"),
    "weight_decay": (0, math.inf, "0 or more"),
    "encoder_lr": (0, math.inf, "a ratio, 0 or more"),
    "dev": (1e-300, 1, "a fraction of the pairs, above 0 and up to 1"),
    "masks": (1, math.inf, "a number above 0"),
    "repeats": (1, math.inf, "a number above 0"),
    "seed": (0, 2**63 - 1, "a whole number of 0 or more"),
    "devices": (1, 4096, "a number above 0"),
    "workers": (1, 4096, "a number above 0"),
    "train": (2, math.inf, "a number of images, at least 2 of each class"),
    "test": (1e-300, 1 - 1e-9, "a share of the images, above 0 and below 1"),
    "draws": (1, math.inf, "a number above 0"),
    "neighbours": (1, math.inf, "a number above 0"),
    "most": (32, math.inf, "a number of images, at least 32"),
    "budget": (1, math.inf, "a number of images above 0"),
    "most_repeats": (2, 1000, "a number of repeats, 2 to 1000"),
    "margin": (1e-300, 1, "a difference in IoU, above 0 and up to 1 (0.01 is one point)"),
    "targets": (1e-300, 1 - 1e-9, "an IoU between 0 and 1"),
}
"""Smallest and largest value of the numbers, and what to call that."""

WEIGHTINGS = ("balanced", "median")
"""Class weights that follow from the training masks."""

PATHS = {"images", "pairs", "init", "weights", "run", "out", "study", "probe_pairs"}
PATHS |= {"sources", "target", "extractor"}


class Settings:
    """What all settings share: types, ranges and paths are checked as soon as they are made."""

    def __post_init__(self) -> None:
        faults: list[str] = []
        hints = get_type_hints(type(self), localns={"Pretext": Any, "Decoder": Any})
        for field in fields(self):  # type: ignore[arg-type]
            value, faulty = _accepted(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            faults += faulty
        faults = faults or self.contradictions()
        if faults:
            raise UserError(*faults)

    def contradictions(self) -> list[str]:
        """Faults of settings that do not go together."""
        given = [
            f"--{name}" for name in ("epochs", "steps") if getattr(self, name, None) is not None
        ]
        return [f"{' and '.join(given)} are both given: choose one"] if len(given) > 1 else []


def _accepted(name: str, value: Any, hint: Any) -> tuple[Any, list[str]]:
    """The value in the field's type, or a fault. Paths become text without a last slash."""
    kinds = [a for a in get_args(hint) if a is not NoneType] if is_union(hint) else [hint]
    flag = f"--{name.replace('_', '-')}"
    if value is None or Any in kinds:
        return value, []
    if get_origin(kinds[0]) is tuple:
        if isinstance(value, str | bytes | PathLike | int | float):
            value = (value,)
        found = [_accepted(name, one, get_args(kinds[0])[0]) for one in value]
        return tuple(one for one, _ in found), [fault for _, faulty in found for fault in faulty]
    if get_origin(kinds[0]) is Literal:
        known = get_args(kinds[0])
        fault = f"{flag} {value}: expected one of {', '.join(map(str, known))}"
        return value, [] if value in known else [fault]
    if isinstance(value, PathLike) and str in kinds:
        value = str(value)
    if name in (PATHS | {"paths"}) - {"out"} and value == "":  # a plan's cells get theirs later
        return value, [f"{flag}: is empty; expected a path"]
    if name in PATHS and isinstance(value, str) and len(value) > 1:
        value = value.rstrip("/")
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds):
        words = " or ".join(kind.__name__ for kind in kinds)
        return value, [f"{flag} {value!r}: expected {words}"]
    low, high, words = RANGES.get(name, (-math.inf, math.inf, ""))
    outside = isinstance(value, int | float) and not (
        low <= value <= high and abs(value) < math.inf
    )
    return value, [f"{flag} {value}: expected {words or 'a finite number'}"] if outside else []


def numbers(text: str | None) -> tuple[float, ...] | None:
    """Class weights `1,2.5,0` as numbers; None where they are not, or none is above 0."""
    try:
        found = tuple(float(part) for part in (text or "").split(","))
    except ValueError:
        return None
    return found if max(found) > 0 and all(0 <= value < math.inf for value in found) else None


@dataclass(frozen=True, kw_only=True)
class Reading(Settings):
    """How data is read; changes speed, not what is computed."""

    workers: int | None = None
    """How many threads decode images (default: one a core, up to 8)."""
    download: bool = False
    """Download a known data set (oxford-iiit-pet:, cifar10:, cats-vs-dogs:) that is not there."""


@dataclass(frozen=True, kw_only=True)
class Machine(Reading):
    """Where a command computes."""

    device: str = "auto"
    """cpu, cuda, mps or auto (the fastest that is there)."""


@dataclass(frozen=True, kw_only=True)
class TrainingMachine(Machine):
    """Where and how a command trains."""

    devices: int = 1
    """How many processes (one a GPU; gloo on CPU) share the work of a training run."""
    precision: Precision = "auto"
    """32, bf16 (mixed), or auto: bf16 where the device computes it natively."""


@dataclass(frozen=True, kw_only=True)
class MaskFlags(Settings):
    """How masks are read."""

    border: Border = "ignore"
    """Oxford-IIIT Pet only: what its border class is."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in the order of their ids, separated by commas (default: those of
    class_dict.csv beside masks/: name,r,g,b; it also reads coloured masks)."""
    ignore: int | None = None
    """The value in mask files whose pixels neither train nor count."""
    mask_values: tuple[int, ...] | None = None
    """The values in mask files, in class order, separated by commas (0,255)."""


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
    encoder: str = "resnet50"
    """The encoder, by timm's name."""
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
    encoder: str = "resnet50"
    """The encoder, by timm's name."""
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


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(MaskFlags, Machine):
    """Score a run on every pair given, at the masks' own resolution."""

    run: str
    """The folder of a fine-tuning run."""
    pairs: str
    """Images and masks: a folder with images/ and masks/, or oxford-iiit-pet:PATH."""
    out: str
    """The folder to write metrics.json, per_image.csv and overlays/ to."""
    border: Border | None = None  # type: ignore[assignment]
    """Oxford-IIIT Pet only: what its border class is (default: as the run was trained)."""


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


@dataclass(frozen=True, kw_only=True)
class PredictSettings(Machine):
    """Write masks and overlays for images of any size."""

    run: str
    """The folder of a fine-tuning run."""
    paths: tuple[str, ...]
    """Image files and folders."""
    out: str
    """The folder to write masks/STEM.png (class ids) and overlays/STEM.png to."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Settings):
    """Write a run's model in another format, checked against the original on real inputs."""

    run: str
    """The folder of a fine-tuning run."""
    out: str
    """The file to write (smp: a folder)."""
    format: Format | None = None
    """The format (default: by the ending of --out: .onnx, .xml openvino, .pt2 torch, none smp)."""


@dataclass(frozen=True, kw_only=True)
class CheckSettings(MaskFlags, Reading):
    """Every fault and warning of the data at once."""

    pairs: str | None = None
    """Images and masks: a folder with images/ and masks/, or oxford-iiit-pet:PATH."""
    images: tuple[str, ...] = ()
    """Unlabelled images: a folder, or KIND:PATH; may be given several times."""
    out: str | None = None
    """A folder to write duplicates.csv and duplicates.png to: pictures that occur twice, also in
    other encodings, sizes, crops and mirrored, within a source and in both images and pairs."""


@dataclass(frozen=True, kw_only=True)
class StudySettings(Machine):
    """Compare starting points x label budgets x repeats on one held-out test set."""

    plan: str
    """A plan's name (paper, quick, temperature, ...) or a TOML file of the same form."""
    out: str
    """The study folder; the same command on it again finishes it."""
    pairs: str | None = None
    """In place of the plan's pairs."""
    test: str | None = None
    """A test set of your own (SRC, as pairs): all of the plan's pairs are then to train on."""
    allow_overlap: bool = False
    """Go on although pictures of your own test set are among the pairs; they are counted."""
    images: str | None = None
    """In place of the images of every arm that pre-trains."""
    weights: str | None = None
    """For the arms that start from imagenet: a local file in place of timm's download."""
    encoder: str | None = None
    """In place of the plan's encoder."""
    decoder: str | None = None
    """In place of the plan's decoder."""
    recipe: Recipe | None = None
    """In place of the plan's fine-tuning recipe."""
    border: Border | None = None
    """In place of the plan's reading of Oxford-IIIT Pet's border class."""
    classes: tuple[str, ...] | None = None
    """In place of the plan's names of the classes, separated by commas."""
    ignore: int | None = None
    """In place of the plan's ignored value in mask files."""
    mask_values: tuple[int, ...] | None = None
    """In place of the plan's values in mask files, in class order, separated by commas."""
    size: int | None = None
    """In place of the plan's size, in pixels."""
    resize: Resize | None = None
    """In place of the plan's way of resizing."""
    dev: tuple[float, ...] | None = None
    """In place of the plan's budgets: fractions of all pairs, separated by commas."""
    masks: tuple[int, ...] | None = None
    """In place of the plan's budgets: numbers of masks, separated by commas."""
    epochs: int | None = None
    """In place of the plan's fine-tuning epochs or steps."""
    steps: int | None = None
    """In place of the plan's fine-tuning steps or epochs."""
    batch_size: int | None = None
    """In place of the plan's fine-tuning batch."""
    lr: float | None = None
    """In place of the plan's fine-tuning base rate."""
    repeats: int | None = None
    """In place of the plan's repeats, for every budget."""
    until_decided: bool = False
    """Add repeats one by one to what is still undecided. The verdicts allow for the looking, so
    they ask for clearer differences than a fixed number of repeats would."""
    most_repeats: int | None = None
    """With --until-decided: the number of repeats at which it ends in any case (default: 10)."""
    margin: float | None = None
    """In place of the plan's margin: the difference in IoU within which two arms are called
    equivalent (default: 0.01, one point). Fixed once the study has begun."""
    targets: tuple[float, ...] | None = None
    """In place of the plan's targets: IoUs for which the page says how many masks they take,
    separated by commas."""
    seed: int | None = None
    """In place of the plan's seed."""
    precision: Precision = "auto"
    """32, bf16 (mixed), or auto: bf16 where the device computes it natively."""

    def contradictions(self) -> list[str]:
        """As always, and a limit of something that isn't asked for."""
        faults = super().contradictions()
        if self.most_repeats is not None and not self.until_decided:
            faults.append(
                f"--most-repeats {self.most_repeats} goes with --until-decided. Pass both"
            )
        return faults


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Table, figures and page of a study again, from what is there."""

    study: str
    """The study folder."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """The whole study on a small generated data set, in under three minutes on two cores."""

    out: str = "demo"
    """The folder to write the data and the study to."""
    seed: int = 0
    """Of the data and the study."""


WATCHING = {"probe_pairs", "probe_mask_values", "probe_ignore"}
NOT_WHAT_IS_COMPUTED = {f.name for f in fields(TrainingMachine)} | {"out"} | WATCHING
"""Settings that a run may be finished with though it was begun with others."""
