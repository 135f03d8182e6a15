"""Thousands of broken images, masks, configurations and checkpoints, through the commands.

A command must end by itself, in time, with code 0 or with code 2 and an `error:`; no traceback,
nothing written outside its folder, no data file touched, and not more than a set memory.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from faulting import broken, children, kills, record

SECONDS = 120.0
MEGABYTES = 4000.0
PER_FOLDER = 20
ENVIRONMENT = {"FEWMASK_CACHE": "cache"}
RUN = ("--steps", "1", "--batch-size", "4", "--size", "32")


def judged(ended: children.Ended) -> str | None:
    """What was wrong with how a child ended; None if nothing."""
    fault = ended.fault
    if fault == children.HUNG and at_work(ended.text):
        fault = None  # it was accepted, and trains as long as it says
    if fault is None and ended.peak_mb > MEGABYTES:
        return f"took {ended.peak_mb:.0f} MB"
    return fault


def keep(out: Path, what: str, sources: list[Path], text: str) -> None:
    """Put by what failed, to look at; not part of the record."""
    folder = out / "failed" / what
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text(text)
    for source in sources:
        if source.is_dir():
            shutil.copytree(source, folder / source.name, dirs_exist_ok=True)
        else:
            shutil.copy(source, folder)


# --- images and masks -----------------------------------------------------------------------------


def write_folder(folder: Path, draw: random.Random) -> dict[str, int]:
    """Pairs of which most are broken; how many files of each format were."""
    shutil.rmtree(folder, ignore_errors=True)
    counts: dict[str, int] = {}
    for i in range(PER_FOLDER):
        for part, endings in (("images", broken.FORMATS), ("masks", ("png", "tif", "gif", "bmp"))):
            ending = draw.choice(endings)
            data = broken.picture(draw, ending, mask=part == "masks")
            if draw.random() < 0.8:
                data = broken.bytes_of(data, draw)
                counts[ending] = counts.get(ending, 0) + 1
            (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / part / f"{i:02}.{ending}").write_bytes(data)
    return counts


def seen(folder: Path) -> dict[str, tuple[int, int]]:
    """What a folder holds, so that a change is noticed."""
    return {
        str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))
    }  # fmt: skip


def files(work: Path, out: Path, n: int, seed: int) -> int:
    """`n` more broken images and masks; how many folders of them were met with a fault."""
    _base(work)
    draw = random.Random(seed)
    done = bad = 0
    data = work / "data" / "fuzzed"
    commands: dict[str, tuple[str, ...]] = {
        "check": ("check", "--pairs", "../data/fuzzed", "--images", "../data/fuzzed/images"),
        "pretrain": ("pretrain", "--images", "../data/fuzzed/images", "--encoder", "resnet18",
                     *RUN, "--out", "out"),
        "finetune": ("finetune", "--pairs", "../data/fuzzed", "--encoder", "resnet18", *RUN,
                     "--out", "out"),
        "predict": ("predict", "../finetune/out", "../data/fuzzed/images", "--out", "out"),
        "suggest": ("suggest", "--images", "../data/fuzzed/images", "--budget", "2", "--out",
                    "out"),
    }  # fmt: skip
    while done < n:
        counts = write_folder(data, draw)
        before = seen(data)
        row: dict[str, Any] = {"files": counts, "seed": seed, "ends": {}, "faults": []}
        for name, argv in commands.items():
            shutil.rmtree(work / "trial", ignore_errors=True)
            ended = children.run(argv, work / "trial", SECONDS, environment=ENVIRONMENT)
            row["ends"][name] = ended.code
            fault = judged(ended) or ("data changed" if seen(data) != before else None)
            if fault:
                row["faults"].append(f"{name}: {fault}")
                keep(out, f"files-{seed}-{done}-{name}", [data], ended.text)
        record.add(out / "fuzz_files.jsonl", row)
        done += sum(counts.values())
        bad += bool(row["faults"])
        print(f"{done}/{n} files, faults in {bad} folders {row['faults']}", flush=True)
    return bad


# --- configurations and checkpoints ---------------------------------------------------------------


def _base(work: Path) -> None:
    """Sound data, runs and weights to break."""
    import torch

    children.load_all()
    kills.prepare(work)
    quick = {**ENVIRONMENT, "FEWMASK_SAVE_SECONDS": "0"}
    cases = {"finetune": "finetune", "pretrain": "pretrain simclr", "study": "study"}
    for name, case in cases.items():
        if not (work / name / "out" / ("result.json", "report.html")[name == "study"]).exists():
            ended = children.run(
                kills.CASES[case].argv, work / name, kills.LONGEST, environment=quick
            )
            if ended.code != 0:
                raise SystemExit(ended.text)
    for name in ("finetune", "pretrain"):  # a run under way, with its state
        if not (work / f"{name}-begun" / "out" / "state.pt").exists():
            begun(work, name)
    weights = work / "data" / "weights.pth"
    if not weights.exists():
        from fewmask.checkpoint import read_weights

        torch.save(read_weights(work / "pretrain/out/encoder.safetensors"), weights)


def begun(work: Path, name: str) -> None:
    """A run that was killed once it had saved its state."""
    import time

    case = kills.CASES["finetune" if name == "finetune" else "pretrain simclr"]
    folder = work / f"{name}-begun"
    shutil.rmtree(folder, ignore_errors=True)
    argv = [*case.argv]
    argv[argv.index("--steps") + 1] = "1000000"
    child = children.start(argv, folder, environment={**ENVIRONMENT, "FEWMASK_SAVE_SECONDS": "0"})
    end = time.monotonic() + 300
    while not (folder / "out" / "state.pt").exists():
        if time.monotonic() > end:
            children.kill(child)
            raise SystemExit(f"{name} saved no state in five minutes:\n{folder / 'log.txt'}")
        time.sleep(0.05)
    children.kill(child)
    children.wait(child, folder, 60)


def targets(work: Path) -> list[tuple[str, Path, tuple[str, ...]]]:
    """(name, the file to break, the command that reads it); the trial's folder holds a copy of the
    run as `given`, with the broken file in it."""
    image = "../data/toy/unlabelled/pool_0000.png"
    predict = ("predict", "given", image, "--out", "out")
    evaluate = ("evaluate", "given", "--pairs", "../data/toy", "--out", "out")
    export = ("export", "given", "--out", "smp")
    resume = ("finetune", "--pairs", "../data/toy", *kills.SMALL, "--steps", "1000000",
              "--batch-size", "4", "--out", "given")  # fmt: skip
    again = ("pretrain", *kills.POOL, *kills.SMALL, "--pretext", "simclr", "--steps", "1000000",
             "--batch-size", "8", "--seed", "3", "--out", "given")  # fmt: skip
    init = ("finetune", "--pairs", "../data/toy", "--encoder", "resnet18", *RUN, "--out", "out",
            "--init")  # fmt: skip
    probe = ("similarity", "../data/toy/unlabelled", "--target", "../data/toy", "--out", "out",
             "--extractor", "given", "--size", "32")  # fmt: skip
    rerun = ("rerun", "given/result.json")
    report = ("report", "given")
    run, pre, study = (work / name / "out" for name in ("finetune", "pretrain", "study"))
    found: list[tuple[str, Path, tuple[str, ...]]] = [
        ("plan", work / "data" / "plan.toml", ("study", "given.toml", "--out", "out")),
        ("weights.pth", work / "data" / "weights.pth", (*init, "given.pth")),
        ("weights.safetensors", pre / "encoder.safetensors", (*init, "given.safetensors")),
    ]
    for name in ("model.json", "model.safetensors", "config.json", "config.toml", "result.json",
                 "split.json"):  # fmt: skip
        for command in (predict, evaluate, export):
            found.append((f"run/{name}", run / name, command))
    found += [("run/result.json", run / "result.json", rerun)]
    for name in ("config.toml", "result.json", "encoder.safetensors"):
        found.append((f"encoder/{name}", pre / name, (*init, "given")))
        found.append((f"encoder/{name}", pre / name, probe))
    for folder, going_on in (("finetune-begun", resume), ("pretrain-begun", again)):
        for path in sorted((work / folder / "out").iterdir()):
            if not path.name.startswith("."):
                found.append((f"begun/{path.name}", path, going_on))
    cell = sorted((study / "cells").glob("*/result.json"))[0]
    for path in (study / "study.json", study / "splits.json", cell):
        found.append((f"study/{path.name}", path, report))
        found.append((f"study/{path.name}", path, ("study", "../data/plan.toml", "--out", "given")))
    return found


def given(work: Path, path: Path) -> tuple[Path, Path]:
    """A copy in the trial's folder of what a path belongs to, and the path in it."""
    trial = work / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    trial.mkdir(parents=True)
    if path.parent == work / "data":
        copy = trial / f"given{path.suffix}"
        shutil.copy(path, copy)
        return trial, copy
    root = path
    while root.name != "out":
        root = root.parent
    shutil.copytree(root, trial / "given")
    return trial, trial / "given" / path.relative_to(root)


def configs(work: Path, out: Path, n: int, seed: int, only: list[str]) -> int:
    """`n` more broken configurations and checkpoints; how many were met with a fault."""
    _base(work)
    draw = random.Random(seed)
    every = targets(work)
    known = [t for t in every if not only or t[0] in only]
    if missing := set(only) - {t[0] for t in known}:
        names = ", ".join(sorted({t[0] for t in every}))
        raise SystemExit(f"--only {min(missing)}: no such file; known: {names}")
    bad = 0
    for number in range(n):
        name, path, argv = known[number % len(known)] if n >= len(known) else draw.choice(known)
        trial, copy = given(work, path)
        data = copy.read_bytes()
        if copy.suffix in (".toml", ".json", ".jsonl"):
            data = broken.text(data, copy.suffix, draw)
        else:
            data = checkpoint(data, copy.suffix, draw)
        copy.write_bytes(data)
        ended = children.run(argv, trial, SECONDS, environment=ENVIRONMENT, enough=at_work)
        fault = judged(ended)
        row = {
            "seed": seed,
            "target": name,
            "command": argv[0],
            "ends": ended.code,
            "faults": [fault] * bool(fault),
        }
        record.add(out / "fuzz_configs.jsonl", row)
        if fault:
            bad += 1
            keep(out, f"config-{seed}-{number}-{name.replace('/', '-')}", [copy], ended.text)
            print(
                f"FAULT {name} {argv[0]}: {fault}: {ended.text.strip().splitlines()[-1:]}",
                flush=True,
            )
        if number % 20 == 19:
            print(f"{number + 1}/{n} files, {bad} with a fault", flush=True)
    return bad


def at_work(text: str) -> bool:
    """Whether the command had begun to train: it shows images a second, or cells."""
    return any(words in text for words in ("images/s", "cell ", "goes on from step"))


def checkpoint(data: bytes, suffix: str, draw: random.Random) -> bytes:
    """Weights or a state, broken: mostly in the head, where names, shapes and offsets stand."""
    head = 4096 if suffix == ".safetensors" else 20_000
    if draw.random() < 0.7:
        start = broken.bytes_of(data[:head], draw)
        return start + data[head:]
    if suffix != ".safetensors" and draw.random() < 0.5:  # a zip: its directory is at the end
        return data[:-head] + broken.bytes_of(data[-head:], draw)
    return broken.bytes_of(data, draw)
