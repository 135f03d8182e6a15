"""The tests of on_a_full_disk.py, each in a mount namespace of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

INSIDE = Path(__file__).with_name("on_a_full_disk.py")
NAMES = re.findall(r"^def (test_\w+)", INSIDE.read_text(), flags=re.MULTILINE)
TRY = 'mount -t tmpfs -o size=64k tmpfs "$0" && mount -o remount,size=128k "$0" || exit 1'
"""Then a file of 256 kB must not fit: a sandbox may take the mount and not the limit."""


def apart(*command: str) -> list[str]:
    """`command` in a mount namespace of its own, with the right to mount there."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *user, "--mount", "--propagation", "private", *command]


@pytest.fixture(scope="session")
def _may_mount(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("mount")
    too_much = 'head -c 262144 /dev/zero 2>/dev/null > "$0/file" && exit 1 || exit 0'
    if shutil.which("unshare") is None or subprocess.run(
        apart("sh", "-c", f"{TRY}; {too_much}", str(folder)), capture_output=True, check=False
    ).returncode:  # fmt: skip
        pytest.skip("no right to mount a small file system here")


@pytest.mark.usefixtures("_may_mount")
@pytest.mark.parametrize("name", NAMES)
def test_on_a_full_disk(tmp_path: Path, name: str) -> None:
    flags = ["-q", "-p", "no:cacheprovider", "-n", "0", "--basetemp", str(tmp_path / "inside")]
    ran = subprocess.run(
        apart(sys.executable, "-m", "pytest", *flags, f"{INSIDE}::{name}"),
        cwd=INSIDE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    summary = ran.stdout.splitlines()[-1]
    if "passed" not in summary:
        pytest.skip(summary)
