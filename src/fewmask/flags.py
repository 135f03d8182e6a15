"""Dataclasses <-> flags and configuration files.

argparse rather than a wrapper of it: a user's mistake has to be one plain line (which the typed
wrappers box and wrap), and configuration files have to pass the same checks as flags.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import docstring_parser

from fewmask.types import UserError, is_union

COMPONENTS = {"Pretext": str, "Decoder": str}
"""Types of settings that are a component: named on the command line, with flags of its own."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors. `positional` are fields that are no flags."""

    positional: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help")


def near(word: str, known: Sequence[str]) -> str:
    """The words `; near: a, b`, or nothing where no known word is near."""
    found = difflib.get_close_matches(word, dict.fromkeys(known), n=3, cutoff=0.5)
    return f"; near: {', '.join(found)}" if found else ""


def flag_name(field_name: str) -> str:
    """The flag of a field: `--batch-size` of `batch_size`."""
    return "--" + field_name.replace("_", "-")


def options(cls: type) -> tuple[tuple[Field[Any], Any, str], ...]:
    """(field, type, help) of a dataclass's fields; those of nested dataclasses flattened."""
    return _options(cls)


@cache  # hints and docstrings take a second for all; mypy calls classes of ours not hashable
def _options(cls: type) -> tuple[tuple[Field[Any], Any, str], ...]:
    return tuple(_read_options(cls))


def _read_options(cls: type) -> Iterator[tuple[Field[Any], Any, str]]:
    hints = get_type_hints(cls, localns=COMPONENTS)
    texts = {
        p.arg_name: p.description or ""
        for c in reversed(cls.__mro__)
        if is_dataclass(c)
        for p in docstring_parser.parse_from_object(c).params
    }
    own = inspect.get_annotations(cls)
    for field in sorted(fields(cls), key=lambda f: f.name not in own):
        if is_dataclass(hints[field.name]):
            yield from options(hints[field.name])
        else:
            yield field, _plain(hints[field.name]), " ".join(texts.get(field.name, "").split())


def _plain(hint: Any) -> Any:
    """The type without `| None`; a union with str is str (a component, named on the line)."""
    if is_union(hint):
        kinds = [a for a in get_args(hint) if a is not type(None)]
        return str if str in kinds else kinds[0]
    return hint


LARGEST_WHOLE = 2**63 - 1
"""Whole numbers beyond it fit no tensor and no file of ours."""


def convert(text: str, kind: Any, flag: str) -> Any:
    """The value that `text` stands for.

    Raises UserError naming the flag, the value and what was expected.
    """
    if get_origin(kind) is Literal:
        choices = [str(c) for c in get_args(kind)]
        if text not in choices:
            raise UserError(
                f"{flag} {text}: expected one of {', '.join(choices)}{near(text, choices)}"
            )
        return text
    if get_origin(kind) is tuple:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(convert(part, get_args(kind)[0], flag) for part in parts)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{flag} {text}: expected true or false")
        return text.lower() == "true"
    try:
        value = kind(text)
        if kind is int and abs(value) > LARGEST_WHOLE:
            raise UserError(f"{flag} {text[:30]}: expected a whole number up to {LARGEST_WHOLE}")
        return value
    except ValueError:
        words = {int: "a whole number", float: "a number"}
        raise UserError(f"{flag} {text}: expected {words.get(kind, kind.__name__)}") from None


def read_value(value: Any, kind: Any, where: str) -> Any:
    """A TOML file's value, checked as the flag of that type would be; raises UserError.

    Where a text is expected, numbers may stand in a list, as they do between commas.
    """
    many = isinstance(value, list | tuple)
    if many and get_origin(kind) is tuple:  # an entry may hold commas
        return tuple(read_value(one, get_args(kind)[0], where) for one in value)
    numbers = many and bool(value) and all(_is_number(one) for one in value)
    if kind is str and not (isinstance(value, str) or numbers):
        raise UserError(f"{where} is {value!r}; expected a text, in quotes")
    if isinstance(value, dict) or (many and kind is not str):
        raise UserError(f"{where} is {value!r}; expected one value")
    return convert(",".join(map(str, value)) if many else str(value), kind, where)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and float(value) is not None
    except (TypeError, ValueError):
        return False


def build_parser(
    prog: str,
    cls: type,
    *components: type,
    positional: Sequence[str] = (),
    repeated: Sequence[str] = (),
) -> Parser:
    """A parser of the flags of a command's settings and of its chosen components."""
    parser = Parser(prog=prog, description=(cls.__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.positional = tuple(positional)
    for owner in (cls, *components):
        title = None if owner is cls else f"of {getattr(owner, 'name', owner.__name__)}"
        group = parser.add_argument_group(title) if title else parser
        for field, kind, text in options(owner):
            _add(group, field, kind, text, field.name in positional, field.name in repeated)
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="a TOML file of these settings; flags go before it",
    )
    return parser


def _add(
    group: Any, field: Field[Any], kind: Any, text: str, positional: bool, repeated: bool
) -> None:
    default = _default(field)
    if default not in (MISSING, None, (), False) and not positional:
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{text} (default: {shown})"
    text = text.replace("%", "%%")
    if positional:
        many = get_origin(kind) is tuple
        group.add_argument(
            field.name,
            nargs="*" if many else "?",
            default=argparse.SUPPRESS,
            help=text,
            metavar=field.name.upper(),
        )
    elif kind is bool:
        group.add_argument(
            flag_name(field.name),
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=text,
        )
    else:
        choices = "|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else None
        group.add_argument(
            flag_name(field.name),
            default=argparse.SUPPRESS,
            help=text,
            action="append" if repeated else "store",
            metavar=choices or field.name.upper(),
        )


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def given(
    parser: Parser, argv: Sequence[str], *owners: type, others: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """What the command line and its configuration file say, converted and checked.

    `others` are the components that were not chosen, by the words that choose them.
    """
    known = {field.name: kind for owner in owners for field, kind, _ in options(owner)}
    namespace, rest = parser.parse_known_args(argv)
    if rest:
        wrong, _, _ = rest[0].partition("=")
        bare = [n for n in parser.positional if flag_name(n) == wrong]
        if bare:
            raise UserError(f"{wrong}: is given without a flag, after the command. See --help")
        flags = [flag_name(name) for name in known if name not in parser.positional]
        theirs = [
            words
            for words, other in (others or {}).items()
            if wrong in [flag_name(f.name) for f, _, _ in options(other)]
        ]
        if theirs:
            raise UserError(
                f"{wrong} goes with {' or '.join(theirs)}. Choose that, or leave it out"
            )
        raise UserError(f"unknown argument {rest[0]}{near(wrong, flags)}")
    said = vars(namespace)
    values = read_config(said.pop("config"), known) if "config" in said else {}
    for name, value in said.items():
        kind, flag = known[name], flag_name(name)
        if isinstance(value, list):
            values[name] = tuple(value)
        else:
            values[name] = convert(value, kind, flag) if isinstance(value, str) else value
    return values


def read_toml(path: str) -> dict[str, Any]:
    """The table in a TOML file. Raises UserError where there is none or it does not parse."""
    try:
        # A pipe, too: `--config <(...)`. Editors add a mark.
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as problem:
        raise UserError(f"{path}: cannot be read ({problem.strerror}). Name a TOML file") from None
    except (ValueError, RecursionError) as problem:  # a number of 5,000 digits is a ValueError
        raise UserError(f"{path}: not valid TOML ({problem}). Mend that line") from None


def read_config(path: str, known: dict[str, Any]) -> dict[str, Any]:
    """A configuration file's values by field name, each checked as a flag would be."""
    table = read_toml(path)
    values, faults = {}, []
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            faults.append(f"{path}: unknown key {key}{near(name, list(known))}")
            continue
        try:
            values[name] = read_value(value, known[name], f"{path}: {key}")
        except UserError as problem:
            faults.extend(problem.faults)
    if faults:
        raise UserError(*faults)
    return values


def construct(cls: type, values: dict[str, Any]) -> Any:
    """An instance of a dataclass from flat values, nested dataclasses included.

    Raises UserError naming the fields that have no default and no value.
    """
    hints = get_type_hints(cls, localns=COMPONENTS)
    arguments, missing = {}, []
    for field in fields(cls):
        if is_dataclass(hints[field.name]):
            arguments[field.name] = construct(hints[field.name], values)
        elif field.name in values:
            arguments[field.name] = values[field.name]
        elif _default(field) is MISSING:
            missing.append(field.name)
    if missing:
        raise UserError(*(f"{flag_name(name)} is missing" for name in missing))
    return cls(**arguments)


def flat(settings: Any) -> dict[str, Any]:
    """Every field of a settings object by name, nested dataclasses flattened, None left out."""
    values: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            name = getattr(value, "name", None)
            values |= ({field.name: name} if name else {}) | flat(value)
        elif value is not None:
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values
