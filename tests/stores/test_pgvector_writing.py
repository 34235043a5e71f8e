"""What is written to a table of PostgreSQL: guarded, fenced, on both sides, in all types; and what is found there."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import psycopg
import pytest

from tests.migrate.doubles import truth
from vecferry.embeddings import DENSE, Float32, Outputs, SparseVector, TextVectors
from vecferry.errors import LeaseLost, Locked, SpaceMismatch, StoreSchemaError, StoreUnreachable
from vecferry.stores.lease import is_gone, process_mark
from vecferry.stores.ledger import DeadLetter, MigrationSpec, Serving
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.protocol import Store
from vecferry.stores.values import (
    EVERYTHING,
    Examination,
    Finding,
    Key,
    KeyRange,
    NewVector,
    Patience,
    Record,
    Row,
    Side,
    text_digest,
)

PATIENCE = Patience(0.3, 0.5)
D_OLD, D_NEW = 8, 16
OLD_SPACE, NEW_SPACE = "space-old", "space-new"


def open_docs(database_url: str) -> PgVectorStore:
    return PgVectorStore.connect(database_url, "docs", "body", "embedding", embed_missing=True)


def make_docs(connection: psycopg.Connection, *texts: str | None, kind: str = "vector") -> None:
    connection.execute(
        f"CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding {kind}({D_OLD}), note text, extra jsonb)"
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO docs VALUES (%s, %s, %s::real[]::{kind}, 'kept')",
            [(i, text, truth("old", text or "", D_OLD).tolist()) for i, text in enumerate(texts, start=1)],
        )


@pytest.fixture
def store(connection: psycopg.Connection, database_url: str) -> Iterator[PgVectorStore]:
    """Yield a store of three rows with texts a, b and c, in a space that the ledger knows."""
    make_docs(connection, "a", "b", "c")
    with open_docs(database_url) as opened:
        yield begun(opened)


def begun(store: PgVectorStore, outputs: Outputs = DENSE, old_fingerprint: str | None = OLD_SPACE) -> PgVectorStore:
    store.ledger.install()
    store.exclusively(lambda: store.prepare(D_NEW, NEW_SPACE, outputs), PATIENCE)
    store.ledger.create(
        MigrationSpec(store.target, "body", D_NEW, NEW_SPACE, old_fingerprint, old_not_null=False, generation=2),
        "backfilling",
    )
    store.ledger.serve(store.target, Serving(1, 1, "embedding", old_fingerprint))
    return store


def switch(store: PgVectorStore, epoch: int = 2) -> None:
    def change_places() -> None:
        store.switch(Side.NEW)
        store.ledger.serve(store.target, Serving(epoch, 2, "embedding", NEW_SPACE))

    store.exclusively(change_places, PATIENCE)


def new(*rows: Row) -> list[NewVector]:
    return [NewVector(row.key, row.digest, TextVectors(truth("new", row.text or "", D_NEW))) for row in rows]


def fill(store: PgVectorStore) -> set[Key]:
    return store.write(Side.NEW, new(*store.outdated(Side.NEW, limit=1000)))


def stored(connection: psycopg.Connection, column: str, table: str = "docs") -> dict[int, Float32 | None]:
    rows = connection.execute(f"SELECT id, {column}::real[] FROM {table} ORDER BY id").fetchall()
    return {key: None if vector is None else np.asarray(vector, np.float32) for key, vector in rows}


def columns_of(connection: psycopg.Connection) -> dict[str, str]:
    rows = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = 'docs'::regclass AND attnum > 0 AND NOT attisdropped"
    ).fetchall()
    return dict(rows)


def test_it_is_a_store(store: PgVectorStore) -> None:
    as_store: Store = store
    with as_store.another() as other:  # type: ignore[attr-defined]
        assert other.target == store.target
    assert store.traits.outputs is Outputs.ALL
    assert store.serving_locator(Side.OLD) == store.serving_locator(Side.NEW) == "public.docs.embedding"


# --- guarded writes -------------------------------------------------------------------------------


def test_the_new_side_gets_vectors_and_the_checksums_of_texts_and_vectors(
    store: PgVectorStore, connection: psycopg.Connection
) -> None:
    assert fill(store) == {("1",), ("2",), ("3",)}
    for key, text in ((1, "a"), (2, "b"), (3, "c")):
        np.testing.assert_array_equal(
            stored(connection, "embedding_vecferry_new")[key], truth("new", text, D_NEW), strict=True
        )
    assert store.outdated(Side.NEW, limit=10) == store.outdated(Side.NEW, [("1",), ("2",)]) == []


def test_the_old_side_gets_vectors_and_their_checksums_from_the_first_switch_on(
    store: PgVectorStore, connection: psycopg.Connection
) -> None:
    fill(store)
    switch(store)
    connection.execute("UPDATE docs SET body = 'changed' WHERE id = 2")
    rows = store.outdated(Side.OLD, [("2",), ("3",), ("9",)])
    assert rows == store.outdated(Side.OLD, limit=10) == [Row(("2",), "changed")]
    assert store.count_outdated(Side.OLD) == Finding(1, (("2",),))
    vectors = [NewVector(row.key, row.digest, TextVectors(truth("old", row.text or "", D_OLD))) for row in rows]
    assert store.write(Side.OLD, vectors) == {("2",)}
    np.testing.assert_array_equal(stored(connection, "embedding_vecferry_old")[2], truth("old", "changed", D_OLD))
    assert store.outdated(Side.OLD, limit=10) == store.outdated(Side.OLD, [("2",)]) == []
    assert store.outdated(Side.NEW, limit=10) == rows  # nothing was said of the new side


@pytest.mark.parametrize("side", Side)
def test_a_vector_of_a_former_text_and_one_of_a_deleted_row_are_not_written(
    side: Side, store: PgVectorStore, connection: psycopg.Connection
) -> None:
    dimension, column = (D_NEW, "embedding_vecferry_new") if side is Side.NEW else (D_OLD, "embedding_vecferry_old")
    if side is Side.OLD:
        switch(store)
    late = [
        NewVector((str(i),), text_digest(text), TextVectors(truth("late", text, dimension)))
        for i, text in enumerate("abc", 1)
    ]
    before = stored(connection, column)
    connection.execute("UPDATE docs SET body = 'changed' WHERE id = 1")
    connection.execute("DELETE FROM docs WHERE id = 2")
    assert store.write(side, late) == {("3",)}
    after = stored(connection, column)
    np.testing.assert_array_equal(after.pop(3), truth("late", "c", dimension))
    assert list(after) == [1]
    then, now = before[1], after[1]
    assert (now is None) == (then is None)
    assert then is None or now is None or np.array_equal(now, then)


def test_a_row_that_somebody_is_writing_is_left_out_and_nobody_waits(
    store: PgVectorStore, connection: psycopg.Connection
) -> None:
    store._session.db.execute("SET lock_timeout = '2s'")  # a store that waits is to fail, not to hang
    with connection.transaction():
        connection.execute("UPDATE docs SET note = 'mine' WHERE id = 2")
        assert fill(store) == {("1",), ("3",)}
    assert fill(store) == {("2",)}


ORDERS = {
    "numbers": ("k integer", "k", "(i - 20) * (i - 20) * sign(i - 20)::integer"),
    "letters of either case": ("k citext", "k", "(ARRAY['a', 'B', 'ä', 'Z', 'é', '_', '-'])[i % 7 + 1] || i"),
    "decimals": ("k numeric", "k", "(i - 20) / 8.0"),
    "several": ("a integer, b text", "a, b", "i % 3 * 9, 'x' || i"),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_pages_go_on_in_the_order_of_the_key_and_not_of_its_text(
    kind: str, connection: psycopg.Connection, database_url: str
) -> None:
    definition, key, values = ORDERS[kind]
    connection.execute("CREATE EXTENSION citext")
    connection.execute(f"CREATE TABLE docs ({definition}, body text, embedding vector(8), PRIMARY KEY ({key}))")
    connection.execute(f"INSERT INTO docs SELECT {values}, 'text ' || i FROM generate_series(1, 40) i")
    expected = [row[0] for row in connection.execute(f"SELECT body FROM docs ORDER BY {key}").fetchall()]
    with open_docs(database_url) as store:
        begun(store)
        paged: list[str | None] = []
        within = EVERYTHING
        while rows := store.outdated(Side.NEW, within, 7):
            paged += [row.text for row in rows]
            within = KeyRange(rows[-1].key, None)
        assert paged == expected
        assert [row.text for part in store.key_ranges(7) for row in store.outdated(Side.NEW, part, 100)] == expected
        first = store.rows(store.check_integrity(D_NEW, max_keys=3).outdated.keys)
        assert [row.text for row in first] == expected[:3]


def test_many_rows_are_written_in_parts_and_their_keys_come_back(
    store: PgVectorStore, connection: psycopg.Connection
) -> None:
    connection.execute("INSERT INTO docs SELECT i, 'text ' || i FROM generate_series(10, 400) i")
    assert fill(store) == {(str(i),) for i in (1, 2, 3, *range(10, 401))}
    np.testing.assert_array_equal(stored(connection, "embedding_vecferry_new")[317], truth("new", "text 317", D_NEW))


def test_a_dead_letter_has_a_checksum_and_no_vector(store: PgVectorStore) -> None:
    store.start_capture(PATIENCE)
    fill(store)
    letter = DeadLetter(("2",), "reason", text_digest("b"))
    record = store.ledger.find(store.target)
    assert record is not None
    tried = [NewVector(letter.key, letter.digest, None)]
    assert store.write(Side.NEW, tried, lambda _: store.ledger.add_dead_letters(record, [letter])) == {("2",)}
    assert store.outdated(Side.NEW, limit=10) == []
    assert store.check_integrity(D_NEW).without_vector.keys == (("2",),)
    assert store.captured(10) == []
    store.ledger.remove_dead_letters(record, Side.NEW, [letter.key])
    assert store.outdated(Side.NEW, [("2",)]) == [Row(("2",), "b")]


def test_a_dead_letter_whose_row_has_changed_its_key_its_text_or_got_a_vector_is_forgotten(
    store: PgVectorStore, connection: psycopg.Connection
) -> None:
    record = store.ledger.find(store.target)
    assert record is not None
    dead_letters = [DeadLetter((str(i),), "reason", text_digest(text)) for i, text in enumerate("abc", 1)]
    tried = [NewVector(letter.key, letter.digest, None) for letter in dead_letters]
    store.write(Side.NEW, tried, lambda _: store.ledger.add_dead_letters(record, dead_letters))
    keys = [letter.key for letter in dead_letters]
    assert store.apply_deletes(keys) == set()
    assert store.ledger.count_dead_letters(record, Side.NEW) == 3
    connection.execute("UPDATE docs SET id = -1 WHERE id = 1; UPDATE docs SET id = 1 WHERE id = 2")
    assert store.apply_deletes([*keys, ("-1",)]) == {("2",)}
    assert [letter.key for letter in store.ledger.dead_letters(record, 10)] == [("3",)]
    assert store.outdated(Side.NEW, [*keys, ("-1",)]) == [Row(("-1",), "a"), Row(("1",), "b")]
    assert store.write(Side.NEW, new(Row(("3",), "c"))) == {("3",)}
    store.apply_deletes(keys)
    assert store.ledger.count_dead_letters(record, Side.NEW) == 0


def test_what_then_does_is_kept_or_lost_with_the_vectors(store: PgVectorStore) -> None:
    record = store.ledger.find(store.target)
    assert record is not None
    calls: list[set[Key]] = []

    def fail(written: set[Key]) -> None:
        calls.append(written)
        store.ledger.add_dead_letters(record, [DeadLetter(("1",), "reason", b"")])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.write(Side.NEW, new(Row(("1",), "a")), fail)
    with pytest.raises(ZeroDivisionError):
        store.write(Side.NEW, [], fail)
    assert calls == [{("1",)}, set()]
    assert len(store.outdated(Side.NEW, limit=10)) == 3
    assert store.ledger.count_dead_letters(record, Side.NEW) == 0


def test_an_examination_counts_each_defect_and_names_some(store: PgVectorStore, connection: psycopg.Connection) -> None:
    connection.execute("INSERT INTO docs SELECT i, 'text ' || i FROM generate_series(4, 9) i")
    fill(store)
    made = {4: np.zeros(16, np.float32), 5: np.zeros(16, np.float32), 6: np.ones(16, np.float32)}
    store.write(
        Side.NEW,
        [NewVector((str(i),), text_digest(f"text {i}"), TextVectors(vector)) for i, vector in made.items()]
        + [NewVector(("7",), text_digest("text 7"), None)],
    )
    connection.execute("UPDATE docs SET body = 'changed' WHERE id IN (1, 3)")
    connection.execute("UPDATE docs SET embedding_vecferry_new = NULL WHERE id = 2")
    record = store.ledger.find(store.target)
    assert record is not None
    store.ledger.add_dead_letters(record, [DeadLetter(("7",), "reason", text_digest("text 7"))])
    examination = store.check_integrity(D_NEW, max_keys=2)
    assert examination.rows == 9
    assert (examination.outdated.count, examination.outdated.keys) == (3, (("1",), ("2",)))
    assert (examination.zero.count, examination.zero.keys) == (2, (("4",), ("5",)))
    assert examination.off_norm.count == 3
    assert examination.without_vector.keys == (("7",),)
    assert not examination.wrong_dimension
    assert not examination.not_finite
    assert store.check_integrity(D_NEW + 1).wrong_dimension.count == 7
    assert store.orphans(10) == []


# --- the fence ------------------------------------------------------------------------------------


def test_after_a_takeover_nothing_more_is_written(
    store: PgVectorStore, connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute("UPDATE docs SET body = 'captured' WHERE id = 3")
    store.start_capture(PATIENCE)
    connection.execute("UPDATE docs SET body = 'again' WHERE id = 3")
    rows, captured = store.outdated(Side.NEW, limit=10), store.captured(10)
    with open_docs(database_url) as second, store.runner(lease_s=60):
        connection.execute("UPDATE vecferry.leases SET expires_at = '-infinity'")  # stopped for too long
        with second.runner(lease_s=60):
            for refused in (
                lambda: store.write(Side.NEW, new(*rows)),
                lambda: store.acknowledge(captured),
                lambda: store.exclusively(lambda: store.switch(Side.NEW), PATIENCE),
                lambda: store.exclusively(lambda: store.drop(Side.NEW), PATIENCE),
                lambda: store.exclusively(lambda: store.drop(Side.OLD), PATIENCE),
                lambda: store.exclusively(lambda: store.prepare(D_NEW, NEW_SPACE), PATIENCE),
                lambda: store.capture_again([("1",)], Side.NEW),
                store.stop_capture,
                lambda: store.transaction().__enter__(),
            ):
                with pytest.raises(LeaseLost):
                    refused()
            assert store.outdated(Side.NEW, limit=10) == rows
            assert store.captured(10) == captured
            assert second.write(Side.NEW, new(*rows)) == {("1",), ("2",), ("3",)}
    assert set(columns_of(connection)) >= {"embedding", "embedding_vecferry_new"}


def test_an_index_is_not_built_after_a_takeover(
    store: PgVectorStore, connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute("CREATE INDEX by_cosine ON docs USING hnsw (embedding vector_cosine_ops)")
    with open_docs(database_url) as second, store.runner(lease_s=60):
        connection.execute("UPDATE vecferry.leases SET expires_at = '-infinity'")
        with second.runner(lease_s=60), pytest.raises(LeaseLost):
            store.build_indexes()
    assert store.check_integrity(D_NEW).missing_indexes == ("by_cosine_vecferry_new",)


def test_nobody_takes_over_in_the_middle_of_a_transaction(
    store: PgVectorStore, connection: psycopg.Connection, database_url: str
) -> None:
    order: list[str] = []

    def take_over() -> None:
        with open_docs(database_url) as second, second.runner(lease_s=60):
            order.append("taken")

    with store.runner(lease_s=60):
        with store.transaction():
            fill(store)
            connection.execute("UPDATE vecferry.leases SET expires_at = '-infinity'")
            taker = threading.Thread(target=take_over)
            taker.start()
            time.sleep(0.3)
            order.append("written")
        taker.join(10)
    assert order == ["written", "taken"]
    assert store.counts().done == 3


def test_of_two_that_find_a_lease_over_one_gets_it(store: PgVectorStore, connection: psycopg.Connection) -> None:
    tokens: list[int] = []
    refused: list[Locked] = []

    def acquire(holder: str) -> None:
        ledger = store.ledger.another()
        try:
            tokens.append(ledger.acquire("t", holder, 60).token)
        except Locked as locked:
            refused.append(locked)
        finally:
            ledger.close()

    store.ledger.release(store.ledger.acquire("t", "before", 60))
    takers = [threading.Thread(target=acquire, args=(holder,)) for holder in ("a", "b")]
    with connection.transaction():
        connection.execute("SELECT FROM vecferry.leases FOR UPDATE")
        for taker in takers:
            taker.start()
        while connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() != (2,):
            time.sleep(0.01)
    for taker in takers:
        taker.join(10)
    assert tokens == [2]
    assert {refused[0].holder} < {"a", "b"}


def test_a_lease_is_renewed_while_a_transaction_is_open(store: PgVectorStore, database_url: str) -> None:
    with open_docs(database_url) as second, store.runner(lease_s=0.6), store.transaction():
        time.sleep(1.2)
        with pytest.raises(Locked) as locked, second.runner(lease_s=1):
            raise AssertionError("both are running")
    assert "pid " in locked.value.holder


def test_transactions_nest_and_an_inner_one_may_fail_alone(store: PgVectorStore) -> None:
    rows = store.outdated(Side.NEW, limit=10)

    def write_and_fail() -> None:
        with store.transaction():
            store.write(Side.NEW, new(rows[1]))
            raise ZeroDivisionError

    with store.runner(lease_s=60), store.transaction():
        store.write(Side.NEW, new(rows[0]))
        with pytest.raises(ZeroDivisionError):
            write_and_fail()
    assert store.outdated(Side.NEW, limit=10) == rows[1:]


def test_nobody_else_uses_the_table_while_one_store_works_exclusively(
    store: PgVectorStore, connection: psycopg.Connection
) -> None:
    connection.execute("SET lock_timeout = '100ms'")

    def meddle() -> int:
        for statement in ("UPDATE docs SET note = 'meddled'", "SELECT count(*) FROM docs"):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                connection.execute(statement)
        return 3

    held = store.exclusively(meddle, Patience(1.0, 5.0))
    assert held.result == 3
    assert held.pause_s > 0.2
    connection.execute("UPDATE docs SET note = 'after'")


def test_tokens_ascend_and_a_lease_of_a_process_that_is_gone_is_taken_at_once(store: PgVectorStore) -> None:
    ledger = store.ledger
    first = ledger.acquire("t", "pid 1 on another host", 60)
    with pytest.raises(Locked) as locked:
        ledger.acquire("t", "me", 60)
    assert locked.value.holder == "pid 1 on another host"
    ledger.release(first)
    second = ledger.acquire("t", _mark_of_the_gone(), 60)
    third = ledger.acquire("t", "me", 60)
    assert (first.token, second.token, third.token) == (1, 2, 3)
    ledger.release(second)  # somebody else's by now
    with pytest.raises(LeaseLost):
        ledger.renew(second, 60)
    with pytest.raises(LeaseLost):
        ledger.guard(second)
    ledger.renew(third, 60)
    ledger.guard(third)
    other = ledger.another()
    other.guard(third)
    other.close()


def _mark_of_the_gone() -> str:
    """Return the mark of this process, had it begun at another time."""
    mark = process_mark().replace("(started ", "(started 1")
    assert is_gone(mark)
    return mark


def test_a_lost_connection_is_made_anew_under_the_same_lease(
    store: PgVectorStore, connection: psycopg.Connection
) -> None:
    with store.runner(lease_s=60):
        (pid,) = store._session.db.row("SELECT pg_backend_pid()")
        connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        with pytest.raises(StoreUnreachable):
            fill(store)
        store.reconnect()
        assert len(fill(store)) == 3


# --- the application's writes ---------------------------------------------------------------------


def old(text: str) -> Float32:
    return truth("old", text, D_OLD)


def test_put_inserts_and_replaces_in_the_side_that_serves(store: PgVectorStore, connection: psycopg.Connection) -> None:
    store.start_capture(PATIENCE)
    fill(store)
    records = [
        Record(("1",), "a2", TextVectors(old("a2")), {"note": "new", "extra": {"n": [1]}}),
        Record(("4",), "d", TextVectors(old("d"))),
        Record(("2",), "b", TextVectors(old("b"))),
    ]
    for _ in range(2):
        store.put(records, fingerprint=OLD_SPACE)
    assert connection.execute("SELECT id, body, note, extra FROM docs ORDER BY id").fetchall() == [
        (1, "a2", "new", {"n": [1]}),
        (2, "b", "kept", None),
        (3, "c", "kept", None),
        (4, "d", None, None),
    ]
    np.testing.assert_array_equal(stored(connection, "embedding")[1], old("a2"))
    assert [change.key for change in store.captured(10)] == [("1",), ("4",)]
    assert store.outdated(Side.NEW, [("1",), ("2",), ("4",)]) == [Row(("1",), "a2"), Row(("4",), "d")]


def test_what_is_put_into_the_new_side_is_current_there(store: PgVectorStore, connection: psycopg.Connection) -> None:
    switch(store)
    store.start_capture(PATIENCE)
    store.put([Record(("2",), "b2", TextVectors(truth("new", "b2", D_NEW)))], fingerprint=NEW_SPACE)
    assert store.outdated(Side.NEW, [("2",)]) == []
    assert [row.key for row in store.outdated(Side.NEW, limit=10)] == [("1",), ("3",)]
    assert [change.key for change in store.captured(10)] == [("2",)]
    np.testing.assert_array_equal(stored(connection, "embedding_vecferry_old")[2], old("b"))
    store.put([Record(("3",), "c", None)], fingerprint=NEW_SPACE)
    assert [row.key for row in store.outdated(Side.NEW, [("3",)])] == [("3",)]


@pytest.mark.parametrize(("fingerprint", "dimension"), [(NEW_SPACE, D_OLD), ("another", D_OLD), (OLD_SPACE, D_OLD + 1)])
def test_a_record_of_another_space_is_refused_and_nothing_is_written(
    fingerprint: str, dimension: int, store: PgVectorStore, connection: psycopg.Connection
) -> None:
    before = connection.execute("SELECT * FROM docs ORDER BY id").fetchall()
    records = [
        Record(("1",), "x", TextVectors(old("x"))),
        Record(("9",), "y", TextVectors(truth("old", "y", dimension))),
    ]
    with pytest.raises(SpaceMismatch):
        store.put(records, fingerprint=fingerprint)
    assert connection.execute("SELECT * FROM docs ORDER BY id").fetchall() == before


def test_a_space_that_nobody_recorded_is_taken_at_its_word(connection: psycopg.Connection, database_url: str) -> None:
    make_docs(connection, "a")
    with open_docs(database_url) as store:
        store.put([Record(("1",), "b", TextVectors(old("b")))], fingerprint="whatever")
        assert store.search(old("b"), 1, fingerprint="whatever")[0].key == ("1",)
        begun(store, old_fingerprint=None)
        store.put([Record(("1",), "c", TextVectors(old("c")))], fingerprint="whatever")
        with pytest.raises(SpaceMismatch):
            store.put([Record(("1",), "c", TextVectors(old("c")))], fingerprint=NEW_SPACE)
        with pytest.raises(SpaceMismatch):
            store.put([Record(("1",), "c", TextVectors(truth("old", "c", D_OLD + 1)))], fingerprint="whatever")


@pytest.mark.parametrize("name", ["nowhere", "embedding_vecferry_new", "embedding", "body", "id"])
def test_payload_that_is_no_other_column_is_refused_by_name(
    name: str, store: PgVectorStore, connection: psycopg.Connection
) -> None:
    records = [Record(("8",), "x", TextVectors(old("x"))), Record(("9",), "y", TextVectors(old("y")), {name: None})]
    with pytest.raises(StoreSchemaError, match=name):
        store.put(records, fingerprint=OLD_SPACE)
    assert connection.execute("SELECT count(*) FROM docs").fetchone() == (3,)


def test_awkward_names_and_keys_of_several_parts(connection: psycopg.Connection, database_url: str) -> None:
    connection.execute(
        'CREATE TABLE "We""ird %s" (a text, "B %" integer, "te xt" text, "v{}" vector(8), "p%ay" integer[],'
        ' PRIMARY KEY ("B %", a))'
    )
    with PgVectorStore.connect(database_url, '"We""ird %s"', "te xt", "v{}") as store:
        begun(store)
        store.start_capture(PATIENCE)
        record = Record(("7", "eu"), "x", TextVectors(old("x")), {"p%ay": [1, 2]})
        store.put([record], fingerprint=OLD_SPACE)
        assert store.captured(10)[0].key == ("7", "eu")
        assert fill(store) == {("7", "eu")}
        assert store.search(old("x"), 1, fingerprint=OLD_SPACE)[0].key == ("7", "eu")
        keys = [("8", "eu"), ("7", "eu"), ("7",), ("7", "eu", "x")]
        assert store.rows(keys) == [Row(("7", "eu"), "x")]
        assert list(store.vectors(keys, fingerprint=NEW_SPACE)) == [("7", "eu")]
        store.remove([("7", "eu"), ("8", "eu")])
        assert store.apply_deletes([("7", "eu")]) == {("7", "eu")}
        store.stop_capture()


def test_removed_rows_are_gone_and_captured(store: PgVectorStore, connection: psycopg.Connection) -> None:
    store.start_capture(PATIENCE)
    for _ in range(2):
        store.remove([("1",), ("3",), ("77",)])
    store.remove([])
    assert connection.execute("SELECT id FROM docs").fetchall() == [(2,)]
    assert {change.key for change in store.captured(10)} == {("1",), ("3",)}
    assert store.apply_deletes([("1",), ("2",), ("3",)]) == {("1",), ("3",)}


def test_a_put_of_the_former_space_is_refused_after_a_switch(store: PgVectorStore) -> None:
    switch(store)
    with pytest.raises(SpaceMismatch):
        store.put([Record(("1",), "x", TextVectors(old("x")))], fingerprint=OLD_SPACE)


def test_a_put_that_waited_for_a_switch_sees_what_serves_after_it(
    store: PgVectorStore, connection: psycopg.Connection, database_url: str
) -> None:
    refused: list[SpaceMismatch] = []

    def put() -> None:
        with open_docs(database_url) as application:
            try:
                application.put([Record(("1",), "x", TextVectors(old("x")))], fingerprint=OLD_SPACE)
            except SpaceMismatch as mismatch:
                refused.append(mismatch)

    def change_places_while_somebody_waits() -> None:
        writer.start()
        while connection.execute("SELECT FROM pg_locks WHERE NOT granted").fetchone() is None:
            time.sleep(0.01)
        store.switch(Side.NEW)
        store.ledger.serve(store.target, Serving(2, 2, "embedding", NEW_SPACE))

    writer = threading.Thread(target=put)
    store.exclusively(change_places_while_somebody_waits, PATIENCE)
    writer.join(10)
    assert [mismatch.expected for mismatch in refused] == [NEW_SPACE]
    assert connection.execute("SELECT body FROM docs WHERE id = 1").fetchone() == ("a",)


# --- searching ------------------------------------------------------------------------------------


def two_nearest(store: PgVectorStore, fingerprint: str, query: Float32, *, exact: bool = False) -> list[Key]:
    return [hit.key for hit in store.search(query, 2, fingerprint=fingerprint, exact=exact)]


def test_each_space_is_searched_where_it_is_before_and_after_a_switch(store: PgVectorStore) -> None:
    fill(store)
    changes: tuple[Callable[[], None], ...] = (lambda: None, lambda: switch(store))
    for change in changes:
        change()
        for fingerprint, model, dimension in ((OLD_SPACE, "old", D_OLD), (NEW_SPACE, "new", D_NEW)):
            hits = store.search(truth(model, "b", dimension), 3, fingerprint=fingerprint)
            assert hits == store.search(truth(model, "b", dimension), 3, fingerprint=fingerprint, exact=True)
            assert hits[0].key == ("2",)
            assert len(hits) == 3
            # pgvector computes in float32
            np.testing.assert_allclose(hits[0].score, 1, atol=1e-6)
            with pytest.raises(SpaceMismatch):
                store.search(truth(model, "b", dimension + 1), 1, fingerprint=fingerprint)
        with pytest.raises(SpaceMismatch):
            store.search(truth("old", "b", D_OLD), 1, fingerprint="another")


def test_the_old_side_is_found_after_a_switch_though_nobody_recorded_its_space(
    connection: psycopg.Connection, database_url: str
) -> None:
    make_docs(connection, "a", "b")
    with open_docs(database_url) as store:
        fill(begun(store, old_fingerprint=None))
        switch(store)
        assert two_nearest(store, "whatever", old("b")) == [("2",), ("1",)]
        assert two_nearest(store, NEW_SPACE, truth("new", "b", D_NEW))[0] == ("2",)
        store.exclusively(lambda: store.drop(Side.OLD), PATIENCE)
        with pytest.raises(SpaceMismatch):
            store.search(old("b"), 1, fingerprint="whatever")
        assert two_nearest(store, NEW_SPACE, truth("new", "b", D_NEW))[0] == ("2",)


def test_rows_of_equal_distance_are_sorted_by_their_key(store: PgVectorStore, connection: psycopg.Connection) -> None:
    connection.execute("UPDATE docs SET embedding = (SELECT embedding FROM docs WHERE id = 1)")
    for exact in (True, False):
        assert two_nearest(store, OLD_SPACE, old("a"), exact=exact) == [("1",), ("2",)]


def test_an_index_answers_unless_the_answer_is_to_be_exact(
    store: PgVectorStore, connection: psycopg.Connection
) -> None:
    connection.execute(
        "INSERT INTO docs SELECT i, 'x', (SELECT array_agg(random()) FROM generate_series(1, 8) WHERE i > 0)::vector"
        " FROM generate_series(10, 3000) i; CREATE INDEX by_cosine ON docs USING hnsw (embedding vector_cosine_ops);"
        " ANALYZE docs"
    )

    def scans() -> int:
        connection.execute("SELECT pg_stat_clear_snapshot()")
        ((count,),) = connection.execute(
            "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'by_cosine'"
        ).fetchall()
        return int(count)

    before = scans()
    assert len(store.search(old("a"), 50, fingerprint=OLD_SPACE, exact=True)) == 50
    store._session.db.execute("SELECT pg_stat_force_next_flush()")
    assert scans() == before
    hits = store.search(old("a"), 50, fingerprint=OLD_SPACE)
    store._session.db.execute("SELECT pg_stat_force_next_flush()")
    assert len(hits) == 50  # more than hnsw.ef_search is by itself
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert scans() == before + 1
    assert store._session.db.row("SELECT current_setting('hnsw.ef_search')") == ("40",)


# --- types ----------------------------------------------------------------------------------------


def test_a_column_of_half_precision_is_migrated_in_half_precision(
    connection: psycopg.Connection, database_url: str
) -> None:
    make_docs(connection, "a", "b", kind="halfvec")
    connection.execute("CREATE INDEX by_cosine ON docs USING hnsw (embedding halfvec_cosine_ops)")
    with open_docs(database_url) as store:
        begun(store)
        assert columns_of(connection)["embedding_vecferry_new"] == "halfvec(16)"
        assert fill(store) == {("1",), ("2",)}
        half = truth("new", "a", D_NEW).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(stored(connection, "embedding_vecferry_new")[1], half)
        read = store.vectors([("1",)], fingerprint=NEW_SPACE)[("1",)]
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, half)
        assert store.build_indexes() == ("by_cosine_vecferry_new",)
        assert store.build_indexes() == ()
        assert store.check_integrity(D_NEW) == Examination(rows=2)
        switch(store)
        assert two_nearest(store, NEW_SPACE, truth("new", "b", D_NEW))[0] == ("2",)
        store.put([Record(("1",), "a2", TextVectors(truth("new", "a2", D_NEW)))], fingerprint=NEW_SPACE)
        assert store.write(Side.OLD, [NewVector(("1",), text_digest("a2"), TextVectors(old("a2")))]) == {("1",)}
        store.exclusively(lambda: store.drop(Side.OLD), PATIENCE)
        store.exclusively(lambda: store.prepare(4000, "next"), PATIENCE)
        store.exclusively(lambda: store.drop(Side.NEW), PATIENCE)
        with pytest.raises(StoreSchemaError, match="4001"):
            store.exclusively(lambda: store.prepare(4001, "next"), PATIENCE)


SPARSE = SparseVector(np.asarray([0, 7, 250001], np.int32), np.asarray([0.25, 0.5, 1.5], np.float32))
COLBERT = np.stack([truth("token", str(i), D_NEW) for i in range(3)])


def test_sparse_and_colbert_vectors_come_back_as_they_were(connection: psycopg.Connection, database_url: str) -> None:
    make_docs(connection, "a", "b", "c")
    with open_docs(database_url) as store:
        begun(store, Outputs.ALL)
        assert columns_of(connection)["embedding_sparse"] == "sparsevec(250002)"
        assert columns_of(connection)["embedding_colbert"].startswith("halfvec")
        rows = store.outdated(Side.NEW, limit=10)
        vectors = [
            NewVector(rows[0].key, rows[0].digest, TextVectors(truth("new", "a", D_NEW), SPARSE, COLBERT)),
            NewVector(rows[1].key, rows[1].digest, TextVectors(truth("new", "b", D_NEW), SPARSE, COLBERT[:1])),
            NewVector(rows[2].key, rows[2].digest, None),
        ]
        assert store.write(Side.NEW, vectors) == {("1",), ("2",), ("3",)}
        switch(store)
        store.put(
            [Record(("4",), "d", TextVectors(truth("new", "d", D_NEW), SPARSE, COLBERT[1:]))], fingerprint=NEW_SPACE
        )
        store.put([Record(("2",), "b2", TextVectors(truth("new", "b2", D_NEW)))], fingerprint=NEW_SPACE)
    read = connection.execute(
        "SELECT embedding_sparse::text, embedding_colbert::text[] FROM docs ORDER BY id"
    ).fetchall()
    assert read[0][0] == read[3][0] == "{1:0.25,8:0.5,250002:1.5}/250002"  # PostgreSQL counts from 1
    assert read[1] == read[2] == (None, None)
    for row, expected in ((0, COLBERT), (3, COLBERT[1:])):
        tokens = np.asarray([[float(x) for x in token.strip("[]").split(",")] for token in read[row][1]])
        np.testing.assert_allclose(tokens, expected, atol=1e-3)  # of half precision


def test_the_columns_of_a_migration_go_with_it_and_those_of_others_stay(
    connection: psycopg.Connection, database_url: str
) -> None:
    make_docs(connection, "a")
    before = columns_of(connection)
    with open_docs(database_url) as store:
        begun(store, Outputs.ALL)
        store.exclusively(lambda: store.prepare(D_NEW, NEW_SPACE, Outputs.ALL), PATIENCE)
        with pytest.raises(SpaceMismatch):
            store.exclusively(lambda: store.prepare(D_NEW, "another"), PATIENCE)
        for _ in range(2):
            store.exclusively(lambda: store.drop(Side.NEW), PATIENCE)
            assert columns_of(connection) == before
        connection.execute("ALTER TABLE docs ADD embedding_sparse text")
        with pytest.raises(StoreSchemaError, match="embedding_sparse"):
            store.exclusively(lambda: store.prepare(D_NEW, NEW_SPACE, Outputs.ALL), PATIENCE)
        store.exclusively(lambda: store.prepare(D_NEW, NEW_SPACE), PATIENCE)
        fill(store)
        store.exclusively(lambda: store.drop(Side.NEW), PATIENCE)
        assert columns_of(connection) == before | {"embedding_sparse": "text"}


def test_the_old_vectors_are_dropped_once_and_the_heads_stay(connection: psycopg.Connection, database_url: str) -> None:
    make_docs(connection, "a")
    with open_docs(database_url) as store:
        fill(begun(store, DENSE | Outputs.SPARSE))
        store.exclusively(lambda: store.drop(Side.OLD), PATIENCE)  # the old vectors serve: there is nothing to drop
        switch(store)
        with pytest.raises(StoreSchemaError, match="serve"):
            store.exclusively(lambda: store.drop(Side.NEW), PATIENCE)
        for _ in range(2):
            store.exclusively(lambda: store.drop(Side.OLD), PATIENCE)
            assert columns_of(connection)["embedding"] == "vector(16)"
            assert set(columns_of(connection)) == {"id", "body", "embedding", "note", "extra", "embedding_sparse"}
        store.exclusively(lambda: store.drop(Side.NEW), PATIENCE)
        store.put([Record(("1",), "z", TextVectors(truth("new", "z", D_NEW), SPARSE))], fingerprint=NEW_SPACE)
    assert connection.execute("SELECT embedding_sparse IS NOT NULL FROM docs").fetchall() == [(True,)]


def test_what_start_will_make_is_named_and_then_made(connection: psycopg.Connection, database_url: str) -> None:
    make_docs(connection, "a")
    connection.execute("CREATE INDEX by_cosine ON docs USING hnsw (embedding vector_cosine_ops)")
    with open_docs(database_url) as store:
        creates: Sequence[str] = store.describe().creates
        store.start_capture(PATIENCE)
        begun(store)
        store.build_indexes()
    queries = {
        "schema": "SELECT nspname FROM pg_namespace",
        "column": "SELECT 'public.docs.' || attname FROM pg_attribute WHERE attrelid = 'docs'::regclass",
        "trigger": "SELECT tgname || ' on public.docs' FROM pg_trigger WHERE tgrelid = 'docs'::regclass",
        "function": "SELECT 'vecferry.' || proname FROM pg_proc",
        "index": "SELECT schemaname || '.' || indexname FROM pg_indexes",
    }
    for entry in creates:
        kind, _, name = entry.partition(" ")
        assert (name,) in connection.execute(queries[kind]).fetchall()
    assert {entry.partition(" ")[0] for entry in creates} == set(queries)
