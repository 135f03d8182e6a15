"""Oxford-IIIT Pet (Parkhi et al. 2012), in its official layout."""

from __future__ import annotations

from pathlib import Path

from fewmask.data.folders import match
from fewmask.data.listing import walk
from fewmask.data.sources import ImageSet, MaskOptions, PairSet, downloading, existing
from fewmask.plainfiles import read_plain_text
from fewmask.types import IGNORED, Border, Labels, UserError

PET, BACKGROUND, BORDER = 1, 2, 3
"""The values in the trimaps; the border is "not classified"."""


NAMES = ("background", "pet", "border")


def labels(border: Border, names: tuple[str, ...] | None = None) -> Labels:
    """The reading of the trimaps, the classes under other `names` if given.

    A value that trimaps don't have becomes 254, which is no class: the check names it.
    """
    as_border = {"ignore": IGNORED, "foreground": 1, "background": 0, "class": 2}
    own = NAMES if border == "class" else NAMES[:2]
    return Labels(names or own, _lut(as_border[border]), _lut(1))


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

        with downloading(src, path):
            OxfordIIITPet(path, target_types="segmentation", download=True)
        return locate(src, path, download=False)
    existing(src, path, known=True)
    raise UserError(
        f"{src}: {path} holds no images/ and annotations/trimaps/. "
        "Name the folder of the official layout, or pass --download to fetch it"
    )


MANY = 10
"""More faults of one kind than this are told in one line."""


def listed(root: Path) -> set[str] | None:
    """The names in annotations/list.txt, or None where it is not there."""
    path = root / "annotations" / "list.txt"
    if not path.exists():
        return None
    lines = read_plain_text(path, "replace").splitlines()
    told = (line.split() for line in lines)
    return {words[0] for words in told if words and not words[0].startswith("#")}


def images(src: str, path: Path, download: bool) -> ImageSet:
    """The pictures alone, as an unlabelled pool."""
    found, others = walk(locate(src, path, download) / "images")
    return ImageSet(src, "oxford-iiit-pet", found, None, (), others)


def _refuse(src: str, options: MaskOptions) -> None:
    """What the known layout leaves no room for is refused, not passed over."""
    faults = []
    for flag, value in (("--ignore", options.ignore), ("--mask-values", options.mask_values)):
        if value is not None:
            faults.append(
                f"{src}: {flag} does not apply, the trimaps hold 1 pet, 2 background, 3 border. "
                "Choose the border's reading with --border"
            )
    n = 3 if options.border == "class" else 2
    if options.classes and len(options.classes) != n:
        faults.append(
            f"{src}: {len(options.classes)} class names ({', '.join(options.classes)}); with "
            f"--border {options.border} the trimaps have {n} classes ({', '.join(NAMES[:n])}). "
            "Name as many, or choose another --border"
        )
    if faults:
        raise UserError(*faults)


def pairs(src: str, path: Path, options: MaskOptions, *, download: bool = False) -> PairSet:
    """Pictures and trimaps of the names in list.txt, or of all where there is no list."""
    _refuse(src, options)
    root = locate(src, path, download)
    pictures, others = walk(root / "images")
    trimaps, _ = walk(root / "annotations" / "trimaps")
    found, masks = list(pictures), list(trimaps)
    names = listed(root)
    faults: list[str] = []
    if names is not None:
        there = {Path(item.name).stem for item in found} | {Path(m.name).stem for m in masks}
        faults = [
            f"{root / 'images' / name}.jpg: named in list.txt but not there, nor its trimap. "
            "Download the data set again, or take it from the list"
            for name in sorted(names - there)
        ]
        if len(faults) > MANY:
            first = faults[0].split(":")[0]
            faults = [
                f"{root / 'annotations' / 'list.txt'}: names {len(faults)} pictures that are not "
                f"there, nor their trimaps; the first is {first}. Download the data set again, "
                "or remove list.txt to take what is there"
            ]
        found = [item for item in found if Path(item.name).stem in names]
        masks = [item for item in masks if Path(item.name).stem in names]
    items, more = match(found, masks, "annotations/trimaps/")
    read = labels(options.border, options.classes)
    return PairSet(src, "oxford-iiit-pet", items, (*faults, *more), options, read, others)
