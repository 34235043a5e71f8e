"""What a migration must not forget: its record, its ranges, its dead letters, its events, and who serves.

The ledger (`sql_ledger.py`) lies in the store's own database where that is possible, so that a vector and the
mark that it is done are kept by one transaction; otherwise in a SQLite file (`sqlite/`), which also
holds the journal of the application's writes. States are text here; `migrate/states.py` knows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from vecferry.options import Above0, Checked, Help

if TYPE_CHECKING:
    from vecferry.stores.sql_ledger import Ledger
    from vecferry.stores.values import Key, KeyRange


BEFORE_CAPTURE = ("planned", "prepared")
"""States in which writes are not captured yet."""
LEFT_THE_PART = "left the part with new vectors"
"""An event: rows that the application moved to another part of their table while the new vectors served."""
FIRST_EPOCH = 1
"""Of a collection that was never switched."""


@dataclass(frozen=True)
class MigrationSpec:
    """What a migration was begun with; going on with anything else is a conflict.

    generation: a number for the new vectors, one above that of the vectors that serve at the beginning.
    epoch: the serving epoch at the beginning; a later one means that it was switched at least once.
    outputs: the heads of the new side, by name, "dense" first. The locators are those of `Serving`.
    uid: tells this migration from any other, of other databases too. model, old_model: their names, for people;
    empty where nobody has said them. embed_missing: as in `StoreTraits`.
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
    model: str = ""
    old_model: str = ""
    embed_missing: bool = False


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
class Control(Checked):
    """What an operator asks of whoever runs the migration; it is read again every second.

    rows_per_s: None is no limit. Raises SettingsError.
    """

    rows_per_s: Annotated[Above0 | None, Help("rows written a second at most")] = None
    postponed: Annotated[bool, Help("hold the switch")] = False


@dataclass(frozen=True)
class Lease:
    """The right to write vectors. token: one more each time that somebody takes it (the fencing token)."""

    target: str
    holder: str
    token: int


@dataclass(frozen=True)
class RunningProcess:
    """The process that has the lease. since: ISO 8601, UTC. rows_per_s: of late; None where it has not said so.

    rows_encoded: that wait to be written.
    """

    host: str
    pid: int
    since: str
    rows_per_s: float | None = None
    rows_encoded: int = 0


def was_switched(ledger: Ledger, record: MigrationRecord) -> bool:
    """Say whether that migration was switched at least once."""
    serving = ledger.serving(record.spec.target)
    return serving is not None and serving.epoch > record.spec.epoch
