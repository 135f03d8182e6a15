"""Images in parquet files, as Hugging Face stores them: a struct of bytes and path a row.

Up to half a gigabyte of files is read whole. Of more, groups of rows are read when one of their
pictures is wanted, and a few are held.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fewmask.data.images import Pixels, Undecodable, decode_image
from fewmask.data.shards import Shards
from fewmask.types import UserError

COLUMNS = ("img", "image", "jpg", "png")
LABELS = ("label", "labels")
IN_MEMORY = 512 << 20
"""Bytes of files that are read whole."""
HELD = 1 << 30
"""Bytes of groups that a process holds: those in use, and those that come next."""


@dataclass(frozen=True)
class ParquetImage:
    """One row; the encoded bytes stay in Arrow's memory."""

    name: str
    path: Path
    row: int
    column: Any = field(repr=False, compare=False)

    @property
    def where(self) -> str:
        return f"{self.path}#{self.row}"

    def read(self) -> bytes:
        return _bytes_of(self.column[self.row], self.where)

    def stamp(self) -> tuple[int, int]:
        value = self.column[self.row]
        size = len(value.as_buffer()) if value.is_valid else 0
        return size, self.path.stat().st_mtime_ns

    def pixels(self, least: int | None = None) -> Pixels:
        return decode_image(self.read(), self.where, least)


def _bytes_of(value: Any, where: str) -> bytes:
    data = value.as_py()
    if data is None:
        raise Undecodable(where, "the row holds no bytes")
    return bytes(data)


def read_parquet(
    paths: list[Path],
) -> tuple[Sequence[ParquetImage | GroupedImage], tuple[int, ...] | None, Shards | None]:
    """All rows of the files in order, their labels where there is such a column, and how they lie
    in groups where they are more than is read whole.

    Raises UserError for a file that is no parquet, or has no column of encoded images.
    """
    if sum(path.stat().st_size for path in paths) > IN_MEMORY:
        grouped = GroupedRows(paths)
        return grouped, grouped.labels(), grouped.shards()
    items: list[ParquetImage | GroupedImage] = []
    labels: list[int] = []
    for path in paths:
        cells, own = _columns(path)
        items += [ParquetImage(f"{path.name}#{row}", path, row, cells) for row in range(len(cells))]
        labels += own
    return items, tuple(labels) if len(labels) == len(items) else None, None


def _columns(path: Path) -> tuple[Any, list[int]]:
    """The encoded images of a file, a chunked binary array, and its whole-number labels, if any."""
    with _Opened(path) as file:
        column, label = _named(path, file.schema_arrow.names)
        table = file.read(columns=[column, label] if label else [column])
    return _cells(path, table, column), _numbers(table, label)


class _Opened:
    """A parquet file, and what is wrong with it as a UserError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self.file = pq.ParquetFile(self.path, memory_map=True)
        except (pa.ArrowException, OSError) as problem:
            raise self._mistake(problem) from None
        return self.file

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        self.file.close()
        if isinstance(problem, pa.ArrowException | OSError):
            raise self._mistake(problem) from None

    def _mistake(self, problem: BaseException) -> UserError:
        why = str(problem).split("\n")[0]
        return UserError(f"{self.path}: no readable parquet file ({why}). Download it again")


def _named(path: Path, names: Sequence[str]) -> tuple[str, str | None]:
    """The column of images, and that of labels."""
    column = next((name for name in COLUMNS if name in names), None)
    if column is None:
        raise UserError(
            f"{path}: has no column {' or '.join(COLUMNS)}, only {', '.join(names)}. "
            "Rename the column of images"
        )
    return column, next((name for name in LABELS if name in names), None)


def _cells(path: Path, table: Any, column: str) -> Any:
    """The column of images as a chunked array of bytes."""
    import pyarrow as pa

    cells = table.column(column)
    if pa.types.is_struct(cells.type) and cells.type.get_field_index("bytes") >= 0:
        parts = [chunk.field("bytes") for chunk in cells.chunks]
        cells = pa.chunked_array(parts, cells.type.field("bytes").type)
    if not (pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type)):
        raise UserError(
            f"{path}: the column {column} holds {cells.type}; expected encoded images, as bytes "
            "or as a struct with a field of that name. Save it so"
        )
    return cells


def _numbers(table: Any, label: str | None) -> list[int]:
    import pyarrow as pa

    if label is None or not pa.types.is_integer(table.column(label).type):
        return []
    numbers: list[int] = table.column(label).to_pylist()
    return numbers


# --- more than is read whole ----------------------------------------------------------------------


@dataclass(frozen=True)
class GroupedImage:
    """One row of a large set; its bytes are read with the others of its group."""

    name: str
    path: Path
    row: int
    group: int
    place: int
    """In its group."""

    @property
    def where(self) -> str:
        return f"{self.path}#{self.row}"

    def read(self) -> bytes:
        return _bytes_of(_held.cells(self.path, self.group)[self.place], self.where)

    def stamp(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns

    def pixels(self, least: int | None = None) -> Pixels:
        return decode_image(self.read(), self.where, least)


class _Held:
    """Groups that were read last, up to HELD bytes; several threads may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[Path, int], Any] = OrderedDict()

    def cells(self, path: Path, group: int) -> Any:
        with self._lock:  # also while it is read: others want the same group
            found = self._groups.pop((path, group), None)
            if found is None:
                with _Opened(path) as file:
                    column, _ = _named(path, file.schema_arrow.names)
                    found = _cells(path, file.read_row_group(group, [column]), column)
            self._groups[path, group] = found
            while len(self._groups) > 1 and self._bytes() > HELD:
                self._groups.popitem(last=False)
        return found

    def _bytes(self) -> int:
        return sum(cells.nbytes for cells in self._groups.values())


_held = _Held()


class GroupedRows(Sequence[GroupedImage]):
    """The rows of several parquet files, each made when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        files: list[int] = []
        groups: list[int] = []
        counts: list[int] = []
        sizes: list[int] = []
        for number, path in enumerate(paths):
            with _Opened(path) as file:
                _named(path, file.schema_arrow.names)
                for group in range(file.num_row_groups):
                    told = file.metadata.row_group(group)
                    files.append(number)
                    groups.append(group)
                    counts.append(told.num_rows)
                    sizes.append(told.total_byte_size)
        self._file, self._group = np.array(files, np.int64), np.array(groups, np.int64)
        self._sizes = np.array(sizes, np.int64)
        self._first: NDArray[np.int64] = np.cumsum([0, *counts]).astype(np.int64)
        # Of each group the rows before it in its file.
        of_file = np.searchsorted(self._file, self._file, side="left")
        self._before = self._first[:-1] - self._first[of_file]

    def __len__(self) -> int:
        return int(self._first[-1])

    @overload
    def __getitem__(self, row: int) -> GroupedImage: ...
    @overload
    def __getitem__(self, row: slice) -> list[GroupedImage]: ...
    def __getitem__(self, row: int | slice) -> GroupedImage | list[GroupedImage]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        group = int(np.searchsorted(self._first, row, side="right")) - 1
        path = self.paths[int(self._file[group])]
        place = row - int(self._first[group])
        own = place + int(self._before[group])
        return GroupedImage(f"{path.name}#{own}", path, own, int(self._group[group]), place)

    def labels(self) -> tuple[int, ...] | None:
        """Whole-number labels, where all files have them."""
        found: list[int] = []
        for path in self.paths:
            with _Opened(path) as file:
                _, label = _named(path, file.schema_arrow.names)
                found += _numbers(file.read(columns=[label]), label) if label else []
        return tuple(found) if len(found) == len(self) else None

    def shards(self) -> Shards:
        return Shards(self._first[:-1], self._sizes, HELD // 2, one_process=True)


def train_files(root: Path) -> list[Path]:
    """The parquet files below a folder, those of the training split where they are named so."""
    found = sorted(p for p in root.rglob("*.parquet") if not p.name.startswith("."))
    return [p for p in found if p.name.startswith("train")] or found
