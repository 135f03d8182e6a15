"""The page: one file without network, honest in its sentences, safe with any name."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fewmask.reporting.findings import difference_rows, findings
from fewmask.reporting.folder import read_study
from fewmask.reporting.judged import verdicts
from fewmask.reporting.page import write_report
from fewmask.reporting.theme import signed

pytestmark = pytest.mark.xdist_group("page")  # what they share is made once

FIGURES = [
    "differences.png", "examples_0.png", "examples_1.png", "examples_2.png", "examples_3.png",
    "examples_4.png", "iou_vs_budget.png", "panels_arms.png", "panels_budgets.png",
    "panels_disagreements.png",
]  # fmt: skip
VOID = {"meta", "img", "source", "br", "link", "input"}


class Checker(HTMLParser):
    """Collects tags, and the places where tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(page: Path) -> tuple[str, Checker]:
    text, checker = page.read_text(encoding="utf-8"), Checker()
    checker.feed(text)
    assert checker.open == []
    return text, checker


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, make_study: Callable[..., Path]) -> Path:
    return write_report(make_study(tmp_path_factory.mktemp("study")))


def test_everything_is_written_and_nothing_half(page: Path) -> None:
    study = page.parent
    assert page.name == "report.html"
    assert sorted(p.name for p in (study / "figures").iterdir()) == FIGURES
    assert (study / "table.md").is_file()
    assert [*study.rglob(".*")] == []


def test_page_asks_the_network_for_nothing(page: Path) -> None:
    text, checker = read(page)
    tags = [tag for tag, _ in checker.tags]
    assert not {"link", "iframe", "object", "form"} & set(tags)
    assert tags.count("script") == 1
    for tag, attributes in checker.tags:
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "#").startswith(("data:image/webp;base64,", "#"))
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not re.search(r"https?://|@import|url\(", text)
    policy = next(a["content"] for t, a in checker.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    (script,) = re.findall(r"<script>(.*)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'" in policy


def test_pictures_have_words_and_a_dark_twin(page: Path) -> None:
    _, checker = read(page)
    images = [attributes for tag, attributes in checker.tags if tag == "img"]
    assert len(images) == len(FIGURES)
    assert all(image["alt"] for image in images)
    dark = [a["srcset"] for t, a in checker.tags if t == "source"]
    assert len(dark) == len(set(dark) - {image["src"] for image in images}) == len(FIGURES)


def test_sections_come_in_the_order_of_their_weight(page: Path) -> None:
    text, _ = read(page)
    headings = re.findall(r'<h2 id="(\w+)"', text)
    assert headings == ["says", "compared", "table", "curve", "differences", "panels", "warnings",
                        "definitions", "again"]  # fmt: skip
    assert len(re.findall("<h1", text)) == 1
    assert "fewmask study quick --pairs" in text
    assert "2.15.0" in text
    assert "Abyssinian_34.jpg is a GIF" in text


def test_repeats_that_share_their_labels_are_named(page: Path) -> None:
    text, _ = read(page)
    assert "At 80\N{NO-BREAK SPACE}% the budget takes the whole of the rest" in text


def test_imagenet_comes_first(page: Path) -> None:
    said = findings(read_study(page.parent))
    assert said[0].startswith("Own pre-training against ImageNet weights")
    assert "of 9: " in said[0]  # 3 own arms x 3 budgets; scratch is no pre-training
    assert said[1].startswith("Against the baseline, scratch")


def test_reports_are_the_same_bytes_again(page: Path) -> None:
    before = page.read_bytes()
    write_report(page.parent)
    assert page.read_bytes() == before


def test_names_from_data_are_text(make_study: Callable[..., Path], tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    out = make_study(
        tmp_path, ("scratch", bad), (8,), 1, ("background", bad), title=bad, about=bad,
        warnings=[bad], command=f"fewmask study {bad}", definitions={bad: bad},
        versions={bad: bad},
    )  # fmt: skip
    text, checker = read(write_report(out))
    assert [tag for tag, _ in checker.tags].count("script") == 1  # the page's own
    assert text.count("&lt;script&gt;") > 8


def test_no_cell_is_done(make_study: Callable[..., Path], tmp_path: Path) -> None:
    text, checker = read(write_report(make_study(tmp_path, done=0, panels=False)))
    assert "No cell is done yet" in text
    assert "img" not in [tag for tag, _ in checker.tags]


def test_only_the_plan_is_there(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"name": "quick"}')
    text, _ = read(write_report(tmp_path))
    assert "No cell is done yet" in text


def test_one_arm_one_repeat_no_panels(make_study: Callable[..., Path], tmp_path: Path) -> None:
    text, checker = read(write_report(make_study(tmp_path, ("scratch",), (8,), 1, panels=False)))
    assert [tag for tag, _ in checker.tags].count("img") == 1
    assert 'id="differences"' not in text


def test_one_repeat_is_too_few_to_tell(make_study: Callable[..., Path], tmp_path: Path) -> None:
    study = read_study(make_study(tmp_path, ("scratch", "a"), (0.2, 0.5), 1, panels=False))
    assert findings(study)[-1] == "1 repeat: too few to tell: these differences may be chance."
    rows = difference_rows(study, verdicts(study))
    assert {row["To decide"] for row in rows} == {"at least 2 repeats"}
    assert {row["Verdict"] for row in rows} == {"cannot tell"}


def test_sentences_count_what_the_rows_hold(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    out = make_study(tmp_path, ("scratch", "a"), (0.2, 0.5), 3, panels=False, whole_budgets=[])
    scores = {"scratch": (0.70, 0.71, 0.72), "a": (0.75, 0.77, 0.76)}
    shutil.rmtree(out / "cells")  # they hold other scores
    lines = (out / "results.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    for row in rows:
        gain = -0.05 if row["arm"] == "a" and row["budget"] == "0.5" else 0.0
        row["iou"] = str(scores[row["arm"]][int(row["repeat"])] + gain)
    text = [",".join(row.values()) for row in rows]
    (out / "results.csv").write_text("\n".join([lines[0], *text]) + "\n")
    said = findings(read_study(out))
    assert said[0] == (
        "Against the baseline, scratch: helped in 1 of 2: a at 20 % (+5.0 points, +2.5 to +7.5); "
        f"these runs cannot tell in 1 of 2: a at 50 % (0.0 points, {signed(-0.025)} to +2.5)."
    )
    assert "cover what other runs, on these test images would change" in said[1]
    assert "Less than 1 point of IoU" in said[1]


def test_the_data_is_described(tmp_path: Path, make_study: Callable[..., Path]) -> None:
    shares = {"masks_rest": 554, "masks_test": 139, "share_rest": 0.325, "share_test": 0.3374}
    data = {
        "classes": [{"name": "pet <b>", **shares}],
        "nearness": [{"name": "cifar10", "kid": 0.158, "low": 0.0896, "high": 0.2654}],
    }
    small = {"arms": ("scratch",), "budgets": (8,), "repeats": 1, "panels": False}
    text = write_report(make_study(tmp_path / "study", **small, data=data)).read_text()
    row = text[text.index("pet &lt;b&gt;") :]
    assert re.findall(r"<td[^>]*>([^<]*)", row)[:4] == ["554", "32.5 %", "139", "33.7 %"]
    row = text[text.index("<span>cifar10</span>") :]
    assert re.findall(r"<td[^>]*>([^<]*)", row)[:2] == ["158.0", "89.6 to 265.4"]
    assert 'id="data"' not in write_report(make_study(tmp_path / "older", **small)).read_text()


def test_every_link_has_its_place(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r'href="#([^"]*)"', text)
    assert {"is-iou", "is-dice_loss", "definitions"} <= set(links)
    assert set(links) <= set(re.findall(r'id="([^"]*)"', text))
