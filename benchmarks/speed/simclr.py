"""SimCLR pre-training from files on disk: fewmask beside lightly and LightlyTrain, and its limit.

    python benchmarks/speed/simclr.py [--images DIR] [--encoder resnet18] [--size 96] [--rounds 30]

- *fewmask*: `fewmask.pretrain`, its pixel cache built before (a pool is decoded once);
- *fewmask, 32 bit*: the same with `precision="32"`: what bf16 brings, where the device has it;
- *bare step*: fewmask's task on one made-up batch on the device, nothing else: the limit;
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
import tempfile
from pathlib import Path
from typing import Any

import measuring
import numpy as np

from fewmask.data.sources import data_root

OURS, OURS_32, LIMIT = "fewmask", "fewmask, 32 bit", "bare step"
LOOP, LIGHTNING, TRAIN = "lightly loop", "lightly Lightning", "LightlyTrain"
WAYS = (OURS, OURS_32, LIMIT, LOOP, LIGHTNING, TRAIN)
NEEDS = {
    LOOP: ("lightly",),
    LIGHTNING: ("lightly", "pytorch_lightning"),
    TRAIN: ("lightly_train",),
}
PACKAGES = ("torchvision", "lightly", "lightly-train", "pytorch-lightning")


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
    path = a.out / f"{a.encoder}-{a.size}px-{a.device}.json"
    said = {key: getattr(a, key) for key in ("encoder", "size", "batch", "warm", "steps", "device")}
    record = measuring.opened(path, said | measuring.machine(a.device), *PACKAGES)
    ways = measuring.there(a.ways, NEEDS)
    for _ in range(a.rounds):
        found = {way: measuring.child("--child", way) for way in measuring.shuffled(ways)}
        record["rounds"].append(found)
        measuring.save(path, record)
        write_table(a.out)
    print((a.out / "table.md").read_text())


# --- in the child ---------------------------------------------------------------------------------


def train(a: argparse.Namespace) -> None:
    """Train until enough steps are timed, and leave."""
    measuring.time_steps(a.warm, a.steps, a.steps * a.batch)
    with tempfile.TemporaryDirectory() as work:
        {
            OURS: fewmask,
            OURS_32: fewmask,
            LIMIT: bare,
            LOOP: lightly_loop,
            LIGHTNING: lightly_lightning,
            TRAIN: lightly_train,
        }[a.child](a, Path(work))
    raise SystemExit(f"{a.child} ended before {a.warm + a.steps} steps")


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
        precision="32" if a.child == OURS_32 else "auto",
    )


def bare(a: argparse.Namespace, _work: Path) -> None:
    """The step alone: the same task, precision and optimiser on one batch over and over."""
    from training_step import Way, step_of

    way = Way("SimCLR", "auto", "channels-last")
    step = step_of(way, a.encoder, a.size, a.batch, a.device)
    for _ in range(a.warm + a.steps):
        step()


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
    from lightly.loss import NTXentLoss

    lightly_training(a, lightly_model(a).to(a.device), NTXentLoss())


def lightly_training(a: argparse.Namespace, model: Any, criterion: Any) -> None:
    """The loop of lightly's example, without an end."""
    import torch

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
    rows = []
    for path in sorted(out.glob("*.json")):
        record = json.loads(path.read_text())
        setting = record["setting"]
        model = [setting["encoder"], setting["size"], setting["batch"]]
        where = setting["gpu"] or f"{setting['processor']}, {setting['threads']} threads"
        for way in WAYS:
            own = [r for r in record["rounds"] if way in r and OURS in r]
            if own:
                speeds = [[r[name]["images_per_second"] for r in own] for name in (OURS, way)]
                said = "-" if way == OURS else f"{measuring.ratio(*speeds).words()} x"
                speed = f"{np.median(speeds[1]):.1f}"
                rows.append([*model, where, way, speed, said, len(own)])
    head = ["encoder", "px", "batch", "machine", "way", "images/s", "fewmask is faster by (95 %)",
            "rounds"]  # fmt: skip
    (out / "table.md").write_text(measuring.table(head, rows))


if __name__ == "__main__":
    main()
