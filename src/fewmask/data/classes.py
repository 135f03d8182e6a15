"""The values in mask files -> classes: what flags or a table name, or what all masks show."""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Iterable, Sequence

from fewmask.data.sources import MaskOptions
from fewmask.data.table import ClassTable
from fewmask.types import IGNORED, Colour, Labels

UNKNOWN = 254
"""What a look-up table gives for a value that is no class."""
SHOWN = 12
"""Values that a message lists before it stops."""
TAKEN = ("per_image", "border_foreground", "border_ignore")
"""`iou_` with one of these is another score, so no class can be called so."""
PALETTE: tuple[Colour, ...] = (
    (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
    (213, 94, 0), (204, 121, 167), (187, 255, 170), (102, 51, 85), (119, 102, 255), (68, 51, 0),
)  # fmt: skip
"""Colours of the first classes where the data gives none: black and the seven of Okabe and Ito,
which most colour-blind eyes tell apart, then four as far from these as there are."""


def colours(labels: Labels) -> tuple[Colour, ...]:
    """The colour of each class in pictures: the data's own, else a fixed one of its id.

    A class in black is background: pictures that lie under it are left as they are.
    """
    return labels.colours or tuple(colour(k) for k in range(labels.n_classes))


def colour(k: int) -> Colour:
    """The colour of class id k where the data gives none."""
    if k < len(PALETTE):
        return PALETTE[k]
    # Neighbouring ids lie far apart in hue, and differ in lightness for eyes that see no hue.
    lightness, saturation = (0.35, 0.5, 0.7)[k % 3], (0.9, 0.55)[k // 3 % 2]
    red, green, blue = colorsys.hls_to_rgb(k * 0.618034 % 1, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def infer(
    options: MaskOptions, found: Iterable[int], table: ClassTable | None = None
) -> tuple[Labels, list[str]]:
    """The classes of masks that hold the values `found`, and what is wrong with the flags.

    Without --classes, --mask-values and a table the values must be 0..K-1 without a gap; where
    they are not, two classes are assumed, and the values outside are left for the caller to report.
    A table's rows are the classes in their order, but for the one that --ignore names.
    """
    faults = _wrong_flags(options, table)
    values = set(found) - {options.ignore}
    if options.mask_values is not None:
        ids = list(options.mask_values)
    elif table is not None:
        ids = [k for k in range(len(table.names)) if k != options.ignore]
    elif options.classes:
        ids = list(range(len(options.classes)))
    else:
        gapless = values == set(range(len(values)))
        ids = list(range(max(2, len(values)))) if gapless else [0, 1]
        if options.ignore in ids and values <= {*ids}:  # other values are told of by themselves
            faults.append(_ignores_a_class(options.ignore, _names(options, ids, table)))
    if not 2 <= len(ids) <= UNKNOWN:
        faults.append(f"{len(ids)} classes; expected 2 to {UNKNOWN}. Name at least two values")
        ids = [0, 1]
    lut = [UNKNOWN] * 256
    for k, value in enumerate(ids):
        if 0 <= value <= 255:
            lut[value] = k
    if options.ignore is not None and 0 <= options.ignore <= 255:
        lut[options.ignore] = IGNORED
    own = None
    if table is not None and table.colours is not None and not faults:
        own = tuple(table.colours[k] for k in ids)
    return Labels(_names(options, ids, table), tuple(lut), colours=own), faults


def of_run(table: ClassTable, run: Labels, ignored: Collection[str]) -> Labels:
    """A table's rows as the classes of a run, by name; rows called as in `ignored` are left out.

    Rows that the run does not know stay no class.
    """
    lut = [UNKNOWN] * 256
    for value, name in enumerate(table.names):
        if name in run.names:
            lut[value] = run.names.index(name)
        elif name in ignored:
            lut[value] = IGNORED
    return Labels(run.names, tuple(lut), colours=run.colours)


def _wrong_flags(options: MaskOptions, table: ClassTable | None) -> list[str]:
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
    elif table is None and names and ignore is not None and 0 <= ignore < len(names):
        faults.append(_ignores_a_class(ignore, names))
    if names and len(set(names)) < len(names):
        faults.append(f"--classes {','.join(names)}: a name twice. Give each class its own")
    if table is not None:
        faults += _wrong_beside(table, options)
    faults += [
        f"class {name}: iou_{name} is the name of another score. Call it something else"
        for name in names or (table.names if table else ())
        if name in TAKEN
    ]
    return faults


def _ignores_a_class(ignore: int, names: Sequence[str]) -> str:
    return (
        f"--ignore {ignore}: is also the id of class {names[ignore]}. "
        "Name the values of the classes with --mask-values"
    )


def _wrong_beside(table: ClassTable, options: MaskOptions) -> list[str]:
    """Flags that do not fit the rows of a table."""
    n, faults = len(table.names), []
    beyond = [value for value in options.mask_values or () if not 0 <= value < n]
    if beyond:
        faults.append(
            f"--mask-values {listed(beyond)}: {table.where} names the values 0..{n - 1}. "
            "Add a line for each"
        )
    left = n - (options.ignore in range(n))
    if options.classes and options.mask_values is None and len(options.classes) != left:
        faults.append(
            f"--classes names {len(options.classes)} classes, {table.where} {left}. "
            "Leave --classes out, or name as many"
        )
    return faults


def _names(options: MaskOptions, ids: Sequence[int], table: ClassTable | None) -> tuple[str, ...]:
    k = len(ids)
    if options.classes and len(options.classes) == k:
        return options.classes
    if table is not None and max(ids) < len(table.names):
        return tuple(table.names[value] for value in ids)
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


def advice(every: Iterable[int], options: MaskOptions, table: ClassTable | None = None) -> str:
    """What to pass for the values that all masks together hold."""
    values = sorted(set(every) - {options.ignore})
    if not values:  # no mask could be read
        return "Re-save the mask"
    if table is not None and options.mask_values is None:
        beyond = [value for value in values if value >= len(table.names)]
        leave = f"Pass --ignore {beyond[0]} to leave them out, name" if len(beyond) == 1 else "Name"
        return f"{leave} them in {table.where}, or mend the mask"
    flag = f"--mask-values {','.join(map(str, values))}"
    below = [value for value in values if value != IGNORED]
    named = options.classes or options.mask_values
    if len(values) > 20:
        return "So many values look like soft edges: save class ids, as PNG, without antialiasing"
    if len(values) == 2 and (not named or len(named) == 2):
        return f"Pass {flag} to map them, or re-save the mask"
    if IGNORED in values and below == list(range(len(below))) and options.ignore is None:
        return "Pass --ignore 255 if those pixels are to be left out, or re-save the mask"
    if IGNORED in values and options.ignore is None:
        classes = ",".join(map(str, below))
        return (
            f"Pass --ignore 255 --mask-values {classes} if 255 marks pixels to be left out, {flag} "
            "if it is a class, or re-save the mask"
        )
    if named:
        return f"Name every class with --classes or {flag}, or re-save the mask"
    return (
        f"Pass {flag} to map them in this order, or --classes with a name for each id up to "
        f"{values[-1]}, or re-save the mask"
    )
