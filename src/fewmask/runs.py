"""Run folders: whose they are, what they hold, when they are done."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from fewmask.files import reading
from fewmask.flags import flat
from fewmask.plainfiles import read_plain_text
from fewmask.sealed import read_sealed, read_sealed_toml, write_sealed, write_sealed_toml
from fewmask.settings import NOT_WHAT_IS_COMPUTED
from fewmask.types import Transfer, UserError, is_union

Result = TypeVar("Result")


def config_of(settings: Any) -> dict[str, Any]:
    """The settings as the flat table that config.toml holds."""
    return flat(settings)


def key_of(config: dict[str, Any], *facts: str) -> str:
    """A name for what a run computes: its settings less machine and folder, and its data."""
    what = {k: v for k, v in config.items() if k not in NOT_WHAT_IS_COMPUTED}
    text = json.dumps([what, *facts], sort_keys=True)
    return blake2b(text.encode(), digest_size=10).hexdigest()


def refuse_others(out: Path, config: dict[str, Any]) -> None:
    """Raises UserError where `out` is another run's folder, or holds something else."""
    path = out / "config.toml"
    if path.exists():
        before = read_sealed_toml(path, "Bring the file back, or choose another --out")
        for name in sorted({*before, *config} - NOT_WHAT_IS_COMPUTED):
            if before.get(name) != config.get(name):
                raise UserError(
                    f"{out}: another run's folder (its {name} is {_or_none(before, name)}, "
                    f"this one's {_or_none(config, name)}). Choose another --out"
                )
    elif out.exists() and (not out.is_dir() or any(p.suffix != ".tmp" for p in out.iterdir())):
        if out.is_dir() and (out / "result.json").exists():
            raise UserError(f"{path}: is gone. Bring it back, or choose another --out")
        raise UserError(f"{out}: exists and is no run folder. Choose another --out")


def _or_none(config: Mapping[str, Any], name: str) -> Any:
    return config.get(name, "not given")


def claim(out: Path, config: dict[str, Any]) -> None:
    """Make `out` this run's folder, unless it already is. Raises UserError as `refuse_others`."""
    refuse_others(out, config)
    if not (out / "config.toml").exists():
        write_sealed_toml(out / "config.toml", config)


@contextmanager
def held(out: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold a folder while working in it; it must be there.

    The lock is on the folder itself and goes with its process, so that a killed one leaves nothing
    behind. Raises UserError, naming the process, where another one still holds it after `wait`
    seconds; where folders can't be locked (some network file systems) nothing is.
    """
    folder = os.open(out, os.O_RDONLY)
    try:
        _lock(folder, out, time.monotonic() + wait)
        yield
    finally:
        os.close(folder)


def _lock(folder: int, out: Path, end: float) -> None:
    """Lock an open folder, trying until the monotonic time `end`."""
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(0.5)
                continue
            raise UserError(
                f"{out}: {_holder(folder)} is working in it. Wait until it is done, or choose "
                "another --out"
            ) from None
        except OSError:
            pass
        return


def _holder(folder: int) -> str:
    """The process that has locked an open folder, as far as the system tells (Linux does)."""
    status = os.fstat(folder)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # 1: FLOCK ADVISORY WRITE 17726 fe:00:16042500 0 EOF
            if fields[1] == "FLOCK" and fields[5] == f"{device}:{status.st_ino}":
                said = Path(f"/proc/{fields[4]}/cmdline").read_bytes().replace(b"\0", b" ")
                return (
                    f"process {fields[4]} ({' '.join(said.decode(errors='replace').split())[:200]})"
                )
    return "another process"


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("fewmask", "torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def made_by() -> dict[str, str]:
    """Versions, the commit of a checkout, and what of the machine decides on the last bits."""
    import torch

    from fewmask.devices import processor

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    machine = {"processor": processor(), "gpu": gpu, "threads": str(torch.get_num_threads())}
    return {**versions(), "commit": _commit(), **machine}


def _commit() -> str:
    """Of the checkout that this code lies in; empty where it is installed without one."""
    git = Path(__file__).resolve().parents[2] / ".git"
    with suppress(OSError):
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        if not head.startswith("ref: "):
            return head
        with suppress(OSError):
            return (git / head[5:]).read_text(encoding="ascii").strip()
        for line in (git / "packed-refs").read_text(encoding="ascii").splitlines():
            if line.endswith(f" {head[5:]}"):
                return line.split()[0]
    return ""


def write_result(folder: Path, result: Any, **more: Any) -> None:
    """result.json, written last: its being there is what makes a run done.

    The state that a killed run would have resumed from goes after it (`is_finished`).
    """
    own, here = versions(), made_by()
    table = asdict(result) | more | {"versions": own}
    table["made_by"] = {name: value for name, value in here.items() if name not in own}
    table["out"] = str(result.out)
    write_sealed(folder / "result.json", table, loose=True)
    is_finished(folder)


def is_finished(folder: Path) -> bool:
    """Whether a run has left its result.json.

    The state that it would have resumed from is needed no more, and goes: also that of a run which
    was killed, or found the disk full, when its result was just there.
    """
    if not (folder / "result.json").exists():
        return False
    with suppress(OSError):  # a folder that may only be read
        (folder / "state.pt").unlink(missing_ok=True)
    return True


def read_result(
    out: Path, kind: type[Result], key: str | None = None, product: str | None = None
) -> Result | None:
    """The result of a finished run, or None.

    Raises UserError where it is that of another `key`: the same settings on other data; and where
    the file that the run was made for, its `product`, is gone.
    """
    path = out / "result.json"
    if not is_finished(out):
        return None
    mend = "Bring it back, or remove it to train again"
    with reading(path, mend):
        table = read_sealed(path)
        if key is not None and not isinstance(table.get("key"), str):
            raise KeyError("key")
    if key is not None and table["key"] != key:
        raise UserError(
            f"{out}: finished with other images, masks or starting weights than there are now. "
            "Choose another --out"
        )
    if product is not None and not (out / product).exists():
        raise UserError(
            f"{out}: finished, but its {product} is gone. Bring the file back, or delete "
            f"{path} to train again"
        )
    with reading(path, mend):
        return _result(kind, table | {"out": out})


def _result(kind: type[Result], table: dict[str, Any]) -> Result:
    """A result from its table. Raises TypeError where an entry is missing or of another kind."""
    hints = get_type_hints(kind)
    known: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in table.items() if k in hints
    }
    if known.get("transfer"):
        known["transfer"] = _result(Transfer, known["transfer"])
    for name, value in known.items():
        if not _fits(value, hints[name]):
            raise TypeError(f"{name} is a {type(value).__name__}")
    return kind(**known)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a simple type, a union of such, or some generic's own type."""
    if is_union(hint):
        return any(_fits(value, one) for one in get_args(hint))
    kind = get_origin(hint) or hint
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


def split_name(split: Mapping[str, Any]) -> str:
    """A name for the content of a split."""
    return blake2b(json.dumps(split).encode(), digest_size=16).hexdigest()


def read_split(run: Path, mend: str) -> dict[str, list[dict[str, str]]]:
    """The parts of a fine-tuning run's split.json: the pairs of each, by name and picture's hash.

    Raises UserError, ending with `mend`, where it cannot be read, or is not the one that
    result.json names.
    """
    path, result = run / "split.json", run / "result.json"
    named = None
    if result.exists():
        with reading(result, "Bring it back, or remove it to train again"):
            named = read_sealed(result).get("split")
    with reading(path, mend):
        told = json.loads(read_plain_text(path))
        parts = {
            part: [{key: str(entry[key]) for key in ("name", "image")} for entry in told[part]]
            for part in ("train", "val")
        }
        if named is not None and named != split_name(parts):
            raise ValueError(f"it is not the split that {result} names")
    return parts
