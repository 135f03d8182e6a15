"""Tables with a checksum: what they hold comes back, and what was changed is met."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewmask.runs import claim, refuse_others
from fewmask.sealed import crc, crc_of, read_sealed_toml, write_sealed_toml
from fewmask.types import UserError

TABLE = {"images": "a/b", "steps": 3, "device": "cpu"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_sealed_toml(tmp_path / "config.toml", TABLE)
    return tmp_path / "config.toml"


@pytest.mark.parametrize(
    "text",
    ["plain", "a\u2028b", "a\x85b", "a\nb", "a\r\nb", 'quo"te', "# checksum 00", "\n# checksum "],
)
def test_any_text_comes_back(tmp_path: Path, text: str) -> None:
    write_sealed_toml(tmp_path / "x.toml", {"images": text, "n": 1})
    assert read_sealed_toml(tmp_path / "x.toml") == {"images": text, "n": 1}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps = 3", "steps = 4"),
        ("steps = 3", "# a remark\nsteps = 3"),
        ("steps = 3\n", ""),
        ("# checksum", "seed = 1\n# checksum"),
    ],
)
def test_what_was_changed_is_met_and_the_way_out_works(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new) + "\n")
    with pytest.raises(UserError, match=r"config\.toml: changed since it was written\. Bring the"):
        read_sealed_toml(file)
    kept = [line for line in file.read_text().splitlines() if not line.startswith("# checksum")]
    file.write_text("\n".join(kept))
    assert read_sealed_toml(file).keys() >= {"images", "device"}


def test_a_line_after_the_checksum_is_met(file: Path) -> None:
    file.write_text(file.read_text() + "seed = 1\n")
    with pytest.raises(UserError, match="changed since it was written"):
        read_sealed_toml(file)


@pytest.mark.parametrize("form", [b"\xef\xbb\xbf%s", b"%s\n\n"])
def test_marks_and_line_ends_are_no_change(file: Path, form: bytes) -> None:
    file.write_bytes(form % file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_sealed_toml(file) == TABLE


def test_a_files_checksum_is_its_text_s(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfname,tp\r\na,1\r\n")
    assert crc_of(tmp_path / "x.csv") == crc("name,tp\na,1\n") == "7a282ca5"


def test_a_run_s_edited_settings_are_refused_until_the_checksum_is_out(tmp_path: Path) -> None:
    out = tmp_path / "run"
    claim(out, TABLE)
    refuse_others(out, TABLE)
    text = (out / "config.toml").read_text()
    (out / "config.toml").write_text(text.replace('"cpu"', '"cuda"'))
    with pytest.raises(UserError, match=r"changed since .*or choose another --out; keep a change"):
        refuse_others(out, TABLE)
    (out / "config.toml").write_text(text.partition("# checksum")[0].replace('"cpu"', '"cuda"'))
    refuse_others(out, TABLE)  # the device is not what is computed
