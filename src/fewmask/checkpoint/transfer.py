"""load_start(): weights into an encoder, counted, and strict unless told otherwise."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor, nn

from fewmask import encoders
from fewmask.checkpoint.files import read_weights
from fewmask.checkpoint.foreign import read_any
from fewmask.checkpoint.matching import COUNTER, Match, best_match, strays
from fewmask.checkpoint.told import RUN_WEIGHTS, told_by
from fewmask.files import UNEXPECTED
from fewmask.flags import near
from fewmask.sealed import read_sealed, read_sealed_toml
from fewmask.types import Transfer, UserError

RUN_DECODER = "decoder.safetensors"
"""What a run leaves beside its encoder where it pre-trained a segmentation decoder as well."""

SHOWN = 3
"""Tensors named in an error; the rest are counted."""


def load_start(
    encoder: nn.Module,
    start: str,
    *,
    name: str,
    weights: str | None = None,
    allow_partial: bool = False,
) -> Transfer | None:
    """Load, in place, the weights that an encoder starts from; None for "scratch".

    `start` is scratch, imagenet (timm's download for the encoder `name`, or the file `weights`), a
    run's folder, or a weights file. Raises UserError where there is no such start, `weights` come
    with another one than imagenet, or as `read_any` and `transfer` do.
    """
    if weights is not None and start != "imagenet":
        raise UserError(
            f"--weights {weights} goes with --init imagenet only, not with --init {start}. "
            f"Pass --init {weights} to start from that file"
        )
    if start == "scratch":
        return None
    if start == "imagenet":
        state = encoders.imagenet_state(name) if weights is None else read_any(Path(weights))
        source, run_moved = f"ImageNet ({weights or name})", None
    else:
        path = start_file(start)
        state, run_moved = read_any(path), _moved_of_run(path)
        source = str(path.parent if path != Path(start) else path)
    try:
        done = transfer(encoder, state, source=source, allow_partial=allow_partial)
    except UserError as mistake:
        its = name
        with suppress(UserError):  # what doesn't fit matters more than a damaged config.toml
            its = told_by(start).get("encoder", name)
        hint = "" if its == name else f". {start} is a {its}: pass --encoder {its}"
        faults = (f"--encoder {name}: {fault}{hint}" for fault in mistake.faults)
        raise UserError(*faults) from None
    return replace(done, moved=run_moved)


def load_decoder(network: nn.Module, start: str, decoder: str) -> str | None:
    """Load, in place, the decoder that a run pre-trained with its encoder; a line that says so.

    `network` is a segmentation network whose decoder has the name `decoder`. None where `start`
    means no such run; a decoder of another name is left out, as the line says. Raises UserError
    where one of the same name doesn't fit tensor by tensor.
    """
    path = Path(start) / RUN_DECODER
    if not path.is_file():
        return None
    config = path.with_name("config.toml")
    held = read_sealed_toml(config).get("with_decoder") if config.is_file() else None
    if held != decoder:
        what = f"{start} also holds a pre-trained decoder ({held or 'of an unknown name'})"
        return f"{what}; --decoder {decoder} is another, so only the encoder is used"
    state, own = read_weights(path), network.get_submodule("decoder").state_dict()
    faults = sorted(
        name for name in {*state, *own} if _shape_of(state, name) != _shape_of(own, name)
    )
    if faults:
        raise UserError(
            f"{path}: doesn't fit --decoder {decoder} with these options: "
            f"{', '.join(faults[:SHOWN])} are missing, left over or of another shape. Choose the "
            f"decoder's default options, or --init {path.with_name(RUN_WEIGHTS[0])} to start from "
            "the encoder alone"
        )
    _require_finite(Match("", {}, {}, {name: name for name in state}), state, str(path))
    network.get_submodule("decoder").load_state_dict(state)
    count = sum(not name.endswith(COUNTER) for name in state)
    return f"loaded {count} decoder tensors, all there are, from {start}"


def _shape_of(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None


def start_key(start: str, weights: str | None, name: str) -> str:
    """A name for the weights that `load_start` would load, by content. Raises as it does.

    A pre-trained decoder counts wherever the run holds one.
    """
    if weights is not None and start != "imagenet":
        raise UserError(
            f"--weights {weights} goes with --init imagenet only, not with --init {start}. "
            f"Pass --init {weights} to start from that file"
        )
    if start == "scratch" or (start == "imagenet" and weights is None):
        return f"{start}/{name}"
    digest = blake2b(digest_size=10)
    paths = [start_file(weights or start)]
    if (Path(start) / RUN_DECODER).is_file():
        paths.append(Path(start) / RUN_DECODER)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def start_file(start: str) -> Path:
    """The weights file that a start other than scratch and imagenet means.

    Raises UserError where there is none, naming what is near or what the folder is instead.
    """
    path = Path(start)
    if path.is_file():
        return path
    if path.exists() and not path.is_dir():
        raise UserError(f"--init {start}: is no plain file. Name a run folder or a weights file")
    if not path.is_dir():
        beside = [str(path.with_name(p.name)) for p in _listed(path.parent)]
        raise UserError(
            f"--init {start}: no such file or folder{near(start, ['scratch', 'imagenet', *beside])}"
            ". Expected scratch, imagenet, a run folder or a weights file"
        )
    for name in RUN_WEIGHTS:
        if (path / name).is_file():
            return path / name
    fault = f"--init {start}: holds neither {' nor '.join(RUN_WEIGHTS)}"
    if (path / "config.toml").is_file():
        try:
            said = read_sealed_toml(path / "config.toml")
        except UserError as problem:
            raise UserError(f"{fault}; {problem.faults[0]}") from None
        if said and not said.keys() & {"pretext", "decoder"}:
            raise UserError(
                f"{fault}: it comes from a command that trains no encoder. Name the folder of a "
                "fewmask pretrain or finetune"
            )
        if (path / "result.json").is_file():
            raise UserError(f"{fault}: a finished run whose weights are gone. Bring them back")
        raise UserError(f"{fault}: a run that is not finished. Run its command again to finish it")
    below = [p for f in (path, path / "cells", path / "encoders") for p in _listed(f)]
    runs = [str(p) for p in below if any((p / name).is_file() for name in RUN_WEIGHTS)]
    hint = f"; the runs {', '.join(sorted(runs)[:SHOWN])} lie in it" if runs else ""
    raise UserError(f"{fault}, so it is no run folder{hint}")


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _moved_of_run(path: Path) -> float | None:
    """How far a run's encoder came from its own start, by the result.json beside its weights."""
    if path.name not in RUN_WEIGHTS:
        return None
    try:
        return float(read_sealed(path.parent / "result.json")["moved"])
    except (OSError, *UNEXPECTED):
        return None


def transfer(
    encoder: nn.Module, state: Mapping[str, Tensor], *, source: str, allow_partial: bool = False
) -> Transfer:
    """Load a file's tensors into the encoder, in place, and count them.

    Every parameter and running statistic must be there in the encoder's shape, behind any common
    prefix; floats of another precision are cast. Where several networks of the file fit equally
    (a student and its teacher), `source` of the result says which was taken.

    Raises UserError where tensors are missing or the file is a deeper network's, unless
    `allow_partial`; where nothing fits; and for values that are not finite. The encoder is then
    as it was.
    """
    match, others = best_match(encoder, state)
    own = encoder.state_dict()
    missing = [name for name in own if not name.endswith(COUNTER) and name not in match.fits]
    of_tensors = sum(not name.endswith(COUNTER) for name in own)
    loaded = of_tensors - len(missing)
    share = _share(encoder, match)
    if missing and not (allow_partial and loaded):
        found = f"{loaded} of {of_tensors} encoder tensors, {100 * share:.3g} % of parameters"
        raise UserError(f"{source}: fits {found}. {_describe_missing(missing, own, match, state)}")
    deeper = strays(match, state)
    if deeper and not allow_partial:
        raise UserError(
            f"{source}: is of another architecture: beside all {of_tensors} encoder tensors it "
            f"holds {len(deeper)} more in the same stages ({', '.join(deeper[:SHOWN])}). "
            "Choose the --encoder that it was made with, or pass --allow-partial"
        )
    _require_finite(match, state, source)
    encoder.load_state_dict({**own, **{mine: state[its] for mine, its in match.fits.items()}})
    if others:
        unused_names = ", ".join(other.called() for other in others)
        source = f"{source} ({match.called()}, not {unused_names})"
    unused = sum(not name.endswith(COUNTER) for name in state) - loaded
    return Transfer(source, loaded, of_tensors, share, unused)


def _share(encoder: nn.Module, match: Match) -> float:
    sizes = {name: parameter.numel() for name, parameter in encoder.named_parameters()}
    return sum(n for name, n in sizes.items() if name in match.fits) / sum(sizes.values())


def _describe_missing(
    missing: list[str], own: Mapping[str, Tensor], match: Match, state: Mapping[str, Tensor]
) -> str:
    """What the user needs to see why: the first missing ones, each with the file's nearest."""
    parts = []
    left = set(state) - set(match.named.values())
    for name in missing[:SHOWN]:
        alike = [its for its in state if its in left and state[its].shape == own[name].shape]
        nearest = [match.named[name]] if name in match.named else []
        nearest = nearest or difflib.get_close_matches(match.prefix + name, alike or state, 1, 0.0)
        there = ", ".join(f"{its} {list(state[its].shape)}" for its in nearest) or "nothing"
        parts.append(f"{name} {list(own[name].shape)} (nearest in the file: {there})")
    more = f"; and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    mend = "Choose the --encoder that it was made with"
    if len(match.fits):
        mend += ", or pass --allow-partial to load what fits"
    return f"Missing: {'; '.join(parts)}{more}. {mend}"


def _require_finite(match: Match, state: Mapping[str, Tensor], source: str) -> None:
    for its in match.fits.values():
        if not torch.isfinite(state[its]).all():
            raise UserError(
                f"{source}: {its} holds values that are not finite. "
                "The run that made it diverged, or half precision was too narrow for it"
            )


def moved(before: Mapping[str, Tensor], encoder: nn.Module) -> float:
    """||w - w_before|| / ||w_before||, L2, over all parameters of the encoder together.

    `before` maps their names (and perhaps more) to their earlier values.
    """
    distance = norm = 0.0
    for name, parameter in encoder.named_parameters():
        now, then = parameter.detach().cpu().double(), before[name].detach().cpu().double()
        distance += float((now - then).square().sum())
        norm += float(then.square().sum())
    if not norm:
        return math.inf if distance else 0.0
    return math.sqrt(distance / norm)
