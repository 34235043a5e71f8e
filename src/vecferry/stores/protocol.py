"""The `Store` protocol: what a migration, the application and anybody who reads may ask of a collection."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar, runtime_checkable

from vecferry.embeddings import DENSE, Float32, Outputs
from vecferry.stores.filters import EVERY_ROW, Selection
from vecferry.stores.sql_ledger import Ledger
from vecferry.stores.text_source import TextSource
from vecferry.stores.values import (
    BOTH_SIDES,
    EVERYTHING,
    Change,
    Counts,
    Examination,
    Finding,
    Held,
    Hit,
    Key,
    KeyRange,
    LayoutCost,
    NewVector,
    Patience,
    Record,
    Row,
    Side,
    StoredRow,
    StoreTraits,
    TableInfo,
)

T = TypeVar("T")
Then = Callable[[set[Key]], None]


def nothing_more(written: set[Key]) -> None:
    """Note nothing: `write` without `then`."""


class Store(Protocol):
    """One collection. Not thread-safe: a thread has a store of its own, by `another`.

    All methods raise StoreUnreachable, StoreSchemaError or StoreFailed where the store does not do
    as it should. What is written is kept at once, unless inside `transaction` or `exclusively`. While
    this store holds the lease of `runner`, whatever a migration writes is refused with LeaseLost once
    somebody else has it.
    """

    @property
    def target(self) -> str:
        """Return the name of what is migrated; a migration is kept under it."""

    @property
    def traits(self) -> StoreTraits:
        """Return what does not change as long as the store is open."""

    @property
    def ledger(self) -> Ledger: ...
    def another(self) -> Store:
        """Open the same collection through a connection of its own; to be closed."""

    def reconnect(self) -> None:
        """Put a new connection in the place of one that was lost. Raises StoreUnreachable."""

    def close(self) -> None: ...

    # --- for anybody, at any time; a read-only role will do -----------------------------------------

    def describe(self) -> TableInfo: ...
    def sample(self, num_rows: int) -> list[Row]:
        """Return random rows that have a text."""

    def sample_stored(self, num_rows: int) -> list[StoredRow]:
        """Return random rows that have a vector, whole, with the vector that serves."""

    def rows(self, keys: Sequence[Key]) -> list[Row]:
        """Return the rows with these keys that are there, with their present texts, in the order of `keys`.

        From the side that serves. Any number of keys; one that is given twice comes back once.
        """

    def rows_within(self, within: KeyRange, limit: int) -> list[Row]:
        """Return the first `limit` rows of a range, by ascending key in its order, with their present texts.

        From the side that serves. None are left in it where none come back.
        """

    def vectors(self, keys: Sequence[Key], *, fingerprint: str) -> dict[Key, Float32]:
        """Return the stored vectors, float32 [D], of those rows that have one in the side whose space is `fingerprint`.

        In the order of `keys`; sides as in `search`. On the side that follows, a vector may still be
        of a former text. Raises SpaceMismatch if neither side is in that space.
        """

    def search(
        self,
        vector: Float32,
        k: int,
        *,
        fingerprint: str,
        exact: bool = False,
        selection: Selection = EVERY_ROW,
    ) -> list[Hit]:
        """Return the k rows nearest to `vector` [D], best first, in the side whose space is `fingerprint`.

        selection: of which rows, and what of each. Raises InvalidFilter for a filter that this store cannot apply.
        Before a migration, and for a side whose space nobody has recorded, any fingerprint is taken
        at its word. Raises SpaceMismatch if neither side is in that space, or D is not the side's.
        """

    def layouts(self, dimension: int) -> tuple[LayoutCost, ...]:
        """Return the layouts that a migration to vectors of that length can have, with the chosen one; none where there
        is no choice.
        """

    def switch_s(self, dimension: int) -> float:
        """Return how many seconds a switch to vectors of that length takes, about; 0 for a moment whatever the size."""

    def users(self) -> str:
        """Say who uses the collection now, oldest transaction first, for people; empty where that cannot be seen."""

    def serving_locator(self, side: Side) -> str:
        """Say where an index of that side is found when it serves: a column, the name of a collection."""

    # --- the application's own writes, none of which a migration loses -------------------------------

    def put(self, records: Sequence[Record], *, fingerprint: str) -> None:
        """Write these rows, new or replaced, to the side that serves; captured. Repeating is safe.

        Raises SpaceMismatch, with nothing written, if `fingerprint` is not the space that serves.
        """

    def remove(self, keys: Sequence[Key]) -> None:
        """Delete these rows; captured. Repeating is safe."""

    # --- capture: which rows were written, deletions included, so that the other side can follow ----

    def start_capture(self, patience: Patience) -> None:
        """Capture every write that ends from now on. Repeating is safe. Raises Locked."""

    def stop_capture(self) -> None:
        """Remove the capture and what it has captured from the store. Repeating is safe."""

    def captured(self, limit: int, sides: Collection[Side] = BOTH_SIDES) -> list[Change]:
        """Return the oldest writes to be followed on one of these sides; none that has not ended is among them."""

    def backlog(self, side: Side | None = None) -> int:
        """Count the writes to be followed on that side, or at all; with unended ones where they can be seen."""

    def acknowledge(self, changes: Sequence[Change]) -> None:
        """Leave these out of `captured` for good."""

    def capture_again(self, keys: Sequence[Key], side: Side) -> None:
        """Capture these keys, as if just written, to be followed on that side. Repeating is safe."""

    def adopt(self, keys: Sequence[Key]) -> set[Key]:
        """Take the old vectors of these rows for current, whatever the application has written there.

        For the time before the first switch, in which it alone keeps that side. Returns the keys of those for
        which nothing is left to be done; rows that others are just writing are captured again. Repeating is safe.
        """

    def apply_deletes(self, keys: Sequence[Key]) -> set[Key]:
        """Do what needs no model, and return those keys that have no row any more. Repeating is safe.

        Leaves no vector of these, beside the vectors of the other side what else the application keeps, and no dead
        letter that is none any more.
        """

    # --- the sides, and what is not current on them -------------------------------------------------

    def new_space(self) -> str | None:
        """Return the fingerprint recorded on the new side; None if there is no new side."""

    def counts(self) -> Counts: ...
    def key_ranges(self, rows_each: int) -> list[KeyRange]:
        """Divide all keys of now, in the store's order, into ranges of `rows_each` rows; the last may have fewer."""

    def outdated(self, side: Side, among: Sequence[Key] | KeyRange = EVERYTHING, limit: int | None = None) -> list[Row]:
        """Return rows whose vector on `side` is not known to be of their text and that are no dead letters.

        among: those of these keys that have a row; or all of the range, found by comparing every row, so also what
        no capture has seen. At most `limit`, by ascending key in the order of `KeyRange`, so that a sweep goes on
        above the last. Empty for the side that serves, where the store cannot tell whose vectors are there; then
        the application's count as right.
        """

    def count_outdated(self, side: Side, max_keys: int = 10, *, with_vector: bool = False) -> Finding:
        """Count all rows that `outdated` would return for that side; with_vector: those that have a vector."""

    def orphans(self, limit: int) -> list[Key]:
        """Return keys with a vector on the side that does not serve and no row on the one that does.

        Empty where both vectors are in the row.
        """

    def check_integrity(self, dimension: int, max_keys: int = 10) -> Examination: ...
    def sample_vectors(self, num_rows: int) -> list[tuple[Row, Float32]]:
        """Return random rows that are current, with their new vectors."""

    # --- what a migration changes: what each leaves behind, and whether it may be repeated ----------

    def check_new_side(self, dimension: int, outputs: Outputs = DENSE) -> None:
        """Raise StoreSchemaError if no new side with such vectors could be made and switched to. Writes nothing.

        In a transaction that begins a migration, no other one of the same rows is begun until its end.
        """

    def prepare(self, dimension: int, fingerprint: str, outputs: Outputs = DENSE) -> None:
        """Make an empty new side in the space `fingerprint`. Only inside `exclusively`. Repeating is safe."""

    def write(self, side: Side, vectors: Sequence[NewVector], then: Then = nothing_more) -> set[Key]:
        """Write those whose row is there with the same text, and return their keys. Repeating is safe.

        A row that somebody else is just writing may be left out. All that is left out is captured again for that
        side, in the same transaction where the store has them. then: called with these keys, to note
        in the ledger what was written; in the same transaction where the store has them, else after it.
        """

    def build_indexes(self) -> tuple[str, ...]:
        """Build, for each index on the serving vectors, an equal one on the new; return the names of those built.

        Repeating is safe: a half-built one is built anew. Outside of a transaction.
        """

    def switch(self, to: Side) -> None:
        """Let the vectors of that side serve, those of the other beside them. Only inside `exclusively`.

        Undone by switching to the other.
        """

    def restore_constraints(self, patience: Patience, *, required: bool) -> bool:
        """Hold all rows, not only new ones, to what `switch` has moved to the serving vectors, where they keep to it.

        required: NOT NULL too, if every row has a vector; returns whether that is so. Nobody waits while the rows are
        looked at. Repeating is safe. Undone by `switch`.
        """

    def drop(self, side: Side) -> None:
        """Drop the vectors of that side. Only inside `exclusively`, once nothing is captured any more.

        Repeating is safe. Without the old vectors nothing can be undone; without the new, all is as before `prepare`.
        The side that serves is never dropped: nothing is done, or StoreSchemaError raised.
        """

    def replace_old(self) -> None:
        """Drop the old vectors like `drop`, and let the new ones, which serve, stand in their place among the columns.

        Only inside `exclusively`; takes as long as to write all rows and build the indexes. Raises StoreSchemaError
        where a store has no columns.
        """

    def transaction(self) -> AbstractContextManager[None]:
        """Keep what is written inside as a whole or not at all; of a store without transactions, the ledger."""

    def exclusively(self, work: Callable[[], T], patience: Patience) -> Held[T]:
        """Run `work` in a transaction while nobody else writes to the collection. Raises Locked when patience ends.

        A process that is stopped in the middle of it holds the others up for a few seconds more than `max_pause_s`.
        """

    def pause_left_s(self) -> float:
        """Return, inside `exclusively`, for how many seconds others may still be held off, of `max_pause_s`."""

    def runner(self, lease_s: float) -> AbstractContextManager[None]:
        """Let this store alone write vectors inside. Raises Locked, naming who does.

        The lease is renewed meanwhile. A process that was stopped loses it after `lease_s` seconds.
        """


@runtime_checkable
class StoreGroup(Protocol):
    """A `Store` over several collections, its members. The first part of a key is the name of the row's member."""

    def members(self) -> tuple[str, ...]:
        """Return the names of those that are there now, on the side that serves."""

    def key_within(self, member: str, key: Key) -> Key:
        """Return the group's key of a member's row. Raises StoreSchemaError if there can be no member of that name."""

    def key_of_member(self, key: Key) -> tuple[str, Key]:
        """Return the member that a row of the group is in, and its key there."""

    def source_within(self, member: str) -> TextSource:
        """Say how the text of a member's row is made."""

    def locator_within(self, locator: str, member: str) -> str:
        """Say where a member's part of an index is found, as its client calls it."""

    def search_within(
        self,
        member: str,
        vector: Float32,
        k: int,
        *,
        fingerprint: str,
        exact: bool = False,
        selection: Selection = EVERY_ROW,
    ) -> list[Hit]:
        """Search one member alone; as `Store.search`, with the keys of the group."""

    def without_new_side(self) -> tuple[str, ...]:
        """Return those that are to be given a new side by `prepare`, and have none yet."""

    def check_switch(self, to: Side) -> None:
        """Raise what a switch to that side is refused with, while others need not wait for it.

        StoreSchemaError if a member that an application has made by itself would be left behind; CutoverRefused if a
        `finalize` has begun, which cannot go back.
        """

    def drop_ahead(self, side: Side, patience: Patience) -> None:
        """Do what takes long of a `drop` of that side, where others need not wait for all of it. Repeating is safe.

        Once it has begun the drop alone leads on. Raises Locked, and what `drop` does.
        """


def members_of(store: Store) -> tuple[str, ...]:
    """Return the names of the collections of a group; none where the store is one collection."""
    return store.members() if isinstance(store, StoreGroup) else ()
