"""Two random views of each picture of a batch: fewmask beside lightly, torchvision and kornia.

    python benchmarks/speed/views.py --images cats-vs-dogs: --out results/bench/views [--rounds 30]

SimCLR's views with Chen's numbers (crops of 8 % or more, colour strength 1, grey 0.2, blur 0.5,
flips), normalised by ImageNet's mean, from 128 real pictures that are decoded already. lightly and
torchvision's v2 work picture by picture, as in their examples; kornia (whose crops are not
antialiased) and fewmask on the batch. One
thread, in one process, one after the other in every round and in a new order each time; CPU seconds
are counted, so that others on the machine matter little. A ratio is that of one round, its interval
Student's t over the rounds on a log scale.

Writes views.json and table.md; more rounds are added to those that are there.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from fewmask.augment import MEAN, STD, Views, normalise, random_views
from fewmask.data.pools import cached_pool
from fewmask.data.sources import open_images

N = 128
SIZES = (32, 96, 224)
OURS = "fewmask"
Way = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", default="cats-vs-dogs:")
    parser.add_argument("--out", type=Path, default=Path("results/bench/views"))
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "views.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rounds": {}}
    names = ("torch", "torchvision", "lightly", "kornia")
    record["versions"] = {name: version(name) for name in names}
    for size in SIZES:
        pool = cached_pool(open_images(arguments.images), size, "square")
        ways = ways_of(np.ascontiguousarray(pool.images[:N]), size)
        for way in ways.values():
            way()
        rounds = record["rounds"].setdefault(str(size), [])
        for _ in range(arguments.rounds):
            rounds.append({name: seconds(ways[name]) for name in random.sample([*ways], len(ways))})
        path.write_text(json.dumps(record, indent=1) + "\n")
        write_table(record, arguments.out / "table.md")
        print((arguments.out / "table.md").read_text(), flush=True)


def seconds(way: Way) -> float:
    began = time.process_time()
    way()
    return time.process_time() - began


def ways_of(images: NDArray[np.uint8], size: int) -> dict[str, Way]:
    """Two views of all images uint8 [N,H,W,3], `size` pixels a side, by each library."""
    import kornia.augmentation as kornia
    from lightly.transforms import SimCLRTransform
    from torchvision.transforms import v2

    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    pictures = [Image.fromarray(pixels) for pixels in images]
    theirs = SimCLRTransform(input_size=size)
    kernel = max(3, size // 10 // 2 * 2 + 1)
    jitter = (0.8, 0.8, 0.8, 0.2)
    alone = v2.Compose([
        v2.RandomResizedCrop(size, (0.08, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(*jitter)], 0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], 0.5),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    whole = torch.nn.Sequential(
        kornia.RandomResizedCrop((size, size), (0.08, 1.0)),
        kornia.RandomHorizontalFlip(),
        kornia.ColorJitter(*jitter, p=0.8),
        kornia.RandomGrayscale(p=0.2),
        kornia.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5),
        kornia.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    generator = torch.Generator().manual_seed(0)
    views = Views(crop_min=0.08)

    def by_kornia() -> object:
        with torch.inference_mode():
            unit = batch.float() / 255
            return whole(unit), whole(unit)

    def by_us() -> object:
        with torch.inference_mode():
            return [normalise(random_views(batch, size, views, generator)) for _ in range(2)]

    return {
        OURS: by_us,
        "kornia": by_kornia,
        "torchvision v2": lambda: [torch.stack([alone(one) for one in batch]) for _ in range(2)],
        "lightly": lambda: [theirs(picture) for picture in pictures],
    }


def write_table(record: dict[str, Any], path: Path) -> None:
    lines = [
        "| px | library | views/s of one core | fewmask is faster by (95 %) | rounds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for size, rounds in record["rounds"].items():
        for name in sorted(rounds[0], key=lambda name: np.median([r[name] for r in rounds])):
            speed = 2 * N / np.median([r[name] for r in rounds])
            lines.append(
                f"| {size} | {name} | {speed:,.0f} | {ratio(rounds, name)} | {len(rounds)} |"
            )
    path.write_text("\n".join(lines) + "\n")


def ratio(rounds: list[dict[str, float]], name: str) -> str:
    if name == OURS or len(rounds) < 2:
        return "-"
    logs = np.log([r[name] / r[OURS] for r in rounds])
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * logs.std(ddof=1) / len(logs) ** 0.5
    low, mid, high = (float(np.exp(logs.mean() + shift)) for shift in (-half, 0, half))
    return f"{mid:.1f} x ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
