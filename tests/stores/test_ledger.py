"""What every ledger promises, tested on each: the control database, and the tables beside those that are migrated."""

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vecferry.errors import LeaseLost, Locked, MigrationConflict, StoreFailed
from vecferry.stores.lease import process_mark
from vecferry.stores.ledger import Control, DeadLetter, MigrationRecord, MigrationSpec, Paused, Serving
from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.ledger import PgLedger
from vecferry.stores.sql_ledger import Ledger
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import EVERYTHING, KeyRange, Side

SPEC = MigrationSpec(
    "docs", "text", 4, "new", "old", old_not_null=False, generation=2, new_locator="docs_2", outputs=("dense", "sparse")
)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """Yield a ledger in which nothing was made yet."""
    made: Ledger
    if request.param == "sqlite":
        made = SqliteLedger.open(tmp_path / "control.db")
    else:
        made = PgLedger(Database(request.getfixturevalue("database_url")))
    yield made
    made.close()


@pytest.fixture
def record(ledger: Ledger) -> MigrationRecord:
    ledger.install()
    return ledger.create(SPEC, "planned")


def test_nothing_is_found_where_nothing_was_begun(ledger: Ledger) -> None:
    for _ in range(2):
        assert ledger.find("docs") is None
        assert ledger.last("docs") is None
        assert ledger.serving("docs") is None
        ledger.install()


def test_a_record_comes_back_as_it_was_given(ledger: Ledger, record: MigrationRecord) -> None:
    assert record.spec == SPEC
    assert ledger.find("docs") == record
    assert ledger.find("other docs") is None


def test_moves_are_compare_and_set(ledger: Ledger, record: MigrationRecord) -> None:
    moved = ledger.move(record, "prepared", {"why": "test"})
    assert (moved.state, moved.version) == ("prepared", record.version + 1)
    with pytest.raises(MigrationConflict, match="state=prepared, version 2, not planned, version 1"):
        ledger.move(record, "prepared", {})
    assert ledger.find("docs") == moved
    assert [event.what for event in ledger.events(record, 10)] == ["planned", "prepared"]
    assert ledger.events(record, 1)[0].detail == {"why": "test"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", ledger.events(record, 1)[0].at)


def test_a_record_that_was_moved_and_came_back_is_another(ledger: Ledger, record: MigrationRecord) -> None:
    ledger.move(ledger.move(record, "prepared", {}), "planned", {})
    with pytest.raises(MigrationConflict, match="planned, version 3"):
        ledger.move(record, "prepared", {})


@pytest.mark.parametrize("by_operator", [False, True])
def test_a_pause_is_kept_until_the_next_move(ledger: Ledger, record: MigrationRecord, *, by_operator: bool) -> None:
    reason = Paused("filling", "the disk is full", by_operator=by_operator)
    paused = ledger.move(record, "paused", {}, paused=reason)
    assert paused.paused == reason
    assert ledger.find("docs") == paused
    assert ledger.move(paused, "filling", {}).paused is None


def test_there_is_one_open_migration_of_a_collection(ledger: Ledger, record: MigrationRecord) -> None:
    with pytest.raises(StoreFailed, match=r"UNIQUE|unique"):
        ledger.create(SPEC, "planned")
    ledger.move(record, "finalized", {})
    later = ledger.create(SPEC, "planned")
    assert ledger.find("docs") == later


def test_an_aborted_migration_is_not_found(ledger: Ledger, record: MigrationRecord) -> None:
    ledger.move(record, "finalized", {})
    aborted = ledger.move(ledger.create(SPEC, "planned"), "aborted", {})
    current = ledger.find("docs")
    assert current is not None
    assert (current.id, current.state) == (record.id, "finalized")
    assert ledger.last("docs") == aborted
    with pytest.raises(MigrationConflict, match="state=finalized, version 2, not planned"):
        ledger.move(MigrationRecord(aborted.id, SPEC, "planned", 1), "prepared", {})


def test_ranges_are_open_until_they_are_closed_and_others_take_their_place(
    ledger: Ledger, record: MigrationRecord
) -> None:
    ledger.install()  # again, and nothing is lost
    ledger.add_ranges(record, [KeyRange(None, ("5",)), KeyRange(("5",), ("9", "é"))])
    ledger.close_range(record, 1)
    assert ledger.count_ranges(record) == (1, 2)
    assert [(r.number, r.keys) for r in ledger.open_ranges(record)] == [(2, KeyRange(("5",), ("9", "é")))]
    ledger.add_ranges(record, [EVERYTHING])
    assert ledger.count_ranges(record) == (0, 1)


def test_a_verification_is_kept_with_the_record(ledger: Ledger, record: MigrationRecord) -> None:
    assert record.verification is None
    ledger.keep_verification(record, {"passed": True})
    current = ledger.find("docs")
    assert current is not None
    assert current.verification == {"passed": True}


def test_the_last_wishes_are_kept(ledger: Ledger, record: MigrationRecord) -> None:
    assert ledger.control(record) == Control()
    for wishes in (Control(rows_per_s=2.5, postponed=True), Control(None, postponed=True), Control(2.5)):
        ledger.set_control(record, wishes)
        assert ledger.control(record) == wishes


def test_dead_letters_are_of_a_side_and_a_later_one_replaces_the_earlier(
    ledger: Ledger, record: MigrationRecord
) -> None:
    ledger.add_dead_letters(record, [DeadLetter(("1",), "first", b""), DeadLetter(("2", "é"), "other", b"\x01")])
    ledger.add_dead_letters(
        record, [DeadLetter(("1",), "second", b"\x02"), DeadLetter(("1",), "back", b"\x03", side="old")]
    )
    assert {letter.reason for letter in ledger.dead_letters(record, 10)} == {"second", "other", "back"}
    assert [letter.reason for letter in ledger.dead_letters(record, 10, Side.NEW)] == ["other", "second"]
    assert [letter.reason for letter in ledger.dead_letters(record, 1)] == ["other"]
    assert (ledger.count_dead_letters(record, Side.NEW), ledger.count_dead_letters(record, Side.OLD)) == (2, 1)
    ledger.remove_dead_letters(record, Side.NEW, [("2", "é"), ("77",)])
    assert ledger.dead_letters(record, 10, Side.NEW) == [DeadLetter(("1",), "second", b"\x02")]
    ledger.remove_dead_letters(record, Side.NEW, [("1",)])
    assert (ledger.count_dead_letters(record, Side.NEW), ledger.count_dead_letters(record, Side.OLD)) == (0, 1)
    assert ledger.dead_letters(record, 10) == [DeadLetter(("1",), "back", b"\x03", side="old")]
    assert ledger.dead_letters(record, 10, Side.OLD) == [DeadLetter(("1",), "back", b"\x03", side="old")]


def test_dead_letters_are_found_by_their_keys_on_one_side(ledger: Ledger, record: MigrationRecord) -> None:
    dead_letters = [DeadLetter(("1",), "why", b"\x02"), DeadLetter(("2",), "why", b"\x01")]
    ledger.add_dead_letters(record, [*dead_letters, DeadLetter(("1",), "back", b"\x03", side="old")])
    assert ledger.dead_letter_digests(record, Side.NEW, [("1",), ("77",)]) == {("1",): b"\x02"}


def test_dead_letters_are_found_for_any_number_of_keys(ledger: Ledger, record: MigrationRecord) -> None:
    ledger.add_dead_letters(record, [DeadLetter((str(i),), "why", b"\x01") for i in range(0, 50_000, 1000)])
    many = [(str(i),) for i in range(50_000)]
    assert len(ledger.dead_letter_digests(record, Side.NEW, many)) == 50
    ledger.remove_dead_letters(record, Side.NEW, many)
    assert ledger.count_dead_letters(record, Side.NEW) == 0


def test_who_serves_is_one_record(ledger: Ledger) -> None:
    ledger.install()
    ledger.serve("docs", Serving(1, 1, "docs", None))
    ledger.serve("docs", Serving(2, 2, "docs_2", "new"))
    assert ledger.serving("docs") == Serving(2, 2, "docs_2", "new")


def test_a_lease_excludes_others_until_it_is_released(ledger: Ledger) -> None:
    first = ledger.acquire("docs", "a", 60)
    with pytest.raises(Locked, match="docs is being worked on by a"):
        ledger.acquire("docs", "b", 60)
    assert ledger.acquire("other docs", "b", 60).token == 1
    ledger.release(first)
    with pytest.raises(LeaseLost):
        ledger.guard(first)
    assert ledger.acquire("docs", "b", 60).token == first.token + 1


def test_a_lease_whose_time_is_over_is_good_until_somebody_takes_it(ledger: Ledger) -> None:
    first = ledger.acquire("docs", "a", 0)
    ledger.guard(first)
    ledger.renew(first, 0)
    second = ledger.acquire("docs", "b", 60)
    assert second.token == first.token + 1
    with pytest.raises(LeaseLost):
        ledger.guard(first)
    with pytest.raises(LeaseLost):
        ledger.renew(first, 60)
    ledger.release(first)
    ledger.guard(second)


def test_a_renewed_lease_is_not_over(ledger: Ledger) -> None:
    lease = ledger.acquire("docs", "a", 0)
    ledger.renew(lease, 60)
    with pytest.raises(Locked):
        ledger.acquire("docs", "b", 60)


def test_who_has_the_lease_is_known_with_host_process_beginning_and_rate(ledger: Ledger) -> None:
    assert ledger.is_installed() or ledger.install() is None
    assert ledger.running("docs") is None
    lease = ledger.acquire("docs", process_mark(), 60)
    running = ledger.running("docs")
    assert running is not None
    assert (running.host, running.pid, running.rows_per_s) == (socket.gethostname(), os.getpid(), None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", running.since)
    ledger.note_rate("docs", 12.5)
    ledger.renew(lease, 60)
    assert ledger.running("docs") == replace(running, rows_per_s=12.5)
    ledger.release(lease)
    assert ledger.running("docs") is None
    ledger.acquire("docs", process_mark(), 60)
    again = ledger.running("docs")
    assert again is not None
    assert again.rows_per_s is None


def test_a_holder_that_is_no_process_of_ours_is_shown_as_it_calls_itself(ledger: Ledger) -> None:
    ledger.acquire("docs", "somebody", 60)
    running = ledger.running("docs")
    assert running is not None
    assert (running.host, running.pid) == ("somebody", 0)
