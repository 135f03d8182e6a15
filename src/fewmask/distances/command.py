"""fewmask similarity: how far image sets are from the images that count."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewmask.data.cache import ImageCache
from fewmask.data.duplicates import Thumbs, between, thumbnail
from fewmask.data.parts import chosen, drawn
from fewmask.data.pools import cached_pool
from fewmask.data.sources import ImageSet, open_images
from fewmask.devices import pick_device
from fewmask.distances.extractors import Extractor, open_extractors, scale_of
from fewmask.distances.jackknife import Estimate
from fewmask.distances.kernels import Features, gaussian_mmd2, kid
from fewmask.distances.neighbours import coverage, density, knn_ratio, surroundings
from fewmask.distances.outcome import write_table
from fewmask.distances.pictures import Pictured, draw_distances, draw_map, draw_nearest
from fewmask.progress import progress
from fewmask.runs import claim, config_of, key_of, read_result, refuse_others, write_result
from fewmask.settings import SimilaritySettings
from fewmask.types import Distance, Resize, SimilarityResult, UserError

FLOOR = "target's other half"
"""What the target's held-out half is called among the sources: no set can be nearer."""
FEWEST = 16
"""Pictures a set, at least."""


@dataclass(frozen=True)
class Sets:
    """The pictures drawn of the target, and of every source by its name."""

    target: ImageSet
    sources: dict[str, ImageSet]

    @property
    def all(self) -> list[ImageSet]:
        return [self.target, *self.sources.values()]


@dataclass(frozen=True)
class Samples:
    """What is compared: n pictures of the target, of its other half (FLOOR), of every source."""

    caches: dict[str, ImageCache]
    rows: dict[str, list[int]]
    """Of the target (its name), of FLOOR and of each source; the first two are of one cache."""
    target: str
    n: int
    smallest: str

    def cache(self, name: str) -> ImageCache:
        return self.caches[self.target if name == FLOOR else name]


def similarity(settings: SimilaritySettings) -> SimilarityResult:
    """Measure image sets; return a finished folder's result.

    Raises UserError before anything is written.
    """
    device = pick_device(settings.device)
    out, config = Path(settings.out), config_of(settings)
    refuse_others(out, config)
    extractors = open_extractors(settings)
    sets = open_sets(settings)
    prints = [images.fingerprint() for images in sets.all]
    key = key_of(config, *(one.key for one in extractors), *prints)
    done = read_result(out, SimilarityResult, key)
    if done:
        return read_back(done)
    looked = [_sampled(sets, one, settings) for one in extractors]
    claim(out, config)
    _warn_of_copies(looked[0], sets)
    distances: list[Distance] = []
    pictured: list[Pictured] = []
    for one, samples in zip(extractors, looked, strict=True):
        features = _features(one, samples, device)
        distances += _measured(one.name, features, samples, settings.neighbours)
        pictured.append(Pictured(one.name, features, samples.target, FLOOR))
    result = SimilarityResult(
        out=out,
        target=sets.target.pool,
        sources={name: images.src for name, images in sets.sources.items()},
        extractors=tuple(one.name for one in extractors),
        weak=tuple(one.name for one in extractors if one.encoder is None),
        n=min(samples.n for samples in looked),
        smallest=looked[0].smallest,
        distances=tuple(distances),
    )
    write_table(out / "similarity.csv", result)
    draw_distances(out / "similarity.png", result, FLOOR)
    draw_map(out / "map.png", pictured, result)
    draw_nearest(out / "nearest.png", pictured[0], looked[0].cache, looked[0].rows)
    write_result(out, result, key=key, fingerprints=prints)
    return result


def open_sets(settings: SimilaritySettings) -> Sets:
    """The pictures of every set that can be needed, drawn before any is decoded.

    Raises UserError where a set is too small, or is the target itself.
    """
    whole = open_images(settings.target, download=settings.download)
    target = _drawn(whole, 2 * settings.most, settings.seed)
    places = {item.where for item in whole.items}
    sources: dict[str, ImageSet] = {}
    for src in settings.sources:
        images = open_images(src, download=settings.download)
        rows = [row for row, item in enumerate(images.items) if item.where not in places]
        if not rows:
            raise UserError(
                f"{src}: holds the target's own images alone; how near the target is to itself is "
                "measured anyway. Take it out"
            )
        name = _new_name(images.pool, {target.pool, FLOOR, *sources})
        sources[name] = _drawn(chosen(images, rows), settings.most, settings.seed)
    found = Sets(target, sources)
    fewest = max(FEWEST, settings.neighbours + 2)
    least = {settings.target: len(target.items) // 2}
    least |= {images.src: len(images.items) for images in sources.values()}
    why = f"--neighbours {settings.neighbours} takes" if fewest > FEWEST else "a comparison takes"
    mend = "Add images, or lower --neighbours" if fewest > FEWEST else "Add images"
    few = [f"{src}: {n} images{' in a half' * (src == settings.target)}; {why} {fewest} or more. "
           f"{mend}" for src, n in least.items() if n < fewest]  # fmt: skip
    if few:
        raise UserError(*few)
    return found


def _warn_of_copies(samples: Samples, sets: Sets) -> None:
    """Copies of the target's pictures make a set look near; how many were drawn is told."""
    target = _thumbnails(samples.cache(samples.target))
    names = [f"target {row}" for row in range(len(target))]
    for name, images in sets.sources.items():
        thumbs = _thumbnails(samples.cache(name))
        found = between((thumbs, list(map(str, range(len(thumbs))))), (target, names))
        copies = len({row for row, _ in found.near})
        if copies:
            print(
                f"warning: {images.src}: {copies} of {len(thumbs)} images show pictures of "
                f"{sets.target.src}, which makes it look near. fewmask check --pairs and --images "
                "names them",
                file=sys.stderr,
            )


def _thumbnails(cache: ImageCache) -> Thumbs:
    """uint8 [N,48,48] of a cache's images without their padding."""
    return np.stack([
        thumbnail(np.ascontiguousarray(image[:height, :width]))
        for image, (height, width) in zip(cache.images, cache.valid, strict=True)
    ])  # fmt: skip


def _new_name(pool: str, taken: set[str]) -> str:
    """The pool's name, with a number where it is taken."""
    name, number = pool, 2
    while name in taken:
        name, number = f"{pool}-{number}", number + 1
    return name


def _drawn(images: ImageSet, most: int, seed: int) -> ImageSet:
    rows = drawn(np.arange(len(images.items)), most, seed)
    return chosen(images, rows.tolist())


def _sampled(sets: Sets, extractor: Extractor, settings: SimilaritySettings) -> Samples:
    """Equally many decoded pictures of every set, at the extractor's size."""
    size, resize = extractor.size, extractor.resize
    caches = {sets.target.pool: _cached(sets.target, size, resize, settings)}
    caches |= {n: _cached(s, size, resize, settings) for n, s in sets.sources.items()}
    counts = {name: len(cache.names) for name, cache in caches.items()}
    counts[sets.target.pool] //= 2
    smallest = min(counts, key=lambda name: counts[name])
    n = min(settings.most, counts[smallest])
    rows = {}
    for name, cache in caches.items():
        order = np.random.default_rng(settings.seed).permutation(len(cache.names)).tolist()
        rows[name] = order[:n]
        if name == sets.target.pool:
            rows[FLOOR] = order[n : 2 * n]
    decided = smallest if n < settings.most else ""
    return Samples(caches, rows, sets.target.pool, n, decided)


def _cached(
    images: ImageSet, size: int, resize: Resize, settings: SimilaritySettings
) -> ImageCache:
    with progress(f"reading {images.pool}") as report:
        return cached_pool(images, size, resize, progress=report, workers=settings.workers)


def _features(extractor: Extractor, samples: Samples, device: torch.device) -> dict[str, Features]:
    """Features of every set, divided by one number: the target's root mean square is 1."""
    found = {}
    for name, rows in samples.rows.items():
        with progress(f"features of {name} by {extractor.name}") as report:
            found[name] = extractor.features(samples.cache(name), rows, device, report)
    scale = scale_of(np.concatenate([found[samples.target], found[FLOOR]]))
    return {name: features / scale for name, features in found.items()}


def _measured(
    extractor: str, features: dict[str, Features], samples: Samples, k: int
) -> list[Distance]:
    """All measures of all sets, the target's other half first."""
    target = features[samples.target]
    names = [FLOOR, *(name for name in features if name not in (FLOOR, samples.target))]
    found = []
    with progress(f"distances by {extractor}") as report:
        for number, name in enumerate(names, start=1):
            for measure, e in measures(features[name], target, k).items():
                found.append(
                    Distance(name, samples.target, extractor, measure, e.value, e.low, e.high,
                             samples.n)
                )  # fmt: skip
            report(number, len(names))
    return found


def measures(source: Features, target: Features, k: int) -> dict[str, Estimate]:
    """Every measure of one source [m,D] and the target [n,D]."""
    around = surroundings(source, target, k)
    return {
        "kid": kid(source, target),
        "mmd2": gaussian_mmd2(source, target),
        "knn": knn_ratio(around),
        "coverage": coverage(around),
        "density": density(around),
    }


def read_back(result: SimilarityResult) -> SimilarityResult:
    """A result as its file gives it -> with the types it had."""
    tables: Sequence[Any] = result.distances
    return replace(
        result,
        extractors=tuple(result.extractors),
        weak=tuple(result.weak),
        distances=tuple(Distance(**table) for table in tables),
    )
