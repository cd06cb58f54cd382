"""A report as a reader has it: in a real browser, wide, narrow and dark, by mouse, by keyboard and by ear."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from lrp_compress.config.schema import TrackingConfig
from lrp_compress.reporting.collections import Elsewhere, from_folder
from lrp_compress.reporting.page import write_report
from lrp_compress.tracking.journal import JOURNAL, Journal
from tests.reporting.test_reports import made_run

CHROMIUM = shutil.which("chromium")
RUN_ID = "0123456789abcdef0123456789abcdef"

# On CI its absence is an error.
pytestmark = pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="apt-get install chromium")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report of a sweep: two criteria, two sizes, two seeds, with int8 files; one run was recorded in MLflow."""
    folder = tmp_path_factory.mktemp("reported") / "sweep with a name that is too long for the width of a telephone"
    for criterion, less in (("lrp", 0), ("weight_l1", 30)):
        for ratio in (0.5, 0.8):
            for seed in (0, 1):
                student = 95 - less - 30 * (ratio > 0.5) + 5 * seed
                made_run(folder, criterion, ratio, seed, student, int8=student - 4)
    Journal(folder / "breakout-lrp-r0.50-s0" / JOURNAL).hand_over(RUN_ID, 0)
    tracking = TrackingConfig(uri="http://mlflow.example:5000", experiment="test", timeout_s=5)
    return write_report(from_folder(folder, Elsewhere(tracking, Path("unused"))), folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", params=[(1400, "light"), (390, "light"), (1400, "dark")], ids=str)
def opened(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[tuple[Page, list[str]]]:
    """The page, and what it has complained of or asked for."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url.partition(",")[0]))
    page.goto(report.as_uri())
    yield page, said
    page.close()


def test_nothing_is_complained_of_and_nothing_asked_for(opened: tuple[Page, list[str]], report: Path):
    page, said = opened
    page.wait_for_load_state("networkidle")
    assert [one for one in said if not one.startswith("data:")] == [report.as_uri()]


def test_nothing_is_wider_than_the_screen(opened: tuple[Page, list[str]]):
    page, _ = opened
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    outside = """charts => charts.flatMap(chart => {
        const frame = chart.getBoundingClientRect();
        return [...chart.querySelectorAll("text, use")].filter(part => {
            const box = part.getBoundingClientRect();
            return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
                || box.bottom > frame.bottom + 1;
        }).map(part => part.textContent || part.outerHTML);
    })"""
    assert page.locator("svg").evaluate_all(outside) == []


def test_the_legend_is_off_the_points(opened: tuple[Page, list[str]]):
    page, _ = opened
    front = page.locator("svg").first
    legend = front.get_by_text("beaten", exact=True).bounding_box()
    tops = [box["y"] for point in front.locator(".point").all() if (box := point.bounding_box())]
    assert legend is not None
    assert legend["y"] + legend["height"] <= min(tops)


def test_a_screen_reader_finds_nothing_amiss(opened: tuple[Page, list[str]]):
    """Names, roles, headings, tables, what can be scrolled by keys, contrast: the rules of axe-core."""
    page, _ = opened
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found] == []


def test_points_name_themselves_and_lead_to_their_runs(opened: tuple[Page, list[str]]):
    page, _ = opened
    point, name = page.locator(".point").first, page.locator("#name")
    said = "breakout-lrp-r0.50, seeds 0, 1: return kept 95.8%, "
    assert str(point.get_attribute("aria-label")).startswith(said)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert name.inner_text().startswith(said)
    page.mouse.move(1, 1)
    assert name.is_hidden()
    point.focus()
    assert name.inner_text().startswith(said)
    shown = name.bounding_box()
    assert shown is not None
    assert shown["x"] >= 0
    assert shown["x"] + shown["width"] <= page.evaluate("document.documentElement.clientWidth")
    page.keyboard.press("Escape")
    assert name.is_hidden()
    page.keyboard.press("Enter")
    row = page.locator("tr:target")
    assert row.locator("td").first.inner_text() == "breakout-lrp-r0.50"
    ways = [str(link.get_attribute("href")) for link in row.locator("a").all()]
    assert ways[:2] == ["breakout-lrp-r0.50-s0/", "breakout-lrp-r0.50-s1/"]
    assert ways[2:] == [f"http://mlflow.example:5000/#/runs/{RUN_ID}?workflowType=machine_learning"]


def test_dark_is_dark(opened: tuple[Page, list[str]]):
    page, _ = opened
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    red, *_ = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red < 50) == dark
