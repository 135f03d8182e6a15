"""finetune: from settings to a finished run folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fewmask import decoders
from fewmask.augment import PairAugment
from fewmask.checkpoint import (
    encoder_of,
    load_decoder,
    load_start,
    moved,
    save_weights,
    start_key,
    warnings_of,
)
from fewmask.curves import draw_curves
from fewmask.data.cache import ImageCache, cached_pairs
from fewmask.data.check import PairReport, check_pairs
from fewmask.data.loader import Stream
from fewmask.data.sources import MaskOptions, PairSet, open_pairs
from fewmask.data.split import Budget, Split, order, take
from fewmask.files import write_text_atomic
from fewmask.optimisation import Optimisation
from fewmask.progress import progress, silent
from fewmask.ranks import told_by_the_first
from fewmask.runs import (
    claim,
    config_of,
    held,
    key_of,
    read_result,
    refuse_others,
    split_name,
    write_result,
)
from fewmask.sealed import write_sealed
from fewmask.segmentation import Geometry, SegmentationTask, Segmenter, describe
from fewmask.settings import FinetuneSettings, MaskFlags, Reading
from fewmask.training import Check, Fitted, Run, fit
from fewmask.types import FinetuneResult, Labels, Transfer, UserError
from fewmask.workflows.classes import class_weights, unseen
from fewmask.workflows.launching import launch, provenance, say, say_batch, say_finished
from fewmask.workflows.validation import Validation

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CHECKS = 20
"""How often a run by steps looks at its validation set; a run by epochs does so every epoch."""


@dataclass(frozen=True)
class Prepared:
    """Pairs that were checked, and their pixels at the network's size."""

    pairs: PairSet
    checked: PairReport
    cache: ImageCache


def mask_options(flags: MaskFlags) -> MaskOptions:
    """The part of the settings that says how masks are read."""
    return MaskOptions(flags.border, flags.classes, flags.ignore, flags.mask_values)


def prepare(
    src: str, options: MaskOptions, geometry: Geometry, reading: Reading | None = None
) -> Prepared:
    """Open, check whole and cache the pairs. Raises UserError with all faults at once."""
    reading = reading or Reading()
    pairs = open_pairs(src, options, download=reading.download)
    with progress("checking pairs") as report:
        checked = check_pairs(pairs, progress=report, workers=reading.workers)
    checked.raise_faults()
    with progress("reading pairs") as report:
        cache = cached_pairs(
            pairs,
            checked.labels,
            geometry.size,
            geometry.resize,
            progress=report,
            workers=reading.workers,
        )
    return Prepared(pairs, checked, cache)


def finetune(settings: FinetuneSettings) -> FinetuneResult:
    """Fine-tune on all pairs given; finish a half-finished run; return a finished one's result."""
    with told_by_the_first():
        settings = replace(
            settings.resolved(),
            decoder=decoders.component(settings.decoder),
            encoder=encoder_of(settings.encoder, settings.init),
        )
    return launch(
        settings, partial(_begun, settings), partial(_prepare, settings), _finetune, FinetuneResult
    )


@contextmanager
def _begun(settings: FinetuneSettings) -> Iterator[FinetuneResult | None]:
    """The run's folder, when all is checked, held; the result of a run that is finished."""
    decoders.try_out(settings.decoder, settings.encoder)
    out = Path(settings.out)
    refuse_others(out, config_of(settings))
    prepared = _prepare(settings)
    for warning in prepared.checked.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    budget = own_budget(settings, prepared)
    class_weights(settings.class_weights, prepared.checked, budget.train)
    start_model(settings, prepared.checked.labels)
    key = _key(settings, prepared)
    if done := read_result(out, FinetuneResult, key, "model.safetensors"):
        say_finished(out)
        yield done
        return
    claim(out, config_of(settings))
    with held(out):
        refuse_others(out, config_of(settings))  # another may have claimed it in the same moment
        yield read_result(out, FinetuneResult, key, "model.safetensors")


def _prepare(settings: FinetuneSettings) -> Prepared:
    geometry = Geometry(settings.size, settings.resize)
    return prepare(settings.pairs, mask_options(settings), geometry, settings)


def _key(settings: FinetuneSettings, prepared: Prepared) -> str:
    start = start_key(settings.init, settings.weights, settings.encoder)
    return key_of(config_of(settings), start, prepared.pairs.fingerprint())


def own_budget(settings: FinetuneSettings, prepared: Prepared) -> Budget:
    """All pairs, or the share that --dev or --masks asks for, in training and validation."""
    n = len(prepared.pairs.items)
    asked: float | int = settings.masks or settings.dev or n
    if settings.masks and not 2 <= settings.masks <= n:
        raise UserError(
            f"--masks {settings.masks}: {settings.pairs} holds {n} pairs; expected 2 to {n}"
        )
    whole = Split(test=(), rest=tuple(range(n)), seed=settings.seed)
    return take(order(whole, 0, settings.seed), n, asked, prepared.checked.groups)


def _finetune(fabric: Fabric, settings: FinetuneSettings) -> FinetuneResult:
    prepared = _prepare(settings)
    key = _key(settings, prepared)
    budget = own_budget(settings, prepared)
    segmenter, result, fitted = train(fabric, settings, prepared, budget, key)
    if fabric.is_global_zero:
        save_run(settings, segmenter, prepared, budget, fitted)
        write_result(
            result.out,
            result,
            key=key,
            fingerprint=prepared.pairs.fingerprint(),
            split=split_name(split_of(prepared, budget)),
            compiled=fitted.compiled,
            **provenance(fabric, settings),
        )
    return result


def start_model(
    settings: FinetuneSettings, labels: Labels, tell: Callable[[str], object] | None = None
) -> tuple[Segmenter, Transfer | None]:
    """The model before its first step: random by the seed, its encoder from --init.

    Where that is a run that pre-trained the same decoder, the decoder as well; `tell` gets a line
    of what was loaded beside the encoder.
    """
    torch.manual_seed(settings.seed)
    segmenter = Segmenter(settings.encoder, settings.decoder, labels)
    transfer = load_start(
        segmenter.encoder,
        settings.init,
        name=settings.encoder,
        weights=settings.weights,
        allow_partial=settings.allow_partial,
    )
    line = load_decoder(segmenter.network, settings.init, segmenter.decoder.name)
    if line and tell:
        tell(line)
    try:
        with torch.inference_mode():
            segmenter.eval()(torch.zeros(1, 3, settings.size, settings.size))
    except (RuntimeError, ValueError) as problem:
        why = " ".join(str(problem).split())
        raise UserError(
            f"--decoder {segmenter.decoder.name} on --encoder {settings.encoder} cannot work at "
            f"--size {settings.size} ({why}). Choose a larger --size, or another decoder"
        ) from problem
    return segmenter.train(), transfer


def train(
    fabric: Fabric, settings: FinetuneSettings, prepared: Prepared, budget: Budget, key: str
) -> tuple[Segmenter, FinetuneResult, Fitted]:
    """Train a model on a budget's training pairs; the kept weights are in it afterwards.

    `settings` are resolved ones. Leaves metrics.jsonl in `settings.out`, and a state while under
    way; the rest is `save_run`'s.
    """
    lines: list[str] = []
    segmenter, transfer = start_model(settings, prepared.checked.labels, lines.append)
    say(fabric, f"loaded {transfer.sentence()}" if transfer else "the encoder starts from scratch")
    for warning in warnings_of(settings.init):
        say(fabric, f"warning: {settings.init}: {warning}")
    for line in lines:
        say(fabric, line)
    start = {k: v.clone() for k, v in segmenter.encoder.state_dict().items()}
    stream = Stream(
        prepared.cache,
        budget.train,
        settings.batch_size or 16,
        settings.seed,
        fabric.global_rank,
        fabric.world_size,
    )
    say_batch(fabric, stream, "training pairs")
    steps = settings.steps or (settings.epochs or 1) * stream.steps_per_epoch
    every = stream.steps_per_epoch if settings.epochs else max(1, steps // CHECKS)
    out, loss = Path(settings.out), str(settings.loss)
    weights = class_weights(settings.class_weights, prepared.checked, budget.train)
    for name in unseen(prepared.checked, budget.train):
        say(fabric, f"warning: no training mask holds the class {name}; it cannot be learnt")
    task = SegmentationTask(segmenter, loss, PairAugment() if settings.augment else None, weights)
    check = Check(
        every, Validation(segmenter, prepared.cache, budget.val, loss, fabric.device, weights)
    )
    with progress(f"fine-tuning on {len(budget.train)} pairs") as report:
        heard = report if fabric.is_global_zero else silent
        run = Run(
            out,
            key,
            steps,
            _optimisation(settings),
            settings.keep or "last",
            heard,
            say=partial(say, fabric),
            compile=settings.compile,
            compiles=("segmenter.network",),
        )
        groups = task.groups(1.0 if settings.encoder_lr is None else settings.encoder_lr)
        fitted = fit(fabric, task, groups, stream, run, check)
    final = check.score(steps) if settings.keep != "best" else fitted.best
    result = FinetuneResult(
        out=out,
        encoder=settings.encoder,
        decoder=segmenter.decoder.name,
        steps=fitted.steps,
        seconds=fitted.seconds,
        n_train=len(budget.train),
        n_val=len(budget.val),
        val_loss=final["loss"] or 0.0,
        val_iou=final["iou"],
        best_step=fitted.best_step if settings.keep == "best" else fitted.steps,
        moved=moved(start, segmenter.encoder),
        transfer=transfer,
    )
    return segmenter, result, fitted


def _optimisation(settings: FinetuneSettings) -> Optimisation:
    return Optimisation(
        str(settings.optimizer),
        settings.lr or 0.0,
        settings.weight_decay or 0.0,
        str(settings.schedule),
        settings.warmup or 0.0,
    )


def split_of(prepared: Prepared, budget: Budget) -> dict[str, list[dict[str, str]]]:
    """The pairs that train and those that validate, by name and by their pictures' hashes."""
    items, hashes = prepared.pairs.items, prepared.checked.hashes
    return {
        part: [{"name": items[row].name, "image": hashes[row]} for row in rows]
        for part, rows in (("train", budget.train), ("val", budget.val))
    }


def save_run(
    settings: FinetuneSettings,
    segmenter: Segmenter,
    prepared: Prepared,
    budget: Budget,
    fitted: Fitted,
) -> None:
    """Everything of a fine-tuning run's folder but result.json."""
    out = Path(settings.out)
    geometry = Geometry(settings.size, settings.resize)
    named = split_of(prepared, budget)
    table = prepared.pairs.table
    options = {"src": settings.pairs, **asdict(mask_options(settings))}
    options["table"] = table and list(table.names)
    described = describe(segmenter, geometry) | {"options": options}
    described["flops"] = segmenter.flops(settings.size)
    write_text_atomic(out / "split.json", json.dumps(named, indent=1) + "\n")
    write_sealed(out / "model.json", described)
    for_smp = decoders.smp_config(segmenter.network)
    if for_smp is not None:
        write_text_atomic(out / "config.json", json.dumps(for_smp))
    decoder = segmenter.decoder.name
    save_weights(
        out / "model.safetensors",
        segmenter.network.state_dict(),
        {"encoder": settings.encoder, "decoder": decoder, "format": "pt"},
    )
    draw_curves(fitted.rows, out / "curves.png", f"{decoder} on {settings.encoder}")
