"""Which pictures are left to choose from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.suggesting.conftest import picture

from fewmask.data.cache import ImageCache
from fewmask.data.items import ImageFile
from fewmask.inference import trained_hashes
from fewmask.progress import silent
from fewmask.settings import SuggestSettings
from fewmask.suggesting import candidates as module
from fewmask.suggesting.candidates import candidates, image_hashes
from fewmask.suggesting.pool import require_budget
from fewmask.types import UserError


def cache_of(*numbers: int) -> ImageCache:
    """Pictures by number; of a negative number the same picture, one pixel changed."""
    images = np.stack([picture(abs(k), 48, 48)[0] for k in numbers])
    for image, k in zip(images, numbers, strict=True):
        image[0, 0] += np.uint8(k < 0)
    names = tuple(str(row) for row in range(len(numbers)))
    return ImageCache(images, np.full((len(numbers), 2), 48, np.int32), names, ())


def test_labelled_pictures_and_repeats_are_left_out() -> None:
    pool, labelled = cache_of(1, 2, -2, 3, -4, 3, 5), cache_of(4)
    found = candidates(pool, labelled, [False] * 7, keep_near=False)
    assert found.rows.tolist() == [0, 1, 3, 6]
    assert found.labelled.tolist() == [4]
    assert found.repeated.tolist() == [2, 5]
    assert found.known.tolist() == [], "the pairs have its features"
    equal = candidates(pool, labelled, [False] * 7, keep_near=True)
    assert equal.rows.tolist() == [0, 1, 2, 3, 4, 6]
    assert equal.repeated.tolist() == [5]


def test_more_than_there_are_is_refused_with_what_was_left_out() -> None:
    found = candidates(cache_of(1, 2, -2, 3, -3), None, [False] * 5, keep_near=False)
    settings = SuggestSettings(images="pool", budget=3, out="o")
    require_budget(settings, found)
    with pytest.raises(UserError) as told:
        require_budget(replace(settings, budget=4), found)
    assert str(told.value) == (
        "--budget 4: pool leaves 3 images to choose from (0 show a labelled one, 2 repeat "
        "another). Choose a smaller --budget, or pass --keep-near to have near copies, too"
    )
    with pytest.raises(UserError, match=r"smaller --budget$"):
        require_budget(replace(settings, budget=4, keep_near=True), found)


def test_pictures_of_the_run_are_known_once() -> None:
    pool = cache_of(1, 2, -2, 3, 4)
    trained = [False, True, True, True, False]
    found = candidates(pool, cache_of(3), trained, keep_near=False)
    assert found.rows.tolist() == [0, 4]
    assert found.labelled.tolist() == [1, 2, 3]
    assert found.known.tolist() == [1], "2 shows the same picture, 3 is one of the pairs"
    alone = candidates(pool, None, trained, keep_near=False)
    assert alone.known.tolist() == [1, 3]
    # A copy of a trained picture is left out with it, wherever it stands in the pool.
    other = candidates(cache_of(-2, 2), None, [False, True], keep_near=False)
    assert (other.labelled.tolist(), other.known.tolist()) == ([0, 1], [1])


def test_hashes_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    items = [ImageFile("a.png", path), ImageFile("b.png", tmp_path / "b.png")]
    path.write_bytes(b"no picture")
    first = image_hashes(items, silent)
    assert first == {"a.png": "", "b.png": ""}
    with monkeypatch.context() as patch:
        patch.setattr(module, "_hash", None)
        assert image_hashes(items, silent) == first
    Image.fromarray(picture(1)[0]).save(path)
    assert image_hashes(items, silent)["a.png"]


def test_a_run_s_own_pictures_are_read_from_its_split(tmp_path: Path) -> None:
    assert trained_hashes(tmp_path) == frozenset()
    parts = {"train": [{"name": "1", "image": "x"}], "val": [{"name": "2", "image": "y"}]}
    (tmp_path / "split.json").write_text(json.dumps(parts))
    assert trained_hashes(tmp_path) == {"x", "y"}
    (tmp_path / "split.json").write_text("[1]")
    with pytest.raises(UserError, match=r"split.json: damaged .* it is not known which pictures"):
        trained_hashes(tmp_path)
