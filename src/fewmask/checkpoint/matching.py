"""Which tensor of a file is which tensor of an encoder, whatever the file's names begin with.

Prefixes are inferred, not listed: each name of the file is cut at each of its dots, and where the
rest is a name of the encoder, what was cut off is a candidate prefix. The prefix under which most
tensors have the right shape is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

COUNTER = "num_batches_tracked"
"""Batch norm's step counter: neither a weight nor a statistic, so neither required nor counted."""

FOLLOWERS = {"teacher", "momentum", "target", "ema", "k", "key", "average", "avg", "swa", "shadow"}
"""Words in the prefix of a network that trails another; the one it trails is preferred."""


@dataclass(frozen=True)
class Match:
    """One way to read the file: a prefix, and how the encoder's names are spelled behind it."""

    prefix: str
    spelling: Mapping[str, str]
    named: dict[str, str] = field(default_factory=dict)
    """Encoder's name -> file's name, shapes aside."""
    fits: dict[str, str] = field(default_factory=dict)
    """The part of `named` whose shapes agree."""

    def rank(self) -> tuple[int, int]:
        """More is better: tensors that fit, tensors that are named."""
        return _counted(self.fits), _counted(self.named)

    def called(self) -> str:
        return self.prefix.rstrip(".") or "the top level"


def _counted(names: Mapping[str, str]) -> int:
    return sum(not name.endswith(COUNTER) for name in names)


def best_match(encoder: nn.Module, state: Mapping[str, Tensor]) -> tuple[Match, list[Match]]:
    """The best reading of `state` for the encoder, and the equally good ones of other values.

    Of equally good ones, a network that trails another (teacher, momentum encoder) comes after
    the one it trails, and the file's order decides between the rest.
    """
    own = encoder.state_dict()
    found: dict[frozenset[tuple[str, str]], Match] = {}
    for spelling in spellings(encoder):
        for match in _readings(own, spelling, state):
            found.setdefault(frozenset(match.named.items()), match)
    if not found:
        return Match("", {}), []
    top = max(match.rank() for match in found.values())
    tied = sorted((m for m in found.values() if m.rank() == top), key=_trails)
    best = tied[0]
    return best, [m for m in tied[1:] if _differ(best, m, state)]


def _trails(match: Match) -> bool:
    return not FOLLOWERS.isdisjoint(re.split(r"[._]", match.prefix.lower()))


def _differ(a: Match, b: Match, state: Mapping[str, Tensor]) -> bool:
    return any(
        name not in b.fits or not torch.equal(state[a.fits[name]], state[b.fits[name]])
        for name in a.fits
        if not name.endswith(COUNTER)
    )


def _readings(
    own: Mapping[str, Tensor], spelling: Mapping[str, str], state: Mapping[str, Tensor]
) -> Iterator[Match]:
    matches: dict[str, Match] = {}
    for name, tensor in state.items():
        tidied = tidy(name)
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", tidied))):
            target = spelling.get(tidied[start:])
            if target is None:
                continue
            match = matches.setdefault(tidied[:start], Match(tidied[:start], spelling))
            match.named.setdefault(target, name)
            if match.named[target] == name and _same_kind(own[target], tensor):
                match.fits[target] = name
    yield from matches.values()


def _same_kind(own: Tensor, found: Tensor) -> bool:
    return own.shape == found.shape and own.is_floating_point() == found.is_floating_point()


def tidy(name: str) -> str:
    """A file's name without torch.compile's marks, and with DenseNet's of torchvision >= 0.3."""
    name = name.replace("_orig_mod.", "")
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name)


# --- how an encoder's names may be spelled -------------------------------------------------------


def spellings(encoder: nn.Module) -> list[dict[str, str]]:
    """Ways in which files may spell the encoder's names: spelled -> own.

    By name and by the children's numbers (as in `nn.Sequential(*resnet.children())`), from the
    encoder itself and from the lone module that it may wrap (`model` of smp's timm encoders,
    `features` of DenseNet).
    """
    names = list(encoder.state_dict())
    found: list[dict[str, str]] = []
    module, level = encoder, ""
    while True:
        found += [_by_name(names, level), _by_number(module, names, level)]
        holders = {name.removeprefix(level).partition(".")[0] for name in names}
        lone = holders.pop()
        if holders or lone not in dict(module.named_children()):
            return [spelling for spelling in found if spelling]
        module, level = module.get_submodule(lone), f"{level}{lone}."


def _by_name(names: list[str], level: str) -> dict[str, str]:
    found = {}
    for name in names:
        first, dot, rest = name.removeprefix(level).partition(".")
        # timm's feature extractors flatten: `stages.0` becomes `stages_0`.
        for bar in re.finditer("_", first):
            found[f"{first[: bar.start()]}.{first[bar.end() :]}{dot}{rest}"] = name
        found[f"{first}{dot}{rest}"] = name
    return found


def _by_number(module: nn.Module, names: list[str], level: str) -> dict[str, str]:
    numbers = {child: i for i, (child, _) in enumerate(module.named_children())}
    found = {}
    for name in names:
        first, dot, rest = name.removeprefix(level).partition(".")
        if dot and first in numbers:
            found[f"{numbers[first]}.{rest}"] = name
    return found


# --- what a file holds beyond the encoder --------------------------------------------------------


def strays(match: Match, state: Mapping[str, Tensor]) -> list[str]:
    """Tensors of the file that lie in the encoder's own stages, but that it doesn't have.

    A ResNet-34 file holds all of a ResNet-18 and more blocks in each stage: that it fits says
    nothing. Heads and decoders lie beside the stages and are none of these.
    """
    stages = {_stage(spelled) for spelled in match.spelling} - {None}
    used = set(match.named.values())
    return [
        name
        for name in state
        if name not in used
        and not name.endswith(COUNTER)
        and tidy(name).startswith(match.prefix)
        and _stage(tidy(name).removeprefix(match.prefix)) in stages
    ]


def _stage(name: str) -> str | None:
    """The path to the first numbered module: `layer1`, `stages.0`, `features.denseblock3`."""
    found = re.match(r"(.*?\d[^.]*)\.", name)
    return found[1] if found else None
