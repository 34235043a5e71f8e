"""A table that somebody changes while it is migrated: no write fails, and the next verb says what was changed."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from tests.migrate.test_pgvector import OPTIONS, make_docs, open_docs
from vecferry.errors import StoreError, StoreSchemaError
from vecferry.migrate import Migration, State
from vecferry.stores.pgvector.capture import CaptureNames
from vecferry.stores.values import Side

ENCODER = TruthEncoder()
CHANGED = {
    "text renamed": ("ALTER TABLE docs RENAME body TO content", "column body of public.docs is called content now"),
    "key renamed": ("ALTER TABLE docs RENAME id TO number", "column id of public.docs is called number now"),
    "text made anew": ("ALTER TABLE docs DROP body CASCADE, ADD body text", "column body of public.docs was dropped"),
    "key dropped": ("ALTER TABLE docs DROP id CASCADE, ADD id serial", "column id of public.docs was dropped"),
    "vectors renamed": ("ALTER TABLE docs RENAME embedding TO vectors", "no column embedding any more"),
    "table renamed": ("ALTER TABLE docs RENAME TO papers", "is called public.papers now"),
    "table moved": ("CREATE SCHEMA archive; ALTER TABLE docs SET SCHEMA archive", "is called archive.docs now"),
    "table dropped": ("DROP TABLE docs", "not there any more"),
}  # fmt: skip
UNNOTED = {
    "trigger dropped": "DROP TRIGGER {} ON docs",
    "trigger disabled": "ALTER TABLE docs DISABLE TRIGGER {}",
    "a load without triggers": "ALTER TABLE docs DISABLE TRIGGER USER; UPDATE docs SET body = 'loaded' WHERE id = 2;"
    " ALTER TABLE docs ENABLE TRIGGER USER",
    "function dropped": "DROP FUNCTION vecferry.{} CASCADE",
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def migration(connection: psycopg.Connection, database_url: str) -> Iterator[Migration]:
    """Yield one that has passed its gate, on a connection that was opened before what follows."""
    make_docs(connection, [f"text {number}" for number in range(12)])
    with open_docs(database_url) as store:
        migration = Migration(store, new=ENCODER, options=OPTIONS)
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        yield migration
    connection.execute("DROP SCHEMA IF EXISTS archive CASCADE")


@pytest.mark.parametrize("case", CHANGED)
def test_a_change_of_the_table_is_named_by_the_switch(
    case: str, migration: Migration, connection: psycopg.Connection
) -> None:
    statement, named = CHANGED[case]
    connection.execute(statement)
    with pytest.raises(StoreSchemaError, match=named) as raised:
        migration.cutover()
    assert "public.docs" in str(raised.value)
    assert migration.store.ledger.find(migration.store.target).state == State.READY  # type: ignore[union-attr]


@pytest.mark.parametrize("case", UNNOTED)
def test_a_capture_that_was_taken_away_is_named_and_the_next_start_compares_all_rows(
    case: str, migration: Migration, connection: psycopg.Connection
) -> None:
    names = CaptureNames.of(migration.store.target)
    connection.execute(UNNOTED[case].format(names.function if "FUNCTION" in UNNOTED[case] else names.triggers[1]))
    connection.execute("UPDATE docs SET body = 'changed' WHERE id = 3")
    with pytest.raises(StoreError, match="not noted any more"):
        migration.cutover()
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    rows = connection.execute("SELECT body FROM docs WHERE embedding IS NULL OR body IN ('changed', 'loaded')")
    assert "changed" in {text for (text,) in rows}


def test_a_run_that_follows_finds_what_was_loaded_without_triggers(
    migration: Migration, connection: psycopg.Connection
) -> None:
    store, loads = migration.store, [UNNOTED["a load without triggers"]]

    def load_then_wait() -> bool:
        while loads:
            connection.execute(loads.pop())
        return not store.outdated(Side.NEW) and store.backlog() == 0

    assert migration.start(follow=load_then_wait).state == State.READY
    record = store.ledger.find(store.target)
    assert record is not None
    assert [event.what for event in store.ledger.events(record, 20)].count("capture lost") == 1


@pytest.mark.parametrize("statement", ["ALTER TABLE docs DROP body", "ALTER TABLE docs ALTER body TYPE varchar(99)"])
def test_what_would_break_the_capture_is_refused_by_the_server_which_names_it(
    statement: str, migration: Migration, connection: psycopg.Connection
) -> None:
    with pytest.raises(psycopg.Error) as raised:
        connection.execute(statement)
    assert "vecferry_update" in f"{raised.value.diag.message_primary} {raised.value.diag.message_detail}"
    migration.cutover()
