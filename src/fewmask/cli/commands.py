"""What each command prints of what came of it; its code is imported only when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from fewmask.types import UserError


def number(value: float | None) -> str:
    """A score with four decimals, or that it is not defined."""
    return "not defined" if value is None else f"{value:.4f}"


def run_demo(settings: Any) -> int:
    """The demo, then its table."""
    from fewmask import api

    result = api.demo(**vars(settings))
    return print_study(result)


def run_check(settings: Any) -> int:
    """Notes and warnings on standard output; faults become the error."""
    from fewmask import api

    found = api.check(**vars(settings))
    for note in found.notes:
        print(note)
    for warning in found.warnings:
        print(f"warning: {warning}")
    if found.faults:
        raise UserError(*found.faults)
    print("no faults")
    return 0


def run_pretrain(settings: Any) -> int:
    """Pre-train, then what came of it."""
    from fewmask import api

    result = api.pretrain(**vars(settings))
    print(
        f"{result.pretext} on {result.images} images: {result.steps} steps in "
        f"{result.seconds:.0f} s, loss {result.loss:.4g}{', ' if result.signals else ''}"
        f"{result.signals}; the encoder moved {result.moved:.3g} from its start"
    )
    for warning in result.warnings:
        print(f"warning: {warning}")
    if result.probe_iou_start is not None or result.probe_iou is not None:
        print(f"dense probe: IoU {number(result.probe_iou)}, {number(result.probe_iou_start)} "
              "at the start")  # fmt: skip
    print(f"encoder: {result.out / 'encoder.safetensors'}")
    return 0


def run_finetune(settings: Any) -> int:
    """Fine-tune, then what came of it."""
    from fewmask import api

    result = api.finetune(**vars(settings))
    if result.transfer:
        print(f"started from {result.transfer.sentence()}")
    print(
        f"{result.n_train} training and {result.n_val} validation pairs, {result.steps} steps in "
        f"{result.seconds:.0f} s: validation IoU {number(result.val_iou)}"
    )
    print(f"model: {result.out / 'model.safetensors'}")
    return 0


def run_evaluate(settings: Any) -> int:
    """Evaluate, then the scores over the data set."""
    from fewmask import api

    result = api.evaluate(**vars(settings))
    print(f"{result.n} pairs, {result.n_seen_in_training} of them seen in training")
    for name, value in result.dataset.items():
        print(f"{name:<22}{number(value)}")
    if len(result.per_class) > 2:
        for name, own in result.per_class.items():
            print(f"iou of {name:<15}{number(own['iou'])}")
    print(f"scores: {result.out / 'metrics.json'}")
    return 0


def run_predict(settings: Any) -> int:
    """Predict, then where the masks lie."""
    from fewmask import api

    result = api.predict(**vars(settings))
    print(f"{len(result.masks)} masks: {result.out / 'masks'}")
    return 0


def run_export(settings: Any) -> int:
    """Export, then where the file lies."""
    from fewmask import api

    print(f"export: {api.export(**vars(settings))}")
    return 0


def run_probe(settings: Any) -> int:
    """Probe an encoder, then a line a probe."""
    from fewmask import api

    result = api.probe(**vars(settings))
    if result.transfer:
        print(f"loaded {result.transfer.sentence()}")
    print(
        f"{result.images} images of {len(result.classes)} classes; a draw trains on "
        f"{result.n_train}, tests on {result.n_test}; chance {result.chance:.4f}"
    )
    for score in (*result.scores, *result.differences):
        ends = score.interval
        words = f"95 % {ends[0]:.4f} to {ends[1]:.4f}" if ends else "no interval"
        plus = "+" if score in result.differences else ""
        words = f"{words} over {len(score.values)} draw{'s' * (len(score.values) > 1)}"
        print(f"{score.probe:<9}{score.encoder:<16}{score.mean:{plus}.4f}  ({words})")
    print(f"table: {result.out / 'probe.csv'}")
    return 0


def run_suggest(settings: Any) -> int:
    """Suggest images, then what they were chosen from and by."""
    from fewmask import api

    result = api.suggest(**vars(settings))
    if result.transfer:
        print(f"loaded {result.transfer.sentence()}")
    print(
        f"{result.images} images, {result.labelled} of them labelled, {result.repeated} repeats: "
        f"{result.candidates} to choose from"
    )
    print(f"{len(result.suggestions)} suggested by {result.why}")
    print(result.features)
    print(f"list: {result.out / 'suggested.csv'}")
    print(f"to look at: {result.out / 'contact_sheet.png'}")
    return 0


def run_similarity(settings: Any) -> int:
    """Compare image sets, then a table an extractor, the nearest first."""
    from fewmask import api
    from fewmask.distances.outcome import table_text

    result = api.similarity(**vars(settings))
    print(table_text(result))
    print(f"table: {result.out / 'similarity.csv'}")
    return 0


def run_study(settings: Any) -> int:
    """Run a study, then its table."""
    import shlex

    from fewmask import api
    from fewmask.studies.run import run_study as run

    api.get_ready(settings)
    return print_study(run(settings, shlex.join(["fewmask", *sys.argv[1:]])))


def print_study(result: Any) -> int:
    """A study's table, what it says in words, and the path of its page."""
    print((result.out / "table.md").read_text(encoding="utf-8"))
    for sentence in result.findings:
        print(sentence)
    print(f"page: {result.page}")
    return 0


def run_report(settings: Any) -> int:
    """A study's report again, then its table."""
    from fewmask import api
    from fewmask.reporting.findings import findings
    from fewmask.reporting.folder import read_study

    page = api.report(**vars(settings))
    print((page.parent / "table.md").read_text(encoding="utf-8"))
    for sentence in findings(read_study(page.parent)):
        print(sentence)
    print(f"page: {page}")
    return 0


def run_rerun(settings: Any) -> int:
    """Rerun; 1 where something else came out."""
    from fewmask import api

    result = api.rerun(**vars(settings))
    if result.same:
        print(f"the same came out, to the bit: {result.out}")
        return 0
    print(f"something else came out: {result.out}")
    for line in result.differences:
        print(line)
    return 1


RUN: dict[str, Callable[[Any], int]] = {
    "demo": run_demo,
    "check": run_check,
    "pretrain": run_pretrain,
    "finetune": run_finetune,
    "evaluate": run_evaluate,
    "predict": run_predict,
    "export": run_export,
    "probe": run_probe,
    "suggest": run_suggest,
    "similarity": run_similarity,
    "study": run_study,
    "report": run_report,
    "rerun": run_rerun,
}
