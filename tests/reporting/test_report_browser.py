"""The page in a real browser: it sorts, zooms, fits a phone, and its policy lets its script run."""

from __future__ import annotations

import re
import shutil
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count, pairwise
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from fewmask.reporting.page import write_report

VISITS = count()
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed"
    ),
    pytest.mark.xdist_group("browser"),  # one browser and one report for all
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync", "--no-first-run",
                 f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=str(DRIVER))
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


@pytest.fixture(scope="module")
def report(make_study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = {"test": {"exact": 1, "near": 0}, "within": {"exact": 0, "near": 3}}
    arms, out = ("scratch", "imagenet", "simclr"), tmp_path_factory.mktemp("report")
    return write_report(make_study(out, arms, (30, 0.2, 0.5), 3, leakage=found))


@pytest.fixture
def page(browser: webdriver.Chrome, report: Path) -> webdriver.Chrome:
    """The page anew for each test, as it is first seen."""
    browser.set_window_size(1200, 900)
    # An address of its own, since one with another #part alone would not load it anew.
    browser.get(f"{report.as_uri()}?{next(VISITS)}")
    ready = "return document.readyState == 'complete' && !!document.querySelector('thead button')"
    WebDriverWait(browser, 120).until(lambda _: browser.execute_script(ready))
    return browser


def column(page: webdriver.Chrome, name: str) -> tuple[WebElement, list[str]]:
    """The heading's button, and the first words of the first table's column, as they stand."""
    table = page.find_element(By.CSS_SELECTOR, "table.sortable")
    heads = table.find_elements(By.CSS_SELECTOR, "thead th")
    place = [head.text.split()[0] for head in heads].index(name)
    rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
    texts = [row.find_elements(By.CSS_SELECTOR, "th, td")[place].text for row in rows]
    first = [(text.split() or [""])[0] for text in texts]  # the spread stands below
    return heads[place].find_element(By.TAG_NAME, "button"), first


def test_nothing_is_refused_or_fails(page: webdriver.Chrome) -> None:
    assert page.find_elements(By.CSS_SELECTOR, "thead button")  # the script has run
    assert page.get_log("browser") == []


def test_a_heading_sorts_and_the_third_click_restores(page: webdriver.Chrome) -> None:
    button, before = column(page, "IOU")
    button.click()
    _, falling = column(page, "IOU")
    assert falling == sorted(before, key=float, reverse=True) != before
    button.click()
    assert column(page, "IOU")[1] == sorted(before, key=float)
    assert "ascending" in page.page_source
    button.click()
    assert column(page, "IOU")[1] == before


def test_the_keyboard_sorts_too_and_rows_say_their_arm(page: webdriver.Chrome) -> None:
    button, before = column(page, "IOU")
    button.send_keys(Keys.ENTER)
    assert column(page, "IOU")[1] == sorted(before, key=float, reverse=True) != before
    _, names = column(page, "Model")
    assert sorted(set(names)) == ["imagenet", "scratch", "simclr"]
    spans = page.find_elements(By.CSS_SELECTOR, "table.sorted tbody th span")
    assert len(spans) == len(names)
    assert all(span.size["width"] > 10 for span in spans), "1 is hidden from all but readers"


def test_budgets_sort_by_their_masks(page: webdriver.Chrome) -> None:
    button, before = column(page, "Dev")
    assert before[:3] == ["30", "20", "50"]  # 30 masks, and shares of 139 and 346
    button.click()
    assert column(page, "Dev")[1] == ["50"] * 3 + ["20"] * 3 + ["30"] * 3


def test_words_sort_from_a_to_z_and_the_direction_is_said(page: webdriver.Chrome) -> None:
    button, before = column(page, "Model")
    button.click()
    assert column(page, "Model")[1] == sorted(before) != before
    assert page.find_elements(By.CSS_SELECTOR, 'table.sortable th[aria-sort="ascending"]')
    button.click()
    assert column(page, "Model")[1] == sorted(before, reverse=True)


def test_reasons_come_after_numbers(page: webdriver.Chrome) -> None:
    table = page.find_elements(By.CSS_SELECTOR, "table.sortable")[0]
    cells = ["no answer: it lies beyond 2216 masks", "about 60 (45 to 90)", "at most 8",
             "1 repeat: too few to tell", "\u22123.1 to +4.0", "+12.5", "3", "2", "1"]  # fmt: skip
    rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
    for row, text in zip(rows, cells, strict=True):
        cell = row.find_elements(By.TAG_NAME, "td")[1]
        change = "arguments[0].textContent = arguments[1]; delete arguments[0].dataset.sort"
        page.execute_script(change, cell, text)
    table.find_elements(By.CSS_SELECTOR, "thead button")[2].click()
    rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
    found = [row.find_elements(By.TAG_NAME, "td")[1].text for row in rows]
    assert found[:7] == [cells[1], cells[5], cells[2], "3", "2", "1", cells[4]]
    assert set(found[7:]) == {cells[0], cells[3]}


def test_a_picture_opens_large_and_escape_closes_it(page: webdriver.Chrome) -> None:
    button = page.find_element(By.CSS_SELECTOR, "section[aria-labelledby=curve] button.zoom")
    button.send_keys(Keys.ENTER)
    dialog = page.find_element(By.TAG_NAME, "dialog")
    assert dialog.get_attribute("open") is not None
    assert dialog.find_element(By.TAG_NAME, "img").get_attribute("alt")
    dialog.send_keys(Keys.ESCAPE)
    assert dialog.get_attribute("open") is None


def test_every_definition_is_one_click_away(page: webdriver.Chrome) -> None:
    """From each section with numbers in it; the definition then is on the screen."""
    for section in ("table", "curve", "differences"):
        links = page.find_elements(
            By.CSS_SELECTOR, f"section[aria-labelledby={section}] a[href^='#is-']"
        )
        assert links, section
        for link in links:
            target = str(link.get_attribute("href")).split("#")[1]
            link.send_keys(Keys.ENTER)
            term = page.find_element(By.ID, target)
            top = page.execute_script("return arguments[0].getBoundingClientRect().top", term)
            assert term.text
            assert -1 < top < 900, target


def test_the_copies_open_by_the_keyboard_and_enlarge(page: webdriver.Chrome) -> None:
    details = page.find_element(By.TAG_NAME, "details")
    picture = details.find_element(By.TAG_NAME, "img")
    assert not picture.is_displayed()
    details.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert picture.is_displayed()
    details.find_element(By.CSS_SELECTOR, "button.zoom").send_keys(Keys.ENTER)
    assert page.find_element(By.TAG_NAME, "dialog").get_attribute("open") is not None


def names_by_role(page: webdriver.Chrome) -> dict[str, list[str]]:
    """What the accessibility tree holds by now; the headings' arrows alone are no name."""
    seen: dict[str, list[str]] = {}
    for node in page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]:
        if not node.get("ignored") and "role" in node:
            name = node.get("name", {}).get("value", "").strip(" \u2191\u2193\u2195")
            seen.setdefault(node["role"]["value"], []).append(name)
    return seen


def test_a_screen_reader_gets_a_name_for_everything(page: webdriver.Chrome) -> None:
    # The tree is made beside the page, and may be late on a busy machine.
    WebDriverWait(page, 30).until(lambda _: "image" in names_by_role(page))
    seen = names_by_role(page)
    for role in ("image", "button", "link", "region", "columnheader", "rowheader", "heading"):
        assert seen[role], role
        assert all(seen[role]), role
    levels = page.find_elements(By.CSS_SELECTOR, "h1, h2, h3")
    steps = [int(heading.tag_name[1]) for heading in levels]
    assert steps[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(steps))


def test_a_dark_screen_gets_dark_figures(page: webdriver.Chrome) -> None:
    def seen(scheme: str) -> tuple[str, str]:
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
        return tuple(
            page.execute_async_script(
                "const done = arguments[0], image = document.querySelector('.chart img');"
                "setTimeout(() => done([getComputedStyle(document.body).backgroundColor,"
                " image.currentSrc]), 300)"
            )
        )

    light, dark = seen("light"), seen("dark")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert light[0] == "rgb(245, 246, 248)"
    assert dark[0] == "rgb(15, 19, 25)"
    assert light[1] != dark[1]


def test_it_prints_on_pages_of_a4_without_cutting(page: webdriver.Chrome) -> None:
    """At the width of the sheet nothing scrolls sideways; every figure is on some page."""
    sheet = {"width": 717, "height": 1045, "deviceScaleFactor": 1, "mobile": False}
    page.execute_script("dispatchEvent(new Event('beforeprint'))")  # as printing does
    folded = page.find_element(By.CSS_SELECTOR, "details img")
    # A busy machine takes its time to load pictures and to lay the page out anew.
    loaded = "return [...document.images].every(i => i.complete && i.naturalWidth)"
    WebDriverWait(page, 120).until(lambda _: folded.is_displayed() and page.execute_script(loaded))
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sheet)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    wide = (
        "return [...document.querySelectorAll('section *')].filter("
        "e => e.getBoundingClientRect().right > 718).map(e => e.tagName)"
    )
    with suppress(TimeoutException):
        WebDriverWait(page, 120).until(lambda _: page.execute_script(wide) == [])
    assert page.execute_script(wide) == []
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    printed = b64decode(
        page.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})["data"]
    )
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 2
    figures = len(page.find_elements(By.CSS_SELECTOR, "figure img"))
    assert len(re.findall(rb"/Subtype\s*/Image\b", printed)) >= figures


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_is_no_wider_than_the_screen(page: webdriver.Chrome, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    wide = page.execute_script("return document.documentElement.scrollWidth")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= width
