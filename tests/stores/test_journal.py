"""The journal in the control database: no write of an application is lost, in whatever order things happen."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stores.processes import Child
from vecferry.errors import Locked, SpaceMismatch
from vecferry.stores.ledger import Serving
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.sqlite.connection import SqliteDatabase
from vecferry.stores.values import Change, Key

KEYS = [("1",), ("2", "é")]

WRITE = """
import sys
from pathlib import Path
from vecferry.stores.sqlite import SqliteLedger
ledger = SqliteLedger.open(Path(sys.argv[1]))
print(ledger.begin("docs", [("7",)], None), flush=True)
input()
"""

HOLD = """
import sys
import time
from pathlib import Path
from vecferry.stores.sqlite import SqliteLedger
ledger, began = SqliteLedger.open(Path(sys.argv[1])), time.monotonic()
with ledger.writers_held("docs", float(sys.argv[2])):
    print(began, flush=True)
    input()
"""

WRITE_MANY = """
import sys
from pathlib import Path
from vecferry.stores.sqlite import SqliteLedger
ledger = SqliteLedger.open(Path(sys.argv[1]))
for first in (0, 25):
    print("ready", flush=True)
    input()
    for i in range(first, first + 25):
        ledger.finish("docs", ledger.begin("docs", [(sys.argv[2], str(i))], None))
ledger.close()
print("done", flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "control.sqlite"


@pytest.fixture(params=["file", "memory"])
def ledger(request: pytest.FixtureRequest, path: Path) -> Iterator[SqliteLedger]:
    made = SqliteLedger.open(path) if request.param == "file" else SqliteLedger.in_memory()
    yield made
    made.close()


@pytest.fixture
def hasty(path: Path) -> Iterator[SqliteLedger]:
    """Yield a ledger that takes every unfinished write for abandoned."""
    made = SqliteLedger.open(path, abandoned_after_s=0)
    yield made
    made.close()


def keys_of(changes: Sequence[Change]) -> list[Key]:
    return [change.key for change in changes]


# --- capture --------------------------------------------------------------------------------------


def test_a_finished_write_is_captured_until_it_is_acknowledged(ledger: SqliteLedger) -> None:
    ledger.start_journal("docs")
    number = ledger.begin("docs", KEYS, None)
    assert (ledger.journalled("docs", 10), ledger.journal_backlog("docs")) == ([], 2)
    ledger.finish("docs", number)
    ledger.finish("docs", number)
    ledger.start_journal("docs")
    changes = ledger.journalled("docs", 10)
    assert keys_of(changes) == KEYS
    assert keys_of(ledger.journalled("docs", 1)) == KEYS[:1]
    assert ledger.journalled("other docs", 10) == []
    ledger.acknowledge("other docs", changes)
    ledger.acknowledge("docs", changes[:1])
    assert (keys_of(ledger.journalled("docs", 10)), ledger.journal_backlog("docs")) == (KEYS[1:], 1)
    ledger.acknowledge("docs", changes)
    assert (ledger.journalled("docs", 10), ledger.journal_backlog("docs")) == ([], 0)


def test_captured_writes_come_in_the_order_in_which_they_ended(ledger: SqliteLedger) -> None:
    ledger.start_journal("docs")
    first, second = ledger.begin("docs", [("1",)], None), ledger.begin("docs", [("2",)], None)
    ledger.finish("docs", second)
    ledger.finish("docs", first)
    assert keys_of(ledger.journalled("docs", 10)) == [("2",), ("1",)]


def test_writes_of_nothing_and_of_one_key_twice_are_as_expected(ledger: SqliteLedger) -> None:
    ledger.start_journal("docs")
    nothing = ledger.begin("docs", [], None)
    twice = ledger.begin("docs", [("1",), ("1",)], None)
    ledger.finish("docs", nothing)
    assert ledger.journalled("docs", 10) == []
    ledger.finish("docs", twice)
    assert keys_of(ledger.journalled("docs", 10)) == [("1",)]


def test_without_a_capture_only_unfinished_writes_are_known(ledger: SqliteLedger) -> None:
    number = ledger.begin("docs", KEYS, None)
    assert (ledger.journalled("docs", 10), ledger.journal_backlog("docs")) == ([], 2)
    ledger.finish("docs", number)
    ledger.start_journal("docs")
    assert (ledger.journalled("docs", 10), ledger.journal_backlog("docs")) == ([], 0)


def test_a_write_begun_before_the_capture_is_captured_if_it_ends_after(ledger: SqliteLedger) -> None:
    number = ledger.begin("docs", KEYS, None)
    ledger.start_journal("docs")
    ledger.finish("docs", number)
    assert keys_of(ledger.journalled("docs", 10)) == KEYS


def test_the_end_of_a_capture_forgets_what_it_captured(ledger: SqliteLedger) -> None:
    ledger.start_journal("docs")
    ledger.finish("docs", ledger.begin("docs", KEYS, None))
    ledger.stop_journal("docs")
    ledger.stop_journal("docs")
    ledger.finish("docs", ledger.begin("docs", KEYS, None))
    assert (ledger.journalled("docs", 10), ledger.journal_backlog("docs")) == ([], 0)


def test_a_write_in_the_wrong_space_is_not_begun(ledger: SqliteLedger) -> None:
    assert ledger.begin("docs", KEYS, "whatever")
    ledger.serve("docs", Serving(1, 1, "docs", None))
    assert ledger.begin("docs", KEYS, "whatever")
    ledger.serve("docs", Serving(2, 2, "docs_2", "new"))
    assert ledger.begin("docs", KEYS, "new")
    assert ledger.begin("docs", KEYS, None)
    before = ledger.journal_backlog("docs")
    with pytest.raises(SpaceMismatch) as caught:
        ledger.begin("docs", KEYS, "old")
    assert (caught.value.expected, caught.value.found, caught.value.where) == ("new", "old", "a write to docs")
    assert ledger.journal_backlog("docs") == before == 8


def test_an_abandoned_write_is_captured_and_captured_again_if_it_ends_after_all(
    path: Path, hasty: SqliteLedger
) -> None:
    hasty.start_journal("docs")
    number = hasty.begin("docs", KEYS, None)
    abandoned = hasty.journalled("docs", 10)
    assert keys_of(abandoned) == KEYS
    hasty.acknowledge("docs", abandoned)
    assert (hasty.journalled("docs", 10), hasty.journal_backlog("docs")) == ([], 0)
    hasty.finish("docs", number)
    late = hasty.journalled("docs", 10)
    assert keys_of(late) == KEYS
    assert min(change.number for change in late) > max(change.number for change in abandoned)


def test_a_write_that_ends_between_look_and_acknowledgement_is_not_acknowledged(hasty: SqliteLedger) -> None:
    hasty.start_journal("docs")
    number = hasty.begin("docs", KEYS, None)
    abandoned = hasty.journalled("docs", 10)
    hasty.finish("docs", number)
    hasty.acknowledge("docs", abandoned)
    assert keys_of(hasty.journalled("docs", 10)) == KEYS


def test_a_write_that_is_still_under_way_after_a_capture_is_seen_by_the_next(hasty: SqliteLedger) -> None:
    hasty.start_journal("docs")
    number = hasty.begin("docs", KEYS, None)
    hasty.acknowledge("docs", hasty.journalled("docs", 10))
    hasty.stop_journal("docs")
    hasty.start_journal("docs")
    hasty.finish("docs", number)
    assert keys_of(hasty.journalled("docs", 10)) == KEYS


def test_abandoned_writes_are_captured_only_under_a_capture(hasty: SqliteLedger) -> None:
    hasty.begin("docs", KEYS, None)
    assert (hasty.journalled("docs", 10), hasty.journal_backlog("docs")) == ([], 2)
    hasty.start_journal("docs")
    assert keys_of(hasty.journalled("docs", 10)) == KEYS


def test_a_write_is_not_begun_inside_a_transaction_that_might_be_lost(ledger: SqliteLedger) -> None:
    with pytest.raises(AssertionError, match="for good"), ledger.transaction():
        ledger.begin("docs", KEYS, None)


def test_the_write_of_a_killed_process_is_captured(path: Path, hasty: SqliteLedger) -> None:
    patient = SqliteLedger.open(path, abandoned_after_s=600)
    patient.start_journal("docs")
    with Child(WRITE, path) as child:
        assert int(child.hear()) > 0
        child.kill()
    assert (patient.journalled("docs", 10), patient.journal_backlog("docs")) == ([], 1)
    assert keys_of(hasty.journalled("docs", 10)) == [("7",)]
    patient.close()


def test_processes_that_write_at_once_lose_nothing(path: Path) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(Child(WRITE_MANY, path, name)) for name in "abcd"]
        assert [child.hear() for child in children] == ["ready"] * 4
        for child in children:  # the file is not there yet: they make it at once
            child.tell()
        assert [child.hear() for child in children] == ["ready"] * 4
        ledger = stack.enter_context(closing(SqliteLedger.open(path)))
        ledger.start_journal("docs")
        for child in children:
            child.tell()
        assert [child.hear() for child in children] == ["done"] * 4
        assert sorted(keys_of(ledger.journalled("docs", 1000))) == sorted(
            (name, str(i)) for name in "abcd" for i in range(25, 50)
        )


# --- holding writers off --------------------------------------------------------------------------


def test_writers_wait_while_they_are_held_off(ledger: SqliteLedger) -> None:
    with ThreadPoolExecutor(1) as pool, closing(ledger.another()) as other:
        with ledger.writers_held("docs", 30):
            assert ledger.still_held("docs")
            assert not other.still_held("other docs")
            writing = pool.submit(other.begin, "docs", KEYS, "old")
            ledger.begin("other docs", KEYS, None)
            time.sleep(0.1)
            assert not writing.done()
            with ledger.transaction():
                assert ledger.still_held("docs")
                ledger.serve("docs", Serving(2, 2, "docs_2", "new"))
        with pytest.raises(SpaceMismatch):  # the switch came between
            writing.result()
    assert not ledger.still_held("docs")


def test_a_write_that_looked_before_the_hold_and_comes_after_it_waits(path: Path) -> None:
    database = SqliteDatabase(path)
    holder, writer = SqliteLedger(database), SqliteLedger.open(path)
    with ThreadPoolExecutor(1) as pool:
        with holder.transaction():
            writing = pool.submit(writer.begin, "docs", KEYS, None)
            time.sleep(0.1)  # it has seen no hold, and waits for this transaction
            database.execute("INSERT INTO holds VALUES ('docs', 'token', 'somebody', ?)", [time.time() + 0.5])
        time.sleep(0.2)
        assert (writing.done(), holder.journal_backlog("docs")) == (False, 0)
        assert writing.result() > 0
    holder.close()
    writer.close()


def test_a_hold_begins_when_all_writes_have_ended(ledger: SqliteLedger) -> None:
    number = ledger.begin("docs", KEYS, None)

    def finish_later() -> None:
        time.sleep(0.2)
        other.finish("docs", number)

    with closing(ledger.another()) as other, ThreadPoolExecutor(1) as pool:
        ending = pool.submit(finish_later)
        with ledger.writers_held("docs", 30):
            assert ledger.journal_backlog("docs") == 0
        ending.result()


def test_a_write_of_the_migration_passes_between_holds_and_is_never_captured(ledger: SqliteLedger) -> None:
    ledger.start_journal("docs")
    with closing(ledger.another()) as other, ledger.passing("docs"):
        with pytest.raises(Locked), other.writers_held("docs", 0.1):
            raise AssertionError("a write is under way")
        assert (ledger.journalled("docs", 10), ledger.journal_backlog("docs")) == ([], 0)
    with ledger.writers_held("docs", 30):
        assert ledger.journalled("docs", 10) == []


def test_a_write_of_the_migration_that_was_abandoned_is_not_captured(hasty: SqliteLedger) -> None:
    hasty.start_journal("docs")
    with hasty.passing("docs"):
        assert (hasty.journalled("docs", 10), hasty.journal_backlog("docs")) == ([], 0)


def test_a_hold_is_given_up_if_a_write_does_not_end(ledger: SqliteLedger) -> None:
    ledger.begin("docs", KEYS, None)
    with pytest.raises(Locked, match=r"writes have not ended \(1 so far\)"), ledger.writers_held("docs", 0.1):
        raise AssertionError("a write is under way")
    ledger.begin("docs", KEYS, None)


def test_a_hold_does_not_wait_for_abandoned_writes(hasty: SqliteLedger) -> None:
    hasty.begin("docs", KEYS, None)
    with hasty.writers_held("docs", 30):
        assert hasty.still_held("docs")


def test_a_hold_ends_by_itself(ledger: SqliteLedger) -> None:
    with ledger.writers_held("docs", 0.1):
        assert ledger.begin("docs", KEYS, None)
        assert not ledger.still_held("docs")


def test_a_hold_ends_with_a_failure_inside_it(ledger: SqliteLedger) -> None:
    with pytest.raises(ZeroDivisionError), ledger.writers_held("docs", 30):
        raise ZeroDivisionError
    assert ledger.begin("docs", KEYS, None)


def test_one_hold_waits_for_the_other(ledger: SqliteLedger) -> None:
    with closing(ledger.another()) as other:
        with ledger.writers_held("docs", 30):
            with pytest.raises(Locked, match="pid "), other.writers_held("docs", 0.1):
                raise AssertionError("both hold the writers off")
            assert ledger.still_held("docs")
            assert not other.still_held("docs")
        with other.writers_held("docs", 30):
            assert other.still_held("docs")
            assert not ledger.still_held("docs")


def test_a_killed_holder_keeps_writers_off_only_until_its_time_is_over(path: Path) -> None:
    ledger = SqliteLedger.open(path)
    ledger.install()
    with Child(HOLD, path, 1.0) as child:
        held_since = float(child.hear())  # or a little later
        child.kill()
        ledger.begin("docs", KEYS, None)
        assert time.monotonic() - held_since >= 1.0
    ledger.close()


# --- nothing is lost, in any order ----------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.lists(st.integers(0, 3), min_size=1, max_size=2)),
        st.tuples(st.just("finish"), st.integers(0, 5)),
        st.tuples(st.just("look"), st.none()),
        st.tuples(st.just("look_hastily"), st.none()),
        st.tuples(st.just("acknowledge"), st.integers(0, 5)),
        st.tuples(st.just("start"), st.none()),
        st.tuples(st.just("stop"), st.none()),
    ),
    max_size=25,
)


class Follower:
    """Bring each key that it sees up to date, acknowledge when it likes, and know what it must have seen.

    owed: keys of writes that ended under a capture, and were not seen since.
    """

    def __init__(self) -> None:
        database = SqliteDatabase(None)
        self.patient, self.hasty = SqliteLedger(database), SqliteLedger(database, abandoned_after_s=0)
        self.unended: list[tuple[int, list[Key]]] = []
        self.looks: list[list[Change]] = []
        self.owed: set[Key] = set()
        self.is_capturing = False

    def begin(self, ids: Sequence[int]) -> None:
        keys: list[Key] = [(str(i),) for i in ids]
        self.unended.append((self.patient.begin("docs", keys, None), keys))

    def finish(self, which: int) -> None:
        if self.unended:
            number, keys = self.unended.pop(which % len(self.unended))
            self.patient.finish("docs", number)
            self.owed |= set(keys) if self.is_capturing else set()

    def look(self, _: None) -> None:
        self._see(self.patient.journalled("docs", 3))

    def look_hastily(self, _: None) -> None:
        self._see(self.hasty.journalled("docs", 3))

    def _see(self, changes: list[Change]) -> None:
        self.looks.append(changes)
        self.owed -= set(keys_of(changes))

    def acknowledge(self, which: int) -> None:
        if self.looks:
            self.patient.acknowledge("docs", self.looks.pop(which % len(self.looks)))

    def start(self, _: None) -> None:
        self.patient.start_journal("docs")
        self.is_capturing = True

    def stop(self, _: None) -> None:
        self.patient.stop_journal("docs")
        self.is_capturing = False
        self.owed.clear()


@settings(max_examples=150)
@given(STEPS)
def test_no_order_of_steps_loses_a_write_that_ended_under_a_capture(steps: list[tuple[str, object]]) -> None:
    follower = Follower()
    for name, argument in steps:
        getattr(follower, name)(argument)
        waiting = set(keys_of(follower.patient.journalled("docs", 1000)))
        assert follower.owed <= waiting
        assert waiting == set() or follower.is_capturing
    follower.patient.close()
