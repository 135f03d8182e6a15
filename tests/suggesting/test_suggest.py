"""fewmask suggest as a whole: what it leaves, what it leaves out, what it refuses."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from tests.suggesting.conftest import picture

import fewmask
from fewmask.cli import dispatch, parse
from fewmask.files import faults_of
from fewmask.suggesting import command
from fewmask.types import SuggestResult, UserError


def suggest(discs: Path, out: Path, **changes: Any) -> SuggestResult:
    return fewmask.suggest(
        **{"images": str(discs / "pool"), "budget": 4, "out": str(out), **changes}
    )


def read_table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "suggested.csv").read_text().splitlines()))


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_without_weights_it_says_what_that_is_worth(discs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = suggest(discs, out)
    assert "expect little more than random" in result.features
    assert (result.images, result.labelled, result.repeated) == (23, 0, 1)
    assert result.candidates == 22
    assert result.why.startswith("typical (mix: there is no fine-tuned run")
    table = read_table(out)
    assert [row["rank"] for row in table] == ["1", "2", "3", "4"]
    assert [row["name"] for row in table] == [one.name for one in result.suggestions]
    for row in table:
        # The copy is the file itself, under a name without folders.
        assert (out / row["image"]).read_bytes() == Path(row["path"]).read_bytes()
        assert float(row["typicality"]) > 0
        assert row["uncertainty"] == ""
    assert not (out / "masks").exists()
    tasks = json.loads((out / "label_studio.json").read_text())
    assert all("predictions" not in task for task in tasks)
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 600
    assert json.loads((out / "result.json").read_text())["features"] == result.features


def test_a_fine_tuned_run_draws_drafts_and_knows_its_own_images(
    discs: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = suggest(discs, out, run=str(run), method="uncertainty")
    # copy.png has the pixels of a pair of the run's; near.jpg looks like one that isn't there.
    assert (result.labelled, result.repeated, result.candidates) == (1, 1, 21)
    values = [one.uncertainty for one in result.suggestions]
    assert values == sorted(values, reverse=True)  # type: ignore[type-var]
    assert all(0 < value <= 1 for value in values if value is not None)
    root = ElementTree.parse(out / "cvat.xml").getroot()
    of_cvat = {image.get("name"): image for image in root.iter("image")}
    assert len(of_cvat) == 4
    predicted = fewmask.predict(
        run=str(run), paths=(str(out / "images"),), out=str(tmp_path / "predicted")
    )
    for mask in predicted.masks:
        drawn = pixels_of(out / "masks" / mask.name)
        assert (drawn == pixels_of(mask)).all()
        boxes = of_cvat[mask.with_suffix(".png").name].findall("mask")
        assert len(boxes) == (1 if drawn.any() else 0)
    for task in json.loads((out / "label_studio.json").read_text()):
        file = unquote(task["data"]["image"].removeprefix("/data/local-files/?d="))
        assert (out / file).exists()
        assert task["predictions"][0]["model_version"] == "fewmask run"


def test_pairs_and_their_copies_are_not_suggested(discs: Path, tmp_path: Path) -> None:
    for number, (changes, left_out) in enumerate(
        (
            ({}, (2, 1)),
            ({"keep_near": True}, (1, 1)),
        )
    ):
        out = tmp_path / str(number)
        result = suggest(discs, out, pairs=str(discs / "labelled"), method="k-centre", **changes)
        assert (result.labelled, result.repeated) == left_out
        names = {one.name for one in result.suggestions}
        assert not names & {"copy.png", "twice.png"}
        assert all(one.distance is not None and one.distance > 0 for one in result.suggestions)
    everything = suggest(discs, tmp_path / "all", pairs=str(discs / "labelled"), budget=20)
    names = {one.name for one in everything.suggestions}
    assert names == {f"day_{1 + i // 10}/{i:02}.png" for i in range(20)}


def test_labelled_images_push_the_choice_elsewhere(discs: Path, tmp_path: Path) -> None:
    # The pool is its own labelled set, but for the images that have no mask yet.
    folder = shutil.copytree(discs / "labelled", tmp_path / "labelled")
    for i in (200, 201):
        Image.fromarray(picture(i)[0]).save(folder / f"images/{i}.png")
    result = suggest(discs, tmp_path / "out", images=str(folder), pairs=str(folder), budget=2)
    assert {one.name for one in result.suggestions} == {"200.png", "201.png"}
    assert result.labelled == 6


def test_mix_asks_the_model_once_many_are_labelled(
    discs: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = suggest(discs, tmp_path / "few", run=str(run))
    assert few.why == "typical (mix: 6 labelled images are fewer than 50)"
    assert {one.method for one in few.suggestions} == {"typical"}
    monkeypatch.setattr(command, "FEW", 6)
    many = suggest(discs, tmp_path / "many", run=str(run))
    assert {one.method for one in many.suggestions} == {"uncertain-typical"}
    for one in many.suggestions:
        assert one.uncertainty is not None
        assert one.cluster is not None


@pytest.mark.parametrize("method", ["random", "typical", "k-centre", "uncertainty"])
def test_the_choice_is_a_function_of_the_seed(
    discs: Path, run: Path, tmp_path: Path, method: str
) -> None:
    changes = {"run": str(run), "method": method}
    for name in ("a", "b"):
        suggest(discs, tmp_path / name, **changes)
    for file in ("suggested.csv", "label_studio.json", "cvat.xml", "contact_sheet.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    if method == "random":
        other = suggest(discs, tmp_path / "c", **changes, seed=1)
        assert [one.name for one in other.suggestions] != [
            row["name"] for row in read_table(tmp_path / "a")
        ]


def test_features_come_from_the_weights_and_drafts_from_the_run(
    discs: Path, run: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "own.safetensors"
    shutil.copy(run / "model.safetensors", weights)
    result = suggest(discs, tmp_path / "out", run=str(run), weights=str(weights), size=48)
    assert result.drafts
    assert str(weights) in result.features
    assert result.size == 48
    assert result.transfer is not None
    assert result.transfer.tensors == result.transfer.of_tensors


def test_a_finished_folder_is_recognised_and_another_refused(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, pool = tmp_path / "out", shutil.copytree(discs / "pool", tmp_path / "pool")
    first = suggest(discs, out, images=str(pool))
    with monkeypatch.context() as patch:
        patch.setattr(command, "write_files", None)  # nothing is computed again
        assert suggest(discs, out, images=str(pool)) == first
    with pytest.raises(UserError, match="another run's folder"):
        suggest(discs, out, images=str(pool), budget=5)
    # As if killed before the result was written.
    (out / "result.json").unlink()
    assert suggest(discs, out, images=str(pool)) == first
    (pool / "near.jpg").unlink()
    with pytest.raises(UserError, match="finished with other images"):
        suggest(discs, out, images=str(pool))


def test_images_that_tools_do_not_show_are_written_as_pngs(discs: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for i, name in enumerate(("a.tif", "b.jpg", "turned.jpg")):
        exif = Image.Exif()
        if name == "turned.jpg":
            exif[0x0112] = 6  # a quarter turn
        Image.fromarray(picture(i)[0]).save(pool / name, exif=exif)
    result = suggest(discs, tmp_path / "out", images=str(pool), budget=3, method="random")
    by_name = {one.name: tmp_path / "out" / one.image for one in result.suggestions}
    assert by_name["a.tif"].name == "a.png"
    assert by_name["b.jpg"].read_bytes() == (pool / "b.jpg").read_bytes()
    assert pixels_of(by_name["turned.jpg"]).shape == (48, 40, 3)
    assert (pixels_of(by_name["a.tif"]) == picture(0)[0]).all()


def test_mistakes_are_named_and_nothing_is_written(discs: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    weights = str(run / "model.safetensors")
    for changes, words in (
        ({"budget": 23}, r"--budget 23: .* leaves 22 images to choose from \(0 show a labelled"),
        ({"budget": 0}, "--budget 0: expected a number of images, 1 to a billion"),
        ({"images": str(tmp_path / "non")}, "no such folder"),
        ({"pairs": str(discs / "pool")}, "has no images/ and no masks/"),
        ({"method": "uncertainty"}, "--method uncertainty: of a fine-tuned model"),
        ({"method": "uncertainty", "run": weights}, "is no fine-tuned run"),
        ({"run": "scratch"}, "--run scratch: random weights"),
        ({"run": str(run) + "x"}, "runx: no such file or folder; near: .*run"),
        ({"encoder": "resnet18"}, "--encoder resnet18: of which weights"),
        ({"run": str(run), "encoder": "resnet34"}, "--encoder resnet34"),
        ({"run": weights, "weights": weights}, "both are weights to compare images by"),
        ({"method": "typicall"}, "--method typicall: expected one of random, typical"),
    ):
        with pytest.raises(UserError, match=words):
            suggest(discs, out, **changes)
        assert not out.exists()


def test_the_command_line_says_what_was_chosen_from_and_by(
    discs: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["suggest", "--images", str(discs / "pool"), "--pairs", str(discs / "labelled")]
    out = str(tmp_path / "out")
    assert dispatch([*words, "--run", str(run), "--budget", "3", "--out", out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("loaded ")
    assert lines[1:3] == [
        "23 images, 2 of them labelled, 1 repeats: 20 to choose from",
        "3 suggested by typical (mix: 6 labelled images are fewer than 50)",
    ]
    assert lines[3].startswith("compared by resnet18 at 32 px")
    assert lines[4] == f"list: {out}/suggested.csv"


def test_every_command_of_the_page_parses() -> None:
    page = Path(__file__).parents[2] / "docs" / "suggest.md"
    lines = [line for line in page.read_text().splitlines() if line.startswith("fewmask suggest ")]
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line)[2:]
        assert faults_of(partial(parse, "suggest", words), page) == ()
