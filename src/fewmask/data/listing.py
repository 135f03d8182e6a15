"""The image files below a folder, in a few arrays; large listings are kept for the next time.

A million files as Python objects take half a gigabyte and seconds to make. Here a file is made when
it is asked for, and a kept listing is mapped from the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fewmask.data.items import ImageFile, content_name
from fewmask.data.place import cache_root, locked
from fewmask.files import write_text_atomic
from fewmask.plainfiles import open_plain
from fewmask.types import UserError

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")
FORMAT = "1"
"""Part of every place: a listing of another layout, or with other endings, is not found."""
KEPT_FROM = 20_000
"""Files from which a listing is kept: fewer are listed in a moment."""
SAMPLED = 1000
"""Files of a kept listing whose size and time are looked at again."""
SETTLED_SECONDS = 2.0
"""A folder changed less than this before it was listed may change again within one tick of a coarse
clock, and nobody would see it."""

Ints = NDArray[np.int64]


def is_image(path: str) -> bool:
    """Whether a file says it is an image, by its ending or else by its first bytes.

    A file that says so but is none is not passed over: decoding it will name it.
    """
    if os.path.splitext(path)[1].lower() in SUFFIXES:
        return True
    try:
        with open_plain(path) as file:
            head = file.read(12)
    except OSError:
        return False
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    bmp = head[:2] == b"BM" and head[6:10] == bytes(4)  # many a text begins with BM
    return head.startswith(MAGIC) or webp or bmp


@dataclass(frozen=True)
class FileTable:
    """What is known of N files in F folders. All names are relative, with `/` between."""

    names: NDArray[np.uint8]
    """All names one after the other, as the system's bytes."""
    starts: Ints
    """[N+1]: where in `names` each begins."""
    sizes: Ints
    """[N], in bytes; -1 where a link leads nowhere."""
    times: Ints
    """[N], of the last change, in ns."""
    folder_of: Ints
    """[N]: the number of the folder that each lies in."""
    folders: tuple[str, ...]
    folder_times: Ints
    """[F], of the last change, in ns."""
    others: int
    """Files that are no images."""


class FileList(Sequence[ImageFile]):
    """Image files in order of name, each made when it is asked for."""

    def __init__(self, root: str, table: FileTable, kept: Path | None = None) -> None:
        self.root, self.table, self._kept = root, table, kept

    def __len__(self) -> int:
        return len(self.table.sizes)

    @overload
    def __getitem__(self, row: int) -> ImageFile: ...
    @overload
    def __getitem__(self, row: slice) -> list[ImageFile]: ...
    def __getitem__(self, row: int | slice) -> ImageFile | list[ImageFile]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(len(self))[row]  # raises IndexError, counts from the end
        name = self.name(row)
        return ImageFile(name, Path(self.root, name))

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process a kept listing goes by its place."""
        if self._kept is not None:
            return _kept_list, (self.root, self._kept)
        return FileList, (self.root, self.table)

    def name(self, row: int) -> str:
        """The name of a file, without making the file."""
        starts = self.table.starts
        return os.fsdecode(self.table.names[starts[row] : starts[row + 1]].tobytes())

    def names(self) -> Iterator[str]:
        """All names in order."""
        blob = self.table.names.tobytes()
        ends = self.table.starts.tolist()
        for begin, end in pairwise(ends):
            yield os.fsdecode(blob[begin:end])

    def stamp(self) -> bytes:
        """Where the files lie, their names, sizes and times of change as they are now.

        Of a kept listing each file is looked at again; another one has just looked.
        """
        table, digest = self.table, blake2b(os.fsencode(self.root) + b"\0", digest_size=16)
        sizes, times = table.sizes, table.times
        if self._kept is not None:
            now = np.array([_stamp_of(os.path.join(self.root, name)) for name in self.names()])
            sizes, times = now.reshape(-1, 2).T
        for column in (table.names, table.starts, sizes, times):
            digest.update(np.ascontiguousarray(column, column.dtype).data)
        return digest.digest()

    def fingerprint(self) -> str:
        """As `fewmask.data.items.fingerprint`; kept for as long as names, sizes and times stay.

        Of a kept listing for as long as that holds.
        """
        if self._kept is not None:
            place = self._kept / "fingerprint"
        else:
            place = cache_root() / "fingerprints" / f"{FORMAT}-{self.stamp().hex()}"
        with suppress(OSError):
            return place.read_text(encoding="ascii")
        found = content_name(self, self.names(), self.table.sizes.tolist())
        with suppress(OSError, UserError):  # without a cache it is computed anew each time
            write_text_atomic(place, found)
        return found


def walk(root: Path) -> tuple[FileList, int]:
    """All images below a folder in order of name, and the number of other files.

    Hidden files and folders are passed over; a folder is entered once, however many links lead
    to it. A link that leads nowhere is listed by its ending: reading it says what is wrong. A
    listing of 20,000 files or more is kept and holds as long as no folder has changed; that a file
    was changed in its place is seen in a sample of them.
    """
    place = _place(root)
    found = _kept_list(str(root), place)
    if found is None or not _still_true(found):
        began = time.time()
        table = _listed(str(root))
        found = FileList(str(root), table)
        if len(found) >= KEPT_FROM and _settled(table, began) and _keep(table, place):
            found = _kept_list(str(root), place) or found
    return found, found.table.others


# --- looking --------------------------------------------------------------------------------------


@dataclass
class _Growing:
    """A table under way."""

    names: bytearray = field(default_factory=bytearray)
    starts: array[int] = field(default_factory=lambda: array("q", [0]))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    times: array[int] = field(default_factory=lambda: array("q"))
    folder_of: array[int] = field(default_factory=lambda: array("q"))
    folders: list[str] = field(default_factory=list)
    folder_times: array[int] = field(default_factory=lambda: array("q"))
    others: int = 0

    def add(self, name: str, size: int, changed: int, folder: int) -> None:
        self.names += os.fsencode(name)
        self.starts.append(len(self.names))
        self.sizes.append(size)
        self.times.append(changed)
        self.folder_of.append(folder)

    def finished(self) -> FileTable:
        return FileTable(
            np.array(self.names, np.uint8),
            np.array(self.starts, np.int64),
            np.array(self.sizes, np.int64),
            np.array(self.times, np.int64),
            np.array(self.folder_of, np.int64),
            tuple(self.folders),
            np.array(self.folder_times, np.int64),
            self.others,
        )


def _listed(root: str) -> FileTable:
    table = _Growing()
    _enter(root, "", table, set())
    return table.finished()


def _enter(root: str, inside: str, table: _Growing, entered: set[tuple[int, int]]) -> None:
    """List a folder and what lies below it; `inside` is its name with a / behind, or empty."""
    folder = os.path.join(root, inside) if inside else root
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            return
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            kinds = [(_kind(e), e) for e in entries if not e.name.startswith(".")]
    except OSError as problem:
        raise UserError(
            f"{folder}: cannot be listed ({problem.strerror}). Mend its permissions"
        ) from None
    number = len(table.folders)
    table.folders.append(inside)
    table.folder_times.append(status.st_mtime_ns)
    # With the / behind the folders' names this is the order of the whole names.
    kinds.sort(key=lambda one: one[1].name + "/" * (one[0] == "folder"))
    for kind, entry in kinds:
        if kind == "folder":
            _enter(root, f"{inside}{entry.name}/", table, entered)
        elif kind == "file" and is_image(entry.path):
            table.add(inside + entry.name, *_stamp_of(entry), number)
        else:
            table.others += 1


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_symlink():
            entry.stat()  # raises where it leads nowhere: reading it says so
        # Opening a pipe or a socket would wait for ever, and a device never ends.
        return "file" if entry.is_file() else "other"
    except OSError:  # a link to nowhere, or to itself
        return "file"


def _stamp_of(file: os.DirEntry[str] | str) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns; -1 where it leads nowhere."""
    try:
        status = os.stat(file) if isinstance(file, str) else file.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


# --- keeping --------------------------------------------------------------------------------------

ARRAYS = ("names", "starts", "sizes", "times", "folder_of", "folder_times")


def _place(root: Path) -> Path:
    named = FORMAT.encode() + os.fsencode(os.path.realpath(root))
    return cache_root() / "listings" / blake2b(named, digest_size=16).hexdigest()


def _settled(table: FileTable, began: float) -> bool:
    newest = int(table.folder_times.max(initial=0))
    coarse = newest % 1_000_000_000 == 0
    return began - newest / 1e9 > (SETTLED_SECONDS if coarse else 0.1)


def _keep(table: FileTable, place: Path) -> bool:
    """Write a listing whole beside, and rename it; False where the cache cannot be written."""
    temporary = place.with_name(f"{place.name}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place, wait=False) as free:
            if not free:
                return False
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name in ARRAYS:
                np.save(temporary / f"{name}.npy", getattr(table, name), allow_pickle=False)
            told = {"folders": [os.fsencode(f).hex() for f in table.folders]}
            text = json.dumps(told | {"others": table.others})
            (temporary / "table.json").write_text(text, encoding="utf-8")
            shutil.rmtree(place, ignore_errors=True)
            os.replace(temporary, place)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        return False
    return True


def _kept_list(root: str, place: Path) -> FileList | None:
    """The listing at a place; None where there is none, or not a whole one."""
    try:
        told = json.loads((place / "table.json").read_text(encoding="utf-8"))
        arrays = {
            name: np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ARRAYS
        }
        folders = tuple(os.fsdecode(bytes.fromhex(folder)) for folder in told["folders"])
        table = FileTable(**arrays, folders=folders, others=int(told["others"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = len(table.starts) == len(table.sizes) + 1 == len(table.times) + 1
    return FileList(root, table, place) if whole else None


def _still_true(found: FileList) -> bool:
    table = found.table
    for folder, then in zip(table.folders, table.folder_times.tolist(), strict=True):
        try:
            if os.stat(os.path.join(found.root, folder)).st_mtime_ns != then:
                return False
        except OSError:
            return False
    rows = np.unique(np.linspace(0, len(found) - 1, min(SAMPLED, len(found))).astype(int))
    return all(
        found[row].stamp() == (int(table.sizes[row]), int(table.times[row]))
        for row in rows.tolist()
    )
