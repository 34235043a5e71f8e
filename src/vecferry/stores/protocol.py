"""The `Store` protocol: what a migration, the application and anybody who reads may ask of a collection."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from vecferry.embeddings import DENSE, Float32, Outputs
from vecferry.stores.sql_ledger import Ledger
from vecferry.stores.values import (
    BOTH_SIDES,
    Change,
    Counts,
    Examination,
    Finding,
    Held,
    Hit,
    Key,
    KeyRange,
    NewVector,
    Patience,
    Record,
    Row,
    Side,
    TableInfo,
)

T = TypeVar("T")


class Reading(Protocol):
    """What anybody may ask at any time. Nothing is written; a read-only role will do."""

    @property
    def target(self) -> str:
        """The name of what is migrated; a migration is kept under it."""

    @property
    def text_source(self) -> str:
        """Where in a row the text is: a column, a field."""

    @property
    def outputs(self) -> Outputs:
        """The heads that this store can hold."""

    @property
    def rows_outlive_vectors(self) -> bool:
        """Whether a row without a new vector stays in the collection when the old side is dropped."""

    def describe(self) -> TableInfo: ...
    def sample(self, num_rows: int) -> list[Row]:
        """Random rows that have a text."""

    def rows(self, keys: Sequence[Key]) -> list[Row]:
        """Those of the rows that are there, with their present texts, in the order of `keys`.

        From the side that serves. Any number of keys; one that is given twice comes back once.
        """

    def vectors(self, keys: Sequence[Key], *, fingerprint: str) -> dict[Key, Float32]:
        """Return the stored vectors, float32 [D], of those rows that have one in the side whose space is `fingerprint`.

        In the order of `keys`; sides as in `search`. On the side that follows, a vector may still be
        of a former text. Raises SpaceMismatch if neither side is in that space.
        """

    def search(self, vector: Float32, k: int, *, fingerprint: str, exact: bool = False) -> list[Hit]:
        """Return the k rows nearest to `vector` [D], best first, in the side whose space is `fingerprint`.

        Before a migration, and for a side whose space nobody has recorded, any fingerprint is taken
        at its word. Raises SpaceMismatch if neither side is in that space, or D is not the side's.
        """

    def users(self) -> str:
        """Who uses the collection now, for people, the oldest transaction first; empty where that cannot be seen."""

    def serving_locator(self, side: Side) -> str:
        """Where an index of that side is found when it serves: a column, the name of a collection."""


class Application(Protocol):
    """The application's own writes, made so that none is lost to a migration."""

    def put(self, records: Sequence[Record], *, fingerprint: str) -> None:
        """Leaves these rows, new or replaced, in the side that serves; captured. Repeating is safe.

        Raises SpaceMismatch, with nothing written, if `fingerprint` is not the space that serves.
        """

    def remove(self, keys: Sequence[Key]) -> None:
        """Leaves the collection without these rows; captured. Repeating is safe."""


class Capture(Protocol):
    """Which rows were written, deletions included, so that the side that does not serve can follow.

    A store whose writers cannot be watched also knows `orphans`, and `NewSide.unembedded` compares all.
    """

    def start_capture(self, patience: Patience) -> None:
        """Leaves every write that ends from now on captured. Repeating is safe. Raises Locked."""

    def stop_capture(self) -> None:
        """Leaves nothing captured, and nothing of the capture in the store. Repeating is safe."""

    def captured(self, limit: int, sides: Collection[Side] = BOTH_SIDES) -> list[Change]:
        """Return the oldest to be followed on one of these sides; a write that has not ended is not among them."""

    def backlog(self, side: Side | None = None) -> int:
        """How many are to be followed on that side, or at all; unended writes included where they can be seen."""

    def acknowledge(self, changes: Sequence[Change]) -> None:
        """Leaves these out of `captured` for good."""

    def capture_again(self, keys: Sequence[Key], side: Side) -> None:
        """Leaves these captured, as if they had just been written, to be followed on that side. Repeating is safe."""

    def outdated(self, side: Side, keys: Sequence[Key]) -> list[Row]:
        """Those of the rows that are there, and whose vectors on `side` are not known to be current.

        Dead letters are not among them. Empty for the side that serves, where the store cannot tell whose vectors
        are there; then the application's count as right.
        """

    def adopt(self, keys: Sequence[Key]) -> set[Key]:
        """Leaves the old vectors of these rows known as current, whatever the application has written there.

        For the time before the first switch, in which it alone keeps that side. Returns the keys of those for
        which nothing is left to be done; rows that others are just writing are captured again. Repeating is safe.
        """

    def apply_deletes(self, keys: Sequence[Key]) -> set[Key]:
        """Those keys that have no row any more. Leaves done what needs no model: no vector of these, beside the
        vectors of the other side what else the application keeps, and no dead letter that is none any more.
        Repeating is safe.
        """

    def orphans(self, limit: int) -> list[Key]:
        """Keys with a vector on the side that does not serve and no row on the one that does."""


class NewSide(Protocol):
    """The side that a migration makes; from `prepare` on."""

    def new_space(self) -> str | None:
        """Fingerprint recorded on the new side; None if there is no new side."""

    def counts(self) -> Counts: ...
    def key_ranges(self, rows_each: int) -> list[KeyRange]:
        """All keys of now, in the store's order, in ranges of `rows_each` rows; the last may have fewer."""

    def unembedded(self, within: KeyRange, limit: int, side: Side = Side.NEW) -> list[Row]:
        """Rows whose vector on `side` is not known to be of their text and that are no dead letters.

        At most `limit`, by ascending key in the order of `KeyRange`, so that a sweep goes on above the last.
        Found by comparing every row, so also what no capture has seen. Empty for the side that serves, where
        the store cannot tell whose vectors are there.
        """

    def count_outdated(self, side: Side, max_keys: int = 10, *, with_vector: bool = False) -> Finding:
        """All rows that `unembedded` would give for that side, in one go; with_vector: those that have a vector."""

    def check_integrity(self, dimension: int, max_keys: int = 10) -> Examination: ...
    def sample_vectors(self, num_rows: int) -> list[tuple[Row, Float32]]:
        """Random rows that are current, with their new vectors."""


Then = Callable[[set[Key]], None]


def nothing_more(written: set[Key]) -> None:
    """For `write` without `then`."""


class Writing(Protocol):
    """What a migration changes. Each says what it leaves behind and whether it may be repeated.

    What is written is kept at once, unless inside `transaction` or `exclusively`. While this store
    holds the lease of `runner`, every write is refused with LeaseLost once somebody else has it.
    """

    def prepare(self, dimension: int, fingerprint: str, outputs: Outputs = DENSE) -> None:
        """Leaves an empty new side in the space `fingerprint`. Only inside `exclusively`. Repeating is safe."""

    def write(self, side: Side, vectors: Sequence[NewVector], then: Then = nothing_more) -> set[Key]:
        """Leaves those whose row is there with the same text; their keys. Repeating is safe.

        A row that somebody else is just writing may be left out. All that is left out is captured again for that
        side, in the same transaction where the store has them. then: called with these keys, to note
        in the ledger what was written; in the same transaction where the store has them, else after it.
        """

    def retry_dead_letters(self) -> None:
        """Leaves every dead letter to be done again, and captured. Repeating is safe."""

    def build_indexes(self) -> tuple[str, ...]:
        """Leaves, for each index on the serving vectors, an equal one on the new; the names of those built.

        Repeating is safe: a half-built one is built anew. Outside of a transaction.
        """

    def switch(self) -> None:
        """Leaves the new vectors serving, the old beside them. Only inside `exclusively`. Undone by `switch_back`."""

    def switch_back(self) -> None:
        """Undoes `switch`. Only inside `exclusively`."""

    def require_vectors(self, patience: Patience) -> bool:
        """Leaves the serving vectors required (NOT NULL), if every row has one; whether that is so.

        Nobody waits while the rows are looked at. Repeating is safe. Undone by `switch`.
        """

    def drop_old(self) -> None:
        """Leaves the new vectors alone. Only inside `exclusively`, once nothing is captured any more.

        Repeating is safe. Cannot be undone.
        """

    def drop_new(self) -> None:
        """Leaves the old vectors alone, as before `prepare`. Only inside `exclusively`, once nothing is captured any
        more. Repeating is safe.
        """

    def transaction(self) -> AbstractContextManager[None]:
        """What is written inside is kept as a whole or not at all; of a store without transactions, the ledger."""

    def exclusively(self, work: Callable[[], T], patience: Patience) -> Held[T]:
        """`work` in a transaction while nobody else writes to the collection. Raises Locked when patience ends.

        A process that is stopped in the middle of it holds the others up for a few seconds more than `max_pause_s`.
        """

    def pause_left_s(self) -> float:
        """Inside `exclusively`: for how many seconds others may still be held off, of the patience's `max_pause_s`."""

    def runner(self, lease_s: float) -> AbstractContextManager[None]:
        """Inside, this store alone may write vectors. Raises Locked, naming who does.

        The lease is renewed meanwhile. A process that was stopped loses it after `lease_s` seconds.
        """


class Store(Reading, Application, Capture, NewSide, Writing, Protocol):
    """One collection. Not thread-safe: a thread has a store of its own, by `another`.

    All methods raise StoreUnreachable, StoreSchemaError or StoreFailed where the store does not do
    as it should.
    """

    @property
    def ledger(self) -> Ledger: ...
    def another(self) -> Store:
        """Open the same collection through a connection of its own; to be closed."""

    def reconnect(self) -> None:
        """Leaves a new connection in the place of one that was lost. Raises StoreUnreachable."""

    def close(self) -> None: ...
