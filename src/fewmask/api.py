"""The public functions: the same settings as the command line's, as keywords, with typed results.

    import fewmask
    run = fewmask.pretrain(images="photos", encoder="resnet18", out="runs/simclr")
    fewmask.finetune(pairs="labelled", encoder="resnet18", init="runs/simclr", out="runs/unet")
    scores = fewmask.evaluate(run="runs/unet", pairs="more", out="scores")
    print(scores.dataset["iou"])

Each raises `fewmask.UserError` for what the user can mend.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from fewmask.files import sweep
from fewmask.settings import (
    CheckSettings,
    DemoSettings,
    EvaluateSettings,
    ExportSettings,
    FinetuneSettings,
    PredictSettings,
    PretrainSettings,
    ProbeSettings,
    Reading,
    ReportSettings,
    RerunSettings,
    SimilaritySettings,
    StudySettings,
    SuggestSettings,
)
from fewmask.types import (
    CheckResult,
    EvaluateResult,
    FinetuneResult,
    PredictResult,
    PretrainResult,
    ProbeResult,
    RerunResult,
    SimilarityResult,
    StudyResult,
    SuggestResult,
    UserError,
)

P = ParamSpec("P")
S = TypeVar("S")
R = TypeVar("R")


def get_ready(settings: object) -> None:
    """What every command begins with: the limit of pixels, and no half-written files of before."""
    if isinstance(settings, Reading):
        from fewmask.data.images import limit_pixels

        limit_pixels(settings.max_megapixels)
    if (out := getattr(settings, "out", None)) is not None:
        sweep(Path(out))


def _with_settings(settings: Callable[P, S]) -> Callable[[Callable[[S], R]], Callable[P, R]]:
    """Give a function of a settings object the settings' own keywords, types included."""

    def decorate(work: Callable[[S], R]) -> Callable[P, R]:
        @functools.wraps(work)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            chosen = settings(*args, **kwargs)
            get_ready(chosen)
            return work(chosen)

        call.__signature__ = inspect.signature(settings)  # type: ignore[attr-defined]
        return call

    return decorate


@_with_settings(PretrainSettings)
def pretrain(settings: PretrainSettings) -> PretrainResult:
    """Pre-train an encoder on unlabelled images; leaves the run folder `out`."""
    from fewmask import workflows

    return workflows.pretrain(settings)


@_with_settings(FinetuneSettings)
def finetune(settings: FinetuneSettings) -> FinetuneResult:
    """Fine-tune a segmentation model on all pairs given; leaves the run folder `out`."""
    from fewmask import workflows

    return workflows.finetune(settings)


@_with_settings(EvaluateSettings)
def evaluate(settings: EvaluateSettings) -> EvaluateResult:
    """Score a run on every pair given; leaves metrics.json, per_image.csv and overlays/."""
    from fewmask import evaluation

    return evaluation.evaluate(settings)


@_with_settings(ProbeSettings)
def probe(settings: ProbeSettings) -> ProbeResult:
    """Linear and k-NN probes of an encoder on labelled images, beside a random encoder."""
    from fewmask.probing.command import probe as work

    return work(settings)


@_with_settings(SuggestSettings)
def suggest(settings: SuggestSettings) -> SuggestResult:
    """Which images to label next; leaves a list, a contact sheet and the labelling tools' files."""
    from fewmask.suggesting.command import suggest as work

    return work(settings)


@_with_settings(SimilaritySettings)
def similarity(settings: SimilaritySettings) -> SimilarityResult:
    """How far image sets are from a target set; leaves similarity.csv and pictures."""
    from fewmask.distances.command import similarity as work

    return work(settings)


@_with_settings(PredictSettings)
def predict(settings: PredictSettings) -> PredictResult:
    """Write masks and overlays for images of any size."""
    from fewmask import predicting

    return predicting.predict(settings)


@_with_settings(ExportSettings)
def export(settings: ExportSettings) -> Path:
    """Write a run's model as onnx, openvino, smp or torch, checked against the original."""
    from fewmask import exporting

    return exporting.export(settings)


@_with_settings(CheckSettings)
def check(settings: CheckSettings) -> CheckResult:
    """Every fault and warning of the data at once; raises only for what cannot be opened."""
    from fewmask.data import check as checks

    return checks.check(settings)


@_with_settings(StudySettings)
def study(settings: StudySettings) -> StudyResult:
    """Compare starting points x label budgets x repeats; leaves the study folder `out`."""
    from fewmask.studies.run import run_study

    return run_study(settings)


@_with_settings(ReportSettings)
def report(settings: ReportSettings) -> Path:
    """Table, figures and page of a study again; returns the page's path."""
    from fewmask.reporting.page import write_report

    return write_report(Path(settings.study))


@_with_settings(RerunSettings)
def rerun(settings: RerunSettings) -> RerunResult:
    """Run again what a result came from; says whether the same came out, or what differs."""
    from fewmask import rerunning

    return rerunning.rerun(settings)


@_with_settings(DemoSettings)
def demo(settings: DemoSettings) -> StudyResult:
    """The whole study on a small generated data set."""
    from fewmask.data.toy import write_toy
    from fewmask.studies.run import run_study

    out = Path(settings.out)
    if out.exists() and not (out / "data").exists() and any(out.iterdir()):
        raise UserError(f"{out}: exists and holds no demo. Choose another --out")
    if not (out / "data" / "unlabelled").exists():
        write_toy(out / "data", pairs=60, unlabelled=240, size=64, seed=settings.seed)
    data = str(out / "data")
    return run_study(
        StudySettings(
            plan="demo",
            out=settings.out,
            pairs=data,
            images=f"{data}/unlabelled",
            seed=settings.seed,
        )
    )
