"""One bad file of every kind, and the line that fewmask answers with."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faulting import children, kills
from fewmask.files import write_text_atomic

Make = Callable[[Path, Path], object]
"""(images folder, masks folder) -> one more picture, or two, in them."""
NOBODY = 65534


def _image(height: int = 40, width: int = 44) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))


def _mask(height: int = 40, width: int = 44) -> Image.Image:
    found = np.zeros((height, width), np.uint8)
    found[height // 4 : height // 2 + 1, width // 4 : width // 2 + 1] = 1
    return Image.fromarray(found)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _pair(name: str, image: bytes | None = None, mask: bytes | None = None) -> Make:
    """A pair; what is not given is sound."""

    def make(images: Path, masks: Path) -> None:
        (images / name).write_bytes(_encoded(_image(), "PNG") if image is None else image)
        sound = _encoded(_mask(), "PNG") if mask is None else mask
        (masks / Path(name).with_suffix(".png")).write_bytes(sound)

    return make


def _png(side: int) -> bytes:
    """A PNG of side x side black pixels, one bit each: large only once it is decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = bytes(1 + (side + 7) // 8)
    packer = zlib.compressobj(9)
    body = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _encoded(_image(40, 44), "JPEG", exif=exif)


def _cmyk() -> bytes:
    return _encoded(_image().convert("CMYK"), "JPEG")


def _deep() -> bytes:
    return _encoded(
        Image.fromarray(np.arange(40 * 44, dtype=np.uint16).reshape(40, 44) * 30), "PNG"
    )


def _animated() -> bytes:
    return _encoded(_image(), "GIF", save_all=True, append_images=[_image(40, 44)])


def _floats() -> bytes:
    return _encoded(Image.fromarray(np.full((40, 44), np.nan, np.float32)), "TIFF")


def _circle(images: Path, masks: Path) -> None:
    (images / "a.png").symlink_to(images / "b.png")
    (images / "b.png").symlink_to(images / "a.png")


def _folder_circle(images: Path, masks: Path) -> None:
    (images / "again").symlink_to(images, target_is_directory=True)


def _nowhere(images: Path, masks: Path) -> None:
    (images / "bad.png").symlink_to("/nowhere/at/all.png")
    (masks / "bad.png").write_bytes(_encoded(_mask(), "PNG"))


def _pipe(images: Path, masks: Path) -> None:
    os.mkfifo(images / "bad.png")
    (masks / "bad.png").write_bytes(_encoded(_mask(), "PNG"))


def _linked(device: str) -> Make:
    """An image and a mask that are links to what never ends, or never begins."""

    def make(images: Path, masks: Path) -> None:
        target = images.parent / device  # of an absolute path itself
        if not target.exists():
            os.mkfifo(target)
        for folder in (images, masks):
            (folder / "bad.png").symlink_to(target)

    return make


def _sparse(images: Path, masks: Path) -> None:
    with (images / "bad.png").open("wb") as file:
        file.truncate(3 << 30)
    (masks / "bad.png").write_bytes(_encoded(_mask(), "PNG"))


def _socket(images: Path, masks: Path) -> None:
    here = os.getcwd()
    os.chdir(images)  # a socket's whole path must be short
    socket.socket(socket.AF_UNIX).bind("bad.png")
    os.chdir(here)
    (masks / "bad.png").write_bytes(_encoded(_mask(), "PNG"))


def _folder_as_image(images: Path, masks: Path) -> None:
    (images / "bad.png").mkdir()
    (masks / "bad.png").write_bytes(_encoded(_mask(), "PNG"))


def _no_permission(images: Path, masks: Path) -> None:
    _pair("bad.png")(images, masks)
    (images / "bad.png").chmod(0)


def _closed_folder(images: Path, masks: Path) -> None:
    (images / "closed").mkdir()
    (images / "closed").chmod(0)


def _two_cases(images: Path, masks: Path) -> None:
    _pair("Same.png")(images, masks)
    _pair("same.png")(images, masks)


def _two_endings(images: Path, masks: Path) -> None:
    _pair("twice.png")(images, masks)
    (images / "twice.jpg").write_bytes(_encoded(_image(), "JPEG"))


def _alone(part: str) -> Make:
    def make(images: Path, masks: Path) -> None:
        _pair("alone.png")(images, masks)
        ({"image": masks, "mask": images}[part] / "alone.png").unlink()

    return make


ZOO: dict[str, Make] = {
    "image cut off (PNG)": _pair("bad.png", _encoded(_image(), "PNG")[:900]),
    "image cut off (JPEG)": _pair("bad.jpg", _encoded(_image(), "JPEG")[:700]),
    "text under an image's name": _pair("bad.png", b"this is no image\n"),
    "zero bytes": _pair("bad.png", b""),
    "mask of zero bytes": _pair("bad.png", mask=b""),
    "mask cut off": _pair("bad.png", mask=_encoded(_mask(), "PNG")[:60]),
    "JPEG bytes under .png": _pair("bad.png", _encoded(_image(), "JPEG")),
    "one pixel": _pair("tiny.png", _encoded(_image(1, 1), "PNG"), _encoded(_mask(1, 1), "PNG")),
    "100 megapixels": _pair("large.png", _png(10_000), _png(10_000)),
    "bomb: 900 megapixels in 110 kB": _pair("bomb.png", _png(30_000)),
    "CMYK": _pair("cmyk.jpg", _cmyk()),
    "16 bits a pixel": _pair("deep.png", _deep()),
    "animated": _pair("animated.gif", _animated()),
    "turned by EXIF": _pair("turned.jpg", _turned(), _encoded(_mask(44, 40), "PNG")),
    "mask of another size": _pair("bad.png", mask=_encoded(_mask(20, 20), "PNG")),
    "mask in true colour": _pair("bad.png", mask=_encoded(_image(), "PNG")),
    "mask saved as JPEG": _pair(
        "bad.png", mask=_encoded(_mask().point([0, 255, *range(2, 256)]), "JPEG")
    ),
    "mask of not-a-numbers": _pair("bad.png", mask=_floats()),
    "mask with a value no other has": _pair(
        "bad.png", mask=_encoded(_mask().point([0, 200, *range(2, 256)]), "PNG")
    ),
    "image without a mask": _alone("image"),
    "mask without an image": _alone("mask"),
    "links in a circle": _circle,
    "folder linked into itself": _folder_circle,
    "link to nowhere": _nowhere,
    "named pipe": _pipe,
    "socket": _socket,
    "link to a device without an end": _linked("/dev/zero"),
    "link to a named pipe": _linked("pipe"),
    "sparse file of 3 GB": _sparse,
    "folder under an image's name": _folder_as_image,
    "no permission to read a file": _no_permission,
    "folder without permission": _closed_folder,
    "names that differ by case alone": _two_cases,
    "one name with two endings": _two_endings,
    "name with spaces": _pair("a b  c.png"),
    "name with quotes": _pair("a'b\"c`d.png"),
    "name with a line feed": _pair("a\nb.png"),
    "name with an emoji": _pair("\N{CAT FACE}.png"),
    "name with <script>": _pair("<script>alert(1)<&.png"),
    "name of 255 bytes": _pair("x" * 251 + ".png"),
    "name that is no UTF-8": _pair(os.fsdecode(b"\xff\xfe.png")),
    "name that begins with a hyphen": _pair("--out.png"),
}


def main(work: Path, out: Path, only: list[str]) -> int:
    """Every kind once, through check and predict, and what else can go wrong; writes zoo.json."""
    children.load_all()
    kills.prepare(work)
    kills.undisturbed(work, "finetune")
    work.chmod(0o755)
    path = out / "zoo.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    found = {row["kind"]: row for row in known}
    bad = 0
    for name in [name for name in [*ZOO, *HAPPENINGS] if not only or name in only]:
        row = animal(work, name, ZOO[name]) if name in ZOO else happening(work, name)
        found[name] = row
        bad += bool(row["faults"])
        ordered = [found[kind] for kind in [*ZOO, *HAPPENINGS] if kind in found]
        write_text_atomic(path, json.dumps(ordered, indent=1) + "\n")
    return bad


def animal(work: Path, name: str, make: Make) -> dict[str, Any]:
    """Three sound pairs and the bad one, checked, and the images predicted."""
    from fewmask.data.toy import write_toy

    folder = work / "zoo"
    _remove(folder)
    write_toy(folder / "pairs", pairs=3, unlabelled=0, size=40)
    (folder / "pairs" / "unlabelled").rmdir()
    make(folder / "pairs" / "images", folder / "pairs" / "masks")
    row: dict[str, Any] = {"kind": name, "faults": []}
    commands = {
        "check": ("check", "--pairs", "pairs"),
        "predict": ("predict", "../finetune/out", "pairs/images", "--out", "out"),
    }
    for command, argv in commands.items():
        (folder / "log.txt").unlink(missing_ok=True)
        arm = (lambda: drop(folder)) if "permission" in name else None
        if arm:
            for top, _, names in os.walk(folder):
                for path in [top, *(os.path.join(top, n) for n in names)]:
                    os.chown(path, NOBODY, NOBODY)
        ended = children.run(argv, folder, 900, environment=kills.ENVIRONMENT, arm=arm)
        row[command] = {"ends": ended.code, "says": said(ended.text, folder)}
        if ended.fault or ended.peak_mb > 3000:
            row["faults"].append(f"{command}: {ended.fault or ended.peak_mb} {ended.text[-600:]}")
    print(f"{name}: {row['check']} {row['predict']} {row['faults']}", flush=True)
    return row


def drop(folder: Path) -> None:
    """Become nobody, whom permissions hold back."""
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _remove(folder: Path) -> None:
    for top, names, _ in os.walk(folder):
        for name in names:
            path = Path(top) / name
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def said(text: str, folder: Path) -> str:
    """The errors and warnings of a log; else its last line."""
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("error: ", "warning: ", "skipped"))]
    if any(line.startswith("error: ") and line.endswith(" faults") for line in told):
        told = lines[-6:]
    said = " / ".join(told or lines[-1:]).replace(f"{folder}/", "")
    return re.sub(r"process \d+ \(.*?\) is", "process 123 (COMMAND) is", said)[:600]


# --- what happens while a command runs ------------------------------------------------------------

ENDLESS = ("--steps", "10000", "--batch-size", "4", "--out", "out")


def _when(folder: Path, child: int, ready: Callable[[], bool], act: Callable[[], object]) -> None:
    """Act once it is time. Raises RuntimeError where that does not come."""
    end = time.monotonic() + 120
    while not ready():
        if time.monotonic() > end:
            children.kill(child)
            raise RuntimeError(f"not under way after two minutes: {folder / 'log.txt'}")
        time.sleep(0.05)
    act()


def _trains(folder: Path) -> bool:
    log = folder / "log.txt"
    return log.exists() and "images/s" in log.read_text(errors="replace")


def data_vanishes(work: Path, folder: Path, flags: tuple[str, ...]) -> children.Ended:
    """The folder of images is gone once training has begun."""
    shutil.copytree(work / "data" / "toy", folder / "toy")
    argv = ("pretrain", "--images", "toy/unlabelled", *kills.SMALL, *flags, *ENDLESS)
    child = children.start(argv, folder, environment=kills.ENVIRONMENT)
    _when(folder, child, lambda: _trains(folder), lambda: shutil.rmtree(folder / "toy"))
    time.sleep(3)
    if not flags:  # all is in the cache: it goes on, so it has to be stopped
        os.kill(child, signal.SIGINT)
    return children.wait(child, folder, 120)


def second_process(work: Path, folder: Path) -> children.Ended:
    """A second command on the folder that one is working in."""
    argv = ("finetune", *kills.PAIRS, *kills.SMALL, *ENDLESS)
    first = folder.with_name("trial-first")
    shutil.rmtree(first, ignore_errors=True)
    first.mkdir()
    elsewhere = (*argv[:-1], "../trial/out")
    child = children.start(elsewhere, first, environment=kills.ENVIRONMENT)
    _when(first, child, lambda: _trains(first), lambda: None)
    ended = children.run(argv, folder, 120, environment=kills.ENVIRONMENT)
    children.kill(child)
    children.wait(child, first, 60)
    return ended


def control_c(work: Path, folder: Path) -> children.Ended:
    """Control-C during training."""
    argv = ("finetune", *kills.PAIRS, *kills.SMALL, *ENDLESS)
    child = children.start(argv, folder, environment=kills.ENVIRONMENT)
    _when(folder, child, lambda: _trains(folder), lambda: os.kill(child, signal.SIGINT))
    return children.wait(child, folder, 120)


def out_is_a_file(work: Path, folder: Path) -> children.Ended:
    """--out names a file."""
    (folder / "out").write_text("mine\n")
    return children.run(
        ("finetune", *kills.PAIRS, *kills.SMALL, *ENDLESS), folder, 120,
        environment=kills.ENVIRONMENT,
    )  # fmt: skip


INTERRUPTED = "the same command again goes on"
HAPPENINGS: dict[str, tuple[Callable[[Path, Path], children.Ended], int, str]] = {
    "data folder vanishes (cached)": (lambda w, f: data_vanishes(w, f, ()), 130, INTERRUPTED),
    "data folder vanishes (streamed)": (
        lambda w, f: data_vanishes(w, f, ("--cache-gb", "0", "--memory-gb", "0.00002")),
        2, "toy/unlabelled",
    ),
    "second process on a run's folder": (second_process, 2, "process"),
    "Control-C": (control_c, 130, INTERRUPTED),
    "--out is a file": (out_is_a_file, 2, "out"),
}  # fmt: skip
"""What happens, the code that must follow, and words that must be said."""


def happening(work: Path, name: str) -> dict[str, Any]:
    """What is said, and how it ends; Control-C ends with 130 and how to go on."""
    folder = work / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    act, code, words = HAPPENINGS[name]
    ended = act(work, folder)
    text = said(ended.text, folder)
    row: dict[str, Any] = {"kind": name, "run": {"ends": ended.code, "says": text}, "faults": []}
    right = ended.code == code and words in ended.text
    if not right or (ended.fault and code != 130):
        row["faults"].append(f"{ended.fault or ended.code}: {ended.text[-600:]}")
    elif code == 130:
        row["run"]["says"] = "interrupted; the same command again goes on from here"
    print(f"{name}: {row['run']} {row['faults']}", flush=True)
    return row
