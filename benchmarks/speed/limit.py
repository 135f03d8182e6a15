"""How near does pre-training from files come to its own step on a batch that is already there?

    python benchmarks/speed/limit.py [--images DIR] [--encoder resnet18] [--size 96] [--pairs 30]

`fewmask.pretrain` trains from a folder of files (its pixel cache built before); after every
--steps steps it is halted, and as many *bare steps* are made: the same task, precision and
optimiser on one made-up batch, nothing else. So both halves of a pair lie seconds apart in one
process, and what else the machine does hits them alike. Their ratio's interval is Student's t over
the pairs on a log scale. 1 is the limit: reading, decoding, logging and saving cost nothing.

Writes ENCODER-SIZEpx-DEVICE.json and table.md; more pairs are added to those that are there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import measuring
import numpy as np
import simclr
from training_step import Way, step_of

from fewmask.data.sources import data_root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", default=str(data_root() / "cats-vs-dogs"), help="a folder")
    parser.add_argument("--out", type=Path, default=Path("results/bench/limit"))
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2, help="of each half of a pair")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        train(a)
        return
    path = a.out / f"{a.encoder}-{a.size}px-{a.device}.json"
    said = {key: getattr(a, key) for key in ("encoder", "size", "batch", "steps", "device")}
    record = measuring.opened(path, said | measuring.machine(a.device), "torchvision")
    record["rounds"] += measuring.child("--child")["pairs"]
    measuring.save(path, record)
    write_table(a.out)
    print((a.out / "table.md").read_text())


def train(a: argparse.Namespace) -> None:
    """Pre-train, halted for bare steps, until all pairs are there; say them, and leave."""
    way = Way("SimCLR", "auto", "channels-last")
    bare = step_of(way, a.encoder, a.size, a.batch, a.device)
    clock = time.perf_counter if a.device == "cuda" else measuring.cpu_seconds
    pairs: list[dict[str, float]] = []
    within, began, steps = False, 0.0, 0

    def after(_: int) -> None:
        nonlocal within, began, steps
        if within:  # bare steps step an optimiser as well
            return
        steps += 1
        if steps % a.steps:
            return
        whole = (clock() - began) / a.steps
        within = True
        now = clock()
        for _ in range(a.steps):
            bare()
        synchronise(a.device)
        if began:  # the first ones warm up
            pairs.append({"whole": whole, "bare": (clock() - now) / a.steps})
        within = False
        if len(pairs) == a.pairs:
            measuring.report({"pairs": pairs})
            measuring.leave()
        began = clock()

    measuring.on_steps(after)
    with tempfile.TemporaryDirectory() as work:
        simclr.fewmask(a, Path(work))


def synchronise(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def write_table(out: Path) -> None:
    rows = []
    for path in sorted(out.glob("*.json")):
        record = json.loads(path.read_text())
        setting, pairs = record["setting"], record["rounds"]
        where = setting["gpu"] or f"{setting['processor']}, {setting['threads']} threads"
        whole, bare = ([pair[name] for pair in pairs] for name in ("whole", "bare"))
        share = measuring.ratio(bare, whole)
        model = [setting["encoder"], setting["size"], setting["batch"], where]
        rows.append(
            [*model, f"{setting['batch'] / np.median(whole):.1f}", share.words(), len(pairs)]
        )
    head = ["encoder", "px", "batch", "machine", "images/s (of a CPU second)",
            "of the bare step's speed (95 %)", "pairs"]  # fmt: skip
    (out / "table.md").write_text(measuring.table(head, rows))


if __name__ == "__main__":
    main()
