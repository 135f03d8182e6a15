"""The test set, and the nested label budgets of every repeat."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from fewmask.files import reading
from fewmask.plainfiles import read_plain_text
from fewmask.types import UserError

Groups = Sequence[Sequence[int]]
"""Rows that show one picture; a row in no group is alone."""


@dataclass(frozen=True)
class Split:
    """Rows of the pairs in order of name: the fixed test set and the rest."""

    test: tuple[int, ...]
    rest: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Budget:
    """Rows to train on and to validate on. `whole`: it takes all that is not test."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    whole: bool


def make_split(n: int, groups: Groups, *, test_fraction: float = 0.2, seed: int = 0) -> Split:
    """A random test set of round(test_fraction x n) rows, at least 1; groups stay together.

    Raises UserError where fewer than 3 pairs leave nothing to train on.
    """
    if not 0 < test_fraction < 1:
        raise UserError(f"test {test_fraction}: expected a fraction between 0 and 1, such as 0.2")
    wanted = max(1, round(test_fraction * n))
    if n - wanted < 2:
        raise UserError(
            f"{n} pairs, {wanted} of them to test: {2 - n + wanted} too few, for 1 to train and 1 "
            "to validate must be left. Add pairs"
        )
    together = {row: tuple(group) for group in groups for row in group}
    test: set[int] = set()
    for row in np.random.default_rng(seed).permutation(n).tolist():
        group = together.get(row, (row,))
        if row not in test and len(test) + len(group) <= wanted:
            test.update(group)
    if not test:
        raise UserError("all pairs show one picture; a test set would be trained on. Add others")
    return Split(tuple(sorted(test)), tuple(r for r in range(n) if r not in test), seed)


def order(split: Split, repeat: int, seed: int) -> tuple[int, ...]:
    """The random order of the rest that a repeat takes its budgets from."""
    shuffled = np.random.default_rng((seed, repeat)).permutation(np.asarray(split.rest))
    return tuple(int(row) for row in shuffled)


def take(ordered: Sequence[int], n_all: int, budget: float | int, groups: Groups) -> Budget:
    """The first rows of an order: a fraction of all n_all pairs (float), or a number (int).

    Every tenth row, from the first on, validates; but a copy of an earlier picture goes to that
    picture's side, and a picture that is there more than twice trains. So no picture is on both,
    and the training sets of larger budgets hold those of smaller ones. A budget is rounded, at
    least 2 and at least 2 different pictures, at most all of the order. Raises UserError for one
    that is no number above 0 or a fraction above 1, and where there are no 2 different pictures.
    """
    wrong = isinstance(budget, bool) or not math.isfinite(budget) or budget <= 0
    if wrong or (isinstance(budget, float) and budget > 1):
        raise UserError(
            f"budget {budget}: expected a fraction up to 1 (0.2) or a number of masks (8)"
        )
    if len(ordered) < 2:
        raise UserError(
            f"{len(ordered)} pair{'s' * (len(ordered) != 1)} to train on; at least 2 are needed. "
            f"Add {2 - len(ordered)} with their masks"
        )
    wanted = budget if isinstance(budget, int) else round(budget * n_all)
    n = min(max(2, wanted), len(ordered))
    group_of = {row: i for i, group in enumerate(groups) for row in group}
    # A large group (video frames, a fixed camera) would else take the place of all validation.
    side = {i: False for i, group in enumerate(groups) if len(group) > 2}
    train: list[int] = []
    val: list[int] = []
    for place, row in enumerate(ordered):
        if place >= n and train and val:
            break
        validates = place % 10 == 0
        if row in group_of:
            validates = side.setdefault(group_of[row], validates)
        (val if validates else train).append(row)
    if not val:  # large groups took every place that validates: the last other picture does
        alone = [row for row in train if row not in group_of]
        if alone:
            train.remove(alone[-1])
            val.append(alone[-1])
    if not train or not val:
        raise UserError(
            f"budget {budget}: all {len(ordered)} pairs show one picture; at least 2 different "
            "ones are needed. Add masks"
        )
    return Budget(tuple(train), tuple(val), len(train) + len(val) == len(ordered))


def split_json(
    names: Sequence[str], split: Split, orders: Mapping[int, Sequence[int]]
) -> dict[str, Any]:
    """The split by file name, with a hash, as splits.json holds it."""
    test = [names[row] for row in split.test]
    return {
        "seed": split.seed,
        "hash": _hash(test, names),
        "test": test,
        "orders": {str(repeat): [names[row] for row in rows] for repeat, rows in orders.items()},
    }


def _hash(test: Sequence[str], names: Sequence[str]) -> str:
    text = "\0".join([*test, "", *names])
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def read_split_json(path: Path, names: Sequence[str]) -> Split:
    """The split that a study saved. Raises UserError where it is not one of these pairs."""
    with reading(path, "Bring it back; or remove it, and the test set is drawn by --seed again"):
        table = json.loads(read_plain_text(path))
        test, seed = [str(name) for name in table["test"]], int(table["seed"])
        kept = str(table["hash"])
    gone = sorted(set(test) - set(names))
    if gone or kept != _hash(test, names):
        what = f"{gone[0]} is not there" if gone else "pairs came or went, or it was changed"
        raise UserError(
            f"{path}: the split of other pairs than these ({what}). Choose another --out, "
            "or bring back what it was"
        )
    chosen = set(test)
    rows = [row for row, name in enumerate(names) if name in chosen]
    return Split(tuple(rows), tuple(r for r in range(len(names)) if r not in set(rows)), seed)
