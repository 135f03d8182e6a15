"""fewmask probe: how far an encoder's features tell labelled classes apart."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fewmask import encoders
from fewmask.checkpoint import load_start, start_file, start_key, told_by
from fewmask.data.pools import cached_pool, pool_labels
from fewmask.data.sources import ImageSet, open_images
from fewmask.devices import pick_device
from fewmask.probing.classifiers import knn_probe, linear_probe
from fewmask.probing.features import frozen_features
from fewmask.probing.outcome import Answer, read_back, result_of, write_files
from fewmask.probing.splits import Draw, draw, held_out, require_enough, same_pictures
from fewmask.probing.whole import Labelled, whole_probe
from fewmask.progress import progress
from fewmask.runs import claim, config_of, key_of, read_result, refuse_others, write_result
from fewmask.settings import ProbeSettings
from fewmask.types import ProbeResult, Transfer, UserError

SIZE = 224
"""Side in pixels where neither flag nor run says one."""


def probe(settings: ProbeSettings) -> ProbeResult:
    """Probe an encoder; finish a half-finished folder; return a finished one's result.

    Raises UserError before anything is written.
    """
    device = pick_device(settings.device)
    settings = described(settings)
    out = Path(settings.out)
    config = config_of(settings)
    refuse_others(out, config)
    tested, transfer = started(settings)
    images = open_images(settings.images, download=settings.download)
    if images.labels is None:
        only = f"only the class {images.label_names[0]}" if images.label_names else "no classes"
        raise UserError(
            f"{settings.images}: has {only}; expected a folder of images for each class "
            "(SRC/cat/1.jpg, SRC/dog/1.jpg), cats-vs-dogs: or cifar10:"
        )
    key = key_of(config, start_key(*_start(settings)), images.fingerprint())
    finished = read_result(out, ProbeResult, key)
    if finished:
        return read_back(finished)
    data = _opened(settings, images)
    draws = _draws(settings, data)
    claim(out, config)
    compared: dict[str, nn.Module] = {"run": tested}
    if settings.reference and settings.run != "scratch":
        torch.manual_seed(settings.seed)
        compared["random"] = encoders.build(settings.encoder or "")
    answers = [
        answer
        for name, encoder in compared.items()
        for answer in _answers(name, encoder.to(device), data, draws, settings, key)
    ]
    result = result_of(settings, data, draws, answers, transfer)
    write_files(settings, result, data, draws, answers)
    write_result(out, result, key=key, fingerprint=images.fingerprint())
    return result


def described(settings: ProbeSettings) -> ProbeSettings:
    """The same with encoder, size and resize filled in from the run, where no flag says them.

    Raises UserError where neither names an encoder.
    """
    said = told_by(settings.run)
    encoder = settings.encoder or said.get("encoder")
    if encoder is None:
        if settings.run not in ("scratch", "imagenet"):
            with _no_flag():
                start_file(settings.run)  # perhaps there is no such run at all
        raise UserError(f"--encoder is missing; {settings.run} does not say which one it is")
    return replace(
        settings,
        encoder=encoder,
        size=settings.size or said.get("size") or SIZE,
        resize=settings.resize or said.get("resize") or "square",
    )


def _start(settings: ProbeSettings) -> tuple[str, str | None, str]:
    return settings.run, settings.weights, settings.encoder or ""


def started(settings: ProbeSettings) -> tuple[nn.Module, Transfer | None]:
    """The encoder that is probed. Raises UserError as `load_start` does."""
    torch.manual_seed(settings.seed)
    encoder = encoders.build(settings.encoder or "")
    with _no_flag():
        transfer = load_start(
            encoder,
            settings.run,
            name=settings.encoder or "",
            weights=settings.weights,
            allow_partial=settings.allow_partial,
        )
    return encoder, transfer


@contextmanager
def _no_flag() -> Iterator[None]:
    """Mistakes about a start that is no flag here."""
    try:
        yield
    except UserError as mistake:
        raise UserError(*(fault.replace("--init ", "") for fault in mistake.faults)) from None


def _opened(settings: ProbeSettings, images: ImageSet) -> Labelled:
    """The pool's pixels and classes. Raises UserError where a class is too small."""
    size, resize = settings.size or SIZE, settings.resize or "square"
    require_enough(np.asarray(images.labels), images.label_names, settings.images)
    with progress("reading images") as report:
        cache = cached_pool(images, size, resize, progress=report, workers=settings.workers)
    labels = pool_labels(images, cache)
    if labels is None:
        raise ValueError("the images were checked to have classes")
    require_enough(labels, images.label_names, settings.images)
    return Labelled(cache, labels, images.label_names, size)


def _draws(settings: ProbeSettings, data: Labelled) -> list[Draw]:
    """The test set, and what each draw trains on."""
    test = held_out(data.labels, same_pictures(data.cache), settings.test, settings.seed)
    numbers = range(settings.draws)
    found = [
        draw(data.labels, test, settings.train, settings.seed, number, settings.images)
        for number in numbers
    ]
    fewest = min(len(one.train) for one in found)
    if settings.neighbours > fewest:
        print(
            f"warning: --neighbours {settings.neighbours} is more than the {fewest} images that a "
            f"draw trains on; {fewest} vote",
            file=sys.stderr,
        )
    absent = sorted(set(data.labels) - set(data.labels[test]))
    if absent:
        raise UserError(
            f"{settings.images}: {data.names[absent[0]]} has no image to test with, for its images "
            "show the same picture several times. Add others"
        )
    return found


def _answers(
    name: str,
    encoder: nn.Module,
    data: Labelled,
    draws: Sequence[Draw],
    settings: ProbeSettings,
    key: str,
) -> list[Answer]:
    """What every probe says, draw by draw."""
    features = _features(name, encoder, data)
    found = []
    with progress(f"probing the {name} encoder") as report:
        for number, one in enumerate(draws):
            classes, c = linear_probe(features, data.labels, one)
            found.append(Answer(number, name, "linear", classes, c))
            classes = knn_probe(features, data.labels, one, settings.neighbours)
            found.append(Answer(number, name, "knn", classes))
            report(number + 1, len(draws))
    if settings.finetune:
        for number, one in enumerate(draws):
            folder = Path(settings.out) / "finetune" / f"draw_{number}_{name}"
            with progress(f"training a classifier, {name}, draw {number}") as report:
                classes = whole_probe(encoder, data, one, settings, number, folder, key, report)
            found.append(Answer(number, name, "finetune", classes))
    return found


def _features(name: str, encoder: nn.Module, data: Labelled) -> Tensor:
    encoder.to(memory_format=torch.channels_last)
    device = next(encoder.parameters()).device
    rows = np.arange(len(data.labels))
    with progress(f"features of the {name} encoder") as report:
        features = frozen_features(encoder, data.cache, rows, data.size, device, report)
    if not torch.isfinite(features).all():
        raise UserError(
            f"the features of the {name} encoder are not finite numbers. "
            "The run that made it diverged: train it again with a lower --lr"
        )
    return features
