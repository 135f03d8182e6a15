"""The settings of the commands that use a run, or look at data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewmask.settings.base import Machine, MaskFlags, Reading, Settings
from fewmask.types import Border, Precision

Format = Literal["onnx", "openvino", "smp", "torch"]
EngineName = Literal["auto", "torch", "onnx", "openvino"]


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
    overlays: bool = True
    """Write overlays/ as well."""
    engine: EngineName = "auto"
    """What computes the network: torch; openvino or onnx (CPU; the extra `export`), checked against
    the original; auto: openvino on a CPU, where it is installed and the work takes minutes."""
    precision: Precision = "32"
    """32, bf16, or auto: bf16 where the device computes it natively. bf16 is used only where it
    gives 99.9 % of the pixels of some of the images the same class as 32 bit."""
    int8: bool = False
    """Compute in int8 by openvino (CPU; the extra `export`). It is calibrated on some of the images
    given, once for each set of images, and says what that costs in IoU on the run's own pairs."""

    def contradictions(self) -> list[str]:
        """An engine that is none of the device, or has no int8 or bf16."""
        faults = []
        if self.precision == "bf16" and (self.int8 or self.engine == "onnx"):
            other = "--int8" if self.int8 else "--engine onnx"
            faults.append(f"--precision bf16 and {other} do not go together. Take one out")
        if self.engine in ("openvino", "onnx") and self.device not in ("auto", "cpu"):
            faults.append(
                f"--engine {self.engine} computes on the CPU, not on --device {self.device}. "
                "Take one of them out"
            )
        if self.int8 and self.engine not in ("auto", "openvino"):
            faults.append(f"--int8 is openvino's, not --engine {self.engine}'s. Take one out")
        if self.int8 and self.device not in ("auto", "cpu"):
            faults.append(
                f"--int8 computes on the CPU, not on --device {self.device}. Take one out"
            )
        return faults


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Settings):
    """Write a run's model in another format, checked against the original on real inputs."""

    run: str
    """The folder of a fine-tuning run."""
    out: str
    """The file to write (smp: a folder)."""
    format: Format | None = None
    """The format (default: by the ending of --out: .onnx, .xml openvino, .pt2 torch, none smp)."""
    int8: bool = False
    """openvino only: compute in int8; it says what that costs in IoU."""
    images: str | None = None
    """The images that the export is checked, and int8 calibrated, on (default: the run's own)."""

    def contradictions(self) -> list[str]:
        """int8 in another format."""
        if self.int8 and self.format not in (None, "openvino"):
            return [f"--int8 is for openvino, not --format {self.format}. Take one out"]
        return []


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
