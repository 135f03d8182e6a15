"""What all settings share: their checks, and the fields that many commands have."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from os import PathLike
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fewmask.types import Border, Compile, Precision, UserError, is_union

MANY = 10**9
"""More steps, images or passes than anybody means."""
RANGES: dict[str, tuple[float, float, str]] = {
    "size": (16, 8192, "16 to 8192 pixels"),
    "epochs": (1, MANY, "a number above 0, up to a billion"),
    "steps": (1, MANY, "a number above 0, up to a billion"),
    "batch_size": (2, MANY, "2 to a billion (batch norm and contrast compare images)"),
    "lr": (1e-300, math.inf, "a number above 0"),
    "warmup": (0, 1, "a share of the steps, 0 to 1"),
    "weight_decay": (0, math.inf, "0 or more"),
    "encoder_lr": (0, math.inf, "a ratio, 0 or more"),
    "dev": (1e-300, 1, "a fraction of the pairs, above 0 and up to 1"),
    "masks": (1, MANY, "a number above 0, up to a billion"),
    "repeats": (1, 1000, "a number of repeats, 1 to 1000"),
    "seed": (0, 2**63 - 1, "a whole number of 0 or more"),
    "devices": (1, 4096, "a number, 1 to 4096"),
    "workers": (1, 4096, "a number, 1 to 4096"),
    "cpus_per_cell": (1, 4096, "a number, 1 to 4096"),
    "train": (2, MANY, "a number of images, 2 of each class to a billion"),
    "test": (1e-300, 1 - 1e-9, "a share of the images, above 0 and below 1"),
    "draws": (1, MANY, "a number above 0, up to a billion"),
    "neighbours": (1, MANY, "a number above 0, up to a billion"),
    "most": (32, MANY, "a number of images, 32 to a billion"),
    "budget": (1, MANY, "a number of images, 1 to a billion"),
    "most_repeats": (2, 1000, "a number of repeats, 2 to 1000"),
    "margin": (1e-300, 1, "a difference in IoU, above 0 and up to 1 (0.01 is one point)"),
    "max_megapixels": (1e-6, 1e6, "millions of pixels above 0"),
    "cache_gb": (0, math.inf, "a number of gigabytes, 0 or more"),
    "memory_gb": (1e-300, math.inf, "a number of gigabytes above 0"),
    "targets": (1e-300, 1 - 1e-9, "an IoU between 0 and 1"),
}
"""Smallest and largest value of the numbers, and what to call that."""

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
        value = tuple(value)
        if not value and NoneType in get_args(hint):
            return value, [f"{flag}: is empty; leave it out, or name something"]
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


@dataclass(frozen=True, kw_only=True)
class Reading(Settings):
    """How data is read; changes speed, not what is computed."""

    workers: int | None = None
    """How many threads (beside a GPU: processes) decode images (default: one a core, up to 8)."""
    max_megapixels: float = 200.0
    """Largest image that is decoded, in millions of pixels; a small file that holds more may be
    meant to fill the memory."""
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
    compile: Compile = "off"
    """Whether torch.compile compiles the network: off, on, or auto, where a trial at the start
    finds steps to be faster by enough to make up for it."""


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
