"""What goes into a migration and what its verbs return; all of it ready for JSON with `to_dict`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vecferry.errors import SettingsError
from vecferry.migrate.states import State
from vecferry.stores import Patience, TableInfo, Value
from vecferry.stores.ledger import DeadLetter, Event, Serving


@dataclass(frozen=True)
class MigrationOptions:
    """rows_per_range: rows that are read, encoded and kept together; what a kill repeats at most.

    old_fingerprint: the space of the vectors there are, if known; then a search in another is refused
    before the switch too. patience: how long the short steps wait for the table.
    """

    rows_per_range: int = 256
    old_fingerprint: str | None = None
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        if self.rows_per_range < 1:
            raise SettingsError("rows_per_range", self.rows_per_range, "1 or more")
        if self.patience.timeout_s <= 0:
            raise SettingsError("lock_timeout", self.patience.timeout_s, "more than 0 seconds")
        if self.patience.tries < 1:
            raise SettingsError("lock_tries", self.patience.tries, "1 or more")


@dataclass(frozen=True)
class Plan(Value):
    """What a migration would do and cost. Nothing was written.

    seconds: for encoding every text, from `sample_rows` that were really encoded in `sample_seconds`.
    sample_failures: how many of these cannot be embedded. vector_bytes_after: of the new vectors alone.
    disk_bytes: what must be free: the new vectors, a rewrite of every row with its index entries, and
    the new indexes.
    """

    target: str
    table: TableInfo
    old_dimension: int | None
    new_dimension: int
    old_fingerprint: str | None
    new_fingerprint: str
    vector_bytes_after: int
    disk_bytes: int
    sample_rows: int
    sample_seconds: float
    sample_failures: int
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Status(Value):
    """rows_done: with a new vector. serving is None before `start`. letters: the first ten dead letters."""

    target: str
    state: State
    version: int
    rows: int
    rows_done: int
    ranges: int
    ranges_done: int
    dead_letters: int
    letters: tuple[DeadLetter, ...]
    old_fingerprint: str | None
    new_fingerprint: str
    dimension: int
    serving: Serving | None
    verification: dict[str, Any] | None
    events: tuple[Event, ...]

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"letters": [letter.to_dict() for letter in self.letters]}


@dataclass(frozen=True)
class Check(Value):
    """seen: what was found, in words and numbers."""

    name: str
    passed: bool
    seen: str


@dataclass(frozen=True)
class VerifyReport(Value):
    """passed: whether every check did. dead_letters: rows without a vector, which `cutover` must be told of."""

    target: str
    passed: bool
    rows: int
    dead_letters: int
    sampled: int
    lowest_cosine: float | None
    checks: tuple[Check, ...]
    state: State


@dataclass(frozen=True)
class CutoverReport(Value):
    """dead_letters: rows that were accepted without a new vector."""

    target: str
    serving: Serving
    dead_letters: int
    state: State


@dataclass(frozen=True)
class RollbackReport(Value):
    """stale_rows: written since the switch, so that their old vector is missing or of another text; up to ten keys.

    not_null_restored: false if the old vectors were required and cannot be, because some are missing.
    """

    target: str
    serving: Serving
    stale_rows: int
    stale_keys: tuple[str, ...]
    not_null_restored: bool
    state: State
