"""The report in a browser: light, dark, narrow and on paper."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Dialog, Page

from tests.browser.conftest import axe, shoot
from tests.evaluations import make_evaluation, with_attacks_everywhere
from tests.quick import params
from vecferry.report import write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(make_evaluation(), path)
    return path


@pytest.mark.parametrize("scheme", params(("light", "dark"), slow={"dark"}))
def test_the_report_is_accessible(report: Path, open_page: Callable[..., Page], scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    page.goto(report.as_uri())
    shoot(page, f"report-{scheme}")
    assert page.evaluate("document.documentElement.scrollHeight") < 12_000  # px, with every part that there is
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert axe(page) == []


def test_colours_of_charts_follow_the_scheme(report: Path, open_page: Callable[..., Page]) -> None:
    colours = set()
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        page.goto(report.as_uri())
        mark = page.locator("svg path[fill='var(--new)']").first
        colours.add(mark.evaluate("one => getComputedStyle(one).fill"))
    assert len(colours) == 2
    assert all(colour.startswith("rgb(") for colour in colours)


def test_a_narrow_window_scrolls_downwards_only(report: Path, open_page: Callable[..., Page]) -> None:
    page = open_page(viewport={"width": 390, "height": 844})
    page.goto(report.as_uri())
    shoot(page, "report-narrow")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert axe(page) == []


def test_names_of_others_run_nothing(page: Page, tmp_path: Path) -> None:
    write_report(with_attacks_everywhere(make_evaluation()), tmp_path / "report.html")
    dialogs: list[str] = []

    def note(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    page.goto((tmp_path / "report.html").as_uri())
    page.mouse.move(600, 400)
    page.mouse.wheel(0, 4000)
    assert dialogs == []
    assert "<script>" in page.locator("h2 + h3, h3").first.inner_text()
    assert axe(page) == []


def test_paper_begins_with_the_verdict_and_takes_more_than_a_page(report: Path, page: Page) -> None:
    page.goto(report.as_uri())
    printed = page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 1
    page.emulate_media(media="print")
    verdict, first_section = page.locator("h1"), page.locator("section").first
    above = verdict.bounding_box()
    assert above is not None
    assert above["y"] < 150  # px: the badge and the margins above it take 60
    assert page.locator("nav").is_hidden()
    assert page.locator("details").first.is_hidden()
    assert first_section.is_visible()
