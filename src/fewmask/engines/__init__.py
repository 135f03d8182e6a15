"""Other ways than PyTorch's to compute a trained model, each checked against it."""

from fewmask.engines.opening import Engine, Wanted, open_engine
from fewmask.engines.runtimes import WRITERS, Writer, write_int8

__all__ = ["WRITERS", "Engine", "Wanted", "Writer", "open_engine", "write_int8"]
