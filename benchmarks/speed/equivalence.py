"""Do the fast paths compute the same? Batched views against single ones; engines against torch.

    python benchmarks/speed/equivalence.py [--steps 300] [--seeds 3] [--plain torchvision|lightly]

*Views.* fewmask's SimCLR step is trained three times a seed, from the same weights, on the same
batches in the same order: with its views of whole batches (*fewmask*); with views that torchvision
v2, or lightly's SimCLRTransform, makes picture by picture with the same probabilities and ranges
(*plain*); and with its own views once more, drawn by another seed (*fewmask again*), which shows
how far chance alone parts two runs. Each view of the plain path is made of the picture as the pool
keeps it, on the CPU. Compared are the means of the loss over the last tenth of the steps: the
difference of a pair of one seed, its interval Student's t over the seeds.

*Engines.* A fine-tuned run's network by OpenVINO, ONNX Runtime and in int8, against the original
on pictures: the share of pixels of the same class, the largest difference of a logit over the
logits' spread, and of int8 the IoU on the run's own pairs, as `fewmask predict` checks them.

A seed that is done is not done again. Writes equivalence-DEVICE.json, table.md, engines.md and
losses.png.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
from torch import Tensor

from fewmask.augment import Views

OURS, PLAIN, AGAIN = "fewmask", "plain", "fewmask again"
WAYS = (OURS, PLAIN, AGAIN)
ENGINES: dict[str, tuple[Any, Any, bool]] = {
    "openvino": ("openvino", "32", False),
    "openvino bf16": ("openvino", "bf16", False),
    "torch bf16": ("torch", "bf16", False),
    "onnx": ("onnx", "32", False),
    "int8": ("openvino", "32", True),
}
View = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", default="cats-vs-dogs:")
    parser.add_argument("--out", type=Path, default=Path("results/bench/equivalence"))
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plain", default="torchvision", choices=("torchvision", "lightly"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--run", help="a fine-tuning run for the engines (default: makes one)")
    parser.add_argument("--parts", nargs="+", default=["views", "engines"])
    a = parser.parse_args()
    path = a.out / f"equivalence-{a.device}.json"
    names = ("encoder", "size", "batch", "steps", "plain")
    said = {name: getattr(a, name) for name in names}
    packages = ("torchvision", "lightly", "openvino", "onnxruntime", "nncf")
    record = measuring.opened(path, said | measuring.machine(a.device), *packages)
    if "views" in a.parts and measuring.there([a.plain], {"lightly": ("lightly",)}):
        done = {r["seed"] for r in record["rounds"]}
        for seed in (seed for seed in range(a.seeds) if seed not in done):
            losses = {way: trained(a, way, seed) for way in WAYS}
            record["rounds"].append({"seed": seed, **losses})
            measuring.save(path, record)
            write_table(record, a.out)
    if "engines" in a.parts:
        record["engines"] = engines(a)
        measuring.save(path, record)
        write_engines(record["engines"], a.out / "engines.md")
    for name in ("table.md", "engines.md"):
        print((a.out / name).read_text() if (a.out / name).exists() else "")


# --- views ----------------------------------------------------------------------------------------


def trained(a: argparse.Namespace, way: str, seed: int) -> list[float]:
    """The loss of every step."""
    from fewmask import encoders
    from fewmask.data.loader import Stream
    from fewmask.data.pools import cached_pool
    from fewmask.data.sources import open_images
    from fewmask.devices import make_fabric
    from fewmask.optimisation import Optimisation
    from fewmask.pretext import Pool
    from fewmask.pretext.simclr import SimCLR
    from fewmask.workflows.pretraining import default_lr

    torch.manual_seed(seed)
    fabric = make_fabric(a.device, 1, "auto")
    pool = cached_pool(open_images(a.images), a.size, "square")
    stream = Stream(pool, range(len(pool.names)), a.batch, seed, drop_last=True)
    component = SimCLR()
    task: Any = component.task(encoders.build(a.encoder), a.size, Pool(1, a.batch, a.steps))
    task.to(memory_format=torch.channels_last)
    if way == PLAIN:
        task.two_views = plain_views(a, component.views)
    optimisation = Optimisation("adamw", default_lr("adamw", a.batch), 1e-4, "cosine", 0.1)
    ready, optimizer = fabric.setup(task, optimisation.build(task.groups()))
    ready.train()
    losses = []
    for step in range(a.steps):
        # The order is the stream's; the batch's own seed draws nothing but the views.
        batch = stream.at(step)._replace(seed=seed + 1000 * (way == AGAIN)).to(fabric.device)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * optimisation.factor(step, a.steps)
        loss: Any = sum(ready(batch).values())
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    print(f"{way}, seed {seed}: {np.mean(losses[-a.steps // 10 :]):.4f}", flush=True)
    return losses


def plain_views(a: argparse.Namespace, views: Views) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """What takes the place of `SimCLRTask.two_views`: each picture's two views by itself."""
    one = by_lightly(a.size, views) if a.plain == "lightly" else by_torchvision(a.size, views)

    def two_views(batch: Any) -> tuple[Tensor, Tensor]:
        torch.manual_seed(batch.seed * 1_000_003 + batch.step)
        pictures = [
            image[:, :height, :width]
            for image, (height, width) in zip(batch.images.cpu(), batch.valid.tolist(), strict=True)
        ]
        found = [torch.stack([one(picture) for picture in pictures]) for _ in range(2)]
        return found[0].to(batch.images.device), found[1].to(batch.images.device)

    return two_views


def by_torchvision(size: int, views: Views) -> View:
    """uint8 [3,H,W] -> float32 [3,size,size] of 0 to 1."""
    from views import torchvision_view

    return torchvision_view(size, views, normalised=False)


def by_lightly(size: int, views: Views) -> View:
    from lightly.transforms.simclr_transform import SimCLRViewTransform
    from torchvision.transforms.v2.functional import to_pil_image

    theirs = SimCLRViewTransform(
        input_size=size, cj_prob=views.jitter, cj_strength=views.colour, min_scale=views.crop_min,
        random_gray_scale=views.grey, gaussian_blur=views.blur, sigmas=views.sigma,
        hf_prob=views.flip, normalize=None,
    )  # fmt: skip
    return lambda picture: theirs(to_pil_image(picture))


def write_table(record: dict[str, Any], out: Path) -> None:
    rounds = record["rounds"]
    last = max(1, record["setting"]["steps"] // 10)
    late = {way: np.array([np.mean(r[way][-last:]) for r in rounds]) for way in WAYS}
    rows = []
    for way in WAYS:
        less = measuring.interval(late[way] - late[OURS])
        said = "-" if way == OURS else less.words("+.4f")
        name = f"{way} ({record['setting']['plain']})" if way == PLAIN else way
        rows.append([name, measuring.interval(late[way]).words(".4f"), said, len(rounds)])
    head = ["views", "loss of the last tenth (95 %)", "less fewmask's (95 %)", "seeds"]
    (out / "table.md").write_text(measuring.table(head, rows))
    figure, (axis,) = measuring.panels(1, 6, 3.6)
    width = max(1, record["setting"]["steps"] // 30)
    for way, colour in zip(WAYS, measuring.COLOURS, strict=False):
        curves = np.array([np.convolve(r[way], np.ones(width) / width, "valid") for r in rounds])
        steps = np.arange(curves.shape[1]) + width
        axis.fill_between(steps, curves.min(0), curves.max(0), color=colour, alpha=0.2, linewidth=0)
        axis.plot(steps, curves.mean(0), color=colour, linewidth=1, label=way)
    axis.set(xlabel="step", ylabel=f"loss, mean of {width} steps")
    axis.set_title("mean and range over the seeds", fontsize=9)
    axis.legend(fontsize=7, frameon=False)
    figure.savefig(out / "losses.png", dpi=130)


# --- engines --------------------------------------------------------------------------------------


def engines(a: argparse.Namespace) -> list[dict[str, Any]]:
    """Every engine's agreement with the original, or why there is none."""
    from prediction import own_run

    from fewmask.inference import load_run
    from fewmask.types import UserError

    run = a.run or own_run(a.out / "work" / "run")
    found = []
    with tempfile.TemporaryDirectory() as work:
        os.environ["FEWMASK_CACHE"] = work
        for name, (kind, precision, int8) in ENGINES.items():
            try:
                compared = compare(load_run(run), kind, precision, a.images, int8=int8)
            except UserError as mistake:
                compared = {"missing": str(mistake).removeprefix(f"{run}: ")}
            found.append({"engine": name, **compared})
    return found


def compare(model: Any, kind: Any, precision: Any, images: str, *, int8: bool) -> dict[str, Any]:
    """On pictures that int8 was not calibrated on, and the others were not checked on."""
    from fewmask.data.sources import open_images
    from fewmask.engines.checking import difference
    from fewmask.engines.opening import Wanted, network_inputs, open_engine
    from fewmask.engines.runtimes import agreement

    items = open_images(images).items
    half = len(items) // 2
    wanted = Wanted(kind, precision, int8)
    engine = open_engine(model, wanted, items=items[:half], device=torch.device("cpu"))
    pictures = network_inputs(model, items[half:], int8=False, most=64)
    drop = engine.drop
    return {
        "images": len(pictures),
        "agreement": agreement(model.segmenter, engine.network, pictures),
        "difference": difference(model, engine.network, pictures[:16]),
        "iou": [drop.before, drop.after] if drop else None,
    }


def write_engines(found: list[dict[str, Any]], path: Path) -> None:
    rows: list[list[object]] = []
    for one in found:
        if "missing" in one:
            rows.append([one["engine"], f"left out: {one['missing']}", "-", "-", "-"])
            continue
        iou = one["iou"]
        said = "-" if not iou or None in iou else f"{iou[0]:.4f} -> {iou[1]:.4f}"
        rows.append([one["engine"], f"{100 * one['agreement']:.3f} %", f"{one['difference']:.1e}",
                     said, one["images"]])  # fmt: skip
    head = ["engine", "pixels of torch's class", "largest logit difference / spread",
            "IoU on the run's pairs", "images"]  # fmt: skip
    path.write_text(measuring.table(head, rows))


if __name__ == "__main__":
    main()
