"""Which pictures a probe learns from: shares, nesting, copies on one side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewmask.data.cache import ImageCache
from fewmask.probing.splits import draw, held_out, require_enough, same_pictures
from fewmask.types import UserError


def test_every_class_gives_its_share_to_the_test_set() -> None:
    labels = np.repeat([0, 1, 2], [100, 40, 3])
    test = held_out(labels, (), 0.2, seed=0)
    assert np.bincount(labels[test]).tolist() == [20, 8, 1]
    assert (test == held_out(labels, (), 0.2, seed=0)).all()
    assert (test != held_out(labels, (), 0.2, seed=1)).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_one_picture_is_on_one_side(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([0, 1, 2], [30, 20, 10]))
    shuffled = rng.permutation(60)
    together = [shuffled[:2].tolist(), shuffled[2:6].tolist(), shuffled[6:9].tolist()]
    test = held_out(labels, together, 0.3, seed)
    assert all(len(set(test[group])) == 1 for group in together)
    counts = np.bincount(labels[test], minlength=3)
    assert (counts <= [9, 6, 3]).all()
    assert counts.sum() >= 14


def test_draws_share_the_test_set_nest_and_keep_the_classes_shares() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 12])
    test = held_out(labels, (), 0.2, seed=3)
    small, large = (draw(labels, test, n, 3, 1, "src") for n in (20, 50))
    n = int((~test).sum())
    whole, other = (draw(labels, test, n, 3, number, "src") for number in (1, 2))
    half = draw(labels, test, None, 3, 1, "src")
    assert len(half.train) + len(half.val) == n // 2
    assert set(half.train) <= set(whole.train)
    assert set(small.train) <= set(large.train) <= set(whole.train)
    assert set(small.val) <= set(large.val) <= set(whole.val)
    assert set(whole.train) != set(other.train)
    for one in (small, large, whole, other):
        parts = (set(one.train), set(one.val), set(np.flatnonzero(test)))
        assert len(set.union(*parts)) == sum(map(len, parts)), "a picture on two sides"
        assert set(one.test) == parts[2]
        assert set(labels[one.val]) == set(labels[one.train]) == {0, 1, 2}
    assert [len(small.train) + len(small.val), len(large.train) + len(large.val)] == [20, 50]
    assert np.bincount(labels[np.r_[large.train, large.val]]).tolist() == [29, 15, 6]
    assert len(whole.train) + len(whole.val) == (~test).sum()
    assert len(whole.val) / (~test).sum() == pytest.approx(0.2, abs=0.02)


def test_a_rare_class_is_in_the_smallest_draw() -> None:
    labels = np.repeat([0, 1], [95, 5])
    one = draw(labels, held_out(labels, (), 0.2, 0), 4, 0, 0, "src")
    assert sorted(labels[one.train]) == sorted(labels[one.val]) == [0, 1]


def test_too_few_pictures_are_named() -> None:
    labels = np.repeat([0, 1], [10, 2])
    with pytest.raises(UserError, match=r"src: .*\(dog has 2\)"):
        require_enough(labels, ("cat", "dog"), "src")
    with pytest.raises(UserError, match="bird has 0"):
        require_enough(np.repeat([0, 1], 5), ("cat", "dog", "bird"), "src")
    labels = np.repeat([0, 1], 10)
    test = held_out(labels, (), 0.2, 0)
    for n in (3, 17):
        with pytest.raises(UserError, match=f"--train {n}: .*expected 4 to 16"):
            draw(labels, test, n, 0, 0, "src")


def test_pictures_that_are_there_twice_are_found_inside_their_padding() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 40, 40, 3)).astype(np.uint8)
    images[3] = images[1]
    images[3, :, 30:] = 0  # padding, which no one looks at
    valid = np.full((5, 2), 40, np.int32)
    valid[[1, 3], 1] = 30
    cache = ImageCache(images, valid, tuple("abcde"), ())
    assert same_pictures(cache) == ((1, 3),)
