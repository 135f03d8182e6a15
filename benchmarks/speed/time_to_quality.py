"""How long must SimCLR train until its features are good? fewmask beside lightly and LightlyTrain.

    python benchmarks/speed/time_to_quality.py [--targets 0.60,0.65,0.70] [--epochs 10] [--seeds 3]

Each way pre-trains a ResNet from random weights on the same folder of files, at the same size and
batch, for the same number of passes, by its own recipe:

- *fewmask*: `fewmask.pretrain` with its defaults (AdamW, cosine, temperature 0.2, gentler crops);
  the pixel cache is built on its clock;
- *lightly*: its SimCLR example: its transform, NT-Xent at 0.5, SGD at 0.06, a worker a core;
- *LightlyTrain*: `lightly_train.pretrain(method="simclr")`, its defaults (SGD with warm-up and
  cosine, temperature 0.1).

--looks times a way's encoder is put aside. The clock counts the CPU seconds of the process and its
workers from its first line on (on a GPU: wall seconds), less what putting aside takes. Afterwards,
off the clock, every encoder meets `fewmask probe`: the linear probe of its frozen features on the
same draws and test pictures of class folders. Where the curve first reaches a target, straight
lines between the looks, is the time to that quality. With --pairs every encoder also starts
fine-tunings (`fewmask study`, one budget, the same masks and test set for all); --iou are targets.

A finished training is not done again, nor a probe; one that was killed begins anew. Writes
ENCODER-SIZEpx-DEVICE.json, table.md and curves.png; the weights lie in work/.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
import quality

from fewmask.data.sources import data_root

OURS, WAYS = quality.OURS, quality.WAYS
NEEDS = {"lightly": ("lightly",), "LightlyTrain": ("lightly_train",)}


def main() -> None:
    a = arguments()
    if a.child:
        train(a)
        return
    path = a.out / f"{a.encoder}-{a.size}px-{a.device}.json"
    names = ("encoder", "size", "batch", "epochs", "looks", "train", "device")
    setting = {name: getattr(a, name) for name in names} | {"pool": Path(a.images).name}
    packages = ("lightly", "lightly-train")
    record = measuring.opened(path, setting | measuring.machine(a.device), *packages)
    for seed in range(a.seeds):
        for way in measuring.shuffled(measuring.there(a.ways, NEEDS)):
            run = {"way": way, "seed": seed}
            if not any(r["way"] == way and r["seed"] == seed for r in record["rounds"]):
                found = measuring.child("--child", way, "--seed", seed)
                record["rounds"].append(run | found)
                measuring.save(path, record)
                print(f"{way}, seed {seed}: {found['looks'][-1]['clock']:.0f} s", flush=True)
    quality.probe_all(a, record, path)
    if a.pairs:
        quality.finetune_all(a, record, path)
    quality.write_table(a, record)
    print((a.out / "table.md").read_text())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", default=str(data_root() / "cats-vs-dogs"), help="a folder")
    parser.add_argument("--out", type=Path, default=Path("results/bench/time_to_quality"))
    parser.add_argument("--encoder", default="resnet18", choices=("resnet18", "resnet50"))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--looks", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", default="0.60,0.65,0.70", help="accuracies, by commas")
    parser.add_argument("--train", type=int, default=1500, help="pictures a probe learns from")
    parser.add_argument("--pairs", help="fine-tune as well, on these (oxford-iiit-pet:)")
    parser.add_argument("--iou", default="0.5,0.6", help="with --pairs: IoUs, by commas")
    parser.add_argument("--masks", type=int, default=32, help="with --pairs: the budget")
    parser.add_argument("--steps", type=int, default=200, help="with --pairs: of a fine-tuning")
    parser.add_argument("--repeats", type=int, default=2, help="with --pairs: of a fine-tuning")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


# --- in the child ---------------------------------------------------------------------------------


def train(a: argparse.Namespace) -> None:
    """Train to the end, putting the encoder aside now and then; say when, and leave."""
    import torch

    steps = steps_of(a)
    looks = {max(1, round(steps * n / a.looks)) for n in range(1, a.looks + 1)}
    clock = time.perf_counter if a.device == "cuda" else measuring.cpu_seconds
    folder = a.out / "work" / f"{a.child}-{a.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    taken: list[dict[str, float]] = []
    began = clock() if a.device == "cuda" else 0.0
    aside = 0.0

    def after(done: int) -> None:
        nonlocal aside
        if done not in looks:
            return
        now = clock()
        taken.append({"step": done, "clock": now - began - aside})
        put_aside(encoder_of(network), folder / f"{done}.safetensors", a)
        aside += clock() - now
        if done == steps:
            measuring.report({"steps": steps, "looks": taken})
            measuring.leave()

    measuring.on_steps(after)
    torch.manual_seed(a.seed)
    network = None if a.child == OURS else untrained(a.encoder)
    with tempfile.TemporaryDirectory() as work:
        {OURS: fewmask, "lightly": lightly, "LightlyTrain": lightly_train}[a.child](
            a, Path(work), network
        )
    raise SystemExit(f"{a.child} ended before {steps} steps")


def steps_of(a: argparse.Namespace) -> int:
    """The steps of all ways: whole batches only."""
    files = sum(1 for path in Path(a.images).rglob("*") if path.is_file())
    return int(a.epochs * (files // a.batch))


def untrained(encoder: str) -> Any:
    import torchvision

    return getattr(torchvision.models, encoder)()


def encoder_of(network: Any) -> Any:
    """The encoder in training. fewmask makes its own: it is the one ResNet whose weights moved."""
    import gc

    import torchvision

    if network is not None:
        return network
    kind = torchvision.models.ResNet
    made = [one for one in gc.get_objects() if issubclass(type(one), kind)]
    moved = [one for one in made if one.training and int(one.bn1.num_batches_tracked) > 0]
    if len(moved) != 1:
        raise SystemExit(f"{len(moved)} ResNets are in training; expected one")
    return moved[0]


def put_aside(network: Any, path: Path, a: argparse.Namespace) -> None:
    """The weights under torchvision's names, which are smp's as well, without the classifier."""
    from fewmask.checkpoint import save_weights

    kept = {name: w for name, w in network.state_dict().items() if not name.startswith("fc.")}
    save_weights(path, kept, {"encoder": a.encoder, "size": str(a.size)})


def fewmask(a: argparse.Namespace, work: Path, _: Any) -> None:
    import fewmask as package

    os.environ["FEWMASK_CACHE"] = str(work / "cache")
    package.pretrain(
        images=a.images,
        out=str(work / "run"),
        encoder=a.encoder,
        size=a.size,
        steps=steps_of(a),
        batch_size=a.batch,
        seed=a.seed,
        device=a.device,
    )


def lightly(a: argparse.Namespace, _: Path, network: Any) -> None:
    """As in lightly's SimCLR example."""
    import simclr
    import torch
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    width = network.fc.in_features
    backbone = torch.nn.Sequential(*list(network.children())[:-1], torch.nn.Flatten())
    head = SimCLRProjectionHead(width, width, 128)
    model = torch.nn.Sequential(backbone, head).to(a.device)
    simclr.lightly_training(a, model, NTXentLoss())


def lightly_train(a: argparse.Namespace, work: Path, network: Any) -> None:
    import lightly_train as package

    package.pretrain(
        out=str(work / "run"),
        data=a.images,
        model=network,
        method="simclr",
        epochs=a.epochs,
        batch_size=a.batch,
        seed=a.seed,
        accelerator="gpu" if a.device == "cuda" else "cpu",
        devices=1,
        num_workers=measuring.machine()["cores"],
        transform_args={"image_size": (a.size, a.size)},
    )


if __name__ == "__main__":
    main()
