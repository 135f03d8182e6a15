"""Planted copies among real images: how many are found, of each kind, and what else is called one.

fewmask's own search (fewmask.data.duplicates) on 10,000 images of Cats-vs-Dogs and copies of
some of them: the same bytes, the same pixels in another file, and altered ones. Then the search
alone at 100,000. Leaves table.md, results.json, examples.png and alarms.png.

    python benchmarks/duplicates.py --out results/duplicates
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewmask.data.duplicates import Thumbs, within
from fewmask.data.items import ImageFile, ImageItem
from fewmask.data.leakage import Shared
from fewmask.data.looks import look_at_images
from fewmask.data.sides import write_sides
from fewmask.data.sources import open_images
from fewmask.files import write_json_atomic, write_text_atomic
from fewmask.runs import versions

PHOTOGRAPHS = {500: 400, 1600: 100, 4000: 40}
"""Long side in pixels: how many are timed."""
JUDGED = Path(__file__).with_suffix(".json")
"""Alarms among the unplanted pictures, looked at one by one: pairs of names, real or not."""
Rng = np.random.Generator
Change = Callable[[Image.Image, Rng], Image.Image]


def cropped(
    picture: Image.Image, left: float, top: float, right: float, bottom: float
) -> Image.Image:
    w, h = picture.size
    return picture.crop(
        (round(left * w), round(top * h), round(w - right * w), round(h - bottom * h))
    )


def off_area(picture: Image.Image, rng: Rng) -> Image.Image:
    """A tenth of the area gone, sides in proportion, from a random place."""
    share = 1 - 0.9**0.5
    x, y = rng.uniform(0, share, 2)
    return cropped(picture, x, y, share - x, share - y)


def off_one_side(picture: Image.Image, rng: Rng) -> Image.Image:
    sides = [0.0] * 4
    sides[int(rng.integers(4))] = 0.1
    return cropped(picture, *sides)


def scaled(picture: Image.Image, x: float, y: float) -> Image.Image:
    w, h = picture.size
    return picture.resize((round(w * x), round(h * y)), Image.Resampling.BICUBIC)


def lit(picture: Image.Image, gain: float) -> Image.Image:
    values = np.clip(np.asarray(picture, np.float32) * gain, 0, 255)
    return Image.fromarray(values.astype(np.uint8))


def mirrored(picture: Image.Image) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def everything(picture: Image.Image, rng: Rng) -> Image.Image:
    return lit(mirrored(scaled(cropped(picture, *rng.uniform(0, 0.1, 4)), 0.7, 0.7)), 1.2)


KINDS: dict[str, tuple[Change, int]] = {
    "JPEG, quality 90": (lambda p, r: p, 90),
    "JPEG, quality 50": (lambda p, r: p, 50),
    "JPEG, quality 20": (lambda p, r: p, 20),
    "half the size": (lambda p, r: scaled(p, 0.5, 0.5), 90),
    "twice the size": (lambda p, r: scaled(p, 2, 2), 90),
    "squashed to 3/4 of its height": (lambda p, r: scaled(p, 1, 0.75), 90),
    "cropped, 10 % off each side": (lambda p, r: cropped(p, 0.1, 0.1, 0.1, 0.1), 90),
    "cropped, 10 % of the area": (off_area, 90),
    "cropped, 10 % off one side": (off_one_side, 90),
    "mirrored": (lambda p, r: mirrored(p), 90),
    "brighter, x 1.3": (lambda p, r: lit(p, 1.3), 90),
    "darker, x 0.6": (lambda p, r: lit(p, 0.6), 90),
    "cropped at random, smaller, mirrored, brighter, JPEG 60": (everything, 60),
}
"""What is done to a picture, and the JPEG quality it is saved with."""
EXACT = ("the same bytes", "the same pixels, as PNG")


def plant(
    items: list[ImageItem], each: int, folder: Path, rng: Rng
) -> tuple[list[ImageItem], list[tuple[str, int]]]:
    """Copies as files, each of a picture of its own; (kind, row of the original) of each."""
    sources = iter(rng.permutation(len(items)).tolist())
    copies: list[ImageItem] = []
    planted: list[tuple[str, int]] = []
    for kind in (*EXACT, *KINDS):
        for _ in range(each):
            row = next(sources)
            path = folder / f"{len(copies):05}.{'png' if kind == EXACT[1] else 'jpg'}"
            if kind == EXACT[0]:
                path.write_bytes(items[row].read())
            else:
                picture = Image.fromarray(items[row].pixels())
                change, quality = KINDS.get(kind, (lambda p, r: p, 0))
                change(picture, rng).save(path, quality=quality)
            copies.append(ImageFile(f"copy/{path.name}", path))
            planted.append((kind, row))
    return copies, planted


@contextmanager
def measured(found: dict[str, float], name: str) -> Iterator[None]:
    """Wall and CPU seconds, and the largest resident size of the process so far in MB."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    found[f"{name}_seconds"] = round(time.perf_counter() - wall, 1)
    found[f"{name}_cpu_seconds"] = round(time.process_time() - cpu, 1)
    found[f"{name}_peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def many(thumbs: Thumbs, n: int) -> Thumbs:
    """n thumbnails with the looks of real ones, hardly copies of one another: the real ones
    turned upside down, turned by 90 degrees, and rolled by half their height or width."""
    made = []
    for turn in range(16):
        own = thumbs.transpose(0, 2, 1) if turn & 2 else thumbs
        own = own[:, ::-1] if turn & 1 else own
        own = np.roll(own, (24 * (turn >> 2 & 1), 24 * (turn >> 3 & 1)), axis=(1, 2))
        noise = np.random.default_rng(turn).integers(-3, 4, own.shape)
        made.append(np.clip(own.astype(np.int16) + noise, 0, 255).astype(np.uint8))
        if len(made) * len(thumbs) >= n:
            break
    return np.ascontiguousarray(np.concatenate(made)[:n])


def judged() -> dict[frozenset[str], bool]:
    if not JUDGED.exists():
        return {}
    return {frozenset(row["pair"]): row["real"] for row in json.loads(JUDGED.read_text())}


def run(images: str, n: int, each: int, large: int, out: Path) -> None:
    rng = np.random.default_rng(0)
    source = open_images(images)
    chosen = np.sort(rng.permutation(len(source.items))[:n])
    items = [source.items[row] for row in chosen.tolist()]
    facts: dict[str, Any] = {"images": images, "n": len(items), "each": each}
    cost: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        copies, planted = plant(items, each, Path(folder), rng)
        every = [*items, *copies]
        with measured(cost, "decoding"):
            seen = look_at_images(every)
        with measured(cost, "searching"):
            alike = within(seen.thumbs, seen.hashes)
        rows = score(every, len(items), planted, set(alike.exact), set(alike.near), facts)
        examples(every, len(items), planted, set(alike.exact) | set(alike.near), out)
    alarms = [(exact, pair) for exact, found in ((True, alike.exact), (False, alike.near))
              for pair in found if max(pair) < len(items)]  # fmt: skip
    name_alarms(items, alarms, facts, out)
    facts |= {"kinds": rows, "cost": cost, "threads": torch.get_num_threads(),
              "versions": versions()}  # fmt: skip
    facts["photographs"] = decode_sizes(items)
    write(facts, out)
    if large:
        thumbs = many(seen.thumbs[: len(items)], large)
        names = [str(row) for row in range(len(thumbs))]
        with measured(cost, "searching_large"):
            again = within(thumbs, names).near
        turned = sum(i % len(items) == j % len(items) for i, j in again)
        facts["large"] = {"n": large, "pairs": len(again), "own_turned_self": turned}
        write(facts, out)
    print(table(facts))


def decode_sizes(items: Sequence[ImageItem]) -> list[dict[str, float]]:
    """CPU milliseconds to look at one JPEG, by its long side: what a pool of photographs costs.

    The set's pictures are enlarged and get a little noise, so that they compress as photographs do.
    """
    found: list[dict[str, float]] = []
    for side, n in PHOTOGRAPHS.items():
        with tempfile.TemporaryDirectory() as folder:
            for row, item in enumerate(items[:n]):
                picture = Image.fromarray(item.pixels())
                scale = side / max(picture.size)
                picture = scaled(picture, scale, scale)
                noise = np.random.default_rng(row).integers(
                    -6, 7, (picture.height, picture.width, 1)
                )
                pixels = (np.asarray(picture, np.int16) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(Path(folder, f"{row}.jpg"), quality=90)
            photographs = [ImageFile(path.name, path) for path in sorted(Path(folder).iterdir())]
            cost: dict[str, float] = {}
            with measured(cost, "look"):
                look_at_images(photographs)
            size = sum(one.stamp()[0] for one in photographs) / n / 1e6
        each = 1000 * cost["look_cpu_seconds"] / n
        found.append({"side": side, "n": n, "mb": round(size, 2), "ms": round(each, 1)})
    return found


def write(facts: dict[str, Any], out: Path) -> None:
    write_json_atomic(out / "results.json", facts)
    write_text_atomic(out / "table.md", table(facts))


def score(
    every: list[ImageItem],
    n: int,
    planted: list[tuple[str, int]],
    exact: set[tuple[int, int]],
    near: set[tuple[int, int]],
    facts: dict[str, Any],
) -> list[dict[str, Any]]:
    """Of each kind how many copies are paired with their original; and what else is paired."""
    rows: list[dict[str, Any]] = []
    for kind in dict.fromkeys(kind for kind, _ in planted):
        own = [(row, n + i) for i, (of, row) in enumerate(planted) if of == kind]
        found = sum(pair in (exact if kind in EXACT else exact | near) for pair in own)
        rows.append({"kind": kind, "planted": len(own), "found": found, "wrong": 0})
    of_kind = {row["kind"]: row for row in rows}
    original = {n + i: row for i, (_, row) in enumerate(planted)}
    twins = {pair for pair in exact | near if max(pair) < n}
    wrong = 0
    for i, j in exact | near:
        ends = tuple(sorted((original.get(i, i), original.get(j, j))))
        # The copy of a picture that the set holds twice is a copy of both.
        if ends[0] != ends[1] and ends not in twins:
            wrong += 1
            for kind in {planted[row - n][0] for row in (i, j) if row >= n}:
                of_kind[kind]["wrong"] += 1
    facts["planted_wrongly_paired"] = wrong
    facts["exact_not_equal"] = sum(
        not np.array_equal(every[i].pixels(), every[j].pixels()) for i, j in exact
    )
    return rows


def examples(
    every: list[ImageItem], n: int, planted: list[tuple[str, int]],
    found: set[tuple[int, int]], out: Path,
) -> None:  # fmt: skip
    """Two pairs of each kind, missed ones first."""
    shown = []
    for kind in dict.fromkeys(kind for kind, _ in planted):
        own = [(row, n + i) for i, (of, row) in enumerate(planted) if of == kind]
        own.sort(key=lambda pair: pair in found)
        for row, copy in own[:2]:
            words = f"{kind}: {'found' if (row, copy) in found else 'MISSED'}"
            shown.append((words, words, Shared(kind in EXACT, every[row], every[copy])))
    write_sides(out / "examples.png", shown, "Planted copies, two of each kind, missed first.")


def name_alarms(
    items: list[ImageItem],
    alarms: list[tuple[bool, tuple[int, int]]],
    facts: dict[str, Any],
    out: Path,
) -> None:
    known = judged()
    pairs = [(exact, items[i], items[j]) for exact, (i, j) in alarms]
    said = [known.get(frozenset((a.name, b.name))) for _, a, b in pairs]
    facts["alarms"] = {
        "exact": sum(exact for exact, _, _ in pairs),
        "near": sum(not exact for exact, _, _ in pairs),
        "real": said.count(True),
        "false": said.count(False),
        "not_looked_at": said.count(None),
        "pairs": [[a.name, b.name] for _, a, b in pairs],
    }
    shown = [("unplanted", "unplanted", Shared(exact, a, b)) for exact, a, b in pairs]
    if shown:
        write_sides(out / "alarms.png", shown, f"{len(shown)} alarms among unplanted pictures.")


def table(facts: dict[str, Any]) -> str:
    lines = [
        f"Copies planted among {facts['n']} images of `{facts['images']}`.",
        "",
        "| kind | planted | found | recall | paired with another picture |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row['kind']} | {row['planted']} | {row['found']} | "
            f"{100 * row['found'] / row['planted']:.1f} % | {row['wrong']} |"
            for row in facts["kinds"]
        ),
    ]
    alarms, cost = facts["alarms"], facts["cost"]
    n_all = facts["n"] + sum(row["planted"] for row in facts["kinds"])
    lines += [
        "",
        f"Among the unplanted pictures {alarms['exact']} exact and {alarms['near']} near pairs "
        f"were found; looked at one by one, {alarms['real']} are real, {alarms['false']} are not"
        + (f", {alarms['not_looked_at']} nobody looked at" if alarms["not_looked_at"] else "")
        + f". {facts['planted_wrongly_paired']} planted copies were paired with another picture. "
        f"{facts['exact_not_equal']} of the exact pairs differ in a pixel.",
        "",
        f"{n_all} images: decoding {cost['decoding_cpu_seconds']} s of CPU time, searching "
        f"{cost['searching_cpu_seconds']} s, {cost['searching_peak_mb']} MB at most (libraries "
        "included).",
    ]
    if "large" in facts:
        n = facts["large"]["n"]
        lines += [
            f"{n} thumbnails (real ones turned and rolled; {facts['large']['pairs']} pairs found: "
            "the set's own in every turn, and "
            f"{facts['large']['own_turned_self']} of a picture and its own turned self): searching "
            f"{cost['searching_large_cpu_seconds']} s of CPU time, "
            f"{cost['searching_large_peak_mb']} MB at most.",
            "",
            f"| long side | JPEG | to look at one | {n} of them |",
            "| --- | --- | --- | --- |",
            *(f"| {row['side']} px | {row['mb']} MB | {row['ms']} ms of CPU time | "
              f"{row['ms'] * n / 60_000:.0f} minutes of a core (computed) |"
              for row in facts["photographs"]),
        ]  # fmt: skip
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--images", default="cats-vs-dogs:", help="the real images")
    parser.add_argument("--n", type=int, default=10_000, help="how many of them")
    parser.add_argument("--each", type=int, default=200, help="planted copies of each kind")
    parser.add_argument("--large", type=int, default=100_000, help="thumbnails to time; 0: none")
    parser.add_argument("--out", type=Path, default=Path("results/duplicates"))
    given = parser.parse_args()
    run(given.images, given.n, given.each, given.large, given.out)


if __name__ == "__main__":
    main()
