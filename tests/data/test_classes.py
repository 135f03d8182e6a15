"""Values -> classes, and what is advised where they are none."""

from __future__ import annotations

import numpy as np
import pytest

from fewmask.data.classes import (
    PALETTE,
    UNKNOWN,
    advice,
    colour,
    colours,
    expected,
    infer,
    listed,
    of_run,
)
from fewmask.data.sources import MaskOptions
from fewmask.data.table import ClassTable
from fewmask.types import IGNORED, Labels


@pytest.mark.parametrize(
    ("values", "ignore", "names"),
    [
        ({0, 1}, None, ("background", "foreground")),
        ({0}, None, ("background", "foreground")),
        ({0, 1, 2, 3}, None, ("background", "class_1", "class_2", "class_3")),
        ({0, 1, 255}, 255, ("background", "foreground")),
        (set(), None, ("background", "foreground")),
    ],
)
def test_gapless_ids_are_the_classes(
    values: set[int], ignore: int | None, names: tuple[str, ...]
) -> None:
    labels, faults = infer(MaskOptions(ignore=ignore), values)
    assert not faults
    assert labels.names == names
    assert labels.lut[: len(names)] == tuple(range(len(names)))
    assert labels.lut[len(names)] == UNKNOWN
    assert labels.lut[255] == (IGNORED if ignore == 255 else UNKNOWN)
    assert labels.border_lut is None


def test_mask_values_are_classes_in_their_order() -> None:
    options = MaskOptions(mask_values=(255, 0, 128), classes=("a", "b", "c"), ignore=7)
    labels, faults = infer(options, {0, 7, 255})
    assert not faults
    assert [labels.lut[v] for v in (255, 0, 128, 7, 1)] == [0, 1, 2, IGNORED, UNKNOWN]
    assert labels.names == ("a", "b", "c")
    assert expected(labels) == "the values 0, 7, 128, 255"


def test_an_ignored_id_is_a_class_only_among_ids() -> None:
    for ignore, values in ((0, {0, 5, 6}), (2, {0, 1, 2})):
        assert not infer(MaskOptions(ignore=ignore), values)[1]


def test_named_classes_fix_their_number() -> None:
    labels, faults = infer(MaskOptions(classes=("sky", "road", "car")), {0, 1})
    assert not faults
    assert labels.names == ("sky", "road", "car")
    assert expected(labels) == "class ids 0..2"


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (MaskOptions(mask_values=(0, 0)), "expected different values of 0 to 255"),
        (MaskOptions(mask_values=(0, 256)), "expected different values of 0 to 255"),
        (MaskOptions(mask_values=(-1, 2)), "expected different values of 0 to 255"),
        (MaskOptions(mask_values=(0, 255), ignore=255), "holds --ignore's 255"),
        (MaskOptions(mask_values=(0, 1), classes=("a", "b", "c")), "names 3 classes"),
        (MaskOptions(mask_values=(0,)), "1 classes; expected 2 to 254"),
        (MaskOptions(classes=("a",)), "1 classes; expected 2 to 254"),
        (MaskOptions(classes=("a", "b", "a")), "a name twice"),
        (MaskOptions(classes=("a", "b"), ignore=1), "is also the id of class b"),
        (MaskOptions(ignore=0), "--ignore 0: is also the id of class background"),
        (MaskOptions(ignore=300), "--ignore 300: expected a value of 0 to 255"),
    ],
)
def test_flags_that_contradict_are_faults(options: MaskOptions, fault: str) -> None:
    labels, faults = infer(options, {0, 1})
    assert fault in "\n".join(faults)
    assert len(labels.lut) == 256


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        ({0, 255}, MaskOptions(), "Pass --mask-values 0,255 to map them, or re-save the mask"),
        ({1, 2}, MaskOptions(), "Pass --mask-values 1,2 to map"),
        ({0, 1, 2, 255}, MaskOptions(), "Pass --ignore 255"),
        ({0, 1, 3}, MaskOptions(), "--classes with a name for each id up to 3"),
        ({0, 128, 200, 255}, MaskOptions(ignore=255), "Pass --mask-values 0,128,200 to map"),
        ({0, 5}, MaskOptions(classes=("a", "b", "c")), "Name every class with --classes or"),
        (set(range(0, 250, 3)), MaskOptions(), "look like soft edges"),
    ],
)
def test_the_advice_fits_the_values(values: set[int], options: MaskOptions, said: str) -> None:
    assert said in advice(values, options)


TABLE = ClassTable(
    "class_dict.csv", ("sky", "void", "road", "car"), ((9, 9, 9), (0, 0, 0), (1, 2, 3), (4, 5, 6))
)


def test_a_table_s_rows_are_the_classes_but_for_the_ignored_one() -> None:
    labels, faults = infer(MaskOptions(), {0, 2}, TABLE)
    assert not faults
    assert (labels.names, labels.colours) == (TABLE.names, TABLE.colours)
    labels, faults = infer(MaskOptions(ignore=1), {0, 2}, TABLE)
    assert not faults
    assert labels.names == ("sky", "road", "car")
    assert labels.colours == ((9, 9, 9), (1, 2, 3), (4, 5, 6))
    assert labels.lut[:5] == (0, IGNORED, 1, 2, UNKNOWN)
    labels, faults = infer(MaskOptions(ignore=255), {0, 255}, TABLE)
    assert (labels.n_classes, labels.lut[255], faults) == (4, IGNORED, [])


def test_flags_beside_a_table() -> None:
    labels, faults = infer(MaskOptions(mask_values=(3, 0)), set(), TABLE)
    assert not faults
    assert (labels.names, labels.colours) == (("car", "sky"), ((4, 5, 6), (9, 9, 9)))
    labels, faults = infer(MaskOptions(ignore=1, classes=("a", "b", "c")), set(), TABLE)
    assert not faults
    assert labels.names == ("a", "b", "c")
    for options, fault in (
        (MaskOptions(classes=("a", "b", "c")), "--classes names 3 classes, class_dict.csv 4"),
        (MaskOptions(mask_values=(0, 9)), "--mask-values 9: class_dict.csv names the values 0..3"),
    ):
        assert fault in "\n".join(infer(options, set(), TABLE)[1])


def test_names_that_are_other_scores_are_refused() -> None:
    _, faults = infer(MaskOptions(classes=("a", "b", "per_image")), {0})
    assert faults == [
        "class per_image: iou_per_image is the name of another score. Call it something else"
    ]


def test_a_table_is_read_by_the_names_that_a_run_knows() -> None:
    run = Labels(("car", "sky", "tree"), (0,) * 256, colours=((1, 1, 1), (2, 2, 2), (3, 3, 3)))
    found = of_run(TABLE, run, {"void"})
    assert found.lut[:5] == (1, IGNORED, UNKNOWN, 0, UNKNOWN)
    assert (found.names, found.colours) == (run.names, run.colours)


def test_values_without_a_row_are_advised_on() -> None:
    assert advice({0, 7}, MaskOptions(), TABLE).startswith("Pass --ignore 7 to leave them out, ")
    assert (
        advice({0, 7, 8}, MaskOptions(), TABLE) == "Name them in class_dict.csv, or mend the mask"
    )
    assert advice(set(), MaskOptions()) == "Re-save the mask"


def seen_as(rgb: tuple[int, int, int], eye: np.ndarray) -> np.ndarray:
    """A colour's CIE Lab for an eye: a matrix on linear RGB (Machado et al. 2009, severity 1)."""
    c = np.array(rgb) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.412, 0.358, 0.181], [0.213, 0.715, 0.072], [0.019, 0.119, 0.951]])
    x, y, z = to_xyz @ np.clip(eye @ linear, 0, 1) / (0.9505, 1, 1.089)
    f = [np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


EYES = {
    "all": np.eye(3),
    "no red": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "no green": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
}


@pytest.mark.parametrize("eye", EYES)
def test_the_first_colours_differ_to_colour_blind_eyes(eye: str) -> None:
    seen = [seen_as(rgb, EYES[eye]) for rgb in PALETTE]
    near = min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i])
    assert near > 15  # CIE76; a difference of 2.3 can just be seen


def test_every_class_has_a_colour_of_its_own_unless_the_data_gives_one() -> None:
    assert colours(Labels(("a", "b"), (0,) * 256)) == (PALETTE[0], PALETTE[1])
    assert len({colour(k) for k in range(254)}) == 254
    own = ((1, 2, 3), (0, 0, 0))
    assert colours(Labels(("a", "b"), (0,) * 256, colours=own)) == own


def test_advice_that_is_followed_leaves_no_fault() -> None:
    for values in ({0, 255}, {1, 2}, {0, 1, 3}, {0, 7, 9, 255}):
        assert f"--mask-values {','.join(map(str, sorted(values)))}" in advice(
            values, MaskOptions()
        )
        labels, faults = infer(MaskOptions(mask_values=tuple(sorted(values))), values)
        assert not faults
        assert all(labels.lut[value] != UNKNOWN for value in values)
    labels, faults = infer(MaskOptions(ignore=255), {0, 1, 2, 255})
    assert not faults
    assert labels.n_classes == 3


def test_long_lists_are_cut() -> None:
    assert listed([1, 2]) == "1, 2"
    assert listed(range(99)).endswith("11, ...")
