"""The values in mask files -> classes: what flags name, or what all masks together show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fewmask.data.sources import MaskOptions
from fewmask.types import IGNORED, Labels

UNKNOWN = 254
"""What a look-up table gives for a value that is no class."""
SHOWN = 12
"""Values that a message lists before it stops."""


def infer(options: MaskOptions, found: Iterable[int]) -> tuple[Labels, list[str]]:
    """The classes of masks that hold the values `found`, and what is wrong with the flags.

    Without --classes and --mask-values the values must be 0..K-1 without a gap; where they are
    not, two classes are assumed, and the values outside are left for the caller to report.
    """
    faults = _wrong_flags(options)
    values = set(found) - {options.ignore}
    if options.mask_values is not None:
        ids = list(options.mask_values)
    elif options.classes:
        ids = list(range(len(options.classes)))
    else:
        gapless = values == set(range(len(values)))
        ids = list(range(max(2, len(values)))) if gapless else [0, 1]
    if not 2 <= len(ids) <= UNKNOWN:
        faults.append(f"{len(ids)} classes; expected 2 to {UNKNOWN}. Name at least two values")
        ids = [0, 1]
    lut = [UNKNOWN] * 256
    for k, value in enumerate(ids):
        if 0 <= value <= 255:
            lut[value] = k
    if options.ignore is not None and 0 <= options.ignore <= 255:
        lut[options.ignore] = IGNORED
    return Labels(_names(options, len(ids)), tuple(lut)), faults


def _wrong_flags(options: MaskOptions) -> list[str]:
    faults = []
    values, names, ignore = options.mask_values, options.classes, options.ignore
    if ignore is not None and not 0 <= ignore <= 255:
        faults.append(f"--ignore {ignore}: expected a value of 0 to 255")
    if values is not None:
        shown = ",".join(map(str, values))
        if len(set(values)) < len(values) or not all(0 <= v <= 255 for v in values):
            faults.append(f"--mask-values {shown}: expected different values of 0 to 255")
        if ignore in values:
            faults.append(f"--mask-values {shown}: holds --ignore's {ignore}. Take it from one")
        if names and len(names) != len(values):
            faults.append(
                f"--classes names {len(names)} classes, --mask-values {len(values)} values. "
                "Give a name for each value"
            )
    elif names and ignore is not None and 0 <= ignore < len(names):
        faults.append(
            f"--ignore {ignore}: is also the id of class {names[ignore]}. "
            "Name the values of the classes with --mask-values"
        )
    if names and len(set(names)) < len(names):
        faults.append(f"--classes {','.join(names)}: a name twice. Give each class its own")
    return faults


def _names(options: MaskOptions, k: int) -> tuple[str, ...]:
    if options.classes and len(options.classes) == k:
        return options.classes
    if k == 2:
        return ("background", "foreground")
    return ("background", *(f"class_{i}" for i in range(1, k)))


def expected(labels: Labels) -> str:
    """The values that masks may hold, in words."""
    known = [value for value in range(256) if labels.lut[value] != UNKNOWN]
    if known == list(range(labels.n_classes)):
        return f"class ids 0..{labels.n_classes - 1}"
    return f"the values {listed(known)}"


def listed(values: Sequence[int]) -> str:
    """`0, 1, 255`; of very many the first ones."""
    more = ", ..." if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more


def advice(every: Iterable[int], options: MaskOptions) -> str:
    """What to pass for the values that all masks together hold."""
    values = sorted(set(every) - {options.ignore})
    flag = f"--mask-values {','.join(map(str, values))}"
    below = [value for value in values if value != IGNORED]
    named = options.classes or options.mask_values
    if len(values) > 20:
        return "So many values look like soft edges: save class ids, as PNG, without antialiasing"
    if len(values) == 2 and (not named or len(named) == 2):
        return f"Pass {flag} to map them, or re-save the mask"
    if IGNORED in values and below == list(range(len(below))) and options.ignore is None:
        return "Pass --ignore 255 if those pixels are to be left out, or re-save the mask"
    if named:
        return f"Name every class with --classes or {flag}, or re-save the mask"
    return (
        f"Pass {flag} to map them in this order, or --classes with a name for each id up to "
        f"{values[-1]}, or re-save the mask"
    )
