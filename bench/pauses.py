"""How long a writer waits at most, in each step of a migration and in the accidents of one.

    python -m bench.pauses [--rows 20000] [--writes-per-s 50] [--json FILE]

Starts a PostgreSQL of its own. A process inserts, changes and deletes rows with plain SQL, one statement a transaction,
as `bench.vecshift` has it, and says how long each took. The migration is the truth embedder's, vector(384) to
vector(1024) with an HNSW index; a run follows. What is shown is the longest write that was under way in each step, and
in the accidents: transactions of half a second that leave no gap, an autovacuum, a switch and a run that are stopped
(SIGSTOP) inside their transaction, a switch that is killed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from signal import SIGCONT, SIGKILL

import psycopg
from psycopg.conninfo import make_conninfo

from bench.vecshift.application import NAME, NEW, OLD, TEXT, VECTOR, Application, DocsTable
from tests.migrate.doubles import TruthEncoder
from tests.migrate.faults import Job, Mother
from vecferry.demo.database import running_database
from vecferry.encode.runtime.host import machine
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.stores.pgvector import PgVectorStore

DIMENSIONS = {OLD: 384, NEW: 1024}
SMALL, FEW_ROWS = {OLD: 8, NEW: 16}, 512
"""Those of `tests.migrate.crashing`, whose processes are stopped and killed; so few that a write meets a locked row."""
STILL_S = 1.0
STOPPED_S = 8.0


@dataclass(frozen=True)
class Pause:
    """Of the writes that were under way in a step."""

    step: str
    longest_ms: float
    median_ms: float
    writes: int


class Steps:
    """Intervals by `time.monotonic`."""

    def __init__(self) -> None:
        self.intervals: dict[str, tuple[float, float]] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.intervals[name] = (began, time.monotonic())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--writes-per-s", type=float, default=50.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    scenarios: tuple[Callable[[Scenario], None], ...] = (
        undisturbed, beside_long_transactions, beside_an_autovacuum, stopped_and_killed,
    )  # fmt: skip
    pauses: list[Pause] = []
    with running_database() as server:
        for scenario in scenarios:
            rows, dimensions = (FEW_ROWS, SMALL) if scenario is stopped_and_killed else (args.rows, DIMENSIONS)
            with database(server, scenario.__name__) as url, tempfile.TemporaryDirectory() as folder:
                table = DocsTable(url, rows, dimensions)
                table.create()
                made = Scenario(table, Path(folder), args.writes_per_s)
                with made.application.running():
                    time.sleep(STILL_S)
                    scenario(made)
                    pauses += made.pauses()
    for pause in pauses:
        print(f"{pause.step:<64} {pause.longest_ms:>8.0f} ms of {pause.writes:>5}, median {pause.median_ms:.1f}")
    if args.json:
        report = {"machine": machine(), "rows": args.rows, "pauses": [asdict(pause) for pause in pauses]}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@contextmanager
def database(server: str, name: str) -> Iterator[str]:
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield make_conninfo(server, dbname=name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


class Scenario:
    """A table, an application that writes to it, and a migration of it."""

    def __init__(self, table: DocsTable, folder: Path, writes_per_s: float) -> None:
        self.table, self.folder = table, folder
        self.application = Application(table, writes_per_s)
        self.steps = Steps()
        self.old, self.new = (TruthEncoder(model, table.dimensions[model]) for model in (OLD, NEW))
        self.options = MigrationOptions(
            accept_unconfirmed="a bench",
            staging=folder / "staging",
            old_fingerprint=self.old.fingerprint,
            min_recall=0.0,
            lease_s=5.0,
        )

    @contextmanager
    def store(self) -> Iterator[PgVectorStore]:
        with PgVectorStore.connect(self.table.url, NAME, TEXT, VECTOR, embed_missing=True) as opened:
            yield opened

    @contextmanager
    def following(self) -> Iterator[Migration]:
        """A run that follows, and another store's verbs; its steps are noted."""
        ending, failures = threading.Event(), list[BaseException]()

        def run() -> None:
            try:
                with self.store() as store:
                    Migration(store, new=self.new, old=self.old, options=self.options).start(follow=ending.is_set)
            except BaseException as exc:  # noqa: BLE001  # raised again below
                failures.append(exc)

        with self.store() as store:
            thread = threading.Thread(target=run)
            thread.start()
            migration = Migration(store, options=self.options)
            self._note_steps(store, thread)
            yield migration
            ending.set()
            thread.join()
        if failures:
            raise failures[0]

    def _note_steps(self, store: PgVectorStore, thread: threading.Thread) -> None:
        """Until it has caught up for the first time."""
        names = {
            "columns and triggers are added": (State.PLANNED, State.PREPARED, State.CAPTURING),
            "backfill": (State.BACKFILLING,),
            "index is built": (State.INDEXING,),
        }
        for name, states in names.items():
            with self.steps.step(name):
                while thread.is_alive():
                    record = store.ledger.find(store.target)
                    if record is not None and State(record.state) not in states:
                        break
                    time.sleep(0.005)

    def verified(self, migration: Migration) -> None:
        report = replace(migration, new=self.new).verify(override="a benchmark judges no queries")
        assert report.passed, report

    def pauses(self) -> list[Pause]:
        log = self.application.stop()
        assert not log.failures, log.failures[:3]
        measured = []
        for name, interval in self.steps.intervals.items():
            times = sorted(write.ms for write in log.during(*interval))
            if times:
                measured.append(Pause(name, times[-1], times[len(times) // 2], len(times)))
        return measured


# --- the scenarios --------------------------------------------------------------------------------


def undisturbed(scenario: Scenario) -> None:
    with scenario.following() as migration:
        with scenario.steps.step("verify"):
            scenario.verified(migration)
        for name, verb in (
            ("cutover", migration.cutover),
            ("rollback", migration.rollback),
            ("cutover again", migration.cutover),
        ):
            with scenario.steps.step(name):
                verb()
            with scenario.steps.step(f"after the {name}, both sides followed"):
                time.sleep(STILL_S)
        with scenario.steps.step("finalize"):
            migration.finalize(confirmed=True)


def beside_long_transactions(scenario: Scenario) -> None:
    """Two that leave no gap, half a second each."""
    with scenario.following() as migration, ExitStack() as stack:
        scenario.verified(migration)
        for number in range(2):
            stack.enter_context(long_transactions(scenario.table.url, number))
        with scenario.steps.step("cutover between transactions of 0.5 s that leave no gap"):
            replace(migration, new=scenario.new).cutover()
        with scenario.steps.step("rollback between transactions of 0.5 s that leave no gap"):
            replace(migration, old=scenario.old).rollback()


@contextmanager
def long_transactions(url: str, number: int) -> Iterator[None]:
    ending, key = threading.Event(), -1 - number

    def write() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("INSERT INTO docs (id, body) VALUES (%s, 'written all the time')", [key])
            while not ending.is_set():
                with connection.transaction():
                    connection.execute("UPDATE docs SET body = body || '.' WHERE id = %s", [key])
                    time.sleep(0.5)
            connection.execute("DELETE FROM docs WHERE id = %s", [key])

    thread = threading.Thread(target=write)
    thread.start()
    yield
    ending.set()
    thread.join()


def beside_an_autovacuum(scenario: Scenario) -> None:
    with scenario.following() as migration, psycopg.connect(scenario.table.url, autocommit=True) as connection:
        scenario.verified(migration)
        connection.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute(
            "ALTER TABLE docs SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,"
            " autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)"
        )
        for name, verb in (("cutover", migration.cutover), ("rollback", migration.rollback)):
            await_autovacuum(connection)
            with scenario.steps.step(f"{name} while an autovacuum is at work"):
                verb()
        connection.execute("ALTER SYSTEM RESET autovacuum_naptime")
        connection.execute("SELECT pg_reload_conf()")


def await_autovacuum(connection: psycopg.Connection) -> None:
    query = (
        "SELECT count(*) FROM pg_stat_activity a JOIN pg_locks l USING (pid) WHERE l.relation = 'docs'::regclass"
        " AND a.backend_type = 'autovacuum worker' AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted"
    )
    while connection.execute(query).fetchone() == (0,):
        time.sleep(0.05)


def stopped_and_killed(scenario: Scenario) -> None:
    """In processes of their own, by the points at which `tests.migrate.crashing` can be stopped."""
    with Mother() as mother:
        job = {"store": "pgvector", "where": scenario.table.url, "folder": scenario.folder, "rows_per_range": 256}

        def until_stopped(name: str, point: str, **more: object) -> Job:
            stopped = mother.begin(**job, **more, point=point, signal="SIGSTOP")
            stopped.wait_until_stopped()
            with scenario.steps.step(name):
                time.sleep(STOPPED_S)
            return stopped

        stopped = until_stopped("a run is stopped inside its transaction", "in write new 3", do="start_again")
        end(stopped)
        assert mother.run(**job, do="start_again") == "done"
        with scenario.store() as store:
            scenario.verified(Migration(store, options=scenario.options))
        end(until_stopped("a switch is stopped inside its transaction", "after serve", do="switch_once"))
        with scenario.steps.step("a switch is killed inside its transaction"):
            killed = mother.begin(**job, do="switch_once", point="after serve")
            assert killed.wait() == "killed"
            time.sleep(STILL_S)


def end(stopped: Job) -> None:
    stopped.send(SIGKILL)
    stopped.send(SIGCONT)
    assert stopped.wait() == "killed"


if __name__ == "__main__":
    main()
