"""What a study's pools, training pairs and test set share, found before the first step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fewmask.data.duplicates import Thumbs
from fewmask.data.leakage import (
    Pictures,
    Shared,
    counted,
    first_few,
    overlap,
    pair_pictures,
    pool_pictures,
    repeats,
    shared,
    undecodable,
)
from fewmask.data.sides import Copy, write_sides
from fewmask.data.sources import open_images
from fewmask.data.split import Split
from fewmask.inference import trained_hashes
from fewmask.progress import progress
from fewmask.sealed import read_sealed_toml
from fewmask.settings import StudySettings
from fewmask.studies.arms import STARTS
from fewmask.studies.described import some
from fewmask.studies.plan import Plan
from fewmask.types import UserError
from fewmask.workflows import Prepared


@dataclass(frozen=True)
class PoolLeak:
    """Pictures of a pool that are also labelled: in the test set, and in the rest of the pairs."""

    src: str
    name: str
    images: int
    test: tuple[Shared, ...]
    rest: tuple[Shared, ...]
    sample: Thumbs = field(compare=False, repr=False)
    """uint8 [n,48,48], of some of the pictures that are trained on."""


@dataclass(frozen=True)
class Leakage:
    """Everything that a study shares. `left_out` are names of images by the pool's source;
    `labelled` are copies in the test set of pairs to train on, `within` those on one side;
    `not_searched` are starting points whose pictures are not at hand.
    """

    pools: tuple[PoolLeak, ...] = ()
    labelled: tuple[Shared, ...] = ()
    within: tuple[Shared, ...] = ()
    left_out: dict[str, frozenset[str]] = field(default_factory=dict)
    not_searched: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What study.json says."""
        pools = {
            pool.src: {
                "pool": pool.name,
                "images": pool.images,
                "left_out": len(self.left_out.get(pool.src, ())),
                "test": _facts(pool.test),
                "train_or_validation": _facts(pool.rest),
            }
            for pool in self.pools
        }
        return {
            "pool": pools,
            "test": _facts(self.labelled),
            "within": _of_both_sides(self.within),
            "not_searched": list(self.not_searched),
        }

    def copies(self) -> list[Copy]:
        """All of it as a picture shows it, the worst first."""
        return [
            *(("test", "train or validation", one) for one in self.labelled),
            *((pool.name, "test", one) for pool in self.pools for one in pool.test),
            *((pool.name, "train or validation", one) for pool in self.pools for one in pool.rest),
            *(("pairs", "pairs, on one side", one) for one in self.within),
        ]


def find_leakage(plan: Plan, prepared: Prepared, split: Split, settings: StudySettings) -> Leakage:
    """Compare the pools of the arms with the pairs, and the pairs with each other.

    Looking again costs a listing: what was found is remembered in the cache folder.
    """
    checked = prepared.checked
    pairs = pair_pictures(prepared.pairs, checked.hashes, checked.thumbs)
    test = frozenset(split.test)
    within, labelled = [], []
    with progress("comparing pairs") as report:
        alike = repeats(pairs, report)
    for exact, rows in ((True, alike.exact), (False, alike.near)):
        for i, j in rows:
            if (i in test) == (j in test):
                within.append(Shared(exact, pairs.items[i], pairs.items[j]))
            else:
                a, b = (i, j) if i in test else (j, i)
                labelled.append(Shared(exact, pairs.items[a], pairs.items[b]))
    sources = dict.fromkeys(arm.pretrain.images for arm in plan.arms if arm.pretrain)
    leave_out = not plan.keep_test_images_in_pool
    starts = [
        run for arm in plan.arms if arm.init not in STARTS and (run := Path(arm.init)).is_dir()
    ]
    _refuse_tested(starts, checked.hashes, pairs, test, told=plan.keep_test_images_in_pool)
    pools = [_pool(src, pairs, test, settings, leave_out=leave_out) for src in sources]
    left_out = {
        pool.src: frozenset(one.left.name for one in pool.test)
        for pool in pools
        if pool.test and leave_out
    }
    runs = {run: _of_run(run, pairs, test, settings) for run in dict.fromkeys(starts)}
    pools += [leak for leak in runs.values() if leak is not None]
    files = [arm.init for arm in plan.arms if arm.init not in STARTS]
    unknown = [init for init in dict.fromkeys(files) if runs.get(Path(init)) is None]
    return Leakage(tuple(pools), tuple(labelled), tuple(within), left_out, tuple(unknown))


def _refuse_tested(
    starts: Sequence[Path],
    hashes: Sequence[str],
    pairs: Pictures,
    test: frozenset[int],
    *,
    told: bool,
) -> None:
    """A fine-tuned run that has seen masks of the test set is no starting point. UserError."""
    for run in starts:
        seen = trained_hashes(run)
        tested = [pairs.items[row].name for row in sorted(test) if hashes[row] in seen]
        if tested and not told:
            raise UserError(
                f"{run}: was fine-tuned on {len(tested)} of the {len(test)} test pictures "
                f"({tested[0]}), so an arm that starts from it has seen what it is tested on. "
                "Fine-tune it without them, or set keep_test_images_in_pool = true"
            )


def _of_run(
    run: Path, pairs: Pictures, test: frozenset[int], settings: StudySettings
) -> PoolLeak | None:
    """What the pool of a pre-trained run shares with the pairs; None where it has no pool."""
    path = run / "config.toml"
    src = read_sealed_toml(path).get("images") if path.is_file() else None
    if src is None:
        return None
    try:
        found = _pool(str(src), pairs, test, settings, leave_out=False)
    except UserError as problem:
        print(
            f"warning: {run}: whether it was pre-trained on test pictures is not known, for its "
            f"pool can't be read: {problem.faults[0]}",
            file=sys.stderr,
        )
        return None
    return replace(found, src=str(run), name=f"{found.name} of {run.name}")


def _pool(
    src: str,
    pairs: Pictures,
    test: frozenset[int],
    settings: StudySettings,
    *,
    leave_out: bool,
) -> PoolLeak:
    images = open_images(src, download=settings.download)
    with progress(f"looking at {images.pool}") as report:
        pictures = pool_pictures(images, progress=report, workers=settings.workers)
    with progress(f"comparing {images.pool} with the pairs") as report:
        alike = overlap(pictures, pairs, report)
    tested: list[Shared] = []
    rest: list[Shared] = []
    for one, (_, row) in zip(
        shared(alike, pictures, pairs), (*alike.exact, *alike.near), strict=True
    ):
        (tested if row in test else rest).append(one)
    out = {one.left.where for one in tested} if leave_out else set()
    whole = [
        row
        for row, (item, digest) in enumerate(zip(pictures.items, pictures.hashes, strict=True))
        if not undecodable(digest) and item.where not in out
    ]
    sample = some(pictures.thumbs, whole)
    return PoolLeak(src, images.pool, len(images.items), tuple(tested), tuple(rest), sample)


def tell(leakage: Leakage, n_test: int, out: Path) -> None:
    """The counts on standard error and the pictures in leakage.png, where there is anything."""
    lines = []
    if leakage.labelled:
        lines.append(f"warning: {counted(leakage.labelled, n_test, 'test pictures')} are among the "
                     f"pairs to train on, too: {first_few(leakage.labelled)}")  # fmt: skip
    for pool in leakage.pools:
        done = "left out of pre-training" if pool.src in leakage.left_out else "pre-trained on"
        if pool.test:
            lines.append(f"{pool.src}: {counted(pool.test, pool.images)} show test pictures and "
                         f"are {done}: {first_few(pool.test)}")  # fmt: skip
        if pool.rest:
            lines.append(f"{pool.src}: {counted(pool.rest, pool.images)} show pictures to train or "
                         "validate on; they stay")  # fmt: skip
    for line in lines:
        print(line, file=sys.stderr)
    copies = leakage.copies()
    if not lines:
        n = len(leakage.pools)
        pools = f" or in the {n} pool{'s' * (n > 1)}" if n else ""
        said = f"copies: no test picture was found among the pairs to train on{pools}"
        print(said, file=sys.stderr, flush=True)
    if copies:
        title = f"{len(copies)} pairs of files that show one picture."
        write_sides(out / "leakage.png", copies, title)
        print(f"side by side: {out / 'leakage.png'}", file=sys.stderr, flush=True)


def _of_both_sides(found: Sequence[Shared]) -> dict[str, Any]:
    """Numbers of different images that have a copy in their own set, and the pairs' names."""
    exact = {item.name for one in found if one.exact for item in (one.left, one.right)}
    near = {item.name for one in found for item in (one.left, one.right)} - exact
    return _facts(found) | {"exact": len(exact), "near": len(near)}


def _facts(found: Sequence[Shared]) -> dict[str, Any]:
    """Numbers of different left images, and the names of both sides."""
    exact = {one.left.name for one in found if one.exact}
    near = {one.left.name for one in found} - exact
    names = [[one.kind, one.left.name, one.right.name] for one in found]
    return {"exact": len(exact), "near": len(near), "names": names}
