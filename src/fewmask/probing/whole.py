"""A classifier trained whole: the encoder and a linear head, from where the encoder stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fewmask.curves import draw_curves
from fewmask.data.cache import ImageCache
from fewmask.data.loader import Stream
from fewmask.devices import make_fabric
from fewmask.files import reading, write_json_atomic
from fewmask.optimisation import Optimisation
from fewmask.plainfiles import read_plain_text
from fewmask.pretext.contract import Pool
from fewmask.pretext.supervised import Supervised, SupervisedTask
from fewmask.probing.features import frozen_features
from fewmask.probing.splits import Draw, Rows
from fewmask.progress import Report
from fewmask.settings import ProbeSettings
from fewmask.training import Check, Run, fit

STEPS, BATCH_SIZE, RATE = 500, 64, 5e-4
CHECKS = 10


@dataclass(frozen=True)
class Labelled:
    """A pool with its classes, as the network sees it."""

    cache: ImageCache
    labels: Rows
    names: Sequence[str]
    size: int


def whole_probe(
    encoder: nn.Module,
    data: Labelled,
    draw: Draw,
    settings: ProbeSettings,
    number: int,
    folder: Path,
    key: str,
    report: Report,
) -> Rows:
    """Classes [n_test] by a classifier trained on the draw's training rows; `encoder` stays as is.

    AdamW at one rate for encoder and head (--lr, 5e-4), warm-up and cosine, on the views and with
    the label smoothing of `--pretext supervised`; the last weights are taken. `folder` keeps the
    log, the curves and the answers: what is done is not done again, what was killed goes on.
    """
    done = folder / "answers.json"
    if done.exists():
        with reading(done, "Remove it, and the same command trains that classifier again"):
            table = json.loads(read_plain_text(done))
            if table["key"] == key:
                (folder / "state.pt").unlink(missing_ok=True)  # killed when it was just done
                return np.asarray(table["answers"], np.int64)
    fabric = make_fabric(settings.device, 1, settings.precision)
    steps = settings.steps or STEPS
    size = min(settings.batch_size or BATCH_SIZE, len(draw.train))
    rows, seed = draw.train.tolist(), settings.seed + number
    stream = Stream(data.cache, rows, size, seed, labels=data.labels)
    torch.manual_seed(seed)
    pool = Pool(len(draw.train), size, steps, tuple(data.names))
    task = Supervised().task(deepcopy(encoder), data.size, pool)
    optimisation = Optimisation("adamw", settings.lr or RATE, 1e-4, "cosine", 0.1)

    def score(_: int) -> dict[str, float | None]:
        logits = logits_of(task, data, draw.val)
        labels = torch.from_numpy(data.labels[draw.val])
        right = (logits.argmax(dim=1) == labels).float().mean()
        return {"loss": float(functional.cross_entropy(logits, labels)), "accuracy": float(right)}

    run = Run(folder, key, steps, optimisation, "last", report)
    fitted = fit(fabric, task, task.groups(), stream, run, Check(max(1, steps // CHECKS), score))
    answers = logits_of(task, data, draw.test).argmax(dim=1).tolist()
    draw_curves(fitted.rows, folder / "curves.png", f"classifier on {len(draw.train)} images")
    write_json_atomic(done, {"key": key, "answers": answers})
    (folder / "state.pt").unlink(missing_ok=True)
    return np.asarray(answers, np.int64)


def logits_of(task: SupervisedTask, data: Labelled, rows: Rows) -> torch.Tensor:
    """Logits float32 [n,K] of rows of the pool, on the CPU."""
    device = task.head.weight.device
    features = frozen_features(task.encoder, data.cache, rows, data.size, device)
    with torch.inference_mode():
        logits: torch.Tensor = task.head(features.to(device)).float().cpu()
    return logits
