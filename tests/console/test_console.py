"""The pages and forms over a collection in memory."""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.console.inside import KEY, WAIT_S, Console, console, options, task
from tests.migrate.doubles import TruthEncoder
from tests.stores.collections import OLD_DIMENSION, MirrorCollection, old_vector
from vecferry.errors import InvalidText
from vecferry.migrate import Migration
from vecferry.migrate.engines import Engine
from vecferry.migrate.engines.local import LocalEngine
from vecferry.migrate.staging import Staging
from vecferry.stores.ledger import MigrationRecord
from vecferry.stores.protocol import Store

XSS = "<script>alert(1)</script>"


@pytest.fixture
def ready(inside: Console) -> Console:
    """Return a console after two verifications: the gate passed the second time."""
    inside.do("start")
    inside.wait_for("catching up</h1>")
    for state in ("verified", "ready"):
        inside.do("verify")
        inside.wait_for(f"{state}</h1>")
    return inside


def confirmed(opened: Console) -> dict[str, str]:
    return {"name": opened.operator.task.store.target, "key": KEY}


# --- the way there and back -----------------------------------------------------------------------


def test_the_whole_way_by_forms(ready: Console) -> None:
    page = ready.page()
    assert "30 <span" in page
    assert "The new model is better." in page
    table = page.partition('id="checks"')[2].partition("</details>")[0]
    assert f"{table.count('<tr class=')} checks, {table.count('✓ yes')} passed" in table
    assert "Slices judged by the gate: 1, 1 passed" in page
    ready.do("cutover", **confirmed(ready))
    ready.wait_for("serving new</h1>")
    assert "The <strong>new</strong> vectors answer." in ready.wait_for("epoch 2, generation 2")
    ready.do("rollback", **confirmed(ready))
    ready.wait_for("serving old</h1>")
    assert "The <strong>old</strong> vectors answer." in ready.page()


def test_commands_are_for_the_own_file_and_possible_now(collection: MirrorCollection, tmp_path: Path) -> None:
    def commands(page: str) -> str:
        return page.partition("<pre>")[2].partition("</pre>")[0]

    work = replace(task(collection.store.another(), tmp_path), config=Path("of shop/migration.toml"))
    with console(work) as opened:
        opened.log_in()
        assert commands(opened.page()) == ""
        opened.do("start")
        opened.wait_for("catching up</h1>")
        abort = "vecferry migrate abort --config &#39;of shop/migration.toml&#39;"
        assert commands(opened.page()) == abort
        opened.do("pause")
        assert commands(opened.wait_for("paused</h1>")) == abort
        opened.do("resume")
        opened.do("verify")
        opened.wait_for("ready</h1>")
        opened.do("cutover", **confirmed(opened))
        page = opened.wait_for("serving new</h1>")
        assert commands(page) == abort.replace("abort", "finalize")
        assert "Run by process" in page


def test_the_plan_is_there_before_the_start_and_not_after(collection: MirrorCollection, tmp_path: Path) -> None:
    work = task(collection.store, tmp_path)
    work = replace(work, options=replace(work.options, old_name="MiniLM", new_name="BGE-M3"))
    with console(work) as opened:
        opened.log_in()
        page = opened.wait_for("disk that must be free")
        for fact in ("8 → 16", "The recipe is confirmed.", "It makes <code", "MiniLM</strong>", "BGE-M3</strong>"):
            assert fact in page
        opened.do("start")
        page = opened.wait_for("catching up</h1>")
        assert "disk that must be free" not in page
        assert re.search(r"<time datetime=[^>]+>[\d-]+ [\d:]+ UTC</time> <span>catching up", page)


def test_a_plan_that_cannot_be_made_says_why_and_is_made_again(collection: MirrorCollection, tmp_path: Path) -> None:
    work = task(collection.store, tmp_path)
    refusals = [InvalidText(0, "it is not read yet")]

    def gate_check(_: Store) -> Sequence[str]:
        if refusals:
            raise refusals.pop()
        return ()

    with console(replace(work, gate_check=gate_check)) as opened:
        opened.log_in()
        assert "/do/start" in opened.wait_for("it is not read yet")
        opened.do("plan")
        opened.wait_for("disk that must be free")


def test_what_is_written_meanwhile_is_followed(inside: Console, collection: MirrorCollection) -> None:
    inside.do("start")
    inside.wait_for("catching up</h1>")
    collection.put(31, "text number 31", old_vector("text number 31"))
    inside.wait_for("31 <span")


def test_a_run_is_stopped_and_started_again(inside: Console) -> None:
    inside.do("start")
    inside.wait_for("catching up</h1>")
    inside.do("stop")
    inside.wait_for("the run ended before its work did: it was asked to stop.")
    inside.do("start")
    inside.wait_for("The migration runs in this console")


def test_the_run_takes_the_engine_that_it_was_given(collection: MirrorCollection, tmp_path: Path) -> None:
    made = []

    def engine(store: Store, staging: Staging, record: MigrationRecord) -> Engine:
        made.append(record.spec.target)
        return LocalEngine(store, TruthEncoder("new", 16), staging, record.spec.uid, 4)

    with console(replace(task(collection.store, tmp_path), engine=engine)) as opened:
        opened.log_in()
        opened.do("start")
        opened.wait_for("catching up</h1>")
    assert made == [collection.store.target]


def test_a_pause_and_a_limit_are_the_ledgers(inside: Console) -> None:
    inside.do("start")
    inside.wait_for("catching up</h1>")
    assert "At most 12.5 rows a second are written." in inside.do("throttle", rows_per_s="12.5")
    for wrong in ("many", "0", "-5", "inf", "nan", "1e400"):
        assert "a number above 0" in inside.do("throttle", rows_per_s=wrong)
        assert inside.place == "run"
    assert "Limit: 12.5 rows a second" in inside.page()
    assert "The limit was removed." in inside.do("throttle", rows_per_s="")
    page = inside.do("pause")
    assert "paused</h1>" in page
    assert "/do/verify" not in page
    assert "catching up</h1>" in inside.do("resume")


def test_a_switch_that_is_postponed_has_no_form(ready: Console) -> None:
    page = ready.do("postpone")
    assert "/do/cutover" not in page
    assert "/do/cutover" in ready.do("postpone", undo="1")


def test_dead_letters_are_shown_with_their_reasons_and_encoded_again(
    inside: Console, collection: MirrorCollection
) -> None:
    collection.put(99, "POISON", old_vector("POISON"))
    inside.do("start")
    page = inside.wait_for("catching up</h1>")
    assert "it is poison" in page
    inside.operator.task.new.poison = ()  # type: ignore[attr-defined]
    inside.do("stop")
    inside.wait_for("it was asked to stop")
    inside.do("retry")
    inside.wait_for("0 rows are still without a vector.")


# --- the gate -------------------------------------------------------------------------------------


def test_an_override_needs_a_reason_and_is_shown_with_it(inside: Console) -> None:
    inside.do("start")
    inside.wait_for("catching up</h1>")
    inside.do("verify")
    page = inside.wait_for("verified</h1>")
    assert "Too few queries to tell." in page
    assert "some words that say why" in inside.do("override", reason="  ")
    inside.wait_for("verified</h1>")
    page = inside.do("override", reason="agreed with search quality")
    assert "ready</h1>" in page
    assert "Overridden. “agreed with search quality”" in page


def test_a_switch_without_the_gate_is_refused_in_words(inside: Console) -> None:
    inside.do("start")
    inside.wait_for("catching up</h1>")
    inside.do("verify")
    inside.wait_for("verified</h1>")
    inside.do("cutover", **confirmed(inside))
    inside.wait_for("Too few queries to tell.")
    assert "serving new</h1>" not in inside.page()


def test_a_switch_wants_name_and_key_typed(ready: Console) -> None:
    for wrong, message in (
        ({"name": "another"}, "the name that you typed is not"),
        ({"name": ""}, "the name that you typed is not"),
        ({"key": "another-key-of-16"}, "That is not a key of this console."),
        ({"key": ""}, "That is not a key of this console."),
    ):
        page = ready.do("cutover", **confirmed(ready) | wrong)
        assert message in page.partition('id="switch"')[2].partition("</section>")[0]
        assert ready.place == "switch"
        assert "ready</h1>" in page
        assert "epoch 1, generation 1" in page


# --- others ---------------------------------------------------------------------------------------


def test_a_run_of_another_process_is_recognised(collection: MirrorCollection, inside: Console, tmp_path: Path) -> None:
    with collection.another() as other:
        Migration(
            other, new=TruthEncoder("new", 16), old=TruthEncoder("old", OLD_DIMENSION), options=options(tmp_path)
        ).start()
        with other.runner(lease_s=5.0):
            inside.do("start")
            page = inside.wait_for("The migration runs in another process:")
    assert "pid " in page
    assert "catching up</h1>" in page


def test_only_one_verb_runs_by_hand_at_a_time(collection: MirrorCollection, tmp_path: Path) -> None:
    held = threading.Event()
    with console(task(collection.store, tmp_path, hold=lambda: held.wait(WAIT_S))) as opened:
        opened.log_in()
        opened.do("start")
        opened.wait_for("catching up</h1>")
        assert "verify</strong> is under way" in opened.do("verify")
        assert "is being worked on by this console (verify)" in opened.do("verify")
        held.set()
        opened.wait_for("ready</h1>")


# --- the search -----------------------------------------------------------------------------------


def test_both_sides_are_asked_and_what_moved_is_said(inside: Console) -> None:
    page = inside.page("/search?q=text+number+7")
    assert 'id="old-1"' in page
    assert 'id="new-1"' not in page
    assert "There are no new vectors before start." in page
    assert "gone" not in page
    inside.do("start")
    inside.wait_for("catching up</h1>")
    page = inside.page("/search?q=text+number+7")
    old, new = page.split('<ol class="side new"')
    assert "text number 7</p>" in old.split('id="old-2"')[0]
    assert "text number 7</p>" in new.split('id="new-2"')[0]
    assert new.count("<article") == 10
    assert "dense only" in page
    moved = new.count('class="moved new"')
    assert f"<strong>{10 - moved} of 10</strong>" in page
    assert page.count("<path") == 10 - moved


def test_a_query_that_cannot_be_encoded_is_said(inside: Console) -> None:
    assert "it is poison" in inside.page("/search?q=POISON")


# --- text is text ---------------------------------------------------------------------------------


def test_what_is_in_the_collection_is_never_markup(collection: MirrorCollection, tmp_path: Path) -> None:
    collection.put(40, f"BAD {XSS}", old_vector(XSS))
    collection.put(41, XSS, old_vector(XSS))
    work = task(collection.store, tmp_path, gates=(False,), message=XSS, new=TruthEncoder("new", 16, complain))
    with console(work) as opened:
        opened.log_in()
        opened.do("start")
        assert "it has &lt;script&gt;" in opened.wait_for("catching up</h1>")
        opened.do("verify")
        assert "&lt;script&gt;" in opened.wait_for("verified</h1>")
        search_page = opened.http.get("/search", params={"q": XSS}).text
        assert '<p class="text" dir="auto">&lt;script&gt;' in search_page
        for page in (search_page, opened.do("throttle", rows_per_s=XSS), opened.do("override", reason=XSS)):
            assert "&lt;script&gt;" in page
            assert XSS not in page


def complain(texts: Sequence[str]) -> None:
    for row, text in enumerate(texts):
        if text.startswith("BAD"):
            raise InvalidText(row, f"it has {XSS}")


# --- what has changed -----------------------------------------------------------------------------


def test_the_stream_has_all_parts_at_first_and_then_those_that_changed(inside: Console) -> None:
    with inside.http.stream("GET", "/events") as stream:
        messages = _messages(stream.iter_lines())
        first = next(messages)
        assert "not begun" in first["state"]
        assert len(first) == 17
        inside.do("start")
        later = next(messages)
        assert "not begun" not in later.get("state", "")
        assert "run" in later
        assert "override" not in later


def _messages(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_the_stream_of_nobody_says_that_it_is_over(opened: Console) -> None:
    answer = opened.http.get("/events")
    assert answer.status_code == 200
    assert "event: over" in answer.text
    assert "event: parts" not in answer.text
