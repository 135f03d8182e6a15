"""Pool images that show test pictures, and a test set of the user's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fewmask
from fewmask.checkpoint import start_key
from fewmask.data.sources import open_images
from fewmask.runs import config_of, key_of
from fewmask.settings import PretrainSettings, StudySettings
from fewmask.studies import run
from fewmask.studies.cells import arm_key
from fewmask.studies.executing import Local
from fewmask.studies.grid import load_plan
from fewmask.studies.record import PATHS
from fewmask.types import UserError

PLAN = """
pairs = "{pairs}"
encoder = "resnet18"
size = 32
budgets = [4]
{more}
[finetune]
steps = 1
batch_size = 4
[pretrain]
steps = 2
batch_size = 4
[[arms]]
init = "scratch"
[[arms]]
name = "own"
images = "{pool}"
"""
SHARED = Path(
    os.environ.get("FEWMASK_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
).resolve()
QUICK = Path(__file__).resolve().parents[2] / "results" / "quick"


@pytest.fixture
def data(tmp_path: Path, write_pairs: Callable[..., Path]) -> tuple[Path, Path]:
    """Twelve pairs, and a pool: six images of its own and mirrored JPEGs of all twelve."""
    pairs, pool = write_pairs(12), tmp_path / "pool"
    pool.mkdir()
    for path in sorted((write_pairs(18, name="others") / "images").iterdir())[12:]:
        path.rename(pool / path.name)
    for path in sorted((pairs / "images").iterdir()):
        mirror = Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mirror.save(pool / f"copy_of_{path.stem}.jpg", quality=80)
    return pairs, pool


def planned(tmp_path: Path, pairs: Path, pool: Path, more: str = "") -> str:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(pairs=pairs, pool=pool, more=more))
    return str(path)


def facts_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "study.json").read_text())
    return found


def prepared(plan: str, out: Path) -> Any:
    settings = StudySettings(plan=plan, out=str(out), device="cpu")
    return run._prepare(load_plan(settings), out, settings, Local())


def test_pool_images_that_show_test_pictures_are_left_out_and_counted(
    data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, pool = data
    out = tmp_path / "out"
    fewmask.study(plan=planned(tmp_path, pairs, pool), out=str(out))
    test = json.loads((out / "splits.json").read_text())["test"]
    found = facts_of(out)["leakage"]["pool"][str(pool)]
    assert found["left_out"] == len(test) == 2
    assert (found["test"]["exact"], found["test"]["near"]) == (0, 2)
    assert {tuple(row) for row in found["test"]["names"]} == {
        ("near", f"copy_of_{name}.jpg", f"{name}.png") for name in test
    }
    assert found["train_or_validation"]["near"] == 10
    result = json.loads(next((out / "encoders").glob("*/result.json")).read_text())
    assert (result["images"], result["left_out"]) == (16, 2)
    page = (out / "report.html").read_text()
    assert "2 images of the pool pool (0 of equal pixels, 2 altered copies) show" in page
    assert "they were left out of pre-training" in page
    assert "2 of 18 images (0 exact, 2 near copies) show test pictures" in capsys.readouterr().err
    assert "No test picture, nor a copy of one, was found among the pairs to train on." in page
    assert "The copies, side by side" in page
    with Image.open(out / "leakage.png") as sheet:
        assert sheet.height > 300


def test_where_nothing_is_shared_that_is_said(
    data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, pool = data
    for copy in pool.glob("copy_of_*"):
        copy.unlink()
    out = tmp_path / "out"
    fewmask.study(plan=planned(tmp_path, pairs, pool), out=str(out))
    said = "copies: no test picture was found among the pairs to train on or in the 1 pool"
    assert said in capsys.readouterr().err
    page = (out / "report.html").read_text()
    assert "No test picture, nor a copy of one, was found among the pairs to train on." in page
    assert "No image of the pool pool was found to show a test picture." in page
    assert "The copies, side by side" not in page
    assert not (out / "leakage.png").exists()


def test_copies_within_the_pairs_are_counted_on_the_page(
    write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = write_pairs(12)
    first, second, third = sorted((pairs / "images").iterdir())[:3]
    second.write_bytes(first.read_bytes())
    Image.open(first).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(third)
    plan = planned(tmp_path, pairs, tmp_path).split("/plan")[0] + "/within.toml"
    Path(plan).write_text(PLAN.format(pairs=pairs, pool="", more="").rsplit("[[arms]]", 1)[0])
    fewmask.study(plan=plan, out=str(tmp_path / "out"))
    within = facts_of(tmp_path / "out")["leakage"]["within"]
    assert (within["exact"], within["near"]) == (2, 1)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3 labelled images (2 of equal pixels, 1 altered copy) show what another one" in page
    assert "The copies, side by side" in page


def test_the_pool_of_a_run_that_an_arm_starts_from_is_looked_at(
    data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, pool = data
    run = tmp_path / "before"
    fewmask.pretrain(
        images=str(pool), out=str(run), encoder="resnet18", size=32, steps=1, batch_size=4
    )
    plan = Path(planned(tmp_path, pairs, pool))
    plan.write_text(plan.read_text().replace(f'images = "{pool}"', f'init = "{run}"'))
    fewmask.study(plan=str(plan), out=str(tmp_path / "out"))
    found = facts_of(tmp_path / "out")["leakage"]["pool"][str(run)]
    assert (found["left_out"], found["test"]["near"]) == (0, 2)
    assert "show test pictures and are pre-trained on" in capsys.readouterr().err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "show test pictures; they were used in pre-training" in page
    for path in pool.iterdir():
        path.unlink()
    fewmask.study(plan=str(plan), out=str(tmp_path / "out2"), masks=(3,))
    assert "whether it was pre-trained on test pictures is not known" in capsys.readouterr().err


def test_a_run_fine_tuned_on_test_pictures_is_no_start(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    pairs, pool = data
    run = tmp_path / "before"
    fewmask.finetune(
        pairs=str(pairs), out=str(run), encoder="resnet18", size=32, steps=1, batch_size=4
    )
    plan = Path(planned(tmp_path, pairs, pool))
    plan.write_text(plan.read_text().replace(f'images = "{pool}"', f'init = "{run}"'))
    with pytest.raises(UserError, match="fine-tuned on 2 of the 2 test pictures"):
        fewmask.study(plan=str(plan), out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    plan.write_text(plan.read_text().replace("\nsize", "\nkeep_test_images_in_pool = true\nsize"))
    fewmask.study(plan=str(plan), out=str(tmp_path / "out"))


def test_no_left_out_image_is_ever_in_a_batch(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pool = data
    from fewmask.data.loader import Stream
    from fewmask.workflows import pretrain

    seen: set[str] = set()
    whole = Stream.global_rows

    def watched(self: Stream, step: int) -> Any:
        rows = whole(self, step)
        seen.update(self.store.names[row] for row in rows)
        return rows

    monkeypatch.setattr(Stream, "global_rows", watched)
    settings = PretrainSettings(
        images=str(pool), out=str(tmp_path / "run"), encoder="resnet18", size=32, epochs=2,
        batch_size=4, device="cpu",
    )  # fmt: skip
    gone = frozenset({"copy_of_pair_03.jpg", "copy_of_pair_07.jpg"})
    result = pretrain(settings, gone)
    names = {item.name for item in open_images(str(pool)).items}
    assert seen == names - gone
    assert result.images == 16
    assert pretrain(settings, gone) == result
    with pytest.raises(UserError, match="Choose another --out"):
        pretrain(settings)
    with pytest.raises(UserError, match="1 images are left"):
        pretrain(replace(settings, out=str(tmp_path / "no")), frozenset(sorted(names)[1:]))


def test_the_key_of_an_encoder_names_what_is_left_out_and_nothing_else(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    pairs, pool = data
    left = prepared(planned(tmp_path, pairs, pool), tmp_path / "a")
    kept = prepared(planned(tmp_path, pairs, pool, "keep_test_images_in_pool = true"), tmp_path)
    assert len(left.left_out(str(pool))) == 2
    assert kept.left_out(str(pool)) == frozenset()
    assert kept.leakage.facts()["pool"][str(pool)]["test"]["near"] == 2
    pretrain = kept.plan.arms[1].pretrain
    config = {k: v for k, v in config_of(pretrain).items() if k not in PATHS}
    as_before = key_of(
        config, start_key("scratch", None, "resnet18"), open_images(str(pool)).fingerprint()
    )
    assert kept.starts["own"] == as_before != left.starts["own"]
    for path in pool.glob("copy_of_*"):
        path.unlink()
    clean = prepared(planned(tmp_path, pairs, pool), tmp_path / "b")
    assert clean.starts["own"] == key_of(
        config, start_key("scratch", None, "resnet18"), open_images(str(pool)).fingerprint()
    )


def test_exact_copies_are_told_from_near_ones(data: tuple[Path, Path], tmp_path: Path) -> None:
    pairs, _ = data
    study = prepared(planned(tmp_path, pairs, pairs / "images"), tmp_path / "a")
    found = study.leakage.facts()["pool"][str(pairs / "images")]
    assert (found["test"]["exact"], found["test"]["near"]) == (2, 0)
    assert found["train_or_validation"]["exact"] == 10


# --- a test set of the user's own -----------------------------------------------------------------


@pytest.fixture
def own_pairs(tmp_path: Path, write_pairs: Callable[..., Path]) -> Path:
    """Five pairs that are not among the twelve, two of them with names that are."""
    folder = write_pairs(17, name="test")
    for part in ("images", "masks"):
        for i in range(12):
            (folder / part / f"pair_{i:02}.png").unlink()
        for i in (12, 13):
            (folder / part / f"pair_{i}.png").rename(folder / part / f"pair_0{i - 12}.png")
    return folder


def test_an_own_test_set_is_all_that_is_tested_on(
    data: tuple[Path, Path], own_pairs: Path, tmp_path: Path
) -> None:
    pairs, pool = data
    out = tmp_path / "out"
    plan = planned(tmp_path, pairs, pool, "test = 0.3")
    fewmask.study(plan=plan, out=str(out), test=str(own_pairs), dev=(1.0,))
    split = json.loads((out / "splits.json").read_text())
    names = ["test_pair_00", "test_pair_01", "pair_14", "pair_15", "pair_16"]
    assert sorted(Path(name).stem for name in split["test"]) == sorted(names)
    assert len(split["orders"]["0"]) == 12
    facts = facts_of(out)
    assert (facts["n_pairs"], facts["n_test"]) == (12, 5)
    assert facts["test_pairs"] == str(own_pairs)
    assert facts["leakage"]["test"] == {"exact": 0, "near": 0, "names": []}
    assert facts["leakage"]["pool"][str(pool)]["left_out"] == 5  # the pool's own six are those
    cell = next((out / "cells").glob("scratch*"))
    result = json.loads((cell / "result.json").read_text())
    assert (result["n_train"], result["n_val"], result["n_test"]) == (10, 2, 5)
    assert len(list((cell / "masks").iterdir())) == 5
    before = (out / "results.csv").read_text()
    fewmask.study(plan=plan, out=str(out), test=str(own_pairs), dev=(1.0,))
    assert (out / "results.csv").read_text() == before
    with pytest.raises(UserError, match="Choose another --out"):
        fewmask.study(plan=plan, out=str(out))


def test_an_own_test_set_that_overlaps_is_refused_unless_told(
    data: tuple[Path, Path], own_pairs: Path, tmp_path: Path
) -> None:
    pairs, pool = data
    source = pairs / "images" / "pair_05.png"
    (own_pairs / "images" / "pair_14.png").write_bytes(source.read_bytes())
    worse = own_pairs / "images" / "pair_15.png"
    Image.open(pairs / "images" / "pair_06.png").resize((96, 80)).save(worse)
    Image.new("L", (96, 80), 1).save(own_pairs / "masks" / "pair_15.png")
    out = tmp_path / "out"
    plan = planned(tmp_path, pairs, pool, f'test_pairs = "{own_pairs}"')
    with pytest.raises(UserError) as mistake:
        fewmask.study(plan=plan, out=str(out))
    first, second = mistake.value.faults
    assert str(own_pairs / "images" / "pair_14.png") in first
    assert f"equal to {source}" in first
    assert f"{worse}: in the test set, and a copy of {pairs}/images/pair_06.png" in second
    assert "--allow-overlap" in first
    assert not out.exists()
    fewmask.study(plan=plan, out=str(out), allow_overlap=True)
    found = facts_of(out)["leakage"]["test"]
    assert (found["exact"], found["near"]) == (1, 1)
    page = (out / "report.html").read_text()
    assert "2 test pictures (1 of equal pixels, 1 altered copy) are among the pairs" in page


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('test = 0.2\ntest_pairs = "x"', "choose one"),
        ("allow_overlap = true", "name test_pairs"),
        ("keep_test_images_in_pool = 3", "keep_test_images_in_pool"),
        ("keep_test_image_in_pool = true", "keep_test_images_in_pool"),
    ],
)
def test_mistakes_in_the_plan_are_named(
    more: str, words: str, data: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        load_plan(StudySettings(plan=planned(tmp_path, *data, more), out="out"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_the_committed_encoders_keep_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the quick study: no image of its pools shows a test picture, so nothing is left out."""
    monkeypatch.setenv("FEWMASK_DATA", str(SHARED))
    plan = load_plan(StudySettings(plan="quick", out="out", device="cpu"))
    arm = next(arm for arm in plan.arms if arm.name == "simclr-cifar10")

    class Alone:
        def left_out(self, _: str) -> frozenset[str]:
            return frozenset()

    key = arm_key(Alone(), arm, download=False)  # type: ignore[arg-type]
    assert (QUICK / "encoders" / key / "result.json").exists()
