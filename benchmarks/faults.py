"""What fewmask does when things go wrong: killed, given broken files, out of disk, run for hours.

    python benchmarks/faults.py kills --n 50
    python benchmarks/faults.py table

Each part adds to its own record under --out (results/faults) and can run in several sittings;
`table` writes table.md of all that is there. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork must not inherit threads
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=["kills"])
    parser.add_argument("--only", action="append", default=[], help="a case (default: all)")
    parser.add_argument("--n", type=int, default=20, help="how many more")
    parser.add_argument("--seed", type=int, default=None, help="default: the time")
    parser.add_argument("--out", type=Path, default=Path("results/faults"))
    parser.add_argument("--work", type=Path, help="default: a temporary folder")
    arguments = parser.parse_args()
    seed = time.time_ns() % 2**32 if arguments.seed is None else arguments.seed
    out = arguments.out.absolute()
    with tempfile.TemporaryDirectory() as folder:
        work = (arguments.work or Path(folder)).absolute()
        from faulting import kills

        return 1 if kills.main(work, out, arguments.n, arguments.only, seed) else 0


if __name__ == "__main__":
    sys.exit(main())
