"""Signal 9 at random moments of every command; the same command again must end in the same files.

A case is a command on small data. Undisturbed it runs once to the end: its files are what is right.
Then, in a new folder each time, it is killed at a random moment of that time, up to three times
over, and run to the end. Nothing under a final name may ever be half there, and in the end every
file must be the same as the undisturbed one's (clocks aside), with nothing left over.
"""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faulting import children, outcome, record

SMALL = ("--encoder", "resnet18", "--size", "32")
POOL = ("--images", "../data/toy/unlabelled")
PAIRS = ("--pairs", "../data/toy")
PLAN = """
pairs = "../data/toy"
encoder = "resnet18"
size = 32
budgets = [4]
repeats = 2
finetune = { steps = 6, batch_size = 4 }
pretrain = { steps = 6, batch_size = 8 }
arms = [{ init = "scratch" }, { images = "../data/toy/unlabelled" }]
"""
ENVIRONMENT = {"FEWMASK_SAVE_SECONDS": "0", "FEWMASK_CACHE": "cache"}
LONGEST = 900.0


@dataclass(frozen=True)
class Case:
    """A command line, and the case whose result it starts from, if any."""

    argv: tuple[str, ...]
    after: str | None = None


def _pretrain(pretext: str, *more: str) -> Case:
    steps = ("--steps", "8", "--batch-size", "8", "--seed", "3", "--out", "out")
    return Case(("pretrain", *POOL, *SMALL, "--pretext", pretext, *steps, *more))


CASES = {
    "pretrain simclr": _pretrain("simclr"),
    "pretrain jigsaw": _pretrain("jigsaw"),
    "pretrain colorize gan": _pretrain("colorize", "--objective", "gan"),
    "pretrain densecl": _pretrain("densecl"),
    "pretrain byol": _pretrain("byol"),
    "pretrain dino": _pretrain("dino"),
    "pretrain streamed": _pretrain("simclr", "--cache-gb", "0"),
    "finetune": Case(("finetune", *PAIRS, *SMALL, "--steps", "10", "--batch-size", "4",
                      "--out", "out")),
    "finetune segnet": Case(("finetune", *PAIRS, "--size", "32", "--decoder", "segnet",
                             "--encoder", "vgg11_bn", "--steps", "6",
                             "--batch-size", "4", "--out", "out")),
    "study": Case(("study", "../data/plan.toml", "--out", "out")),
    "predict": Case(("predict", "../finetune/out", "../data/toy/unlabelled", "--out", "out"),
                    "finetune"),
    "evaluate": Case(("evaluate", "../finetune/out", *PAIRS, "--out", "out"), "finetune"),
    "export": Case(("export", "../finetune/out", "--out", "out/smp"), "finetune"),
    "suggest": Case(("suggest", *POOL, *PAIRS, "--run", "../finetune/out", "--budget", "4",
                     "--out", "out"), "finetune"),
    "similarity": Case(("similarity", "../data/toy/unlabelled", "--target", "../data/toy",
                        "--out", "out")),
    "check": Case(("check", *POOL, *PAIRS, "--out", "out")),
}  # fmt: skip
"""One after the other, so that each is killed equally often."""


def prepare(work: Path) -> None:
    """The data and the plan of all cases."""
    from fewmask.data.toy import write_toy

    if not (work / "data" / "toy").exists():
        (work / "data").mkdir(parents=True, exist_ok=True)
        write_toy(work / "data" / "toy", pairs=32, unlabelled=40, size=40)
        (work / "data" / "plan.toml").write_text(PLAN)


def undisturbed(work: Path, name: str, case: Case | None = None) -> tuple[dict[str, str], float]:
    """The case's files and its seconds; run twice, since what differs then is no one's loss."""
    case = case or CASES[name]
    if case.after and not (work / case.after.split()[0] / "out").exists():
        undisturbed(work, case.after)
    folder = work / name.replace(" ", "-")
    found = []
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        ended = children.run(case.argv, folder, LONGEST, environment=ENVIRONMENT)
        if ended.code != 0:
            raise SystemExit(f"{name} does not run undisturbed:\n{ended.text}")
        found.append(outcome.left_in(folder))
    differ = [p for p in found[0] if found[0][p] != found[1].get(p)]
    if differ or found[0].keys() != found[1].keys():
        raise SystemExit(f"{name}: two undisturbed runs differ in {differ}")
    return found[1], ended.seconds


def trial(
    work: Path, name: str, right: dict[str, str], seconds: float, draw: random.Random
) -> list[dict[str, Any]]:
    """One to three kills, then the run to the end: a row for each kill."""
    case, folder = CASES[name], work / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    rows: list[dict[str, Any]] = []
    for _ in range(draw.randint(1, 3)):
        moment = draw.uniform(0, seconds)
        child = children.start(case.argv, folder, environment=ENVIRONMENT)
        time.sleep(moment)
        children.kill(child)
        ended = children.wait(child, folder, 60)
        if ended.code == 0:
            break  # it was faster this time
        early = [] if ended.code == -9 else [f"ended by itself: {ended.code} {ended.text[-400:]}"]
        rows.append({
            "command": name, "moment": round(moment, 3), "of": round(seconds, 3),
            "files": len(outcome.left_in_names(folder)),
            "at_once": [*early, *outcome.not_whole(folder)],
        })  # fmt: skip
    ended = children.run(case.argv, folder, LONGEST, environment=ENVIRONMENT)
    faults = []
    # Killed when all was written: an export does not write over what is there.
    there = "exists. Choose another --out" in ended.text and outcome.left_in(folder) == right
    if ended.code != 0 and not there:
        faults.append(f"ends with {ended.code}: {ended.text[-400:]}")
    else:
        found = outcome.left_in(folder)
        faults += [f"lost: {p}" for p in right if p not in found]
        faults += [f"left over: {p}" for p in found if p not in right]
        faults += [f"changed: {p}" for p in right if p in found and found[p] != right[p]]
        faults += [f"left over: {p}" for p in outcome.temporary(folder / "out")]
    for row in rows:
        row["faults"] = faults + row.pop("at_once")
    return rows


def main(work: Path, out: Path, n: int, only: list[str], seed: int) -> int:
    """`n` more kills, spread over the cases; how many of them lost or changed something."""
    children.load_all()
    prepare(work)
    draw = random.Random(seed)
    known: dict[str, tuple[dict[str, str], float]] = {}
    done = bad = 0
    names = only or list(CASES)
    idle = 0
    while done < n and idle < 3 * len(names):  # commands faster than any kill are left in the end
        for name in names:
            if name not in known:
                known[name] = undisturbed(work, name)
                print(f"{name}: {known[name][1]:.1f} s, {len(known[name][0])} files", flush=True)
            rows = trial(work, name, *known[name], draw)
            for row in rows:
                record.add(out / "kills.jsonl", {**row, "seed": seed})
                bad += bool(row["faults"])
                if row["faults"]:
                    print(f"FAULT {row}", flush=True)
            done += len(rows)
            idle = 0 if rows else idle + 1
            print(f"{done}/{n} kills, {bad} with a fault", flush=True)
            if done >= n:
                break
    return bad
