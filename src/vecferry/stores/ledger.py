"""What a migration must not forget: its record, its ranges, its dead letters, its events, and who serves.

The ledger lies in the store's own database where that is possible, so that a vector and the mark
that it is done are kept by one transaction; otherwise in a SQLite file (`sqlite/`), which also
holds the journal of the application's writes. States are text here; `migrate/states.py` knows them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vecferry.stores.values import Change, Key, KeyRange, Side


@dataclass(frozen=True)
class MigrationSpec:
    """What a migration was begun with; going on with anything else is a conflict.

    generation: a number for the new vectors, one above that of the vectors that serve at the beginning.
    epoch: the serving epoch at the beginning; a later one means that it was switched at least once.
    outputs: the heads of the new side, by name, "dense" first. The locators are those of `Serving`.
    uid: tells this migration from any other, of other databases too.
    """

    target: str
    text_source: str
    dimension: int
    fingerprint: str
    old_fingerprint: str | None
    old_not_null: bool
    generation: int
    epoch: int = 1
    old_locator: str = ""
    new_locator: str = ""
    outputs: tuple[str, ...] = ("dense",)
    uid: str = ""


@dataclass(frozen=True)
class Paused:
    """before: the state to go back to. by_operator: only `resume` ends it; otherwise its cause's end does."""

    before: str
    reason: str
    by_operator: bool


@dataclass(frozen=True)
class MigrationRecord:
    """version: counts the transitions; a transition names the version that it goes out from."""

    id: int
    spec: MigrationSpec
    state: str
    version: int
    verification: Mapping[str, Any] | None = None
    paused: Paused | None = None


@dataclass(frozen=True)
class RangeRecord:
    number: int
    keys: KeyRange


@dataclass(frozen=True)
class DeadLetter:
    """A row whose text cannot be embedded. side: "new", or "old" for a row written after the switch."""

    key: Key
    reason: str
    digest: bytes
    side: str = "new"

    def to_dict(self) -> dict[str, Any]:
        return {"key": list(self.key), "side": self.side, "reason": self.reason, "text_sha256": self.digest.hex()}


@dataclass(frozen=True)
class Event:
    """at: ISO 8601, UTC. Events are added, never changed."""

    at: str
    what: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class Serving:
    """The serving epoch: which vectors answer now. fingerprint is None where nobody has said it.

    epoch: one more at each switch, either way. generation: as in `MigrationSpec`. locator: where the
    index is, a column or the name of a collection. thresholds: the application's cut-offs for cosines of
    this space, by its names; one that is not there was not given, or not mapped.
    """

    epoch: int
    generation: int
    locator: str
    fingerprint: str | None
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Control:
    """What an operator asks of whoever runs the migration; it is read again every second.

    rows_per_s: at most so many rows written, None is no limit. postponed: hold the switch.
    """

    rows_per_s: float | None = None
    postponed: bool = False


@dataclass(frozen=True)
class Lease:
    """The right to write vectors. token: one more each time that somebody takes it (the fencing token)."""

    target: str
    holder: str
    token: int


class Ledger(Protocol):
    """Every writing method may stand in a transaction of the store, and then is kept or lost with it."""

    def install(self) -> None:
        """Leaves an empty ledger where there is none, and one of an earlier form in that of now.

        Repeating is safe; undone by dropping it.
        """

    def find(self, target: str) -> MigrationRecord | None:
        """The latest migration of that name that was not aborted; None too where there is no ledger."""

    def last(self, target: str) -> MigrationRecord | None:
        """The latest migration of that name, aborted or not."""

    def create(self, spec: MigrationSpec, state: str) -> MigrationRecord: ...
    def move(
        self, record: MigrationRecord, state: str, detail: Mapping[str, Any], paused: Paused | None = None
    ) -> MigrationRecord:
        """Compare and set on (state, version), with an event. Raises MigrationConflict if somebody moved it."""

    def add_event(self, record: MigrationRecord, what: str, detail: Mapping[str, Any]) -> None: ...
    def events(self, record: MigrationRecord, last: int) -> list[Event]:
        """The last ones, oldest first."""

    def keep_verification(self, record: MigrationRecord, report: Mapping[str, Any]) -> None: ...

    def add_ranges(self, record: MigrationRecord, ranges: Sequence[KeyRange]) -> None:
        """Leaves these, all open, in the place of any that were listed before; numbered from 1."""

    def open_ranges(self, record: MigrationRecord) -> list[RangeRecord]: ...
    def close_range(self, record: MigrationRecord, number: int) -> None: ...
    def count_ranges(self, record: MigrationRecord) -> tuple[int, int]:
        """(done, in all)."""

    def add_dead_letters(self, record: MigrationRecord, dead_letters: Sequence[DeadLetter]) -> None:
        """A later letter for the same row and side replaces the earlier."""

    def remove_dead_letters(self, record: MigrationRecord, side: Side, keys: Sequence[Key]) -> None: ...
    def dead_letters(self, record: MigrationRecord, limit: int, side: Side | None = None) -> list[DeadLetter]:
        """The oldest; of one side, or of both."""

    def count_dead_letters(self, record: MigrationRecord, side: Side) -> int: ...

    def serving(self, target: str) -> Serving | None: ...
    def serve(self, target: str, serving: Serving) -> None: ...

    def control(self, record: MigrationRecord) -> Control: ...
    def set_control(self, record: MigrationRecord, control: Control) -> None: ...

    def set_followed(self, record: MigrationRecord, sides: Collection[Side]) -> None:
        """Leaves on record which sides the run has a model for; the last run's word counts."""

    def followed(self, record: MigrationRecord) -> frozenset[Side]: ...

    def acquire(self, target: str, holder: str, seconds: float, former: Lease | None = None) -> Lease:
        """Take the lease if nobody has it, or its time is over, or its holder's process is gone, or it is `former`.

        Raises Locked.
        """

    def renew(self, lease: Lease, seconds: float) -> None:
        """Raises LeaseLost if somebody else has it."""

    def release(self, lease: Lease) -> None:
        """Nothing happens if somebody else has it."""

    def guard(self, lease: Lease) -> None:
        """Raises LeaseLost if somebody else has it; in a transaction, nobody can take it before its end."""

    def another(self) -> Ledger:
        """The same ledger through a connection of its own, for another thread; to be closed."""

    def close(self) -> None: ...


class Journal(Protocol):
    """The application's writes, noted before they are made, for stores that cannot say what was written.

    A write is `begin`, the store's own write, `finish`. What was begun and never finished (its process
    died) is captured too, after `ABANDONED_AFTER_S`.
    """

    def begin(self, target: str, keys: Sequence[Key], fingerprint: str | None) -> int:
        """A number for `finish`. Waits while the switch holds writers off. Raises SpaceMismatch if
        `fingerprint` is given and is not what serves.
        """

    def finish(self, target: str, number: int) -> None:
        """The write has ended; it is captured if a capture is on."""

    def start_journal(self, target: str) -> None:
        """Capture what finishes from now on. Repeating is safe."""

    def stop_journal(self, target: str) -> None:
        """Capture nothing more, and forget what was captured. Repeating is safe."""

    def note(self, target: str, keys: Sequence[Key], side: Side) -> None:
        """Capture these keys, to be followed on that side, as if a write to them had just finished; if a capture is on.

        Repeating is safe.
        """

    def journalled(self, target: str, limit: int, sides: Collection[Side] = ...) -> list[Change]:
        """The oldest finished or abandoned ones that are to be followed on one of these sides, by default on either.

        One `Change` per key.
        """

    def journal_backlog(self, target: str, side: Side | None = None) -> int:
        """Those to be followed on that side, or at all, and those of unfinished writes."""

    def acknowledge(self, target: str, changes: Sequence[Change]) -> None: ...
    def writers_held(self, target: str, wait_s: float, hold_s: float | None = None) -> AbstractContextManager[None]:
        """Inside, nobody `begin`s, and all that had begun has finished. Raises Locked if that takes longer
        than `wait_s`; writers go on by themselves after `hold_s`, by default as long, and `still_held` is then false.
        """

    def still_held(self, target: str) -> bool: ...
    def passing(self, target: str) -> AbstractContextManager[None]:
        """A write of the migration's own: it waits while writers are held, and they for it; it is not captured."""


def was_switched(ledger: Ledger, record: MigrationRecord) -> bool:
    """Say whether that migration was switched at least once."""
    serving = ledger.serving(record.spec.target)
    return serving is not None and serving.epoch > record.spec.epoch
