"""How fast is a folder of photographs turned into masks? fewmask's engines beside a plain smp loop.

    python benchmarks/speed/prediction.py [--run RUN] [--images DIR] [--rounds 5]

The peer is what smp's users write: the same weights by `smp.from_pretrained`, eager, batches of 8
resized pictures, each mask brought to its picture's size, saved as PNG; Pillow for the files. All
run as processes of their own on the same files and threads, one after the other in every round, in
a new order each time; start-up counts. Of each the CPU seconds of its process and the wall seconds
are taken, the ratio is that of its round's peer, the interval Student's t over the rounds on a log
scale. What an engine costs to make ready is measured apart, once, and so is what int8 loses.

Writes prediction.json and table.md; more rounds are added to those that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring
import numpy as np

import fewmask
from fewmask.data.sources import data_root

PEER = "smp loop"
WAYS = {
    "torch": ["--engine", "torch"],
    "openvino": ["--engine", "openvino"],
    "openvino int8": ["--int8"],
}
NEEDS = {"openvino": ("openvino",), "openvino int8": ("openvino", "nncf")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", help="a fine-tuning run that smp can open (default: makes one)")
    parser.add_argument("--images", help="a folder of photographs (default: the Pets')")
    parser.add_argument("--out", type=Path, default=Path("results/bench/prediction"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", metavar="MASKS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        peer(arguments.run, arguments.images, Path(arguments.peer))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.run = arguments.run or own_run(arguments.out / "work" / "run")
    arguments.images = arguments.images or str(data_root() / "oxford-iiit-pet" / "images")
    path = arguments.out / "prediction.json"
    said = setting(arguments) | measuring.machine()
    packages = ("segmentation-models-pytorch", "openvino", "nncf", "pillow")
    record = measuring.opened(path, said, *packages)
    ways = measuring.there([PEER, *WAYS], NEEDS)
    with tempfile.TemporaryDirectory() as work:
        os.environ["FEWMASK_CACHE"] = f"{work}/cache"  # what is made ready is made here
        ready = made_ready(arguments, ways, Path(work))
        record.setdefault("ready", ready)
        for _ in range(arguments.rounds):
            record["rounds"].append(one_round(arguments, ways, Path(work)))
            measuring.save(path, record)
            write_table(record, arguments.out / "table.md")


def own_run(out: Path) -> str:
    """The model that the goals are set for: a U-Net on ResNet-18 at 256 px, trained for a while."""
    fewmask.finetune(
        pairs="oxford-iiit-pet:",
        out=str(out),
        encoder="resnet18",
        size=256,
        dev=0.2,
        steps=100,
        batch_size=8,
    )
    return str(out)


def setting(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all rounds of a record have in common."""
    from fewmask.inference import load_run

    model = load_run(arguments.run)
    images = [p for p in Path(arguments.images).rglob("*") if p.is_file()]
    return {
        "encoder": model.segmenter.encoder_name,
        "size": model.geometry.size,
        "images": len(images),
    }


def command(arguments: argparse.Namespace, way: str, out: Path) -> list[str]:
    if way == PEER:
        mine = [__file__, "--run", arguments.run, "--images", arguments.images, "--peer", str(out)]
        return [sys.executable, *mine]
    flags = [*WAYS[way], "--no-overlays", "--device", "cpu", "--out", str(out)]
    return [sys.executable, "-m", "fewmask", "predict", arguments.run, arguments.images, *flags]


def made_ready(arguments: argparse.Namespace, ways: list[str], work: Path) -> dict[str, Any]:
    """The first run of each way, whose engine may have to be made; what int8 says it loses."""
    found = {}
    for number, way in enumerate(way for way in ways if way != PEER):
        ran = measuring.timed(command(arguments, way, work / f"ready{number}"))
        loss = [line for line in ran.err.splitlines() if "int8 gives" in line]
        found[way] = {"cpu": ran.cpu, "wall": ran.wall, "said": loss[0] if loss else ""}
    return found


def one_round(arguments: argparse.Namespace, ways: list[str], work: Path) -> dict[str, Any]:
    order = measuring.shuffled(ways)
    found: dict[str, Any] = {}
    masks: dict[str, Path] = {}
    for way in order:
        masks[way] = Path(tempfile.mkdtemp(dir=work)) / "out"
        ran = measuring.timed(command(arguments, way, masks[way]))
        found[way] = {"cpu": ran.cpu, "wall": ran.wall}
        print(f"{way}: {ran.cpu:.1f} s of CPU, {ran.wall:.1f} s", flush=True)
    for way in order:
        found[way]["agreement"] = agreement(masks[way] / "masks", masks["torch"] / "masks")
    return found


def agreement(one: Path, other: Path) -> float:
    """The share of pixels of all masks to which both give one class."""
    from PIL import Image

    same = total = 0
    for path in sorted(other.rglob("*.png")):
        a, b = (np.asarray(Image.open(p)) for p in (one / path.relative_to(other), path))
        same, total = same + int((a == b).sum()), total + a.size
    return same / total


def peer(run: str, images: str, out: Path) -> None:
    """A plain loop over the files with the model that smp opens."""
    import segmentation_models_pytorch as smp
    import torch
    from PIL import Image, ImageOps
    from torch.nn import functional

    model = smp.from_pretrained(run).eval()
    size = json.loads((Path(run) / "model.json").read_text())["size"]
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    files = sorted(p for p in Path(images).rglob("*") if p.is_file())
    (out / "masks").mkdir(parents=True)
    with torch.inference_mode():
        for first in range(0, len(files), 8):
            part = files[first : first + 8]
            opened = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in part]
            small = [
                np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
                for image in opened
            ]
            batch = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 255
            for path, image, logits in zip(part, opened, model((batch - mean) / std), strict=True):
                sized = functional.interpolate(logits[None], image.size[::-1], mode="bilinear")[0]
                classes = (sized[0] > 0) if len(sized) == 1 else sized.argmax(0)
                mask = Image.fromarray(classes.to(torch.uint8).numpy())
                mask.save(out / "masks" / f"{path.stem}.png")


def write_table(record: dict[str, Any], path: Path) -> None:
    lines = [
        "| way | images/s of CPU | times the peer, CPU (95 %) | times the peer, wall (95 %) "
        "| pixels as torch | made ready in |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rounds = record["rounds"]
    for way in (way for way in (PEER, *WAYS) if way in rounds[0]):
        speed = record["setting"]["images"] / np.mean([r[way]["cpu"] for r in rounds])
        agreed = np.mean([r[way]["agreement"] for r in rounds])
        usual = np.mean([r[way]["wall"] for r in rounds])
        ready = max(0.0, record["ready"][way]["wall"] - usual) if way in record["ready"] else 0.0
        lines.append(
            f"| {way} | {speed:.1f} | {ratio(rounds, way, 'cpu')} | {ratio(rounds, way, 'wall')} "
            f"| {100 * agreed:.2f} % | {f'{ready:.0f} s' if ready > 1 else '-'} |"
        )
    path.write_text("\n".join(lines) + "\n")


def ratio(rounds: list[dict[str, Any]], way: str, what: str) -> str:
    found = measuring.ratio([r[PEER][what] for r in rounds], [r[way][what] for r in rounds])
    return "1.00" if way == PEER else found.words()


if __name__ == "__main__":
    main()
