"""The command line: parses, runs and says what is wrong."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from typing import Any, NoReturn

from fewmask import __version__
from fewmask.cli.commands import RUN
from fewmask.flags import build_parser, construct, flag_name, given, near
from fewmask.ranks import AlreadyTold, LostProcess, launched, refuse_many, told_by_the_first
from fewmask.types import Terminated, UserError, is_text

COMMANDS: dict[str, str] = {
    "demo": "the whole study on a small generated data set",
    "check": "every fault and warning of the data at once",
    "pretrain": "pre-train an encoder on unlabelled images",
    "finetune": "fine-tune a segmentation model on a few masks",
    "evaluate": "score a run on pairs of images and masks",
    "predict": "masks and overlays for images of any size",
    "export": "a run's model in another format, checked against the original",
    "probe": "an encoder's features under linear and k-NN probes",
    "suggest": "which images to label next, with drafts for Label Studio and CVAT",
    "similarity": "how far image sets are from a target set",
    "study": "compare starting points x label budgets x repeats",
    "report": "table, figures and page of a study again",
    "rerun": "repeat a run or a study, and say whether the same comes out",
}

POSITIONAL = {
    "evaluate": ("run",),
    "predict": ("run", "paths"),
    "export": ("run",),
    "probe": ("run",),
    "similarity": ("sources",),
    "study": ("plan",),
    "report": ("study",),
    "rerun": ("result",),
}
REPEATED = {"similarity": ("extractor",), "check": ("images",)}
CHOSEN = {"pretrain": ("pretext", "simclr"), "finetune": ("decoder", "unet")}
"""Commands with a component whose own flags join theirs: the flag that names it, the default."""
GO_ON = ("demo", "pretrain", "finetune", "study", "rerun")
"""Commands that begin where they were interrupted."""
SMALLER = "Choose fewer or smaller images, a smaller network, or a machine with more memory"
SHARED = ("pretrain", "finetune")
"""Commands whose work several processes can share."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 2 a mistake or what the machine lacks, 130 Control-C, 143 a
    SIGTERM after which a training could save, 1 where another process of the run was lost."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    started = launched()
    first = started is None or started.first
    if not first:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it when it is imported
    try:
        with ExitStack() as stack:
            if not first:
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(redirect_stdout(nowhere))
            code = dispatch(arguments)
            if argv is None:  # the process ends here: Control-C has nothing left to stop
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.exit(code)
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        if first:
            again = "begins anew"
            if arguments[:1] and arguments[0] in GO_ON:
                again = f"goes on from {'here' if stop.args else 'what was saved'}"
            why = "terminated" if terminated else "interrupted"
            print(f"\n{why}; the same command again {again}", file=sys.stderr)
        sys.exit(143 if terminated else 130)
    except Exception as problem:
        ending = ending_of(problem)
        if ending is None:
            raise
        code, told = ending
        if told:
            print(told, file=sys.stderr)
        sys.exit(code)


def ending_of(problem: Exception) -> tuple[int, str] | None:
    """Exit code and last words of a command that ends with an exception; None: a traceback."""
    match problem:
        case AlreadyTold():
            return 2, ""
        case UserError():
            return 2, error_text(problem)
        case LostProcess():
            return 1, f"error: {problem}"
        case RuntimeError() | MemoryError() if lacks_memory(problem):
            why = (str(problem).splitlines() or ["no more than that is known"])[0][:200]
            return 2, f"error: out of memory ({why}). {SMALLER}"
        case BrokenPipeError():
            return 141, ""  # as a shell says of a program that a closed pipe has ended
        case UnicodeEncodeError() if not is_text(problem.object):
            return 2, f"error: {problem.object[-200:]!a}: is no UTF-8. Rename it"
        case OSError():
            from fewmask.files import REFUSALS, refused

            if problem.errno in REFUSALS:
                return 2, error_text(refused(problem.filename or "the output", problem))
    return None


def lacks_memory(problem: Exception) -> bool:
    """Whether the memory did not suffice: PyTorch says so in the words of a RuntimeError."""
    if isinstance(problem, MemoryError):
        return True
    from fewmask.headroom import is_shortage

    return isinstance(problem, RuntimeError) and (
        is_shortage(problem) or "Storage size calculation overflowed" in str(problem)
    )


def error_text(mistake: UserError) -> str:
    """`error: ...` on one line; several faults: their number, then a line each."""
    faults = [plain(" ".join(fault.split())) for fault in mistake.faults]
    if len(faults) == 1:
        return f"error: {faults[0]}"
    return "\n".join([f"error: {len(faults)} faults", *faults])


def plain(text: str) -> str:
    """A line without control characters: a file's name may hold what moves a terminal's cursor."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def dispatch(arguments: list[str]) -> int:
    """Run the command that the arguments name; its exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(f"fewmask {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        raise UserError(
            f"unknown command {command}{near(command, list(COMMANDS))}. See fewmask --help"
        )
    with told_by_the_first():
        settings = parse(command, rest)
        if command not in SHARED:
            refuse_many(f"fewmask {command}")
    return RUN[command](settings)


def overview() -> str:
    """The text of `fewmask --help`: every command with a line."""
    lines = [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fewmask COMMAND ...",
            "",
            "Semantic segmentation from many images and few masks: pre-train, fine-tune, test,",
            "and find out with intervals whether pre-training helped.",
            "",
            *lines,
            "",
            "fewmask COMMAND --help lists a command's flags; fewmask --version the version.",
        ]
    )


def parse(command: str, argv: list[str]) -> Any:
    """The command's settings from its arguments. Raises UserError; --help prints and exits."""
    from fewmask import settings

    cls = getattr(settings, f"{command.capitalize()}Settings")
    components = _components(command, argv)
    positional = POSITIONAL.get(command, ())
    parser = build_parser(
        f"fewmask {command}",
        cls,
        *components,
        positional=positional,
        repeated=REPEATED.get(command, ()),
    )
    values = given(parser, argv, cls, *components, others=_others(command))
    if values.get("out") == "":
        raise UserError("--out: is empty; expected a folder")
    for kind in components:
        values[CHOSEN[command][0]] = construct(kind, values)
    try:
        return construct(cls, values)
    except UserError as mistake:
        missing = {f"{flag_name(name)} is missing": name for name in positional}
        raise UserError(
            *(
                f"{missing[f].upper()} is missing. See fewmask {command} --help"
                if f in missing
                else f
                for f in mistake.faults
            )
        ) from None


def _known(command: str) -> dict[str, type]:
    """The components that a command chooses from, by name."""
    if CHOSEN[command][0] == "pretext":
        from fewmask.pretext import PRETEXTS

        return {**PRETEXTS}
    from fewmask.decoders import DECODERS

    return {**DECODERS}


def _others(command: str) -> dict[str, type]:
    """The same by the words that choose them; none of a command without."""
    if command not in CHOSEN:
        return {}
    return {f"--{CHOSEN[command][0]} {name}": kind for name, kind in _known(command).items()}


def _components(command: str, argv: list[str]) -> tuple[type, ...]:
    """The classes whose flags join the command's: the chosen pretext task's or decoder's."""
    if command not in CHOSEN:
        return ()
    from fewmask.flags import read_toml

    what, default = CHOSEN[command]
    chosen = _said(argv, f"--{what}")
    config = _said(argv, "--config")
    if chosen is None and config is not None:
        chosen = read_toml(config).get(what)
    name = chosen or default
    known = _known(command)
    if name not in known:
        words = {"pretext": "pretext task"}.get(what, what)
        raise UserError(
            f"--{what} {name}: unknown {words}{near(str(name), list(known))}; "
            f"known: {', '.join(known)}"
        )
    return (known[name],)


def _said(argv: list[str], flag: str) -> str | None:
    """The last value of a flag, before the arguments are parsed whole."""
    value = None
    for here, after in zip(argv, [*argv[1:], ""], strict=True):
        if here == flag:
            value = after
        elif here.startswith(f"{flag}="):
            value = here.partition("=")[2]
    return value
