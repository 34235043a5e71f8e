"""Writers who are in the way, as a real PostgreSQL has them: locked rows, deadlocks, long transactions, autovacuum."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np
import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from tests.migrate.faults import in_background
from tests.stores.collections import OLD_DIMENSION, PgCollection, old_vector, without_triggers
from tests.waiting import wait_until
from vecferry.embeddings import TextVectors
from vecferry.errors import Locked, VecferryError
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.stores.values import Patience, Record, Side

OLD, NEW = TruthEncoder("old", OLD_DIMENSION), TruthEncoder("new", 16)
ROWS = 120


@pytest.fixture
def options(tmp_path: Path) -> MigrationOptions:
    return MigrationOptions(
        accept_unconfirmed="a test",
        rows_per_range=32,
        rows_per_write=8,
        old_fingerprint=OLD.fingerprint,
        staging=tmp_path,
        patience=Patience(0.5, 20.0),
        wait_for_writers_s=0.3,
    )


@pytest.fixture
def table(connection: psycopg.Connection, database_url: str) -> Iterator[PgCollection]:
    """Yield a table with a column beside the text."""
    made = PgCollection(connection, database_url, embed_missing=True)
    connection.execute("ALTER TABLE docs ADD meta integer DEFAULT 0")
    for key in range(1, ROWS + 1):
        made.put(key, f"text {key}", old_vector(f"text {key}"))
    yield made
    made.store.close()


@contextmanager
def another(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as opened:
        yield opened


def assert_true(table: PgCollection, model: TruthEncoder) -> None:
    for (key,), (text, vector) in table.serving().items():
        assert text is not None
        assert vector is not None, key
        np.testing.assert_allclose(vector, model.truth(text), atol=1e-6, err_msg=key)


def ready(table: PgCollection, options: MigrationOptions) -> Migration:
    migration = Migration(table.store, new=NEW, old=OLD, options=options)
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    return migration


# --- rows that others are writing -----------------------------------------------------------------


def holding(table: PgCollection, work: Callable[[TruthEncoder], None]) -> None:
    """Do `work` with an encoder at whose first call the application begins to write 60 rows, but not their texts."""

    def hold(texts: object) -> None:
        if encoder.calls == 0:
            table.connection.execute("BEGIN; UPDATE docs SET meta = meta + 1 WHERE id <= 60")

    encoder = TruthEncoder("new", 16, hold)
    work(encoder)
    assert table.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert table.store.count_outdated(Side.NEW).count == table.store.count_outdated(Side.OLD).count == 0


def test_rows_that_others_write_while_their_range_passes_are_waited_for(
    table: PgCollection, options: MigrationOptions
) -> None:
    def start(encoder: TruthEncoder) -> None:
        migration = Migration(table.store, new=encoder, options=replace(options, wait_for_writers_s=30.0))
        with table.another() as store:
            watcher = Migration(store, options=options)
            thread, outcome = in_background(migration.start)
            wait_until(lambda: store.ledger.find(store.target) is not None)
            wait_until(lambda: watcher.status().state == State.CATCHING_UP)
            wait_until(lambda: watcher.status().rows_done == ROWS - 60)
            calls = encoder.encoded.total()
            time.sleep(0.5)
            assert thread.is_alive()
            assert (watcher.status().backlog, watcher.status().old_backlog) == (60, 60)
            assert encoder.encoded.total() <= calls + 60  # what was once embedded for them is remembered
            table.connection.execute("COMMIT")
            thread.join(20)
        assert outcome[0].backlog == 0, outcome  # type: ignore[attr-defined]

    holding(table, start)


def test_rows_that_others_write_for_too_long_are_left_for_the_next_look_and_said_to_be(
    table: PgCollection, options: MigrationOptions
) -> None:
    def start_twice(encoder: TruthEncoder) -> None:
        migration = Migration(table.store, new=encoder, options=options)
        status = migration.start()
        assert (status.rows_done, status.backlog, status.state) == (ROWS - 60, 60, State.CATCHING_UP)
        (event,) = (event for event in status.events if event.what == "left for later")
        assert event.detail["writes"] == 120  # on both sides
        assert f"pid {table.connection.info.backend_pid} " in event.detail["in the way"]
        assert "idle in transaction" in event.detail["in the way"]
        table.connection.execute("COMMIT")
        migration.start(follow=lambda: table.store.backlog() == 0)
        assert migration.verify(override="no gate in this test").passed

    holding(table, start_twice)


def test_a_row_that_is_locked_for_long_does_not_keep_the_others_from_being_followed(
    table: PgCollection, options: MigrationOptions, database_url: str
) -> None:
    migration = Migration(table.store, new=NEW, options=options)
    migration.start()
    with another(database_url) as holder, table.another() as watched, holder.transaction():
        table.connection.execute("UPDATE docs SET body = body || '!' WHERE id <= 60")
        holder.execute("SELECT FROM docs WHERE id <= 60 FOR UPDATE")
        ending = threading.Event()
        thread, outcome = in_background(lambda: migration.start(follow=ending.is_set))
        wait_until(lambda: Migration(watched).status().backlog == 60)
        for number in range(70, 75):
            table.put(number, f"later {number}", old_vector(f"later {number}"))
        wait_until(lambda: watched.outdated(Side.NEW, [(str(n),) for n in range(70, 75)]) == [])
        wait_until(lambda: watched.backlog(Side.NEW) == 60)
        holder.execute("COMMIT")
        wait_until(lambda: Migration(watched).status().backlog == 0)
        ending.set()
        thread.join(20)
    assert not isinstance(outcome[0], BaseException), outcome
    assert table.store.count_outdated(Side.NEW).count == 0


def test_a_thousand_writes_that_no_trigger_saw_are_done_by_one_start(
    table: PgCollection, options: MigrationOptions
) -> None:
    """The pages are of numbers that have another order as texts."""
    table.connection.execute("INSERT INTO docs SELECT i, 'more ' || i FROM generate_series(121, 1000) i")
    migration = Migration(table.store, new=NEW, options=options)
    migration.start()
    with without_triggers(table.connection, "docs"):
        table.connection.execute("UPDATE docs SET body = 'unseen ' || id")
    assert table.store.count_outdated(Side.NEW).count == 1000
    migration.start()
    assert table.store.count_outdated(Side.NEW).count == 0


# --- nobody is brought into a deadlock ------------------------------------------------------------


@contextmanager
def taking_rows_downwards(url: str) -> Iterator[list[BaseException]]:
    """Write pairs of rows in transactions, the later one first; yield what the application was refused."""
    refused: list[BaseException] = []
    ending = threading.Event()

    def write() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET deadlock_timeout = '50ms'")
            while not ending.is_set():
                try:
                    with connection.transaction():
                        for key in (90, 60, 30, 3, 2, 1):
                            connection.execute("UPDATE docs SET meta = meta + 1 WHERE id = %s", [key])
                            time.sleep(0.001)
                    time.sleep(0.01)
                except psycopg.Error as exc:
                    refused.append(exc)

    thread = threading.Thread(target=write)
    thread.start()
    yield refused
    ending.set()
    thread.join()


def test_no_write_of_ours_brings_an_application_into_a_deadlock(
    table: PgCollection, options: MigrationOptions, database_url: str
) -> None:
    """The writes are those of backfill, retry, sweep and follow, on both sides."""
    table.connection.execute("UPDATE docs SET body = 'POISON ' || id WHERE id IN (1, 2, 3, 30, 60, 90)")
    cured = TruthEncoder("new", 16)
    cured.poison = ("HUGE",)
    migration = Migration(table.store, new=NEW, old=OLD, options=options)
    with_cured = replace(migration, new=cured)
    with taking_rows_downwards(database_url) as refused:
        wait_until(lambda: migration.start().dead_letters == 6)
        for _ in range(3):
            migration.retry()
        wait_until(lambda: with_cured.retry().dead_letters == 0)
        with without_triggers(table.connection, "docs"):
            table.connection.execute("UPDATE docs SET body = body || '?' WHERE id > 90")
        with_cured.start()
        assert with_cured.verify(override="no gate in this test").passed
        with_cured.cutover()
        table.connection.execute("UPDATE docs SET body = body || '!', embedding = NULL WHERE id > 90")
        with_cured.start()
        with_cured.rollback()
    assert refused == []
    assert table.store.count_outdated(Side.NEW).count == table.store.count_outdated(Side.OLD).count == 0


def test_two_who_put_and_remove_the_same_rows_in_another_order_wait_for_each_other(
    table: PgCollection, database_url: str
) -> None:
    keys = [str(key) for key in range(1, 60)]
    failures: list[VecferryError] = []

    def put_and_remove(order: list[str]) -> None:
        with table.another() as store:
            try:
                for number in range(6):
                    records = [
                        Record((key,), f"{number} {key}", TextVectors(OLD.truth(key)), {"meta": 1}) for key in order
                    ]
                    store.put(records, fingerprint=OLD.fingerprint)
                    store.remove([(key,) for key in order])
            except VecferryError as exc:
                failures.append(exc)

    threads = [threading.Thread(target=put_and_remove, args=(order,)) for order in (keys, keys[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- autovacuum, and other maintenance ------------------------------------------------------------


@contextmanager
def busy_autovacuum(postgres_url: str, table: PgCollection) -> Iterator[Callable[[], None]]:
    """Let autovacuum look each second and take minutes over the table. Yield what waits until it is at work."""
    settings = {"autovacuum_naptime": "1s", "deadlock_timeout": "200ms"}
    with another(postgres_url) as admin:
        for name, value in settings.items():
            admin.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        admin.execute("SELECT pg_reload_conf()")
        table.connection.execute(
            "ALTER TABLE docs ADD filler text; INSERT INTO docs (id, body, filler)"
            " SELECT i, 'more ' || i, repeat('x', 800) FROM generate_series(1000, 2500) i; ALTER TABLE docs SET"
            " (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,"
            " autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)"
        )

        def at_work() -> None:
            query = (
                "SELECT FROM pg_stat_activity a JOIN pg_locks l USING (pid) WHERE l.relation = 'docs'::regclass"
                " AND a.backend_type = 'autovacuum worker' AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted"
            )
            table.connection.execute("UPDATE docs SET meta = meta + 1")
            wait_until(lambda: table.connection.execute(query).fetchone() is not None)

        try:
            yield at_work
        finally:
            for name in settings:
                admin.execute(f"ALTER SYSTEM RESET {name}")
            admin.execute("SELECT pg_reload_conf()")


def waits_for_maintenance(connection: psycopg.Connection) -> bool:
    """Tell whether somebody waits for an autovacuum's lock, but for none that writers would have to wait for."""
    query = "SELECT array_agg(mode) FROM pg_locks WHERE relation = 'docs'::regclass AND NOT granted"
    return connection.execute(query).fetchone() == (["ShareUpdateExclusiveLock"],)


@pytest.mark.slow
def test_every_verb_gets_past_an_autovacuum_and_writers_do_not_wait_for_it(
    table: PgCollection, options: MigrationOptions, postgres_url: str
) -> None:
    migration = Migration(table.store, new=NEW, old=OLD, options=options)
    verbs: list[Callable[[], object]] = [
        migration.start,
        lambda: migration.verify(override="no gate in this test") and migration.cutover(),
        migration.rollback,
        migration.abort,
        migration.start,
        lambda: migration.verify(override="no gate in this test") and migration.cutover(),
        lambda: migration.finalize(confirmed=True),
    ]
    with busy_autovacuum(postgres_url, table) as at_work:
        for verb in verbs:
            at_work()
            thread, outcome = in_background(verb)

            def waits_or_has_ended(ended: list[object] = outcome) -> bool:
                return waits_for_maintenance(table.connection) or bool(ended)

            wait_until(waits_or_has_ended)
            table.connection.execute("SET lock_timeout = '2s'")
            table.put(5, "written meanwhile", None)
            thread.join(60)
            assert not isinstance(outcome[0], BaseException), outcome
    assert migration.status().state is State.FINALIZED


def test_other_maintenance_is_named_and_writers_do_not_wait_for_it(
    table: PgCollection, options: MigrationOptions, database_url: str
) -> None:
    migration = ready(table, replace(options, patience=Patience(0.2, 0.5)))
    with another(database_url) as maintenance, maintenance.transaction():
        maintenance.execute("SET LOCAL application_name = 'nightly'")
        maintenance.execute("LOCK TABLE docs IN SHARE UPDATE EXCLUSIVE MODE")
        pid = maintenance.info.backend_pid
        table.connection.execute("SET lock_timeout = '2s'")
        thread, outcome = in_background(migration.cutover)
        wait_until(lambda: waits_for_maintenance(table.connection))
        table.put(5, "written meanwhile", old_vector("written meanwhile"))
        thread.join(30)
    (locked,) = outcome
    assert isinstance(locked, Locked)
    assert f"pid {pid} (nightly, idle in transaction, transaction of" in locked.holder
    assert "LOCK TABLE docs" in locked.holder
    migration.cutover()


# --- writers who leave no gap ---------------------------------------------------------------------


@dataclass
class Busy:
    """What writers met that begin their next transaction as soon as the last has ended."""

    refused: list[BaseException] = field(default_factory=list)
    transactions: int = 0


@contextmanager
def without_a_gap(url: str, *, seconds_each: float, seed: int) -> Iterator[Busy]:
    """A writer whose transactions read a row, change its text, wait, and change another; half of them see one
    snapshot. Their vectors are missing: the run makes them.
    """
    busy, ending, chance = Busy(), threading.Event(), Random(seed)

    def write() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not ending.is_set():
                first, second = sorted(chance.sample(range(1 + seed, ROWS, 2), 2))
                try:
                    with connection.transaction():
                        if chance.random() < 0.5:
                            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                        connection.execute("SELECT body FROM docs WHERE id = %s", [first])
                        update = "UPDATE docs SET body = %s, embedding = NULL WHERE id = %s"
                        connection.execute(update, [f"{first} of write {busy.transactions}", first])
                        time.sleep(seconds_each)
                        connection.execute(update, [f"{second} of write {busy.transactions}", second])
                except psycopg.errors.SerializationFailure:
                    pass  # as such a transaction must expect of anybody who writes beside it
                except psycopg.Error as exc:
                    busy.refused.append(exc)
                busy.transactions += 1

    thread = threading.Thread(target=write)
    thread.start()
    yield busy
    ending.set()
    thread.join()


@pytest.mark.slow
def test_the_way_back_and_there_is_found_between_writers_who_leave_no_gap(
    table: PgCollection, options: MigrationOptions, database_url: str
) -> None:
    options = replace(options, patience=Patience())
    notices: list[str] = []
    migration = ready(table, options)
    ending = threading.Event()
    with ExitStack() as stack:
        store = stack.enter_context(table.another())
        thread, outcome = in_background(
            lambda: Migration(store, new=NEW, old=OLD, options=options).start(follow=ending.is_set)
        )
        held = "SELECT count(*) FROM vecferry.leases WHERE target = %s AND expires_at > clock_timestamp()"
        wait_until(lambda: table.connection.execute(held, [store.target]).fetchone() == (1,))
        writers = [stack.enter_context(without_a_gap(database_url, seconds_each=0.3, seed=seed)) for seed in range(2)]
        patience = replace(options.patience, notify=notices.append)
        for _ in range(2):
            migration.cutover(patience=patience)
            migration.rollback(patience=patience)
        stack.callback(thread.join)
        stack.callback(ending.set)
    assert not isinstance(outcome[0], BaseException), outcome
    assert [writer.refused for writer in writers] == [[], []]
    assert sum(writer.transactions for writer in writers) > 10
    migration.start()
    assert_true(table, OLD)
    migration.cutover()
    assert_true(table, NEW)
    assert any("idle in transaction" in line and "others wait 0.2 s at most" in line for line in notices)
    assert any("a write came in between" in line for line in notices)
