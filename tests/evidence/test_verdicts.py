"""Words, corrections and foresight of the verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fewmask.evidence import looking
from fewmask.evidence.counts import ScoredRun, read_scored
from fewmask.evidence.crossed import Estimate, Values, estimate, of_scores
from fewmask.evidence.looking import adjusted, adjusted_ahead, nominal
from fewmask.evidence.verdicts import FORESEEN, Rules, Verdict, Word, holm, judge

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


@pytest.mark.parametrize("shift", [0.007, -0.005])
def test_a_loss_counts_against_equivalence_as_a_gain_does(shift: float) -> None:
    """The far end of the margin decides: the same two arms, either of them the baseline."""
    one, other = runs(shift, 1), runs(0, 99)
    (there,), (back,) = (judge({"a": x}, y, 8, Rules()) for x, y in ((one, other), (other, one)))
    assert back.mean == pytest.approx(-there.mean)
    assert there.p_equivalent == pytest.approx(back.p_equivalent)
    assert 0.01 < there.p_equivalent < 1


def test_a_corrected_p_value_is_at_most_one() -> None:
    assert holm([0.6, 0.9, 0.8]) == [1.0, 1.0, 1.0]
    assert holm([0.01, 0.9, 0.4]) == pytest.approx([0.03, 0.9, 0.8])


def test_many_arms_need_clearer_differences() -> None:
    alone = judge({"a": runs(0.03, 5)}, runs(0, 99), 0.2, Rules())[0]
    others = {f"n{i}": runs(0, 20 + i) for i in range(8)}
    among = judge({"a": runs(0.03, 5), **others}, runs(0, 99), 0.2, Rules())[0]
    assert alone.p < among.p
    assert among.p == pytest.approx(min(1, 9 * alone.p))


def test_one_repeat_or_no_pair() -> None:
    (found,) = judge({"a": runs(0.3, 1, n=1)}, runs(0, 99, n=1), 8, Rules())
    assert (found.word, found.interval, found.p, found.more) == ("cannot tell", None, 1.0, None)
    assert not found.images_short  # of the images nothing is known
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


def scored(values: Values) -> dict[int, ScoredRun]:
    return {r: ScoredRun(float(row.mean()), NAMES, row) for r, row in enumerate(values)}


def drawn(mean: float, of_run: float, of_image: float, seed: int, n: int = 3) -> Values:
    """Differences [n,60] with exactly that mean."""
    random = np.random.default_rng(seed)
    found = of_run * random.standard_normal((n, 1)) + of_image * random.standard_normal((1, 60))
    found = found + 1e-3 * random.standard_normal((n, 60))
    return found - found.mean() + mean


@pytest.fixture
def _fewer_simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fifth of the studies behind each corrected p-value, for a fifth of the time."""
    monkeypatch.setattr(looking, "STUDIES", 40_000)
    looking.smallest_p.cache_clear()
    yield
    looking.smallest_p.cache_clear()


@pytest.mark.usefixtures("_fewer_simulated")
def test_the_repeats_foreseen_are_those_after_which_the_same_rule_decides() -> None:
    rules = Rules()
    arms = {
        f"a{i}": drawn(mean, 0.02, 0, i)
        for i, mean in enumerate((0.03, 0.02, 0.015, -0.02, 0.0005))
    }
    base = scored(np.zeros((3, 60)))
    found = judge({name: scored(values) for name, values in arms.items()}, base, 8, rules)
    estimates = {name: estimate(values) for name, values in arms.items()}

    def decided(name: str, more: int) -> bool:
        """Every arm with that many runs more, tested and corrected as after looks at each."""
        found = estimates.values()
        differ = holm([adjusted(float(e.p_value(0, 3 + more)), 3, 3 + more) for e in found])
        ends = [
            max(adjusted(float(e.p_value(null, 3 + more)), 3, 3 + more) for null in (-0.01, 0.01))
            if abs(float(e.mean)) < 0.01
            else 1.0
            for e in found
        ]
        place = [*estimates].index(name)
        return min(differ[place], holm(ends)[place]) <= 0.05

    foreseen = [v for v in found if v.more]
    assert len(foreseen) >= 4
    for verdict in foreseen:
        assert verdict.more is not None
        assert decided(verdict.arm, verdict.more + 2)  # simulated: nearly to the repeat
        assert not decided(verdict.arm, verdict.more - 2)
        assert not verdict.images_short
    alone = judge({"a1": scored(arms["a1"])}, base, 8, rules)[0]
    assert alone.more is not None
    assert alone.more < next(v.more or 0 for v in found if v.arm == "a1")


def test_too_few_test_images_are_told_from_too_few_repeats() -> None:
    base = scored(np.zeros((3, 60)))
    (images,) = judge({"a": scored(drawn(0.01, 1e-4, 0.3, 1))}, base, 8, Rules())
    assert (images.word, images.more, images.images_short) == ("cannot tell", None, True)
    (repeats,) = judge({"a": scored(drawn(0.012, 0.3, 1e-6, 1))}, base, 8, Rules())
    assert (repeats.word, repeats.more, repeats.images_short) == ("cannot tell", None, False)


def test_no_more_repeats_are_foreseen_than_the_limit_of_looking_allows() -> None:
    base, arm = scored(np.zeros((3, 60))), scored(drawn(0.013, 0.05, 0, 1))
    (free,) = judge({"a": arm}, base, 8, Rules())
    assert (free.more or 0) > 1
    (held,) = judge({"a": arm}, base, 8, Rules(first=2, most=3 + 1, planned=True))
    assert held.more is None


def test_counts_are_read_back_and_must_fit_the_score(tmp_path: Path) -> None:
    (tmp_path / "per_image.csv").write_text("name,tp,fp,fn,tn\na,8,1,1,0\nb,2,0,2,0\n")
    found = read_scored(10 / 14, tmp_path)
    assert found.names == ("a", "b")
    assert found.values is not None
    assert found.values.mean() == pytest.approx(10 / 14)
    with pytest.raises(ValueError, match=r"give an IoU of 0\.714286, the results say 0\.500000"):
        read_scored(0.5, tmp_path)
    assert read_scored(0.5, tmp_path / "none").values is None
    assert read_scored(0.5, None).values is None


def test_counts_of_several_classes(tmp_path: Path) -> None:
    header = "name,tp_a,fp_a,fn_a,tp_b,fp_b,fn_b,tp_c,fp_c,fn_c\n"
    (tmp_path / "per_image.csv").write_text(header + "x,4,1,0,3,0,1,0,0,0\ny,5,0,0,1,1,0,0,0,0\n")
    found = read_scored((9 / 10 + 4 / 6) / 2, tmp_path)
    assert found.values is not None
    assert found.values.mean() == pytest.approx((9 / 10 + 4 / 6) / 2)


def p_values(found: Estimate, rules: Rules, runs: Values | None = None) -> tuple[Values, Values]:
    """Of no difference, and of one of the margin or more; not corrected."""
    ends = [found.p_value(null, runs) for null in (-rules.margin, rules.margin)]
    within = abs(float(found.mean)) < rules.margin
    return found.p_value(0.0, runs), np.where(within, np.maximum(*ends), 1.0)


def alone(found: Estimate, rules: Rules, start: Verdict) -> Verdict:
    """The verdict on a lone arm, by the definitions."""
    p, q = (float(value) for value in p_values(found, rules))
    level, first = rules.level, max(found.runs, 2)
    if rules.most > rules.first > 0:
        p, q = (adjusted(value, rules.first, rules.most) for value in (p, q))
        level, first = nominal(level, rules.first, rules.most), rules.first
    word: Word = "cannot tell"
    if q <= 1 - rules.level:
        word = "equivalent"
    elif p <= 1 - rules.level:
        word = "helped" if found.mean > 0 else "hurt"
    more: int | None = 0
    if word == "cannot tell":
        ahead = p_values(found, rules, found.runs + np.arange(1.0, FORESEEN + 1))
        if not rules.planned:
            ahead = tuple(adjusted_ahead(one, first, found.runs) for one in ahead)
        elif rules.first:
            ahead = tuple(
                np.array([adjusted(float(value), rules.first, rules.most) for value in one])
                for one in ahead
            )
        limit = min(FORESEEN, rules.most - found.runs) if rules.planned else FORESEEN
        least = [m for m in range(1, limit + 1) if min(one[m - 1] for one in ahead) <= 0.05]
        more = least[0] if least else None
    half = float(found.half_width(level))
    mean = float(found.mean)
    without_end = min(float(one[0]) for one in p_values(found, rules, np.array([np.inf])))
    if rules.planned and rules.first:
        without_end = adjusted(without_end, rules.first, rules.most)
    return replace(
        start,
        mean=pytest.approx(mean),
        interval=pytest.approx((mean - half, mean + half)),
        p=pytest.approx(p),
        p_equivalent=pytest.approx(q),
        word=word,
        images=found.images,
        more=more,
        images_short=word == "cannot tell" and found.images > 0 and without_end > 0.05,
    )


@pytest.fixture
def _few_foretold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tenth of the studies for what lies ahead, where both sides of a test take the same."""
    monkeypatch.setattr(looking, "FORETOLD", 2_000)
    looking.smallest_p_so_far.cache_clear()
    yield
    looking.smallest_p_so_far.cache_clear()


@pytest.mark.usefixtures("_fewer_simulated", "_few_foretold")
@pytest.mark.parametrize(
    "rules",
    [
        Rules(),
        Rules(margin=0.03, level=0.95, first=2, most=6),
        Rules(first=3, most=40, planned=True),
        Rules(first=2, most=2, planned=True),
        Rules(most=30, planned=True),
    ],
)
def test_a_lone_arm_s_verdict_is_as_defined(rules: Rules) -> None:
    baseline = 0.6 + 0.01 * np.arange(180).reshape(3, 60) / 180
    words = set()
    for i, (mean, of_run, of_image) in enumerate(
        ((0.2, 0.01, 0), (-0.2, 0.01, 0), (0.001, 1e-4, 0), (0.013, 0.01, 0), (0.01, 1e-4, 0.3),
         (0.0005, 0.008, 0))
    ):  # fmt: skip
        differences = drawn(mean, of_run, of_image, i)
        arm, base = scored(baseline + differences), scored(baseline)
        (found,) = judge({"a": arm}, base, 8, rules)
        pairs = tuple((arm[r].score, base[r].score) for r in range(3))
        start = replace(found, arm="a", budget=8, repeats=(0, 1, 2), pairs=pairs)
        assert found == alone(estimate(differences), rules, start)
        words.add(found.word)
    bare = {r: ScoredRun(run.score) for r, run in arm.items()}
    (found,) = judge({"a": bare}, base, 8, rules)
    assert found == alone(of_scores(np.array([a - b for a, b in pairs])), rules, start)
    assert words == {"helped", "hurt", "equivalent", "cannot tell"} or rules.most == rules.first


def test_repeats_added_after_the_first_look_are_as_many_looks() -> None:
    assert [Rules(first=f, most=m).sequential for f, m in ((0, 5), (1, 5), (5, 5), (6, 5))] == [
        False, True, False, False,
    ]  # fmt: skip


def test_pairs_are_of_the_repeats_that_both_have_in_order() -> None:
    arm, base = runs(0.05, 1), runs(0, 99)
    (found,) = judge(
        {"a": {r: arm[r] for r in (4, 0, 2)}}, {r: base[r] for r in (2, 1, 4)}, 8, Rules()
    )
    assert found.repeats == (2, 4)
    assert found.pairs == tuple((arm[r].score, base[r].score) for r in (2, 4))


def test_counts_are_of_no_use_unless_every_run_holds_those_of_the_same_images() -> None:
    arm, base = runs(0.05, 1), runs(0, 99)

    def images(arm: Mapping[int, ScoredRun], base: Mapping[int, ScoredRun]) -> int:
        return judge({"a": arm}, base, 8, Rules())[0].images

    assert images(arm, base) == 60
    for r in (0, 4):
        for lost in (ScoredRun(0.7), replace(arm[r], names=NAMES[::-1])):
            assert images({**arm, r: lost}, base) == 0
            assert images(arm, {**base, r: lost}) == 0
    one = {r: ScoredRun(run.score, ("i",), np.array([run.score])) for r, run in arm.items()}
    assert images(one, one) == 0
    two = {r: ScoredRun(0.5, ("i", "j"), np.array([0.4 + 0.01 * r, 0.6])) for r in arm}
    assert images(two, two) == 2


def test_holm_of_ties_and_large_values() -> None:
    assert holm([0.01, 0.6, 0.01, 0.5]) == pytest.approx([0.04, 1, 0.04, 1])
    assert holm([0.02, 0.021, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert holm([]) == []
