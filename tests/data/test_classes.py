"""Values -> classes, and what is advised where they are none."""

from __future__ import annotations

import pytest

from fewmask.data.classes import UNKNOWN, advice, expected, infer, listed
from fewmask.data.sources import MaskOptions
from fewmask.types import IGNORED


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
