"""A finished cell's counts of every test image, as they were written."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from fewmask.evidence.counts import ScoredRun, read_counts, read_scored


def test_counts_come_back_under_any_name(tmp_path: Path) -> None:
    names = ("b\u00e4r", 'a "b", c', "two\r\nlines")
    with (tmp_path / "per_image.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [["name", "tp", "fp", "fn", "tn"]]
            + [[name, i, i + 1, i + 2, 90] for i, name in enumerate(names)]
        )
    counts = read_counts(tmp_path / "per_image.csv")
    assert counts is not None
    found, inside, union = counts
    assert found == names
    assert inside.tolist() == [[0], [1], [2]]
    assert union.tolist() == [[3], [6], [9]]


def test_one_test_image_is_enough(tmp_path: Path) -> None:
    (tmp_path / "per_image.csv").write_text("name,tp,fp,fn,tn\na,8,1,1,0\n")
    found = read_scored(0.8, tmp_path)
    assert (found.score, found.names) == (0.8, ("a",))
    np.testing.assert_allclose(found.values, [0.8])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name,tp,fp,fn,tn\n",
        "name,tp,fp,fn,tn\na,8,1\n",
        "name,tp,fp,fn,tn\na,8,1,one,0\n",
        "name,tp,fp,fn,tn\na,8,1,,0\n",
        "name,tp,fp,fn,tn\na,8,3,-1,0\n",
        "image,tp,fp,fn,tn\na,8,1,1,0\n",
        "name,tp,fp,fn,tn\na,7,1,1,0\n",
        "name,tq,fp,fn,tn\na,8,1,1,0\n",
        "name,iou\na,0.8\n",
        f"name,tp,fp,fn,tn\n{'a' * 200_000},8,1,1,0\n",
    ],
    ids=range(11),
)
def test_a_damaged_file_is_not_taken_for_none(text: str, tmp_path: Path) -> None:
    """Without the counts the interval would quietly be another."""
    (tmp_path / "per_image.csv").write_text(text)
    with pytest.raises((ValueError, KeyError, TypeError, csv.Error)):
        read_scored(0.8, tmp_path)


@pytest.mark.parametrize("text", [None, "name,tp,fp,fn,tn\na,,,,\n"])
def test_without_counts_the_score_stays(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "per_image.csv").write_text(text)
    assert read_scored(0.8, tmp_path) == ScoredRun(0.8)
    assert read_scored(0.8, None) == ScoredRun(0.8)


def test_counts_of_another_run_are_named(tmp_path: Path) -> None:
    (tmp_path / "per_image.csv").write_text("name,tp,fp,fn,tn\na,7,1,1,0\n")
    with pytest.raises(ValueError, match=r"give an IoU of 0\.777778, the results say 0\.800000"):
        read_scored(0.8, tmp_path)


def test_a_mark_that_an_editor_adds_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "per_image.csv").write_text("name,tp,fp,fn,tn\na,8,1,1,0\n", encoding="utf-8-sig")
    assert read_scored(0.8, tmp_path).names == ("a",)
