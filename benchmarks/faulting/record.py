"""The committed record that every sitting adds to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def add(path: Path, row: dict[str, Any]) -> None:
    """One more line, on the disk before this returns."""
    from fewmask.runs import made_by

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "commit": made_by()["commit"][:10]}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """What earlier sittings wrote; none where there was none."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)
