"""A disk that fills at the k-th write of a study, for every k.

A small library, compiled here and loaded before all others, counts the calls that write to files
below a folder and answers all from the k-th on with "no space left", which a real full disk can't
be made to do at a chosen moment. It doesn't see what libc writes for itself (stdio), memory-mapped
pages, or folders and names that want a block. tests/on_a_full_disk.py has a real full disk, at a
few sizes.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from faulting import children, kills, outcome, record

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[4096];
static volatile long *count;
static long full_at;

void fill_at(const char *folder, long *counter, long at) {
  strncpy(below, folder, sizeof below - 1);
  count = counter;
  full_at = at;
}

static int is_full(int fd) {
  if (!count) return 0;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  if (strncmp(path, below, strlen(below))) return 0;
  const char *end = strrchr(path, '/');
  if (end && !strcmp(end, "/log.txt")) return 0;
  if (__sync_add_and_fetch(count, 1) < full_at || !full_at) return 0;
  errno = ENOSPC;
  return 1;
}

#define REAL(name) \
  static typeof(&name) real; \
  if (!real) real = (typeof(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t n) {
  REAL(write); return is_full(fd) ? -1 : real(fd, data, n);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
  REAL(writev); return is_full(fd) ? -1 : real(fd, parts, n);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
  REAL(pwrite); return is_full(fd) ? -1 : real(fd, data, n, at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
  REAL(pwrite64); return is_full(fd) ? -1 : real(fd, data, n, at);
}
int posix_fallocate(int fd, off_t at, off_t n) {
  REAL(posix_fallocate); return is_full(fd) ? ENOSPC : real(fd, at, n);
}
int fallocate(int fd, int mode, off_t at, off_t n) {
  REAL(fallocate); return is_full(fd) ? -1 : real(fd, mode, at, n);
}
int ftruncate(int fd, off_t n) {
  REAL(ftruncate); return n && is_full(fd) ? -1 : real(fd, n);
}
int ftruncate64(int fd, off64_t n) {
  REAL(ftruncate64); return n && is_full(fd) ? -1 : real(fd, n);
}
int fsync(int fd) { REAL(fsync); return is_full(fd) ? -1 : real(fd); }
"""
LOADED = "FEWMASK_FAULTS_DISK"
STUDY = "smallest study"
PLAN = """
pairs = "../data/smallest"
encoder = "test_resnet"
size = 32
budgets = [2]
repeats = 1
finetune = { steps = 2, batch_size = 4 }
pretrain = { steps = 2, batch_size = 4 }
arms = [{ init = "scratch" }, { images = "../data/smallest/unlabelled" }]
"""
"""All that a study writes, each kind of file at least once, with few tensors in a state: every
trial is this study run up to a write, and then to its end."""
CASES = {**kills.CASES, STUDY: kills.Case(("study", "../data/smallest.toml", "--out", "out"))}


def with_the_library(work: Path) -> int:
    """This program anew, with the library in front; its exit code."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("needs a C compiler (cc), to stand between the program and the disk")
    work.mkdir(parents=True, exist_ok=True)
    source, library = work / "full.c", work / "full.so"
    source.write_text(SOURCE)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(source), "-ldl"],
        check=True,
    )
    environment = {**os.environ, LOADED: str(library), "LD_PRELOAD": str(library)}
    return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode


class Meter:
    """Writes that a child has made, in memory that both see."""

    def __init__(self) -> None:
        import mmap

        self._memory = mmap.mmap(-1, 8)
        self._value = ctypes.c_long.from_buffer(self._memory)
        self._library = ctypes.CDLL(os.environ[LOADED])

    @property
    def writes(self) -> int:
        return int(self._value.value)

    def arm(self, folder: Path, at: int) -> None:
        """From now on count the writes below a folder; fail from the `at`-th on (0: never)."""
        self._value.value = 0
        self._library.fill_at(
            f"{folder.resolve()}/".encode(), ctypes.byref(self._value), ctypes.c_long(at)
        )


def main(work: Path, out: Path, n: int, only: list[str]) -> int:
    """The next `n` moments at which the disk fills; how many were met with a fault."""
    if LOADED not in os.environ:
        return with_the_library(work)
    children.load_all()
    prepare(work)
    return sum(command(work, out / "disk.jsonl", n, name) for name in only or [STUDY])


def prepare(work: Path) -> None:
    """The data and plans of all cases."""
    from fewmask.data.toy import write_toy

    kills.prepare(work)
    if not (work / "data" / "smallest").exists():
        write_toy(work / "data" / "smallest", pairs=8, unlabelled=8, size=40)
        (work / "data" / "smallest.toml").write_text(PLAN)


def command(work: Path, path: Path, n: int, name: str) -> int:
    """The next `n` moments of one command."""
    case, folder = CASES[name], work / "trial"
    environment = kills.ENVIRONMENT
    right, _ = kills.undisturbed(work, name, case)
    meter = Meter()
    shutil.rmtree(folder, ignore_errors=True)
    ended = children.run(case.argv, folder, kills.LONGEST, environment=environment,
                         arm=lambda: meter.arm(folder, 0))  # fmt: skip
    writes = meter.writes
    if ended.code != 0 or not writes:
        raise SystemExit(f"{name}: {writes} writes, ends with {ended.code}:\n{ended.text}")
    print(f"{name}: {writes} writes", flush=True)
    # What was met with a fault is tried again, once it may be mended.
    rows = [row for row in record.rows(path) if row["command"] == name and row["of"] == writes]
    done = {row["at"] for row in rows if not row["faults"]}
    # Evenly over all writes first, then between: any number of sittings says something of all.
    order = sorted(range(1, writes + 1), key=lambda k: (-_grid(k), k))
    bad = 0
    for at in [k for k in order if k not in done][:n]:
        shutil.rmtree(folder, ignore_errors=True)
        ended = children.run(case.argv, folder, kills.LONGEST, environment=environment,
                             arm=partial(meter.arm, folder, at))  # fmt: skip
        row: dict[str, Any] = {"command": name, "at": at, "of": writes, "faults": []}
        row["said"] = _said(ended.text).replace(str(work), "")
        fault = ended.fault
        if fault or ended.code != 2 or "cannot be written" not in ended.text:
            row["faults"].append(f"full: {fault or ended.code}: {ended.text[-600:]}")
        row["faults"] += outcome.not_whole(folder)
        row["faults"] += [f"left over: {p}" for p in outcome.temporary(folder) if ".tmp" in p]
        ended = children.run(case.argv, folder, kills.LONGEST, environment=environment)
        found = outcome.left_in(folder) if ended.code == 0 else {}
        if found != right:
            differ = [p for p in {*found, *right} if found.get(p) != right.get(p)]
            row["faults"].append(f"afterwards: {ended.code} {differ[:5]} {ended.text[-300:]}")
        record.add(path, row)
        bad += bool(row["faults"])
        print(f"write {at}: {row['said']} {row['faults']}", flush=True)
    return bad


def _grid(k: int) -> int:
    """The spacing of the coarsest grid of a power of two that k lies on."""
    return k & -k


def _said(text: str) -> str:
    lines = [line for line in text.splitlines() if "error: " in line]
    return lines[-1] if lines else ""
