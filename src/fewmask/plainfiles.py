"""Only plain files are read: a device never ends, and a pipe waits for ever."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_plain(path: str | Path) -> BinaryIO:
    """Open a file to read its bytes.

    Raises OSError (EINVAL, "no plain file") where the path leads to a device, a pipe or a socket,
    and as `open` does.
    """
    return open(path, "rb", opener=_opener)


def _opener(path: str, flags: int) -> int:
    # Without O_NONBLOCK a pipe's open waits for a writer; of plain files it changes nothing.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    kind = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # of a folder `open` says so itself
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no plain file", path)
    return descriptor


def read_plain(path: str | Path) -> bytes:
    """The bytes of a file. Raises as `open_plain`."""
    with open_plain(path) as file:
        return file.read()


def read_plain_text(path: str | Path, errors: str = "strict") -> str:
    """A text in UTF-8, with a byte-order mark (editors add one) or without, any line ends as \\n.

    Raises as `open_plain`, and UnicodeDecodeError.
    """
    text = read_plain(path).decode("utf-8", errors).removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")
