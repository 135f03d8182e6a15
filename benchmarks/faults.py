"""What fewmask does when things go wrong: killed, given broken files, out of disk, run for hours.

    python benchmarks/faults.py kills --n 50
    python benchmarks/faults.py files --n 1000
    python benchmarks/faults.py configs --n 200
    python benchmarks/faults.py disk --n 50
    python benchmarks/faults.py soak --minutes 120
    python benchmarks/faults.py zoo
    python benchmarks/faults.py byhand --plan results/faults/byhand.jsonl
    python benchmarks/faults.py table

Each part adds to its own record under --out and can run in several sittings; `table` writes
table.md of all that is there. Ends with 1 where a fault was met. Needs Linux.
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

PARTS = ("kills", "files", "configs", "disk", "soak", "zoo", "byhand", "table")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--only", action="append", default=[], help="a case (default: all)")
    parser.add_argument("--n", type=int, default=20, help="how many more")
    parser.add_argument("--minutes", type=float, default=120, help="of the soak")
    parser.add_argument("--plan", type=Path, help="of byhand: what to break, and the tests of it")
    parser.add_argument("--seed", type=int, default=None, help="default: the time")
    parser.add_argument("--out", type=Path, default=Path("results/faults"))
    parser.add_argument("--work", type=Path, help="default: a temporary folder")
    arguments = parser.parse_args()
    if arguments.part == "byhand" and not (arguments.plan and arguments.plan.is_file()):
        parser.error(f"--plan {arguments.plan}: no such file" if arguments.plan else "give --plan")
    unknown = sorted(set(arguments.only) - set(cases(arguments.part)))
    if unknown and arguments.part != "configs":  # its files are known once they were made
        known = ", ".join(cases(arguments.part)) or "it has none"
        parser.error(f"--only {unknown[0]}: no case of {arguments.part}; known: {known}")
    with tempfile.TemporaryDirectory() as folder:
        work = (arguments.work or Path(folder)).absolute()
        return 1 if part(arguments, work, arguments.out.absolute()) else 0


def cases(part: str) -> list[str]:
    """The names that --only takes for a part."""
    from faulting import disk, kills, zoo

    named = {"kills": [*kills.CASES], "disk": [*disk.CASES], "zoo": [*zoo.ZOO, *zoo.HAPPENINGS]}
    return named.get(part, [])


def part(arguments: argparse.Namespace, work: Path, out: Path) -> int:
    """Run a part; how many faults it met."""
    from faulting import byhand, disk, fuzz, kills, soak, table, zoo

    seed = time.time_ns() % 2**32 if arguments.seed is None else arguments.seed
    found = 0
    match arguments.part:
        case "kills":
            found = kills.main(work, out, arguments.n, arguments.only, seed)
        case "files":
            found = fuzz.files(work, out, arguments.n, seed)
        case "configs":
            found = fuzz.configs(work, out, arguments.n, seed, arguments.only)
        case "disk":
            found = disk.main(work, out, arguments.n, arguments.only)
        case "soak":
            found = soak.main(work, out, arguments.minutes)
        case "zoo":
            found = zoo.main(work, out, arguments.only)
        case "byhand":
            found = byhand.main(work, out, arguments.plan.absolute())
    table.write(out)
    return found


if __name__ == "__main__":
    sys.exit(main())
