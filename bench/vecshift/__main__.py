"""VecShift beside vecferry: the same table of PostgreSQL moved to another model, there and back.

    python -m venv PEER && PEER/bin/pip install vecshift==0.4.0
    python -m bench.vecshift --peer PEER/bin/vecshift [--rows 20000] [--runs 1] [--only quiet|live] [--json FILE]

Starts a PostgreSQL of its own, with the durability that it has by default, and gives each tool a new database with the
same table in turn: id, text of about 300 characters, a number, a vector(384), an HNSW index. The new vectors have
1,024 numbers. Both ask the same embeddings server, which answers at once, in requests of 64 texts, four at a time; each
verb is a command in a process of its own, whose start counts.

Two scenarios: `quiet`, in which nothing is written, and `live`, in which an application writes 50 times a second with
plain SQL: inserts, changed texts, deletes, changes of another column. It writes the vectors of the model that serves;
it learns of a switch by a refused write. Then: start until it may be switched, cutover, a while with the new vectors,
rollback, a while with the old ones, and the end of all writes. What is counted is in `Figures`.

The two do not do the same work at the same time. vecferry's `start` stays, and keeps the side current that does not
serve; before it is ready, every row is compared with its new vector (`verify_s`, part of `start_s`; the gate is
overridden). VecShift checks the number of dimensions, and leaves what was written last to its cutover; hence the line
that has both. After its switch VecShift clears the old vector of a row whose text changes. Its documentation leaves it
to the application to embed such rows, and new ones, with the old model after a rollback, which says how many there are
(`rollback_reported_missing`). A second job of VecShift, from `embedding_v2` to `embedding` with the old model and
`--no-index`, would fill them; it is not part of this, since its documentation has no such step.

HNSW builds have memory enough for the graph, as VecShift's `plan` asks for; vecferry takes it by itself. Autovacuum is
at work as it is by default, and may fall into any phase: compare several runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psycopg
from psycopg.conninfo import make_conninfo
from rich.console import Console
from rich.table import Table

from bench.vecshift.application import (
    NEW,
    OLD,
    Application,
    DocsTable,
    Kind,
    RowFaults,
    VectorFaults,
    WriteLog,
    row_faults,
    vector_faults,
)
from bench.vecshift.embeddings import embeddings_server
from bench.vecshift.tools import Job, Ours, Peer, Tool
from vecferry.demo.database import running_database
from vecferry.encode.runtime.host import machine

SCENARIOS = ("quiet", "live")
PEER, OURS = "VecShift", "vecferry"
BEFORE_S, OLD_AGAIN_S = 1.0, 3.0
"""Writes go on for so long before the start, and after the rollback."""


@dataclass(frozen=True)
class Figures:
    """Of one tool in one run.

    start_s: until it may be switched, with everything it needs for that. longest_ms, p99_ms: of the writes that were
    under way in each phase. texts_written_serving_new: inserts and changed texts between the switch and the rollback.
    new_vectors: before the rollback; old_vectors and table_rows: at the end. attempts: calls of each verb, more than
    one where it was refused; refusals: what it said. details: what the tool alone says.
    """

    tool: str
    scenario: str
    start_s: float
    cutover_s: float
    rollback_s: float
    longest_ms: dict[str, float]
    p99_ms: dict[str, float]
    writes: int
    texts_written_serving_new: int
    failed_writes: list[str]
    model_changes: int
    new_vectors: VectorFaults
    old_vectors: VectorFaults
    table_rows: RowFaults
    attempts: dict[str, int]
    refusals: list[str]
    details: dict[str, Any]


class Phases:
    """When each began and ended, by `time.monotonic`."""

    def __init__(self) -> None:
        self.intervals: dict[str, tuple[float, float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.intervals[name] = (began, time.monotonic())

    def seconds(self, name: str) -> float:
        began, ended = self.intervals[name]
        return round(ended - began, 2)

    def slowest(self, log: WriteLog, percent: float) -> dict[str, float]:
        """Milliseconds of that percentile of the writes of each phase that has any."""
        times = {name: [write.ms for write in log.during(*interval)] for name, interval in self.intervals.items()}
        return {name: round(float(np.percentile(ms, percent)), 1) for name, ms in times.items() if ms}


def migrate(name: str, tool: Tool, table: DocsTable, scenario: str, args: argparse.Namespace) -> Figures:
    """There and back, with the application at work throughout in `live`."""
    phases, log = Phases(), WriteLog(table.initial_rows())
    with ExitStack() as stack:
        application = Application(table, args.writes_per_s) if scenario == "live" else None
        if application is not None:
            stack.enter_context(application.running())
            time.sleep(BEFORE_S)
        with phases.phase("start"):
            tool.start()
        with phases.phase("cutover"):
            tool.cutover()
        with phases.phase("serving new"):
            time.sleep(args.serving_s)
            new_vectors = vector_faults(table, NEW)
        with phases.phase("rollback"):
            tool.rollback()
        if application is not None:
            time.sleep(OLD_AGAIN_S)
            log = application.stop()
    tool.settle()
    serving_new = log.during(*phases.intervals["serving new"])
    return Figures(
        tool=name,
        scenario=scenario,
        start_s=phases.seconds("start"),
        cutover_s=phases.seconds("cutover"),
        rollback_s=phases.seconds("rollback"),
        longest_ms=phases.slowest(log, 100),
        p99_ms=phases.slowest(log, 99),
        writes=len(log.writes),
        texts_written_serving_new=sum(write.kind in (Kind.INSERT, Kind.TEXT) for write in serving_new),
        failed_writes=log.failures,
        model_changes=log.model_changes,
        new_vectors=new_vectors,
        old_vectors=vector_faults(table, OLD),
        table_rows=row_faults(table, log.rows),
        attempts=dict(tool.commands.attempts),
        refusals=tool.commands.refusals,
        details=tool.details(),
    )


@contextmanager
def new_database(server_url: str, name: str) -> Iterator[str]:
    """Yields its URL; it is dropped afterwards."""
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            yield make_conninfo(server_url, dbname=name)
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def run_tool(name: str, scenario: str, args: argparse.Namespace, postgres: str, embeddings: str) -> Figures:
    with tempfile.TemporaryDirectory(prefix="vecferry-bench-") as folder, new_database(postgres, "bench") as url:
        dimensions = {OLD: args.old_dimension, NEW: args.new_dimension}
        table = DocsTable(url, args.rows, dimensions)
        table.create()
        job = Job(url, folder, embeddings, dimensions)
        with closing(Peer(args.peer, job) if name == PEER else Ours(job)) as tool:
            return migrate(name, tool, table, scenario, args)


# --- what is shown --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line of the table. value: None where there is none. across: what is made of the values of several runs."""

    label: str
    value: Callable[[Figures], float | None]
    across: Callable[[Sequence[float]], float] = max
    unit: str = ""

    def text(self, runs: Sequence[Figures]) -> str:
        values = [value for figures in runs if (value := self.value(figures)) is not None]
        return f"{self.across(values):,.{1 if self.unit == 's' else 0}f} {self.unit}".strip() if values else ""


def longest(phase: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.longest_ms.get(phase)


def if_written(count: Callable[[Figures], int]) -> Callable[[Figures], float | None]:
    return lambda figures: count(figures) if figures.writes else None


LINES = (
    Line("start until ready to switch", lambda figures: figures.start_s, median, "s"),
    Line("cutover", lambda figures: figures.cutover_s, median, "s"),
    Line("both together", lambda figures: figures.start_s + figures.cutover_s, median, "s"),
    Line("rollback", lambda figures: figures.rollback_s, median, "s"),
    Line("longest write until ready", longest("start"), unit="ms"),
    Line("longest write during cutover", longest("cutover"), unit="ms"),
    Line("longest write during rollback", longest("rollback"), unit="ms"),
    Line("writes", if_written(lambda figures: figures.writes), min),
    Line("writes that failed", if_written(lambda figures: len(figures.failed_writes))),
    Line("texts written between cutover and rollback", if_written(lambda figures: figures.texts_written_serving_new)),
    Line("before the rollback, rows without a new vector", lambda figures: figures.new_vectors.missing),
    Line("before the rollback, rows with a wrong new vector", lambda figures: figures.new_vectors.wrong),
    Line("at the end, rows without an old vector", lambda figures: figures.old_vectors.missing),
    Line("at the end, rows with a wrong old vector", lambda figures: figures.old_vectors.wrong),
    Line("at the end, rows lost, back again or changed", lambda figures: sum(asdict(figures.table_rows).values())),
    Line("commands that had to be repeated", lambda figures: len(figures.refusals)),
)


def show(console: Console, scenario: str, runs: Sequence[Figures]) -> None:
    sides = [[figures for figures in runs if figures.tool == name] for name in (PEER, OURS)]
    title = f"{scenario}; of {len(sides[0])} runs the median of seconds, and the most of all else"
    table = Table("", PEER, OURS, title=title)
    for line in LINES:
        texts = [line.text(side) for side in sides]
        if any(texts):
            table.add_row(line.label, *texts)
    console.print(table)


def main() -> None:
    args = _arguments()
    console, runs = Console(), list[Figures]()
    with running_database() as postgres, embeddings_server() as embeddings:
        _set_build_memory(postgres, args.build_memory)
        for scenario, _, name in product(args.only or SCENARIOS, range(args.runs), (PEER, OURS)):
            runs.append(run_tool(name, scenario, args, postgres, embeddings))
            console.print_json(data=asdict(runs[-1]), indent=None)
    for scenario in args.only or SCENARIOS:
        show(console, scenario, [figures for figures in runs if figures.scenario == scenario])
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name not in ("peer", "json")}
        report = {"machine": machine(), "settings": settings, "runs": [asdict(figures) for figures in runs]}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _set_build_memory(postgres: str, memory: str) -> None:
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"ALTER SYSTEM SET maintenance_work_mem = '{memory}'")
        admin.execute("SELECT pg_reload_conf()")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="the vecshift command of an environment of its own")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=1, help="of each tool, by turns")
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="one scenario")
    parser.add_argument("--writes-per-s", type=float, default=50.0)
    parser.add_argument("--serving-s", type=float, default=10.0, help="how long the new vectors serve")
    parser.add_argument("--old-dimension", type=int, default=384)
    parser.add_argument("--new-dimension", type=int, default=1024)
    parser.add_argument("--build-memory", default="256MB", help="maintenance_work_mem of the server")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.old_dimension == args.new_dimension:
        parser.error("the dimensions must differ: by them the application learns of a switch")
    return args


if __name__ == "__main__":
    main()
