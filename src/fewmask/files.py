"""Files that are whole or not there."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from fewmask.types import UserError


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have `write` fill a file that appears under `path` only when it lies whole on the disk.

    Folders are made as needed. Raises UserError naming the file where the system refuses (a full
    disk, no permission); what was at `path` before is then still there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, opened = _open_beside(path)
        with opened as file:
            try:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)  # while it is still locked: no sweep takes it away
                _sync_folder(path.parent)
            finally:
                temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as problem:
        cause = _system_error(problem)
        if cause is None:
            raise
        raise refused(path, cause) from problem


def _open_beside(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path`, locked as long as its writer lives, so that `sweep` knows."""
    while True:
        temporary = path.with_name(f"{_left_over(path)}{_HOST}{secrets.token_hex(4)}.tmp")
        file = temporary.open("xb")
        with suppress(OSError):  # some network file systems have no locks; nothing is swept there
            fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, file
        file.close()  # swept between its making and its lock


_HOST = blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
"""In the names, since locks need not be seen on other machines: each sweeps its own."""
LONGEST_NAME = 255 - len(f"..{_HOST}01234567.tmp")
"""Bytes of a file name with which its half-written file's name still fits on common systems."""


def _left_over(path: Path) -> str:
    """How the names of half-written files of `path` begin."""
    name = os.fsencode(path.name)
    short = path.name if len(name) <= LONGEST_NAME else blake2b(name, digest_size=16).hexdigest()
    return f".{short}."


_LEFT_OVER = re.compile(rf"\..+\.{_HOST}[0-9a-f]{{8}}\.tmp")


def sweep(out: Path) -> None:
    """Remove what killed processes left half-written in the folder `out`, or beside the file.

    What a living process is writing stays, and what other machines have left. Does nothing where
    there is nothing, or no permission.
    """
    with suppress(OSError):
        if out.is_dir():
            found = [Path(top) / name for top, _, names in os.walk(out) for name in names]
        else:
            found = [p for p in out.parent.iterdir() if p.name.startswith(_left_over(out))]
        for path in found:
            if _LEFT_OVER.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                # Open to write: network file systems lock no other.
                with suppress(OSError), path.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


UNEXPECTED = (
    ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, csv.Error,
)  # fmt: skip
"""What taking a table apart raises where it is another one than expected."""


@contextmanager
def reading(path: Path, mend: str) -> Iterator[None]:
    """A block that reads a file of ours and takes it apart.

    Raises UserError naming the file where it cannot be read, or holds something else than what the
    block expects of it: our files can be damaged, or come from elsewhere.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as problem:
        raise UserError(f"{path}: cannot be read ({problem.strerror}). {mend}") from None
    except UNEXPECTED as problem:
        why = " ".join(str(problem).split())[:200]
        raise UserError(f"{path}: damaged ({type(problem).__name__}: {why}). {mend}") from problem


def append_text(path: Path, text: str) -> None:
    """Add text to a file's end, whole or not at all. Raises as `write_atomic`."""
    before = None
    try:
        with path.open("ab") as file:
            before = file.tell()
            file.write(text.encode("utf-8"))
            file.flush()
    except OSError as problem:
        if before is not None:
            os.truncate(path, before)
        raise refused(path, problem) from problem


def refused(path: Path | str, problem: OSError) -> UserError:
    """The error of a file that the system does not let us write (or, without a right, read)."""
    if problem.errno in (errno.EACCES, errno.EPERM):
        return UserError(
            f"{path}: {problem.strerror}. Give the permission there, or choose another place"
        )
    if problem.errno == errno.ENOTDIR:
        return UserError(f"{path}: a file stands in the way of the folder. Choose another --out")
    if problem.errno == errno.ENOENT:
        return UserError(
            f"{path}: its folder is gone. Bring it back to go on from there, or begin anew"
        )
    return UserError(
        f"{path}: cannot be written ({problem.strerror or problem}). "
        "Make room or give the permission there, or choose another --out"
    )


def faults_of(work: Callable[[], object], where: Path | str) -> tuple[str, ...]:
    """Do the work; the user's mistakes in it as texts, which cross processes well. () if none.

    `where` is named where the system refuses to write and does not say which file.
    """
    try:
        work()
    except UserError as mistake:
        return mistake.faults
    except OSError as problem:
        if problem.errno not in REFUSALS:
            raise
        return refused(problem.filename or where, problem).faults
    return ()


VISIBLE_SECONDS = 90.0
"""Network file systems may show a new file this late to other machines."""


def appears(path: Path) -> None:
    """Wait until a file that another machine has written is seen here.

    Raises UserError where it is not.
    """
    end = time.monotonic() + VISIBLE_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            raise UserError(
                f"{path.absolute()}: was written by another machine and is not seen on "
                f"{socket.gethostname()}. Choose an --out that all machines see, under the same "
                "path"
            )
        time.sleep(0.2)
        if path.parent.is_dir():
            os.listdir(path.parent)  # has a network file system look again


REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
"""What the system says where nothing may be written: never a fault of ours."""


def _system_error(problem: BaseException | None) -> OSError | None:
    """The OSError behind an error: torch.save wraps those of its file into RuntimeErrors."""
    while problem is not None:
        if isinstance(problem, OSError):
            return problem
        problem = problem.__cause__ or problem.__context__
    return None


def _sync_folder(folder: Path) -> None:
    """Have the new name itself survive a power cut."""
    if os.name == "nt":  # folders can't be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """As `write_atomic`, of bytes."""
    write_atomic(path, lambda file: file.write(content))


def write_text_atomic(path: Path, text: str) -> None:
    """As `write_atomic`, of text in UTF-8 with line feeds as they are."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: Path, value: Any) -> None:
    """As `write_atomic`, of a value as JSON. Raises ValueError for NaN, which JSON has none of."""
    write_text_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as a CSV file's text, under a line of the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
