"""How long a switch takes in the layout `side-table`, in which the server writes the table anew.

    python -m bench.side_table [--rows 10000] [--hnsw | --part] [--json FILE]

Starts a PostgreSQL of its own. The table has texts of 1,000 characters, vector(384) and, with --hnsw, an index on the
vectors; the side table gets as many vector(1024). All are random directions. Shown are the pause of the switch and of
the one back, the bytes before and after, and what `plan` foretells. With --part as many rows again are of others, and
the rows are a part (`[store] where`), whose vectors are exchanged while the others can be read and written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psycopg

from bench.pauses import database
from vecferry.demo.database import running_database
from vecferry.encode.runtime.host import machine
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.pgvector.table import SCHEMA
from vecferry.stores.values import Layout, Patience, Side

OLD, NEW = 384, 1024
CHARACTERS = 1000
CHECKSUM = "sha256(sha256(convert_to(body, 'UTF8')) || vector_send({}.embedding))"
PATIENCE = Patience(3600.0)


@dataclass(frozen=True)
class Switched:
    """A switch. foretold_s: as `plan` has it; bytes: of the table with its indexes, before it."""

    to: str
    pause_s: float
    foretold_s: float
    bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--hnsw", action="store_true")
    parser.add_argument("--part", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with running_database() as server, database(server, "side_table") as url:
        switches = measured(url, args.rows, hnsw=args.hnsw, where="id >= 0" if args.part else None)
    for each in switches:
        print(f"{each.to:<4} {each.pause_s:>8.1f} s, foretold {each.foretold_s:.1f} s, {each.bytes / 2**20:.0f} MiB")
    if args.json:
        report = {"machine": machine(), "rows": args.rows, "hnsw": args.hnsw, "switches": list(map(asdict, switches))}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measured(url: str, rows: int, *, hnsw: bool, where: str | None) -> list[Switched]:
    layout = Layout.SIDE_TABLE
    with psycopg.connect(url, autocommit=True) as connection:
        fill(connection, rows, hnsw=hnsw)
        if where is not None:
            connection.execute("ALTER TABLE docs ALTER embedding TYPE vector")
            connection.execute("INSERT INTO docs SELECT -1 - id, body, embedding FROM docs")
        with PgVectorStore.connect(url, "docs", "body", "embedding", where=where, layout=layout) as store:
            store.exclusively(lambda: store.prepare(NEW, "space-new"), PATIENCE)
            fill_beside(connection, rows)
            return [switched(connection, store, *way) for way in ((Side.NEW, NEW), (Side.OLD, OLD))]


def switched(connection: psycopg.Connection, store: PgVectorStore, to: Side, dimension: int) -> Switched:
    (size,) = connection.execute("SELECT pg_total_relation_size('docs')").fetchone() or (0,)
    foretold_s = store.switch_s(dimension)
    return Switched(to.value, store.exclusively(lambda: store.switch(to), PATIENCE).pause_s, foretold_s, size)


def fill(connection: psycopg.Connection, rows: int, *, hnsw: bool) -> None:
    connection.execute("CREATE EXTENSION vector")
    connection.execute("CREATE TABLE docs (id bigint PRIMARY KEY, body text NOT NULL, embedding vector(384) NOT NULL)")
    random = np.random.default_rng(0)
    with connection.cursor().copy("COPY docs FROM STDIN") as copy:
        for number, vector in enumerate(vectors(rows, OLD)):
            copy.write_row((number, random.bytes(CHARACTERS // 2).hex(), vector))
    if hnsw:
        connection.execute("SET maintenance_work_mem = '2GB'; SET max_parallel_maintenance_workers = 0")
        connection.execute("CREATE INDEX ON docs USING hnsw (embedding vector_cosine_ops)")


def fill_beside(connection: psycopg.Connection, rows: int) -> None:
    (sides,) = connection.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'sides%'").fetchone() or ("",)
    connection.execute("CREATE TEMPORARY TABLE new (id bigint, embedding vector(1024))")
    with connection.cursor().copy("COPY new FROM STDIN") as copy:
        for number, vector in enumerate(vectors(rows, NEW)):
            copy.write_row((number, vector))
    connection.execute(
        f"INSERT INTO {SCHEMA}.{sides} (key_1, embedding, embedding_vecferry_new, embedding_vecferry_old_sha256,"
        f" embedding_vecferry_new_sha256) SELECT id, docs.embedding, new.embedding, {CHECKSUM.format('docs')},"
        f" {CHECKSUM.format('new')} FROM docs JOIN new USING (id)"
    )
    connection.execute("DROP TABLE new")
    connection.execute(f"VACUUM ANALYZE {SCHEMA}.{sides}")


def vectors(rows: int, dimension: int) -> Iterator[str]:
    random = np.random.default_rng(dimension)
    for _ in range(rows):
        vector = random.standard_normal(dimension)
        yield "[" + ",".join(np.char.mod("%.6f", vector / np.linalg.norm(vector))) + "]"


if __name__ == "__main__":
    main()
