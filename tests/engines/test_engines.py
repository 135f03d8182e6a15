"""Engines give the original's masks, or are not used; int8 says what it costs."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import fewmask
from fewmask.data.sources import open_images
from fewmask.engines import opening, runtimes, signals
from fewmask.engines.checking import AccuracyDrop, own_pairs
from fewmask.engines.opening import flops
from fewmask.inference import load_run
from fewmask.types import UserError

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
    ),
    pytest.mark.xdist_group("engines"),  # one run, and its engines made once
]


@pytest.fixture
def _libraries() -> None:
    pytest.importorskip("openvino", reason="the export extra (openvino) is not here")
    pytest.importorskip("nncf", reason="the export extra (nncf) is not here")


libraries = pytest.mark.usefixtures("_libraries")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def run(work: Path) -> Path:
    """A model that tells bright discs from dark ground."""
    rows, columns = np.mgrid[:40, :48]
    for folder in ("pairs/images", "pairs/masks", "photos"):
        (work / folder).mkdir(parents=True)
    for i in range(20):
        rng = np.random.default_rng(i)
        y, x = rng.uniform(10, 30, 2)
        mask = (rows - y) ** 2 + (columns - x) ** 2 < 80
        pixels = (rng.integers(0, 80, (40, 48, 3)) + 140 * mask[..., None]).astype(np.uint8)
        if i < 8:
            Image.fromarray(pixels).save(work / "pairs" / "images" / f"{i}.png")
            Image.fromarray(mask.astype(np.uint8)).save(work / "pairs" / "masks" / f"{i}.png")
        else:
            Image.fromarray(pixels[: 40 - i // 2]).save(work / "photos" / f"{i}.png")
    out = work / "run"
    fewmask.finetune(
        pairs=str(work / "pairs"), out=str(out), encoder="resnet18", size=32, steps=30, batch_size=4
    )
    return out


@pytest.fixture(autouse=True)
def _own_cache(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWMASK_CACHE", str(work / "cache"))


def masks(run: Path, out: Path, **settings: object) -> tuple[str, NDArray[np.uint8]]:
    """The engine's name, and the pixels of all masks one after the other."""
    photos = str(run.parent / "photos")
    found = fewmask.predict(run=str(run), paths=(photos,), out=str(out), **settings)
    return found.engine, np.concatenate([np.asarray(Image.open(p)).ravel() for p in found.masks])


@libraries
@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_an_engine_gives_the_masks_of_the_original(run: Path, tmp_path: Path, engine: str) -> None:
    name, wanted = masks(run, tmp_path / "torch", engine="torch")
    assert name == "torch"
    assert 0.05 < wanted.mean() < 0.5
    name, found = masks(run, tmp_path / engine, engine=engine)
    assert name == engine
    assert (found == wanted).mean() > 0.999


@libraries
def test_int8_is_near_and_says_how_near_and_is_made_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, wanted = masks(run, tmp_path / "torch", engine="torch")
    capsys.readouterr()
    name, found = masks(run, tmp_path / "first", int8=True)
    said = capsys.readouterr()
    assert name == "openvino int8"
    assert (found == wanted).mean() > 0.97
    assert "making an int8 model" in said.err
    assert "12 images" in said.err
    assert "IoU on 8 of the run's own pairs" in said.err
    assert said.out == ""
    _, again = masks(run, tmp_path / "second", int8=True)
    said = capsys.readouterr()
    assert "making" not in said.err
    assert "IoU on 8" in said.err
    assert (again == found).all()


@libraries
def test_auto_is_by_the_work(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = flops(load_run(run))
    assert masks(run, tmp_path / "few")[0] == "torch"
    monkeypatch.setattr(opening, "AUTO_FLOPS", 12 * work)
    assert masks(run, tmp_path / "many")[0] == "openvino"


@libraries
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_bf16_is_used_where_it_gives_the_same_classes(
    run: Path,
    tmp_path: Path,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(opening, "computes_bf16", lambda _: True)
    _, wanted = masks(run, tmp_path / "full", engine=engine)
    monkeypatch.setattr(opening, "AGREEMENT", 0.97)
    name, found = masks(run, tmp_path / "bf16", engine=engine, precision="auto")
    assert name == f"{engine} bf16"
    assert (found == wanted).mean() > 0.97
    assert len([*(tmp_path / "cache" / "engines").glob("*/bf16.json")]) == 1
    with monkeypatch.context() as once:  # what was found is kept
        once.setattr(opening, "agreement", None)
        assert masks(run, tmp_path / "again", engine=engine, precision="auto")[0] == name
    monkeypatch.setattr(opening, "AGREEMENT", 1.01)
    name, found = masks(run, tmp_path / "refused", engine=engine, precision="auto")
    assert name == engine
    assert (found == wanted).all()
    assert "bf16 gives another class to" in capsys.readouterr().err
    with pytest.raises(UserError, match="Choose --precision 32"):
        masks(run, tmp_path / "asked", engine=engine, precision="bf16")
    assert not (tmp_path / "asked").exists()


@libraries
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_bf16_is_another_arithmetic(
    run: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "openvino" and not opening.computes_bf16("cpu"):
        pytest.skip("this processor has no bf16, and OpenVINO then computes in 32 bit")
    monkeypatch.setattr(opening, "AGREEMENT", 0.0)
    monkeypatch.setattr(opening, "computes_bf16", lambda _: True)
    items = open_images(str(run.parent / "photos")).items
    images = torch.rand(2, 3, 32, 32)
    found = []
    for precision in ("32", "bf16"):
        wanted = opening.Wanted(engine, precision)  # type: ignore[arg-type]
        chosen = opening.open_engine(load_run(run), wanted, items=items, device=torch.device("cpu"))
        with torch.inference_mode():
            found.append(chosen.network(images))
    apart = float((found[0] - found[1]).abs().max() / found[0].std())
    assert 1e-4 < apart < 0.2


@libraries
def test_a_runtime_that_fails_in_bf16_leaves_32_bit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opening, "computes_bf16", lambda _: True)
    monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / "cache"))

    def failing(*_: object, **__: object) -> runtimes.Network:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(opening, "compiled", failing)
    assert masks(run, tmp_path / "out", engine="openvino", precision="auto")[0] == "openvino"
    assert "no such operation" in capsys.readouterr().err


def test_bf16_is_left_where_the_processor_does_not_know_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "computes_bf16", lambda _: False)
    assert masks(run, tmp_path / "out", engine="torch", precision="auto")[0] == "torch"


@libraries
def test_a_batch_in_portions_is_the_whole_batch(run: Path) -> None:
    """More streams than one, portions that are not full, images that lie in either order."""
    model = load_run(run)
    threads = torch.get_num_threads()
    folder = opening._folder(model, "openvino", ())
    fewmask.predict(
        run=str(run), paths=(str(run.parent / "photos"),), out=str(run.parent / "p"),
        engine="openvino",
    )  # fmt: skip
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            network = runtimes.read_openvino(folder / "model.xml")
            for batch in (1, 4, 5, 11):
                images = torch.rand(batch, 3, 32, 32)
                with torch.inference_mode():
                    wanted = model.segmenter(images)
                for given in (images, images.contiguous(memory_format=torch.channels_last)):
                    assert torch.allclose(network(given), wanted, atol=1e-3)
    finally:
        torch.set_num_threads(threads)


@libraries
@pytest.mark.skipif(sys.platform != "linux", reason="other systems' stack_t is another")
def test_signals_keep_their_stack(run: Path, tmp_path: Path) -> None:
    """Two engines freed in the order in which they came: Control-C was a segmentation fault."""
    fewmask.predict(
        run=str(run), paths=(str(run.parent / "photos"),), out=str(tmp_path / "p"),
        engine="openvino",
    )  # fmt: skip
    place = opening._folder(load_run(run), "openvino", ()) / "model.xml"
    with signals.own_signal_stack():  # were it lost, the tests that follow should not suffer
        before = signal_stack()
        networks = [runtimes.read_openvino(place) for _ in range(2)]
        assert signal_stack() == before
        while networks:
            del networks[0]
            gc.collect()
        assert signal_stack() == before


def signal_stack() -> tuple[int | None, int]:
    stack = signals._Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.pointer, stack.size


@libraries
def test_an_engine_that_is_ready_needs_no_network(run: Path, tmp_path: Path) -> None:
    """Building the network imports timm and smp, which is most of the time of one picture."""
    photo = str(run.parent / "photos" / "9.png")
    ask = {"run": str(run), "paths": (photo,), "engine": "openvino"}
    fewmask.predict(out=str(tmp_path / "first"), **ask)  # type: ignore[arg-type]
    script = (
        "import sys, fewmask\n"
        f"fewmask.predict(out={str(tmp_path / 'second')!r}, **{ask!r})\n"
        "print([name for name in ('timm', 'segmentation_models_pytorch', 'torchvision',"
        " 'lightning_fabric') if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    assert (tmp_path / "second" / "masks" / "9.png").exists()


def wrong(network: torch.nn.Module, path: Path, _: torch.Tensor) -> runtimes.Network:
    path.write_text("")
    return lambda images: -network(images)


@libraries
def test_an_engine_that_disagrees_is_not_used(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(runtimes.WRITERS, "openvino", wrong)
    with pytest.raises(UserError, match="another class than the original"):
        masks(run, tmp_path / "asked", engine="openvino")
    assert not (tmp_path / "asked").exists()
    assert [p.suffix for p in (tmp_path / "cache" / "engines").iterdir()] == [".lock"]
    monkeypatch.setattr(opening, "AUTO_FLOPS", 1)
    assert masks(run, tmp_path / "auto")[0] == "torch"
    assert "Predicting with torch" in capsys.readouterr().err


@libraries
def test_int8_needs_images_to_be_calibrated_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / "cache"))
    photo = next((run.parent / "photos").iterdir())
    with pytest.raises(UserError, match="1 can be read"):
        fewmask.predict(run=str(run), paths=(str(photo),), out=str(tmp_path / "out"), int8=True)
    out = str(tmp_path / "model.xml")
    with pytest.raises(UserError, match="1 can be read"):
        fewmask.export(run=str(run), out=out, int8=True, images=str(only(photo, tmp_path)))


def only(photo: Path, tmp_path: Path) -> Path:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / photo.name).write_bytes(photo.read_bytes())
    return tmp_path / "one"


@libraries
def test_an_int8_export_is_smaller_and_says_what_it_costs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fewmask.export(run=str(run), out=str(tmp_path / "whole.xml"))
    small = fewmask.export(run=str(run), out=str(tmp_path / "small.xml"), int8=True)
    assert "IoU on 8 of the run's own pairs" in capsys.readouterr().err
    sizes = [path.with_suffix(".bin").stat().st_size for path in (whole, small)]
    assert sizes[1] < 0.3 * sizes[0]
    network = runtimes.read_openvino(small)
    assert network(torch.rand(3, 3, 32, 32)).shape == (3, 1, 32, 32)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "onnx", "device": "cuda"}, "on the CPU"),
        ({"int8": True, "engine": "onnx"}, "is openvino's"),
        ({"int8": True, "device": "cuda"}, "on the CPU"),
        ({"int8": True, "precision": "bf16"}, "do not go together"),
        ({"engine": "onnx", "precision": "bf16"}, "do not go together"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        fewmask.predict(run="run", paths=("photos",), out="out", **settings)


def test_the_drop_is_in_words_and_warned_of() -> None:
    small = AccuracyDrop(100, 0.998, 16, 0.91, 0.9085)
    assert "99.80 %" in small.sentence()
    assert "0.9100 -> 0.9085 (-0.15 points)" in small.sentence()
    assert "warning" not in small.sentence()
    assert AccuracyDrop(100, 0.998, 16, 0.91, 0.90).sentence().startswith("warning: ")
    unknown = AccuracyDrop(100, 0.995, why_unknown="data: no such folder")
    assert "not known (data: no such folder)" in unknown.sentence()
    assert not unknown.too_large
    assert AccuracyDrop(100, 0.9, why_unknown="gone").too_large


def test_own_pairs_are_those_of_the_split_as_they_were(run: Path, tmp_path: Path) -> None:
    model = load_run(run)
    copied = tmp_path / "pairs"
    shutil.copytree(run.parent / "pairs", copied)
    model.described["options"]["src"] = str(copied)
    assert len(own_pairs(model)) == 8
    Image.new("RGB", (48, 40)).save(copied / "images" / "3.png")
    assert "3" not in {pair.name for pair in own_pairs(model)}
    assert len(own_pairs(model)) == 7
    model.described["options"]["src"] = "nowhere"
    with pytest.raises(UserError, match="nowhere"):
        own_pairs(model)


@libraries
def test_one_image_is_enough_for_full_precision(run: Path, tmp_path: Path) -> None:
    photo = str(run.parent / "photos" / "9.png")
    for engine in ("openvino", "onnx"):
        shutil.rmtree(run.parent / "cache" / "engines", ignore_errors=True)
        out = str(tmp_path / engine)
        found = fewmask.predict(run=str(run), paths=(photo,), out=out, engine=engine)
        assert found.engine == engine


@libraries
def test_an_engine_that_cannot_be_read_is_made_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    masks(run, tmp_path / "first", engine="openvino")
    for path in (run.parent / "cache" / "engines").rglob("model.bin"):
        path.write_bytes(b"broken")
    for path in (run.parent / "cache" / "engines").rglob("ready.json"):
        path.write_text("{")
    capsys.readouterr()
    monkeypatch.setattr(opening, "AUTO_FLOPS", 1)  # auto: one that can't be made again is torch
    assert masks(run, tmp_path / "second")[0] == "openvino"
    assert "making a model for openvino ready" in capsys.readouterr().err


def test_an_engine_whose_weights_changed_is_made_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It could be read, and its masks would be wrong."""
    _, first = masks(run, tmp_path / "first", engine="openvino")
    for path in (run.parent / "cache" / "engines").rglob("model.bin"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 64
        path.write_bytes(data)
    capsys.readouterr()
    _, second = masks(run, tmp_path / "second", engine="openvino")
    assert "making a model for openvino ready" in capsys.readouterr().err
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


class LibraryError(Exception):
    """As the libraries' own: of no other base than Exception."""


def test_what_a_library_raises_is_one_line_or_torch(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(*_: object) -> runtimes.Network:
        raise LibraryError("no such operation")

    monkeypatch.setenv("FEWMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(runtimes.WRITERS, "openvino", failing)
    with pytest.raises(UserError, match=r"cannot take this model \(no such operation\)"):
        masks(run, tmp_path / "asked", engine="openvino")
    monkeypatch.setattr(opening, "_kind", lambda *_, **__: "openvino")
    assert masks(run, tmp_path / "auto")[0] == "torch"
    assert "no such operation" in capsys.readouterr().err


@libraries
def test_engines_of_the_cpu_stay_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wanted(device: str) -> torch.device:
        assert device == "cpu", "the fastest device was asked for"
        return torch.device(device)

    monkeypatch.setattr("fewmask.predicting.pick_device", wanted)
    assert masks(run, tmp_path / "out", engine="openvino")[0] == "openvino"


@libraries
def test_no_library_reports_its_use() -> None:
    script = (
        "from fewmask.engines.runtimes import needs\n"
        "needs('openvino'), needs('nncf')\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "from nncf.telemetry import wrapper\n"
        "print(telemetry_utils.tm.__name__, type(wrapper.telemetry).__name__)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "MagicMock"]
