"""What the probes said -> accuracies with intervals, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

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
    accuracies: dict[tuple[str, str], list[float]] = {}
    for answer in answers:
        own = accuracies.setdefault((answer.probe, answer.encoder), [])
        own.append(float((answer.classes == truth).mean()))
    ordered = sorted(accuracies, key=lambda pair: ("linear", "knn", "finetune").index(pair[0]))
    differences = {
        probe: [a - b for a, b in zip(own, accuracies[probe, "random"], strict=True)]
        for (probe, encoder), own in accuracies.items()
        if encoder == "run" and (probe, "random") in accuracies
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
        scores=tuple(_score(*pair, accuracies[pair]) for pair in ordered),
        differences=tuple(
            _score(probe, "run less random", own) for probe, own in differences.items()
        ),
        transfer=transfer,
    )


def _score(probe: str, encoder: str, values: Sequence[float]) -> ProbeScore:
    return ProbeScore(probe, encoder, tuple(values), fmean(values), interval(values))


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean; None of fewer than three values, where it says nothing."""
    if len(values) < 3:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


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
