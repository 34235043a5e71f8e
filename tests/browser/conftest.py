"""A real Chromium, and pages that fail their test for an error in the console or a request to somebody else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
AXE = Path(__file__).parents[2] / ".venv/browser/node_modules/axe-core/axe.min.js"
SCREENSHOTS = "VECFERRY_SCREENSHOTS"
"""Names the folder into which `shoot` writes; without it nothing is written."""


def chromium() -> str:
    """Return the path of Chromium. Without it or axe-core a test is skipped, and fails where CI=true."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None or not AXE.exists():
        missing = "Chromium" if program is None else "axe-core"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{missing} is not here: make browser")
    return program


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Yield a browser for this package alone: while Playwright runs, no other event loop can in its thread."""
    path = chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield launched
        launched.close()


@dataclass
class Watched:
    """What a page did. Everything that it asks for belongs to the site, or is the file, that it was opened on."""

    page: Page
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text}")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith(("data:", "blob:", "about:")):
            self.requests.append(request.url)

    def foreign(self) -> list[str]:
        """Return the requests that leave the site, or the file, of the first one."""
        if not self.requests:
            return []
        first = urlsplit(self.requests[0])
        if first.scheme == "file":
            return [url for url in self.requests if urlsplit(url)._replace(fragment="") != first._replace(fragment="")]
        return [url for url in self.requests if urlsplit(url)[:2] != first[:2]]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Make a page in a context of its own; options are those of `Browser.new_context`."""
    with ExitStack() as opened:
        yield lambda **options: opened.enter_context(_watched(browser, options))


@contextmanager
def _watched(browser: Browser, options: dict[str, Any]) -> Iterator[Page]:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "locale": "en-GB"} | options)
    watched = Watched(context.new_page())
    watched.page.set_default_timeout(20_000)
    yield watched.page
    context.close()
    assert watched.problems == []
    assert watched.foreign() == []


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """Open a page of 1280 × 800 in the light scheme."""
    return open_page()


def axe(page: Page) -> list[str]:
    """Return what axe-core has against the page now, a line for each rule; the page's own policy stays in force."""
    page.evaluate(f"{AXE.read_text(encoding='utf-8')}\n;0")
    violations = page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
    return [
        f"{violation['id']}: {violation['help']}: {json.dumps([node['target'] for node in violation['nodes']])}"
        for violation in violations
    ]


def shoot(page: Page, name: str, *, full_page: bool = False) -> None:
    """Take a picture for people, where the environment asks for one."""
    if folder := os.environ.get(SCREENSHOTS):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=full_page)
