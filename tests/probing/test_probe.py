"""fewmask probe as a whole: what it leaves, what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fewmask
from fewmask.cli import dispatch
from fewmask.probing import command, whole
from fewmask.probing.outcome import _score, interval
from fewmask.types import UserError

pytestmark = pytest.mark.xdist_group("probe")  # what they share is made once


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders: 16 pictures with a red patch and 12 with a green one, on noise."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("labelled")
    for name, n, channel in (("green", 12, 1), ("red", 16, 0)):
        folder = root / "classes" / name
        folder.mkdir(parents=True)
        for i in range(n):
            picture = rng.integers(0, 120, (40, 40, 3)).astype(np.uint8)
            y, x = rng.integers(0, 20, 2)
            picture[y : y + 20, x : x + 20, channel] += 130
            Image.fromarray(picture).save(folder / f"{i:02}.png")
    return root / "classes"


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def arguments(classes: Path, out: Path, **changes: Any) -> dict[str, Any]:
    chosen = {"run": "scratch", "encoder": "resnet18", "size": 32, "images": str(classes)}
    return {**chosen, "out": str(out), **changes}


@pytest.fixture(scope="module")
def trained(classes: Path) -> Path:
    out = classes.parent / "trained"
    fewmask.pretrain(
        images=str(classes), out=str(out), encoder="resnet18", size=32, steps=2, batch_size=8
    )
    return out


def test_a_run_is_probed_beside_a_random_encoder(
    classes: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = fewmask.probe(run=str(trained), images=str(classes), out=str(out), neighbours=3)
    assert (result.encoder, result.size, result.images) == ("resnet18", 32, 28)
    assert result.classes == ("green", "red")
    assert (result.n_train, result.n_val, result.n_test) == (8, 3, 5)
    assert result.chance == 3 / 5
    assert result.transfer is not None
    assert result.transfer.tensors == result.transfer.of_tensors
    kinds = [(score.probe, score.encoder) for score in result.scores]
    assert kinds == [(p, e) for p in ("linear", "knn") for e in ("run", "random")]
    for score, other, difference in zip(
        result.scores[::2], result.scores[1::2], result.differences, strict=True
    ):
        pairs = zip(score.values, other.values, strict=True)
        assert difference.values == pytest.approx(tuple(a - b for a, b in pairs))
        assert difference.probe == score.probe
    table = read_table(out / "probe.csv")
    assert len(table) == 3 * 2 * 2
    linear = [
        float(r["accuracy"]) for r in table if (r["encoder"], r["probe"]) == ("run", "linear")
    ]
    assert tuple(linear) == result.scores[0].values
    assert np.mean(linear) == pytest.approx(result.scores[0].mean)
    assert {(r["n_train"], r["n_val"], r["n_test"], r["seed"]) for r in table} == {
        ("8", "3", "5", "0")
    }
    confusion = read_table(out / "confusion.csv")
    assert len(confusion) == 2 * 2 * 2
    assert [(r["class"], r["n"]) for r in confusion[:2]] == [("green", "6"), ("red", "9")]
    right = sum(int(r[f"as_{r['class']}"]) for r in confusion[:2])
    assert right / 15 == pytest.approx(result.scores[0].mean)
    for name in ("probe.png", "confusion.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 200


def test_a_finished_probe_is_recognised_and_another_refused(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, classes = tmp_path / "out", shutil.copytree(classes, tmp_path / "classes")
    first = fewmask.probe(**arguments(classes, out, draws=2))
    assert [score.encoder for score in first.scores] == ["run", "run"], "scratch is the reference"
    assert first.scores[0].interval is not None
    with monkeypatch.context() as patch:
        patch.setattr(command, "frozen_features", None)  # nothing is computed again
        assert fewmask.probe(**arguments(classes, out, draws=2)) == first
    with pytest.raises(UserError, match="another run's folder"):
        fewmask.probe(**arguments(classes, out, draws=3))
    (classes / "red" / "00.png").unlink()
    with pytest.raises(UserError, match="finished with other images"):
        fewmask.probe(**arguments(classes, out, draws=2))


def test_the_result_is_a_function_of_the_seed(classes: Path, tmp_path: Path) -> None:
    ends = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fewmask.probe(**arguments(classes, tmp_path / name, seed=seed))
        rows = read_table(tmp_path / name / "probe.csv")
        assert {row.pop("seed") for row in rows} == {str(seed)}
        ends.append(rows)
    assert ends[0] == ends[1] != ends[2]


def test_a_classifier_trained_whole_learns_and_is_not_trained_twice(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"finetune": True, "steps": 15, "batch_size": 8, "draws": 1, "lr": 2e-3}
    out = tmp_path / "out"
    result = fewmask.probe(**arguments(classes, out, **chosen))
    assert [score.probe for score in result.scores] == ["linear", "knn", "finetune"]
    assert result.scores[-1].mean > result.chance
    folder = out / "finetune" / "draw_0_run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 15
    assert {"accuracy", "chance", "val_accuracy", "val_loss"} <= set(rows[-1])
    assert (folder / "curves.png").exists()
    assert not (folder / "state.pt").exists()
    # As if killed before the result was written: the trained classifier is not trained again.
    (out / "result.json").unlink()
    (folder / "state.pt").write_bytes(b"of before it was done")
    with monkeypatch.context() as patch:
        patch.setattr(whole, "fit", None)
        assert fewmask.probe(**arguments(classes, out, **chosen)).scores == result.scores
    assert not (folder / "state.pt").exists()


def test_the_encoder_that_is_trained_is_a_copy(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, called = command.whole_probe, []

    def spy(encoder: nn.Module, *rest: Any) -> Any:
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        found = real(encoder, *rest)
        after = encoder.state_dict()
        called.append(all(torch.equal(before[name], after[name]) for name in before))
        return found

    monkeypatch.setattr(command, "whole_probe", spy)
    chosen = {"finetune": True, "steps": 2, "batch_size": 8, "draws": 1}
    fewmask.probe(**arguments(classes, tmp_path / "out", **chosen))
    assert called == [True]


def test_mistakes_are_named_and_nothing_is_written(
    classes: Path, trained: Path, tmp_path: Path, write_pairs: Callable[..., Path]
) -> None:
    out = tmp_path / "out"
    pool = write_pairs(4) / "images"
    for changes, words in (
        ({"images": str(pool)}, "has no classes; expected a folder of images for each class"),
        ({"images": str(tmp_path / "non")}, "no such folder"),
        ({"encoder": None}, "--encoder is missing; scratch does not say"),
        ({"encoder": "resnet81"}, "unknown encoder resnet81; near: .*resnet18"),
        (
            {"run": str(trained.with_name("trainde"))},
            "trainde: no such file or folder; near: .*trained",
        ),
        (
            {"run": str(trained.with_name("trainde")), "encoder": None},
            "trainde: no such file or folder",
        ),
        ({"run": str(trained), "encoder": "resnet34"}, "--encoder resnet34"),
        ({"steps": 3}, "--steps: of the classifier trained whole. Pass --finetune"),
        ({"weights": "x"}, "--weights x goes with imagenet only"),
        ({"devices": 2}, "--devices 2"),
        ({"test": 1.0}, "--test 1.0: expected a share"),
        ({"train": 3}, "--train 3: .*expected 4 to"),
    ):
        with pytest.raises(UserError, match=words):
            fewmask.probe(**arguments(classes, out, **changes))
        assert not out.exists()
    classes = shutil.copytree(classes, tmp_path / "classes")
    for path in sorted((classes / "green").iterdir())[2:]:
        path.unlink()
    with pytest.raises(UserError, match=r"too few images of a class \(green has 2\)"):
        fewmask.probe(**arguments(classes, out))
    assert not out.exists()


def test_weights_of_ours_name_their_encoder(classes: Path, trained: Path, tmp_path: Path) -> None:
    file = str(trained / "encoder.safetensors")
    settings = arguments(classes, tmp_path / "out", run=file, encoder=None, reference=False)
    result = fewmask.probe(**settings)
    assert result.encoder == "resnet18"
    assert [score.encoder for score in result.scores] == ["run", "run"]


def test_the_command_line_prints_a_line_a_probe(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", "scratch", "--images", str(classes), "--encoder", "resnet18"]
    assert dispatch([*words, "--size", "32", "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("28 images of 2 classes; a draw trains on 8, tests on 5; chance")
    assert [line.split()[:2] for line in lines[1:3]] == [["linear", "run"], ["knn", "run"]]
    assert "over 3 draws" in lines[1]


def test_draws_that_cancel_are_not_certain() -> None:
    """One answers all images with one class, the other with the other."""
    right = np.array([[1.0] * 5 + [0.0] * 5, [0.0] * 5 + [1.0] * 5])
    low, high = interval(right) or (0, 0)
    assert high - low > 0.5
    assert _score("knn", "run", right).interval == (max(0.0, low), min(1.0, high))


def test_accuracies_stay_between_0_and_1_and_differences_don_t() -> None:
    right = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    assert _score("linear", "run", right).interval == (0.0, 1.0)
    rarely = np.zeros((3, 60))
    rarely[0, 0] = 1  # a difference that happens to be nowhere negative
    assert (_score("linear", "run less random", rarely).interval or (0, 0))[0] < 0
    low, high = _score("linear", "run less random", right - 0.9).interval or (0, 0)
    assert low < -1 < high


def test_the_interval_covers_draws_and_test_images() -> None:
    random = np.random.default_rng(0)
    right = (random.random((3, 200)) < random.random(200)).astype(float)
    low, high = interval(right) or (0, 0)
    assert (low + high) / 2 == pytest.approx(right.mean())
    of_draws = right.mean(axis=1).std(ddof=1) / 3**0.5
    assert (high - low) / 2 > 4.302653 * of_draws  # Student's over the draws alone
    alike = np.repeat(right[:, :1], 200, axis=1)  # no test image differs from another
    low, high = interval(alike) or (0, 0)
    assert (high - low) / 2 == pytest.approx(4.302653 * alike[:, 0].std(ddof=1) / 3**0.5, rel=1e-5)
    assert interval(right[:1]) is None
