"""table.md: what all sittings found, part by part."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from faulting import record, soak
from fewmask.files import write_text_atomic


def write(out: Path) -> None:
    """All parts that have a record."""
    lines = ["# What was tried, and what came of it", ""]
    for part in (_kills, _files, _configs, _disk, _soak, _zoo):
        found = part(out)
        if found:
            lines += [*found, ""]
    write_text_atomic(out / "table.md", "\n".join(lines).rstrip() + "\n")


def _counted(title: str, head: str, groups: dict[str, list[dict[str, Any]]]) -> list[str]:
    columns = f"| {head} | tried | with a fault | of these on the newest commit |"
    lines = [f"## {title}", "", columns, "| --- | --- | --- | --- |"]
    everything = [row for rows in groups.values() for row in rows]
    newest = everything[-1]["commit"]
    for name, rows in [*sorted(groups.items()), ("all", everything)]:
        bad = [row for row in rows if row["faults"]]
        late = sum(row["commit"] == newest for row in bad)
        lines.append(f"| {name} | {sum(_size(r) for r in rows)} | {len(bad)} | {late} |")
    return lines


def _size(row: dict[str, Any]) -> int:
    return sum(row["files"].values()) if isinstance(row.get("files"), dict) else 1


def _grouped(path: Path, key: str) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in record.rows(path):
        groups.setdefault(row[key], []).append(row)
    return groups


def _kills(out: Path) -> list[str]:
    groups = _grouped(out / "kills.jsonl", "command")
    return _counted("Signal 9 at a random moment", "command", groups) if groups else []


def _configs(out: Path) -> list[str]:
    groups = _grouped(out / "fuzz_configs.jsonl", "target")
    return _counted("Broken configurations and checkpoints", "file", groups) if groups else []


def _files(out: Path) -> list[str]:
    rows = list(record.rows(out / "fuzz_files.jsonl"))
    if not rows:
        return []
    endings: Counter[str] = Counter()
    for row in rows:
        endings.update(row["files"])
    kinds = ", ".join(f"{n} {ending}" for ending, n in sorted(endings.items()))
    commands = ", ".join(rows[-1]["ends"])
    return [
        *_counted("Broken images and masks", "through", {commands: rows}), "", f"Files: {kinds}."
    ]  # fmt: skip


def _disk(out: Path) -> list[str]:
    groups = _grouped(out / "disk.jsonl", "command")
    if not groups:
        return []
    told = ", ".join(
        f"{name}: {len({row['at'] for row in rows})} of about {rows[-1]['of']} writes"
        for name, rows in groups.items()
    )
    return [*_counted("The disk full from the k-th write on", "command", groups), "", f"{told}."]


def _soak(out: Path) -> list[str]:
    found = soak.draw(out)
    return (
        ["## Hours of studies in one process", "", *(f"- {line}" for line in found)]
        if found
        else []
    )


def _zoo(out: Path) -> list[str]:
    path = out / "zoo.json"
    if not path.exists():
        return []
    lines = ["## Bad files, one of each kind, beside three sound pairs", "",
             "| kind | command | ends with | says |", "| --- | --- | --- | --- |"]  # fmt: skip
    for row in json.loads(path.read_text(encoding="utf-8")):
        for command in ("check", "predict", "run"):
            if command in row:
                says = row[command]["says"].replace("|", "\\|").replace("<", "&lt;")
                lines.append(f"| {row['kind']} | {command} | {row[command]['ends']} | {says} |")
    return lines
