"""fewmask similarity as a whole: what it leaves, what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fewmask
from fewmask.cli import dispatch, parse
from fewmask.distances import command
from fewmask.distances.command import FLOOR
from fewmask.types import UserError

pytestmark = pytest.mark.xdist_group("similarity")  # what they share is made once


def write_set(folder: Path, channel: int, n: int, seed: int) -> Path:
    """Pictures of a patch of one colour on noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        picture = rng.integers(0, 120, (40, 40, 3)).astype(np.uint8)
        y, x = rng.integers(0, 20, 2)
        picture[y : y + 20, x : x + 20, channel] += 130
        Image.fromarray(picture).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target of red patches, a source of red ones and one of green ones."""
    root = tmp_path_factory.mktemp("sets")
    write_set(root / "target", 0, 44, 0)
    write_set(root / "red", 0, 30, 1)
    write_set(root / "green", 1, 26, 2)
    return root


def arguments(sets: Path, out: Path, **changes: Any) -> dict[str, Any]:
    chosen = {"sources": (str(sets / "green"), str(sets / "red")), "target": str(sets / "target")}
    return {**chosen, "out": str(out), **changes}


def test_the_like_set_is_nearer_and_the_files_say_so(sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = fewmask.similarity(**arguments(sets, out))
    assert (result.extractors, result.weak) == (("weak",), ("weak",))
    assert (result.n, result.smallest) == (22, "target")
    assert result.sources == {"green": str(sets / "green"), "red": str(sets / "red")}
    rows = list(csv.DictReader((out / "similarity.csv").read_text().splitlines()))
    assert list(rows[0]) == [
        "source", "target", "extractor", "measure", "value", "low", "high", "n",
    ]  # fmt: skip
    assert len(rows) == 3 * 5
    values = {(r["source"], r["measure"]): float(r["value"]) for r in rows}
    for measure in ("kid", "mmd2", "knn"):
        assert values["green", measure] > values["red", measure]
    assert values["green", "coverage"] < values["red", "coverage"]
    assert abs(values[FLOOR, "kid"]) < 0.1 * values["green", "kid"]
    assert values[FLOOR, "knn"] == pytest.approx(1, abs=0.1)
    for row in rows:
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    for name in ("similarity.png", "map.png", "nearest.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 300
    assert json.loads((out / "result.json").read_text())["n"] == 22


def test_a_run_and_a_weights_file_are_extractors(sets: Path, tmp_path: Path) -> None:
    run = tmp_path / "trained"
    fewmask.pretrain(
        images=str(sets / "red"), out=str(run), encoder="resnet18", size=32, steps=1, batch_size=8
    )
    file = run / "encoder.safetensors"
    extractors = (str(run), str(file), "weak")
    result = fewmask.similarity(**arguments(sets, tmp_path / "out", extractor=extractors))
    assert result.extractors == ("trained", "encoder", "weak")
    by = {name: [d.value for d in result.distances if d.extractor == name] for name in ("trained",)}
    assert len(by["trained"]) == 15
    assert np.isfinite(by["trained"]).all()


def test_a_finished_folder_is_recognised_and_another_refused(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = fewmask.similarity(**arguments(sets, out))
    with monkeypatch.context() as patch:
        patch.setattr(command, "_features", None)  # nothing is computed again
        assert fewmask.similarity(**arguments(sets, out)) == first
    with pytest.raises(UserError, match="another run's folder"):
        fewmask.similarity(**arguments(sets, out, seed=1))


def test_the_result_is_a_function_of_the_seed(sets: Path, tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fewmask.similarity(**arguments(sets, tmp_path / name, seed=seed))
        texts.append((tmp_path / name / "similarity.csv").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_sets_of_one_name_parts_and_mixtures(sets: Path, tmp_path: Path) -> None:
    other = write_set(tmp_path / "red", 0, 20, 5)
    sources = (str(sets / "red"), str(other), f"{sets / 'red'}?n=10 + {sets / 'green'}?n=10")
    result = fewmask.similarity(**arguments(sets, tmp_path / "out", sources=sources))
    assert list(result.sources) == ["red", "red-2", "red-10-and-green-10"]
    assert (result.n, result.smallest) == (20, "red-2")


def test_most_draws_fewer_pictures_and_reads_no_others(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "target", 0, 80, 7)
    write_set(tmp_path / "pool", 0, 60, 8)
    counts = []
    real = command.cached_pool

    def counted(images: Any, *args: Any, **kwargs: Any) -> Any:
        counts.append(len(images.items))
        return real(images, *args, **kwargs)

    monkeypatch.setattr(command, "cached_pool", counted)
    result = fewmask.similarity(
        sources=(str(tmp_path / "pool"),), target=str(tmp_path / "target"),
        out=str(tmp_path / "out"), most=32,
    )  # fmt: skip
    assert (result.n, result.smallest) == (32, "")
    assert counts == [64, 32]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources": ()}, "SOURCES is missing"),
        ({"extractor": ("nowhere",)}, "--extractor nowhere: no such file or folder"),
        ({"extractor": ("scratch",)}, "--extractor scratch: no such file or folder. Expected"),
        ({"extractor": ("imagenet",)}, "--extractor imagenet: --encoder is missing"),
        ({"extractor": ("weak", "weak")}, "one is given twice"),
        ({"extractor": ("weak",), "weights": "w"}, "goes with --extractor imagenet only"),
        ({"most": 5}, "--most 5: expected a number of images, 32 to a billion"),
        (
            {"neighbours": 40},
            "target: 22 images in a half; --neighbours 40 takes 42 or more. Add images, or lower",
        ),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: str, sets: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        fewmask.similarity(**arguments(sets, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_copies_of_the_target_are_counted(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(sets / "green", mixed)
    for path in sorted((sets / "target").rglob("*.png"))[:5]:
        Image.open(path).save(mixed / f"copy_{path.name}")
    fewmask.similarity(**arguments(sets, tmp_path / "out", sources=(str(mixed), str(sets / "red"))))
    said = capsys.readouterr().err
    n = len(list(mixed.rglob("*.png")))
    assert f"{mixed}: 5 of {n} images show pictures of {sets / 'target'}" in said
    assert str(sets / "red") not in said


def test_the_target_itself_is_no_source(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds the target's own images alone"):
        fewmask.similarity(**arguments(sets, tmp_path / "out", sources=(str(sets / "target"),)))


def test_the_command_prints_its_table(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = [str(sets / "green"), str(sets / "red"), "--target", str(sets / "target")]
    assert dispatch(["similarity", *argv, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "distance to target, 22 images a set (all that target gives); 95 % intervals"
    assert lines[2] == "extractor weak (no weights: knows colours and edges alone)"
    assert [line.split("  ")[0] for line in lines[4:7]] in (
        [FLOOR, "red", "green"], ["red", FLOOR, "green"],
    )  # fmt: skip
    assert "no encoder was given" in lines[8]
    assert lines[-1] == f"table: {out / 'similarity.csv'}"


def test_extractor_may_be_repeated() -> None:
    argv = ["a", "b", "--target", "t", "--out", "o", "--extractor", "weak", "--extractor", "run"]
    settings = parse("similarity", argv)
    assert (settings.sources, settings.extractor) == (("a", "b"), ("weak", "run"))
