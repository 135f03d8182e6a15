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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fewmask.augment import MEAN, STD, Views, normalise, random_views
from fewmask.data.pools import cached_pool
from fewmask.data.sources import open_images

N = 128
SIZES = (32, 96, 224)
OURS = "fewmask"
JITTER = (0.8, 0.8, 0.8, 0.2)
"""Of brightness, contrast, saturation and hue, at strength 1."""
Way = Callable[[], object]
Images = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", default="cats-vs-dogs:")
    parser.add_argument("--out", type=Path, default=Path("results/bench/views"))
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.out / "views.json"
    setting = {"images": N, **measuring.machine(), "threads": 1}
    record = measuring.opened(path, setting, "torchvision", "lightly", "kornia")
    names = measuring.there(list(WAYS), {"kornia": ("kornia",), "lightly": ("lightly",)})
    for size in SIZES:
        pool = cached_pool(open_images(arguments.images), size, "square")
        images = np.ascontiguousarray(pool.images[:N])
        ways = {name: WAYS[name](images, size) for name in names}
        for way in ways.values():
            way()
        for _ in range(arguments.rounds):
            found = {name: seconds(ways[name]) for name in measuring.shuffled(names)}
            record["rounds"].append({"size": size, **found})
        measuring.save(path, record)
        write_table(record, arguments.out / "table.md")
        print((arguments.out / "table.md").read_text(), flush=True)


def seconds(way: Way) -> float:
    began = time.process_time()
    way()
    return time.process_time() - began


# --- two views of all images uint8 [N,H,W,3], `size` pixels a side, by each library ---------------


def by_us(images: Images, size: int) -> Way:
    batch, generator = tensor_of(images), torch.Generator().manual_seed(0)
    views = Views(crop_min=0.08)

    def way() -> object:
        with torch.inference_mode():
            return [normalise(random_views(batch, size, views, generator)) for _ in range(2)]

    return way


def by_kornia(images: Images, size: int) -> Way:
    import kornia.augmentation as kornia

    batch, kernel = tensor_of(images), kernel_of(size)
    whole = torch.nn.Sequential(
        kornia.RandomResizedCrop((size, size), (0.08, 1.0)),
        kornia.RandomHorizontalFlip(),
        kornia.ColorJitter(*JITTER, p=0.8),
        kornia.RandomGrayscale(p=0.2),
        kornia.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5),
        kornia.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )

    def way() -> object:
        with torch.inference_mode():
            unit = batch.float() / 255
            return whole(unit), whole(unit)

    return way


def by_torchvision(images: Images, size: int) -> Way:
    batch, alone = tensor_of(images), torchvision_view(size, Views(crop_min=0.08))
    return lambda: [torch.stack([alone(one) for one in batch]) for _ in range(2)]


def torchvision_view(
    size: int, views: Views, *, normalised: bool = True
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A view of one picture uint8 [3,H,W], with fewmask's numbers, by torchvision's v2."""
    from torchvision.transforms import v2

    jitter = [views.colour * share for share in JITTER]
    found: Callable[[torch.Tensor], torch.Tensor] = v2.Compose([
        v2.RandomResizedCrop(size, (views.crop_min, views.crop_max), views.ratio, antialias=True),
        v2.RandomHorizontalFlip(views.flip),
        v2.RandomApply([v2.ColorJitter(*jitter)], views.jitter),
        v2.RandomGrayscale(views.grey),
        v2.RandomApply([v2.GaussianBlur(kernel_of(size), views.sigma)], views.blur),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD) if normalised else v2.Identity(),
    ])  # fmt: skip
    return found


def by_lightly(images: Images, size: int) -> Way:
    from lightly.transforms import SimCLRTransform

    pictures, theirs = [Image.fromarray(pixels) for pixels in images], SimCLRTransform(size)
    return lambda: [theirs(picture) for picture in pictures]


def tensor_of(images: Images) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def kernel_of(size: int) -> int:
    """About a tenth of the side, odd."""
    return max(3, size // 10 // 2 * 2 + 1)


WAYS: dict[str, Callable[[Images, int], Way]] = {
    OURS: by_us,
    "kornia": by_kornia,
    "torchvision v2": by_torchvision,
    "lightly": by_lightly,
}


# --- the table ------------------------------------------------------------------------------------


def write_table(record: dict[str, Any], path: Path) -> None:
    rows = []
    for size in SIZES:
        own = [r for r in record["rounds"] if r["size"] == size]
        there = {name: [r for r in own if name in r] for name in WAYS}
        usual = {
            name: np.median([r[name] for r in found]) for name, found in there.items() if found
        }
        for name in sorted(usual, key=lambda name: usual[name]):
            both = [r for r in there[name] if OURS in r]
            found = measuring.ratio([r[name] for r in both], [r[OURS] for r in both])
            said = "-" if name == OURS else f"{found.words('.1f')} x"
            rows.append([size, name, f"{2 * N / usual[name]:,.0f}", said, len(both)])
    head = ["px", "library", "views/s of one core", "fewmask is faster by (95 %)", "rounds"]
    path.write_text(measuring.table(head, rows))


if __name__ == "__main__":
    main()
