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
    for part in (_kills, _files, _configs, _disk, _soak, _zoo, _failing):
        found = part(out)
        if found:
            lines += [*found, ""]
    write_text_atomic(out / "table.md", "\n".join(lines).rstrip() + "\n")


def _counted(title: str, head: str, key: str, rows: list[dict[str, Any]]) -> list[str]:
    """Rows in the order of the sittings, counted by what they hold under `key`."""
    columns = f"| {head} | tried | with a fault | on the newest commit | of these with a fault |"
    lines = [f"## {title}", "", columns, "| --- | --- | --- | --- | --- |"]
    newest = rows[-1]["commit"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    for name, own in [*sorted(groups.items()), ("all", rows)]:
        bad = sum(bool(row["faults"]) for row in own)
        late = [row for row in own if row["commit"] == newest]
        late_bad = sum(bool(row["faults"]) for row in late)
        lines.append(f"| {name} | {len(own)} | {bad} | {len(late)} | {late_bad} |")
    return lines


def _kills(out: Path) -> list[str]:
    rows = list(record.rows(out / "kills.jsonl"))
    return _counted("Signal 9 at a random moment", "command", "command", rows) if rows else []


def _configs(out: Path) -> list[str]:
    rows = list(record.rows(out / "fuzz_configs.jsonl"))
    if not rows:
        return []
    return _counted("Broken configurations and checkpoints", "file", "target", rows)


def _files(out: Path) -> list[str]:
    rows = list(record.rows(out / "fuzz_files.jsonl"))
    if not rows:
        return []
    endings: Counter[str] = Counter()
    for row in rows:
        endings.update(row["files"])
    kinds = ", ".join(f"{n} {ending}" for ending, n in sorted(endings.items()))
    runs = [
        {"command": command, "faults": [f for f in row["faults"] if f.startswith(f"{command}: ")],
         "commit": row["commit"]}
        for row in rows for command in row["ends"]
    ]  # fmt: skip
    return [
        *_counted("Folders of broken images and masks", "command", "command", runs), "",
        f"{len(rows)} folders with {endings.total()} broken files: {kinds}.",
    ]  # fmt: skip


def _disk(out: Path) -> list[str]:
    rows = list(record.rows(out / "disk.jsonl"))
    if not rows:
        return []
    told = []
    for name in sorted({row["command"] for row in rows}):
        own = [row for row in rows if row["command"] == name]
        at = {row["at"] for row in own}
        told.append(f"{name}: {len(at)} of about {own[-1]['of']} writes")
    title = "The disk full from the k-th write on"
    return [*_counted(title, "command", "command", rows), "", f"{', '.join(told)}."]


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
    rows = json.loads(path.read_text(encoding="utf-8"))
    for row in rows:
        for command in ("check", "predict", "run"):
            if command in row:
                says = row[command]["says"].replace("|", "\\|").replace("<", "&lt;")
                lines.append(f"| {row['kind']} | {command} | {row[command]['ends']} | {says} |")
    bad = [row["kind"] for row in rows if row["faults"]]
    which = f": {', '.join(bad)}" if bad else ""
    return [*lines, "", f"{len(rows)} kinds, {len(bad)} with a fault{which}."]


def _failing(out: Path) -> list[str]:
    """The tests that were run on broken code, by folder. Of each test the best try counts; where a
    line was broken by hand, the last.
    """
    order = ("passes", "error", "asserts")
    best: dict[str, str] = {}
    for row in record.rows(out / "failing.jsonl"):
        best[row["test"]] = max(best.get(row["test"], "passes"), row["ends"], key=order.index)
    lines = {row["test"]: row["ends"] for row in record.rows(out / "byhand.jsonl")}  # the last one
    best |= lines
    by_hand = Counter(test.split("::")[0].rpartition("/")[0] for test in lines)
    if not best:
        return []
    counts: dict[str, Counter[str]] = {}
    for test, ends in best.items():
        folder = test.split("::")[0].rpartition("/")[0]
        counts.setdefault(folder, Counter()).update([ends])
    counts["all"] = Counter(best.values())
    by_hand["all"] = by_hand.total()
    rows = [
        f"| {name} | {of.total()} | {of['asserts']} | {of['error']} | {of['passes']} | "
        f"{by_hand[name]} |"
        for name, of in counts.items()
    ]
    head = "| tests | run on broken code | fail by what they assert | by another error | pass | "
    head += "a line was broken by hand for |"
    return ["## Tests on broken code", "", head, "| --- | --- | --- | --- | --- | --- |", *rows]
