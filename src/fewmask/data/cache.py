"""Pixels decoded once, in a memory-mapped file of uint8."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fewmask.data.images import Pixels, Undecodable, limit_named, resize_image, resize_mask
from fewmask.data.items import ImageItem, small_image
from fewmask.data.listing import FileList
from fewmask.data.place import cache_root, locked
from fewmask.data.sources import ImageSet, PairSet
from fewmask.data.store import Names, Rows, Taken, refuse_too_many
from fewmask.types import Labels, Resize, UserError

FORMAT = "3"
"""Part of every key: a cache of another layout, or decoded in another way, is not found."""
Report = Callable[[int, int], None]
Decoded = tuple[Pixels, tuple[int, int], Pixels | None]
"""Image, the part of it that is not padding, class ids."""
Item = TypeVar("Item")
Found = TypeVar("Found")

REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR,
    errno.EEXIST,
}  # fmt: skip
"""What the system says where a cache cannot be written; the user can mend it."""


@dataclass(frozen=True)
class ImageCache:
    """images uint8 [N,S,S,3]; masks uint8 class ids [N,S,S], 255 ignored, or None; valid int32
    [N,2] the height and width of each image that is not padding; names [N]; and what was left out.
    """

    images: NDArray[np.uint8]
    valid: NDArray[np.int32]
    names: tuple[str, ...]
    skipped: tuple[str, ...]
    masks: NDArray[np.uint8] | None = None

    @property
    def side(self) -> int:
        """S."""
        return int(self.images.shape[1])

    def take(self, rows: Rows) -> Taken:
        """Some rows, copied."""
        masks = None if self.masks is None else self.masks[rows]
        return Taken(rows, self.images[rows], self.valid[rows], masks)


def stamps(items: Sequence[ImageItem], *more: str) -> str:
    """A name for files as they lie here: name, size and time of change. No file is opened."""
    digest = blake2b(digest_size=16)
    for text in (FORMAT, *more):
        digest.update(text.encode() + b"\0")
    if isinstance(items, FileList):  # the same, without an object for each
        digest.update(items.stamp())
        return digest.hexdigest()
    for item in items:
        digest.update(f"{item.where}:{item.stamp()}".encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def cached_images(
    images: ImageSet,
    size: int,
    resize: Resize,
    *,
    progress: Report | None = None,
    workers: int | None = None,
) -> ImageCache:
    """A pool at one size. Undecodable images are named and left out, up to 1 in 100.

    `workers` threads decode while it is built (by default as many as there are cores, up to 8).

    Raises UserError where more are, or where the cache cannot be written.
    """

    def decode(row: int) -> Decoded | str:
        try:
            pixels, valid = small_image(images.items[row], size, resize)
        except Undecodable as problem:
            return f"{problem.where}: {problem.reason}"
        return pixels, valid, None

    key = stamps(images.items, "images", str(size), resize, *limit_named())
    names = list(Names(images.items))
    cache = _cached(_Job(cache_root() / key, names, size, False, decode, workers), progress)
    refuse_too_many(images.src, cache.skipped, len(names))
    return cache


def cached_pairs(
    pairs: PairSet,
    labels: Labels,
    size: int,
    resize: Resize,
    *,
    progress: Report | None = None,
    workers: int | None = None,
) -> ImageCache:
    """Pairs at one size, their masks as class ids. The pairs were checked before.

    `workers` as in `cached_images`.

    Raises UserError for a file that cannot be decoded, or where the cache cannot be written.
    """
    lut = np.asarray(labels.lut, np.uint8)

    def decode(row: int) -> Decoded | str:
        pair = pairs.items[row]
        try:
            pixels, valid = resize_image(pair.image.pixels(), size, resize)
            return pixels, valid, resize_mask(lut[pair.mask.values()], size, resize)
        except Undecodable as problem:
            raise UserError(f"{problem.where}: {problem.reason}. {problem.mend}") from None

    items = [item for pair in pairs.items for item in (pair.image, pair.mask)]
    # By content as well: a mask drawn anew may keep its size, and a copy its time.
    more = (str(size), resize, str(labels.lut), pairs.fingerprint())
    key = stamps(items, "pairs", *more)
    names = [pair.name for pair in pairs.items]
    return _cached(_Job(cache_root() / key, names, size, True, decode, workers), progress)


# --- on the disk ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """A cache to open, or to build first: its folder, and where its rows come from."""

    folder: Path
    names: Sequence[str]
    size: int
    with_masks: bool
    decode: Callable[[int], Decoded | str]
    """Of a row; a text says why it is left out."""
    workers: int | None = None

    @property
    def bytes_needed(self) -> int:
        return len(self.names) * self.size**2 * (4 if self.with_masks else 3)


def _cached(job: _Job, progress: Report | None) -> ImageCache:
    root = job.folder.parent
    with _writable(job):
        root.mkdir(parents=True, exist_ok=True)
        if (found := _opened(job)) is not None:
            return found
        # A second run waits here, and then finds the first one's; a kill lets go of the lock.
        with locked(job.folder):
            if (found := _opened(job)) is not None:
                return found
            _sweep(root)
            _build(job, progress)
            found = _opened(job)
    if found is None:
        raise OSError(f"{job.folder}: was written whole, and cannot be read")
    return found


def _sweep(root: Path) -> None:
    """Remove what killed builds have left; those under way hold their locks."""
    for partial in root.glob("*.partial"):
        with locked(partial.with_suffix(""), wait=False) as abandoned:
            if abandoned:
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _writable(job: _Job) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        if problem.errno not in REFUSALS:
            raise
        raise UserError(
            f"{job.folder.parent}: the cache cannot be written ({problem.strerror}); it needs "
            f"{job.bytes_needed / 1e6:.1f} MB. Free some space, or set FEWMASK_CACHE to another "
            "folder"
        ) from None


def _build(job: _Job, progress: Report | None) -> None:
    """Decode everything into a temporary folder beside, and rename it whole."""
    if shutil.disk_usage(job.folder.parent).free < job.bytes_needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    temporary = job.folder.with_name(f"{job.folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        index = _write_rows(job, temporary, progress)
        with (temporary / "index.json").open("w", encoding="utf-8") as out:
            json.dump(index, out)
            out.flush()
            os.fsync(out.fileno())
        shutil.rmtree(job.folder, ignore_errors=True)  # one that is not whole
        os.replace(temporary, job.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_rows(job: _Job, folder: Path, progress: Report | None) -> dict[str, object]:
    """Fill images.u8 and masks.u8; returns the index of what is in them."""
    names: list[str] = []
    valid: list[tuple[int, int]] = []
    skipped: list[str] = []
    with (folder / "images.u8").open("wb") as images, (folder / "masks.u8").open("wb") as masks:
        for row, found in enumerate(in_order(job.decode, range(len(job.names)), job.workers)):
            if isinstance(found, str):
                skipped.append(found)
            else:
                pixels, inside, labels = found
                images.write(pixels.data)
                if labels is not None:
                    masks.write(labels.data)
                names.append(job.names[row])
                valid.append(inside)
            if progress:
                progress(row + 1, len(job.names))
        for file in (images, masks):
            file.flush()
            os.fsync(file.fileno())
    return {"names": names, "valid": valid, "skipped": skipped}


def in_order(
    work: Callable[[Item], Found],
    items: Iterable[Item],
    workers: int | None = None,
    ahead: int = 256,
) -> Iterator[Found]:
    """Results of `work` in the order of the items, several at once, at most `ahead` waiting."""
    waiting: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # whoever takes no more need not wait for what nobody looks at
            for found in waiting:
                found.cancel()


def _opened(job: _Job) -> ImageCache | None:
    """The cache in a folder; None where there is none, or not a whole one."""
    try:
        index = json.loads((job.folder / "index.json").read_text(encoding="utf-8"))
        n, side = len(index["names"]), job.size
        images = _mapped(job.folder / "images.u8", (n, side, side, 3))
        masks = _mapped(job.folder / "masks.u8", (n, side, side)) if job.with_masks else None
        valid = np.asarray(index["valid"], np.int32).reshape(n, 2)
        return ImageCache(images, valid, tuple(index["names"]), tuple(index["skipped"]), masks)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if shape[0] == 0:
        return np.empty(shape, np.uint8)
    # Raises ValueError where the file is too short.
    return np.memmap(path, np.uint8, "r", shape=shape)
