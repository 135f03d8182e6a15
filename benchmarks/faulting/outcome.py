"""What a command left: every file's content, less what may differ between two equal runs."""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open

CLOCKS = {
    "seconds", "images_per_second", "waiting", "pretrain_seconds", "finetune_seconds",
    "evaluate_seconds", "test_seconds", "megapixels_per_second", "milliseconds", "minutes",
    "checksum",
}  # fmt: skip
"""Keys and columns that tell the time, and what sums them up; all else must be the same."""
HIDDEN = re.compile(r"(^|/)\.[^/]*$|\.tmp$|(^|/)(tmp|cache)/|(^|/)log\.txt$")


def left_in(folder: Path) -> dict[str, str]:
    """Path within the folder -> a hash of the content that counts."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not HIDDEN.search(name):
            found[name] = blake2b(content(path), digest_size=8).hexdigest()
    return found


def content(path: Path) -> bytes:
    """A file's bytes with clocks left out. Raises ValueError where it is not whole."""
    if path.suffix == ".json":
        return _told(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".jsonl":
        return b"\n".join(_told(json.loads(line)) for line in path.read_text().splitlines())
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        return _told(list(rows))
    if path.suffix == ".safetensors":
        return _tensors(path)
    if path.suffix in (".html", ".svg", ".md"):
        return _without_clocks(path.read_text(encoding="utf-8")).encode()
    return path.read_bytes()


def _tensors(path: Path) -> bytes:
    try:
        with safe_open(path, "pt") as file:
            parts = [repr(sorted((file.metadata() or {}).items())).encode()]
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                parts.append(tensor.contiguous().reshape(-1).numpy().tobytes())
    except SafetensorError as problem:
        raise ValueError(f"{path}: {problem}") from problem
    return b"\0".join(parts)


def _told(value: Any) -> bytes:
    return json.dumps(_without(value), sort_keys=True).encode()


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without(v) for k, v in value.items() if k not in CLOCKS}
    if isinstance(value, list):
        return [_without(one) for one in value]
    return value


def _without_clocks(text: str) -> str:
    """A page or a table less durations and dates."""
    text = re.sub(r"\d+(\.\d+)?(&nbsp;|\s)*(s|min|h|ms|seconds?|minutes?|hours?)\b", "TIME", text)
    return re.sub(r"\d{4}-\d\d-\d\d[T ]?(\d\d:\d\d(:\d\d)?)?", "DATE", text)


def not_whole(folder: Path) -> list[str]:
    """Files under final names that can't be read whole: there must be none at any moment."""
    broken = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or HIDDEN.search(name):
            continue
        try:
            if path.suffix == ".jsonl":  # grows line by line; the last may be under way
                lines = path.read_text().splitlines()[:-1]
                for line in lines:
                    json.loads(line)
            elif path.suffix in (".png", ".jpg"):
                _picture(path)
            elif path.suffix == ".html":
                if not path.read_text().rstrip().endswith("</html>"):
                    raise ValueError("no end")
            else:
                _whole(path)
        except (ValueError, OSError, BadZipFile) as problem:
            broken.append(f"{name}: {problem}")
    return broken


def _whole(path: Path) -> None:
    """Read a file to its end. Raises ValueError or OSError where the end is missing."""
    found = content(path)
    if path.suffix == ".toml":
        tomllib.loads(found.decode())
    elif path.suffix in (".csv", ".md", ".txt"):
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            raise ValueError("no line feed at the end")
    elif path.suffix in (".pt", ".pth"):  # a zip
        with ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"{bad} is damaged")


def _picture(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as image:
        image.load()


def left_in_names(folder: Path) -> list[str]:
    """Names of the files under final names."""
    names = (p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file())
    return [name for name in names if not HIDDEN.search(name)]


def temporary(folder: Path) -> list[str]:
    """What a finished command should have swept away."""
    found = (p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file())
    return [name for name in found if re.search(r"\.tmp$|partial|(^|/)state\.pt$", name)]
