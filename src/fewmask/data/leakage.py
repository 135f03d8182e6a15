"""Which pictures two sets share: a pool and the test set, training and test pairs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from fewmask.data.cache import stamps
from fewmask.data.duplicates import Alike, Thumbs, between, within
from fewmask.data.items import ImageItem
from fewmask.data.looks import SeenImages, look_at_images
from fewmask.data.place import cache_root
from fewmask.data.sources import ImageSet, PairSet
from fewmask.files import write_json_atomic
from fewmask.types import UserError

Report = Callable[[int, int], None]
FORMAT = "2"
"""Part of every key: what another way of finding copies has found is not taken for this one's."""


@dataclass(frozen=True)
class Pictures:
    """A set as it is compared: its images with their hashes [N] and thumbnails uint8 [N,48,48].

    `key` names the files as they lie here; hashes of undecodable images equal no other's.
    """

    src: str
    items: Sequence[ImageItem]
    hashes: tuple[str, ...]
    thumbs: Thumbs
    key: str


@dataclass(frozen=True)
class Shared:
    """A picture that is in two places; `exact` where the pixels are the same."""

    exact: bool
    left: ImageItem
    right: ImageItem

    @property
    def kind(self) -> str:
        return "exact" if self.exact else "near"


def pool_pictures(
    images: ImageSet, *, progress: Report | None = None, workers: int | None = None
) -> Pictures:
    """A pool, looked at once; undecodable images stay in, and are like no other."""
    return seen_pictures(images, look_at_images(images.items, progress, workers))


def seen_pictures(images: ImageSet, seen: SeenImages) -> Pictures:
    """A pool that was looked at."""
    hashes = _unlike(images.src, seen.hashes)
    return Pictures(images.src, images.items, hashes, seen.thumbs, stamps(images.items, "pictures"))


def pair_pictures(pairs: PairSet, hashes: Sequence[str], thumbs: Thumbs) -> Pictures:
    """The images of pairs that were checked: a PairReport's hashes and thumbnails."""
    items = [pair.image for pair in pairs.items]
    return Pictures(pairs.src, items, _unlike(pairs.src, hashes), thumbs, stamps(items, "pictures"))


def undecodable(digest: str) -> bool:
    """Whether a hash of Pictures is that of an image that could not be decoded."""
    return digest == "" or digest.startswith("undecodable ")


def _unlike(src: str, hashes: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        f"undecodable {src} {row}" if undecodable(digest) else digest
        for row, digest in enumerate(hashes)
    )


# --- what they share ------------------------------------------------------------------------------


def overlap(left: Pictures, right: Pictures, progress: Report | None = None) -> Alike:
    """Rows (of the left, of the right) that show one picture; remembered in the cache folder."""

    def work() -> Alike:
        return between((left.thumbs, left.hashes), (right.thumbs, right.hashes), progress)

    return _remembered(_digest(left.key, "x", right.key), work)


def repeats(pictures: Pictures, progress: Report | None = None) -> Alike:
    """Rows of one set that show one picture; remembered in the cache folder."""
    return _remembered(
        _digest(pictures.key, "within"),
        lambda: within(pictures.thumbs, pictures.hashes, progress),
    )


def shared(alike: Alike, left: Pictures, right: Pictures) -> list[Shared]:
    """The same by their files; exact ones first."""
    return [
        Shared(exact, left.items[i], right.items[j])
        for exact, rows in ((True, alike.exact), (False, alike.near))
        for i, j in rows
    ]


def counted(found: Sequence[Shared], n: int, what: str = "images") -> str:
    """How many different left pictures are shared: `3 of 240 images (1 exact, 2 near copies)`."""
    exact = {one.left.where for one in found if one.exact}
    near = {one.left.where for one in found} - exact
    return f"{len(exact | near)} of {n} {what} ({len(exact)} exact, {len(near)} near copies)"


def first_few(found: Sequence[Shared], most: int = 3) -> str:
    """`a.jpg = b.jpg, c.jpg = d.jpg and 5 more`: each left picture once, with its first twin."""
    firsts: dict[str, str] = {}
    for one in found:
        firsts.setdefault(one.left.where, one.right.where)
    words = ", ".join(f"{left} = {right}" for left, right in list(firsts.items())[:most])
    return words + (f" and {len(firsts) - most} more" if len(firsts) > most else "")


def _remembered(name: str, work: Callable[[], Alike]) -> Alike:
    path = cache_root() / "checks" / f"{name}.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return Alike(*(tuple((int(i), int(j)) for i, j in table[k]) for k in ("exact", "near")))
    except (OSError, ValueError, KeyError, TypeError):
        found = work()
    with contextlib.suppress(OSError, UserError):  # what cannot be remembered is compared again
        write_json_atomic(path, {"exact": found.exact, "near": found.near})
    return found


def _digest(*texts: str) -> str:
    return blake2b("\0".join((FORMAT, *texts)).encode(), digest_size=16).hexdigest()
