"""SimCLR pre-training from files on disk: fewmask beside lightly and LightlyTrain, and its limit.

    python benchmarks/speed/simclr.py [--images DIR] [--encoder resnet18] [--size 96] [--rounds 30]

- *fewmask*: `fewmask.pretrain`, its pixel cache built before (a pool is decoded once);
- *bare step*: fewmask's task on one batch that is on the device already, nothing else: the limit;
- *lightly loop*, *lightly Lightning*: lightly's two SimCLR examples (torchvision's ResNet, a head
  of 128, NT-Xent, SGD), on this folder and size, a worker a core;
- *LightlyTrain*: `lightly_train.pretrain(method="simclr")`, its defaults but size and batch.

Each way is a process of its own that trains from the folder of files. A hook of PyTorch on the
optimiser's step takes the times for all alike: the first --warm steps don't count, the next --steps
do. In every round each way runs once, in a new order; a ratio is that of one round, its interval
Student's t over the rounds on a log scale. CPU seconds are those of the process and its workers.

Writes ENCODER-SIZEpx-DEVICE.json and table.md; more rounds are added to those that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from fewmask.data.sources import data_root

OURS, LIMIT = "fewmask", "bare step"
WAYS = (OURS, LIMIT, "lightly loop", "lightly Lightning", "LightlyTrain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", default=str(data_root() / "cats-vs-dogs"), help="a folder")
    parser.add_argument("--out", type=Path, default=Path("results/bench/simclr"))
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        train(a)
        return
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / f"{a.encoder}-{a.size}px-{a.device}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rounds": []}
    record |= {
        "encoder": a.encoder,
        "size": a.size,
        "batch": a.batch,
        "steps": a.steps,
        "device": a.device,
        "cores": len(os.sched_getaffinity(0)),
    }
    for _ in range(a.rounds):
        found = {way: child(way) for way in random.sample(a.ways, len(a.ways))}
        record["rounds"].append(found)
        path.write_text(json.dumps(record, indent=1) + "\n")
        write_table(a.out)
    print((a.out / "table.md").read_text())


def child(way: str) -> dict[str, float]:
    """One run of a way in a process of its own, with this process' flags."""
    ran = subprocess.run(
        [sys.executable, *sys.argv, "--child", way], capture_output=True, text=True, check=False
    )
    said = re.search(r'\{"images_per_second".*?\}', ran.stdout)  # a progress bar may share its line
    if said is None:
        raise SystemExit(f"{way}: {ran.stdout[-2000:]}{ran.stderr[-4000:]}")
    print(way, said[0], flush=True)
    found: dict[str, float] = json.loads(said[0])
    return found


# --- in the child ---------------------------------------------------------------------------------


def train(a: argparse.Namespace) -> None:
    """Train until enough steps are timed, and leave."""
    watch(a.warm, a.steps, a.batch)
    with tempfile.TemporaryDirectory() as work:
        {
            OURS: fewmask,
            LIMIT: bare,
            "lightly loop": lightly_loop,
            "lightly Lightning": lightly_lightning,
            "LightlyTrain": lightly_train,
        }[a.child](a, Path(work))
    raise SystemExit(f"{a.child} ended before {a.warm + a.steps} steps")


def watch(warm: int, steps: int, batch: int) -> None:
    """Take the time after every optimiser step; print the speed after the last, and leave."""
    import psutil
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    taken: list[tuple[float, float]] = []

    def after(*_: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        me = psutil.Process()
        everyone = [me, *me.children(recursive=True)]
        cpu = sum(sum(one.cpu_times()[:2]) for one in everyone)
        taken.append((time.perf_counter(), cpu))
        if len(taken) == warm + steps:
            (began, before), (ended, now) = taken[warm - 1], taken[-1]
            found = {
                "images_per_second": steps * batch / (ended - began),
                "images_per_cpu_second": steps * batch / (now - before),
            }
            print(json.dumps(found), flush=True)
            for one in everyone[1:]:
                one.kill()
            os._exit(0)

    register_optimizer_step_post_hook(after)


def fewmask(a: argparse.Namespace, work: Path) -> None:
    import fewmask as package

    package.pretrain(
        images=a.images,
        out=str(work / "run"),
        encoder=a.encoder,
        size=a.size,
        epochs=1000,
        batch_size=a.batch,
        device=a.device,
    )


def bare(a: argparse.Namespace, _work: Path) -> None:
    """The step alone: the same task, precision and optimiser on one batch over and over."""
    import torch

    from fewmask import encoders
    from fewmask.data.loader import Stream
    from fewmask.data.pools import cached_pool
    from fewmask.data.sources import open_images
    from fewmask.devices import make_fabric
    from fewmask.optimisation import Optimisation
    from fewmask.pretext import PRETEXTS, Pool

    fabric = make_fabric(a.device, 1, "auto")
    cache = cached_pool(open_images(a.images), a.size, "square")
    rows = list(range(len(cache.names)))
    task = PRETEXTS["simclr"]().task(encoders.build(a.encoder), a.size, Pool(len(rows), a.batch, 9))
    task.to(memory_format=torch.channels_last)
    optimizer = Optimisation("adamw", 1e-3, 1e-4, "cosine", 0.1).build(task.groups())
    ready, optimizer = fabric.setup(task, optimizer)
    batch = Stream(cache, rows, a.batch, 0, drop_last=True).at(0).to(fabric.device)
    ready.train()
    for _ in range(a.warm + a.steps):
        fabric.backward(sum(ready(batch).values()))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def loader(a: argparse.Namespace) -> Any:
    from lightly.data import LightlyDataset
    from lightly.transforms import SimCLRTransform
    from torch.utils.data import DataLoader

    pictures = LightlyDataset(a.images, transform=SimCLRTransform(input_size=a.size))
    return DataLoader(
        pictures,
        batch_size=a.batch,
        shuffle=True,
        drop_last=True,
        num_workers=len(os.sched_getaffinity(0)),
    )


def lightly_model(a: argparse.Namespace) -> Any:
    import torch
    import torchvision
    from lightly.models.modules import SimCLRProjectionHead

    network = getattr(torchvision.models, a.encoder)()
    width = network.fc.in_features
    backbone = torch.nn.Sequential(*list(network.children())[:-1], torch.nn.Flatten())
    return torch.nn.Sequential(backbone, SimCLRProjectionHead(width, width, 128))


def lightly_loop(a: argparse.Namespace, _: Path) -> None:
    import torch
    from lightly.loss import NTXentLoss

    model = lightly_model(a).to(a.device)
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    pictures = loader(a)
    while True:
        for batch in pictures:
            one, other = (view.to(a.device) for view in batch[0])
            loss = criterion(model(one), model(other))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def lightly_lightning(a: argparse.Namespace, work: Path) -> None:
    import pytorch_lightning as pl
    import torch
    from lightly.loss import NTXentLoss

    class SimCLR(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.criterion = lightly_model(a), NTXentLoss()

        def training_step(self, batch: Any, _: int) -> Any:
            first, second = batch[0]
            return self.criterion(self.model(first), self.model(second))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.06)

    accelerator = "gpu" if a.device == "cuda" else "cpu"
    trainer = pl.Trainer(
        max_epochs=1000, devices=1, accelerator=accelerator, default_root_dir=str(work)
    )
    trainer.fit(SimCLR(), loader(a))


def lightly_train(a: argparse.Namespace, work: Path) -> None:
    import lightly_train as package

    package.pretrain(
        out=str(work / "run"),
        data=a.images,
        model=f"torchvision/{a.encoder}",
        method="simclr",
        epochs=1000,
        batch_size=a.batch,
        accelerator="gpu" if a.device == "cuda" else "cpu",
        devices=1,
        num_workers=len(os.sched_getaffinity(0)),
        transform_args={"image_size": (a.size, a.size)},
    )


# --- the table ------------------------------------------------------------------------------------


def write_table(out: Path) -> None:
    lines = [
        "| encoder | px | batch | device | way | images/s | fewmask is faster by (95 %) | rounds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(out.glob("*.json")):
        record = json.loads(path.read_text())
        rounds = record["rounds"]
        for way in WAYS:
            own = [r for r in rounds if way in r]
            if own:
                speed = np.median([r[way]["images_per_second"] for r in own])
                lines.append(
                    f"| {record['encoder']} | {record['size']} | {record['batch']} "
                    f"| {record['device']}, {record['cores']} cores | {way} | {speed:.1f} "
                    f"| {ratio(own, way)} | {len(own)} |"
                )
    (out / "table.md").write_text("\n".join(lines) + "\n")


def ratio(rounds: list[dict[str, Any]], way: str) -> str:
    rounds = [r for r in rounds if OURS in r]
    if way == OURS or not rounds:
        return "-"
    speeds = [[r[name]["images_per_second"] for r in rounds] for name in (OURS, way)]
    logs = np.log(speeds[0]) - np.log(speeds[1])
    if len(logs) < 2:
        return f"{np.exp(logs.mean()):.2f} x"
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * logs.std(ddof=1) / len(logs) ** 0.5
    low, mid, high = (float(np.exp(logs.mean() + shift)) for shift in (-half, 0, half))
    return f"{mid:.2f} x ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
