"""The settings of the commands that make a study, or its page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewmask.settings.base import Machine, Settings
from fewmask.types import Border, Precision, Recipe, Resize

ExecutorName = Literal["local", "ray"]


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
    executor: ExecutorName = "local"
    """Where the cells are computed: local, one after the other, or ray: on the Ray cluster of
    RAY_ADDRESS, or one that runs on this machine, or this machine's own cores."""
    cpus_per_cell: int | None = None
    """With --executor ray: the cores that a cell takes, and the threads that it computes with
    (default: as many as it would use here)."""

    def contradictions(self) -> list[str]:
        """As always, and a limit of something that isn't asked for."""
        faults = super().contradictions()
        if self.most_repeats is not None and not self.until_decided:
            faults.append(
                f"--most-repeats {self.most_repeats} goes with --until-decided. Pass both"
            )
        if self.cpus_per_cell is not None and self.executor != "ray":
            faults.append(
                f"--cpus-per-cell {self.cpus_per_cell} goes with --executor ray. Pass both"
            )
        return faults


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Table, figures and page of a study again, from what is there."""

    study: str
    """The study folder."""


@dataclass(frozen=True, kw_only=True)
class RerunSettings(Settings):
    """Repeat a run or a study in another folder, and say whether the same comes out."""

    result: str
    """The folder of a finished run of pretrain or finetune, or of a study."""
    out: str
    """The folder to write the repetition to."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """The whole study on a small generated data set, in under three minutes on two cores."""

    out: str = "demo"
    """The folder to write the data and the study to."""
    seed: int = 0
    """Of the data and the study."""
