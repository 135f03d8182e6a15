"""Every architecture on the same pairs: does it fit 16, how fast, and what of the test?

    python benchmarks/architectures.py --out results/architectures [DECODER-on-ENCODER ...]

Two runs each, from random weights, 128 px, the border ignored:
- *fit*: 16 training pairs (18 masks, two of which validate), no augmentation; the IoU on the 16 at
  the masks' own resolution. An architecture that cannot reach 0.85 (0.65 for FCN-32s and FCN-16s,
  which are coarse) is broken.
- *budget*: 20 % of the pairs, recipe `best` with its augmentation, the same steps for all; the IoU
  on the fixed test set.

An architecture that is done is not done again. Writes NAME.json and table.md.

    python benchmarks/architectures.py --out results/architectures --speeds

Then how fast they are, all in one run, one round after the other: a training step in the loop's own
precision and prediction in float32, batches of 8. On a CPU the seconds are the process' own, so
that other work on the machine counts little; a median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from fewmask.augment import PairAugment
from fewmask.data.sources import MaskOptions, Pair
from fewmask.data.split import Budget, make_split, order, take
from fewmask.decoders import component
from fewmask.devices import make_fabric
from fewmask.evaluation import score_pairs
from fewmask.metrics import aggregate
from fewmask.runs import config_of, key_of
from fewmask.segmentation import Geometry, SegmentationTask, Segmenter
from fewmask.settings import FinetuneSettings
from fewmask.types import Batch, Labels
from fewmask.workflows import Prepared, prepare, train

SIZE = 128
BATCH = 8
FIT_PAIRS = 18
NEEDED = {"fcn32s": 0.65, "fcn16s": 0.65}
ARCHITECTURES = [
    ("unet", "resnet18"),
    ("unet", "resnet50"),
    ("unet", "vgg16_bn"),
    ("unet", "densenet121"),
    ("unet", "googlenet"),
    ("unet", "convnext_atto"),
    ("unet", "vit_tiny_patch16_224"),
    ("unetplusplus", "resnet18"),
    ("fpn", "resnet18"),
    ("pspnet", "resnet18"),
    ("deeplabv3", "resnet18"),
    ("deeplabv3plus", "resnet18"),
    ("linknet", "resnet18"),
    ("manet", "resnet18"),
    ("pan", "resnet18"),
    ("segformer", "resnet18"),
    ("upernet", "resnet18"),
    ("dpt", "vit_tiny_patch16_224"),
    ("fcn32s", "resnet18"),
    ("fcn16s", "resnet18"),
    ("fcn8s", "resnet18"),
    ("segnet", "vgg16_bn"),
    ("unet-original", "unet-original"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="DECODER-on-ENCODER (default: all)")
    parser.add_argument("--pairs", default="oxford-iiit-pet:")
    parser.add_argument("--out", type=Path, default=Path("results/architectures"))
    parser.add_argument("--fit-steps", type=int, default=120)
    parser.add_argument("--budget-steps", type=int, default=120)
    parser.add_argument("--speeds", action="store_true", help="time those that are done")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.speeds:
        time_all(arguments.out, arguments.rounds)
        return
    prepared = prepare(arguments.pairs, MaskOptions(), Geometry(SIZE, "square"))
    for decoder, encoder in ARCHITECTURES:
        name = f"{decoder}-on-{encoder}"
        path = arguments.out / f"{name}.json"
        if path.exists() or (arguments.names and name not in arguments.names):
            continue
        print(name, flush=True)
        record = {"decoder": decoder, "encoder": encoder}
        record |= fit_and_test(decoder, encoder, prepared, arguments)
        path.write_text(json.dumps(record, indent=1) + "\n")
        write_table(arguments.out)
    write_table(arguments.out)


def fit_and_test(
    decoder: str, encoder: str, prepared: Prepared, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The two runs of an architecture, and its size."""
    n = len(prepared.pairs.items)
    split = make_split(n, prepared.checked.groups, test_fraction=0.2, seed=0)
    shuffled = order(split, 0, 0)
    small = take(shuffled, n, FIT_PAIRS, prepared.checked.groups)
    large = take(shuffled, n, 0.2, prepared.checked.groups)
    work = arguments.out / "work" / f"{decoder}-on-{encoder}"
    settings = FinetuneSettings(
        pairs=arguments.pairs,
        out=str(work / "fit"),
        encoder=encoder,
        decoder=decoder,
        size=SIZE,
        steps=arguments.fit_steps,
        batch_size=8,
        augment=False,
    )
    fitted = trained(settings, prepared, small)
    on_train = iou(fitted, prepared, [prepared.pairs.items[row] for row in small.train])
    whole = replace(settings, out=str(work / "budget"), steps=arguments.budget_steps, augment=None)
    tested = trained(whole, prepared, large)
    test = [prepared.pairs.items[row] for row in split.test]
    on_test = iou(tested, prepared, test)
    return {
        "parameters": sum(p.numel() for p in tested.parameters()),
        "fit_iou": on_train,
        "fit_pairs": len(small.train),
        "fit_steps": arguments.fit_steps,
        "test_iou": on_test,
        "budget_pairs": len(large.train),
        "budget_steps": arguments.budget_steps,
        "n_test": len(test),
    }


def trained(settings: FinetuneSettings, prepared: Prepared, budget: Budget) -> Segmenter:
    """A model trained on a budget."""
    resolved = settings.resolved()
    fabric = make_fabric(resolved.device, 1, resolved.precision)
    out = Path(resolved.out)
    out.mkdir(parents=True, exist_ok=True)
    resolved = replace(resolved, decoder=component(resolved.decoder))
    key = key_of(config_of(resolved), prepared.pairs.fingerprint())
    segmenter, _, _ = train(fabric, resolved, prepared, budget, key)
    (out / "state.pt").unlink(missing_ok=True)
    return segmenter.eval()


def iou(segmenter: Segmenter, prepared: Prepared, pairs: list[Pair]) -> float | None:
    """IoU over some pairs, at the masks' own resolution."""
    device = next(segmenter.parameters()).device
    found = score_pairs(segmenter, Geometry(SIZE, "square"), pairs, prepared.checked.labels, device)
    return aggregate(found, prepared.checked.labels.names)[0]["iou"]


def time_all(out: Path, rounds: int) -> None:
    """Add their speeds to the records that are there."""
    fabric = make_fabric("auto", 1, "auto")
    labels = Labels(("background", "pet"), tuple(range(256)))
    found: dict[Path, list[tuple[float, float]]] = {}
    for number in range(rounds + 1):  # the first one warms up
        for path in sorted(out.glob("*.json")):
            record = json.loads(path.read_text())
            torch.manual_seed(0)
            segmenter = Segmenter(record["encoder"], record["decoder"], labels).to(fabric.device)
            seconds = step_seconds(fabric, segmenter), prediction_seconds(segmenter)
            if number:
                found.setdefault(path, []).append(seconds)
            print(number, path.stem, *(f"{BATCH / s:.1f}" for s in seconds), flush=True)
    for path, timed in found.items():
        speeds = [BATCH / statistics.median(one[kind] for one in timed) for kind in (0, 1)]
        record = json.loads(path.read_text()) | {
            "training_images_per_second": speeds[0],
            "prediction_images_per_second": speeds[1],
            "timed": {"rounds": rounds, "threads": torch.get_num_threads()},
        }
        path.write_text(json.dumps(record, indent=1) + "\n")
    write_table(out)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Of the processor on a CPU, else of the clock."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


def step_seconds(fabric: Fabric, segmenter: Segmenter) -> float:
    """A training step of 8 random images with their masks, the second one."""
    task = SegmentationTask(segmenter.train(), "bce+dice", PairAugment())
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8)
    masks = torch.randint(0, 2, (BATCH, SIZE, SIZE), dtype=torch.uint8)
    batch = Batch(images, torch.arange(BATCH), 0, 0, masks, total=BATCH).to(fabric.device)
    optimizer = torch.optim.AdamW(task.parameters(), fused=True)

    def step() -> None:
        with fabric.autocast():
            losses = task(batch)
        fabric.backward(torch.stack(list(losses.values())).sum())
        optimizer.step()
        optimizer.zero_grad()

    step()
    return seconds_of(step, fabric.device)


def prediction_seconds(segmenter: Segmenter) -> float:
    """8 random images through the network, the second time."""
    device = next(segmenter.parameters()).device
    images = torch.rand(BATCH, 3, SIZE, SIZE, device=device)
    with torch.inference_mode():
        segmenter.eval()(images)
        return seconds_of(lambda: segmenter(images), device)


def write_table(out: Path) -> None:
    """table.md of all records that are there."""
    records = [json.loads(p.read_text()) for p in sorted(out.glob("*.json"))]
    records.sort(key=lambda r: -(r["test_iou"] or 0))
    lines = [
        "| decoder | encoder | parameters | training images/s | prediction images/s "
        "| IoU on 16 it fits (needed) | IoU on test, 20 % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in records:
        needed = NEEDED.get(r["decoder"], 0.85)
        lines.append(
            f"| {r['decoder']} | {r['encoder']} | {r['parameters'] / 1e6:.1f} M "
            f"| {speed(r, 'training')} | {speed(r, 'prediction')} "
            f"| {r['fit_iou']:.3f} ({needed}{'' if r['fit_iou'] >= needed else ': BROKEN'}) "
            f"| {r['test_iou']:.3f} |"
        )
    (out / "table.md").write_text("\n".join(lines) + "\n")


def speed(record: dict[str, Any], kind: str) -> str:
    """Images a second, where they were measured together with the others'."""
    return f"{record[f'{kind}_images_per_second']:.1f}" if "timed" in record else ""


if __name__ == "__main__":
    main()
