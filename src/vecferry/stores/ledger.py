"""What a migration must not forget: its record, its ranges, its dead letters, its events, and who serves.

The ledger lies in the store's own database where that is possible, so that a vector and the mark
that it is done are kept by one transaction. States are text here; `migrate/states.py` knows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vecferry.stores import Key, KeyRange


@dataclass(frozen=True)
class MigrationSpec:
    """What a migration was begun with; going on with anything else is a conflict.

    generation: a number for the new vectors, one above that of the vectors that serve at the beginning.
    """

    target: str
    text_source: str
    dimension: int
    fingerprint: str
    old_fingerprint: str | None
    old_not_null: bool
    generation: int


@dataclass(frozen=True)
class MigrationRecord:
    """version: counts the transitions; a transition names the version that it goes out from."""

    id: int
    spec: MigrationSpec
    state: str
    version: int
    verification: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RangeRecord:
    number: int
    keys: KeyRange


@dataclass(frozen=True)
class DeadLetter:
    """A row whose text cannot be embedded."""

    key: Key
    reason: str
    digest: bytes

    def to_dict(self) -> dict[str, Any]:
        return {"key": list(self.key), "reason": self.reason, "text_sha256": self.digest.hex()}


@dataclass(frozen=True)
class Event:
    """at: ISO 8601, UTC. Events are added, never changed."""

    at: str
    what: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class Serving:
    """The serving epoch: which vectors answer now. fingerprint is None where nobody has said it.

    epoch: one more at each switch, either way. generation: as in `MigrationSpec`.
    """

    epoch: int
    generation: int
    column: str
    fingerprint: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Ledger(Protocol):
    """Every writing method may stand in a transaction of the store, and then is kept or lost with it."""

    def install(self) -> None:
        """Leaves an empty ledger where there is none. Repeating is safe; undone by dropping the schema."""

    def find(self, target: str) -> MigrationRecord | None:
        """The latest migration of that name; None too where there is no ledger."""

    def create(self, spec: MigrationSpec, state: str) -> MigrationRecord: ...
    def move(self, record: MigrationRecord, state: str, detail: Mapping[str, Any]) -> MigrationRecord:
        """Compare and set on (state, version), with an event. Raises MigrationConflict if somebody moved it."""

    def add_event(self, record: MigrationRecord, what: str, detail: Mapping[str, Any]) -> None: ...
    def events(self, record: MigrationRecord, last: int) -> list[Event]:
        """The last ones, oldest first."""

    def keep_verification(self, record: MigrationRecord, report: Mapping[str, Any]) -> None: ...

    def add_ranges(self, record: MigrationRecord, ranges: Sequence[KeyRange]) -> None: ...
    def open_ranges(self, record: MigrationRecord) -> list[RangeRecord]: ...
    def close_range(self, record: MigrationRecord, number: int) -> None: ...
    def count_ranges(self, record: MigrationRecord) -> tuple[int, int]:
        """(done, in all)."""

    def bury(self, record: MigrationRecord, letters: Sequence[DeadLetter]) -> None:
        """A later letter for the same row replaces the earlier."""

    def unbury(self, record: MigrationRecord, keys: Sequence[Key]) -> None: ...
    def forget_dead_letters(self, record: MigrationRecord) -> None: ...
    def dead_letters(self, record: MigrationRecord, limit: int) -> list[DeadLetter]: ...

    def serving(self, target: str) -> Serving | None: ...
    def serve(self, target: str, serving: Serving) -> None: ...
