"""What a run's folder, or a weights file of ours, says of its encoder."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

AUTO = "auto"
"""The encoder that a start says it is, else `DEFAULT`."""
DEFAULT = "resnet50"


def told_by(start: str) -> dict[str, Any]:
    """encoder, and of a run also size and resize; what is not said is not there."""
    path = Path(start)
    if path.is_file() and path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                said = file.metadata() or {}
        except (SafetensorError, OSError):  # loading it says what is wrong
            return {}
        return {"encoder": said["encoder"]} if "encoder" in said else {}
    try:
        table = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: table[name] for name in ("encoder", "size", "resize") if name in table}


def encoder_of(encoder: str, start: str) -> str:
    """The encoder's name, where `encoder` may be auto."""
    return str(told_by(start).get("encoder", DEFAULT)) if encoder == AUTO else encoder


def warnings_of(start: str) -> list[str]:
    """What a pre-training run says against itself: that its features have collapsed, say."""
    try:
        table = json.loads((Path(start) / "result.json").read_text(encoding="utf-8"))
        return [str(one) for one in table.get("warnings", [])]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return []
