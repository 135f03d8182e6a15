"""What the layers hand to each other. Imports neither torch nor numpy when it is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_origin

if TYPE_CHECKING:
    from torch import Tensor

Resize = Literal["square", "keep"]
Border = Literal["ignore", "foreground", "background", "class"]
Recipe = Literal["report", "best"]
Precision = Literal["auto", "32", "bf16"]
Compile = Literal["off", "on", "auto"]
Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

IGNORED = 255
"""The label of pixels that neither train nor count, in every label array of the project."""


class UserError(Exception):
    """A mistake that the user can mend; the command line prints it and exits with 2.

    Each fault is one line that names the file, the value found and the mend.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def is_text(name: str) -> bool:
    """Whether a file's name can be written into a table or a page: Linux takes any bytes for one,
    and Python shows those that are no UTF-8 as lone surrogates.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Terminated(KeyboardInterrupt):
    """SIGTERM came while a network was trained."""


@dataclass(frozen=True)
class Labels:
    """How the values in mask files become class ids.

    `lut[v]` is the class id of file value `v`; 255 where the pixel is ignored. `border_lut` is the
    second reading that Oxford-IIIT Pet is also scored under (border = foreground); None elsewhere.
    `colours` are the classes' own in pictures, where the data gives some.
    """

    names: tuple[str, ...]
    lut: tuple[int, ...]
    border_lut: tuple[int, ...] | None = None
    colours: tuple[Colour, ...] | None = None

    @property
    def n_classes(self) -> int:
        return len(self.names)

    @property
    def n_logits(self) -> int:
        """Two classes are one sigmoid channel (the logit of class 1), more are a softmax."""
        return 1 if self.n_classes == 2 else self.n_classes


def is_union(hint: Any) -> bool:
    """Whether a type is `A | B`."""
    return get_origin(hint) in (Union, UnionType)


class Batch(NamedTuple):
    """One step's data. Images uint8 [B,3,H,W]; masks uint8 class ids [B,H,W], 255 ignored.

    `rows` are the rows of the data set that the batch holds, for messages. `start` and `total` say
    which part of the global batch this process holds, so that random numbers can be drawn for the
    whole and cut: two processes then do what one would have done.
    """

    images: Tensor
    rows: Tensor
    seed: int
    step: int
    masks: Tensor | None = None
    valid: Tensor | None = None
    """int32 [B,2]: height and width of the part of each image that is not padding."""
    labels: Tensor | None = None
    """int64 [B]: the class of each image, where the pool has class folders."""
    start: int = 0
    total: int = 0

    def to(self, device: Any) -> Batch:
        """The same with its tensors on a device (`rows` stay where they are)."""
        return self._replace(
            images=self.images.to(device, non_blocking=True),
            masks=None if self.masks is None else self.masks.to(device, non_blocking=True),
            valid=None if self.valid is None else self.valid.to(device, non_blocking=True),
            labels=None if self.labels is None else self.labels.to(device, non_blocking=True),
        )

    def parts(self, n: int) -> Iterator[Batch]:
        """Itself in up to `n` parts of about equal size, in order."""
        size = -(-len(self.images) // n)
        for first in range(0, len(self.images), size):
            own = slice(first, first + size)
            yield self._replace(
                images=self.images[own],
                rows=self.rows[own],
                masks=None if self.masks is None else self.masks[own],
                valid=None if self.valid is None else self.valid[own],
                labels=None if self.labels is None else self.labels[own],
                start=self.start + first,
            )

    def pinned(self) -> Batch:
        """The same in page-locked memory, from where a GPU fetches it while it works."""
        return self._replace(
            images=self.images.pin_memory(),
            masks=None if self.masks is None else self.masks.pin_memory(),
            valid=None if self.valid is None else self.valid.pin_memory(),
            labels=None if self.labels is None else self.labels.pin_memory(),
        )


@dataclass(frozen=True)
class Transfer:
    """How much of an encoder was loaded, and from where."""

    source: str
    tensors: int
    of_tensors: int
    parameter_share: float
    """0 to 1: parameters loaded over parameters of the encoder."""
    unused: int = 0
    """Tensors of the file that are not the encoder's (heads, decoders)."""
    moved: float | None = None
    """Distance ||w - w_start|| / ||w_start|| of the source from its own start, if known."""

    def sentence(self) -> str:
        moved = "" if self.moved is None else f", which moved {self.moved:.3g} from its start"
        return (
            f"{self.tensors} of {self.of_tensors} encoder tensors, "
            f"{100 * self.parameter_share:.4g} % of parameters, from {self.source}{moved}"
        )


@dataclass(frozen=True)
class PretrainResult:
    """What `fewmask pretrain` leaves behind; `result.json` holds the same."""

    out: Path
    encoder: str
    pretext: str
    steps: int
    seconds: float
    images: int
    loss: float
    moved: float
    transfer: Transfer | None = None
    probe_iou: float | None = None
    """With --probe-pairs: IoU of the dense probe at the end, a fraction of 1."""
    probe_iou_start: float | None = None
    """The same of the encoder at its start."""
    signals: str = ""
    """The last of what the run was watched by, in words: accuracy and chance, effective rank."""
    warnings: tuple[str, ...] = ()
    """What speaks against the encoder at the end: collapsed features, nothing to learn from."""


@dataclass(frozen=True)
class FinetuneResult:
    """What `fewmask finetune` leaves behind. `val_iou` is a fraction of 1, None if undefined."""

    out: Path
    encoder: str
    decoder: str
    steps: int
    seconds: float
    n_train: int
    n_val: int
    val_loss: float
    val_iou: float | None
    best_step: int
    moved: float
    """Relative distance of the encoder's parameters from their start."""
    transfer: Transfer | None = None


@dataclass(frozen=True)
class EvaluateResult:
    """The contents of `metrics.json`; scores are fractions of 1, None where undefined."""

    out: Path
    n: int
    n_seen_in_training: int
    dataset: dict[str, float | None]
    per_image_mean: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    definitions: dict[str, str]


@dataclass(frozen=True)
class ProbeScore:
    """Accuracies of one probe, or their differences: a value a draw, fractions of 1."""

    probe: str
    """linear, knn or finetune."""
    encoder: str
    """run, random, or "run less random"."""
    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    """95 % interval of the mean over the draws of the training images and over the test images;
    None of a single draw."""


@dataclass(frozen=True)
class ProbeResult:
    """What `fewmask probe` leaves behind; `result.json` holds the same."""

    out: Path
    run: str
    encoder: str
    size: int
    images: int
    classes: tuple[str, ...]
    n_train: int
    """Images that a draw trains on; `n_val` more choose the linear probe's regularisation."""
    n_val: int
    n_test: int
    chance: float
    """Share of the largest class in the test set: what a constant answer gets right."""
    scores: tuple[ProbeScore, ...]
    differences: tuple[ProbeScore, ...]
    """Run less random encoder, paired by draw; empty where there is no reference."""
    transfer: Transfer | None = None


@dataclass(frozen=True)
class Suggestion:
    """A picture to label next; scores that its method doesn't measure are None."""

    rank: int
    """From 1, the first to label."""
    name: str
    path: str
    image: str
    """Its copy, below the folder that was written."""
    method: str
    typicality: float | None = None
    """1 / mean distance of the L2-normalised features to up to 20 neighbours in its cluster."""
    distance: float | None = None
    """To the nearest picture that was labelled or suggested before, 0 to 2."""
    uncertainty: float | None = None
    """Mean over its pixels of the entropy of the run's probabilities, 0 to 1."""
    cluster: int | None = None
    cluster_size: int | None = None


@dataclass(frozen=True)
class SuggestResult:
    """What `fewmask suggest` leaves behind; `result.json` holds the same."""

    out: Path
    method: str
    """As asked for; each suggestion names the one that chose it."""
    why: str
    """How the method came about, in a line."""
    features: str
    """What the pictures were compared by, and what that is worth, in a line."""
    images: int
    candidates: int
    """Images left to choose from."""
    labelled: int
    """Images left out because they show a labelled picture."""
    repeated: int
    """Images left out because another one stands for their picture."""
    drafts: bool
    """Whether there are masks of the run to begin with."""
    suggestions: tuple[Suggestion, ...]
    encoder: str | None = None
    size: int | None = None
    transfer: Transfer | None = None


@dataclass(frozen=True)
class Distance:
    """How far one set is from the target in one extractor's features, by one measure."""

    source: str
    """The pool's name; of the target's own other half `fewmask.distances.command.FLOOR`."""
    target: str
    extractor: str
    measure: str
    """kid, mmd2, knn, coverage or density."""
    value: float
    low: float
    high: float
    """Ends of the 95 % interval over the pictures drawn."""
    n: int
    """Pictures of each of the two sets."""


@dataclass(frozen=True)
class SimilarityResult:
    """What `fewmask similarity` leaves behind; `result.json` holds the same."""

    out: Path
    target: str
    sources: dict[str, str]
    """Name of the pool -> the SRC that it was given as."""
    extractors: tuple[str, ...]
    weak: tuple[str, ...]
    """Those of them that need no weights and know colours and edges alone."""
    n: int
    """Pictures a set."""
    smallest: str
    """The set that decided on `n`; empty where --most did."""
    distances: tuple[Distance, ...]


@dataclass(frozen=True)
class PredictResult:
    """Where the masks and overlays lie, in the order of the images."""

    out: Path
    masks: tuple[Path, ...]
    overlays: tuple[Path, ...]
    engine: str = "torch"
    """What computed them: torch, onnx, openvino, or openvino int8."""


@dataclass(frozen=True)
class RerunResult:
    """What came of running a result again."""

    out: Path
    same: bool
    """Whether weights (of a study: scores) are equal, to the bit."""
    differences: tuple[str, ...]
    """A line each: what is otherwise in the results."""
    surroundings: tuple[str, ...]
    """A line each: versions and machine that are otherwise than where the result was made."""


@dataclass(frozen=True)
class StudyResult:
    """A finished (or partly finished) study; `rows` are those of `results.csv`.

    `findings` are the sentences on top of its page: did it help, and how sure is that.
    """

    out: Path
    page: Path
    rows: tuple[dict[str, Any], ...] = field(default=())
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckResult:
    """What `fewmask check` found; each a line that names the file, what is wrong and the mend."""

    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
