"""Oxford-IIIT Pet (Parkhi et al. 2012), in its official layout."""

from __future__ import annotations

from pathlib import Path

from fewmask.data.folders import match, walk
from fewmask.data.sources import ImageFile, ImageSet, MaskOptions, PairSet, existing
from fewmask.types import IGNORED, Border, Labels, UserError

PET, BACKGROUND, BORDER = 1, 2, 3
"""The values in the trimaps; the border is "not classified"."""


def labels(border: Border) -> Labels:
    """The reading of the trimaps; a value that they don't know is 254, a fault."""
    names = ("background", "pet", "border") if border == "class" else ("background", "pet")
    as_border = {"ignore": IGNORED, "foreground": 1, "background": 0, "class": 2}
    return Labels(names, _lut(as_border[border]), _lut(1))


def _lut(border: int) -> tuple[int, ...]:
    lut = [254] * 256
    lut[PET], lut[BACKGROUND], lut[BORDER] = 1, 0, border
    return tuple(lut)


def locate(src: str, path: Path, download: bool) -> Path:
    """The folder that holds images/ and annotations/, torchvision's nesting included."""
    for root in (path, path / "oxford-iiit-pet"):
        if (root / "images").is_dir() and (root / "annotations" / "trimaps").is_dir():
            return root
    if download:
        from torchvision.datasets import OxfordIIITPet

        OxfordIIITPet(path, target_types="segmentation", download=True)
        return locate(src, path, download=False)
    existing(src, path, known=True)
    raise UserError(
        f"{src}: {path} holds no images/ and annotations/trimaps/. "
        "Name the folder of the official layout, or pass --download to fetch it"
    )


def listed(root: Path) -> set[str] | None:
    """The names in annotations/list.txt, or None where it is not there."""
    path = root / "annotations" / "list.txt"
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}


def _images(root: Path) -> tuple[list[ImageFile], int]:
    found, others = walk(root / "images")
    return found, others


def images(src: str, path: Path, download: bool) -> ImageSet:
    """The pictures alone, as an unlabelled pool."""
    found, others = _images(locate(src, path, download))
    return ImageSet(src, "oxford-iiit-pet", found, None, (), others)


def pairs(src: str, path: Path, options: MaskOptions, *, download: bool = False) -> PairSet:
    """Pictures and trimaps of the names in list.txt, or of all where there is no list."""
    if options.classes or options.mask_values or options.ignore is not None:
        options = MaskOptions(options.border)
    root = locate(src, path, download)
    found, others = _images(root)
    masks, _ = walk(root / "annotations" / "trimaps")
    names = listed(root)
    faults: list[str] = []
    if names is not None:
        there = {Path(item.name).stem for item in found} | {Path(m.name).stem for m in masks}
        faults = [
            f"{root / 'images' / name}.jpg: named in list.txt but not there, nor its trimap. "
            "Download the data set again, or take it from the list"
            for name in sorted(names - there)
        ]
        found = [item for item in found if Path(item.name).stem in names]
        masks = [item for item in masks if Path(item.name).stem in names]
    items, more = match(found, masks, "annotations/trimaps/")
    return PairSet(
        src, "oxford-iiit-pet", items, (*faults, *more), options, labels(options.border), others
    )
