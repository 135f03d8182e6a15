"""Taken in by every Python that a test starts (faulting/failing.py puts this folder on its path).

It notes which of fewmask's functions this process calls, or has one of them answer wrongly. Python
imports a module of this name as it starts, before anything of the program.
"""

from __future__ import annotations

import os

if os.environ.get("FAILING_NOTES"):
    from faulting import inside

    inside.begin()
