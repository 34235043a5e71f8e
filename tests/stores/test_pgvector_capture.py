"""What a capture in PostgreSQL notes, whoever writes and however; and what it leaves behind."""

import datetime
import json
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from vecferry.errors import Locked
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.pgvector.capture import CaptureNames
from vecferry.stores.sql_ledger import key_text
from vecferry.stores.values import Key, Patience, Side

PATIENCE = Patience(0.2, 0.5)


@pytest.fixture
def store(connection: psycopg.Connection, database_url: str) -> Iterator[PgVectorStore]:
    """Yield a store over a captured table of three rows."""
    connection.execute("CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector(2), note text)")
    connection.execute("INSERT INTO docs SELECT i, 'text ' || i, '[1,0]', '' FROM generate_series(1, 3) i")
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as opened:
        opened.start_capture(PATIENCE)
        yield opened


def keys(store: PgVectorStore) -> list[Key]:
    return [change.key for change in store.captured(1000)]


def made(connection: psycopg.Connection) -> tuple[list[str], list[str]]:
    """Return the triggers on all tables, and the functions in our schema."""
    triggers = connection.execute("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1").fetchall()
    functions = connection.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace = to_regnamespace('vecferry') ORDER BY 1"
    ).fetchall()
    return [name for (name,) in triggers], [name for (name,) in functions]


# --- what is noted --------------------------------------------------------------------------------


def test_inserts_changed_texts_and_deletes_are_noted_in_their_order(
    store: PgVectorStore, connection: psycopg.Connection
) -> None:
    connection.execute("INSERT INTO docs VALUES (4, 'new', NULL)")
    connection.execute("UPDATE docs SET body = 'changed' WHERE id = 2")
    connection.execute("DELETE FROM docs WHERE id = 1")
    assert keys(store) == [("4",), ("2",), ("1",)]
    assert store.backlog() == 3


def test_a_write_that_leaves_text_and_key_as_they_were_is_not_noted(
    store: PgVectorStore, connection: psycopg.Connection
) -> None:
    connection.execute("UPDATE docs SET note = 'x', embedding = '[0,1]', body = body, id = id")
    assert store.backlog() == 0
    connection.execute("UPDATE docs SET body = NULL WHERE id = 1")
    connection.execute("UPDATE docs SET body = NULL WHERE id = 1")
    assert keys(store) == [("1",)]


def test_a_text_changed_by_another_trigger_is_noted(store: PgVectorStore, connection: psycopg.Connection) -> None:
    connection.execute(
        "CREATE FUNCTION compose() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.body := NEW.note || NEW.id; RETURN NEW; END'"
    )
    connection.execute("CREATE TRIGGER compose BEFORE UPDATE ON docs FOR EACH ROW EXECUTE FUNCTION compose()")
    connection.execute("UPDATE docs SET note = 'title' WHERE id = 3")
    assert keys(store) == [("3",)]


def test_a_changed_key_is_noted_with_the_former(store: PgVectorStore, connection: psycopg.Connection) -> None:
    connection.execute("UPDATE docs SET id = 30 WHERE id = 3")
    assert set(keys(store)) == {("3",), ("30",)}
    assert store.apply_deletes(keys(store)) == {("3",)}


def test_a_write_that_is_rolled_back_is_not_noted(store: PgVectorStore, connection: psycopg.Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("UPDATE docs SET body = 'changed'")
    assert store.captured(10) == []  # nor before its end
    connection.execute("ROLLBACK")
    assert store.backlog() == 0


def test_rows_in_bulk_are_noted(store: PgVectorStore, connection: psycopg.Connection) -> None:
    with connection.cursor().copy("COPY docs (id, body) FROM STDIN") as copy:
        for i in range(100, 400):
            copy.write_row([i, f"text {i}"])
    assert keys(store) == [(str(i),) for i in range(100, 400)]


def test_what_replication_writes_is_noted(store: PgVectorStore, connection: psycopg.Connection) -> None:
    connection.execute("SET session_replication_role = replica")
    connection.execute("UPDATE docs SET body = 'replicated' WHERE id = 1")
    assert keys(store) == [("1",)]


def test_a_role_without_rights_on_our_schema_may_write(store: PgVectorStore, connection: psycopg.Connection) -> None:
    connection.execute("DROP ROLE IF EXISTS application")
    connection.execute("CREATE ROLE application; GRANT SELECT, INSERT, UPDATE, DELETE ON docs TO application")
    try:
        connection.execute("SET ROLE application")
        connection.execute("INSERT INTO docs VALUES (4, 'new', NULL)")
        connection.execute("UPDATE docs SET body = 'changed' WHERE id = 2")
        connection.execute("DELETE FROM docs WHERE id = 1")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM vecferry.changes")
    finally:
        connection.execute("RESET ROLE; DROP OWNED BY application; DROP ROLE application")
    assert keys(store) == [("4",), ("2",), ("1",)]


def test_a_writer_cannot_put_its_own_objects_in_the_way_of_the_function(
    store: PgVectorStore, connection: psycopg.Connection
) -> None:
    connection.execute(
        "CREATE SCHEMA mine; CREATE FUNCTION mine.to_json(text) RETURNS json LANGUAGE sql AS $$ SELECT '\"x\"'::json $$"
    )
    connection.execute("SET search_path = mine, public, pg_catalog")
    connection.execute("UPDATE docs SET body = 'changed' WHERE id = 2")
    assert keys(store) == [("2",)]


def test_truncate_is_no_obstacle(store: PgVectorStore, connection: psycopg.Connection) -> None:
    connection.execute("UPDATE docs SET body = 'changed'")
    connection.execute("TRUNCATE docs")
    assert store.apply_deletes(keys(store)) == set(keys(store))
    assert store.outdated(Side.OLD, keys(store)) == []


# --- keys -----------------------------------------------------------------------------------------

KEYS: dict[str, tuple[str, str, list[object], Key]] = {
    "bigint": ("k bigint", "k", [-(2**62)], ("-4611686018427387904",)),
    "text": ("k text", "k", ['a "b" \\ é\t\n\x01\x7f 東'], ('a "b" \\ é\t\n\x01\x7f 東',)),
    "date": ("k date", "k", [datetime.date(2026, 2, 1)], ("2026-02-01",)),
    "timestamptz": (
        "k timestamptz",
        "k",
        [datetime.datetime(2026, 2, 1, 12, 30, tzinfo=datetime.UTC)],
        ("2026-02-01 12:30:00+00",),
    ),
    "interval": ("k interval", "k", [datetime.timedelta(days=1, seconds=1.5)], ("1 day 00:00:01.5",)),
    "bytea": ("k bytea", "k", [b"\x00\xff"], ("\\x00ff",)),
    "double": ("k double precision", "k", [0.1 + 0.2], ("0.30000000000000004",)),
    "composite": (
        'a text, "B" integer, c date',
        'c, a, "B"',
        ["eu", 7, datetime.date(2026, 2, 1)],
        ("2026-02-01", "eu", "7"),
    ),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_is_noted_as_the_store_writes_it_whatever_anybody_has_set(
    kind: str, connection: psycopg.Connection, database_url: str
) -> None:
    definition, key, values, expected = KEYS[kind]
    connection.execute(f"CREATE TABLE docs ({definition}, body text, embedding vector(2), PRIMARY KEY ({key}))")
    for setting in (
        "DateStyle = 'SQL, DMY'",
        "IntervalStyle = iso_8601",
        "TimeZone = 'Asia/Tokyo'",
        "bytea_output = escape",
        "extra_float_digits = -10",
    ):
        connection.execute(f"SET {setting}; ALTER DATABASE {connection.info.dbname} SET {setting}")
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        store.exclusively(lambda: store.prepare(2, "space-new"), PATIENCE)
        store.start_capture(PATIENCE)
        placeholders = ", ".join(["%s"] * len(values))
        connection.execute(f"INSERT INTO docs VALUES ({placeholders}, 'text', '[1,0]')", values)
        assert [row.key for row in store.sample(1)] == keys(store) == [expected]
        noted = connection.execute("SELECT key FROM vecferry.changes").fetchall()
        assert noted == [(key_text(expected),)] == [(json.dumps(list(expected), ensure_ascii=False),)]
        assert [row.key for row in store.outdated(Side.OLD, keys(store))] == [expected]
        assert store.apply_deletes(keys(store)) == set()


def test_texts_that_only_their_type_takes_for_equal_are_different(
    connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute(
        "CREATE EXTENSION citext; CREATE TABLE docs (id citext PRIMARY KEY, body citext, embedding vector(2));"
        " INSERT INTO docs VALUES ('a', 'text', NULL)"
    )
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        store.start_capture(PATIENCE)
        connection.execute("UPDATE docs SET body = 'TEXT'")
        assert keys(store) == [("a",)]


def test_a_generated_text_is_noted(connection: psycopg.Connection, database_url: str) -> None:
    connection.execute(
        "CREATE TABLE docs (id integer PRIMARY KEY, title text, embedding vector(2),"
        " body text GENERATED ALWAYS AS ('title: ' || title) STORED)"
    )
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        store.start_capture(PATIENCE)
        connection.execute("INSERT INTO docs VALUES (1, 'a')")
        connection.execute("UPDATE docs SET title = 'b'")
        assert keys(store) == [("1",), ("1",)]


# --- acknowledging --------------------------------------------------------------------------------


def test_what_is_acknowledged_does_not_come_back_and_the_rest_stays(
    store: PgVectorStore, connection: psycopg.Connection
) -> None:
    connection.execute("UPDATE docs SET body = 'changed'")
    first, _, last = store.captured(10)
    assert store.captured(1) == [first]
    store.acknowledge([first, last])
    store.acknowledge([first])
    assert keys(store) == [("2",)]
    assert store.backlog() == 1


def test_two_vector_columns_of_a_table_have_captures_of_their_own(
    store: PgVectorStore, connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute("ALTER TABLE docs ADD other vector(2)")
    with PgVectorStore.connect(database_url, "docs", "note", "other") as second:
        second.start_capture(PATIENCE)
        connection.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
        connection.execute("UPDATE docs SET note = 'changed' WHERE id = 2")
        assert (keys(store), keys(second)) == ([("1",)], [("2",)])
        second.acknowledge(store.captured(10))
        assert keys(store) == [("1",)]
        second.stop_capture()
        assert (keys(store), keys(second)) == ([("1",)], [])


# --- coming and going -----------------------------------------------------------------------------


def test_it_is_installed_once_and_removed_without_a_trace(store: PgVectorStore, connection: psycopg.Connection) -> None:
    names = CaptureNames.of(store.target)
    before = connection.execute("SELECT oid FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1").fetchall()
    store.start_capture(PATIENCE)
    assert connection.execute("SELECT oid FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1").fetchall() == before
    assert made(connection) == (sorted(names.triggers), [names.function])
    connection.execute("UPDATE docs SET body = 'changed'")
    for _ in range(2):
        store.stop_capture()
        assert made(connection) == ([], [])
        assert store.backlog() == 0
    connection.execute("UPDATE docs SET body = 'unseen'")
    assert store.backlog() == 0


def test_before_anything_is_installed_nothing_is_captured(connection: psycopg.Connection, database_url: str) -> None:
    connection.execute("CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector(2))")
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        store.stop_capture()
        assert (store.captured(10), store.backlog()) == ([], 0)
        creates = store.describe().creates
        assert "schema vecferry" in creates
        assert any(name.startswith("trigger vecferry_insert_") for name in creates)
        assert connection.execute("SELECT to_regnamespace('vecferry')").fetchone() == (None,)


@pytest.mark.parametrize("statement", ["ALTER TABLE docs DISABLE TRIGGER ALL", "DROP TRIGGER {} ON docs"])
def test_a_capture_that_somebody_broke_is_made_anew(
    statement: str, store: PgVectorStore, connection: psycopg.Connection
) -> None:
    connection.execute(statement.format(CaptureNames.of(store.target).triggers[1]))
    connection.execute("UPDATE docs SET body = 'unseen'")
    assert store.backlog() == 0
    store.start_capture(PATIENCE)
    connection.execute("UPDATE docs SET body = 'seen' WHERE id = 2")
    assert keys(store) == [("2",)]


def test_a_dropped_table_is_no_obstacle(store: PgVectorStore, connection: psycopg.Connection) -> None:
    connection.execute("UPDATE docs SET body = 'changed'")
    connection.execute("DROP TABLE docs")
    assert store.backlog() == 3
    store.stop_capture()
    assert made(connection) == ([], [])
    assert store.backlog() == 0


def test_a_write_in_flight_is_waited_for_so_that_none_falls_between(
    connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute("CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector(2))")
    installed = threading.Event()

    def install() -> None:
        with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
            store.start_capture(Patience(5.0, 20.0))
            installed.set()

    with connection.transaction():
        connection.execute("INSERT INTO docs VALUES (1, 'in flight')")
        installer = threading.Thread(target=install)
        installer.start()
        time.sleep(0.2)
        assert not installed.is_set()
    installer.join(10)
    assert installed.is_set()
    connection.execute("INSERT INTO docs VALUES (2, 'after')")
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        assert keys(store) == [("2",)]
    assert connection.execute("SELECT count(*) FROM docs").fetchone() == (2,)


@pytest.mark.parametrize("statement", ["SELECT FROM docs", "INSERT INTO docs VALUES (4, 'in flight')"])
def test_whoever_is_in_the_way_is_named_and_not_held_up(
    statement: str, store: PgVectorStore, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecferry.stores.pgvector.capture.Patience", lambda: PATIENCE)
    with connection.transaction():
        connection.execute(statement)
        with pytest.raises(Locked) as locked:
            store.stop_capture()
        assert f"pid {connection.info.backend_pid}" in locked.value.holder
        connection.execute("UPDATE docs SET body = 'captured' WHERE id = 3")
    assert keys(store)[-1] == ("3",)
    store.stop_capture()
    assert made(connection) == ([], [])


def test_readers_go_on_while_it_is_installed(connection: psycopg.Connection, database_url: str) -> None:
    connection.execute("CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector(2))")
    with connection.transaction(), PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        connection.execute("SELECT FROM docs")
        store.start_capture(PATIENCE)


def test_it_goes_away_with_the_transaction_that_it_is_part_of(
    store: PgVectorStore, connection: psycopg.Connection
) -> None:
    def stop_and_fail() -> None:
        store.stop_capture()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.exclusively(stop_and_fail, PATIENCE)
    connection.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
    assert keys(store) == [("1",)]
    store.exclusively(store.stop_capture, PATIENCE)
    assert made(connection) == ([], [])


def test_an_update_of_a_row_notes_no_vector_of_our_own(store: PgVectorStore) -> None:
    store.exclusively(lambda: store.prepare(2, "space-new"), PATIENCE)
    assert store.backlog() == 0
    assert store.describe().triggers == ()
