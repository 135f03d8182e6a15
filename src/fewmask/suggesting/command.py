"""fewmask suggest: which images to label next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewmask.data.items import ImageItem
from fewmask.data.pools import cached_pool
from fewmask.data.sources import open_images, open_pairs
from fewmask.devices import pick_device
from fewmask.inference import Model, load_run
from fewmask.progress import progress
from fewmask.runs import claim, config_of, key_of, read_result, refuse_others, write_result
from fewmask.settings import SuggestSettings
from fewmask.suggesting import choosing
from fewmask.suggesting.choosing import Chosen
from fewmask.suggesting.folder import (
    Heading,
    decoded,
    known_classes,
    stems,
    suffix_of,
    write_files,
)
from fewmask.suggesting.pool import (
    Features,
    Pool,
    described,
    facts,
    is_model,
    require_budget,
    started,
    worth,
)
from fewmask.suggesting.uncertainty import mean_entropy
from fewmask.types import Suggestion, SuggestResult, UserError

FEW = 50
"""Labelled pictures below which `mix` is typical, and from which on it asks the model."""


def suggest(settings: SuggestSettings) -> SuggestResult:
    """Suggest images to label; return a finished folder's result.

    Raises UserError before anything is written.
    """
    device = pick_device(settings.device)
    settings = described(settings)
    out, config = Path(settings.out), config_of(settings)
    refuse_others(out, config)
    model = load_run(settings.run, device) if is_model(settings.run) and settings.run else None
    if settings.method == "uncertainty" and model is None:
        raise UserError(
            f"--method uncertainty: {settings.run} is no fine-tuned run, so it gives no "
            "probabilities. Name the folder of a fewmask finetune, or choose another --method"
        )
    encoder, transfer = started(settings)
    images = open_images(settings.images, download=settings.download)
    pairs = open_pairs(settings.pairs, download=settings.download) if settings.pairs else None
    key = key_of(config, *facts(settings, images, pairs))
    finished = read_result(out, SuggestResult, key)
    if finished:
        return read_back(finished)
    pool = Pool.opened(settings, images, pairs, model)
    require_budget(settings, pool.candidates)
    claim(out, config)
    features = Features(settings, encoder.to(device) if encoder else None, device, pool)
    method, why = resolved(settings, pool, model)
    chosen = _chosen(settings, method, pool, features, model)
    suggested, items = _suggestions(method, chosen, pool)
    heading = Heading(
        f"{len(items)} images to label next, by {why}",
        worth(settings),
        "" if model is None else f"fewmask {model.run.name}",
    )
    with progress("writing the suggestions") as report:
        drafted = decoded(items, model, device, settings.workers)
        write_files(out, suggested, items, drafted, known_classes(model, pairs), heading, report)
    found = pool.candidates
    result = SuggestResult(
        out=out,
        method=settings.method,
        why=why,
        features=heading.below,
        images=len(pool.cache.names),
        candidates=len(found.rows),
        labelled=len(found.labelled),
        repeated=len(found.repeated),
        drafts=model is not None,
        suggestions=tuple(suggested),
        encoder=settings.encoder,
        size=settings.size,
        transfer=transfer,
    )
    write_result(out, result, key=key, fingerprint=images.fingerprint())
    return result


# --- the choice -----------------------------------------------------------------------------------


def resolved(settings: SuggestSettings, pool: Pool, model: Model | None) -> tuple[str, str]:
    """The method that chooses, and how it came about in a few words.

    `mix` follows Hacohen et al. 2022: typical pictures while few are labelled, what the model finds
    hard once many are. Where few ends is not theirs but ours: 50 labelled pictures.
    """
    if settings.method != "mix":
        return settings.method, settings.method
    if model is None:
        return "typical", "typical (mix: there is no fine-tuned run to be uncertain)"
    n = pool.n_labelled
    if n < FEW:
        return "typical", f"typical (mix: {n} labelled images are fewer than {FEW})"
    return "uncertain-typical", f"uncertainty among the typical (mix: {n} labelled images)"


def _chosen(
    settings: SuggestSettings,
    method: str,
    pool: Pool,
    features: Features,
    model: Model | None,
) -> Chosen:
    n, seed = settings.budget, settings.seed
    if method == "random":
        return choosing.at_random(len(pool.candidates.rows), n, seed)
    if method == "uncertainty" and model is not None:
        return choosing.most_uncertain(_uncertainty(settings, pool, model), n)
    own, known = features.both()
    if method == "k-centre":
        return choosing.k_centre(own, known, n)
    if method == "uncertain-typical" and model is not None:
        unsure = _uncertainty(settings, pool, model)
        return choosing.uncertain_and_typical(own, known, unsure, n, seed)
    return choosing.typical(own, known, n, seed)


def _uncertainty(settings: SuggestSettings, pool: Pool, model: Model) -> choosing.Scores:
    """Of the candidates, in the geometry that the model was trained in."""
    geometry, cache, rows = model.geometry, pool.cache, pool.candidates.rows
    if (geometry.size, geometry.resize) != (settings.size, settings.resize):
        with progress("reading images at the run's size") as report:
            cache = cached_pool(
                pool.images,
                geometry.size,
                geometry.resize,
                progress=report,
                workers=settings.workers,
            )
    device = next(model.segmenter.parameters()).device
    with progress("asking the run") as report:
        return mean_entropy(model.segmenter, geometry, cache, rows, device, report)


def _suggestions(
    method: str, chosen: Chosen, pool: Pool
) -> tuple[list[Suggestion], list[ImageItem]]:
    """Every chosen picture with its scores, best first, and its image."""
    by_name = {item.name: item for item in pool.images.items}
    rows = pool.candidates.rows[chosen.rows]
    items = [by_name[pool.cache.names[row]] for row in rows]
    names = stems([item.name for item in items])

    def value(column: Any, i: int) -> Any:
        return None if column is None else column[i].item()

    suggested = [
        Suggestion(
            rank=i + 1,
            name=item.name,
            path=item.where,
            image=f"images/{stem}{suffix_of(item)}",
            method=method,
            typicality=value(chosen.typicality, i),
            distance=value(chosen.distance, i),
            uncertainty=value(chosen.uncertainty, i),
            cluster=value(chosen.cluster, i),
            cluster_size=value(chosen.cluster_size, i),
        )
        for i, (item, stem) in enumerate(zip(items, names, strict=True))
    ]
    return suggested, items


def read_back(result: SuggestResult) -> SuggestResult:
    """A result as its file gives it -> with the types it had."""
    tables: Sequence[Any] = result.suggestions
    return replace(result, suggestions=tuple(Suggestion(**table) for table in tables))
