"""A plan's file, and the flags in place of its entries -> a Plan."""

from __future__ import annotations

from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from fewmask.checkpoint import DEFAULT
from fewmask.decoders import DECODERS, Decoder, try_out
from fewmask.evidence.verdicts import MARGIN
from fewmask.flags import construct, near, options, read_toml, read_value
from fewmask.settings import RECIPES, FinetuneSettings, MaskFlags, StudySettings
from fewmask.studies.arms import ARM_ONLY, arm_keys, read_arms
from fewmask.studies.entries import in_range, read_budget, read_repeats
from fewmask.studies.plan import Plan
from fewmask.types import UserError

SHARED = ("pairs", "encoder", "decoder", "size", "resize", "recipe", "seed")

MASKS = tuple(field.name for field in fields(MaskFlags))

TRAINING = (*RECIPES["best"], "epochs")

YES_OR_NO = ("allow_overlap", "keep_test_images_in_pool")


def plan_names() -> list[str]:
    """The plans inside the package."""
    folder = resources.files("fewmask") / "plans"
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".toml"))


def load_plan(settings: StudySettings) -> Plan:
    """The plan of a name or file, with the flags in place of its entries.

    Raises UserError naming every wrong key with the nearest right one.
    """
    where, table = _table(settings.plan)
    _refuse_shapes(where, table)
    _overlay(table, settings)
    faults: list[str] = []
    _known_keys(where, table, faults)
    if faults:
        raise UserError(*faults)
    finetune = _finetune(where, table, settings)
    budgets = tuple(read_budget(where, b) for b in _listed(where, table, "budgets"))
    if len(set(budgets)) < len(budgets):
        raise UserError(f"{where}: budgets {list(budgets)} names one twice. Take it out")
    arms = read_arms(where, table, finetune, one_pool=settings.images is not None)
    names = [arm.name for arm in arms]
    baseline = table.get("baseline", "scratch" if "scratch" in names else names[0])
    if baseline not in names:
        raise UserError(f"{where}: baseline {baseline} is no arm; arms: {', '.join(names)}")
    name = str(table.get("name", Path(settings.plan).stem))
    return Plan(
        name=name,
        title=str(table.get("title", name)),
        about=" ".join(str(table.get("about", "")).split()),
        pairs=finetune.pairs,
        test=in_range(where, "test", table.get("test", 0.2)),
        budgets=budgets,
        repeats=read_repeats(where, table.get("repeats", 1), budgets),
        baseline=str(baseline),
        arms=arms,
        finetune=finetune,
        seed=finetune.seed,
        margin=in_range(where, "margin", table.get("margin", MARGIN)),
        targets=tuple(in_range(where, "targets", t) for t in _all(table.get("targets", []))),
        entries={"name": name, **table},
        **_sharing(where, table),
    )


def _sharing(where: str, table: dict[str, Any]) -> dict[str, Any]:
    """The plan's own test set, and what its sets may share."""
    kinds: dict[str, Any] = {"test_pairs": str, **dict.fromkeys(YES_OR_NO, bool)}
    said = {
        k: read_value(table[k], kind, f"{where}: {k}") for k, kind in kinds.items() if k in table
    }
    if "test_pairs" in said and "test" in table:
        raise UserError(f"{where}: test and test_pairs are both given: choose one")
    if said.get("allow_overlap") and "test_pairs" not in said:
        raise UserError(
            f"{where}: allow_overlap is for a test set of your own; name test_pairs (--test SRC)"
        )
    return said


def _refuse_shapes(where: str, table: dict[str, Any]) -> None:
    """Raises UserError where an entry is not of the kind that all else takes it for."""
    faults = [
        f"{where}: {name} is {_shown(table[name])}; expected a table, [{name}]"
        for name in ("finetune", "pretrain")
        if not isinstance(table.get(name, {}), dict)
    ]
    arms = table.get("arms", [])
    if not isinstance(arms, list) or not all(isinstance(arm, dict) for arm in arms):
        faults.append(f"{where}: arms is {_shown(arms)}; expected tables, [[arms]]")
    for name in ("pairs", "test_pairs", "name", "title", "about", "baseline"):
        if not isinstance(table.get(name, ""), str):
            faults.append(f"{where}: {name} is {_shown(table[name])}; expected text")
    if faults:
        raise UserError(*faults)


def _shown(value: Any) -> str:
    """A value in a fault's line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


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
    _unknown(where, "[pretrain] ", table.get("pretrain", {}), arm_keys(), faults)
    for i, entry in enumerate(table.get("arms", [])):
        _unknown(where, f"[[arms]] {i + 1} ", entry, (*arm_keys(), *ARM_ONLY), faults)


def _decoder(where: str, table: dict[str, Any]) -> type[Decoder]:
    name = str(table.get("decoder", "unet"))
    if name not in DECODERS:
        known = list(DECODERS)
        raise UserError(
            f"{where}: unknown decoder {name}{near(name, known)}; known: {', '.join(known)}"
        )
    return DECODERS[name]


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
    values = {k: read_value(v, kinds[k], f"{where}: {k}") for k, v in said.items()}
    values["decoder"] = construct(decoder, values)
    values |= {"device": settings.device, "precision": settings.precision, "out": ""}
    values["workers"] = settings.workers
    values.setdefault("encoder", DEFAULT)
    made: FinetuneSettings = construct(FinetuneSettings, values)
    try_out(made.decoder, made.encoder)
    return made.resolved()


def _all(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _listed(where: str, table: dict[str, Any], key: str) -> list[Any]:
    value = table.get(key)
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {key} is {value!r}; expected a list such as [0.2, 0.5, 0.8]")
    return value
