"""pretrain: from settings to a finished run folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fewmask import encoders
from fewmask.checkpoint import encoder_of, load_start, moved, save_weights, start_key
from fewmask.curves import draw_curves, in_words
from fewmask.data.loader import Stream
from fewmask.data.pools import opened_pool, pool_labels
from fewmask.data.reading import Reading
from fewmask.data.sources import ImageSet, open_images
from fewmask.data.store import ImageStore, OnDemand
from fewmask.flags import near
from fewmask.optimisation import Optimisation
from fewmask.pretext import PRETEXTS, Pool, Pretext, PretextModule
from fewmask.progress import progress
from fewmask.ranks import told_by_the_first
from fewmask.runs import claim, config_of, held, key_of, read_result, refuse_others, write_result
from fewmask.settings import PRETRAIN_EPOCHS, PretrainSettings
from fewmask.training import Check, Run, fit
from fewmask.types import PretrainResult, Transfer, UserError
from fewmask.workflows.launching import launch, provenance, say, say_batch, say_finished
from fewmask.workflows.watching import TIMES, Watch, probe_pairs

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def pretrain(settings: PretrainSettings, leave_out: frozenset[str] = frozenset()) -> PretrainResult:
    """Pre-train an encoder; finish a half-finished run; return a finished one's result.

    Images of the names `leave_out` are not trained on; a study names those of its test set. Raises
    UserError for what a user can have wrong, and for a folder that another process works in.
    """
    with told_by_the_first():
        settings = replace(
            settings,
            pretext=component(settings.pretext),
            encoder=encoder_of(settings.encoder, settings.init),
        )
    return launch(
        settings,
        partial(_begun, settings, leave_out),
        partial(open_pool, settings),
        partial(_pretrain, leave_out=leave_out),
        PretrainResult,
    )


@contextmanager
def _begun(
    settings: PretrainSettings, leave_out: frozenset[str]
) -> Iterator[PretrainResult | None]:
    """The run's folder, when all is checked, held; the result of a run that is finished."""
    encoders.smp_name(settings.encoder)
    out = Path(settings.out)
    config = config_of(settings)
    refuse_others(out, config)
    images = try_pretraining(settings, leave_out)
    key = _key(settings, images, leave_out)
    done = read_result(out, PretrainResult, key, "encoder.safetensors")
    if done:
        say_finished(out)
        yield done
        return
    claim(out, config)
    with held(out):
        refuse_others(out, config)  # another may have claimed it in the same moment
        yield read_result(out, PretrainResult, key, "encoder.safetensors")


def try_pretraining(
    settings: PretrainSettings, leave_out: frozenset[str] = frozenset()
) -> ImageSet:
    """Everything that a user can have wrong, before the first step. Raises UserError."""
    encoder, _, _ = started_encoder(settings)
    images, store = open_pool(settings, download=settings.download)
    if store.side * 2 < settings.size:
        print(
            f"warning: {settings.images}: half of the pictures have a short side of {store.side} "
            f"px or less; --size {settings.size} only enlarges them",
            file=sys.stderr,
        )
    rows = _kept(store, settings, leave_out)
    probe_pairs(settings)
    with torch.random.fork_rng(devices=[]):  # what doesn't go together says so when it is built
        _task(settings, images, len(rows), settings.batch_size, 1, encoder)
    return images


def _task(
    settings: PretrainSettings,
    images: ImageSet,
    n: int,
    batch_size: int,
    steps: int,
    encoder: nn.Module,
) -> PretextModule:
    """The pretext task on an encoder. Raises UserError where they don't go together."""
    # A single class folder gives no labels, but its name says why.
    names = images.label_names if images.labels or len(images.label_names) == 1 else ()
    pool = Pool(n, batch_size, steps, names)
    task: PretextModule = component(settings.pretext).task(encoder, settings.size, pool)
    return task


def _key(settings: PretrainSettings, images: ImageSet, leave_out: frozenset[str]) -> str:
    start = start_key(settings.init, settings.weights, settings.encoder)
    return key_of(config_of(settings), start, *pool_facts(images, leave_out))


def pool_facts(images: ImageSet, leave_out: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """What a key says of the pool: its content, and the names of what is left out, if anything."""
    return (images.fingerprint(), *(("left out", *sorted(leave_out)) if leave_out else ()))


def _kept(
    store: ImageStore, settings: PretrainSettings, leave_out: frozenset[str]
) -> NDArray[np.int64]:
    """The rows of a pool that are trained on. Raises UserError where fewer than two are left."""
    if not leave_out:
        return np.arange(len(store.names))
    rows = [row for row, name in enumerate(store.names) if name not in leave_out]
    if len(rows) < 2:
        raise UserError(
            f"{settings.images}: {len(rows)} images are left without the {len(leave_out)} that "
            "are left out; pre-training compares at least 2. Name a pool without the test pictures"
        )
    return np.array(rows, np.int64)


def open_pool(settings: PretrainSettings, *, download: bool = False) -> tuple[ImageSet, ImageStore]:
    """The images and their pixels. Raises UserError where fewer than two can be used."""
    images = open_images(settings.images, download=download)
    with progress("reading images") as report:
        store = opened_pool(
            images,
            settings.size,
            settings.resize,
            cache_gb=settings.cache_gb,
            progress=report,
            workers=settings.workers,
        )
    if len(store.names) < 2:
        raise UserError(
            f"{settings.images}: {len(store.names)} usable image; pre-training compares at least 2"
        )
    return images, store


def component(pretext: str | Pretext) -> Pretext:
    """The pretext task of a name, with its defaults. Raises UserError naming the near ones."""
    if not isinstance(pretext, str):
        return pretext
    if pretext not in PRETEXTS:
        known = list(PRETEXTS)
        raise UserError(
            f"unknown pretext task {pretext}{near(pretext, known)}; known: {', '.join(known)}"
        )
    return PRETEXTS[pretext]()


def _pretrain(
    fabric: Fabric, settings: PretrainSettings, leave_out: frozenset[str]
) -> PretrainResult:
    images, store = open_pool(settings)
    rows = _kept(store, settings, leave_out)
    out = Path(settings.out)
    key = _key(settings, images, leave_out)
    if isinstance(store, OnDemand):
        say(fabric, f"{images.src}: {len(rows)} images, decoded as they are used")
    _say_skipped(fabric, store, "left out")
    stream = _pool_stream(images, store, rows, settings, fabric)
    encoder, transfer, start = started_encoder(settings)
    if transfer:
        say(fabric, f"loaded {transfer.sentence()}")
    steps = settings.steps or (settings.epochs or PRETRAIN_EPOCHS) * stream.steps_per_epoch
    torch.manual_seed(settings.seed + 1)
    task = _task(settings, images, len(rows), stream.size, steps, encoder)
    task.to(memory_format=torch.channels_last)
    name = component(settings.pretext).name
    with progress(f"{name} on {images.pool}") as report:
        optimisation = _optimisation(settings, task, stream.size)
        reading = Reading(settings.workers, settings.memory_gb)
        run = Run(
            out,
            key,
            steps,
            optimisation,
            "last",
            report,
            reading,
            say=partial(say, fabric),
            words=in_words,
            compile=settings.compile,
            compiles=("encoder",),
        )
        pairs = probe_pairs(settings)
        watch = Watch(fabric, task, store, rows, settings.size, settings.seed, out, pairs)
        watch.begin()
        check = Check(-(-steps // TIMES), watch, prefix="")
        fitted = fit(fabric, task, task.groups(), stream, run, check)
    if isinstance(store, OnDemand):
        _say_skipped(fabric, store, "met, the next one in the place of each")
    last = fitted.rows[-1] if fitted.rows else {}
    change = moved(start, encoder)
    wrong = [watch.warned] if watch.warned else []
    if change == 0:
        wrong.append("the encoder has not moved from its start: nothing was learnt")
    result = PretrainResult(
        out=out,
        encoder=settings.encoder,
        pretext=name,
        steps=fitted.steps,
        seconds=fitted.seconds,
        images=len(rows),
        loss=fitted.loss,
        moved=change,
        transfer=transfer,
        probe_iou=last.get("probe_iou"),
        probe_iou_start=watch.start.get("probe_iou"),
        signals=in_words(last),
        warnings=tuple(wrong),
    )
    if fabric.is_global_zero:
        _save_weights(result, key, encoder, task)
        draw_curves(fitted.rows, out / "curves.png", f"{name} on {images.pool}")
        write_result(
            out,
            result,
            key=key,
            pool=images.pool,
            fingerprint=images.fingerprint(),
            skipped=list(store.skipped),
            left_out=len(store.names) - len(rows),
            compiled=fitted.compiled,
            start=watch.start,
            last=last,
            **provenance(fabric, settings),
        )
    return result


def _say_skipped(fabric: Fabric, store: ImageStore, how: str) -> None:
    if store.skipped:
        n, first = len(store.skipped), store.skipped[0]
        say(fabric, f"warning: {n} undecodable images {how}, the first: {first}")


def _optimisation(settings: PretrainSettings, task: PretextModule, batch: int) -> Optimisation:
    return Optimisation(
        settings.optimizer,
        settings.lr or default_lr(settings.optimizer, batch) * task.rate,
        settings.weight_decay,
        settings.schedule,
        settings.warmup,
        task.beta1,
    )


def _save_weights(
    result: PretrainResult, key: str, encoder: nn.Module, task: PretextModule
) -> None:
    """The encoder, and the decoder where the task has pre-trained one."""
    path = result.out / "encoder.safetensors"
    save_weights(path, encoder.state_dict(), {"encoder": result.encoder, "key": key})
    if task.decoder is not None:
        path = result.out / "decoder.safetensors"
        save_weights(path, task.decoder.state_dict(), {"key": key})


def _pool_stream(
    images: ImageSet,
    store: ImageStore,
    rows: NDArray[np.int64],
    settings: PretrainSettings,
    fabric: Fabric,
) -> Stream:
    stream = Stream(
        store,
        rows,
        settings.batch_size,
        settings.seed,
        fabric.global_rank,
        fabric.world_size,
        drop_last=True,
        labels=pool_labels(images, store),
        shards=images.shards,
    )
    say_batch(fabric, stream, "images")
    return stream


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
    transfer = load_start(
        encoder,
        settings.init,
        name=settings.encoder,
        weights=settings.weights,
        allow_partial=settings.allow_partial,
    )
    return encoder, transfer, {k: v.clone() for k, v in encoder.state_dict().items()}
