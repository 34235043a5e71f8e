"""The control database: its transactions, and what its errors say; what it keeps is in test_ledger.py."""

import random
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from vecferry.errors import (
    StoreError,
    StoreFailed,
    StoreSchemaError,
    StoreUnreachable,
)
from vecferry.stores.ledger import MigrationRecord, MigrationSpec, Serving
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.sqlite.connection import SqliteDatabase
from vecferry.stores.values import KeyRange

SPEC = MigrationSpec(
    "docs", "text", 4, "new", "old", old_not_null=False, generation=2, new_locator="docs_2", outputs=("dense", "sparse")
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "control.sqlite"


@pytest.fixture(params=["file", "memory"])
def ledger(request: pytest.FixtureRequest, path: Path) -> Iterator[SqliteLedger]:
    made = SqliteLedger.open(path) if request.param == "file" else SqliteLedger.in_memory()
    yield made
    made.close()


@pytest.fixture
def record(ledger: SqliteLedger) -> MigrationRecord:
    ledger.install()
    return ledger.create(SPEC, "planned")


# --- what this ledger alone has -------------------------------------------------------------------


def test_keys_are_kept_that_are_no_text_of_unicode(ledger: SqliteLedger, record: MigrationRecord) -> None:
    within = KeyRange(("5",), ("9", "\ud800"))
    ledger.add_ranges(record, [within])
    assert [part.keys for part in ledger.open_ranges(record)] == [within]


# --- transactions ---------------------------------------------------------------------------------


def test_a_failed_transaction_leaves_nothing(ledger: SqliteLedger, record: MigrationRecord) -> None:
    def fail_at_the_end() -> None:
        with ledger.transaction():
            ledger.add_event(record, "outer", {})
            with ledger.transaction():
                ledger.move(record, "prepared", {})
            ledger.serve("docs", Serving(1, 1, "docs", None))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_the_end()
    assert ledger.find("docs") == record
    assert ledger.serving("docs") is None
    assert [event.what for event in ledger.events(record, 10)] == ["planned"]
    with ledger.transaction():
        ledger.move(record, "prepared", {})
    assert [event.what for event in ledger.events(record, 10)] == ["planned", "prepared"]


def test_others_see_what_is_written_after_the_transaction_alone(ledger: SqliteLedger) -> None:
    ledger.serve("docs", Serving(1, 1, "docs", None))
    servings = []

    def look() -> None:
        with closing(ledger.another()) as other:
            servings.append(other.serving("docs"))

    looker = threading.Thread(target=look)
    with ledger.transaction():
        ledger.serve("docs", Serving(2, 1, "docs", None))
        looker.start()
        time.sleep(0.1)
        ledger.serve("docs", Serving(3, 1, "docs", None))
    looker.join()
    assert [serving.epoch for serving in servings if serving] in ([1], [3])


def test_a_guard_holds_to_the_end_of_its_transaction(path: Path) -> None:
    ledger, other = SqliteLedger.open(path), SqliteLedger.open(path)
    lease = ledger.acquire("docs", "a", 0)
    with ThreadPoolExecutor(1) as pool:
        with ledger.transaction():
            ledger.guard(lease)
            taking = pool.submit(other.acquire, "docs", "b", 60)
            time.sleep(0.1)
            assert not taking.done()
            ledger.guard(lease)
        assert taking.result().token == 2
    other.close()
    ledger.close()


def test_nothing_is_written_alone_after_the_database_gave_up_a_transaction(path: Path) -> None:
    database = SqliteDatabase(path)
    ledger = SqliteLedger(database)
    ledger.serve("docs", Serving(1, 1, "docs", None))

    def go_on_after_a_failure() -> None:
        with ledger.transaction():
            ledger.serve("other", Serving(1, 1, "docs", None))
            with pytest.raises(StoreFailed, match="UNIQUE"):
                database.execute("INSERT OR ROLLBACK INTO serving SELECT * FROM serving")
            ledger.serve("third", Serving(1, 1, "docs", None))

    with pytest.raises(StoreFailed, match="rolled back"):
        go_on_after_a_failure()
    assert (ledger.serving("other"), ledger.serving("third")) == (None, None)
    ledger.close()


# --- the file -------------------------------------------------------------------------------------


def test_reading_makes_no_file(path: Path) -> None:
    ledger = SqliteLedger.open(path)
    assert (ledger.location, SqliteLedger.in_memory().location) == (str(path), "in memory")
    assert ledger.find("docs") is None
    assert ledger.serving("docs") is None
    assert (ledger.journalled("docs", 10), ledger.journal_backlog("docs")) == ([], 0)
    assert not path.parent.exists()
    ledger.install()
    ledger.install()
    assert path.exists()
    ledger.close()


def test_a_reader_that_came_first_sees_what_others_make(path: Path) -> None:
    reader, writer = SqliteLedger.open(path), SqliteLedger.open(path)
    assert reader.serving("docs") is None
    path.parent.mkdir()
    path.touch()
    assert reader.serving("docs") is None
    writer.serve("docs", Serving(1, 1, "docs", None))
    assert reader.serving("docs") == Serving(1, 1, "docs", None)
    reader.close()
    writer.close()


def test_what_is_in_memory_is_shared_until_the_last_is_closed() -> None:
    first = SqliteLedger.in_memory()
    second = first.another()
    first.serve("docs", Serving(1, 1, "docs", None))
    first.close()
    first.close()
    assert second.serving("docs") == Serving(1, 1, "docs", None)
    second.close()
    with pytest.raises(StoreError):
        second.serving("docs")


def test_a_file_of_something_else_is_named(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("no database, " * 100)
    ledger = SqliteLedger.open(path)
    with pytest.raises(StoreSchemaError, match=r"control\.sqlite is damaged or no SQLite database"):
        ledger.find("docs")
    with pytest.raises(StoreSchemaError):
        ledger.install()
    ledger.close()


def test_the_database_of_another_program_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE serving (something TEXT)")
    ledger = SqliteLedger.open(path)
    with pytest.raises(StoreSchemaError, match="not a control database"):
        ledger.install()
    ledger.close()


def test_a_control_database_of_another_version_is_refused(path: Path) -> None:
    ledger = SqliteLedger.open(path)
    ledger.install()
    ledger.close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")
    later = SqliteLedger.open(path)
    with pytest.raises(StoreSchemaError, match="version 99"):
        later.find("docs")
    later.close()


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_half_written_file_is_damaged_and_not_empty(path: Path, kept: float) -> None:
    ledger = SqliteLedger.open(path)
    ledger.add_ranges(ledger.create(SPEC, "planned"), [KeyRange(None, (str(i),)) for i in range(2000)])
    ledger.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    ledger = SqliteLedger.open(path)
    with pytest.raises(StoreSchemaError, match="damaged"):
        ledger.find("docs")
    ledger.close()


def test_garbled_pages_are_said_to_be_damage(path: Path) -> None:
    ledger = SqliteLedger.open(path)
    record = ledger.create(SPEC, "planned")
    ledger.add_ranges(record, [KeyRange(None, (str(i),)) for i in range(2000)])
    ledger.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + random.Random(0).randbytes(len(whole) - 4096))
    ledger = SqliteLedger.open(path)
    with pytest.raises(StoreSchemaError, match="damaged"):
        ledger.open_ranges(record)
    ledger.close()


def test_a_path_that_cannot_be_opened_is_unreachable(path: Path) -> None:
    path.mkdir(parents=True)
    ledger = SqliteLedger.open(path)
    with pytest.raises(StoreUnreachable, match=r"control\.sqlite"):
        ledger.find("docs")
    ledger.close()
    path.rmdir()
    path.touch()
    below = SqliteLedger.open(path / "file")
    with pytest.raises(StoreUnreachable, match=r"control\.sqlite/file: File exists"):
        below.install()
    below.close()


@pytest.mark.parametrize(
    ("condition", "reason"),
    [("PRAGMA max_page_count = 1", "the disk is full"), ("PRAGMA query_only = 1", "is read-only")],
)
def test_a_refused_write_says_why_and_leaves_nothing(path: Path, condition: str, reason: str) -> None:
    database = SqliteDatabase(path)
    ledger = SqliteLedger(database)
    record = ledger.create(SPEC, "planned")
    database.rows(condition)
    with pytest.raises(StoreFailed, match=f"the control database store refused: .*{reason}"):
        ledger.add_ranges(record, [KeyRange(None, (str(i),)) for i in range(5000)])
    assert ledger.count_ranges(record) == (0, 0)
    ledger.close()


def test_a_lock_held_for_too_long_is_said(path: Path) -> None:
    ledger, other = SqliteLedger.open(path), SqliteLedger.open(path, busy_timeout_s=0.05)
    ledger.install()
    with ledger.transaction(), pytest.raises(StoreFailed, match=r"locked by another process for 0\.05 s"):
        other.serve("docs", Serving(1, 1, "docs", None))
    ledger.close()
    other.close()


def test_nobody_else_may_read_a_control_database(tmp_path: Path) -> None:
    folder = tmp_path / "control"
    with closing(SqliteLedger.open(folder / "control.db")) as ledger:
        ledger.install()
        files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert files == {"control.db": 0o600, "control.db-wal": 0o600, "control.db-shm": 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
