"""How fast is a folder of photographs turned into masks? fewmask's engines beside a plain smp loop.

    python benchmarks/speed/prediction.py [--run RUN] [--images DIR] [--rounds 5]

- *smp loop*: what smp's users write: the same weights by `smp.from_pretrained`, eager, batches of 8
  resized pictures, each mask brought to its picture's size, saved as PNG; Pillow for the files;
- *LightlyTrain*: `lightly_train.predict_semantic_segmentation`, its defaults (a picture at a time,
  bf16 mixed), on the same weights: its model is replaced by smp's, its loader and loop are its own;
- *torch*, *openvino*: `fewmask predict` in full precision; *bf16*: with `--precision auto`, which
  falls back to 32 bit where bf16 gives another class to 0.1 % of the pixels; *int8*: with `--int8`.

All run as processes of their own on the same files and threads, one after the other in every round,
in a new order each time; start-up counts. Of each the CPU seconds of its process and the wall
seconds are taken, the ratio is that of its round's smp loop, the interval Student's t over the
rounds on a log scale. What an engine costs to make ready is measured apart, once, and so is what
int8 loses; and so is the start alone: the same with a single picture.

Writes prediction.json and table.md; more rounds are added to those that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring
import numpy as np

import fewmask
from fewmask.data.sources import data_root

PEER, LIGHTLY = "smp loop", "LightlyTrain"
PEERS = (PEER, LIGHTLY)
WAYS = {
    "torch": ["--engine", "torch"],
    "openvino": ["--engine", "openvino"],
    "torch bf16": ["--engine", "torch", "--precision", "auto"],
    "openvino bf16": ["--engine", "openvino", "--precision", "auto"],
    "openvino int8": ["--int8"],
}
NEEDS = {
    "openvino": ("openvino",), "openvino bf16": ("openvino",),
    "openvino int8": ("openvino", "nncf"), LIGHTLY: ("lightly_train",),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", help="a fine-tuning run that smp can open (default: makes one)")
    parser.add_argument("--images", help="a folder of photographs (default: the Pets')")
    parser.add_argument("--n", type=int, help="only so many of the pictures, evenly spaced")
    parser.add_argument("--out", type=Path, default=Path("results/bench/prediction"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--masks", help=argparse.SUPPRESS)
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        of_peer = {PEER: smp_loop, LIGHTLY: lightly_train}[arguments.peer]
        of_peer(arguments.run, arguments.images, Path(arguments.masks))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.run = arguments.run or own_run(arguments.out / "work" / "run")
    arguments.images = arguments.images or str(data_root() / "oxford-iiit-pet" / "images")
    if arguments.n:
        arguments.images = some(arguments.images, arguments.n, arguments.out / "work" / "images")
    path = arguments.out / "prediction.json"
    said = setting(arguments) | measuring.machine()
    packages = ("segmentation-models-pytorch", "openvino", "nncf", "pillow")
    record = measuring.opened(path, said, *packages)
    ways = measuring.there([*PEERS, *WAYS], NEEDS)
    with tempfile.TemporaryDirectory() as work:
        os.environ["FEWMASK_CACHE"] = f"{work}/cache"  # what is made ready is made here
        ready = made_ready(arguments, ways, Path(work))  # in every sitting: its cache is new
        record.setdefault("ready", ready)
        if "start" not in record:
            record["start"] = started(arguments, ways, Path(work))
        for _ in range(arguments.rounds):
            record["rounds"].append(one_round(arguments, ways, Path(work)))
            measuring.save(path, record)
            write_table(record, arguments.out / "table.md")


def some(images: str, n: int, folder: Path) -> str:
    """A folder of links to some of the pictures."""
    files = sorted(path for path in Path(images).rglob("*") if path.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for place in np.linspace(0, len(files) - 1, n).astype(int):
        (folder / files[place].name).symlink_to(files[place].absolute())
    return str(folder)


def own_run(out: Path) -> str:
    """The model that the goals are set for: a U-Net on ResNet-18 at 256 px, trained for a while."""
    fewmask.finetune(
        pairs="oxford-iiit-pet:",
        out=str(out),
        encoder="resnet18",
        size=256,
        dev=0.8,
        steps=400,
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


def command(arguments: argparse.Namespace, way: str, images: str, out: Path) -> list[str]:
    if way in PEERS:
        mine = [__file__, "--run", arguments.run, "--images", images, "--peer", way]
        return [sys.executable, *mine, "--masks", str(out / "masks")]
    flags = [*WAYS[way], "--no-overlays", "--device", "cpu", "--out", str(out)]
    return [sys.executable, "-m", "fewmask", "predict", arguments.run, images, *flags]


def made_ready(arguments: argparse.Namespace, ways: list[str], work: Path) -> dict[str, Any]:
    """The first run of each way, whose engine may have to be made; what it says of itself."""
    found = {}
    for number, way in enumerate([way for way in ways if way not in PEERS]):
        out = work / f"ready{number}"
        ran = measuring.timed(command(arguments, way, arguments.images, out))
        said = [
            line for line in ran.err.splitlines() if "int8 gives" in line or "bf16 gives" in line
        ]
        # A record is for others: of the run's path its last part.
        told = said[0].replace(f"{Path(arguments.run).parent}/", ".../") if said else ""
        found[way] = {"cpu": ran.cpu, "wall": ran.wall, "said": told}
    return found


def started(arguments: argparse.Namespace, ways: list[str], work: Path) -> dict[str, float]:
    """CPU seconds of each way for a single picture, what it needs being ready."""
    one = work / "one"
    one.mkdir()
    first = min(path for path in Path(arguments.images).rglob("*") if path.is_file())
    (one / first.name).write_bytes(first.read_bytes())
    found = {}
    for number, way in enumerate(
        way for way in ways if way != "openvino int8"
    ):  # one can't calibrate
        outs = [work / f"start{number}-{again}" for again in range(2)]
        found[way] = [measuring.timed(command(arguments, way, str(one), out)).cpu for out in outs][
            1
        ]
    return found


def one_round(arguments: argparse.Namespace, ways: list[str], work: Path) -> dict[str, Any]:
    order = measuring.shuffled(ways)
    found: dict[str, Any] = {}
    masks: dict[str, Path] = {}
    for way in order:
        masks[way] = Path(tempfile.mkdtemp(dir=work)) / "out"
        ran = measuring.timed(command(arguments, way, arguments.images, masks[way]))
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


def smp_loop(run: str, images: str, out: Path) -> None:
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
    out.mkdir(parents=True)
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
                mask.save(out / f"{path.stem}.png")


def lightly_train(run: str, images: str, out: Path) -> None:
    """LightlyTrain's prediction of a folder; of its model it asks what `Model` below has."""
    os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"
    import lightly_train as package
    import segmentation_models_pytorch as smp
    import torch
    from lightly_train._task_models import task_model_helpers
    from torch.nn import functional

    from fewmask.augment import MEAN, STD

    size = json.loads((Path(run) / "model.json").read_text())["size"]

    class Model(torch.nn.Module):
        class_path = "benchmark.SemanticSegmentation"
        image_size = (size, size)

        def __init__(self) -> None:
            super().__init__()
            self.image_normalize = {"mean": MEAN, "std": STD}
            self.model = smp.from_pretrained(run).eval()
            self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))

        @torch.inference_mode()
        def predict(self, image: torch.Tensor) -> torch.Tensor:
            batch = functional.interpolate(
                image[None].float() / 255, (size, size), mode="bilinear", antialias=True
            )
            logits = self.model((batch - self.mean) / self.std)
            sized = functional.interpolate(logits, image.shape[1:], mode="bilinear")[0]
            return (sized[0] > 0).to(torch.uint8) if len(sized) == 1 else sized.argmax(0)

    made: Any = lambda *_, **__: Model()  # noqa: E731
    task_model_helpers.load_model = made
    package.predict_semantic_segmentation(
        out=str(out), data=images, model=run, accelerator="cpu",
        num_workers=len(os.sched_getaffinity(0)),
    )  # fmt: skip


def write_table(record: dict[str, Any], path: Path) -> None:
    head = ["way", "images/s of CPU", "times the smp loop, CPU (95 %)",
            "times the smp loop, wall (95 %)", "pixels as torch", "start alone",
            "made ready in"]  # fmt: skip
    rows = []
    rounds = record["rounds"]
    for way in (way for way in (*PEERS, *WAYS) if way in rounds[0]):
        speed = record["setting"]["images"] / np.mean([r[way]["cpu"] for r in rounds])
        agreed = np.mean([r[way]["agreement"] for r in rounds])
        usual = np.mean([r[way]["wall"] for r in rounds])
        ready = max(0.0, record["ready"][way]["wall"] - usual) if way in record["ready"] else 0.0
        start = record["start"].get(way)
        rows.append([
            way, f"{speed:.1f}", ratio(rounds, way, "cpu"), ratio(rounds, way, "wall"),
            f"{100 * agreed:.2f} %", "-" if start is None else f"{start:.1f} s",
            f"{ready:.0f} s" if ready > 1 else "-",
        ])  # fmt: skip
    said = [f"{way}: {ready['said']}" for way, ready in record["ready"].items() if ready["said"]]
    path.write_text(measuring.table(head, rows) + "".join(f"\n{line}\n" for line in said))


def ratio(rounds: list[dict[str, Any]], way: str, what: str) -> str:
    found = measuring.ratio([r[PEER][what] for r in rounds], [r[way][what] for r in rounds])
    return "1.00" if way == PEER else found.words()


if __name__ == "__main__":
    main()
