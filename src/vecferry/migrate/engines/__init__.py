"""What embeds the ranges of a backfill: ranges in, those out that lie durably in the staging.

local.py         in this process, two threads
distributed.py   on workers of a Ray cluster: ray/ is Ray itself, task.py what a worker does, model_distribution.py how
                 the model gets there
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vecferry.errors import SettingsError
from vecferry.migrate.embed import Embedded
from vecferry.stores.ledger import RangeRecord


@dataclass(frozen=True, eq=False)
class StagedRange:
    """A range that lies durably in the staging. embedded: what lies there; None where it is to be read from it."""

    number: int
    embedded: Embedded | None = None


class Engine(Protocol):
    """One implementation per place where models run."""

    def run(self, ranges: Sequence[RangeRecord]) -> Generator[StagedRange, None, None]:
        """These ranges, in any order, each once all of it lies durably in the staging.

        A range that is staged already is not done again. To be closed, if it is not taken to its end.
        """


def range_name(uid: str, number: int) -> str:
    """Under which a range is staged. uid: of the migration, as in `MigrationSpec`."""
    return f"{uid}-{number:08d}"


@dataclass(frozen=True)
class RaySettings:
    """address: of a cluster; None starts one on this machine and ends it. workers: each loads the model once a wave.

    cpus_per_worker: None is this machine's CPUs, or the cluster's, shared out evenly. wave: jobs of one Ray Data run,
    for each worker. stall_s: without a job done for so long a wave is given up and what is missing of it begun again;
    longer than the slowest range takes. tries: of a wave, without a job done, before it is given up for good.
    """

    address: str | None = None
    workers: int = 1
    cpus_per_worker: int | None = None
    gpus_per_worker: float = 0.0
    wave: int = 64
    stall_s: float = 600.0
    tries: int = 3

    def __post_init__(self) -> None:
        checks = (
            ("workers", self.workers, self.workers >= 1, "1 or more"),
            (
                "cpus_per_worker",
                self.cpus_per_worker,
                self.cpus_per_worker is None or self.cpus_per_worker >= 1,
                "1 or more",
            ),
            ("gpus_per_worker", self.gpus_per_worker, self.gpus_per_worker >= 0, "0 or more"),
            ("wave", self.wave, self.wave >= 1, "1 or more"),
            ("stall_s", self.stall_s, self.stall_s > 0, "more than 0 seconds"),
            ("tries", self.tries, self.tries >= 1, "1 or more"),
        )
        for name, value, is_right, expected in checks:
            if not is_right:
                raise SettingsError(name, value, expected)

    @property
    def jobs_per_wave(self) -> int:
        return self.wave * self.workers
