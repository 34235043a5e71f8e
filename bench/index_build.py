"""How long PostgreSQL takes for an HNSW index on vectors of 1,024 numbers, as vector and as halfvec.

    python -m bench.index_build [--rows 25000,50000,100000] [--memory 4GB] [--json FILE]

Starts a PostgreSQL of its own. The vectors are random directions, in an unlogged table, and the index is built with
pgvector's defaults (m 16, ef_construction 64), by one process, in memory alone if `--memory` suffices for it. What
counts are the processor's seconds, which others on the machine hardly change. Beside them stand the clock's, the
exponent of their growth from one size to the next, and the size of the index.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import psycopg

from bench.pauses import database
from vecferry.demo.database import running_database
from vecferry.encode.runtime.host import machine

DIMENSION = 1024
KINDS = ("vector", "halfvec")


@dataclass(frozen=True)
class Build:
    kind: str
    rows: int
    cpu_s: float
    seconds: float
    index_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="25000,50000,100000")
    parser.add_argument("--memory", default="4GB", help="maintenance_work_mem")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    builds = list[Build]()
    with running_database() as server, database(server, "index_build") as url:
        for build in built(url, [int(rows) for rows in args.rows.split(",")], args.memory):
            builds.append(build)
            print(
                f"{build.kind:<8} {build.rows:>8} rows {build.cpu_s:>8.1f} s {build.index_bytes / 1e6:.0f} MB",
                flush=True,
            )
    report = {
        "machine": machine(),
        "memory": args.memory,
        "builds": [asdict(build) for build in builds],
        "growth": {kind: growth([build for build in builds if build.kind == kind]) for kind in KINDS},
    }
    print(json.dumps(report["growth"]))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def built(url: str, sizes: list[int], memory: str) -> Iterator[Build]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute(f"SET maintenance_work_mem = '{memory}'")
        connection.execute("SET max_parallel_maintenance_workers = 0")
        for rows in sizes:
            for kind in KINDS:
                yield build(connection, kind, rows)


def build(connection: psycopg.Connection, kind: str, rows: int) -> Build:
    connection.execute("DROP TABLE IF EXISTS vectors")
    connection.execute(f"CREATE UNLOGGED TABLE vectors (embedding {kind}({DIMENSION}) NOT NULL)")
    random = np.random.default_rng(0)
    with connection.cursor().copy("COPY vectors FROM STDIN WITH (FORMAT BINARY)") as copy:
        for at in range(0, rows, 1000):
            for vector in random.standard_normal((min(1000, rows - at), DIMENSION), np.float32):
                copy.write_row((packed(vector, kind),))
    pid = connection.info.backend_pid
    started, before = time.perf_counter(), cpu_s(pid)
    connection.execute(f"CREATE INDEX vectors_hnsw ON vectors USING hnsw (embedding {kind}_cosine_ops)")
    seconds = time.perf_counter() - started
    (size,) = connection.execute("SELECT pg_relation_size('vectors_hnsw')").fetchone() or (0,)
    return Build(kind, rows, round(cpu_s(pid) - before, 1), round(seconds, 1), size)


def cpu_s(pid: int) -> float:
    """Return the seconds of a processor that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def packed(vector: np.ndarray, kind: str) -> bytes:
    """Return a vector as pgvector's types are sent: how many numbers, nothing, and the numbers, big-endian."""
    numbers = vector.astype(">f4" if kind == "vector" else ">f2")
    return len(vector).to_bytes(2, "big") + bytes(2) + numbers.tobytes()


def growth(builds: list[Build]) -> list[float]:
    """Return p of cpu_s = rows ** p, from each size to the next."""
    return [round(math.log(b.cpu_s / a.cpu_s) / math.log(b.rows / a.rows), 2) for a, b in pairwise(builds)]


if __name__ == "__main__":
    main()
