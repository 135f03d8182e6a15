"""A plan -> its arms, budgets and cells, each named by what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

from fewmask.data import parts
from fewmask.data.sources import MaskOptions
from fewmask.decoders import DECODERS, Decoder, try_out
from fewmask.evidence.verdicts import MARGIN
from fewmask.flags import construct, convert, near, options, read_toml
from fewmask.pretext import PRETEXTS
from fewmask.settings import (
    RANGES,
    RECIPES,
    FinetuneSettings,
    MaskFlags,
    PretrainSettings,
    StudySettings,
    TrainingMachine,
)
from fewmask.types import UserError

BudgetSize = float | int
SHARED = ("pairs", "encoder", "decoder", "size", "resize", "recipe", "seed")
MASKS = tuple(field.name for field in fields(MaskFlags))
TRAINING = (*RECIPES["best"], "epochs")
YES_OR_NO = ("allow_overlap", "keep_test_images_in_pool")
ARM_ONLY = ("name", "sentence", "init", "weights", "allow_partial")


@dataclass(frozen=True)
class Arm:
    """A starting point. `pretrain` is None where the encoder is taken as it is."""

    name: str
    sentence: str
    init: str
    weights: str | None
    allow_partial: bool
    pretrain: PretrainSettings | None


@dataclass(frozen=True)
class Cell:
    """One fine-tuning and its test."""

    arm: Arm
    budget: BudgetSize
    repeat: int


@dataclass(frozen=True)
class Plan:
    """A study before any data is seen. `finetune` holds every arm's settings but start and seed."""

    name: str
    title: str
    about: str
    pairs: str
    test: float
    budgets: tuple[BudgetSize, ...]
    repeats: dict[BudgetSize, int]
    baseline: str
    arms: tuple[Arm, ...]
    finetune: FinetuneSettings
    seed: int
    margin: float
    targets: tuple[float, ...]
    test_pairs: str | None = None
    """A test set of the user's own; all pairs are then to train on."""
    allow_overlap: bool = False
    keep_test_images_in_pool: bool = False

    def cells(self) -> Iterator[Cell]:
        """Repeats outermost, so that a study stopped early compares all arms on equal terms."""
        for repeat in range(max(self.repeats.values())):
            for budget in self.budgets:
                if repeat < self.repeats[budget]:
                    yield from (Cell(arm, budget, repeat) for arm in self.arms)

    @property
    def mask_options(self) -> MaskOptions:
        f = self.finetune
        return MaskOptions(f.border, f.classes, f.ignore, f.mask_values)


def plan_names() -> list[str]:
    """The plans inside the package."""
    folder = resources.files("fewmask") / "plans"
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".toml"))


def load_plan(settings: StudySettings) -> Plan:
    """The plan of a name or file, with the flags in place of its entries.

    Raises UserError naming every wrong key with the nearest right one.
    """
    where, table = _table(settings.plan)
    _overlay(table, settings)
    faults: list[str] = []
    _known_keys(where, table, faults)
    if faults:
        raise UserError(*faults)
    finetune = _finetune(where, table, settings)
    budgets = tuple(_budget(where, b) for b in _listed(where, table, "budgets"))
    if len(set(budgets)) < len(budgets):
        raise UserError(f"{where}: budgets {list(budgets)} names one twice. Take it out")
    arms = tuple(arm for entry in _entries(where, table) for arm in _arms(where, entry, finetune))
    if settings.images:  # arms that differed in their images alone are one now
        arms = tuple({(arm.name, arm.init): arm for arm in arms}.values())
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: two arms are called {', '.join(twice)}. Give each its own name")
    baseline = table.get("baseline", "scratch" if "scratch" in names else names[0])
    if baseline not in names:
        raise UserError(f"{where}: baseline {baseline} is no arm; arms: {', '.join(names)}")
    return Plan(
        name=str(table.get("name", Path(settings.plan).stem)),
        title=str(table.get("title", table.get("name", Path(settings.plan).stem))),
        about=" ".join(str(table.get("about", "")).split()),
        pairs=finetune.pairs,
        test=float(table.get("test", 0.2)),
        budgets=budgets,
        repeats=_repeats(where, table.get("repeats", 1), budgets),
        baseline=str(baseline),
        arms=arms,
        finetune=finetune,
        seed=finetune.seed,
        margin=_in_range(where, "margin", table.get("margin", MARGIN)),
        targets=tuple(_in_range(where, "targets", t) for t in _all(table.get("targets", []))),
        **_sharing(where, table),
    )


def _sharing(where: str, table: dict[str, Any]) -> dict[str, Any]:
    """The plan's own test set, and what its sets may share."""
    kinds: dict[str, Any] = {"test_pairs": str, **dict.fromkeys(YES_OR_NO, bool)}
    said = {k: _value(table[k], kind, f"{where}: {k}") for k, kind in kinds.items() if k in table}
    if "test_pairs" in said and "test" in table:
        raise UserError(f"{where}: test and test_pairs are both given: choose one")
    if said.get("allow_overlap") and "test_pairs" not in said:
        raise UserError(
            f"{where}: allow_overlap is for a test set of your own; name test_pairs (--test SRC)"
        )
    return said


def _table(plan: str) -> tuple[str, dict[str, Any]]:
    if plan in plan_names():
        with resources.as_file(resources.files("fewmask") / "plans" / f"{plan}.toml") as path:
            return f"plan {plan}", read_toml(str(path))
    if not Path(plan).is_file() and not plan.endswith(".toml"):
        known = plan_names()
        raise UserError(
            f"unknown plan {plan}{near(plan, known)}; known: {', '.join(known)}, or a TOML file"
        )
    return plan, read_toml(plan)


def _overlay(table: dict[str, Any], settings: StudySettings) -> None:
    """Flags take the place of the plan's entries."""
    for name in (*SHARED, *MASKS):
        value = getattr(settings, name)
        if value is not None:
            table[name] = value
    _overlay_test(table, settings)
    training = {n: getattr(settings, n) for n in ("epochs", "steps", "batch_size", "lr")}
    training = {n: v for n, v in training.items() if v is not None}
    section = table.setdefault("finetune", {})
    if "epochs" in training or "steps" in training:
        section.pop("epochs", None)
        section.pop("steps", None)
    section.update(training)
    if settings.dev or settings.masks:
        table["budgets"] = [*(settings.dev or ()), *(settings.masks or ())]
        if isinstance(table.get("repeats"), dict):
            table["repeats"] = max(table["repeats"].values())
    if settings.repeats:
        table["repeats"] = settings.repeats
    for name in ("margin", "targets"):
        if getattr(settings, name) is not None:
            table[name] = getattr(settings, name)
    for entry in table.get("arms", []):
        if settings.images and "images" in entry:
            entry["images"] = settings.images
        if settings.weights and entry.get("init") == "imagenet":
            entry["weights"] = settings.weights


def _overlay_test(table: dict[str, Any], settings: StudySettings) -> None:
    if settings.test:
        table.pop("test", None)
        table["test_pairs"] = settings.test
    if settings.allow_overlap:
        table["allow_overlap"] = True


def _known_keys(where: str, table: dict[str, Any], faults: list[str]) -> None:
    top = (
        *SHARED,
        *MASKS,
        "name",
        "title",
        "about",
        "test",
        "test_pairs",
        *YES_OR_NO,
        "budgets",
        "repeats",
        "baseline",
        "margin",
        "targets",
        "weights",
        "finetune",
        "pretrain",
        "arms",
    )
    _unknown(where, "", table, top, faults)
    of_decoder = [f.name for f, _, _ in options(_decoder(where, table))]
    _unknown(where, "[finetune] ", table.get("finetune", {}), (*TRAINING, *of_decoder), faults)
    _unknown(where, "[pretrain] ", table.get("pretrain", {}), _arm_keys(), faults)
    for i, entry in enumerate(table.get("arms", [])):
        _unknown(where, f"[[arms]] {i + 1} ", entry, (*_arm_keys(), *ARM_ONLY), faults)


def _decoder(where: str, table: dict[str, Any]) -> type[Decoder]:
    name = str(table.get("decoder", "unet"))
    if name not in DECODERS:
        known = list(DECODERS)
        raise UserError(
            f"{where}: unknown decoder {name}{near(name, known)}; known: {', '.join(known)}"
        )
    return DECODERS[name]


def _arm_keys() -> tuple[str, ...]:
    machine = {field.name for field in fields(TrainingMachine)}
    own = [f.name for f, _, _ in options(PretrainSettings) if f.name not in machine | {"out"}]
    return (*own, *(f.name for kind in PRETEXTS.values() for f, _, _ in options(kind)))


def _unknown(where: str, section: str, table: Any, known: Any, faults: list[str]) -> None:
    if not isinstance(table, dict):
        faults.append(f"{where}: {section.strip()} is no table")
        return
    for key in table:
        if key not in known:
            hint = "; it belongs into [finetune]" if not section and key in TRAINING else ""
            faults.append(f"{where}: {section}unknown key {key}{hint or near(key, list(known))}")


def _finetune(where: str, table: dict[str, Any], settings: StudySettings) -> FinetuneSettings:
    if "pairs" not in table:
        raise UserError(f"{where}: pairs is missing; name the labelled data (or pass --pairs)")
    said = {k: table[k] for k in (*SHARED, *MASKS) if k in table} | table["finetune"]
    decoder = _decoder(where, table)
    kinds = {f.name: kind for owner in (FinetuneSettings, decoder) for f, kind, _ in options(owner)}
    values = {k: _value(v, kinds[k], f"{where}: {k}") for k, v in said.items()}
    values["decoder"] = construct(decoder, values)
    values |= {"device": settings.device, "precision": settings.precision, "out": ""}
    values["workers"] = settings.workers
    made: FinetuneSettings = construct(FinetuneSettings, values)
    try_out(made.decoder, made.encoder)
    return made.resolved()


def _value(value: Any, kind: Any, where: str) -> Any:
    """A TOML value checked as the flag of that type would be."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return convert(text, kind, where)


def _all(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _in_range(where: str, key: str, value: Any) -> float:
    low, high, words = RANGES[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{where}: {key} {value}: expected {words}")
    return float(value)


def _listed(where: str, table: dict[str, Any], key: str) -> list[Any]:
    value = table.get(key)
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {key} is {value!r}; expected a list such as [0.2, 0.5, 0.8]")
    return value


def _budget(where: str, value: Any) -> BudgetSize:
    if value == 1 and isinstance(value, int):
        raise UserError(f"{where}: budget 1; 1 mask can't train and validate. 1.0 is all of them")
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(
            f"{where}: budget {value!r}; expected a fraction (0.2) or a number of masks"
        )
    if isinstance(value, float) and value > 1:
        raise UserError(
            f"{where}: budget {value}; a fraction is at most 1, a number of masks whole"
        )
    return value


def _repeats(where: str, value: Any, budgets: tuple[BudgetSize, ...]) -> dict[BudgetSize, int]:
    """One number for all budgets, or a table of budget -> number."""
    each = value if isinstance(value, dict) else dict.fromkeys(map(str, budgets), value)
    missing = [str(b) for b in budgets if str(b) not in each]
    wrong = [f"{k} = {v!r}" for k, v in each.items() if not isinstance(v, int) or v < 1]
    idle = [k for k in each if k not in map(str, budgets)]
    if idle:
        raise UserError(
            f"{where}: [repeats] names {', '.join(idle)}, which is no budget; "
            f"budgets: {', '.join(map(str, budgets))}"
        )
    if missing or wrong:
        raise UserError(
            f"{where}: repeats {', '.join(wrong) or 'lack budget ' + ', '.join(missing)}; "
            "expected a whole number above 0, or one for each budget"
        )
    return {budget: each[str(budget)] for budget in budgets}


def _entries(where: str, table: dict[str, Any]) -> Iterator[dict[str, Any]]:
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


def _arms(where: str, entry: dict[str, Any], finetune: FinetuneSettings) -> Iterator[Arm]:
    init = str(entry.get("init", "scratch"))
    weights = entry.get("weights")
    partial = bool(entry.get("allow_partial", False))
    suffix, words = entry.pop("suffix"), entry.pop("words")
    if "images" not in entry:
        stem = init if init in ("scratch", "imagenet") else Path(init).stem
        name = str(entry.get("name", stem)) + suffix
        sentence = entry.get("sentence", STARTS.get(init, f"the weights of {init}"))
        yield Arm(name, str(sentence), init, weights, partial, None)
        return
    pretrain = _pretrain(where, entry, finetune)
    pool = pool_name(str(entry["images"]))
    task = getattr(pretrain.pretext, "name", str(pretrain.pretext))
    prefix = (
        "" if init == "scratch" else ("imagenet+" if init == "imagenet" else Path(init).stem + "+")
    )
    name = str(entry.get("name", f"{prefix}{task}-{pool}")) + suffix
    start = STARTS.get(init, f"the weights of {init}")
    sentence = entry.get("sentence", f"{task} on {pool}, begun from {start}{words}")
    yield Arm(name, str(sentence), init, weights, partial, pretrain)


STARTS = {"scratch": "random weights", "imagenet": "ImageNet weights"}


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
    values = {k: _value(v, kinds[k], f"{where}: {k}") for k, v in said.items()}
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
