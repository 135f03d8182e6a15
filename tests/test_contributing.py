"""CONTRIBUTING's worked example, added to a copy of the package as it says, passes the contract."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fewmask

ROOT = Path(__file__).parent.parent


@pytest.fixture
def example() -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return next(b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "class Rotation" in b)


def test_the_example_is_short_and_passes_the_contract(example: str, tmp_path: Path) -> None:
    code = [x for x in example.splitlines() if x.strip() and not x.startswith(("from", "import"))]
    assert len(code) <= 40
    package = tmp_path / "fewmask"
    shutil.copytree(Path(fewmask.__file__).parent, package)
    (package / "pretext" / "rotation.py").write_text(example, encoding="utf-8")
    union = package / "pretext" / "__init__.py"
    before = union.read_text(encoding="utf-8")
    after = before.replace("\nPretext = ", "\nPretext = Rotation | ", 1)
    assert after != before
    line = "from fewmask.pretext.rotation import Rotation\n"
    after = after.replace("\nfrom fewmask.pretext", f"\n{line}from fewmask.pretext", 1)
    union.write_text(after, encoding="utf-8")
    contract = "tests/pretext/test_contract.py"
    command = [sys.executable, "-m", "pytest", "-q", "-k", "rotation", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--import-mode=importlib", contract],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[6-9] passed", done.stdout)
