"""The store itself: what is written to the two collections, by the application and by a migration."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Self, TypeVar

from vecferry.embeddings import DENSE, Float32, Outputs
from vecferry.errors import Locked, SpaceMismatch, StoreSchemaError
from vecferry.stores.backend import Backend, OptionalVectors, Point
from vecferry.stores.filters import EVERY_ROW, Selection
from vecferry.stores.lease import held
from vecferry.stores.ledger import Lease
from vecferry.stores.mirror.comparing import MirrorComparison, same
from vecferry.stores.mirror.reading import UNKNOWN, MirrorReader
from vecferry.stores.mirror.sides import MirrorSides, Sides
from vecferry.stores.protocol import Store, Then, nothing_more
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.text_source import FieldText, TextSource
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
from vecferry.stores.waiting import patiently

T = TypeVar("T")


class MirrorStore(Store):
    """`stores.Store` over two collections of one backend."""

    def __init__(
        self,
        backend: Backend,
        collection: str,
        ledger: SqliteLedger,
        source: TextSource | None = None,
        *,
        embed_missing: bool = False,
    ) -> None:
        """Take a collection for one to be migrated.

        source: the text of a point; by default the backend's field. embed_missing: as in `StoreTraits`.
        """
        self._backend = backend
        self._target = collection
        self._ledger = ledger
        self._source = source or FieldText(backend.text_field)
        self._sides = MirrorSides(backend, collection, ledger, self._source, embed_missing=embed_missing)
        self._reader = MirrorReader(self._sides)
        self._comparison = MirrorComparison(self._sides)
        self._lease: Lease | None = None
        self._former: Lease | None = None
        self._held_until: float | None = None

    @property
    def target(self) -> str:
        return self._target

    @property
    def traits(self) -> StoreTraits:
        return StoreTraits(
            self._source,
            self._backend.outputs,
            rows_outlive_vectors=False,
            embed_missing=self._sides.embed_missing,
        )

    @property
    def ledger(self) -> SqliteLedger:
        return self._ledger

    def another(self) -> Self:
        backend, ledger = self._backend.another(), self._ledger.another()
        return type(self)(backend, self._target, ledger, self._source, embed_missing=self._sides.embed_missing)

    def reconnect(self) -> None:
        """Ask the store for its collection; the clients of these stores connect anew by themselves."""
        self._backend.exists(self._target)

    def close(self) -> None:
        self._backend.close()
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- for anybody ------------------------------------------------------------------------------

    def describe(self) -> TableInfo:
        return self._reader.describe()

    def sample(self, num_rows: int) -> list[Row]:
        return self._reader.sample(num_rows)

    def sample_stored(self, num_rows: int) -> list[StoredRow]:
        return self._reader.sample_stored(num_rows)

    def rows(self, keys: Sequence[Key]) -> list[Row]:
        return self._reader.rows(keys)

    def rows_within(self, within: KeyRange, limit: int) -> list[Row]:
        return self._comparison.rows_within(within, limit)

    def vectors(self, keys: Sequence[Key], *, fingerprint: str) -> dict[Key, Float32]:
        return self._reader.vectors(keys, fingerprint=fingerprint)

    def search(
        self,
        vector: Float32,
        k: int,
        *,
        fingerprint: str,
        exact: bool = False,
        selection: Selection = EVERY_ROW,
    ) -> list[Hit]:
        return self._reader.search(vector, k, fingerprint=fingerprint, exact=exact, selection=selection)

    def layouts(self, dimension: int) -> tuple[LayoutCost, ...]:  # noqa: ARG002  # a collection of its own
        return ()

    def switch_s(self, dimension: int) -> float:  # noqa: ARG002  # names are exchanged
        return 0.0

    def users(self) -> str:
        return ""

    def serving_locator(self, side: Side) -> str:
        return self._sides.serving_locator(side)

    # --- the application's writes -----------------------------------------------------------------

    def put(self, records: Sequence[Record], *, fingerprint: str) -> None:
        """Write points to the side that serves.

        A journal entry goes first, so that no crash hides the write from the other side.
        """
        missing = [record.key[0] for record in records if record.vectors is None]
        if missing and not isinstance(self._backend, OptionalVectors):
            raise StoreSchemaError(f"{self._target}: no vector for {', '.join(missing[:10])}", "Every point has one.")
        with self._journalled([record.key for record in records], fingerprint):
            self._sides.retried(lambda sides: self._put_into(sides.serving, records, fingerprint))

    def _put_into(self, serving: str, records: Sequence[Record], fingerprint: str) -> None:
        dimension = self._backend.dimension(serving)
        for record in records:
            if record.vectors is not None and dimension not in (None, len(record.vectors.dense)):
                where = f"a write to {serving} with {len(record.vectors.dense)} numbers, which has {dimension}"
                raise SpaceMismatch(expected=UNKNOWN, found=fingerprint, where=where)
        before = {point.id: point.payload for point in self._backend.get(serving, [r.key[0] for r in records])}
        points = [Point(r.key[0], r.text, r.vectors, {**before.get(r.key[0], {}), **r.payload}) for r in records]
        self._backend.put(serving, points)

    def remove(self, keys: Sequence[Key]) -> None:
        with self._journalled(keys, None):
            self._sides.retried(lambda sides: self._backend.delete(sides.serving, [key[0] for key in keys]))

    @contextmanager
    def _journalled(self, keys: Sequence[Key], fingerprint: str | None) -> Iterator[None]:
        self._ledger.install()
        number = self._ledger.begin(self._target, keys, fingerprint)
        try:
            yield
        finally:  # a write that failed may have been made all the same
            self._ledger.finish(self._target, number)

    # --- capture ----------------------------------------------------------------------------------

    def start_capture(self, patience: Patience) -> None:  # noqa: ARG002  # a journal waits for nobody
        self._ledger.start_journal(self._target)

    def stop_capture(self) -> None:
        self._ledger.stop_journal(self._target)

    def captured(self, limit: int, sides: Collection[Side] = BOTH_SIDES) -> list[Change]:
        return self._ledger.journalled(self._target, limit, sides)

    def backlog(self, side: Side | None = None) -> int:
        return self._ledger.journal_backlog(self._target, side)

    def acknowledge(self, changes: Sequence[Change]) -> None:
        with self.transaction():
            self._ledger.acknowledge(self._target, changes)

    def capture_again(self, keys: Sequence[Key], side: Side) -> None:
        with self.transaction():
            self._ledger.note(self._target, keys, side)

    def adopt(self, keys: Sequence[Key]) -> set[Key]:
        """Return all keys: there is nothing to adopt. The points of the side that serves count as right anyway."""
        return set(keys)

    def apply_deletes(self, keys: Sequence[Key]) -> set[Key]:
        """Let deletes follow, and payload that changed without its text."""
        if not keys:
            return set()
        ids = [key[0] for key in keys]
        with self._writing():
            sides = self._sides.now()
            if self._sides.is_half_finalized(sides):
                return set()
            source = {point.id: point for point in self._backend.get(sides.serving, ids)}
            other = self._backend.get(sides.other, ids, vectors=True)
            gone = [point.id for point in other if point.id not in source]
            if gone:
                self._backend.delete(sides.other, gone)
            kept = [(source[point.id], point) for point in other if point.id in source]
            moved = [
                replace(point, text=served.text, payload=served.payload)
                for served, point in kept
                if self._sides.text(served) == self._sides.text(point) and not same(served.payload, point.payload)
            ]
            if moved:
                self._backend.put(sides.other, moved)
        self._unbury_served(sides, [key for key in keys if key[0] in source])
        return {key for key in keys if key[0] not in source}

    def _unbury_served(self, sides: Sides, keys: Sequence[Key]) -> None:
        """Remove the dead letters of rows that the application has written on the side that serves."""
        side, record = Side.NEW if sides.serving == sides.new else Side.OLD, self._sides.open_record()
        if record is not None and self._sides.dead_letter_digests(side, keys):
            with self.transaction():
                self._ledger.remove_dead_letters(record, side, keys)

    # --- the sides, and what is not current on them -----------------------------------------------

    def new_space(self) -> str | None:
        return self._comparison.new_space()

    def counts(self) -> Counts:
        return self._comparison.counts()

    def key_ranges(self, rows_each: int) -> list[KeyRange]:
        return self._comparison.key_ranges(rows_each)

    def outdated(self, side: Side, among: Sequence[Key] | KeyRange = EVERYTHING, limit: int | None = None) -> list[Row]:
        return self._comparison.outdated(side, among, limit)

    def count_outdated(self, side: Side, max_keys: int = 10, *, with_vector: bool = False) -> Finding:
        return self._comparison.count_outdated(side, max_keys, with_vector=with_vector)

    def orphans(self, limit: int) -> list[Key]:
        return self._comparison.orphans(limit)

    def check_integrity(self, dimension: int, max_keys: int = 10) -> Examination:
        return self._comparison.check_integrity(dimension, max_keys)

    def sample_vectors(self, num_rows: int) -> list[tuple[Row, Float32]]:
        return self._comparison.sample_vectors(num_rows)

    # --- what a migration changes -----------------------------------------------------------------

    def check_new_side(self, dimension: int, outputs: Outputs = DENSE) -> None:  # noqa: ARG002  # any length will do
        sides = self._sides.now()
        if sides.new is None or not self._backend.exists(sides.new):
            self._backend.check(sides.serving, outputs)

    def prepare(self, dimension: int, fingerprint: str, outputs: Outputs = DENSE) -> None:  # noqa: ARG002  # in the spec
        """Create the new collection. A collection of that name that has points in it is not ours: StoreSchemaError."""
        sides = self._sides.now()
        if not self._backend.exists(sides.other):
            self._backend.create(sides.other, like=sides.serving, dimension=dimension, outputs=outputs)
        elif self._backend.count(sides.other) and self._backend.dimension(sides.other) != dimension:
            what = f"there is a collection {sides.other} already, and it is not of this migration"
            raise StoreSchemaError(what, "Rename or drop it.")

    def write(self, side: Side, vectors: Sequence[NewVector], then: Then = nothing_more) -> set[Key]:
        """Write vectors to rows whose text is unchanged.

        What was read as a row's text is compared with the text now; a write that comes between this and the store's
        answer is in the journal, so that the row is done again.
        """
        with self._writing():
            written = self._put_current(side, vectors)
        with self.transaction():
            self._ledger.note(self._target, [new.key for new in vectors if new.key not in written], side)
            then(written)
        return written

    def _put_current(self, side: Side, vectors: Sequence[NewVector]) -> set[Key]:
        sides = self._sides.now()
        if sides.name(side) == sides.serving or not vectors or self._sides.is_half_finalized(sides):
            return set()
        source = {p.id: p for p in self._backend.get(sides.serving, [vector.key[0] for vector in vectors])}
        digests = {point.id: self._sides.row(point).digest for point in source.values()}
        current = [vector for vector in vectors if digests.get(vector.key[0]) == vector.digest]
        bare = [v.key[0] for v in current if v.vectors is None]
        kept = self._sides.unembedded(sides.serving, bare)  # the others are dead letters
        if dead := [id_ for id_ in bare if id_ not in kept]:
            self._backend.delete(sides.other, dead)
        points = [replace(source[v.key[0]], vectors=v.vectors) for v in current if v.key[0] not in dead]
        if points:
            self._backend.put(sides.other, points)
        return {vector.key for vector in current}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the sides in their places; the lease was ours at the beginning."""
        if self._lease is not None:
            self._ledger.guard(self._lease)
        if self._held_until is not None:  # nobody else can write, nor wait for us
            yield
        else:
            with self._ledger.passing(self._target):
                yield

    def build_indexes(self) -> tuple[str, ...]:
        sides = self._sides.now()
        return () if self._sides.is_half_finalized(sides) else self._backend.build_indexes(sides.other, sides.serving)

    def switch(self, to: Side) -> None:
        self._sides.ending.point_alias(self._sides.now().name(to))

    def restore_constraints(self, patience: Patience, *, required: bool) -> bool:  # noqa: ARG002
        """Return false. No store of points knows constraints."""
        return False

    def drop(self, side: Side) -> None:
        sides = self._sides.now()
        if side is Side.NEW and sides.new is not None and sides.serving != sides.new:
            self._sides.ending.point_alias(sides.serving)
            self._backend.drop(sides.new)
        elif side is Side.OLD and sides.serving != sides.old:
            self._sides.ending.drop_old(sides.old, sides.serving)

    def replace_old(self) -> None:
        raise StoreSchemaError(f"{self._target} has no columns that could keep their places", "Leave --in-place out.")

    # --- keeping things together ------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._ledger.transaction():
            if self._lease is not None:
                self._ledger.guard(self._lease)
            yield

    def exclusively(self, work: Callable[[], T], patience: Patience) -> Held[T]:
        """Run `work` while nobody else writes.

        Writers through `put` and `remove` wait; they go on by themselves after the pause that a try may take, and then
        nothing of the work is kept in the ledger.
        """
        return patiently(lambda pause_s: self._hold_writers(work, pause_s, patience.max_pause_s), patience)

    def _hold_writers(self, work: Callable[[], T], pause_s: float, max_pause_s: float) -> Held[T]:
        asked_at = time.monotonic()
        with self._ledger.writers_held(self._target, pause_s, max_pause_s):
            self._held_until = asked_at + max_pause_s
            try:
                with self.transaction():
                    result = work()
                    if not self._ledger.still_held(self._target):
                        raise Locked(self._target, f"writers, who were held off for {max_pause_s:g} s")
            except BaseException:
                self._sides.ending.point_alias(self._sides.now().serving)
                raise
            finally:
                self._held_until = None
        return Held(result, time.monotonic() - asked_at)

    def pause_left_s(self) -> float:
        return 0.0 if self._held_until is None else self._held_until - time.monotonic()

    @contextmanager
    def runner(self, lease_s: float) -> Iterator[None]:
        self._ledger.install()
        with held(self._ledger, self._target, lease_s, self._former) as lease:
            self._lease = self._former = lease
            try:
                yield
            finally:
                self._lease = None
