"""Words, corrections and foresight of the verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fewmask.evidence.counts import ScoredRun, read_scored
from fewmask.evidence.crossed import Estimate
from fewmask.evidence.verdicts import Rules, Verdict, holm, judge, repeats_missing

NAMES = tuple(f"i{i}" for i in range(60))


def runs(shift: float, seed: int, n: int = 5, noise: float = 0.004) -> dict[int, ScoredRun]:
    """n runs of an arm: a share of every repeat and image is common to all arms."""
    common = np.random.default_rng(0).normal(0, 0.05, (n, len(NAMES)))
    own = np.random.default_rng(seed)
    found = {}
    for r in range(n):
        values = 0.7 + shift + common[r] + noise * own.standard_normal(len(NAMES))
        values += noise * own.standard_normal()
        found[r] = ScoredRun(float(values.mean()), NAMES, values)
    return found


def words(arms: Mapping[str, Mapping[int, ScoredRun]], rules: Rules | None = None) -> list[str]:
    return [v.word for v in judge(arms, runs(0, 99), 0.2, rules or Rules())]


def test_the_four_words() -> None:
    arms = {
        "better": runs(0.05, 1),
        "worse": runs(-0.05, 2),
        "same": runs(0.0, 3, noise=0.001),
        "noisy": runs(0.0, 6, noise=0.05),
    }
    base = {r: ScoredRun(t.score, NAMES, t.values) for r, t in runs(0, 3, noise=0.001).items()}
    found = judge(arms, base, 8, Rules())
    assert [v.word for v in found] == ["helped", "hurt", "equivalent", "cannot tell"]
    better = found[0]
    assert better.interval is not None
    assert better.interval[0] < 0.05 < better.interval[1]
    assert better.images == 60
    assert better.differences == pytest.approx([a - b for a, b in better.pairs])
    assert better.more == 0


def test_a_sure_difference_within_the_margin_is_equivalent() -> None:
    assert words({"a": runs(0.004, 1, noise=0.0005)}, Rules(margin=0.02)) == ["equivalent"]
    assert words({"a": runs(0.03, 1, noise=0.0005)}, Rules(margin=0.001)) == ["helped"]


def test_many_arms_need_clearer_differences() -> None:
    alone = judge({"a": runs(0.03, 5)}, runs(0, 99), 0.2, Rules())[0]
    others = {f"n{i}": runs(0, 20 + i) for i in range(8)}
    among = judge({"a": runs(0.03, 5), **others}, runs(0, 99), 0.2, Rules())[0]
    assert alone.p < among.p
    assert among.p == pytest.approx(min(1, 9 * alone.p))


def test_one_repeat_or_no_pair() -> None:
    (found,) = judge({"a": runs(0.3, 1, n=1)}, runs(0, 99, n=1), 8, Rules())
    assert (found.word, found.interval, found.p, found.more) == ("cannot tell", None, 1.0, None)
    assert judge({"a": runs(0.3, 1, n=1)}, {5: runs(0, 99)[0]}, 8, Rules()) == []


def test_without_counts_the_interval_is_of_the_runs_alone() -> None:
    def bare(found: Mapping[int, ScoredRun]) -> dict[int, ScoredRun]:
        return {r: ScoredRun(t.score) for r, t in found.items()}

    (whole,) = judge({"a": runs(0.05, 1)}, runs(0, 99), 8, Rules())
    (of_runs,) = judge({"a": bare(runs(0.05, 1))}, bare(runs(0, 99)), 8, Rules())
    assert (whole.images, of_runs.images) == (60, 0)
    assert whole.mean == pytest.approx(of_runs.mean)
    assert _width(of_runs) < _width(whole)


def _width(verdict: Verdict) -> float:
    assert verdict.interval is not None
    return verdict.interval[1] - verdict.interval[0]


def test_other_test_images_are_not_mixed() -> None:
    moved = {r: ScoredRun(t.score, NAMES[::-1], t.values) for r, t in runs(0.05, 1).items()}
    (found,) = judge({"a": moved}, runs(0, 99), 8, Rules())
    assert found.images == 0


def test_looking_early_widens() -> None:
    plain, looked = (
        judge({"a": runs(0.012, 5)}, runs(0, 99), 0.2, rules)[0]
        for rules in (Rules(), Rules(first=3, most=10))
    )
    assert looked.p > plain.p
    assert _width(looked) > _width(plain)


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_its_definition(seed: int) -> None:
    p = np.random.default_rng(seed).random(6) ** 2
    found = holm(p.tolist())
    for alpha in (0.01, 0.05, 0.2, 0.5):
        rejected: set[int] = set()
        for k, i in enumerate(np.argsort(p)):
            if p[i] > alpha / (6 - k):
                break
            rejected.add(int(i))
        assert {i for i in range(6) if found[i] <= alpha} == rejected


def test_more_repeats_are_foreseen_where_they_can_decide() -> None:
    def of(mean: float, runs: float, images: float) -> Estimate:
        return Estimate(np.float64(mean), np.float64(runs), np.float64(images), 3, 100)

    more = repeats_missing(of(0.02, 1e-4, 0), 0.95, 0.01)
    assert more is not None
    wide = of(0.02, 1e-4, 0)
    assert wide.half_width(runs=3 + more) < 0.02 < wide.half_width(runs=2 + more)
    assert repeats_missing(of(0.02, 1e-6, 1e-2), 0.95, 0.01) is None  # too few images
    assert repeats_missing(of(0.0, 1e-4, 0), 0.95, 0.01) is not None  # equivalence, some day


def test_counts_are_read_back_and_must_fit_the_score(tmp_path: Path) -> None:
    (tmp_path / "per_image.csv").write_text("name,tp,fp,fn,tn\na,8,1,1,0\nb,2,0,2,0\n")
    found = read_scored(10 / 14, tmp_path)
    assert found.names == ("a", "b")
    assert found.values is not None
    assert found.values.mean() == pytest.approx(10 / 14)
    assert read_scored(0.5, tmp_path).values is None
    assert read_scored(0.5, tmp_path / "none").values is None
    assert read_scored(0.5, None).values is None


def test_counts_of_several_classes(tmp_path: Path) -> None:
    header = "name,tp_a,fp_a,fn_a,tp_b,fp_b,fn_b,tp_c,fp_c,fn_c\n"
    (tmp_path / "per_image.csv").write_text(header + "x,4,1,0,3,0,1,0,0,0\ny,5,0,0,1,1,0,0,0,0\n")
    found = read_scored((9 / 10 + 4 / 6) / 2, tmp_path)
    assert found.values is not None
    assert found.values.mean() == pytest.approx((9 / 10 + 4 / 6) / 2)
