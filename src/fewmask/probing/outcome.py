"""What the probes said -> accuracies with intervals, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from fewmask.evidence.crossed import Values, estimate
from fewmask.probing.pictures import (
    Counts,
    confusion_rows,
    draw_confusion,
    draw_scores,
    write_table,
)
from fewmask.probing.splits import Draw, Rows
from fewmask.probing.whole import Labelled
from fewmask.settings import ProbeSettings
from fewmask.types import ProbeResult, ProbeScore, Transfer

LESS = "run less random"


@dataclass(frozen=True)
class Answer:
    """What one probe of one encoder said of the test images of one draw."""

    draw: int
    encoder: str
    probe: str
    classes: Rows
    c: float | None = None


def result_of(
    settings: ProbeSettings,
    data: Labelled,
    draws: Sequence[Draw],
    answers: Sequence[Answer],
    transfer: Transfer | None,
) -> ProbeResult:
    """Accuracies of every probe and encoder over the draws, and the differences in pairs."""
    truth = data.labels[draws[0].test]
    each: dict[tuple[str, str], list[Values]] = {}
    for answer in answers:
        own = each.setdefault((answer.probe, answer.encoder), [])
        own.append(np.asarray(answer.classes == truth, float))
    right = {pair: np.stack(rows) for pair, rows in each.items()}
    ordered = sorted(right, key=lambda pair: ("linear", "knn", "finetune").index(pair[0]))
    differences = {
        probe: own - right[probe, "random"]
        for (probe, encoder), own in right.items()
        if encoder == "run" and (probe, "random") in right
    }
    return ProbeResult(
        out=Path(settings.out),
        run=settings.run,
        encoder=settings.encoder or "",
        size=data.size,
        images=len(data.labels),
        classes=tuple(data.names),
        n_train=len(draws[0].train),
        n_val=len(draws[0].val),
        n_test=len(truth),
        chance=float(np.bincount(truth).max() / len(truth)),
        scores=tuple(_score(*pair, right[pair]) for pair in ordered),
        differences=tuple(_score(probe, LESS, own) for probe, own in differences.items()),
        transfer=transfer,
    )


def _score(probe: str, encoder: str, right: Values) -> ProbeScore:
    """`right` [draws, test images]: 1 where an answer is right, or the difference of two such."""
    values = tuple(right.mean(axis=1).tolist())
    known = interval(right)
    if known is not None and encoder != LESS:  # an accuracy, no difference of two
        known = (max(0.0, known[0]), min(1.0, known[1]))
    return ProbeScore(probe, encoder, values, fmean(values), known)


def interval(right: Values) -> tuple[float, float] | None:
    """The 95 % interval of the mean over draws and test images together; None of a single draw."""
    found = estimate(right)
    half = float(found.half_width())
    mean = float(found.mean)
    if half == 0 and right.min() < right.max():
        # Draws that happen to agree in their means, on images of which the answers cancel: what is
        # left to go by are the images of a single draw.
        n = right.shape[1]
        half = 1.96 * float(right[0].std(ddof=1)) / math.sqrt(n)
    return None if math.isnan(half) else (mean - half, mean + half)


def write_files(
    settings: ProbeSettings,
    result: ProbeResult,
    data: Labelled,
    draws: Sequence[Draw],
    answers: Sequence[Answer],
) -> None:
    """Everything in the folder but result.json."""
    truth = data.labels[draws[0].test]
    rows = [
        {
            "draw": answer.draw,
            "encoder": answer.encoder,
            "probe": answer.probe,
            "accuracy": float((answer.classes == truth).mean()),
            "n_train": len(draws[answer.draw].train),
            "n_val": len(draws[answer.draw].val),
            "n_test": len(truth),
            "seed": settings.seed,
            "c": answer.c,
        }
        for answer in answers
    ]
    out, k = result.out, len(data.names)
    write_table(out / "probe.csv", rows)
    matrices: dict[tuple[str, str], Any] = {}
    for answer in answers:
        which = (answer.encoder, answer.probe)
        matrices[which] = matrices.get(which, 0) + _counted(truth, answer.classes, k)
    counts = [Counts(*which, matrix) for which, matrix in matrices.items()]
    write_table(
        out / "confusion.csv", [row for one in counts for row in confusion_rows(one, data.names)]
    )
    draw_confusion(out / "confusion.png", counts[0], data.names)
    title = f"{Path(settings.run).name}: {result.n_train} images to train, {result.n_test} to test"
    draw_scores(out / "probe.png", result.scores, result.chance, title)


def _counted(truth: Any, classes: Any, k: int) -> Any:
    matrix = np.zeros((k, k), np.int64)
    np.add.at(matrix, (truth, classes), 1)
    return matrix


def read_back(result: ProbeResult) -> ProbeResult:
    """A result as its file gives it -> with the types it had."""

    def scores(tables: Any) -> tuple[ProbeScore, ...]:
        found = []
        for table in tables:
            ends = table["interval"]
            found.append(
                ProbeScore(
                    table["probe"],
                    table["encoder"],
                    tuple(table["values"]),
                    table["mean"],
                    (ends[0], ends[1]) if ends else None,
                )
            )
        return tuple(found)

    return replace(
        result,
        classes=tuple(result.classes),
        scores=scores(result.scores),
        differences=scores(result.differences),
    )
