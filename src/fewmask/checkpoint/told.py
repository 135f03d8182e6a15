"""What a run's folder, or a weights file of ours, says of its encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewmask.files import UNEXPECTED
from fewmask.sealed import read_opened, read_sealed_toml

RUN_WEIGHTS = ("encoder.safetensors", "model.safetensors")
"""What a pre-training run and a fine-tuning run leave in their folders."""
AUTO = "auto"
"""The encoder that a start says it is, else `DEFAULT`."""
DEFAULT = "resnet50"


def told_by(start: str) -> dict[str, Any]:
    """encoder, and of a run also size and resize; what is not said is not there.

    Raises UserError where the config.toml beside a run's weights is damaged or was changed.
    """
    path = Path(start)
    if start in ("scratch", "imagenet"):  # whatever lies in folders of these names
        return {}
    if path.is_file() and path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                said = file.metadata() or {}
        except (SafetensorError, OSError):  # loading it says what is wrong
            return {}
        return {"encoder": said["encoder"]} if "encoder" in said else {}
    weights = any((path / name).is_file() for name in RUN_WEIGHTS)
    if not weights or not (path / "config.toml").is_file():
        return {}
    table = read_sealed_toml(path / "config.toml")
    return {name: table[name] for name in ("encoder", "size", "resize") if name in table}


def encoder_of(encoder: str, start: str) -> str:
    """The encoder's name, where `encoder` may be auto."""
    return str(told_by(start).get("encoder", DEFAULT)) if encoder == AUTO else encoder


def warnings_of(start: str) -> list[str]:
    """What a pre-training run says against itself: that its features have collapsed, say.

    Where its result.json was changed, that is a warning, too; where it is damaged, the only one.
    """
    path = Path(start) / "result.json"
    if not path.is_file():
        return []
    try:
        table, unchanged = read_opened(path)
        warnings = [str(one) for one in table.get("warnings", [])]
    except (OSError, *UNEXPECTED):
        return ["its result.json can't be read: what it warned of is not known"]
    return warnings + ["its result.json was changed since it was written"] * (not unchanged)
