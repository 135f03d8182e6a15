"""`SRC` -> what is there: image sets and pairs, listed but not yet decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fewmask.data.items import ImageFile, ImageItem, fingerprint
from fewmask.data.listing import FileList
from fewmask.data.shards import Shards
from fewmask.data.table import ClassTable
from fewmask.flags import near
from fewmask.types import Border, Labels, UserError


@dataclass(frozen=True)
class ImageSet:
    """Unlabelled images. `labels` index `label_names` where the layout names a class per image."""

    src: str
    pool: str
    items: Sequence[ImageItem]
    labels: tuple[int, ...] | None = None
    label_names: tuple[str, ...] = ()
    other_files: int = 0
    shards: Shards | None = None
    """How the images lie in large files, where they do."""

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return (
            self.items.fingerprint()
            if isinstance(self.items, FileList)
            else fingerprint(self.items)
        )


@dataclass(frozen=True)
class MaskOptions:
    """How the values in mask files are to be read."""

    border: Border = "ignore"
    classes: tuple[str, ...] | None = None
    ignore: int | None = None
    mask_values: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    name: str
    image: ImageItem
    mask: ImageFile


@dataclass(frozen=True)
class PairSet:
    """Images with masks, in order of name. `faults` are what listing alone found.

    `labels` are those of a known layout; `table` is the class_dict.csv of a folder.
    """

    src: str
    pool: str
    items: tuple[Pair, ...]
    faults: tuple[str, ...]
    options: MaskOptions
    labels: Labels | None = None
    other_files: int = 0
    table: ClassTable | None = None

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        both = [item for pair in self.items for item in (pair.image, pair.mask)]
        return fingerprint(both, *((self.table.text,) if self.table else ()))


# --- SRC ------------------------------------------------------------------------------------------


def _kinds() -> dict[str, Callable[[str, Path, bool], ImageSet]]:
    from fewmask.data import cats_dogs, cifar, pets

    return {"oxford-iiit-pet": pets.images, "cifar10": cifar.images,
            "cats-vs-dogs": cats_dogs.images}  # fmt: skip


def split_source(src: str) -> tuple[str | None, Path]:
    """(kind or None, path). A path that exists wins over a kind; `KIND:` lies in $FEWMASK_DATA."""
    kind, colon, rest = src.partition(":")
    kinds = list(_kinds())
    if not colon or os.path.lexists(src):
        if src in kinds and not os.path.lexists(src):
            raise UserError(f"{src}: no such folder. Did you mean {src}: (with a colon)?")
        return None, Path(src)
    if kind not in kinds:
        if "/" in kind or os.sep in kind or len(kind) == 1:
            return None, Path(src)
        raise UserError(f"{src}: unknown kind {kind}{near(kind, kinds)}; known: {', '.join(kinds)}")
    # The shell leaves the ~ of KIND:~/data alone.
    return kind, Path(rest).expanduser() if rest else data_root() / kind


def data_root() -> Path:
    """$FEWMASK_DATA, else ./data: where `KIND:` without a path lies."""
    return Path(os.environ.get("FEWMASK_DATA") or "data")


def existing(src: str, path: Path, *, known: bool = False) -> Path:
    """The path, if it is a folder. Raises UserError naming near ones, or --download."""
    if path.is_dir():
        return path
    named = src if src == str(path) else f"{src.removesuffix(':')}: {path}"
    if path.exists():
        raise UserError(f"{named}: is a file; expected a folder of images")
    try:
        siblings = os.listdir(path.parent)
    except OSError:
        siblings = []
    mend = "Mend the path"
    if known:
        own = "set FEWMASK_DATA to the folder it lies in" if src.endswith(":") else "mend the path"
        mend = f"Pass --download to fetch it, or {own}"
    raise UserError(f"{named}: no such folder{near(path.name, siblings)}. {mend}")


@contextmanager
def downloading(src: str, path: Path) -> Iterator[None]:
    """A download in which whatever goes wrong is told as a UserError."""
    try:
        yield
    except Exception as problem:  # torchvision's and the hub's have no common ancestor
        why = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise UserError(
            f"{src}: the download to {path} failed ({why}). Try again, or put the files there"
        ) from None


def open_images(src: str, *, download: bool = False) -> ImageSet:
    """The images of a source, listed; of a part or a mixture too. Raises UserError for none."""
    from fewmask.data import parts

    if found := parts.split(src):
        return parts.open_parts(src, found, download=download)
    kind, path = split_source(src)
    if kind is None:
        from fewmask.data import folders

        return folders.images(src, existing(src, path))
    return _kinds()[kind](src, path, download)


def open_pairs(src: str, options: MaskOptions | None = None, *, download: bool = False) -> PairSet:
    """The pairs of a source, listed. Raises UserError where there are none."""
    from fewmask.data import folders, parts, pets

    if parts.split(src):
        raise UserError(
            f"{src}: parts and mixtures are of images alone. Name one whole source of pairs; "
            "--masks N or --dev FRACTION take some of them"
        )
    kind, path = split_source(src)
    options = options or MaskOptions()
    if kind is None and options.border != "ignore":
        raise UserError(
            f"--border {options.border} is for oxford-iiit-pet: alone; {src} is a folder. "
            "Use --mask-values or --ignore for its masks"
        )
    if kind is None:
        return folders.pairs(src, existing(src, path), options)
    if kind != "oxford-iiit-pet":
        raise UserError(f"{src}: {kind} has no masks. Use it as --images; pairs can be a folder "
                        "with images/ and masks/, or oxford-iiit-pet:PATH")  # fmt: skip
    return pets.pairs(src, path, options, download=download)


def open_file(path: str) -> ImageFile:
    """One image file."""
    return ImageFile(Path(path).name, Path(path))
