"""What goes into a migration and what its verbs return; all of it ready for JSON with `to_dict`."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vecferry.embeddings import DENSE, Outputs, Value
from vecferry.errors import SettingsError
from vecferry.migrate.states import State
from vecferry.stores.ledger import Control, DeadLetter, Event, Serving
from vecferry.stores.values import Patience, TableInfo


@dataclass(frozen=True)
class MigrationOptions:
    """rows_per_range: rows that are read, encoded and kept together; what a kill repeats at most.

    old_fingerprint: the space of the vectors there are, if known; then a search in another is refused
    before the switch too. outputs: heads of the new side; dense always. staging: where encoded vectors
    wait for their place. patience: how long the short steps wait for a moment without others, and how long
    others may wait for these; `rollback` is surer. rows_per_write: rows that are written in one transaction,
    and so locked together. lease_s: after this time without a sign of life a runner may be replaced.
    reconnect_s: how long a run waits for a store that went away. wait_for_writers_s: and for rows that others
    are writing, when nothing else is left to be done; then they are left for the next look. rows_per_s: the
    limit that a migration begins with; `throttle` changes it.
    max_query_ms and min_free_gb: a run pauses itself while a query takes longer, or less is free at
    `staging`. min_recall: of the new index, against exact search. thresholds: the application's cut-offs
    in the old space, cosines by name; they stand in the serving epoch that `start` records.
    """

    rows_per_range: int = 256
    old_fingerprint: str | None = None
    outputs: Outputs = DENSE
    staging: Path = Path(".vecferry/staging")
    patience: Patience = field(default_factory=Patience)
    rows_per_write: int = 64
    lease_s: float = 15.0
    reconnect_s: float = 60.0
    wait_for_writers_s: float = 10.0
    rows_per_s: float | None = None
    max_query_ms: float | None = None
    min_free_gb: float | None = None
    min_recall: float = 0.9
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, Any, bool, str], ...] = (
            ("rows_per_range", self.rows_per_range, self.rows_per_range >= 1, "1 or more"),
            ("outputs", ",".join(self.outputs.names), Outputs.DENSE in self.outputs, "dense, and others"),
            ("max_pause_s", self.patience.max_pause_s, self.patience.max_pause_s > 0, "more than 0 seconds"),
            ("rows_per_write", self.rows_per_write, self.rows_per_write >= 1, "1 or more"),
            ("lease_s", self.lease_s, self.lease_s > 0, "more than 0 seconds"),
            ("rows_per_s", self.rows_per_s, self.rows_per_s is None or self.rows_per_s > 0, "more than 0"),
            ("max_query_ms", self.max_query_ms, self.max_query_ms is None or self.max_query_ms > 0, "more than 0"),
            ("min_free_gb", self.min_free_gb, self.min_free_gb is None or self.min_free_gb >= 0, "0 or more"),
            ("min_recall", self.min_recall, 0 <= self.min_recall <= 1, "0 to 1"),
            *((f"thresholds {name}", t, -1 <= t <= 1, "a cosine, -1 to 1") for name, t in self.thresholds.items()),
        )
        for name, value, is_right, expected in checks:
            if not is_right:
                raise SettingsError(name, value, expected)


@dataclass(frozen=True)
class Resources:
    """What an estimate is for. workers: each as fast as the process that plans. write_rows_per_s: what the store takes;
    the default was measured with PostgreSQL on 2 cores, and is assumed anywhere else. price_per_hour: of a worker.
    """

    workers: int = 1
    write_rows_per_s: float = 19_000.0
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise SettingsError("--workers", self.workers, "1 or more")
        if self.write_rows_per_s <= 0:
            raise SettingsError("--write-rows-per-s", self.write_rows_per_s, "more than 0")
        if self.price_per_hour is not None and self.price_per_hour < 0:
            raise SettingsError("--price-per-hour", self.price_per_hour, "0 or more")


@dataclass(frozen=True)
class Cost(Value):
    """An estimate, of the backfill alone. tokens: of all rows, if they are as those of the sample; tokens_per_s: of one
    worker, in the sample. encode_seconds: with `workers` of them; write_seconds: at the rate that was assumed or given.
    seconds: the longer of the two, since they go on side by side. price: of all workers for so long.
    """

    tokens: int
    tokens_per_s: float
    workers: int
    encode_seconds: float
    write_rows_per_s: float
    write_seconds: float
    seconds: float
    price: float | None


@dataclass(frozen=True)
class Plan(Value):
    """What a migration would do and cost. Nothing was written.

    seconds: for encoding every text, from `sample_rows` that were really encoded in `sample_seconds`.
    sample_failures: how many of these cannot be embedded. vector_bytes_after: of the new dense vectors
    alone; head_bytes_after: of sparse and ColBERT vectors. disk_bytes: what must be free in the store:
    the new vectors, a rewrite of every row with its index entries, and the new indexes; staging_bytes:
    at the staging folder, until `finalize`. creates: by name; undo: how it is taken away.
    """

    target: str
    table: TableInfo
    old_dimension: int | None
    new_dimension: int
    outputs: tuple[str, ...]
    old_fingerprint: str | None
    new_fingerprint: str
    vector_bytes_after: int
    head_bytes_after: int
    disk_bytes: int
    staging_bytes: int
    sample_rows: int
    sample_seconds: float
    sample_failures: int
    seconds: float
    cost: Cost
    creates: tuple[str, ...]
    undo: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Status(Value):
    """rows_done: with a new vector. backlog, old_backlog: captured writes that were not applied to the new side yet,
    and to the old one, which is followed from the first switch on.

    paused: why, while it is. serving is None before `start`. first_dead_letters: ten at most.
    """

    target: str
    state: State
    paused: str | None
    version: int
    rows: int
    rows_done: int
    ranges: int
    ranges_done: int
    backlog: int
    old_backlog: int
    control: Control
    dead_letters: int
    first_dead_letters: tuple[DeadLetter, ...]
    old_fingerprint: str | None
    new_fingerprint: str
    dimension: int
    serving: Serving | None
    verification: dict[str, Any] | None
    events: tuple[Event, ...]

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"first_dead_letters": [each.to_dict() for each in self.first_dead_letters]}


@dataclass(frozen=True)
class Check(Value):
    """seen: what was found, in words and numbers. keys: of the rows concerned, ten at most."""

    name: str
    passed: bool
    seen: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class MappedThreshold(Value):
    """A cut-off of the application, mapped to the new space. low and high: the interval in which `new` may lie.

    how: "matched precision" or "matched quantile".
    """

    old: float
    new: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class GateVerdict(Value):
    """What a gate found. words: in a sentence. evidence: what was judged by. thresholds: by the application's names.

    detail: figures, ready for JSON.
    """

    passed: bool
    message: str
    evidence: str
    checks: tuple[Check, ...] = ()
    thresholds: Mapping[str, MappedThreshold] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Override(Value):
    """Somebody's word that a gate's is not to count. at: ISO 8601, UTC. Raises SettingsError for a blank reason."""

    reason: str
    by: str
    at: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise SettingsError("reason of the override", repr(self.reason), "some words that say why")

    @classmethod
    def for_reason(cls, reason: str) -> Override:
        """By the user of this process, now."""
        return cls(reason, f"{_user()}@{socket.gethostname()}", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


def _user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # an id without a name, as in some containers
        return "unknown"


@dataclass(frozen=True)
class VerifyReport(Value):
    """passed: whether the state is `ready`: every check passed, and the gate too, or it was overridden.

    dead_letters: rows without a vector, which `cutover` must be told of. gate: None if none was asked;
    it is asked when all checks have passed. override: None if none was needed.
    """

    target: str
    passed: bool
    rows: int
    dead_letters: int
    sampled: int
    lowest_cosine: float | None
    recall: float | None
    checks: tuple[Check, ...]
    state: State
    gate: GateVerdict | None = None
    override: Override | None = None


@dataclass(frozen=True)
class CutoverReport(Value):
    """dead_letters: rows that were accepted without a new vector.

    tries: how often the switch was begun. seconds: how long writers were held off in the last try.
    """

    target: str
    serving: Serving
    dead_letters: int
    tries: int
    seconds: float
    state: State


@dataclass(frozen=True)
class RollbackReport(Value):
    """outdated_rows: written since the switch and not followed, so that their old vector is missing or of another
    text; 0 unless this was accepted. dead_letters: rows whose present text the old model cannot embed.

    not_null_restored: false if the old vectors were required and cannot be, because some are missing.
    tries and seconds: as in `CutoverReport`.
    """

    target: str
    serving: Serving
    outdated_rows: int
    dead_letters: int
    not_null_restored: bool
    tries: int
    seconds: float
    state: State
