"""How fast vectors are written into a live table of PostgreSQL, and how much of what the server can do that is.

    python -m bench.applier [--rows 20000] [--runs 3]

Starts a PostgreSQL of its own, with the durability that it has by default. The store writes vector(1024) beside a text
of about 300 characters and an old vector(384), row by row guarded by the text's SHA-256, under a lease, with the
capture on, in ranges of 256 that are committed one by one. What takes turns with it:

- `copy`: COPY of the same vectors into a fresh table of id and vector, in one statement.
- `update`: UPDATE of the same column to the same bytes by the key, in the same transactions and statements, without
  anything of ours: no checksum, no guard, no capture, no lease. It is the ceiling of who writes row versions and may be
  stopped at any time.
- `update-once`: the same in one transaction.
- `staged`: COPY into an unlogged table, then one UPDATE out of it.
- `store-fillfactor`, `update-fillfactor`: the same as `store` and `update`, on a table with `fillfactor = 45`, whose
  pages have room for the new version of each row.

What is printed is the median of each, and the medians of the ratios turn by turn. No model is used.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import psycopg
from pgvector.psycopg import register_vector

from bench.interleaved import ratio
from vecferry.demo.database import running_database
from vecferry.embeddings import Float32, TextVectors
from vecferry.encode.runtime.host import machine
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.pgvector.binary import Binary, BinaryDumper, array, vector_bytes
from vecferry.stores.pgvector.writing import ROWS_PER_STATEMENT
from vecferry.stores.values import NewVector, Patience, Side, text_digest

OLD_DIMENSION, NEW_DIMENSION = 384, 1024
TEXT_CHARACTERS = 300
ROWS_PER_RANGE = 256
LEASE_S = 60
FILLFACTOR = 45
RESULTS = Path("bench/results/applier.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with running_database() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        register_vector(connection)
        contenders = Contenders(url, connection, args.rows).all()
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(args.runs):
            for name, run in contenders.items():
                seconds[name].append(run())
    figures = {
        "machine": machine(),
        "rows": args.rows,
        "rows_per_s": {name: round(args.rows / median(took)) for name, took in seconds.items()},
        "store_over": {
            name: round(ratio(seconds, name, "store"), 3) for name in seconds if not name.startswith("store")
        },
        "turns_s": {name: [round(took, 3) for took in all_took] for name, all_took in seconds.items()},
    }
    print(f"{args.rows} rows of vector({NEW_DIMENSION}), medians of {args.runs} turns")
    for name, rate in figures["rows_per_s"].items():
        print(f"{name:18} {rate:>7} rows/s   store: {figures['store_over'].get(name, '')}")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


class Contenders:
    """Ways to write the same vectors; each makes its table anew and returns the seconds of writing alone."""

    def __init__(self, url: str, connection: psycopg.Connection, rows: int) -> None:
        self.url, self.connection, self.rows = url, connection, rows
        self.texts = [text_of(i) for i in range(rows)]
        self.old, self.new = unit_vectors(rows, OLD_DIMENSION), unit_vectors(rows, NEW_DIMENSION)

    def all(self) -> dict[str, Callable[[], float]]:
        return {
            "copy": lambda: seconds_to_copy(self.connection, self.new),
            "store": self.store,
            "update": self.update,
            "update-once": lambda: self.update(rows_per_commit=self.rows),
            "staged": self.staged,
            "store-fillfactor": lambda: self.store(FILLFACTOR),
            "update-fillfactor": lambda: self.update(FILLFACTOR),
        }

    def store(self, fillfactor: int = 100) -> float:
        make_docs(self.connection, self.texts, self.old, fillfactor)
        vectors = [
            NewVector((str(i),), text_digest(text), TextVectors(self.new[i])) for i, text in enumerate(self.texts)
        ]
        return seconds_to_write(self.url, vectors)

    def update(self, fillfactor: int = 100, rows_per_commit: int = ROWS_PER_RANGE) -> float:
        self._make_columns(fillfactor)
        query = (
            "UPDATE docs SET embedding_new = given.vector"
            " FROM unnest(%s::bigint[], %s::vector[]) AS given (id, vector) WHERE docs.id = given.id"
        )
        kind = self.connection.execute("SELECT 'vector'::regtype::oid").fetchone()
        assert kind is not None
        self.connection.adapters.register_dumper(Binary, BinaryDumper)

        def sent(first: int, end: int) -> tuple[list[int], Binary]:
            numbers = range(first, min(first + ROWS_PER_STATEMENT, end))
            return list(numbers), array(kind[0], [vector_bytes(self.new[i], "vector") for i in numbers])

        started = time.perf_counter()
        for first in range(0, self.rows, rows_per_commit):
            end = min(first + rows_per_commit, self.rows)
            with self.connection.transaction(), self.connection.cursor() as cursor:
                cursor.executemany(query, (sent(at, end) for at in range(first, end, ROWS_PER_STATEMENT)))
        return time.perf_counter() - started

    def staged(self) -> float:
        self._make_columns()
        self.connection.execute("DROP TABLE IF EXISTS staged")
        self.connection.execute(f"CREATE UNLOGGED TABLE staged (id bigint, embedding vector({NEW_DIMENSION}))")
        started = time.perf_counter()
        copy_vectors(self.connection, "staged", self.new)
        self.connection.execute("UPDATE docs SET embedding_new = s.embedding FROM staged AS s WHERE docs.id = s.id")
        return time.perf_counter() - started

    def _make_columns(self, fillfactor: int = 100) -> None:
        make_docs(self.connection, self.texts, self.old, fillfactor)
        self.connection.execute(f"ALTER TABLE docs ADD embedding_new vector({NEW_DIMENSION})")


def text_of(number: int) -> str:
    chosen = np.random.default_rng(number).choice(["harbour", "ferry", "tide", "vector", "north", "lamp"], 60)
    return f"{number}: {' '.join(chosen)}"[:TEXT_CHARACTERS]


def unit_vectors(rows: int, dimension: int) -> Float32:
    vectors = np.random.default_rng(dimension).standard_normal((rows, dimension), dtype=np.float32)
    unit: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def seconds_to_copy(connection: psycopg.Connection, vectors: Float32) -> float:
    connection.execute("DROP TABLE IF EXISTS copied")
    connection.execute(f"CREATE TABLE copied (id bigint PRIMARY KEY, embedding vector({NEW_DIMENSION}))")
    connection.execute("CHECKPOINT")
    started = time.perf_counter()
    copy_vectors(connection, "copied", vectors)
    return time.perf_counter() - started


def copy_vectors(connection: psycopg.Connection, table: str, vectors: Float32) -> None:
    with connection.cursor().copy(f"COPY {table} FROM STDIN WITH (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "vector"])
        for i, vector in enumerate(vectors):
            copy.write_row([i, vector])


def make_docs(connection: psycopg.Connection, texts: list[str], vectors: Float32, fillfactor: int = 100) -> None:
    connection.execute("DROP TABLE IF EXISTS docs")
    connection.execute("DROP SCHEMA IF EXISTS vecferry CASCADE")
    connection.execute(
        f"CREATE TABLE docs (id bigint PRIMARY KEY, body text, embedding vector({OLD_DIMENSION}))"
        f" WITH (fillfactor = {fillfactor})"
    )
    with connection.cursor().copy("COPY docs FROM STDIN WITH (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "text", "vector"])
        for i, (text, vector) in enumerate(zip(texts, vectors, strict=True)):
            copy.write_row([i, text, vector])
    connection.execute("CHECKPOINT")


def seconds_to_write(url: str, vectors: list[NewVector]) -> float:
    with PgVectorStore.connect(url, "docs", "body", "embedding") as store:
        store.ledger.install()
        store.exclusively(lambda: store.prepare(NEW_DIMENSION, "bench"), Patience())
        store.start_capture(Patience())
        with store.runner(LEASE_S):
            started = time.perf_counter()
            written = 0
            for start in range(0, len(vectors), ROWS_PER_RANGE):
                written += len(store.write(Side.NEW, vectors[start : start + ROWS_PER_RANGE]))
            took = time.perf_counter() - started
    assert written == len(vectors)
    return took


if __name__ == "__main__":
    main()
