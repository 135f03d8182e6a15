"""Words drawn into pictures."""

from __future__ import annotations

from PIL import ImageFont

from fewmask.captions import fitting

FONT = ImageFont.load_default(12)


def test_a_long_name_loses_its_middle_and_no_more_than_it_must() -> None:
    name = "a_very_long_name_of_a_picture_from_a_camera_0001234.jpg"
    assert fitting(name, FONT, 1000) == name
    short = fitting(name, FONT, 150)
    start, end = short.split("...")
    assert name.startswith(start)
    assert name.endswith(end)
    assert len(end) > len(start)
    assert FONT.getlength(short) <= 150
    assert FONT.getlength(fitting(name, FONT, 160)) > 140


def test_any_bytes_and_any_lines_are_one_line() -> None:
    assert fitting("a\nb\tc", FONT, 100) == "a b c"
    assert fitting("a\udcffb", FONT, 100) == "a?b"
    assert fitting("\ud800", FONT, 100) == "?"
    assert fitting("abcdef", FONT, 5) == "..."
