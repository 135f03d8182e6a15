"""From what size on is a convolution faster as matrix products? Layers of ResNets and DenseNets.

    python benchmarks/speed/small_maps.py [--batches 4 16 64 128 256] [--rounds 7]

Forward and backward of one layer, channels-last, in 32 bit and under bf16's autocast, as PyTorch's
convolution and as `fewmask.smallmaps` computes it wherever its thresholds let it. CPU seconds of
one thread unless OMP_NUM_THREADS says otherwise; the two ways take turns in a random order, and a
ratio is that of one turn. "used" says whether training computes the layer so.

Writes small_maps-cpu.json and table.md; more rounds are added to those that are there.
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from pathlib import Path
from typing import Any

import measuring
import torch
from torch import nn

from fewmask import smallmaps

LAYERS = (
    # channels in and out, pixels a side, kernel, stride
    (512, 512, 1, 3, 1), (256, 512, 2, 3, 2), (256, 256, 2, 3, 1), (128, 32, 1, 3, 1),
    (128, 32, 2, 3, 1), (128, 32, 3, 3, 1), (256, 256, 3, 3, 1), (512, 512, 3, 3, 1),
    (256, 512, 6, 3, 2), (128, 128, 4, 3, 1), (2048, 512, 1, 1, 1), (1024, 256, 2, 1, 1),
    (2048, 512, 3, 1, 1), (1024, 256, 6, 1, 1), (256, 64, 8, 1, 1),
)  # fmt: skip
WAYS = ("convolution", "products")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/bench/small_maps"))
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 64, 128, 256])
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    path = a.out / "small_maps-cpu.json"
    record = measuring.opened(path, measuring.machine("cpu"))
    for _ in range(a.rounds):
        record["rounds"].append(one_round(a.batches))
        measuring.save(path, record)
    write_table(record, a.out / "table.md")
    print((a.out / "table.md").read_text())


def one_round(batches: list[int]) -> dict[str, list[float]]:
    """Seconds of both ways, of every layer, batch and precision."""
    found = {}
    for layer, batch, bf16 in product(LAYERS, batches, (False, True)):
        seconds = {way: timed(layer, batch, bf16, way) for way in measuring.shuffled(list(WAYS))}
        found[f"{layer} {batch} {'bf16' if bf16 else '32'}"] = [seconds[way] for way in WAYS]
    return found


def made(layer: tuple[int, ...], batch: int) -> tuple[nn.Conv2d, torch.Tensor]:
    channels, out, side, kernel, stride = layer
    last = torch.channels_last
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False).to(memory_format=last)
    images = torch.randn(batch, channels, side, side).contiguous(memory_format=last)
    return conv, images.requires_grad_()


def timed(layer: tuple[int, ...], batch: int, bf16: bool, way: str) -> float:
    """CPU seconds of a pass forward and back, the first one left out."""
    conv, images = made(layer, batch)
    stride, padding = (layer[4], layer[4]), (layer[3] // 2, layer[3] // 2)

    def products(images: torch.Tensor) -> torch.Tensor:
        return smallmaps._as_products(images, conv.weight, None, stride, padding)

    compute = conv if way == "convolution" else products
    times = max(1, 64 // batch)
    for n in range(times + 1):
        if n == 1:
            began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = compute(images)
        found.backward(found.detach())
        conv.weight.grad = images.grad = None
    return (time.process_time() - began) / times


def write_table(record: dict[str, Any], path: Path) -> None:
    rows: list[list[object]] = []
    for name in record["rounds"][0]:
        numbers, _, rest = name.strip("(").partition(") ")
        shape = tuple(int(part) for part in numbers.split(", "))
        batch, bits = rest.split()
        conv, images = made(shape, int(batch))
        both = [r[name] for r in record["rounds"] if name in r]
        gain = measuring.ratio([b[0] for b in both], [b[1] for b in both])
        took = 1000 * sorted(b[0] for b in both)[len(both) // 2]
        used = "yes" if smallmaps._is_small(conv, images) else "no"
        channels, out, side, kernel, stride = shape
        said = f"{kernel} x {kernel}, {channels} to {out}, {side} x {side} pixels, stride {stride}"
        rows.append([said, batch, bits, f"{took:.1f} ms", f"{gain.words()} x", used])
    head = ["layer", "batch", "bits", "convolution", "products are faster by (95 %)", "used"]
    path.write_text(measuring.table(head, rows))


if __name__ == "__main__":
    main()
