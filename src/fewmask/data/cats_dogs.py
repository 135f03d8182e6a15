"""Cats-vs-Dogs (Asirra, Elson et al. 2007): two folders, Kaggle's flat names, or parquet."""

from __future__ import annotations

from pathlib import Path

from fewmask.data.listing import walk
from fewmask.data.parquet import read_parquet, train_files
from fewmask.data.sources import ImageSet, downloading, existing
from fewmask.types import UserError

NAMES = ("cat", "dog")
HUB = "microsoft/cats_vs_dogs"


def images(src: str, path: Path, download: bool) -> ImageSet:
    """All images, labelled cat or dog by folder, file name or column."""
    if not path.is_dir() and download:
        _download(src, path)
    root = existing(src, path, known=True)
    if files := train_files(root):
        items, labels, shards = read_parquet(files)
        return ImageSet(src, "cats-vs-dogs", items, labels, NAMES, shards=shards)
    for inside in (root / "PetImages", root / "train", root):
        if inside.is_dir():
            found, others = walk(inside)
            told = list(enumerate(map(_label, found.names())))
            known = [(row, label) for row, label in told if label is not None]
            if known:
                kept = found if len(known) == len(found) else [found[row] for row, _ in known]
                labels = tuple(label for _, label in known)
                rest = others + len(found) - len(known)
                return ImageSet(src, "cats-vs-dogs", kept, labels, NAMES, rest)
    if download:
        _download(src, root)
        return images(src, root, download=False)
    raise UserError(
        f"{src}: {root} holds no Cat/ and Dog/ folders, no cat.N.jpg and no parquet files. "
        "Name the folder of Cats-vs-Dogs, or pass --download to fetch it"
    )


def _label(name: str) -> int | None:
    """By the folder (Cat/1.jpg) or the name (cat.1.jpg)."""
    inside, _, file = name.lower().rpartition("/")
    for word in (inside.rpartition("/")[2], file.split(".")[0]):
        if word in NAMES:
            return NAMES.index(word)
        if word in ("cats", "dogs"):
            return NAMES.index(word[:-1])
    return None


def _download(src: str, path: Path) -> None:
    from huggingface_hub import snapshot_download

    with downloading(src, path):
        snapshot_download(HUB, repo_type="dataset", allow_patterns="*.parquet", local_dir=path)
