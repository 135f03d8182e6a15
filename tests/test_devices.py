"""Where the work is done, and what starting it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewmask import devices


def run(script: str) -> str:
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def test_fabric_is_imported_without_torchmetrics() -> None:
    """It would be imported only for its version, with all of torchvision, SciPy and more."""
    pytest.importorskip("torchmetrics")
    said = run(
        "import sys\n"
        "from fewmask.devices import make_fabric\n"
        "make_fabric('cpu', 1, '32')\n"
        "print('torchmetrics' in sys.modules)\n"
        "import torchmetrics\n"
        "print(torchmetrics.__name__)\n"
    )
    assert said.split() == ["False", "torchmetrics"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is on Linux")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    script = (
        "import resource, torch\n"
        "from fewmask.devices import pick_device\n"
        "KEEP\n"
        "def step(): torch.ones(64, 1024, 1024)\n"
        "for _ in range(3): step()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(9): step()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    usual = int(run(script.replace("KEEP", "")))
    if usual < 9 * 100:  # even with pages of 2 MiB there would be some 128 a step
        pytest.skip("this system's malloc gives nothing back")
    # A block may find its place only after a step or two.
    assert int(run(script.replace("KEEP", "pick_device('cpu')"))) < usual / 3


@pytest.mark.parametrize("units", ["avx2", "avx2 avx512f avx512_bf16"])
def test_a_processor_is_told_by_its_units_too(
    units: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text(f"processor\t: 0\nmodel name\t: A 9000\nflags\t\t: fpu {units}\n")
    monkeypatch.setattr(devices, "_CPUS", told)
    kernels = torch.backends.cpu.get_cpu_capability()
    bf16 = ", bf16" if "bf16" in units else ""
    assert devices.processor() == f"A 9000 ({kernels}{bf16})"
