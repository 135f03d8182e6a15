"""What does a study cost beyond its own trainings?

    python benchmarks/speed/study_overhead.py [--pairs oxford-iiit-pet:] [--images cats-vs-dogs:]

A small study (random weights and SimCLR, two label budgets, --repeats repeats) by `fewmask study`,
in a process of its own, beside two sums:

- *its trainings*: the seconds that its own cells and pre-trainings were in the training loop, as
  their result.json say. The rest is start-up, checks of the data, the copies looked for in pool
  and pairs, the test of every cell, table, figures and page;
- *alone*: the same cells by `fewmask finetune` (and `fewmask pretrain`), each a command and a
  process of its own. They start, check and decode anew but test nothing, so a study may cost less.

Pixel caches are new in every round, for the study and for the commands alone. In each round the
study and the commands come in a random order. Of processes CPU and wall seconds are taken; the
loop's seconds are wall ones. Writes study_overhead-DEVICE.json and table.md; more rounds are added
to those that are there.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import measuring

PLAN = """
name = "overhead"
title = "What a study costs"
pairs = {pairs}
encoder = {encoder}
size = {size}
recipe = "best"
budgets = [16, 0.2]
repeats = {repeats}
baseline = "scratch"
[finetune]
steps = {steps}
batch_size = 16
[pretrain]
pretext = "simclr"
steps = {pretrain_steps}
batch_size = 64
[[arms]]
init = "scratch"
[[arms]]
name = "simclr"
images = {images}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", default="oxford-iiit-pet:")
    parser.add_argument("--images", default="cats-vs-dogs:?n=2000")
    parser.add_argument("--out", type=Path, default=Path("results/bench/study_overhead"))
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pretrain-steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only-study", action="store_true", help="not its commands one by one")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    a = parser.parse_args()
    path = a.out / f"study_overhead-{a.device}.json"
    names = ("encoder", "size", "steps", "pretrain_steps", "repeats")
    said = {name: getattr(a, name) for name in names}
    record = measuring.opened(path, said | measuring.machine(a.device))
    for _ in range(a.rounds):
        with tempfile.TemporaryDirectory() as work:
            record["rounds"].append(one_round(a, Path(work)))
        measuring.save(path, record)
        write_table(record, a.out / "table.md")
        print((a.out / "table.md").read_text(), flush=True)


def one_round(a: argparse.Namespace, work: Path) -> dict[str, float]:
    """The study, and its cells alone, which need to know what the cells are: one cell's budget."""
    plan = work / "plan.toml"
    plan.write_text(PLAN.format(**{k: json.dumps(v) for k, v in vars(a).items() if k != "out"}))
    whole = {"study": lambda: studied(a, plan, work), "alone": lambda: alone(a, work)}
    found: dict[str, float] = {}
    if a.only_study:
        del whole["alone"]
    for name in random.sample(list(whole), len(whole)):
        found |= whole[name]()
    return found


def studied(a: argparse.Namespace, plan: Path, work: Path) -> dict[str, float]:
    """The study's seconds, and those that its own trainings took."""
    out = work / "study"
    line = measuring.fewmask_command("study", plan, "--out", out, "--device", a.device)
    ran = measuring.timed(line, FEWMASK_CACHE=str(work / "cache-of-study"))
    results = [*out.glob("cells/*/result.json"), *out.glob("encoders/*/result.json")]
    trained = sum(json.loads(path.read_text())["seconds"] for path in results)
    return {"study_cpu": ran.cpu, "study_wall": ran.wall, "trained": trained, "runs": len(results)}


def alone(a: argparse.Namespace, work: Path) -> dict[str, float]:
    """The same trainings, one command after the other."""
    where = ("--encoder", a.encoder, "--size", a.size, "--device", a.device)
    encoder = work / "alone" / "simclr"
    lines = [
        ["pretrain", "--images", a.images, "--out", encoder, "--steps", a.pretrain_steps,
         "--batch-size", 64, *where],
    ]  # fmt: skip
    for repeat in range(a.repeats):
        for budget in (("--masks", 16), ("--dev", 0.2)):
            for init in ("scratch", encoder):
                out = work / "alone" / str(len(lines))
                lines.append(
                    ["finetune", "--pairs", a.pairs, "--out", out, *budget, "--init", init,
                     "--steps", a.steps, "--batch-size", 16, "--seed", repeat, *where]
                )  # fmt: skip
    cache = str(work / "cache-of-commands")
    ran = [measuring.timed(measuring.fewmask_command(*line), FEWMASK_CACHE=cache) for line in lines]
    return {"alone_cpu": sum(r.cpu for r in ran), "alone_wall": sum(r.wall for r in ran)}


def write_table(record: dict[str, Any], path: Path) -> None:
    rounds, setting = record["rounds"], record["setting"]
    overhead = [100 * (r["study_wall"] - r["trained"]) / r["study_wall"] for r in rounds]
    rows = [
        ["wall seconds of the study", measuring.interval(r["study_wall"] for r in rounds).words()],
        ["wall seconds of its trainings", measuring.interval(r["trained"] for r in rounds).words()],
        ["overhead, share of the study", measuring.interval(overhead).words(".1f", " %")],
    ]
    beyond = [r["study_wall"] - r["trained"] for r in rounds]
    rows.append(["wall seconds beyond them", measuring.interval(beyond).words(".1f")])
    rounds = [r for r in rounds if "alone_cpu" in r]
    for what in ("cpu", "wall") if rounds else ():
        found = measuring.ratio(
            *([r[f"{name}_{what}"] for r in rounds] for name in ("study", "alone"))
        )
        kind = {"cpu": "CPU", "wall": "wall"}[what]
        rows.append([f"{kind} seconds, study over commands alone", f"{found.words()} x"])
    runs = (
        f"{record['rounds'][0]['runs']} trainings of {setting['steps']} steps "
        f"({setting['pretrain_steps']} of pre-training), {setting['encoder']}, "
        f"{setting['size']} px, {len(record['rounds'])} rounds, "
        f"{setting['gpu'] or setting['processor']}"
    )
    path.write_text(measuring.table([runs, "mean (95 %)"], rows))


if __name__ == "__main__":
    main()
