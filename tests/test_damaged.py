"""What damaged tables, logs and files come to: refused, or cut where wrong; never taken."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest

from fewmask.data.images import Undecodable, unreadable
from fewmask.data.items import ImageFile
from fewmask.distances.neighbours import wilson
from fewmask.inference import load_run
from fewmask.segmentation import rebuild
from fewmask.settings import FinetuneSettings, PretrainSettings
from fewmask.studies.record import schedule
from fewmask.training import _rows_until
from fewmask.types import UserError

SOUND: dict[str, Any] = {
    "encoder": "resnet18", "decoder": "fpn", "decoder_options": {}, "size": 64,
    "resize": "square", "classes": ["background", "pet"], "lut": [0, 1, *[255] * 254],
    "border_lut": None, "colours": [[0, 0, 0], [230, 159, 0]],
    "options": {"src": "pairs", "classes": None, "mask_values": ["1", "2"], "table": None,
                "ignore": 255},
}  # fmt: skip


def test_a_sound_description_is_rebuilt() -> None:
    segmenter, geometry = rebuild(SOUND)
    assert (geometry.size, segmenter.labels.names) == (64, ("background", "pet"))


@pytest.mark.parametrize(
    "damage",
    [
        {"size": 0},
        {"size": 10**6},
        {"size": "64"},
        {"size": 64.5},
        {"size": True},
        {"resize": "stretch"},
        {"classes": []},
        {"classes": "pets"},
        {"classes": ["background", 1]},
        {"lut": [0, 1, *[256] * 254]},
        {"lut": [0.0, 1, *[255] * 254]},
        {"border_lut": [-1] * 256},
        {"lut": [0, 2, *[255] * 254]},
        {"border_lut": [0, 4, *[255] * 254]},
        {"colours": [[0, 0, True]]},
        {"options": {**SOUND["options"], "table": "x"}},
        {"options": {**SOUND["options"], "src": 7}},
        {"options": {**SOUND["options"], "ignore": "255"}},
    ],
    ids=lambda damage: ",".join(f"{k}={str(v)[:24]}" for k, v in damage.items()),
)
def test_a_damaged_description_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        rebuild({**SOUND, **damage})


@pytest.mark.parametrize(
    ("torn", "kept"),
    [
        ('{"step": 3, "los', 2),
        ("[" * 100_000, 2),
        ('{"step": 3, "loss": "high"}', 2),
        ('{"step": true}', 2),
        ('{"loss": 1.0}', 2),
        ("3", 2),
        ('{"step": 3, "loss": null}', 4),
        ('{"step": 9, "loss": 0.1}', 2),
    ],
)
def test_a_log_is_kept_up_to_its_first_damaged_row(tmp_path: Path, torn: str, kept: int) -> None:
    rows = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2)]
    last = json.dumps({"step": 4, "loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text("\n".join([*rows, torn, last]) + "\n")
    found = _rows_until(tmp_path / "metrics.jsonl", 5)
    assert [row["step"] for row in found] == [1, 2, 3, 4][:kept]
    assert _rows_until(tmp_path / "metrics.jsonl", 0) == []
    assert _rows_until(tmp_path / "gone.jsonl", 5) == []


def test_what_the_system_refuses_to_read_is_told_with_its_mend(tmp_path: Path) -> None:
    with pytest.raises(Undecodable, match="No such file") as gone:
        ImageFile("a.png", tmp_path / "a.png").read()
    assert "It is gone" in gone.value.mend
    (tmp_path / "file").touch()
    with pytest.raises(Undecodable) as below:
        ImageFile("a.png", tmp_path / "file" / "a.png").read()
    assert below.value.mend == "It is gone: bring it back"
    denied = unreadable("a.png", PermissionError(errno.EACCES, "Permission denied"))
    assert denied.mend == "Give the permission to read it"
    assert "copy" in unreadable("a.png", OSError(errno.EIO, "Input/output error")).mend
    assert unreadable("a.png", OSError(errno.EMFILE, "Too many open files")).mend == (
        "Replace or remove it"
    )


def test_a_schedule_in_words() -> None:
    pretrain = PretrainSettings(
        images="x", out="o", epochs=1, steps=None, batch_size=64, lr=0.3, optimizer="sgd", size=48
    )
    assert schedule(pretrain) == "1 epoch, batches of 64, sgd at a rate of 0.3, 48 px"
    finetune = FinetuneSettings(
        pairs="x", out="o", steps=200, batch_size=16, lr=None, optimizer="adam", size=64
    )
    assert schedule(finetune) == "200 steps, batches of 16, adam, 64 px"
    assert schedule(None) is None


@pytest.mark.parametrize(("share", "n"), [(0.0, 10), (0.3, 10), (1.0, 25)])
def test_wilson_s_ends_are_where_the_share_is_two_sigmas_away(share: float, n: int) -> None:
    """Its definition: |share - p| = z sqrt(p (1 - p) / n)."""
    for end in wilson(share, n):
        assert abs(share - end) == pytest.approx(
            1.959964 * math.sqrt(max(end * (1 - end), 0) / n), abs=1e-9
        )
    assert wilson(0.0, 10)[1] == pytest.approx(0.2775, abs=1e-4)


@pytest.mark.parametrize("what", ["encoder", "decoder"])
def test_an_unknown_name_is_told_with_its_file(tmp_path: Path, what: str) -> None:
    (tmp_path / "model.json").write_text(json.dumps({**SOUND, what: "resnet18x"}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"resnet18x.*and fine-tune it again$") as told:
        load_run(tmp_path)
    assert str(told.value).count(f"{tmp_path / 'model.json'}: ") == 1
