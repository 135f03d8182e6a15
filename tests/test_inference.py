"""From a trained model to masks: any size, any name, the same geometry as in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

import fewmask
from fewmask.augment import normalise, to_unit
from fewmask.checkpoint import read_weights
from fewmask.inference import frame, load_run, logits_of
from fewmask.overlays import edges, overlay, strips
from fewmask.segmentation import Geometry, Segmenter, predicted
from fewmask.types import Labels, UserError

TWO = Labels(("ground", "thing"), (0, 1, *[254] * 254))


@pytest.fixture
def run(write_pairs: Callable[..., Path], tmp_path: Path) -> Path:
    out = tmp_path / "run"
    fewmask.finetune(
        pairs=str(write_pairs(6)), out=str(out), encoder="resnet18", size=32, steps=2, batch_size=4
    )
    return out


def opened(path: Path) -> tuple[tuple[int, int], str]:
    with Image.open(path) as picture:
        return picture.size, picture.mode


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 300), (33, 65), (32, 32), (100, 41)])
def test_any_size_gives_logits_of_its_own_size(height: int, width: int) -> None:
    torch.manual_seed(0)
    segmenter = Segmenter("resnet18", "unet", TWO).eval()
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for resize in ("square", "keep"):
        given = frame(image, Geometry(40, resize))  # type: ignore[arg-type]
        ((pixels, found),) = logits_of(segmenter, [given], torch.device("cpu"))
        assert pixels is image
        assert found.shape == (1, height, width)
        assert torch.isfinite(found).all()
    assert segmenter(torch.rand(1, 3, 33, 47)).shape == (1, 1, 33, 47)


def test_what_the_network_s_stride_fits_is_left_as_it_is() -> None:
    segmenter = Segmenter("resnet18", "unet", TWO).eval()
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    unit = to_unit(torch.from_numpy(image).permute(2, 0, 1)[None])
    with torch.inference_mode():
        wanted = segmenter.network(normalise(unit))[0]
    given = frame(image, Geometry(32, "square"))
    _, found = next(logits_of(segmenter, [given], torch.device("cpu")))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_run_opens_in_smp_with_the_same_logits(run: Path) -> None:
    theirs = smp.from_pretrained(str(run)).eval()
    ours = load_run(run).segmenter
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(theirs(normalise(images)), ours(images), atol=1e-5)


def test_two_classes_cut_at_a_half_and_more_take_the_largest() -> None:
    assert predicted(torch.tensor([[[-0.1, 0.0, 0.1]]])).tolist() == [[0, 0, 1]]
    logits = torch.tensor([[[1.0, 0.0]], [[2.0, -1.0]], [[0.0, 3.0]]])
    assert predicted(logits).tolist() == [[1, 2]]


def test_predict_writes_a_mask_and_an_overlay_for_each_image(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "deep"
    folder.mkdir(parents=True)
    Image.new("RGB", (31, 77)).save(folder / "a b.png")
    Image.new("L", (200, 9)).save(tmp_path / "new" / "grey.jpg")
    out = tmp_path / "out"
    result = fewmask.predict(run=str(run), paths=(str(tmp_path / "new"),), out=str(out))
    assert sorted(p.relative_to(out / "masks").as_posix() for p in result.masks) == [
        "deep/a b.png",
        "grey.png",
    ]
    assert opened(out / "masks" / "deep" / "a b.png") == ((31, 77), "L")
    assert opened(out / "masks" / "grey.png") == ((200, 9), "L")
    assert opened(out / "overlays" / "grey.png") == ((200, 9), "RGB")


def test_names_that_clash_are_said_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    Image.new("RGB", (8, 8)).save(folder / "a.jpg")
    (tmp_path / "b.jpg").write_text("no picture")
    paths = (str(folder), str(tmp_path / "b.jpg"))
    with pytest.raises(UserError) as raised:
        fewmask.predict(run=str(run), paths=paths, out=str(tmp_path / "out"))
    assert len(raised.value.faults) == 2
    assert not (tmp_path / "out").exists()


def test_the_others_are_predicted_where_one_cannot_be_decoded(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.effect_noise((40, 40), 50).save(folder / f"{name}.png")
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as raised:
        fewmask.predict(run=str(run), paths=(str(folder),), out=str(tmp_path / "out"))
    assert "b.png: cannot be decoded" in raised.value.faults[0]
    assert len(raised.value.faults) == 1
    assert "the other 2 images" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out" / "masks").iterdir()) == ["a.png", "c.png"]


def test_overlays_can_be_left_out(run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    result = fewmask.predict(
        run=str(run), paths=(str(tmp_path / "a.png"),), out=str(out), overlays=False
    )
    assert result.overlays == ()
    assert sorted(p.name for p in out.iterdir()) == ["config.toml", "masks"]
    fewmask.predict(run=str(run), paths=(str(tmp_path / "a.png"),), out=str(out), overlays=False)


def test_a_folder_without_a_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_run(tmp_path / "none")
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(UserError, match="Run its command again"):
        load_run(tmp_path)


def test_fine_tuning_starts_from_the_pre_trained_weights(
    write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = write_pairs(6)
    start, frozen = tmp_path / "start", tmp_path / "frozen"
    small = {"encoder": "resnet18", "size": 32, "steps": 2, "batch_size": 4}
    fewmask.pretrain(images=str(pairs / "images"), out=str(start), **small)
    fewmask.finetune(pairs=str(pairs), out=str(frozen), init=str(start), lr=1e-12, **small)
    before = read_weights(start / "encoder.safetensors")
    after = read_weights(frozen / "model.safetensors")
    parameters = [n for n in before if "running" not in n and "num_batches" not in n]
    assert len(parameters) == 60
    for name in parameters:
        assert torch.allclose(before[name], after[f"encoder.{name}"], atol=1e-7), name
    random = tmp_path / "random"
    fewmask.finetune(pairs=str(pairs), out=str(random), lr=1e-12, seed=1, **small)
    other = read_weights(random / "model.safetensors")
    assert not torch.allclose(before["conv1.weight"], other["encoder.conv1.weight"], atol=1e-3)


def test_overlays_tint_and_outline_only_what_was_found() -> None:
    pixels = np.full((9, 9, 3), 100, np.uint8)
    mask = np.zeros((9, 9), np.uint8)
    mask[2:7, 2:7] = 1
    drawn = overlay(pixels, mask, ((0, 0, 0), (230, 159, 0)))
    assert (drawn[mask == 0] == 100).all()
    assert (drawn[mask == 1] != 100).any(axis=1).all()
    assert (drawn[(mask == 1) & edges(mask)] == (230, 159, 0)).all()
    assert (mask[edges(mask)] == 1).sum() == 16
    swapped = overlay(pixels, mask, ((9, 9, 9), (0, 0, 0)))
    assert (swapped[mask == 1] == 100).all(), "black is background, whatever its id"
    assert (swapped[mask == 0] != 100).any(axis=1).all()


def test_overlays_of_large_pictures_are_drawn_strip_by_strip() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1500, 1300, 3)).astype(np.uint8)
    mask = rng.integers(0, 3, (1500, 1300)).astype(np.uint8)
    colours = [(0, 0, 0), (230, 159, 0), (0, 114, 178)]
    rows = list(strips(mask))
    assert len(rows) == 2
    assert np.concatenate([mask[one] for one in rows]).shape == mask.shape
    drawn = overlay(pixels, mask, colours)
    # Within a strip's edge a smaller picture of its own shows what the whole one must.
    border = rows[0].stop
    own = overlay(pixels[border - 3 : border + 3], mask[border - 3 : border + 3], colours)
    assert (drawn[border - 2 : border + 2] == own[1:5]).all()
