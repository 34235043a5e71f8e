"""The whole story in Chromium, on a real PostgreSQL; the models are doubles whose vectors say text and model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
from fastapi import Request
from playwright.sync_api import Page, expect

from tests.browser.story import Story
from tests.console.inside import KEY, Console, console, options
from tests.migrate.doubles import TruthEncoder
from tests.postgres import connection, database_url, postgres_url
from tests.quick import params
from tests.stores.collections import OLD_DIMENSION, PgCollection, old_vector
from tests.waiting import wait_until
from vecferry.console import app
from vecferry.console.operator import Task
from vecferry.encode.loading import EncoderOptions, load_runtime
from vecferry.evaluate import EvaluatedModel, EvaluationOptions
from vecferry.migrate.gate import QualityGate
from vecferry.migrate.live_evaluation import query_set_of
from vecferry.migrate.values import GateVerdict
from vecferry.model.artifact import Artifact
from vecferry.model.tokens import Tokenizer
from vecferry.stores.protocol import Store

__all__ = ["connection", "database_url", "postgres_url"]

ROWS = 200
XSS = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"


def text(key: int) -> str:
    return f"{XSS} text number {key}" if key == 7 else f"text number {key}"


def judge(folder: Path, keys: Sequence[int]) -> None:
    """Write judged queries: each row's own text is a question that wants that row."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"_id": f"q{key}", "text": text(key)}) for key in keys]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    rows = [f"q{key}\t{key}\t1" for key in keys]
    (folder / "qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))


@pytest.fixture
def opened(connection: psycopg.Connection, database_url: str, tmp_path: Path) -> Iterator[Console]:
    """Open a console over 200 rows, to be encoded 60 a second, with five judged questions."""
    collection = PgCollection(connection, database_url)
    for key in range(1, ROWS + 1):
        collection.put(key, text(key), old_vector(text(key)))
    collection.put(0, "POISON", old_vector("POISON"))
    judge(tmp_path / "judged", range(1, 6))
    old, new = TruthEncoder("old", OLD_DIMENSION), TruthEncoder("new", 16)
    judging = EvaluationOptions(sample=0)
    gate = QualityGate(
        EvaluatedModel("old", old),
        EvaluatedModel("new", new),
        judging,
        lambda store: query_set_of(store, tmp_path / "judged", judging),
    )
    settings = options(tmp_path, rows_per_range=20, rows_per_s=60.0)
    with console(Task(collection.store, settings, new, old, lambda: gate)) as started:
        yield started


def test_a_switch_works_from_the_login_to_the_way_back(opened: Console, page: Page, tmp_path: Path) -> None:
    story = Story(page, opened.url, opened.operator.task.store.target, KEY)
    story.log_in("not-the-key-of-it")
    expect(page.get_by_role("alert")).to_have_text("That is not a key of this console.")
    story.stop("login")
    story.log_in()
    story.await_state("not begun")
    expect(page.locator("#part-plan")).to_contain_text("disk that must be free")
    story.stop("before")
    story.start()
    done = story.await_progress()
    story.stop("progress")
    page.wait_for_function("before => document.querySelector('progress').value > before", arg=done)
    story.set_limit("")
    story.await_state("catching up")
    expect(page.locator("#part-dead_letters")).to_contain_text("it is poison")

    story.search(text(7))
    expect(page.locator("#new-1 .text")).to_have_text(text(7))
    expect(page.locator("#old-1 .text")).to_have_text(text(7))
    assert page.title() == "Search both · vecferry console"
    story.stop("search")
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator(".side.new")).to_be_visible()
    expect(page.locator(".side.old")).to_be_hidden()
    page.get_by_label("show").check()
    expect(page.locator(".side.old")).to_be_visible()
    page.set_viewport_size({"width": 1280, "height": 800})

    story.back()
    story.verify("5 queries are too few to judge by")
    story.await_state("verified")
    story.stop("gate-red")
    page.locator("#overriding summary").click()
    page.get_by_role("button", name="Override").click()
    assert page.evaluate("document.activeElement.id") == "reason", "the browser asks for one"
    story.await_state("verified")
    judge(tmp_path / "judged", range(1, 41))
    story.verify("The new model is not worse")
    story.await_state("ready")
    story.stop("gate-green")

    story.switch("Switch to the new vectors", key="not-the-key-of-it", accepted="1")
    expect(page.locator("#switch").get_by_role("alert")).to_contain_text("That is not a key of this console.")
    story.await_state("ready")
    story.switch("Switch to the new vectors", accepted="1")
    story.await_state("serving new")
    story.await_words("The new vectors serve")
    story.stop("switched")
    story.switch("Roll back to the old vectors")
    story.await_state("serving old")
    story.await_words("The old vectors serve")
    story.stop("rolled-back")


@pytest.mark.parametrize(
    "look",
    [
        pytest.param({"color_scheme": "dark"}, id="dark"),
        pytest.param({"viewport": {"width": 390, "height": 844}}, id="phone"),
        pytest.param({"reduced_motion": "reduce"}, id="reduced motion", marks=pytest.mark.slow),
    ],
)
def test_every_page_is_accessible_however_it_is_looked_at(
    opened: Console, open_page: Callable[..., Page], look: dict[str, object]
) -> None:
    page = open_page(**look)
    story = Story(page, opened.url, opened.operator.task.store.target, KEY)
    page.goto(f"{opened.url}/login")
    story.stop("login")
    story.log_in()
    story.stop("before")
    story.start()
    story.await_progress()
    story.stop("progress")
    story.search("text number 9")
    story.stop("search")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than the screen"


def test_it_is_worked_by_the_keyboard_alone(opened: Console, page: Page) -> None:
    page.goto(f"{opened.url}/login")
    expect(page.get_by_label("API key")).to_be_focused()  # without a key or a click
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#state-title")).to_have_text("not begun")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Start and follow"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus is to be seen"
    page.keyboard.press("Enter")
    expect(page.locator("#part-run")).to_contain_text("The migration runs in this console")


def test_a_button_keeps_the_focus_when_its_part_is_put_anew(
    opened: Console, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is the test's own: it brings another form of the part each time."""

    async def stream(request: Request, _: str) -> AsyncIterator[str]:
        times = 0
        while not request.app.state.is_ending and not await request.is_disconnected():
            times += 1
            parts = json.dumps({"run": f"<p>seen {times} times</p><button>First</button><button>Second</button>"})
            yield f"event: parts\ndata: {parts}\n\n"
            await asyncio.sleep(0.1)

    monkeypatch.setattr(app, "_events", stream)
    Story(page, opened.url, opened.operator.task.store.target, KEY).log_in()
    page.get_by_role("button", name="Second").focus()
    before = page.locator("#part-run p").text_content()
    expect(page.locator("#part-run p")).not_to_have_text(str(before))
    assert page.evaluate("document.activeElement.textContent") == "Second"


def test_what_is_being_typed_survives_what_changes(opened: Console, page: Page) -> None:
    story = Story(page, opened.url, opened.operator.task.store.target, KEY)
    story.log_in()
    story.start()
    done = story.await_progress()
    page.locator("#limit summary").click()
    field = page.get_by_label("Maximum rows a second")
    field.fill("12")
    page.wait_for_function("before => document.querySelector('progress').value > before", arg=done)
    assert field.input_value() == "12"
    assert page.evaluate("document.activeElement.id") == "rows_per_s"


@pytest.mark.slow
def test_many_tabs_have_one_stream_and_hidden_ones_none(
    opened: Console, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[str] = []
    stream = app._events

    async def counted(request: Request, token: str) -> AsyncIterator[str]:
        streams.append(token)
        try:
            async for event in stream(request, token):
                yield event
        finally:
            streams.pop()

    monkeypatch.setattr(app, "_events", counted)
    story = Story(page, opened.url, opened.operator.task.store.target, KEY)
    story.log_in()
    tabs = [page, *(page.context.new_page() for _ in range(7))]
    for tab in tabs[1:]:
        tab.goto(opened.url)
    for tab in tabs:
        expect(tab.locator("#live")).to_have_text("live")
    assert len(streams) == 1
    story.start()
    for tab in tabs:
        expect(tab.locator("#state-title")).not_to_have_text("not begun")
    for tab in tabs:
        look_away(tab, hidden=True)
    wait_until(lambda: not streams)
    for tab in tabs[3:5]:
        look_away(tab, hidden=False)
    wait_until(lambda: len(streams) == 1)
    tabs[3].get_by_role("button", name="Log out").click()
    expect(tabs[4].get_by_label("API key")).to_be_visible()


def look_away(tab: Page, *, hidden: bool) -> None:
    """Let the page believe that its tab is hidden, or is seen again."""
    tab.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


def test_without_the_script_all_works_but_liveness(opened: Console, open_page: Callable[..., Page]) -> None:
    page = open_page(java_script_enabled=False)
    story = Story(page, opened.url, opened.operator.task.store.target, KEY)
    story.log_in()
    story.press("Start and follow")
    expect(page.locator("#part-run")).to_contain_text("The migration runs in this console")
    expect(page.locator("#live")).to_have_text("as of now")
    wait_until(lambda: bool(page.reload() and page.get_by_role("button", name="Pause").count()))
    story.press("Pause")
    story.await_state("paused")


@pytest.mark.parametrize("scheme", params(("light", "dark"), slow={"dark"}))
def test_highlighted_tokens_can_be_read(
    connection: psycopg.Connection,
    database_url: str,
    tiny_artifact: Artifact,
    open_page: Callable[..., Page],
    tmp_path: Path,
    scheme: str,
) -> None:
    collection = PgCollection(connection, database_url)
    for key in range(1, 20):
        collection.put(key, text(key), old_vector(text(key)))
    new = load_runtime(EncoderOptions(artifact=tiny_artifact.path), "onnx")
    assert isinstance(new.tokenizer, Tokenizer)
    old = TruthEncoder("old", OLD_DIMENSION)
    work = Task(collection.store, options(tmp_path), new, old, lambda: no_gate, pieces=new.tokenizer.pieces)
    with console(work) as opened:
        page = open_page(color_scheme=scheme)
        story = Story(page, opened.url, collection.store.target, KEY)
        story.log_in()
        story.start()
        story.await_state("catching up")
        story.search("number 7 is a text")
        expect(page.locator("#new-1 .facts")).to_contain_text("ColBERT")
        assert page.locator("#new-1 .text mark").count()
        story.stop("lit")


def no_gate(store: Store) -> GateVerdict:
    return GateVerdict(passed=False, message="There is none in this test.", evidence="none")
