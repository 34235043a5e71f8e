"""What a migration costs those who write meanwhile: microseconds an UPDATE, and transactions that are refused.

    python -m bench.writers [--rows 20000] [--runs 5] [--json FILE]

Starts a PostgreSQL of its own. A table of texts of about 300 characters, vector(384), and the columns of a migration
with vector(1024) beside them, without an index on the vectors; no model is used.

1. The capture: all rows are updated in one statement, with and without the triggers, by turns: a column that is not
   followed, the text, the vector that serves. What is printed is the median difference a row.
2. The backfill: two writers change random rows while every row is written once, in transactions of so many rows.
   One takes its row with FOR UPDATE NOWAIT; one reads it and writes it 2 ms later, in REPEATABLE READ. Counted are the
   transactions that were refused, of all that ran meanwhile. A row is written once in a backfill, and whoever has a
   snapshot from before that and then writes it is refused, however the rows are grouped.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psycopg
from pgvector.psycopg import register_vector

from bench.applier import NEW_DIMENSION, make_docs, text_of, unit_vectors
from vecferry.demo.database import running_database
from vecferry.embeddings import TextVectors
from vecferry.encode.runtime.host import machine
from vecferry.migrate import MigrationOptions
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.values import NewVector, Patience, Side, text_digest

OLD_DIMENSION = 384
UPDATES = {
    "another column": "UPDATE docs SET views = views + 1",
    "the text": "UPDATE docs SET body = body || '.'",
    "the vector that serves": "UPDATE docs SET embedding = embedding * '{minus}'",
}
ROWS_PER_RANGE = MigrationOptions.rows_per_range
ROWS_PER_WRITE = (ROWS_PER_RANGE, MigrationOptions.rows_per_write, 16)


@dataclass(frozen=True)
class CaptureCost:
    """Microseconds a row, medians."""

    update: str
    without: float
    captured: float


@dataclass(frozen=True)
class Refusals:
    """Transactions of a writer during a backfill."""

    rows_per_write: int
    kind: str
    refused: int
    transactions: int
    rows_per_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with running_database() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        register_vector(connection)
        costs = capture_costs(url, connection, args.rows // 4, args.runs)
        refusals = [
            refusal
            for rows_per_write in ROWS_PER_WRITE
            for refusal in refused_beside_a_backfill(url, connection, args.rows, rows_per_write)
        ]
    for cost in costs:
        print(
            f"UPDATE of {cost.update:<24} {cost.without:6.1f} us a row, captured {cost.captured - cost.without:+6.1f}"
        )
    for refusal in refusals:
        share = 100 * refusal.refused / max(refusal.transactions, 1)
        print(
            f"{refusal.rows_per_write:>4} rows a write, {refusal.rows_per_s:>7,.0f} rows/s; {refusal.kind:<16}"
            f" {refusal.refused:>4} of {refusal.transactions:>6} refused, {share:.2f} %"
        )
    if args.json:
        report = {
            "machine": machine(),
            "rows": args.rows,
            "capture": [asdict(cost) for cost in costs],
            "refusals": [asdict(refusal) for refusal in refusals],
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def make_table(connection: psycopg.Connection, rows: int) -> None:
    make_docs(connection, [text_of(i) for i in range(rows)], unit_vectors(rows, OLD_DIMENSION))
    connection.execute("ALTER TABLE docs ADD views integer NOT NULL DEFAULT 0")


@contextmanager
def prepared(url: str) -> Iterator[PgVectorStore]:
    """A migration that has begun: columns and triggers."""
    with PgVectorStore.connect(url, "docs", "body", "embedding") as store:
        store.ledger.install()
        store.exclusively(lambda: store.prepare(NEW_DIMENSION, "bench"), Patience())
        store.start_capture(Patience())
        yield store


# --- the capture ----------------------------------------------------------------------------------


def capture_costs(url: str, connection: psycopg.Connection, rows: int, runs: int) -> list[CaptureCost]:
    make_table(connection, rows)
    seconds: dict[tuple[str, bool], list[float]] = {}
    with prepared(url) as store:
        write_all(store, rows, ROWS_PER_WRITE[0])
        for _ in range(runs):
            for captured in (False, True):
                connection.execute(f"ALTER TABLE docs {'ENABLE' if captured else 'DISABLE'} TRIGGER USER")
                for name, statement in UPDATES.items():
                    connection.execute("VACUUM docs")
                    minus = "[" + ",".join(["-1"] * OLD_DIMENSION) + "]"
                    began = time.perf_counter()
                    connection.execute(statement.replace("{minus}", minus))
                    seconds.setdefault((name, captured), []).append(time.perf_counter() - began)
    each = {key: 1e6 * median(values) / rows for key, values in seconds.items()}
    return [CaptureCost(name, each[name, False], each[name, True]) for name in UPDATES]


def write_all(store: PgVectorStore, rows: int, rows_per_write: int) -> None:
    """Every row once."""
    vectors = unit_vectors(rows, NEW_DIMENSION)
    for first in range(0, rows, rows_per_write):
        part = range(first, min(first + rows_per_write, rows))
        store.write(Side.NEW, [NewVector((str(i),), text_digest(text_of(i)), TextVectors(vectors[i])) for i in part])


# --- the backfill ---------------------------------------------------------------------------------


def refused_beside_a_backfill(
    url: str, connection: psycopg.Connection, rows: int, rows_per_write: int
) -> list[Refusals]:
    make_table(connection, rows)
    vectors = unit_vectors(rows, NEW_DIMENSION)
    made = [NewVector((str(i),), text_digest(text_of(i)), TextVectors(vectors[i])) for i in range(rows)]
    writers = {"FOR UPDATE NOWAIT": take_at_once, "REPEATABLE READ": take_later}
    with prepared(url) as store, store.runner(60):
        ending = threading.Event()
        running = {kind: Writer(url, rows, transaction, ending) for kind, transaction in writers.items()}
        for writer in running.values():
            writer.start()
        began = time.perf_counter()
        for first in range(0, rows, ROWS_PER_RANGE):
            step = ROWS_PER_RANGE // rows_per_write  # a transaction is spread over its range, as a run does it
            for part in range(step):
                store.write(Side.NEW, made[first : first + ROWS_PER_RANGE][part::step])
        took = time.perf_counter() - began
        ending.set()
        for writer in running.values():
            writer.join()
    return [
        Refusals(rows_per_write, kind, writer.refused, writer.transactions, rows / took)
        for kind, writer in running.items()
    ]


class Writer(threading.Thread):
    """One transaction after the other, 1 ms apart."""

    def __init__(
        self, url: str, rows: int, transaction: Callable[[psycopg.Connection, int], None], ending: threading.Event
    ) -> None:
        super().__init__()
        self.refused = self.transactions = 0
        self._url, self._rows, self._transaction, self._ending = url, rows, transaction, ending

    def run(self) -> None:
        chosen = random.Random(0)
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._ending.wait(0.001):
                self.transactions += 1
                try:
                    with connection.transaction():
                        self._transaction(connection, chosen.randrange(self._rows))
                except (psycopg.errors.LockNotAvailable, psycopg.errors.SerializationFailure):
                    self.refused += 1


def take_at_once(connection: psycopg.Connection, key: int) -> None:
    connection.execute("SELECT FROM docs WHERE id = %s FOR UPDATE NOWAIT", [key])
    connection.execute("UPDATE docs SET views = views + 1 WHERE id = %s", [key])


def take_later(connection: psycopg.Connection, key: int) -> None:
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    connection.execute("SELECT views FROM docs WHERE id = %s", [key])
    time.sleep(0.002)
    connection.execute("UPDATE docs SET views = views + 1 WHERE id = %s", [key])


if __name__ == "__main__":
    main()
