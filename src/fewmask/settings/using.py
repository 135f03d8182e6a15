"""The settings of the commands that use a run, or look at data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewmask.settings.base import Machine, MaskFlags, Reading, Settings
from fewmask.types import Border

Format = Literal["onnx", "openvino", "smp", "torch"]


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(MaskFlags, Machine):
    """Score a run on every pair given, at the masks' own resolution."""

    run: str
    """The folder of a fine-tuning run."""
    pairs: str
    """Images and masks: a folder with images/ and masks/, or oxford-iiit-pet:PATH."""
    out: str
    """The folder to write metrics.json, per_image.csv and overlays/ to."""
    border: Border | None = None  # type: ignore[assignment]
    """Oxford-IIIT Pet only: what its border class is (default: as the run was trained)."""


@dataclass(frozen=True, kw_only=True)
class PredictSettings(Machine):
    """Write masks and overlays for images of any size."""

    run: str
    """The folder of a fine-tuning run."""
    paths: tuple[str, ...]
    """Image files and folders."""
    out: str
    """The folder to write masks/STEM.png (class ids) and overlays/STEM.png to."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Settings):
    """Write a run's model in another format, checked against the original on real inputs."""

    run: str
    """The folder of a fine-tuning run."""
    out: str
    """The file to write (smp: a folder)."""
    format: Format | None = None
    """The format (default: by the ending of --out: .onnx, .xml openvino, .pt2 torch, none smp)."""


@dataclass(frozen=True, kw_only=True)
class CheckSettings(MaskFlags, Reading):
    """Every fault and warning of the data at once."""

    pairs: str | None = None
    """Images and masks: a folder with images/ and masks/, or oxford-iiit-pet:PATH."""
    images: tuple[str, ...] = ()
    """Unlabelled images: a folder, or KIND:PATH; may be given several times."""
    out: str | None = None
    """A folder to write duplicates.csv and duplicates.png to: pictures that occur twice, also in
    other encodings, sizes, crops and mirrored, within a source and in both images and pairs."""
