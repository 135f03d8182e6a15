"""The test set and the nested budgets: disjoint, grouped, nested, repeatable."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewmask.data.split import Split, make_split, order, read_split_json, split_json, take
from fewmask.types import UserError

FEW = settings(max_examples=80, deadline=None)


@st.composite
def pictures(draw: st.DrawFn) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """A number of pairs, and groups of rows that show one picture."""
    n = draw(st.integers(8, 60))
    rows = draw(st.permutations(range(n)))
    sizes = draw(st.lists(st.integers(2, 3), max_size=n // 8))
    groups = []
    for size in sizes:
        groups.append(tuple(sorted(rows[:size])))
        rows = rows[size:]
    return n, tuple(groups)


@FEW
@given(pictures(), st.integers(0, 2**31))
def test_the_test_set_is_a_fifth_and_holds_groups_whole(
    given_pairs: tuple[int, tuple[tuple[int, ...], ...]], seed: int
) -> None:
    n, groups = given_pairs
    split = make_split(n, groups, seed=seed)
    assert sorted(split.test + split.rest) == list(range(n))
    wanted = max(1, round(0.2 * n))
    assert max(1, wanted - 2) <= len(split.test) <= wanted
    for group in groups:
        assert len({row in split.test for row in group}) == 1
    assert split == make_split(n, groups, seed=seed)


def test_without_copies_the_test_set_is_a_fifth_exactly_and_follows_the_seed() -> None:
    for n, wanted in ((3, 1), (10, 2), (13, 3), (693, 139)):
        assert len(make_split(n, ()).test) == wanted
    assert make_split(100, (), seed=1).test != make_split(100, (), seed=2).test
    assert len(make_split(10, (), test_fraction=0.5).test) == 5


@FEW
@given(pictures(), st.integers(0, 1000), st.data())
def test_budgets_nest_and_no_picture_is_on_two_sides(
    given_pairs: tuple[int, tuple[tuple[int, ...], ...]], seed: int, data: st.DataObject
) -> None:
    n, groups = given_pairs
    ordered = order(make_split(n, groups, seed=seed), 0, seed)
    sizes = sorted(data.draw(st.lists(st.integers(1, n + 5), min_size=2, max_size=4)))
    budgets = [take(ordered, n, size, groups) for size in sizes]
    for size, budget in zip(sizes, budgets, strict=True):
        assert budget.train
        assert budget.val
        assert not set(budget.train) & set(budget.val)
        taken = len(budget.train) + len(budget.val)
        assert set(budget.train) | set(budget.val) == set(ordered[:taken])
        assert taken >= min(max(2, size), len(ordered))
        assert budget.whole == (taken == len(ordered))
        for group in groups:
            assert not (set(group) & set(budget.train) and set(group) & set(budget.val))
    for small, large in pairwise(budgets):
        assert set(small.train) <= set(large.train)
        assert set(small.val) <= set(large.val)


def test_a_large_group_in_the_first_place_leaves_a_picture_to_validate() -> None:
    budget = take((3, 2, 7, 5, 0, 1), 8, 2, ((0, 2, 3),))
    assert (budget.train, budget.val) == ((3, 2, 7, 5, 0), (1,))


def test_beside_a_large_group_the_only_other_picture_validates() -> None:
    budget = take((0, 3), 5, 2, ((0, 1, 2),))
    assert (budget.train, budget.val) == ((0,), (3,))
    with pytest.raises(UserError, match="all 3 pairs show one picture"):
        take((0, 1, 2), 4, 2, ((0, 1, 2),))


def test_every_tenth_pair_validates_beginning_with_the_first() -> None:
    ordered = tuple(range(100, 145))
    budget = take(ordered, 60, 25, ())
    assert budget.val == (100, 110, 120)
    assert budget.train == tuple(row for row in range(100, 125) if row % 10)
    assert not budget.whole


def test_a_copy_follows_the_earlier_picture() -> None:
    budget = take(tuple(range(12)), 12, 12, ((0, 5), (3, 10)))
    assert budget.val == (0, 5)  # 10 would validate, but its picture trains already
    assert 10 in budget.train


def test_fractions_are_of_all_pairs_and_numbers_are_masks() -> None:
    ordered = tuple(range(80))
    for budget, taken in ((0.2, 20), (0.01, 2), (0.055, 6), (1.0, 80), (1, 2), (7, 7), (999, 80)):
        found = take(ordered, 100, budget, ())
        assert len(found.train) + len(found.val) == taken, budget
    assert take(ordered, 100, 0.8, ()).whole


def test_two_copies_alone_make_the_budget_grow_to_a_second_picture() -> None:
    found = take((4, 2, 7, 9), 5, 2, ((2, 4),))
    assert (found.val, found.train) == ((4, 2), (7,))
    with pytest.raises(UserError) as raised:
        take((4, 2), 5, 2, ((2, 4),))
    assert str(raised.value) == (
        "budget 2: all 2 pairs show one picture; at least 2 different ones are needed. Add masks"
    )


@pytest.mark.parametrize("budget", [0, -1, 0.0, -0.2, 1.01, True, float("nan"), float("inf")])
def test_budgets_that_are_none_are_refused(budget: float) -> None:
    with pytest.raises(UserError, match=f"budget {budget}: expected a fraction up to 1"):
        take(tuple(range(10)), 12, budget, ())


def test_too_few_pairs_say_how_many_are_missing() -> None:
    with pytest.raises(UserError) as raised:
        make_split(2, ())
    assert str(raised.value) == (
        "2 pairs, 1 of them to test: 1 too few, for 1 to train and 1 to validate must be left. "
        "Add pairs"
    )
    with pytest.raises(UserError, match="10 pairs, 9 of them to test: 1 too few"):
        make_split(10, (), test_fraction=0.9)
    for ordered, said in (((3,), "1 pair"), ((), "0 pairs")):
        with pytest.raises(UserError, match=f"^{said} to train on; .* Add {2 - len(ordered)} with"):
            take(ordered, 5, 2, ())
    with pytest.raises(UserError) as raised:
        make_split(5, ((0, 1, 2, 3, 4),))
    assert str(raised.value) == (
        "all pairs show one picture; a test set would be trained on. Add others"
    )
    for fraction in (0.0, 1.0):
        with pytest.raises(UserError, match="fraction between 0 and 1"):
            make_split(5, (), test_fraction=fraction)


def test_repeats_draw_their_own_orders_again_and_again_the_same() -> None:
    split = make_split(40, ())
    assert sorted(order(split, 0, 5)) == list(split.rest)
    assert order(split, 0, 5) == order(split, 0, 5)
    assert len({order(split, repeat, seed) for repeat in range(3) for seed in range(3)}) == 9


def test_the_split_is_pinned() -> None:
    """Studies go on from committed results only if the numbers stay the same for good."""
    split = make_split(12, ((1, 2),), seed=3)
    assert split.test == (7, 11)
    assert order(split, 1, 3) == (4, 1, 2, 9, 5, 0, 8, 10, 6, 3)
    assert make_split(12, ()) == make_split(12, (), seed=0)
    names = [f"{row}\udcff" for row in range(12)]  # a name that is no UTF-8
    assert split_json(names, split, {})["hash"] == "de3ef7e54035ae8e98f1d2a96b0ced3d"


def test_a_saved_split_comes_back_by_name(tmp_path: Path) -> None:
    names = [f"img_{i:02}" for i in range(12)]
    split = make_split(12, (), seed=3)
    table = split_json(names, split, {0: order(split, 0, 3)})
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(table))
    assert table["test"] == [names[row] for row in split.test]
    assert table["orders"]["0"] == [names[row] for row in order(split, 0, 3)]
    assert read_split_json(path, names) == split


def test_a_split_of_other_pairs_is_refused(tmp_path: Path) -> None:
    names = [f"img_{i:02}" for i in range(12)]
    split = Split((0, 5), tuple(r for r in range(12) if r not in (0, 5)), 0)
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(split_json(names, split, {})))
    with pytest.raises(UserError, match="img_05 is not there"):
        read_split_json(path, [name for name in names if name != "img_05"])
    with pytest.raises(UserError, match=r"\(pairs came or went, or it was changed\)"):
        read_split_json(path, [*names, "img_99"])
    for broken in ("", "[]", "{}", '{"test": 3, "seed": 0, "hash": ""}'):
        path.write_text(broken)
        with pytest.raises(UserError, match=r": damaged \("):
            read_split_json(path, names)


def test_many_pictures_of_one_scene_do_not_take_the_place_of_all_validation() -> None:
    budget = take(range(12), 12, 12, [tuple(range(9))])
    assert set(range(9)) <= set(budget.train)
    assert set(budget.val) == {10}
