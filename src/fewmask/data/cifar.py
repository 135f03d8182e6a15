"""CIFAR-10 (Krizhevsky 2009): parquet, the official python batches, or folders of PNGs."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fewmask.data import folders
from fewmask.data.images import Pixels
from fewmask.data.listing import walk
from fewmask.data.parquet import read_parquet, train_files
from fewmask.data.sources import ImageSet, downloading, existing
from fewmask.plainfiles import open_plain
from fewmask.types import UserError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class BatchImage:
    """One row of an official batch: 3,072 bytes, three planes of 32 x 32."""

    name: str
    path: Path
    row: int
    data: Pixels = field(repr=False, compare=False)

    @property
    def where(self) -> str:
        return f"{self.path}#{self.row}"

    def read(self) -> bytes:
        return bytes(self.data[self.row])

    def stamp(self) -> tuple[int, int]:
        return 3072, self.path.stat().st_mtime_ns

    def pixels(self, least: int | None = None) -> Pixels:
        return np.ascontiguousarray(self.data[self.row].reshape(3, 32, 32).transpose(1, 2, 0))


ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
"""All that numpy's arrays need to come back from a pickle of protocol 2."""


class _OnlyArrays(pickle.Unpickler):
    """Unpickles numbers, text, lists and numpy arrays; anything else would be code to run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_batch(path: Path) -> tuple[Pixels, list[int]]:
    """An official batch: uint8 [N,3072] and labels. Raises UserError for anything but arrays."""
    try:
        with open_plain(path) as file:
            table = _OnlyArrays(file, encoding="latin1").load()
        data = np.asarray(table["data"], np.uint8).reshape(-1, 3072)
        labels = [int(label) for label in table["labels"]]
        if len(labels) != len(data) or not set(labels) <= set(range(len(NAMES))):
            raise ValueError(f"{len(data)} images, {len(labels)} labels, up to {max(labels)}")
        return data, labels
    except Exception as problem:  # a broken pickle can raise anything
        why = " ".join(str(problem).split())
        raise UserError(f"{path}: no CIFAR-10 batch ({why}). Download it again") from None


def images(src: str, path: Path, download: bool) -> ImageSet:
    """The training images, in whichever of the three layouts they lie."""
    if not path.is_dir() and not download:
        existing(src, path, known=True)
    if path.is_dir() and (files := train_files(path)):
        items, labels, shards = read_parquet(files)
        return ImageSet(src, "cifar10", items, labels, NAMES, shards=shards)
    batches = next((f for f in (path, path / "cifar-10-batches-py")
                    if (f / "data_batch_1").exists()), None)  # fmt: skip
    if batches:
        return _official(src, batches)
    for root in (path / "train", path):
        if root.is_dir():
            found, others = walk(root)
            labels, names = folders.class_folders(found)
            if labels:
                return ImageSet(src, "cifar10", found, labels, names, others)
    if download:
        from torchvision.datasets import CIFAR10

        with downloading(src, path):
            CIFAR10(path, download=True)
        return images(src, path, download=False)
    raise UserError(
        f"{src}: {path} holds no parquet files, no data_batch_1 and no class folders. "
        "Name the folder of CIFAR-10, or pass --download to fetch it"
    )


def _official(src: str, root: Path) -> ImageSet:
    items: list[BatchImage] = []
    labels: list[int] = []
    for path in sorted(root.glob("data_batch_*")):
        data, own = read_batch(path)
        items += [BatchImage(f"{path.name}#{row}", path, row, data) for row in range(len(data))]
        labels += own
    return ImageSet(src, "cifar10", items, tuple(labels), NAMES)
