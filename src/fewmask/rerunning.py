"""Run again what a result came from, and say whether the same came out, or what differs."""

from __future__ import annotations

import csv
import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewmask import workflows
from fewmask.checkpoint import read_weights
from fewmask.data.images import limit_pixels
from fewmask.data.sources import open_images, open_pairs
from fewmask.decoders import DECODERS
from fewmask.files import reading
from fewmask.flags import build_parser, construct, given, options, read_config
from fewmask.pretext import PRETEXTS
from fewmask.runs import made_by
from fewmask.sealed import read_sealed, read_sealed_toml
from fewmask.settings import FinetuneSettings, PretrainSettings, RerunSettings, StudySettings
from fewmask.studies.run import run_study
from fewmask.types import RerunResult, UserError

WEIGHTS = ("encoder.safetensors", "model.safetensors")
SCORES = ("loss", "val_loss", "val_iou", "probe_iou")
"""Numbers of a run's result that are compared."""
_WHOLE = "Take the whole folder, as it was written"


def rerun(settings: RerunSettings) -> RerunResult:
    """Repeat a run or a study in another folder and compare. Raises UserError where there is no
    such result, or where its data are not those that it was made from.
    """
    before, out = Path(settings.result), Path(settings.out)
    if before.resolve() == out.resolve():
        raise UserError(f"--out {out}: is the result itself. Choose another folder")
    if (before / "study.json").is_file():
        told = _read(before / "study.json")
        surroundings = _surroundings(told)
        _repeat_study(before, told, out)
        found = _rows_apart(before / "results.csv", out / "results.csv")
    elif (before / "config.toml").is_file() and (before / "result.json").is_file():
        told = _read(before / "result.json")
        surroundings = _surroundings(told)
        _repeat_run(before, told, out)
        found = _runs_apart(before, out)
    else:
        raise UserError(
            f"{before}: holds neither study.json nor config.toml and result.json; expected the "
            "folder of a finished run or of a study"
        )
    return RerunResult(out, not found, tuple(found), tuple(surroundings))


def _read(path: Path) -> dict[str, Any]:
    with reading(path, _WHOLE):
        return read_sealed(path)


def _surroundings(told: dict[str, Any]) -> list[str]:
    """What is otherwise here than where the result was made; said before the work begins."""
    tables = [told.get(name) for name in ("versions", "made_by")]
    there = {k: v for table in tables if isinstance(table, dict) for k, v in table.items()}
    here = made_by()
    found = [
        f"{name} is {here[name] or 'unknown'} here, was {there[name] or 'unknown'}"
        for name in here
        if name in there and there[name] != here[name]
    ]
    for line in found:
        print(f"warning: {line}", file=sys.stderr)
    return found


def _repeat_run(before: Path, told: dict[str, Any], out: Path) -> None:
    if {"arm", "budget", "repeat"} <= told.keys():
        raise UserError(
            f"{before}: a study's cell, whose pairs the study has drawn. Name the study's folder"
        )
    read_sealed_toml(before / "config.toml")
    for name in WEIGHTS:
        if (before / name).is_file():
            read_weights(before / name)  # so that damaged ones are told of before the training
    config = str(before / "config.toml")
    values, kind = _settings(config)
    values["out"] = str(out)
    settings = construct(kind, values)
    limit_pixels(settings.max_megapixels)
    with reading(before / "result.json", _WHOLE):
        fingerprint = told["fingerprint"]
    if isinstance(settings, PretrainSettings):
        if open_images(settings.images).fingerprint() != fingerprint:
            raise _other_data(settings.images, before)
        workflows.pretrain(settings)
        return
    if not isinstance(settings, FinetuneSettings):
        raise UserError(f"{config}: is of neither pretrain nor finetune, nor a study's")
    pairs = open_pairs(settings.pairs, workflows.mask_options(settings))
    if pairs.fingerprint() != fingerprint:
        raise _other_data(settings.pairs, before)
    workflows.finetune(settings)


def _settings(config: str) -> tuple[dict[str, Any], type]:
    """The values of a run's config.toml, and whose they are."""
    from fewmask.flags import read_toml

    table = read_toml(config)
    for what, known, kind in (
        ("pretext", PRETEXTS, PretrainSettings),
        ("decoder", DECODERS, FinetuneSettings),
    ):
        component = {**known}.get(str(table.get(what)))
        if component is not None:
            kinds = {f.name: k for owner in (kind, component) for f, k, _ in options(owner)}
            values = read_config(config, kinds)
            return values | {what: construct(component, values)}, kind
    raise UserError(f"{config}: names neither a pretext task nor a decoder that there is here")


def _other_data(src: str, before: Path) -> UserError:
    return UserError(
        f"{src}: holds other images or masks now than {before} was made from. "
        "Bring them back, or train anew"
    )


def _repeat_study(before: Path, told: dict[str, Any], out: Path) -> None:
    _scores(before / "results.csv")  # so that a damaged one is told of before the work
    with reading(before / "study.json", _WHOLE):
        words, fingerprint = shlex.split(str(told["command"])), str(told["fingerprint"])
    if words[:2] != ["fewmask", "study"]:
        raise UserError(
            f"{before / 'study.json'}: doesn't say the command it was made by. {_WHOLE}"
        )
    parser = build_parser("fewmask study", StudySettings, positional=("plan",))
    settings: StudySettings = construct(StudySettings, given(parser, words[2:], StudySettings))
    limit_pixels(settings.max_megapixels)
    run_study(replace(settings, out=str(out)))
    again = _read(out / "study.json")
    if again["fingerprint"] != fingerprint:
        raise _other_data(again["pairs"], before)


def _runs_apart(before: Path, out: Path) -> list[str]:
    """In what two runs differ; nothing where their weights are equal, or, if those of the first are
    gone, their numbers.
    """
    for name in WEIGHTS:
        if (before / name).is_file() and (out / name).is_file():
            one, other = read_weights(before / name), read_weights(out / name)
            if one.keys() != other.keys():
                return [f"{name}: other tensors"]
            apart = max(
                (
                    float((one[k].double() - other[k].double()).abs().max())
                    for k in one
                    if one[k].numel()
                ),
                default=0.0,
            )
            return [] if apart == 0 else [f"{name}: weights differ by up to {apart:.3g}"]
    one, other = _read(before / "result.json"), _read(out / "result.json")
    return [
        f"{name}: {one[name]} before, {other.get(name)} now"
        for name in SCORES
        if name in one and one[name] != other.get(name)
    ]


def _rows_apart(before: Path, out: Path) -> list[str]:
    """In what the cells of two studies differ, by their IoU."""
    one, other = _scores(before), _scores(out)
    found = [f"{name}: is not there now" for name in one if name not in other]
    found += [f"{name}: was not there before" for name in other if name not in one]
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        if a != b and not (math.isnan(a) and math.isnan(b)):
            found.append(f"{name}: IoU {a:.6f} before, {b:.6f} now")
    return sorted(found)


def _scores(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    with reading(path, _WHOLE), path.open(encoding="utf-8-sig", newline="") as file:
        return {
            f"{row['arm']} at {row['budget']}, repeat {row['repeat']}": float(row["iou"] or "nan")
            for row in csv.DictReader(file)
        }
