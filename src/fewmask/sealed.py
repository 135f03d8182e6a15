"""Tables of ours with a checksum, which is held against them when they are read."""

from __future__ import annotations

import json
import tomllib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fewmask.files import reading, write_text_atomic
from fewmask.plainfiles import read_plain_text
from fewmask.types import UserError

CHECKSUM = "checksum"
"""The last entry of a JSON file."""
CHANGED = "changed since it was written: its entries don't fit its checksum"
_SEAL = f"# {CHECKSUM} "
"""Begins the last line of a TOML file, a comment."""


def write_sealed(path: Path, table: Mapping[str, Any], *, loose: bool = False) -> None:
    """As `write_atomic`, of a table as JSON, with its checksum.

    `loose`: what JSON doesn't know becomes text, and NaN stays; both are else an error.
    """
    text = json.dumps(dict(table), default=str if loose else None, allow_nan=loose)
    plain: dict[str, Any] = json.loads(text)
    plain.pop(CHECKSUM, None)
    write_text_atomic(path, json.dumps(plain | {CHECKSUM: _sum(plain)}, indent=1) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """The table of a JSON file, without its checksum; one that has none is taken as it is.

    To be used within `reading`: raises OSError, and the errors of UNEXPECTED for what is no table
    of ours, or was changed.
    """
    table, unchanged = read_opened(path)
    if not unchanged:
        raise ValueError(f"{CHANGED}; if that was on purpose, take the entry {CHECKSUM} out")
    return table


def read_opened(path: Path) -> tuple[dict[str, Any], bool]:
    """As `read_sealed`, and whether the checksum fits or there is none."""
    table = json.loads(read_plain_text(path))
    if not isinstance(table, dict):
        raise TypeError(f"holds a {type(table).__name__}, not a table")
    said = table.pop(CHECKSUM, None)
    return table, said is None or said == _sum(table)


def write_sealed_toml(path: Path, table: Mapping[str, Any]) -> None:
    """As `write_atomic`, of a table as TOML (a config.toml), with its checksum."""
    text = tomli_w.dumps(table)
    write_text_atomic(path, f"{text}{_SEAL}{crc(text)}\n")


def read_sealed_toml(path: Path, mend: str = "Bring the file back") -> dict[str, Any]:
    """The table of a TOML file of ours; one without a checksum is taken as it is.

    Raises UserError naming the file where it can't be read, is empty or no TOML, or was changed.
    One that was cut before its checksum can't be told from one that never had any.
    """
    with reading(path, mend):
        text = read_plain_text(path)
        if not text.strip():
            raise ValueError("is empty")
        table = tomllib.loads(text)
    body, seal, said = text.rpartition(_SEAL)
    if seal and (not body or body.endswith("\n")) and said.rstrip() != crc(body):
        raise UserError(
            f"{path}: changed since it was written. {mend}; keep a change of your own by taking "
            f"the line {_SEAL.strip()} out"
        )
    return table


def _sum(table: Mapping[str, Any]) -> str:
    """Of the entries, however the file is laid out."""
    return crc(json.dumps(table, sort_keys=True))


def crc(text: str) -> str:
    """CRC-32 of a text, in hexadecimal digits."""
    return f"{zlib.crc32(text.encode()):08x}"


def crc_of(path: Path) -> str:
    """As `crc`, of a text file, whatever its line ends and with or without an editor's mark.

    Raises OSError, or ValueError where it is no UTF-8.
    """
    return crc(read_plain_text(path))
