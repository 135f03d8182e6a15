"""fewmask's `imagenet` arm against a careful user's own smp loop, on the same splits.

    python benchmarks/by_hand.py STUDY --weights FILE --out results/by-hand

STUDY is a study folder whose cells of the `imagenet` arm at budget 0.2 are done (all repeats). The
loop below is plain smp and torchvision: smp's U-Net on DenseNet-121 with the same ImageNet weights,
96 px squashed, random flip, scale 0.6-1.2, shift, brightness and contrast, BCE + Dice, AdamW with
one cycle (encoder 2e-4, decoder 1e-3), 420 steps of 16, the border ignored in training. It trains
on the study's own training pairs of each repeat and is scored by fewmask's evaluation on the same
test pairs. A repeat that is done is not done again. Writes repeat-N.json and comparison.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from scipy import stats
from torchvision import tv_tensors
from torchvision.transforms import v2

from fewmask.data.check import check_pairs
from fewmask.data.images import resize_image, resize_mask
from fewmask.data.sources import MaskOptions, PairSet, open_pairs
from fewmask.devices import computes_bf16
from fewmask.evaluation import score_pairs
from fewmask.metrics import aggregate
from fewmask.segmentation import Geometry, Segmenter

SIZE, STEPS, BATCH = 96, 420, 16


def by_hand(images: torch.Tensor, masks: torch.Tensor, weights: str, seed: int) -> torch.nn.Module:
    """A plain smp training loop. Images uint8 [N,3,H,W], masks uint8 [N,H,W] (255 ignored)."""
    torch.manual_seed(seed)
    model = smp.Unet("densenet121", encoder_weights=None, classes=1)
    state = {k: v.float() for k, v in load_file(weights).items() if k.startswith("features.")}
    model.encoder.load_state_dict(state)  # smp: strict
    augment = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(
                0,
                translate=(0.1, 0.1),
                scale=(0.6, 1.2),
                interpolation=v2.InterpolationMode.BILINEAR,
                fill={tv_tensors.Image: [124, 116, 104], tv_tensors.Mask: 255},
            ),
            v2.ColorJitter(brightness=0.2, contrast=0.2),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: None}, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    heads = [*model.decoder.parameters(), *model.segmentation_head.parameters()]
    groups = [{"params": model.encoder.parameters()}, {"params": heads}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, [2e-4, 1e-3], total_steps=STEPS)
    bce = smp.losses.SoftBCEWithLogitsLoss(ignore_index=255)
    dice = smp.losses.DiceLoss("binary", ignore_index=255)
    model.train()
    order: list[int] = []
    for step in range(STEPS):
        if len(order) < BATCH:
            order = torch.randperm(len(images)).tolist()
        rows, order = order[:BATCH], order[BATCH:]
        pairs = [augment(tv_tensors.Image(images[r]), tv_tensors.Mask(masks[r])) for r in rows]
        x = torch.stack([image for image, _ in pairs])
        y = torch.stack([mask for _, mask in pairs])[:, None]
        with torch.autocast("cpu", torch.bfloat16, enabled=computes_bf16("cpu")):
            logits = model(x)
        loss = bce(logits.float(), y.float()) + dice(logits.float(), y.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
        if (step + 1) % 60 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    trained: torch.nn.Module = model.eval()
    return trained


def one_repeat(
    study: Path, pairs: PairSet, cell: dict[str, Any], weights: str, seed: int
) -> dict[str, Any]:
    """Train by hand on a cell's training pairs and score on the study's test pairs."""
    labels = check_pairs(pairs).labels
    by_name = {pair.name: pair for pair in pairs.items}
    split = json.loads((study / "cells" / cell["key"] / "split.json").read_text())
    lut = np.asarray(labels.lut, np.uint8)
    train = [by_name[entry["name"]] for entry in split["train"]]
    images = [resize_image(pair.image.pixels(), SIZE, "square")[0] for pair in train]
    masks = [resize_mask(lut[pair.mask.values()], SIZE, "square") for pair in train]
    began = time.monotonic()
    model = by_hand(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        torch.from_numpy(np.stack(masks)),
        weights,
        seed,
    )
    seconds = time.monotonic() - began
    segmenter = Segmenter("densenet121", "unet", labels)
    segmenter.network.load_state_dict(model.state_dict())
    tested = json.loads((study / "splits.json").read_text())["test"]
    found = score_pairs(
        segmenter,
        Geometry(SIZE, "square"),
        [by_name[n] for n in tested],
        labels,
        torch.device("cpu"),
    )
    dataset, _, _ = aggregate(found, labels.names)
    return {
        "repeat": cell["repeat"],
        "n_train": len(train),
        "seconds": seconds,
        "by_hand": dataset,
        "fewmask": {k: cell.get(k) for k in dataset},
    }


def compare(out: Path) -> dict[str, Any]:
    """The paired difference in IoU (fewmask less by hand), 95 % t interval over repeats."""
    runs = [json.loads(p.read_text()) for p in sorted(out.glob("repeat-*.json"))]
    ours = np.array([run["fewmask"]["iou"] for run in runs])
    theirs = np.array([run["by_hand"]["iou"] for run in runs])
    table = {
        "repeats": len(runs),
        "fewmask_iou": ours.tolist(),
        "by_hand_iou": theirs.tolist(),
        "difference_mean": float((ours - theirs).mean()),
    }
    if len(runs) > 2:
        interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        table["difference_95"] = [float(interval.low), float(interval.high)]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--pairs", default="oxford-iiit-pet:")
    parser.add_argument("--out", type=Path, default=Path("results/by-hand"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pairs = open_pairs(given.pairs, MaskOptions())
    cells = [json.loads(p.read_text()) for p in given.study.glob("cells/*/result.json")]
    cells = [c for c in cells if c["arm"] == "imagenet" and c["budget"] == 0.2]
    for cell in sorted(cells, key=lambda c: c["repeat"]):
        path = given.out / f"repeat-{cell['repeat']}.json"
        if not path.exists():
            found = one_repeat(given.study, pairs, cell, given.weights, seed=cell["repeat"])
            path.write_text(json.dumps(found, indent=1) + "\n")
            print(path, found["by_hand"]["iou"], found["fewmask"]["iou"], flush=True)
        table = compare(given.out)
        (given.out / "comparison.json").write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(compare(given.out), indent=1))


if __name__ == "__main__":
    main()
