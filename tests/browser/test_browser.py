"""The fixtures themselves: what they are to notice, they notice."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import Watched, axe


@pytest.fixture
def watched(browser: Browser) -> Watched:
    return Watched(browser.new_page())


def written(folder: Path, body: str) -> str:
    file = folder / "page.html"
    file.write_text(f'<!doctype html><html lang="en"><title>t</title><main><h1>t</h1>{body}</main></html>')
    return file.as_uri()


def test_a_page_without_faults_has_none(page: Page, tmp_path: Path) -> None:
    page.goto(written(tmp_path, "<p>words</p>"))
    assert axe(page) == []


def test_a_picture_without_words_is_a_violation(page: Page, tmp_path: Path) -> None:
    page.goto(written(tmp_path, '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">'))
    assert [line.split(":")[0] for line in axe(page)] == ["image-alt"]


def test_a_failing_script_and_a_foreign_request_are_noticed(watched: Watched, tmp_path: Path) -> None:
    watched.page.goto(written(tmp_path, '<script>nothing()</script><img alt="" src="http://127.0.0.1:1/a.png">'))
    watched.page.close()
    assert any("nothing is not defined" in problem for problem in watched.problems)
    assert watched.foreign() == ["http://127.0.0.1:1/a.png"]
