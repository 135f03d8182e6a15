"""fewmask: label-efficient semantic segmentation, with an honest answer to "did it help?"."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = ["UserError", "__version__", "check", "demo", "evaluate", "export", "finetune", "predict"]
__all__ += ["pretrain", "probe", "report", "rerun", "similarity", "study", "suggest"]

if TYPE_CHECKING:
    from fewmask.api import (
        check,
        demo,
        evaluate,
        export,
        finetune,
        predict,
        pretrain,
        probe,
        report,
        rerun,
        similarity,
        study,
        suggest,
    )
    from fewmask.types import UserError


def __getattr__(name: str) -> object:
    """Load the public functions when they are first used: `import fewmask` stays instant."""
    if name == "UserError":
        from fewmask.types import UserError

        return UserError
    if name in __all__:
        from fewmask import api

        return getattr(api, name)
    raise AttributeError(f"module 'fewmask' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
