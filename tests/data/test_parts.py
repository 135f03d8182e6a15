"""Parts of a source and mixtures: what they hold, what they are called, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewmask.data.cache import cached_images
from fewmask.data.parts import split
from fewmask.data.sources import open_images, open_pairs
from fewmask.flags import read_config
from fewmask.settings import StudySettings
from fewmask.studies.arms import pool_name
from fewmask.studies.grid import load_plan
from fewmask.types import UserError

Write = Callable[..., Path]


@pytest.fixture
def pool(tmp_path: Path, write_image: Write) -> Path:
    """Three class folders: 8 cats, 6 dogs, 4 ships of 12 x 16 pixels."""
    for k, (name, n) in enumerate((("cat", 8), ("dog", 6), ("ship", 4))):
        for i in range(n):
            write_image(tmp_path / "pool" / name / f"{i}.png", 100 * k + i)
    return tmp_path / "pool"


def names(src: str) -> list[str]:
    return [item.name for item in open_images(src).items]


def test_classes_choose_and_keep_the_set_s_order(pool: Path) -> None:
    found = open_images(f"{pool}?classes=ship,cat")
    assert [item.name for item in found.items] == [f"cat/{i}.png" for i in range(8)] + [
        f"ship/{i}.png" for i in range(4)
    ]
    assert found.label_names == ("cat", "ship")
    assert found.labels == (0,) * 8 + (1,) * 4
    assert open_images(f"{pool}?classes=dog").labels is None, "one class tells nothing apart"


def test_draws_nest_and_follow_the_seed(pool: Path) -> None:
    small, large = set(names(f"{pool}?n=5")), set(names(f"{pool}?n=9"))
    assert len(small) == 5
    assert small < large
    assert names(f"{pool}?n=5") == names(f"{pool}?n=5&seed=0") == sorted(small)
    assert set(names(f"{pool}?n=5&seed=1")) != small
    assert len(names(f"{pool}?n=6&classes=dog")) == 6


def test_side_shrinks_the_short_side_and_never_enlarges(pool: Path) -> None:
    whole, part = open_images(str(pool)), open_images(f"{pool}?side=6")
    assert part.items[0].pixels().shape == (6, 8, 3)
    expected = Image.fromarray(whole.items[0].pixels()).resize((8, 6), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(part.items[0].pixels(), np.asarray(expected))
    large = open_images(f"{pool}?side=13").items[0].pixels()
    np.testing.assert_array_equal(large, whole.items[0].pixels())


def test_parts_have_fingerprints_and_caches_of_their_own(pool: Path) -> None:
    sets = [open_images(f"{pool}{tail}") for tail in ("", "?side=6", "?side=8", "?n=5", "?n=6")]
    assert len({images.fingerprint() for images in sets}) == 5
    assert open_images(f"{pool}?side=6").fingerprint() == sets[1].fingerprint()
    first, second = (cached_images(images, 16, "square").images[0] for images in sets[:2])
    assert (first != second).any()


def test_a_mixture_holds_both_and_shares_class_names(pool: Path, write_image: Write) -> None:
    for i in range(3):
        write_image(pool.parent / "more" / "dog" / f"{i}.png", 500 + i)
        write_image(pool.parent / "more" / "fox" / f"{i}.png", 600 + i)
    found = open_images(f"{pool}?classes=cat&n=2 + {pool.parent / 'more'}")
    assert [item.name for item in found.items][2:4] == ["2/dog/0.png", "2/dog/1.png"]
    assert len({item.name for item in found.items}) == 8
    assert found.label_names == ("cat", "dog", "fox")
    assert found.labels == (0, 0, 1, 1, 1, 2, 2, 2)
    assert found.pool == "pool-cat-2-and-more"
    assert len(cached_images(found, 16, "square").names) == 8


def test_the_pool_is_named_the_same_before_and_after_it_is_opened(pool: Path) -> None:
    for tail in ("", "?classes=cat,dog&n=5&side=8&seed=3", "?n=5", f"?n=2 + {pool}?classes=ship"):
        src = f"{pool}{tail}"
        if "+" in tail:
            src = src.replace("?n=2 +", "?classes=cat&n=2 +")
        assert pool_name(src) == open_images(src).pool
    assert pool_name("cifar10:?classes=cat,dog&n=200&side=16") == "cifar10-cat+dog-200-16px"


def test_a_path_that_exists_is_no_part(
    tmp_path: Path, write_image: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(Path("a + b/1.png"))
    write_image(Path("what?n=1/1.png"), 1)
    write_image(Path("what?n=1/2.png"), 2)
    assert split("a + b") == split("what?n=1") == ()
    assert len(names("what?n=1?n=1")) == len(names("a + b?n=1")) == 1


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ("?clases=cat", "'clases=cat' after the ?.*near: classes; known: classes=A,B n=COUNT"),
        ("?cat", "'cat' after the"),
        ("?n=", "'n=' after the"),
        ("?n=5&n=6", "gives n twice"),
        ("?n=0", "n=0; expected a whole number from 1"),
        ("?side=x", "side=x; expected a whole number from 4"),
        ("?seed=1", "draws nothing without n=COUNT"),
        ("?n=19", "n=19, but there are 18 images"),
        ("?classes=cats", "no class cats; near: cat; classes: cat, dog, ship"),
        (" + ", "nothing beside a +"),
    ],
)
def test_what_is_no_part_is_refused(tail: str, words: str, pool: Path) -> None:
    with pytest.raises(UserError, match=words):
        open_images(f"{pool}{tail}")


def test_a_picture_is_in_one_part_alone(pool: Path) -> None:
    with pytest.raises(UserError, match="4 images are in two parts"):
        open_images(f"{pool} + {pool}?classes=ship")


def test_classes_of_a_pool_without_any(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "flat" / "1.png")
    with pytest.raises(UserError, match="has no classes; expected cifar10:"):
        open_images(f"{tmp_path / 'flat'}?classes=cat")


def test_pairs_have_no_parts() -> None:
    with pytest.raises(UserError, match="parts and mixtures are of images alone"):
        open_pairs("oxford-iiit-pet:?n=20")


def test_arms_and_configuration_files_take_parts(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'pairs = "p"\nbudgets = [4]\n[[arms]]\nimages = ["cifar10:?classes=cat,dog&n=20", "a + b"]'
    )
    arms = load_plan(StudySettings(plan=str(plan), out="o")).arms
    assert [arm.name for arm in arms] == ["simclr-cifar10-cat+dog-20", "simclr-a-and-b"]
    assert arms[0].pretrain is not None
    assert arms[0].pretrain.images == "cifar10:?classes=cat,dog&n=20"
    config = tmp_path / "config.toml"
    config.write_text('images = ["cifar10:?classes=cat,dog", "b"]')
    assert read_config(str(config), {"images": tuple[str, ...]}) == {
        "images": ("cifar10:?classes=cat,dog", "b")
    }
