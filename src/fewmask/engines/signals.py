"""The stack that signals are handled on: OpenVINO changes it, and may leave one that is freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """A block after which signals are handled on the stack that they were handled on before.

    Each plugin puts a stack of its own in place of the one it finds, and gives that back when it is
    freed: of two that are freed in the order in which they came, the second gives back the first
    one's, which is gone. The next Control-C then ends the process with a segmentation fault. A
    plugin that no longer finds its own stack in place gives nothing back, so after this block they
    may be freed in any order.
    """
    if sys.platform != "linux":
        yield
        return
    change = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    known = change(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            change(ctypes.byref(before), None)
