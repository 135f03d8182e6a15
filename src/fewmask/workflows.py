"""pretrain and finetune: the wiring from settings to a finished run folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fewmask import decoders, encoders
from fewmask.augment import PairAugment, to_unit
from fewmask.checkpoint import load_start, moved, save_weights
from fewmask.files import write_text_atomic
from fewmask.curves import draw_curves
from fewmask.data.cache import ImageCache, cached_images, cached_pairs
from fewmask.data.check import PairReport, check_pairs
from fewmask.data.loader import Stream
from fewmask.data.sources import ImageSet, MaskOptions, PairSet, open_images, open_pairs
from fewmask.data.split import Budget, Split, order, take
from fewmask.flags import near
from fewmask.losses import SEGMENTATION_LOSSES
from fewmask.metrics import confusion, scores
from fewmask.pretext import PRETEXTS, Pretext
from fewmask.progress import progress, silent
from fewmask.runs import claim, config_of, key_of, read_result, write_result
from fewmask.segmentation import (
    Geometry,
    SegmentationTask,
    Segmenter,
    describe,
    predicted,
)
from fewmask.settings import FinetuneSettings, MaskFlags, PretrainSettings
from fewmask.training import Check, Fitted, Optimisation, Run, fit, make_fabric
from fewmask.types import FinetuneResult, Labels, PretrainResult, Transfer, UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Result = TypeVar("Result")

CHECKS = 20
"""How often a run by steps looks at its validation set; a run by epochs does so every epoch."""


def say(fabric: Fabric, text: str) -> None:
    if fabric.is_global_zero:
        print(text, file=sys.stderr, flush=True)


def launch(settings: Any, work: Callable[[Fabric, Any], Result]) -> Result:
    """Run `work` in `settings.devices` processes; the result and the mistakes are the first's."""
    fabric = make_fabric(settings.device, settings.devices, settings.precision)
    if settings.devices == 1:
        return work(fabric, settings)
    found = fabric.launch(_guarded, work, settings)
    if isinstance(found, UserError):
        raise found
    return found  # type: ignore[no-any-return]


def _guarded(fabric: Fabric, work: Callable[[Fabric, Any], Result], settings: Any) -> Any:
    # A mistake raised in a spawned process would reach the user as a traceback in a string.
    try:
        return work(fabric, settings)
    except UserError as mistake:
        return mistake


# --- pre-training --------------------------------------------------------------------------------


def pretrain(settings: PretrainSettings) -> PretrainResult:
    """Pre-train an encoder; finish a half-finished run; return a finished one's result."""
    settings = replace(settings, pretext=component(settings.pretext))
    encoders.smp_name(settings.encoder)
    make_fabric(settings.device, 1, settings.precision)
    open_images(settings.images, download=settings.download)
    out = Path(settings.out)
    claim(out, config_of(settings))
    return read_result(out, PretrainResult) or launch(settings, _pretrain)


def component(pretext: str | Pretext) -> Pretext:
    """The pretext task of a name, with its defaults. Raises UserError naming the near ones."""
    if not isinstance(pretext, str):
        return pretext
    if pretext not in PRETEXTS:
        known = list(PRETEXTS)
        raise UserError(f"unknown pretext task {pretext}{near(pretext, known)}; "
                        f"known: {', '.join(known)}")
    return PRETEXTS[pretext]()


def _pretrain(fabric: Fabric, settings: PretrainSettings) -> PretrainResult:
    images = open_images(settings.images)
    out = Path(settings.out)
    key = key_of(config_of(settings), images.fingerprint())
    with progress("reading images") as report:
        side = store_side(images, settings.size)
        cache = cached_images(images, side, settings.resize, progress=report)
    if cache.skipped:
        say(fabric, f"warning: {len(cache.skipped)} undecodable images left out, the first: "
                    f"{cache.skipped[0]}")
    stream = _pool_stream(cache, settings, fabric)
    encoder, transfer, start = started_encoder(settings)
    if transfer:
        say(fabric, f"loaded {transfer.sentence()}")
    torch.manual_seed(settings.seed + 1)
    task: nn.Module = component(settings.pretext).task(encoder, settings.size)
    task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    epochs = settings.epochs or 20
    steps = settings.steps or epochs * stream.steps_per_epoch
    optimisation = Optimisation(
        settings.optimizer, settings.lr or default_lr(settings.optimizer, stream.size),
        settings.weight_decay, settings.schedule, settings.warmup,
    )
    title = f"{getattr(settings.pretext, 'name', 'pretext')} on {images.pool}"
    with progress(title) as report:
        run = Run(out, key, steps, optimisation, "last", report)
        fitted = fit(fabric, task, [(1.0, task)], stream, run)
    result = PretrainResult(
        out=out, encoder=settings.encoder, pretext=component(settings.pretext).name,
        steps=fitted.steps, seconds=fitted.seconds, images=len(cache.names), loss=fitted.loss,
        moved=moved(start, encoder), transfer=transfer,
    )
    if fabric.is_global_zero:
        save_weights(out / "encoder.safetensors", encoder.state_dict(),
                     {"encoder": settings.encoder, "key": key})
        draw_curves(fitted.rows, out / "curves.png", title)
        write_result(out, result, key=key, pool=images.pool, fingerprint=images.fingerprint(),
                     skipped=list(cache.skipped), last=fitted.rows[-1] if fitted.rows else {})
    return result


def _pool_stream(cache: ImageCache, settings: PretrainSettings, fabric: Fabric) -> Stream:
    n = len(cache.names)
    if n < 2:
        raise UserError(f"{settings.images}: {n} usable image; pre-training compares at least 2")
    if n < settings.batch_size:
        say(fabric, f"warning: --batch-size {settings.batch_size} is more than the {n} images "
                    f"there are; {n} are used")
    return Stream(cache, range(n), settings.batch_size, settings.seed,
                  fabric.global_rank, fabric.world_size, drop_last=True)


def store_side(images: ImageSet, size: int) -> int:
    """The side at which a pool is cached: room for crops, but never more than the pool has.

    4/3 of the network's side, or the median short side of 16 pictures where that is less.
    """
    from fewmask.data.images import Undecodable

    sides = []
    for i in np.linspace(0, len(images.items) - 1, min(16, len(images.items))).astype(int):
        try:
            sides.append(min(images.items[i].pixels().shape[:2]))
        except Undecodable:
            continue
    median = int(np.median(sides)) if sides else size
    return max(16, min(round(size * 4 / 3), median))


def default_lr(optimizer: str, batch_size: int) -> float:
    """The base rate where none is given, scaled by the square root of the batch."""
    at_256 = {"adam": 1e-3, "adamw": 1e-3, "sgd": 0.06, "lars": 0.3}
    return at_256[optimizer] * float((batch_size / 256) ** 0.5)


def started_encoder(
    settings: PretrainSettings,
) -> tuple[nn.Module, Transfer | None, dict[str, Tensor]]:
    """An encoder at its start: itself, what was loaded, and a copy of its weights."""
    torch.manual_seed(settings.seed)
    encoder = encoders.build(settings.encoder)
    transfer = load_start(encoder, settings.init, name=settings.encoder,
                          weights=settings.weights, allow_partial=settings.allow_partial)
    return encoder, transfer, {k: v.clone() for k, v in encoder.state_dict().items()}


# --- fine-tuning ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """Pairs that were checked, and their pixels at the network's size."""

    pairs: PairSet
    checked: PairReport
    cache: ImageCache


def mask_options(flags: MaskFlags) -> MaskOptions:
    return MaskOptions(flags.border, flags.classes, flags.ignore, flags.mask_values)


def prepare(
    src: str, options: MaskOptions, geometry: Geometry, *, download: bool = False,
    labels: Labels | None = None,
) -> Prepared:
    """Open, check whole and cache the pairs. Raises UserError with all faults at once."""
    pairs = open_pairs(src, options, download=download)
    with progress("checking pairs") as report:
        checked = check_pairs(pairs, labels, progress=report)
    checked.raise_faults()
    with progress("reading pairs") as report:
        cache = cached_pairs(pairs, checked.labels, geometry.size, geometry.resize,
                             progress=report)
    return Prepared(pairs, checked, cache)


def finetune(settings: FinetuneSettings) -> FinetuneResult:
    """Fine-tune on all pairs given; finish a half-finished run; return a finished one's result."""
    settings = settings.resolved()
    encoders.smp_name(settings.encoder)
    decoders.check_name(settings.decoder)
    make_fabric(settings.device, 1, settings.precision)
    prepared = prepare(settings.pairs, mask_options(settings),
                       Geometry(settings.size, settings.resize), download=settings.download)
    for warning in prepared.checked.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    own_budget(settings, prepared)
    start_model(settings, prepared.checked.labels)
    out = Path(settings.out)
    claim(out, config_of(settings))
    return read_result(out, FinetuneResult) or launch(settings, _finetune)


def own_budget(settings: FinetuneSettings, prepared: Prepared) -> Budget:
    """All pairs, or the share that --dev or --masks asks for, in training and validation."""
    n = len(prepared.pairs.items)
    asked: float | int = settings.masks or settings.dev or n
    whole = Split(test=(), rest=tuple(range(n)), seed=settings.seed)
    return take(order(whole, 0, settings.seed), n, asked, prepared.checked.groups)


def _finetune(fabric: Fabric, settings: FinetuneSettings) -> FinetuneResult:
    prepared = prepare(settings.pairs, mask_options(settings),
                       Geometry(settings.size, settings.resize))
    key = key_of(config_of(settings), prepared.pairs.fingerprint())
    budget = own_budget(settings, prepared)
    segmenter, result, fitted = train(fabric, settings, prepared, budget, key)
    if fabric.is_global_zero:
        save_run(settings, segmenter, prepared, budget, fitted)
        write_result(result.out, result, key=key, fingerprint=prepared.pairs.fingerprint())
    return result


def start_model(settings: FinetuneSettings, labels: Labels) -> tuple[Segmenter, Transfer | None]:
    """The model before its first step: random by the seed, its encoder from --init."""
    torch.manual_seed(settings.seed)
    segmenter = Segmenter(settings.encoder, settings.decoder, labels)
    transfer = load_start(segmenter.encoder, settings.init, name=settings.encoder,
                          weights=settings.weights, allow_partial=settings.allow_partial)
    return segmenter, transfer


def train(
    fabric: Fabric, settings: FinetuneSettings, prepared: Prepared, budget: Budget, key: str
) -> tuple[Segmenter, FinetuneResult, Fitted]:
    """Train a model on a budget's training pairs; the kept weights are in it afterwards.

    `settings` are resolved ones. Leaves metrics.jsonl in `settings.out`, and a state while under
    way; the rest is `save_run`'s.
    """
    segmenter, transfer = start_model(settings, prepared.checked.labels)
    say(fabric, f"loaded {transfer.sentence()}" if transfer else "the encoder starts from scratch")
    start = {k: v.clone() for k, v in segmenter.encoder.state_dict().items()}
    stream = Stream(prepared.cache, budget.train, settings.batch_size or 16, settings.seed,
                    fabric.global_rank, fabric.world_size)
    steps = settings.steps or (settings.epochs or 1) * stream.steps_per_epoch
    every = stream.steps_per_epoch if settings.epochs else max(1, steps // CHECKS)
    loss = str(settings.loss)
    task = SegmentationTask(segmenter, loss, PairAugment() if settings.augment else None)
    check = Check(every, Validation(segmenter, prepared.cache, budget.val, loss, fabric.device))
    optimisation = Optimisation(str(settings.optimizer), settings.lr or 0.0,
                                settings.weight_decay or 0.0, str(settings.schedule),
                                settings.warmup or 0.0)
    out = Path(settings.out)
    with progress(f"fine-tuning on {len(budget.train)} pairs") as report:
        run = Run(out, key, steps, optimisation, settings.keep or "last",
                  report if fabric.is_global_zero else silent)
        fitted = fit(fabric, task, task.groups(settings.encoder_lr or 1.0), stream, run, check)
    final = check.score() if settings.keep != "best" else fitted.best
    result = FinetuneResult(
        out=out, encoder=settings.encoder, decoder=settings.decoder, steps=fitted.steps,
        seconds=fitted.seconds, n_train=len(budget.train), n_val=len(budget.val),
        val_loss=final["loss"] or 0.0, val_iou=final["iou"],
        best_step=fitted.best_step if settings.keep == "best" else fitted.steps,
        moved=moved(start, segmenter.encoder), transfer=transfer,
    )
    return segmenter, result, fitted


@dataclass(frozen=True)
class Validation:
    """Loss and IoU over the validation pairs, at the network's size."""

    segmenter: Segmenter
    cache: ImageCache
    rows: Sequence[int]
    loss: str
    device: torch.device

    def __call__(self) -> dict[str, float | None]:
        if self.cache.masks is None:
            raise ValueError("validation needs masks")
        was = self.segmenter.training
        self.segmenter.eval()
        losses: list[float] = []
        k = self.segmenter.labels.n_classes
        counts = np.zeros((k, k), np.int64)
        with torch.inference_mode():
            for row in self.rows:
                image = torch.from_numpy(self.cache.images[row].copy()).permute(2, 0, 1)[None]
                truth = np.array(self.cache.masks[row])
                logits = self.segmenter(to_unit(image.to(self.device))).cpu()
                target = torch.from_numpy(truth)[None]
                parts = [SEGMENTATION_LOSSES[part](logits, target) for part in self.loss.split("+")]
                losses.append(float(sum(parts)))
                counts += confusion(truth, predicted(logits)[0].numpy(), k)
        self.segmenter.train(was)
        return {"loss": float(np.mean(losses)), "iou": scores(counts)["iou"]}


def save_run(
    settings: FinetuneSettings, segmenter: Segmenter, prepared: Prepared, budget: Budget,
    fitted: Fitted,
) -> None:
    """Everything of a fine-tuning run's folder but result.json."""
    out = Path(settings.out)
    geometry = Geometry(settings.size, settings.resize)
    items, hashes = prepared.pairs.items, prepared.checked.hashes
    named = {part: [{"name": items[row].name, "image": hashes[row]} for row in rows]
             for part, rows in (("train", budget.train), ("val", budget.val))}
    options = {"src": settings.pairs, **asdict(mask_options(settings))}
    described = describe(segmenter, geometry) | {"options": options}
    write_text_atomic(out / "split.json", json.dumps(named, indent=1) + "\n")
    write_text_atomic(out / "model.json", json.dumps(described) + "\n")
    write_text_atomic(out / "config.json", json.dumps(decoders.smp_config(segmenter.network)))
    save_weights(out / "model.safetensors", segmenter.network.state_dict(),
                 {"encoder": settings.encoder, "decoder": settings.decoder, "format": "pt"})
    draw_curves(fitted.rows, out / "curves.png", f"{settings.decoder} on {settings.encoder}")
