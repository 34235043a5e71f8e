"""What embeds the ranges of a backfill: ranges in, those out that lie durably in the staging.

local.py         in this process, two threads
distributed.py   on workers of a Ray cluster: ray/ is Ray itself, task.py what a worker does, model_distribution.py how
                 the model gets there
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field

from vecferry.migrate.embed import Embedded
from vecferry.options import Checked, Count, From0, Help, Seconds
from vecferry.stores.ledger import RangeRecord
from vecferry.stores.protocol import Store
from vecferry.stores.values import KeyRange, Row, Side


@dataclass(frozen=True, eq=False)
class StagedRange:
    """A range that lies durably in the staging. embedded: what lies there; None where it is to be read from it."""

    number: int
    embedded: Embedded | None = None


class Engine(Protocol):
    """One implementation per place where models run."""

    def run(self, ranges: Sequence[RangeRecord]) -> Generator[StagedRange, None, None]:
        """Yield these ranges, in any order, each once all of it lies durably in the staging.

        A range that is staged already is not done again. To be closed, if it is not taken to its end.
        """


def rows_to_embed(store: Store, keys: KeyRange, limit: int) -> list[Row]:
    """Return the rows of a range that are to be embedded; those that are to lose their vector are left to a sweep."""
    return [row for row in store.outdated(Side.NEW, keys, limit) if row.takes_vector]


def range_name(uid: str, number: int) -> str:
    """Return the name under which a range is staged. uid: of the migration, as in `MigrationSpec`."""
    return f"{uid}-{number:08d}"


Workers = Annotated[Count, Help("processes on Ray that each load the model; `plan` estimates for so many")]


@dataclass(frozen=True)
class RaySettings(Checked):
    """How Ray is used. address: None starts a cluster on this machine and ends it. workers: load the model once a wave.

    cpus_per_worker: None is this machine's CPUs, or the cluster's, shared out evenly. wave: jobs of one Ray Data run.
    stall_s: a wave is given up then, and what is missing of it begun again. Raises SettingsError.
    """

    address: Annotated[
        Annotated[str, Field(min_length=1, description="HOST:PORT, or auto")] | None,
        Help("a Ray cluster that this machine is part of; without it Ray runs here alone"),
    ] = None
    workers: Workers = 1
    cpus_per_worker: Annotated[Count | None, Help("CPUs of each worker; by default they are shared out evenly")] = None
    gpus_per_worker: Annotated[From0, Help("GPUs of each worker; a fraction lets several share one")] = 0.0
    wave: Annotated[Count, Help("ranges handed over at once, for each worker")] = 64
    stall_s: Annotated[
        Seconds, Help("seconds without a range done, after which a wave is begun again; longer than the slowest takes")
    ] = 600.0
    tries: Annotated[Count, Help("tries of a wave of which nothing is done, before it is given up")] = 3

    @property
    def jobs_per_wave(self) -> int:
        return self.wave * self.workers
