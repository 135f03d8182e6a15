"""Images in parquet files, as Hugging Face stores them: a struct of bytes and path a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewmask.data.images import Pixels, Undecodable, decode_image
from fewmask.types import UserError

COLUMNS = ("img", "image")
LABELS = ("label", "labels")


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
        data = self.column[self.row].as_py()
        if data is None:
            raise Undecodable(self.where, "the row holds no bytes")
        return bytes(data)

    def stamp(self) -> tuple[int, int]:
        value = self.column[self.row]
        size = len(value.as_buffer()) if value.is_valid else 0
        return size, self.path.stat().st_mtime_ns

    def pixels(self) -> Pixels:
        return decode_image(self.read(), self.where)


def read_parquet(paths: list[Path]) -> tuple[list[ParquetImage], tuple[int, ...] | None]:
    """All rows of the files in order, and their labels where there is such a column.

    Raises UserError for a file that is no parquet, or has no column of encoded images.
    """
    items: list[ParquetImage] = []
    labels: list[int] = []
    for path in paths:
        cells, own = _columns(path)
        items += [ParquetImage(f"{path.name}#{row}", path, row, cells) for row in range(len(cells))]
        labels += own
    return items, tuple(labels) if len(labels) == len(items) else None


def _columns(path: Path) -> tuple[Any, list[int]]:
    """The encoded images of a file, a chunked binary array, and its whole-number labels, if any."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            named = file.schema_arrow.names
            column = next((name for name in COLUMNS if name in named), None)
            if column is None:
                raise UserError(
                    f"{path}: has no column {' or '.join(COLUMNS)}, only {', '.join(named)}. "
                    "Rename the column of images"
                )
            label = next((name for name in LABELS if name in named), None)
            table = file.read(columns=[column, label] if label else [column])
    except (pa.ArrowException, OSError) as problem:
        why = str(problem).split("\n")[0]
        raise UserError(f"{path}: no readable parquet file ({why}). Download it again") from None
    cells = table.column(column)
    if pa.types.is_struct(cells.type) and cells.type.get_field_index("bytes") >= 0:
        parts = [chunk.field("bytes") for chunk in cells.chunks]
        cells = pa.chunked_array(parts, cells.type.field("bytes").type)
    if not (pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type)):
        raise UserError(
            f"{path}: the column {column} holds {cells.type}; expected encoded images, as bytes "
            "or as a struct with a field of that name. Save it so"
        )
    if label is None or not pa.types.is_integer(table.column(label).type):
        return cells, []
    return cells, table.column(label).to_pylist()


def train_files(root: Path) -> list[Path]:
    """The parquet files below a folder, those of the training split where they are named so."""
    found = sorted(p for p in root.rglob("*.parquet") if not p.name.startswith("."))
    return [p for p in found if p.name.startswith("train")] or found
