"""An epoch of fine-tuning a U-Net from files on disk: fewmask beside smp with Lightning.

    python benchmarks/speed/finetuning.py [--encoder resnet18] [--size 128] [--rounds 10]

- *fewmask*: `fewmask.finetune`, recipe `best` (augmentation on), its pixel cache built before;
- *fewmask, 32 bit*: the same with `precision="32"`: what bf16 brings, where the CPU has it;
- *smp's example*: smp's CamVid notebook (OpenCV, its albumentations, Lightning's Trainer, Adam with
  a cosine, statistics of every step), on these pairs and this size, 32 bit, a worker a core;
- *smp, as fewmask*: the same loop with fewmask's augmentation written in albumentations, no
  statistics in training, and the precision that fewmask chooses.

All train the same smp U-Net from random weights, by the sum of binary cross-entropy and Dice, the
border ignored, on the same pairs: nine tenths of a random order, the rest validates after every
epoch. The second epoch is timed, from the last step of the first one to its own: so the validation
between the two counts, and what a loader does anew in each epoch, and no start-up. Each way is a
process of its own; in every round each runs once, in a new order.

Writes ENCODER-SIZEpx-DEVICE.json and table.md; more rounds are added to those that are there.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import measuring
import numpy as np

OURS, OURS_32 = "fewmask", "fewmask, 32 bit"
EXAMPLE, ALIKE = "smp's example", "smp, as fewmask"
WAYS = (OURS, OURS_32, EXAMPLE, ALIKE)
NEEDS = dict.fromkeys((EXAMPLE, ALIKE), ("albumentations", "cv2", "pytorch_lightning"))
PACKAGES = (
    "segmentation-models-pytorch",
    "pytorch-lightning",
    "albumentations",
    "opencv-python-headless",
)
EPOCHS = 1000
"""More than are run: the second one ends the process."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", default="oxford-iiit-pet:")
    parser.add_argument("--masks", type=int, help="use this number of pairs only")
    parser.add_argument("--out", type=Path, default=Path("results/bench/finetuning"))
    parser.add_argument("--encoder", default="resnet18", help="resnet18, densenet121, ...")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        train(a)
        return
    path = a.out / f"{a.encoder}-{a.size}px-{a.device}.json"
    said = {key: getattr(a, key) for key in ("encoder", "size", "batch", "masks", "device")}
    record = measuring.opened(path, said | measuring.machine(a.device), *PACKAGES)
    ways = measuring.there(a.ways, NEEDS)
    for _ in range(a.rounds):
        found = {way: measuring.child("--child", way) for way in measuring.shuffled(ways)}
        record["rounds"].append(found)
        measuring.save(path, record)
        write_table(a.out)
    print((a.out / "table.md").read_text())


def write_table(out: Path) -> None:
    rows = []
    for path in sorted(out.glob("*.json")):
        record = json.loads(path.read_text())
        setting = record["setting"]
        where = f"{setting['gpu'] or setting['processor']}, {setting['threads']} threads"
        for way in WAYS:
            own = [r for r in record["rounds"] if way in r and OURS in r]
            if not own:
                continue
            speed = np.median([r[way]["images_per_second"] for r in own])
            faster = [
                measuring.ratio([r[OURS][what] for r in own], [r[way][what] for r in own])
                for what in ("images_per_second", "images_per_cpu_second")
            ]
            said = ["-"] * 2 if way == OURS else [f"{one.words()} x" for one in faster]
            model = [setting["encoder"], setting["size"], setting["batch"]]
            rows.append([*model, where, way, f"{speed:.1f}", *said, len(own)])
    head = ["encoder", "px", "batch", "machine", "way", "images/s", "fewmask is faster by (95 %)",
            "by CPU seconds", "rounds"]  # fmt: skip
    (out / "table.md").write_text(measuring.table(head, rows))


# --- in the child ---------------------------------------------------------------------------------


def train(a: argparse.Namespace) -> None:
    """Train until the second epoch is timed, and leave."""
    pairs, validating = split_of(a)
    steps = math.ceil(len(pairs) / a.batch)
    ours = a.child in (OURS, OURS_32)
    # Our batches are all whole; the loader's last one is what is left.
    measuring.time_steps(steps, steps, steps * a.batch if ours else len(pairs))
    with tempfile.TemporaryDirectory() as work:
        if ours:
            fewmask(a, Path(work))
        else:
            lightning(a, Path(work), pairs, validating)
    raise SystemExit(f"{a.child} ended before its second epoch")


def split_of(a: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """The pairs to train and to validate on, as `fewmask.finetune` takes them.

    Copies of one picture are not looked for here, so two or three may be on another side.
    """
    from fewmask.data.sources import open_pairs
    from fewmask.data.split import Split, order, take

    items = open_pairs(a.pairs).items
    ordered = order(Split((), tuple(range(len(items))), 0), 0, 0)
    budget = take(ordered, len(items), a.masks or len(items), ())
    return [items[row] for row in budget.train], [items[row] for row in budget.val]


def fewmask(a: argparse.Namespace, work: Path) -> None:
    import fewmask as package

    package.finetune(
        pairs=a.pairs,
        out=str(work / "run"),
        encoder=a.encoder,
        size=a.size,
        masks=a.masks,
        epochs=EPOCHS,
        batch_size=a.batch,
        loss="bce+dice",
        device=a.device,
        precision="32" if a.child == OURS_32 else "auto",
    )


def lightning(a: argparse.Namespace, work: Path, train: list[Any], validate: list[Any]) -> None:
    import pytorch_lightning as pl

    from fewmask.devices import computes_bf16

    alike = a.child == ALIKE
    steps = EPOCHS * math.ceil(len(train) / a.batch)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        devices=1,
        accelerator="gpu" if a.device == "cuda" else "cpu",
        precision="bf16-mixed" if alike and computes_bf16(a.device) else "32-true",
        default_root_dir=str(work),
    )
    augmentation = our_augmentation(a.size) if alike else smps_augmentation(a.size)
    model = lightning_model(a.encoder, steps, statistics=not alike)
    training = loader(a, train, augmentation, shuffle=True)
    trainer.fit(model, training, loader(a, validate, resized(a.size), shuffle=False))


def lightning_model(encoder: str, steps: int, *, statistics: bool) -> Any:
    """As in smp's example; two losses are added up, since that is what fewmask trains by."""
    import pytorch_lightning as pl
    import segmentation_models_pytorch as smp
    import torch

    from fewmask.augment import MEAN, STD

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = smp.create_model("Unet", encoder, encoder_weights=None, classes=1)
            self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
            self.dice = smp.losses.DiceLoss("binary", from_logits=True, ignore_index=255)
            self.bce = smp.losses.SoftBCEWithLogitsLoss(ignore_index=255)

        def step(self, batch: Any, stage: str, *, counted: bool) -> Any:
            images, masks = batch[0].float() / 255, batch[1].float()[:, None]
            logits = self.model((images - self.mean) / self.std)
            loss = self.dice(logits, masks) + self.bce(logits, masks)
            if counted:
                predicted = (logits.sigmoid() > 0.5).long()
                found = smp.metrics.get_stats(predicted, (masks == 1).long(), mode="binary")
                iou = smp.metrics.iou_score(*found, reduction="micro")
                self.log(f"{stage}_iou", iou, prog_bar=True)
            return loss

        def training_step(self, batch: Any, _: int) -> Any:
            return self.step(batch, "train", counted=statistics)

        def validation_step(self, batch: Any, _: int) -> Any:
            return self.step(batch, "valid", counted=True)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=2e-4)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-5)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    return Model()


def loader(a: argparse.Namespace, pairs: list[Any], transform: Any, *, shuffle: bool) -> Any:
    """Files read by OpenCV, as in smp's example."""
    import cv2
    import torch
    from PIL import Image

    from fewmask.data.sources import open_pairs

    labels = open_pairs(a.pairs).labels
    lut = np.array(labels.lut if labels else range(256), np.uint8)

    class Pairs(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(pairs)

        def __getitem__(self, row: int) -> Any:
            read = cv2.imread(pairs[row].image.where)
            if read is None:  # a GIF by another name, which some OpenCVs don't read
                image = np.array(Image.open(pairs[row].image.where).convert("RGB"))
            else:
                image = cv2.cvtColor(read, cv2.COLOR_BGR2RGB)
            mask = lut[cv2.imread(pairs[row].mask.where, cv2.IMREAD_GRAYSCALE)]
            sample = transform(image=image, mask=mask)
            return np.ascontiguousarray(sample["image"].transpose(2, 0, 1)), sample["mask"]

    workers = measuring.machine()["cores"]
    return torch.utils.data.DataLoader(
        Pairs(), batch_size=a.batch, shuffle=shuffle, num_workers=workers
    )


def resized(size: int) -> Any:
    import albumentations

    return albumentations.Compose([albumentations.Resize(size, size)])


def our_augmentation(size: int) -> Any:
    """What `fewmask.augment.PairAugment` does, by albumentations."""
    import albumentations
    import cv2

    from fewmask.augment import PairAugment

    ours = PairAugment()
    low, high = ours.scale
    return albumentations.Compose([
        albumentations.Resize(size, size),
        albumentations.HorizontalFlip(p=ours.flip),
        albumentations.Affine(
            scale=(1 / high, 1 / low),  # theirs magnifies where ours widens the window
            translate_percent=(-ours.shift, ours.shift),
            border_mode=cv2.BORDER_REFLECT_101,
            p=1,
        ),
        albumentations.RandomBrightnessContrast(ours.brightness, ours.contrast, p=1),
    ])  # fmt: skip


def smps_augmentation(size: int) -> Any:
    """That of smp's CamVid notebook, for pictures of this size."""
    import albumentations as known

    return known.Compose([
        known.Resize(size, size),
        known.HorizontalFlip(p=0.5),
        known.Affine(scale=(0.5, 1.5), translate_percent=(-0.1, 0.1), p=1),
        known.PadIfNeeded(size, size),
        known.RandomCrop(size, size),
        known.GaussNoise(p=0.2),
        known.Perspective(p=0.5),
        known.OneOf([known.CLAHE(p=1), known.RandomBrightnessContrast(p=1),
                     known.RandomGamma(p=1)], p=0.9),
        known.OneOf([known.Sharpen(p=1), known.Blur(blur_limit=3, p=1),
                     known.MotionBlur(blur_limit=3, p=1)], p=0.9),
        known.OneOf([known.RandomBrightnessContrast(p=1), known.HueSaturationValue(p=1)], p=0.9),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
