"""Pools in shards: tar files as WebDataset writes them, and what all sharded pools share.

A tar that is not compressed can be read at any place, so its images are a set like any other:
nothing is unpacked, every process reads the images of its own part of a batch, and a run resumes
where it was. Only the order keeps to a few shards at a time, so that disks and networks read along.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fewmask.data.images import Pixels, Undecodable, decode_image, require_size, unreadable
from fewmask.data.listing import SUFFIXES
from fewmask.data.place import cache_root
from fewmask.files import write_bytes_atomic
from fewmask.plainfiles import open_plain
from fewmask.types import UserError

FORMAT = "1"
"""Part of every key: an index of another layout is not found."""
TARS_AT_ONCE = 4 << 30
"""Bytes of tar files that an order draws from at a time."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Shards:
    """How the rows of a pool lie in K shards, and how many of these are drawn from at a time."""

    starts: Ints
    """[K]: the first row of each; rows of a shard are neighbours."""
    sizes: Ints
    """[K], in bytes."""
    at_once: int
    """Bytes of shards that are drawn from at a time; one shard at least."""
    one_process: bool = False
    """Whether threads of one process must do the reading: they share what is held in memory."""

    def order(self, rows: Ints, shuffled: Ints, seed: tuple[int, ...]) -> Ints:
        """An order of `rows` that stays with a few shards at a time.

        `shuffled` [n] is a permutation of the places in `rows`; so is the result, in which the
        shards come in a random order of their own.
        """
        turn = np.random.default_rng(seed).permutation(len(self.starts))
        window = np.empty(len(self.starts), np.int64)
        window[turn] = np.cumsum(self.sizes[turn]) // max(1, self.at_once)
        shard = np.searchsorted(self.starts, rows[shuffled], side="right") - 1
        return shuffled[np.argsort(window[shard], kind="stable")]

    def of(self, rows: Ints) -> Shards:
        """The same of some rows [n], in rising order, that are counted anew."""
        return replace(self, starts=np.searchsorted(rows, self.starts))


def joined(parts: Sequence[Shards | None], counts: Sequence[int]) -> Shards | None:
    """Of several sets of so many images as one; None where none has shards."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    first = np.cumsum([0, *counts])[:-1]
    whole = Shards(np.zeros(1, np.int64), np.zeros(1, np.int64), 0)  # of a set without shards
    every = [part or whole for part in parts]
    return Shards(
        np.concatenate([part.starts + n for part, n in zip(every, first, strict=True)]),
        np.concatenate([part.sizes for part in every]),
        min(part.at_once for part in there),
        any(part.one_process for part in there),
    )


@dataclass(frozen=True)
class TarImage:
    """One image inside a tar file."""

    name: str
    path: Path
    member: str
    offset: int
    size: int

    @property
    def where(self) -> str:
        return f"{self.path}: {self.member}"

    def read(self) -> bytes:
        require_size(self.size, self.where)
        try:
            with open_plain(self.path) as file:
                file.seek(self.offset)
                found = file.read(self.size)
        except OSError as problem:
            raise unreadable(self.where, problem) from None
        if len(found) < self.size:
            raise Undecodable(self.where, "the tar file ends within it")
        return found

    def stamp(self) -> tuple[int, int]:
        try:
            return self.size, self.path.stat().st_mtime_ns
        except OSError:
            return -1, -1

    def pixels(self, least: int | None = None) -> Pixels:
        return decode_image(self.read(), self.where, least)


@dataclass(frozen=True)
class _Index:
    """The images of one tar file, in arrays: a million objects would take half a gigabyte."""

    members: NDArray[np.uint8]
    starts: Ints
    offsets: Ints
    sizes: Ints
    labels: Ints
    """-1 where a picture has none."""


class TarList(Sequence[TarImage]):
    """The images of several tar files, each made when it is asked for."""

    def __init__(self, root: Path, paths: Sequence[Path], indices: Sequence[_Index]) -> None:
        self.root, self.paths, self.indices = root, tuple(paths), tuple(indices)
        counts = [len(index.sizes) for index in indices]
        self.first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.first[-1])

    @overload
    def __getitem__(self, row: int) -> TarImage: ...
    @overload
    def __getitem__(self, row: slice) -> list[TarImage]: ...
    def __getitem__(self, row: int | slice) -> TarImage | list[TarImage]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        shard = int(np.searchsorted(self.first, row, side="right")) - 1
        index, path = self.indices[shard], self.paths[shard]
        i = row - int(self.first[shard])
        member = os.fsdecode(index.members[index.starts[i] : index.starts[i + 1]].tobytes())
        name = f"{path.relative_to(self.root).as_posix()}/{_inside(member)}"
        return TarImage(name, path, member, int(index.offsets[i]), int(index.sizes[i]))

    def labels(self) -> tuple[int, ...] | None:
        """The numbers in the .cls files beside the images, where each has one."""
        found = np.concatenate([index.labels for index in self.indices])
        return None if (found < 0).any() else tuple(found.tolist())

    def shards(self) -> Shards:
        sizes = np.array([index.sizes.sum() for index in self.indices], np.int64)
        return Shards(self.first[:-1], sizes, TARS_AT_ONCE)


def open_tars(root: Path, paths: Sequence[Path]) -> TarList:
    """The images of tar files below a folder. Each file is looked through once; what was found is
    kept in the cache. Raises UserError for what is no tar file, or a compressed one.
    """
    return TarList(root, paths, [_index(path) for path in paths])


def _inside(member: str) -> str:
    """The name of a member as a path that leads nowhere else."""
    parts = PurePosixPath(member).parts
    kept = [part for part in parts if part not in ("/", "..")]
    if len(kept) < len(parts):  # another member may be called what is left of this one
        kept.insert(0, blake2b(os.fsencode(member), digest_size=4).hexdigest())
    return "/".join(kept)


def _index(path: Path) -> _Index:
    status = path.stat()
    stamp = f"{FORMAT}:{os.path.realpath(path)}:{status.st_size}:{status.st_mtime_ns}"
    name = blake2b(os.fsencode(stamp), digest_size=16).hexdigest()
    place = cache_root() / "tars" / f"{name}.npz"
    found = _kept(place)
    if found is None:
        found = _looked_through(path)
        with suppress(OSError):
            _keep(place, found)
    return found


def _kept(place: Path) -> _Index | None:
    try:
        with np.load(place, allow_pickle=False) as arrays:
            return _Index(**{name: arrays[name] for name in _Index.__dataclass_fields__})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _keep(place: Path, index: _Index) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = vars(index)
    np.savez(buffer, **arrays)
    write_bytes_atomic(place, buffer.getvalue())


def _looked_through(path: Path) -> _Index:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with open_plain(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member, text in _members(tar):
                if text is not None:
                    labels[_key(member.name)] = _label(path, member.name, text)
                else:  # of two members of one name the later one holds, as in unpacking
                    images[member.name] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError, OSError) as problem:
        why = " ".join(str(problem).split())
        raise UserError(
            f"{path}: no readable tar file ({why}). Download it again; a compressed one must be "
            "stored uncompressed, since its images are read at any place"
        ) from None
    names = sorted(images)
    blobs = [os.fsencode(name) for name in names]
    return _Index(
        np.frombuffer(b"".join(blobs) or b"", np.uint8),
        np.cumsum([0, *map(len, blobs)]).astype(np.int64),
        np.array([images[name][0] for name in names], np.int64),
        np.array([images[name][1] for name in names], np.int64),
        np.array([labels.get(_key(name), -1) for name in names], np.int64),
    )


def _members(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """The images of a tar file with None, its .cls files with what stands in them."""
    for member in tar:
        tar.members = []  # type: ignore[attr-defined] # it would keep them all
        base = PurePosixPath(member.name).name
        if not member.isreg() or member.issparse() or base.startswith("."):
            continue
        if os.path.splitext(base)[1].lower() in SUFFIXES:
            yield member, None
        elif base.endswith(".cls"):
            file = tar.extractfile(member)
            yield member, file.read(64) if file else b""


def _key(member: str) -> str:
    """What the files of one sample share: the path up to the first dot of the file's name."""
    path = PurePosixPath(member)
    return str(path.with_name(path.name.split(".")[0] or path.name))


def _label(path: Path, member: str, text: bytes) -> int:
    shown = text.decode("ascii", "replace").strip()
    if not (shown.isdigit() and int(shown) < 2**31):
        raise UserError(f"{path}: {member} holds {shown!r}; expected the number of a class")
    return int(shown)
