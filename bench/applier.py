"""How fast vectors are written into a live table of PostgreSQL, against COPY of the same vectors.

    python -m bench.applier [--rows 20000] [--runs 3]

Starts a PostgreSQL of its own, with the durability that it has by default. COPY fills a fresh table
of id and vector(1024), in one statement. The store writes the same vectors beside a text of about
300 characters and an old vector(384), row by row guarded by the text's SHA-256, under a lease, with
the capture on, in ranges of 256 that are committed one by one. The two take turns; what is printed
is the median of each and the median of the ratios, pair by pair. No model is used.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import numpy as np
import psycopg
from pgvector.psycopg import register_vector

from vecferry.demo.database import running_database
from vecferry.embeddings import Float32, TextVectors
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.values import NewVector, Patience, Side, text_digest

OLD_DIMENSION, NEW_DIMENSION = 384, 1024
TEXT_CHARACTERS = 300
ROWS_PER_RANGE = 256
LEASE_S = 60
RESULTS = Path("bench/results/applier.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    texts = [text_of(i) for i in range(args.rows)]
    old, new = unit_vectors(args.rows, OLD_DIMENSION), unit_vectors(args.rows, NEW_DIMENSION)
    vectors = [NewVector((str(i),), text_digest(texts[i]), TextVectors(new[i])) for i in range(args.rows)]
    with running_database() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        register_vector(connection)
        repeats = []
        for _ in range(args.runs):
            copied_s = seconds_to_copy(connection, new)
            make_docs(connection, texts, old)
            repeats.append((copied_s, seconds_to_write(url, vectors)))
    figures = {
        "rows": args.rows,
        "copy_rows_per_s": round(median(args.rows / copied for copied, _ in repeats)),
        "write_rows_per_s": round(median(args.rows / written for _, written in repeats)),
        "ratio": round(median(copied / written for copied, written in repeats), 3),
        "turns_s": [[round(copied, 3), round(written, 3)] for copied, written in repeats],
    }
    print(f"{args.rows} rows of vector({NEW_DIMENSION}), median of {args.runs} alternating runs")
    print(f"COPY into a fresh table      {figures['copy_rows_per_s']:>8} rows/s")
    print(f"store.write, {ROWS_PER_RANGE} per commit  {figures['write_rows_per_s']:>8} rows/s")
    print(f"ratio                        {figures['ratio']:>8.2f}")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


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
    with connection.cursor().copy("COPY copied FROM STDIN WITH (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "vector"])
        for i, vector in enumerate(vectors):
            copy.write_row([i, vector])
    return time.perf_counter() - started


def make_docs(connection: psycopg.Connection, texts: list[str], vectors: Float32) -> None:
    connection.execute("DROP TABLE IF EXISTS docs")
    connection.execute("DROP SCHEMA IF EXISTS vecferry CASCADE")
    connection.execute(f"CREATE TABLE docs (id bigint PRIMARY KEY, body text, embedding vector({OLD_DIMENSION}))")
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
