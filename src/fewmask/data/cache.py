"""Pixels decoded once, in a memory-mapped file of uint8."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewmask.data.images import Pixels, Undecodable, resize_image, resize_mask
from fewmask.data.sources import ImageItem, ImageSet, PairSet
from fewmask.types import Labels, Resize, UserError

FORMAT = "1"
Report = Callable[[int, int], None]
Decoded = tuple[Pixels, tuple[int, int], Pixels | None]


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


def cache_root() -> Path:
    """$FEWMASK_CACHE, else fewmask in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("FEWMASK_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewmask"


def stamps(items: Sequence[ImageItem], *more: str) -> str:
    """A name for files as they lie here: name, size and time of change. No file is opened."""
    digest = blake2b(digest_size=16)
    for text in (FORMAT, *more):
        digest.update(text.encode() + b"\0")
    for item in items:
        digest.update(f"{item.where}:{item.stamp()}".encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def cached_images(
    images: ImageSet, size: int, resize: Resize, *, progress: Report | None = None
) -> ImageCache:
    """A pool at one size. Undecodable images are named and left out, up to 1 in 100.

    Raises UserError where more are, or where the cache cannot be written.
    """
    key = stamps(images.items, "images", str(size), resize)

    def decode(row: int) -> Decoded | str:
        try:
            pixels, valid = resize_image(images.items[row].pixels(), size, resize)
        except Undecodable as problem:
            return f"{problem.where}: {problem.reason}"
        return pixels, valid, None

    cache = _cached(key, len(images.items), size, decode, False, progress,
                    [item.name for item in images.items])  # fmt: skip
    _refuse_too_many(images.src, cache.skipped, len(images.items))
    return cache


def _refuse_too_many(src: str, skipped: Sequence[str], n: int) -> None:
    if len(skipped) * 100 > n:
        shown = [f"{fault}. Remove it" for fault in skipped[:10]]
        more = len(skipped) - len(shown)
        rest = [f"{src}: and {more} more; over 1 % cannot be decoded"] if more else []
        raise UserError(*shown, *rest)


def cached_pairs(
    pairs: PairSet, labels: Labels, size: int, resize: Resize, *, progress: Report | None = None
) -> ImageCache:
    """Pairs at one size, their masks as class ids. The pairs were checked before."""
    items = [item for pair in pairs.items for item in (pair.image, pair.mask)]
    key = stamps(items, "pairs", str(size), resize, str(labels.lut))
    lut = np.asarray(labels.lut, np.uint8)

    def decode(row: int) -> Decoded | str:
        pair = pairs.items[row]
        try:
            pixels, valid = resize_image(pair.image.pixels(), size, resize)
            return pixels, valid, resize_mask(lut[pair.mask.values()], size, resize)
        except Undecodable as problem:
            raise UserError(f"{problem.where}: {problem.reason}. Mend or remove it") from None

    return _cached(key, len(pairs.items), size, decode, True, progress,
                   [pair.name for pair in pairs.items])  # fmt: skip


def _cached(
    key: str,
    n: int,
    size: int,
    decode: Callable[[int], Decoded | str],
    with_masks: bool,
    progress: Report | None,
    names: Sequence[str],
) -> ImageCache:
    root = cache_root()
    need = n * size * size * (4 if with_masks else 3)
    with _writable(root, need):
        root.mkdir(parents=True, exist_ok=True)
        if not (root / key / "index.json").exists():
            # A second run waits here, and then finds the first one's; a kill lets go of the lock.
            with (root / f"{key}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (root / key / "index.json").exists():
                    _build(root / key, n, size, decode, with_masks, progress, names, need)
    return _opened(root / key, size, with_masks)


@contextmanager
def _writable(root: Path, need: int) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM):
            raise
        raise UserError(
            f"{root}: the cache cannot be written ({problem.strerror}); it needs "
            f"{need / 1e6:.0f} MB. Free some space, or set FEWMASK_CACHE to another folder"
        ) from None


def _build(
    folder: Path,
    n: int,
    size: int,
    decode: Callable[[int], Decoded | str],
    with_masks: bool,
    progress: Report | None,
    names: Sequence[str],
    need: int,
) -> None:
    """Decode everything into a temporary folder beside, and rename it whole."""
    if shutil.disk_usage(folder.parent).free < need:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    temporary = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        kept: list[str] = []
        valid: list[tuple[int, int]] = []
        skipped: list[str] = []
        with (
            (temporary / "images.u8").open("wb") as images,
            (temporary / "masks.u8").open("wb") as masks,
        ):
            for row, found in enumerate(_in_order(decode, n)):
                if isinstance(found, str):
                    skipped.append(found)
                else:
                    images.write(found[0].tobytes())
                    if found[2] is not None:
                        masks.write(found[2].tobytes())
                    kept.append(names[row])
                    valid.append(found[1])
                if progress:
                    progress(row + 1, n)
            for file in (images, masks):
                file.flush()
                os.fsync(file.fileno())
        index = {"names": kept, "valid": valid, "skipped": skipped, "masks": with_masks}
        with (temporary / "index.json").open("w", encoding="utf-8", errors="surrogateescape") as out:
            json.dump(index, out)
            out.flush()
            os.fsync(out.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _in_order(decode: Callable[[int], Decoded | str], n: int) -> Iterator[Decoded | str]:
    """Decoded rows in order, several at once but never more than a few hundred waiting."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        rows = iter(range(n))
        while chunk := list(islice(rows, 256)):
            yield from pool.map(decode, chunk)


def _opened(folder: Path, size: int, with_masks: bool) -> ImageCache:
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    n = len(index["names"])
    images = _mapped(folder / "images.u8", (n, size, size, 3))
    masks = _mapped(folder / "masks.u8", (n, size, size)) if with_masks else None
    valid = np.asarray(index["valid"], np.int32).reshape(n, 2)
    return ImageCache(images, valid, tuple(index["names"]), tuple(index["skipped"]), masks)


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if shape[0] == 0:
        return np.empty(shape, np.uint8)
    return np.memmap(path, np.uint8, "r", shape=shape)
