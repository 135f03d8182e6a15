"""The training step alone: which layout, precision and compilation is the fastest here?

    python benchmarks/speed/training_step.py [--device cpu|cuda] [--encoder resnet18] [--rounds 10]

SimCLR's step (two views, encoder, head, loss, backward, AdamW) and fine-tuning's (augmentation,
U-Net, binary cross-entropy and Dice, backward, AdamW), as fewmask trains them, on one batch of
made-up pixels that is on the device already. All ways are made once, in one process:

- precision: 32 bit, or bf16 (mixed, as `--precision bf16`);
- layout: PyTorch's own (contiguous), or channels-last, in which fewmask trains;
- *products*: channels-last, and small maps as matrix products (CPU), as fewmask trains;
- *compiled*: as fewmask trains, and the network by `torch.compile`; views, loss and optimiser
  eager.

On a CPU its own seconds are counted, of all threads together, so that others on the machine matter
little. In every round each runs --steps steps, in a new order; a ratio is that of one round to the
same task's step as fewmask trains here. What compiling costs stands apart, once: the wall seconds
of a way's first step beyond a usual one.

Writes ENCODER-SIZEpx-DEVICE.json, table.md and steps.png; more rounds are added to those there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import measuring
import numpy as np

Step = Callable[[], None]


@dataclass(frozen=True)
class Way:
    """How a step is computed."""

    task: str
    precision: str
    layout: str
    compiled: bool = False
    products: bool = True

    def __str__(self) -> str:
        more = ", products" * self.products + ", compiled" * self.compiled
        return f"{self.task}, {self.precision}, {self.layout}{more}"


TASKS = ("SimCLR", "U-Net")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/bench/training_step"))
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precisions", nargs="+", default=["32", "bf16"], choices=("32", "bf16"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    a = parser.parse_args()
    path = a.out / f"{a.encoder}-{a.size}px-{a.device}.json"
    said = {key: getattr(a, key) for key in ("encoder", "size", "batch", "steps", "device")}
    setting = said | measuring.machine(a.device)
    record = measuring.opened(path, setting, "segmentation-models-pytorch")
    steps, record["compiling"] = made(a)
    for _ in range(a.rounds):
        order = measuring.shuffled(list(steps))
        record["rounds"].append({name: seconds(steps[name], a.steps, a.device) for name in order})
        measuring.save(path, record)
    write_table(a.out)
    print((a.out / "table.md").read_text())


def made(a: argparse.Namespace) -> tuple[dict[str, Step], dict[str, float]]:
    """Every way's step, run twice already; what its first run took beyond a usual one."""
    steps: dict[str, Step] = {}
    first: dict[str, float] = {}
    for way in ways(a):
        step = step_of(way, a.encoder, a.size, a.batch, a.device)
        try:
            once, usual = wall(step), wall(step)
        except Exception as problem:  # no C++ compiler, or an operator that it doesn't know
            if not way.compiled:
                raise
            print(f"{way}: does not compile here ({problem})"[:300], flush=True)
            continue
        steps[str(way)], first[str(way)] = step, once - usual
        print(f"{way}: ready after {once:.1f} s", flush=True)
    return steps, first


def ways(a: argparse.Namespace) -> list[Way]:
    """All that is compared; compiled only in the layout that is the better one everywhere."""
    cpu = a.device == "cpu"  # products are for CPUs
    kinds = [("contiguous", False, False), ("channels-last", False, False)]
    kinds += [("channels-last", False, True)] * cpu
    kinds += [("channels-last", True, cpu)] * (not a.eager)
    return [Way(t, p, *kind) for t, p, kind in product(a.tasks, a.precisions, kinds)]


def step_of(way: Way, encoder: str, size: int, batch: int, device: str) -> Step:
    """One optimiser step of a task as `fit` makes it, its batch on the device."""
    import torch

    from fewmask.devices import make_fabric
    from fewmask.optimisation import Optimisation
    from fewmask.smallmaps import small_maps
    from fewmask.types import Batch

    torch.manual_seed(0)
    fabric = make_fabric(device, 1, way.precision)
    task, network = simclr(encoder, size, batch) if way.task == "SimCLR" else unet(encoder)
    layout = torch.channels_last
    if way.layout == "contiguous":
        layout = torch.contiguous_format
        # fewmask hands images over channels-last, and convolutions would follow them.
        network.register_forward_pre_hook(lambda _, images: (images[0].contiguous(),))
    task.to(memory_format=layout)
    optimizer = Optimisation("adamw", 1e-3, 1e-4, "cosine", 0.1).build([(1.0, task)])
    if way.compiled:
        network.compile()
    ready, optimizer = fabric.setup(task, optimizer)
    ready.train()
    side = size * 4 // 3 if way.task == "SimCLR" else size  # pools are kept with room for crops
    images = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8)
    masks = torch.randint(2, (batch, size, size), dtype=torch.uint8)
    pixels = Batch(images, torch.arange(batch), 0, 0, masks, total=batch).to(fabric.device)

    def step() -> None:
        with small_maps(network) if way.products else nullcontext():
            fabric.backward(sum(ready(pixels).values()))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def simclr(encoder: str, size: int, batch: int) -> tuple[Any, Any]:
    """The pretext task, and the network in it."""
    from fewmask import encoders
    from fewmask.pretext import PRETEXTS, Pool

    network = encoders.build(encoder)
    return PRETEXTS["simclr"]().task(network, size, Pool(batch, batch, 9)), network


def unet(encoder: str) -> tuple[Any, Any]:
    """The fine-tuning task, and the network in it."""
    from fewmask.augment import PairAugment
    from fewmask.segmentation import SegmentationTask, Segmenter
    from fewmask.types import Labels

    segmenter = Segmenter(encoder, "unet", Labels(("ground", "object"), tuple(range(256))))
    return SegmentationTask(segmenter, "bce+dice", PairAugment()), segmenter.network


def seconds(step: Step, steps: int, device: str) -> float:
    """A step's seconds: on a GPU of its clock, else of all threads of this process together."""
    import torch

    gpu = device == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    began = clock()
    for _ in range(steps):
        step()
    if gpu:
        torch.cuda.synchronize()
    return (clock() - began) / steps


def wall(step: Step) -> float:
    """Wall seconds of one step: compilers are processes of their own."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def chosen(setting: dict[str, Any], rounds: list[dict[str, float]], task: str) -> str:
    """The way in which fewmask trains here: bf16 where the device multiplies it."""
    from fewmask.devices import computes_bf16

    precision = "bf16" if computes_bf16(setting["device"]) else "32"
    products = setting["device"] == "cpu"
    name = str(Way(task, precision, "channels-last", products=products))
    return name if name in rounds[0] else str(Way(task, "32", "channels-last", products=products))


def write_table(out: Path) -> None:
    rows, bars = [], []
    for path in sorted(out.glob("*.json")):
        record = json.loads(path.read_text())
        setting, rounds = record["setting"], record["rounds"]
        where = setting["gpu"] or f"{setting['processor']}, {setting['threads']} threads"
        model = [f"{setting['encoder']}, {setting['size']} px, {setting['batch']}", where]
        for task in (task for task in TASKS if any(name.startswith(task) for name in rounds[0])):
            own = chosen(setting, rounds, task)
            for name in sorted(
                (name for name in rounds[0] if name.startswith(task)),
                key=lambda name: np.median([r[name] for r in rounds]),
            ):
                both = [r for r in rounds if name in r and own in r]
                found = measuring.ratio([r[own] for r in both], [r[name] for r in both])
                speed = setting["batch"] / np.median([r[name] for r in both])
                said = "fewmask's" if name == own else f"{found.words()} x"
                cost = record["compiling"].get(name, 0.0) if "compiled" in name else 0.0
                rows.append([*model, name, f"{speed:,.0f}", said, f"{cost:.0f} s" if cost else "-"])
                bars.append((f"{name}\n{model[0]}, {where}", speed, name == own))
    head = ["encoder, size, batch", "machine", "step", "images/s (of a CPU second)",
            "speed over fewmask's (95 %)", "compiling"]  # fmt: skip
    (out / "table.md").write_text(measuring.table(head, rows))
    draw(bars, out / "steps.png")


def draw(bars: list[tuple[str, float, bool]], path: Path) -> None:
    """Images a second of every way; fewmask's own in blue."""
    figure, (axis,) = measuring.panels(1, 8, 0.36 * len(bars) + 1)
    colours = [measuring.COLOURS[0 if own else 6] for _, _, own in bars]
    axis.barh(range(len(bars)), [speed for _, speed, _ in bars], color=colours)
    axis.set_yticks(range(len(bars)), [name for name, _, _ in bars], fontsize=6)
    axis.invert_yaxis()
    axis.set_xlabel("images/s, on a CPU by CPU second (blue: as fewmask trains)")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
