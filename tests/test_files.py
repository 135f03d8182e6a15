"""Half-written files: swept where their writer was killed, left where it still writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fewmask.files import sweep, write_atomic

WRITER = """
import sys
from pathlib import Path
from fewmask.files import write_atomic

def write(file):
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    sys.stdin.readline()
    file.write(b" and half")

write_atomic(Path(sys.argv[1]), write)
print("whole", flush=True)
"""


@pytest.mark.parametrize("killed", [True, False])
def test_only_what_no_process_writes_any_more_is_swept(tmp_path: Path, killed: bool) -> None:
    path = tmp_path / "run" / "model.safetensors"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "half\n"
            (part,) = path.parent.iterdir()
            assert part.name.endswith(".tmp")
            sweep(tmp_path)
            assert part.exists()
            if killed:
                process.kill()
                process.wait()
                sweep(tmp_path)
                assert not list(path.parent.iterdir())
            else:
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == "whole\n"
                assert path.read_bytes() == b"half and half"
        finally:
            process.kill()


def test_what_lies_beside_a_file_is_swept_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:  # as if killed
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        patch.setattr("os.replace", lambda *_: None)
        for path in (out, tmp_path / "other"):
            write_atomic(path, lambda file: file.write(b"half"))
    (killed,) = (p.name for p in tmp_path.iterdir() if p.name.startswith(".model"))
    (beside,) = (p.name for p in tmp_path.iterdir() if p.name.startswith(".other"))
    elsewhere = f".model.onnx.{'0' * 16}.tmp"  # of another machine
    for name in (elsewhere, "mine.tmp", ".model.onnx.tmp"):
        (tmp_path / name).touch()
    swapped = {"0": "1"}.get(killed[-5], "0")
    os.mkfifo(tmp_path / f"{killed[:-5]}{swapped}.tmp")  # opening it would wait for ever
    sweep(out)
    kept = {p.name for p in tmp_path.iterdir() if not p.is_fifo()}
    assert kept == {beside, elsewhere, "mine.tmp", ".model.onnx.tmp"}


def test_a_file_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    lock = fcntl.flock
    swept: list[Path] = []

    def late(file: object, how: int) -> None:
        if not swept:
            swept.extend(tmp_path.iterdir())
            for path in swept:
                path.unlink()
        lock(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", late)
    write_atomic(tmp_path / "a", lambda file: file.write(b"whole"))
    assert swept
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"whole"


@pytest.mark.parametrize("name", ["x" * 255, "\N{CAT FACE}" * 63, "y" * 233])
def test_a_name_as_long_as_the_system_takes_is_written(tmp_path: Path, name: str) -> None:
    write_atomic(tmp_path / name, lambda file: file.write(b"whole"))
    assert [p.name for p in tmp_path.iterdir()] == [name]
