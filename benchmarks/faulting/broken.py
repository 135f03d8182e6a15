"""How files are broken: bytes, and the values of structured text."""

from __future__ import annotations

import io
import json
import random
import re
from typing import Any

import numpy as np
from PIL import Image

FORMATS = ("png", "jpg", "webp", "gif", "bmp", "tif", "ppm")
EXTREMES = (b"\0", b"\xff", b"\x7f", b"\x80")


def picture(draw: random.Random, ending: str, *, mask: bool) -> bytes:
    """A sound picture, or a mask of classes 0 and 1, in one of a format's kinds."""
    rng = np.random.default_rng(draw.getrandbits(32))
    height, width = draw.randint(1, 60), draw.randint(1, 60)
    if mask:
        image = Image.fromarray(rng.integers(0, 2, (height, width)).astype(np.uint8))
    else:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        kinds = {"png": "RGB RGBA L P 1 LA I;16", "tif": "RGB L CMYK I;16 P", "jpg": "RGB L CMYK",
                 "gif": "P L", "bmp": "RGB L 1 P", "webp": "RGB RGBA", "ppm": "RGB L"}  # fmt: skip
        kind = draw.choice(kinds[ending].split(" "))
        image = image.convert("I").convert("I;16") if kind == "I;16" else image.convert(kind)
    options: dict[str, Any] = {}
    if ending == "tif":
        options["compression"] = draw.choice([None, "tiff_lzw", "tiff_deflate", "packbits"])
    elif ending == "jpg":
        options["progressive"] = draw.random() < 0.5
    elif ending == "webp":
        options["lossless"] = mask or draw.random() < 0.5
    elif ending == "gif" and draw.random() < 0.5:
        options |= {"save_all": True, "append_images": [image.copy()]}
    file = io.BytesIO()
    names = {"jpg": "JPEG", "tif": "TIFF", "ppm": "PPM"}
    image.save(file, names.get(ending, ending.upper()), **options)
    return file.getvalue()


def bytes_of(data: bytes, draw: random.Random) -> bytes:
    """The data with one to four breaks."""
    for _ in range(draw.randint(1, 4)):
        data = draw.choice(BREAKS)(data, draw)
    return data


def _flip(data: bytes, draw: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(draw.choice([1, 1, 4, 32])):
        if found:
            found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    return bytes(found)


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randint(0, len(data))]


def _drop(data: bytes, draw: random.Random) -> bytes:
    start = draw.randint(0, len(data))
    return data[:start] + data[start + draw.choice([1, 2, 4, 64, 1000]) :]


def _insert(data: bytes, draw: random.Random) -> bytes:
    start = draw.randint(0, len(data))
    return data[:start] + draw.randbytes(draw.choice([1, 2, 4, 64, 1000])) + data[start:]


def _extreme(data: bytes, draw: random.Random) -> bytes:
    """A field of two, four or eight bytes at its least or greatest, mostly in the head."""
    n = draw.choice([1, 2, 4, 8])
    start = draw.randint(0, min(len(data), draw.choice([64, 64, 10**9])))
    return data[:start] + draw.choice(EXTREMES) * n + data[start + n :]


def _double(data: bytes, draw: random.Random) -> bytes:
    start = draw.randint(0, len(data))
    end = min(len(data), start + draw.choice([4, 16, 256]))
    return data[:end] + data[start:end] * draw.choice([1, 2, 50]) + data[end:]


def _zero(data: bytes, draw: random.Random) -> bytes:
    start = draw.randint(0, len(data))
    n = min(len(data) - start, draw.choice([4, 64, 4096]))
    return data[:start] + bytes(n) + data[start + n :]


BREAKS = (_flip, _flip, _cut, _drop, _insert, _extreme, _extreme, _double, _zero)

# --- text that has a structure --------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, 0, 1, -1, 2, 7, 10**9, 10**30, -(10**18), 0.0, -0.5, 1e308, 1e-308, True, False, "", "x",
    "../../up", "/", "scratch", "resnet18", "\N{PILE OF POO}", "a" * 10_000, "<script>", "\\n",
    [], {}, [[]], [1, 2], ["x"], [{}], {"a": 1}, {"steps": "x"}, [0.5, 2, -1],
)  # fmt: skip


def value(draw: random.Random) -> Any:
    """Something else to stand where a value stood; None for JSON's null."""
    if draw.random() < 0.15:
        nested: Any = 1
        for _ in range(draw.choice([3, 200])):
            nested = [nested]
        return nested
    return draw.choice(VALUES)


def tree(told: Any, draw: random.Random) -> Any:
    """A copy of a table with one entry changed, removed, doubled under another name or added."""
    told = json.loads(json.dumps(told))
    places = list(_places(told))
    if not places:
        return value(draw)
    holder, key = draw.choice(places)
    how = draw.random()
    if how < 0.6:
        holder[key] = value(draw)
    elif how < 0.8:
        del holder[key]
    elif isinstance(holder, dict):
        holder[draw.choice(["x", f"{key}s", "", "__class__", str(key).upper()])] = value(draw)
    else:
        holder.append(value(draw))
    return told


def _places(told: Any) -> Any:
    if isinstance(told, dict):
        for key, inner in told.items():
            yield told, key
            yield from _places(inner)
    elif isinstance(told, list):
        for key, inner in enumerate(told):
            yield told, key
            yield from _places(inner)


def text(data: bytes, ending: str, draw: random.Random) -> bytes:
    """A TOML, JSON or JSON-lines file broken in its bytes or, more often, in its values."""
    if draw.random() < 0.3 or not data.strip():
        return bytes_of(data, draw)
    if ending == ".jsonl":
        lines = data.splitlines()
        at = draw.randrange(len(lines))
        lines[at] = json.dumps(tree(json.loads(lines[at]), draw)).encode()
        return b"\n".join(lines) + b"\n"
    if ending == ".toml":
        return _toml(data.decode(), draw).encode()
    changed = tree(json.loads(data), draw)
    return json.dumps(changed, allow_nan=True).encode()


def _toml(text: str, draw: random.Random) -> str:
    import tomllib

    import tomli_w

    told = tree(tomllib.loads(text), draw)
    try:
        return tomli_w.dumps(told)
    except (TypeError, AttributeError, ValueError, RecursionError):
        other = f"= {draw.choice(['nan', 'inf', '[', '{}', ''])}"
        return re.sub(r"=.*", lambda _: other, text, count=1)
