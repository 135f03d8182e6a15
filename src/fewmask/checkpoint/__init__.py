"""Safe loading; weights into encoders, counted."""

from fewmask.checkpoint.files import load_state, read_weights, save_state, save_weights
from fewmask.checkpoint.foreign import read_any
from fewmask.checkpoint.told import AUTO, DEFAULT, encoder_of, told_by, warnings_of
from fewmask.checkpoint.transfer import (
    load_decoder,
    load_start,
    moved,
    start_file,
    start_key,
    transfer,
)

__all__ = [
    "AUTO",
    "DEFAULT",
    "encoder_of",
    "load_decoder",
    "load_start",
    "load_state",
    "moved",
    "read_any",
    "read_weights",
    "save_state",
    "save_weights",
    "start_file",
    "start_key",
    "told_by",
    "transfer",
    "warnings_of",
]
