"""What a study says of its data: classes counted by hand, distances of sets that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fewmask.data.check import PairReport
from fewmask.data.split import Split
from fewmask.studies.described import class_balance, nearness, some
from fewmask.types import Labels


@pytest.fixture
def checked() -> PairReport:
    lut = (0, 1, 2, *[255] * 253)
    pixels = ((6, 4, 0), (10, 0, 0), (5, 3, 2), (0, 0, 0))
    labels = Labels(("ground", "stem", "leaf"), lut)
    return PairReport((), (), labels, (), ("a", "b", "c", "d"), 4, pixels)


def test_classes_are_counted_on_both_sides(checked: PairReport) -> None:
    found = {row["name"]: row for row in class_balance(checked, Split((2, 3), (0, 1), 0))}
    assert found["ground"] == {
        "name": "ground", "masks_rest": 2, "masks_test": 1, "share_rest": 0.8, "share_test": 0.5,
    }  # fmt: skip
    assert (found["leaf"]["masks_rest"], found["leaf"]["share_rest"]) == (0, 0)
    assert found["leaf"]["share_test"] == pytest.approx(0.2)


def test_a_side_of_ignored_pixels_alone_holds_nothing(checked: PairReport) -> None:
    empty = replace(checked, mask_pixels=((0, 0, 0),) * 4)
    assert all(row["share_test"] == 0 for row in class_balance(empty, Split((1,), (0,), 0)))


def pictures(n: int, seed: int, slope: float) -> np.ndarray:
    """Noise on a ramp of light from top to bottom."""
    rng = np.random.default_rng(seed)
    ramp = 120 + slope * np.linspace(-1, 1, 48)[:, None]
    return np.clip(ramp + rng.normal(0, 30, (n, 48, 48)), 0, 255).astype(np.uint8)


def test_pictures_of_one_kind_are_at_no_distance_and_others_are_far() -> None:
    others = {"alike": pictures(90, 1, 20), "other": pictures(90, 2, -80)}
    alike, other = nearness(pictures(80, 0, 20), others)
    assert (alike["name"], other["name"]) == ("alike", "other")
    assert alike["low"] < 0 < alike["high"]
    assert other["low"] > alike["high"]


def test_nothing_is_said_of_a_handful() -> None:
    few, many = pictures(15, 0, 20), pictures(40, 1, 20)
    assert nearness(few, {"many": many}) == []
    assert nearness(many, {"few": few}) == []


def test_some_pictures_stand_for_many() -> None:
    many = np.zeros((1200, 48, 48), np.uint8)
    many[:, 0, 0] = np.arange(1200) % 251
    many[100:, 1, 1] = 1
    chosen = some(many, range(100, 1200))
    assert chosen.shape == (500, 48, 48)
    assert (chosen[:, 1, 1] == 1).all()
    assert np.array_equal(chosen, some(many, range(100, 1200)))
    assert len(some(many, [3, 7])) == 2
