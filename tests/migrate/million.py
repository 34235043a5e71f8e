"""A million rows through a whole migration, with the truth embedder on workers of Ray.

    python -m tests.migrate.million --rows 1000000 --workers 1

In a PostgreSQL of its own: start on Ray, verify, cutover; then every row is compared with what its text must give.
Prints, as JSON, the seconds of each step, rows a second of `start`, the driver's highest memory after `start` and
before, and how many rows are lost, doubled or not true. Fails if any is.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg

from tests.migrate import live
from tests.migrate.live import NEW, fill, postgres
from tests.migrate.workers import TruthModel
from tests.stores.collections import PgCollection
from vecferry.migrate import Migration
from vecferry.migrate.engines import Engine, RaySettings
from vecferry.migrate.engines.distributed import RayEngine
from vecferry.migrate.staging import Staging
from vecferry.stores.ledger import MigrationRecord
from vecferry.stores.protocol import Store

ROWS_PER_RANGE = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cpus-per-worker", type=int, default=1)
    args = parser.parse_args()
    settings = RaySettings(workers=args.workers, cpus_per_worker=args.cpus_per_worker)
    with (
        tempfile.TemporaryDirectory(prefix="vecferry-million-") as name,
        postgres() as url,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        rows = PgCollection(connection, url)
        figures = go(rows, Path(name), args.rows, settings)
        rows.store.close()
    print(json.dumps(figures, indent=2))
    sys.exit(figures["faults"] != 0)


def go(rows: PgCollection, folder: Path, number: int, settings: RaySettings) -> dict[str, object]:
    model = TruthModel(folder, dimension=NEW.dimension, counts=False, driver=os.getpid())

    def on_ray(store: Store, staging: Staging, record: MigrationRecord) -> Engine:
        return RayEngine(store, NEW, staging, record.spec.uid, ROWS_PER_RANGE, model, settings)

    migration = Migration(rows.store, new=NEW, options=replace(live.options(folder), rows_per_range=ROWS_PER_RANGE))
    seconds = dict[str, float]()

    def timed(name: str, step: Callable[[], object]) -> None:
        began = time.monotonic()
        step()
        seconds[name] = round(time.monotonic() - began, 1)

    timed("fill", lambda: fill(rows.store, number))
    before_mb = peak_mb()
    timed("start", lambda: migration.start(engine=on_ray))
    after_mb = peak_mb()
    timed("verify", lambda: migration.verify(override="no gate in this test"))
    timed("cutover", migration.cutover)
    lost, untrue = number, 0
    for key, text, vector in served(rows):
        lost -= 1
        untrue += text != f"text {key}" or not np.allclose(vector, NEW.truth(text), atol=1e-5)
    return {
        "rows": number,
        "workers": settings.workers,
        "seconds": seconds,
        "start_rows_per_s": round(number / seconds["start"]),
        "driver_peak_mb_before": before_mb,
        "driver_peak_mb": after_mb,
        "lost": lost,
        "untrue": untrue,
        "faults": abs(lost) + untrue,
    }


def served(rows: PgCollection) -> Iterator[tuple[int, str, list[float]]]:
    """Stream all rows; keys are unique by the table."""
    with rows.connection.transaction():
        cursor = rows.connection.cursor("served")
        cursor.execute("SELECT id, body, embedding::real[] FROM docs")
        yield from cursor


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


if __name__ == "__main__":
    main()
