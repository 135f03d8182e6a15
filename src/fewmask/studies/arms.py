"""The arms of a plan's file: one for each point of their entries' axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from fewmask.data import parts
from fewmask.flags import construct, near, options, read_value
from fewmask.pretext import PRETEXTS
from fewmask.settings import FinetuneSettings, PretrainSettings, TrainingMachine
from fewmask.studies.plan import Arm
from fewmask.types import UserError

ARM_ONLY = ("name", "sentence", "init", "weights", "allow_partial")

STARTS = {"scratch": "random weights", "imagenet": "ImageNet weights"}


def read_arms(
    where: str, table: dict[str, Any], finetune: FinetuneSettings, *, one_pool: bool
) -> tuple[Arm, ...]:
    """All arms of `table`; with `one_pool`, those that differ in their images alone are one.

    Raises UserError where there are none, where two bear one name, and for a value that is wrong.
    """
    arms = tuple(_arm(where, entry, finetune) for entry in _points(where, table))
    if one_pool:
        arms = tuple({(arm.name, arm.init): arm for arm in arms}.values())
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: two arms are called {', '.join(twice)}. Give each its own name")
    return arms


def arm_keys() -> tuple[str, ...]:
    """What an arm may set of its pre-training: the settings, and the options of all tasks."""
    machine = {field.name for field in fields(TrainingMachine)}
    own = [f.name for f, _, _ in options(PretrainSettings) if f.name not in machine | {"out"}]
    return (*own, *(f.name for kind in PRETEXTS.values() for f, _, _ in options(kind)))


def _points(where: str, table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Arm entries with the shared pre-training settings, one for each point of their axes."""
    entries = table.get("arms")
    if not entries:
        raise UserError(f"{where}: no arms; add [[arms]] tables, each with init or images")
    lists = {f.name for kind in PRETEXTS.values() for f, k, _ in options(kind) if _is_list(k)}
    shared = table.get("pretrain", {})
    for entry in entries:
        pretrains = "images" in entry or ("images" in shared and "pretext" in entry)
        idle = sorted(set(entry) - {*ARM_ONLY}) if not pretrains else []
        if idle:
            raise UserError(
                f"{where}: an arm sets {idle[0]} but names no images to pre-train on. "
                "Add images, or take it out"
            )
        full = {**shared, **entry} if pretrains else dict(entry)
        if "weights" in table and full.get("init") == "imagenet":
            full.setdefault("weights", table["weights"])
        axes = {k: v for k, v in full.items() if isinstance(v, list) and k not in lists}
        for point in product(*axes.values()):
            chosen = dict(zip(axes, point, strict=True))
            suffix = "".join(f"-{k}={v}" for k, v in chosen.items() if k != "images")
            words = "".join(f", {k} {v}" for k, v in chosen.items() if k != "images")
            yield {**full, **chosen, "suffix": suffix, "words": words}


def _is_list(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is tuple


def _arm(where: str, entry: dict[str, Any], finetune: FinetuneSettings) -> Arm:
    init = str(entry.get("init", "scratch"))
    weights = entry.get("weights")
    partial = bool(entry.get("allow_partial", False))
    suffix, words = entry.pop("suffix"), entry.pop("words")
    if "images" not in entry:
        stem = init if init in ("scratch", "imagenet") else Path(init).stem
        name = str(entry.get("name", stem)) + suffix
        sentence = entry.get("sentence", STARTS.get(init, f"the weights of {init}"))
        return Arm(name, str(sentence), init, weights, partial, None)
    pretrain = _pretrain(where, entry, finetune)
    pool = pool_name(str(entry["images"]))
    task = getattr(pretrain.pretext, "name", str(pretrain.pretext))
    prefix = (
        "" if init == "scratch" else ("imagenet+" if init == "imagenet" else Path(init).stem + "+")
    )
    name = str(entry.get("name", f"{prefix}{task}-{pool}")) + suffix
    start = STARTS.get(init, f"the weights of {init}")
    sentence = entry.get("sentence", f"{task} on {pool}, begun from {start}{words}")
    return Arm(name, str(sentence), init, weights, partial, pretrain)


def pool_name(src: str) -> str:
    """cifar10 for `cifar10:PATH`, the folder's name for a folder; of parts with what they are."""
    if found := parts.split(src):
        return parts.pool_name(found, [pool_name(part.src) for part in found])
    kind, colon, _ = src.partition(":")
    return kind if colon and not Path(src).exists() else Path(src).resolve().name


def _pretrain(where: str, entry: dict[str, Any], finetune: FinetuneSettings) -> PretrainSettings:
    pretext = str(entry.get("pretext", "simclr"))
    if pretext not in PRETEXTS:
        known = list(PRETEXTS)
        raise UserError(f"{where}: unknown pretext task {pretext}{near(pretext, known)}")
    kind = PRETEXTS[pretext]
    kinds = {f.name: k for owner in (PretrainSettings, kind) for f, k, _ in options(owner)}
    said = {k: v for k, v in entry.items() if k not in ("name", "sentence")}
    unknown = [k for k in said if k not in kinds]
    if unknown:
        raise UserError(f"{where}: {pretext} has no {unknown[0]}{near(unknown[0], list(kinds))}")
    values = {k: read_value(v, kinds[k], f"{where}: {k}") for k, v in said.items()}
    values = {
        "size": finetune.size,
        "resize": finetune.resize,
        "encoder": finetune.encoder,
        "seed": finetune.seed,
        **values,
        "out": "",
        "device": finetune.device,
        "precision": finetune.precision,
        "workers": finetune.workers,
    }
    made: PretrainSettings = construct(PretrainSettings, values)
    if made.encoder != finetune.encoder:
        raise UserError(
            f"{where}: an arm pre-trains {made.encoder}, the plan fine-tunes {finetune.encoder}. "
            "Name one encoder, at the top"
        )
    return replace(made, pretext=construct(kind, values))
