"""similarity.csv, and the table that the command prints."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

from fewmask.files import csv_text, write_text_atomic
from fewmask.types import Distance, SimilarityResult

SHOWN = ("kid", "knn", "coverage")
"""The measures of the printed table and of similarity.png; the others stand in the file."""
TITLES = {
    "kid": "KID",
    "mmd2": "MMD², Gaussian",
    "knn": "k-NN distance, target to itself = 1",
    "coverage": "coverage of the target",
    "density": "density",
}


def write_table(path: Path, result: SimilarityResult) -> None:
    """A row a source, extractor and measure, in the order of the command."""
    columns = [field.name for field in fields(Distance)]
    write_text_atomic(path, csv_text(map(asdict, result.distances), columns))


def ordered(result: SimilarityResult, extractor: str) -> list[str]:
    """The sources' names by KID, the nearest first; the target's other half among them."""
    found = [d for d in result.distances if (d.extractor, d.measure) == (extractor, "kid")]
    return [d.source for d in sorted(found, key=lambda d: d.value)]


def distance_of(result: SimilarityResult, extractor: str, source: str, measure: str) -> Distance:
    """The one distance of these names."""
    wanted = (extractor, source, measure)
    return next(d for d in result.distances if (d.extractor, d.source, d.measure) == wanted)


def table_text(result: SimilarityResult) -> str:
    """The distances to the target, the nearest source first, with their intervals."""
    why = f" (all that {result.smallest} gives)" if result.smallest else ""
    lines = [f"distance to {result.target}, {result.n} images a set{why}; 95 % intervals"]
    names = [d.source for d in result.distances]
    wide = max(len(name) for name in ("source", *names)) + 2
    for extractor in result.extractors:
        weak = " (no weights: knows colours and edges alone)" if extractor in result.weak else ""
        lines += ["", f"extractor {extractor}{weak}"]
        lines.append("source".ljust(wide) + "".join(title.ljust(26) for title in SHOWN).rstrip())
        for source in ordered(result, extractor):
            cells = [_cell(distance_of(result, extractor, source, m)) for m in SHOWN]
            lines.append(source.ljust(wide) + "".join(cell.ljust(26) for cell in cells).rstrip())
    if set(result.extractors) == set(result.weak):
        lines += ["", "no encoder was given; a trained one sees more: --extractor RUN, or imagenet"]
    return "\n".join(lines)


def _cell(d: Distance) -> str:
    return f"{d.value:.3f} ({d.low:.3f} to {d.high:.3f})"
