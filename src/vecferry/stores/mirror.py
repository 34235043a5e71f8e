"""A store whose new side is a collection of its own, over any `backend.Backend`.

The application's collection is the old side; the new one, `NAME_vecferry_2`, gets every point with
its text and payload, and a vector of the new model. Whichever serves is the one that the
application writes to, through `put` and `remove`, which note each write in the journal of the
control database before they make it; the other one follows. A point is current if its text and
payload are those of the point that serves, so a comparison of both finds whatever no journal saw.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self, TypeVar

import numpy as np

from vecferry.embeddings import DENSE, Float32, Outputs
from vecferry.errors import Locked, SpaceMismatch, StoreSchemaError
from vecferry.stores import (
    NORM_TOLERANCE,
    Change,
    Counts,
    Examination,
    Finding,
    Hit,
    Key,
    KeyRange,
    NewVector,
    Patience,
    Record,
    Row,
    Side,
    TableInfo,
    Then,
    has_direction,
    nothing_more,
    text_digest,
)
from vecferry.stores.backend import Aliased, Backend, Point
from vecferry.stores.lease import held
from vecferry.stores.ledger import Lease, MigrationRecord, MigrationSpec
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.waiting import patiently

T = TypeVar("T")

PAGE = 500
"""Points that are read at a time."""
UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Sides:
    """Collections by name. new: None unless a migration is open. serving: one of the two."""

    old: str
    new: str | None
    serving: str

    @property
    def other(self) -> str:
        """The one that follows. Raises StoreSchemaError if there is none."""
        if self.new is None:
            raise StoreSchemaError(f"{self.old} has no new side", "It was dropped: run start again.")
        return self.new if self.serving == self.old else self.old

    def name(self, side: Side) -> str:
        return self.old if side is Side.OLD or self.new is None else self.new


class MirrorStore:
    """`stores.Store` over two collections of one backend."""

    def __init__(self, backend: Backend, collection: str, ledger: SqliteLedger) -> None:
        self._backend = backend
        self._target = collection
        self._ledger = ledger
        self._lease: Lease | None = None
        self._sorted_ids: list[str] | None = None

    @property
    def target(self) -> str:
        return self._target

    @property
    def text_source(self) -> str:
        return self._backend.text_field

    @property
    def outputs(self) -> Outputs:
        return self._backend.outputs

    @property
    def rows_outlive_vectors(self) -> bool:
        return False

    @property
    def ledger(self) -> SqliteLedger:
        return self._ledger

    def another(self) -> Self:
        return type(self)(self._backend.another(), self._target, self._ledger.another())

    def reconnect(self) -> None:
        """Asks the store for its collection; the clients of these stores connect anew by themselves."""
        self._backend.exists(self._target)

    def close(self) -> None:
        self._backend.close()
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- which collection is which ----------------------------------------------------------------

    def _open_record(self) -> MigrationRecord | None:
        record = self._ledger.find(self._target)
        return None if record is None or record.state == "finalized" else record

    def _open_spec(self) -> MigrationSpec | None:
        record = self._open_record()
        return None if record is None else record.spec

    def _sides(self) -> Sides:
        spec, serving = self._open_spec(), self._ledger.serving(self._target)
        source = serving.locator if serving else self._resolved()
        return Sides(source, None, source) if spec is None else Sides(spec.old_locator, spec.new_locator, source)

    def _resolved(self) -> str:
        name = self._backend.resolve(self._target) if isinstance(self._backend, Aliased) else self._target
        if not self._backend.exists(name):
            raise StoreSchemaError(f"there is no collection {self._target}", "Names are spelled as in the store.")
        return name

    def serving_locator(self, side: Side) -> str:
        sides = self._sides()
        if side is Side.OLD or sides.new is not None:
            return sides.name(side)
        serving = self._ledger.serving(self._target)
        return f"{self._target}_vecferry_{(serving.generation if serving else 1) + 1}"

    # --- reading ----------------------------------------------------------------------------------

    def describe(self) -> TableInfo:
        sides = self._sides()
        rows = null_texts = empty_texts = text_bytes = 0
        for points in self._pages(sides.serving):
            rows += len(points)
            null_texts += sum(point.text is None for point in points)
            empty_texts += sum(point.text == "" for point in points)
            text_bytes += sum(len((point.text or "").encode("utf-8", "surrogatepass")) for point in points)
        dimension = self._backend.dimension(sides.serving)
        serving = self._ledger.serving(self._target)
        vector_bytes = 4 * (dimension or 0) * rows
        return TableInfo(
            rows=rows,
            null_texts=null_texts,
            empty_texts=empty_texts,
            dimension=dimension,
            fingerprint=serving.fingerprint if serving else None,
            vector_not_null=False,
            table_bytes=text_bytes + vector_bytes,
            row_bytes=text_bytes,  # the new collection holds texts and payload again
            index_bytes=0,
            vector_bytes=vector_bytes,
            creates=(f"collection {self.serving_locator(Side.NEW)}", f"control database {self._ledger.location}"),
        )

    def _pages(self, collection: str, *, vectors: bool = False) -> Iterator[list[Point]]:
        yield from self._pages_of(collection, sorted(self._backend.ids(collection)), vectors=vectors)

    def _pages_of(self, collection: str, ids: Sequence[str], *, vectors: bool = False) -> Iterator[list[Point]]:
        for start in range(0, len(ids), PAGE):
            yield self._backend.get(collection, ids[start : start + PAGE], vectors=vectors)

    def sample(self, num_rows: int) -> list[Row]:
        serving = self._sides().serving
        ids = list(self._backend.ids(serving))
        chosen = random.sample(ids, min(num_rows, len(ids)))
        return [Row((p.id,), p.text) for p in self._backend.get(serving, chosen) if p.text is not None]

    def search(self, vector: Float32, k: int, *, fingerprint: str, exact: bool = False) -> list[Hit]:
        collection = self._collection_in(fingerprint)
        stored = self._backend.dimension(collection)
        if stored not in (None, len(vector)):
            what = f"a search in {collection} with {len(vector)} numbers, which has {stored}"
            raise SpaceMismatch(expected=UNKNOWN, found=fingerprint, where=what)
        try:
            if exact:
                return self._exact_search(collection, vector, k)
            return [Hit((found.id,), found.score) for found in self._backend.search(collection, vector, k)]
        except StoreSchemaError:
            if self._collection_in(fingerprint) == collection:
                raise
            raise self._mismatch(None, fingerprint) from None  # finalized meanwhile

    def _collection_in(self, fingerprint: str) -> str:
        """The collection of that space. Raises SpaceMismatch."""
        spec, sides = self._open_spec(), self._sides()
        if spec is not None and spec.fingerprint == fingerprint and self._backend.exists(sides.name(Side.NEW)):
            return sides.name(Side.NEW)
        serving = self._ledger.serving(self._target)
        expected = spec.old_fingerprint if spec else serving.fingerprint if serving else None
        if expected not in (None, fingerprint):
            raise self._mismatch(expected, fingerprint)
        return sides.old

    def _mismatch(self, expected: str | None, found: str) -> SpaceMismatch:
        return SpaceMismatch(expected=expected or UNKNOWN, found=found, where=f"a search in {self._target}")

    def _exact_search(self, collection: str, vector: Float32, k: int) -> list[Hit]:
        query = vector.astype(np.float64) / np.linalg.norm(vector)
        best: list[Hit] = []
        for points in self._pages(collection, vectors=True):
            filled = [point for point in points if point.vector is not None and has_direction(point.vector)]
            if filled:
                matrix = np.stack([p.vector for p in filled if p.vector is not None]).astype(np.float64)  # [n, D]
                scores = matrix @ query / np.linalg.norm(matrix, axis=1)
                best += [Hit((p.id,), float(score)) for p, score in zip(filled, scores, strict=True)]
                best = sorted(best, key=lambda hit: (-hit.score, hit.key))[:k]
        return best

    # --- the application's writes -----------------------------------------------------------------

    def put(self, records: Sequence[Record], *, fingerprint: str) -> None:
        """See `Application.put`. A journal entry goes first, so that no crash hides the write from the other side."""
        if missing := [record.key[0] for record in records if record.vector is None]:
            raise StoreSchemaError(f"{self._target}: no vector for {', '.join(missing[:10])}", "Every point has one.")
        with self._journalled([record.key for record in records], fingerprint):
            serving = self._sides().serving
            dimension = self._backend.dimension(serving)
            for record in records:
                if record.vector is not None and dimension not in (None, len(record.vector)):
                    where = f"a write to {serving} with {len(record.vector)} numbers, which has {dimension}"
                    raise SpaceMismatch(expected=UNKNOWN, found=fingerprint, where=where)
            before = {point.id: point.payload for point in self._backend.get(serving, [r.key[0] for r in records])}
            points = [
                Point(r.key[0], r.text, r.vector, {**before.get(r.key[0], {}), **r.payload}, r.sparse, r.colbert)
                for r in records
            ]
            self._backend.put(serving, points)

    def remove(self, keys: Sequence[Key]) -> None:
        with self._journalled(keys, None):
            self._backend.delete(self._sides().serving, [key[0] for key in keys])

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

    def captured(self, limit: int) -> list[Change]:
        return self._ledger.journalled(self._target, limit)

    def backlog(self) -> int:
        return self._ledger.journal_backlog(self._target)

    def acknowledge(self, changes: Sequence[Change]) -> None:
        with self.transaction():
            self._ledger.acknowledge(self._target, changes)

    def stale(self, side: Side, keys: Sequence[Key]) -> list[Row]:
        sides = self._sides()
        if sides.name(side) == sides.serving or self._is_half_finalized(sides):
            return []
        return self._behind(sides, side, [key[0] for key in keys])

    def _is_half_finalized(self, sides: Sides) -> bool:
        """Whether a `finalize` was killed after it had dropped the old collection; it can only be repeated."""
        return sides.serving == sides.new and not self._backend.exists(sides.old)

    def _behind(self, sides: Sides, side: Side, ids: Sequence[str]) -> list[Row]:
        """Rows whose text is not that of their point on the side that follows, and no dead letters."""
        source = self._backend.get(sides.serving, ids)
        texts = {point.id: point.text for point in self._backend.get(sides.other, ids)}
        rows = [Row((p.id,), p.text) for p in source if p.id not in texts or texts[p.id] != p.text]
        letters = self._letters(side, [row.key for row in rows])
        return [row for row in rows if letters.get(row.key) != row.digest]

    def _letters(self, side: Side, keys: Sequence[Key]) -> dict[Key, bytes]:
        record = self._open_record()
        return self._ledger.letters_of(record, side, keys) if record and keys else {}

    def settle(self, keys: Sequence[Key]) -> set[Key]:
        """See `Capture.settle`: deletes follow, and payload that changed without its text."""
        sides, ids = self._sides(), [key[0] for key in keys]
        if self._is_half_finalized(sides):
            return set()
        with self._writing():
            source = {point.id: point for point in self._backend.get(sides.serving, ids)}
            other = self._backend.get(sides.other, ids, vectors=True)
            gone = [point.id for point in other if point.id not in source]
            if gone:
                self._backend.delete(sides.other, gone)
            kept = [(source[point.id], point) for point in other if point.id in source]
            moved = [
                replace(point, payload=there.payload)
                for there, point in kept
                if there.text == point.text and not _same(there.payload, point.payload)
            ]
            if moved:
                self._backend.put(sides.other, moved)
        self._unbury_served(sides, [key for key in keys if key[0] in source])
        return {key for key in keys if key[0] not in source}

    def _unbury_served(self, sides: Sides, keys: Sequence[Key]) -> None:
        """A row that the application has written where it serves is no dead letter of that side any more."""
        side, record = Side.NEW if sides.serving == sides.new else Side.OLD, self._open_record()
        if record is not None and self._letters(side, keys):
            with self.transaction():
                self._ledger.unbury(record, side, keys)

    def orphans(self, limit: int) -> list[Key]:
        """See `Capture.orphans`. A dead letter of the side that serves is none: the other side alone has its row."""
        sides = self._sides()
        if self._is_half_finalized(sides):
            return []
        gone = set(self._backend.ids(sides.other)).difference(self._backend.ids(sides.serving))
        keys: list[Key] = [(name,) for name in sorted(gone)]
        letters = self._letters(Side.NEW if sides.serving == sides.new else Side.OLD, keys)
        return [key for key in keys if key not in letters][:limit]

    # --- the new side -----------------------------------------------------------------------------

    def new_space(self) -> str | None:
        spec = self._open_spec()
        return spec.fingerprint if spec is not None and self._backend.exists(spec.new_locator) else None

    def counts(self) -> Counts:
        sides, record = self._sides(), self._open_record()
        rows = self._backend.count(sides.serving)
        if record is None or sides.new is None:
            return Counts(rows, rows if self._ledger.find(self._target) else 0, 0)
        done = self._backend.count(sides.new) if self._backend.exists(sides.new) else 0
        return Counts(rows, done, self._ledger.count_dead_letters(record, Side.NEW))

    def key_ranges(self, rows_each: int) -> list[KeyRange]:
        ids = self._refreshed_ids()
        ends: list[Key | None] = [None, *((name,) for name in ids[rows_each - 1 :: rows_each])]
        if ids and ends[-1] != (ids[-1],):
            ends.append((ids[-1],))
        return [KeyRange(lo, hi) for lo, hi in pairwise(ends)]

    def _refreshed_ids(self) -> list[str]:
        self._sorted_ids = sorted(self._backend.ids(self._sides().serving))
        return self._sorted_ids

    def pending(self, within: KeyRange, limit: int, side: Side = Side.NEW) -> list[Row]:
        """See `NewSide.pending`. Ids are listed once for a sweep from the beginning, and remembered for its rest."""
        sides = self._sides()
        if sides.name(side) == sides.serving or self._is_half_finalized(sides):
            return []
        known = self._sorted_ids
        ids = self._refreshed_ids() if known is None or within == KeyRange() else known
        start = bisect_right(ids, within.lo[0]) if within.lo else 0
        end = bisect_right(ids, within.hi[0]) if within.hi else len(ids)
        rows: list[Row] = []
        for first in range(start, end, PAGE):
            rows += sorted(self._behind(sides, side, ids[first : min(first + PAGE, end)]), key=lambda row: row.key)
            if len(rows) >= limit:
                break
        return rows[:limit]

    def examine(self, dimension: int, max_keys: int = 10) -> Examination:
        sides = self._sides()
        findings = _Findings(dimension, max_keys)
        rows = 0
        for points in self._pages(sides.serving):
            rows += len(points)
            new = {p.id: p for p in self._backend.get(sides.other, [p.id for p in points], vectors=True)}
            letters = self._letters(Side.NEW, [(point.id,) for point in points])
            for point in points:
                findings.look(point, new.get(point.id), letters.get((point.id,)))
        orphans = self.orphans(10 * max_keys)
        return Examination(
            rows,
            orphaned=Finding(len(orphans), tuple(orphans[:max_keys])),
            missing_indexes=self._backend.missing_indexes(sides.other, sides.serving),
            **findings.found(),
        )

    def sample_vectors(self, num_rows: int) -> list[tuple[Row, Float32]]:
        sides = self._sides()
        ids = list(self._backend.ids(sides.name(Side.NEW)))
        chosen = random.sample(ids, min(num_rows, len(ids)))
        texts = {point.id: point.text for point in self._backend.get(sides.serving, chosen)}
        return [
            (Row((point.id,), point.text), point.vector)
            for point in self._backend.get(sides.name(Side.NEW), chosen, vectors=True)
            if point.vector is not None and texts.get(point.id) == point.text
        ]

    # --- writing ----------------------------------------------------------------------------------

    def prepare(self, dimension: int, fingerprint: str, outputs: Outputs = DENSE) -> None:  # noqa: ARG002  # in the spec
        """See `Writing.prepare`. A collection of that name that has points in it is not ours: StoreSchemaError."""
        sides = self._sides()
        if not self._backend.exists(sides.other):
            self._backend.create(sides.other, like=sides.serving, dimension=dimension, outputs=outputs)
        elif self._backend.count(sides.other) and self._backend.dimension(sides.other) != dimension:
            what = f"there is a collection {sides.other} already, and it is not of this migration"
            raise StoreSchemaError(what, "Rename or drop it.")

    def write(self, side: Side, vectors: Sequence[NewVector], then: Then = nothing_more) -> set[Key]:
        """See `Writing.write`. What was read as a row's text is compared with the text now; a write that comes
        between this and the store's answer is in the journal, so that the row is done again.
        """
        with self._writing():
            written = self._put_current(side, vectors)
        with self.transaction():
            then(written)
        return written

    def _put_current(self, side: Side, vectors: Sequence[NewVector]) -> set[Key]:
        sides = self._sides()
        if sides.name(side) == sides.serving or not vectors:
            return set()
        source = {p.id: p for p in self._backend.get(sides.serving, [vector.key[0] for vector in vectors])}
        current = [v for v in vectors if v.key[0] in source and text_digest(source[v.key[0]].text) == v.digest]
        dead = [v.key[0] for v in current if v.vector is None]
        if dead:
            self._backend.delete(sides.other, dead)
        points = [
            replace(source[v.key[0]], vector=v.vector, sparse=v.sparse, colbert=v.colbert)
            for v in current
            if v.vector is not None
        ]
        if points:
            self._backend.put(sides.other, points)
        return {vector.key for vector in current}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Inside, the sides do not change places, and the lease was ours at the beginning."""
        if self._lease is not None:
            self._ledger.guard(self._lease)
        with self._ledger.passing(self._target):
            yield

    def retry_dead_letters(self) -> None:
        """See `Writing.retry_dead_letters`. While the new side serves, it has no text for these to be done from."""
        record, sides = self._open_record(), self._sides()
        if record is not None and sides.serving != sides.new:
            letters = self._ledger.dead_letters(record, self._ledger.count_dead_letters(record, Side.NEW), Side.NEW)
            self._ledger.unbury(record, Side.NEW, [letter.key for letter in letters])

    def build_indexes(self) -> tuple[str, ...]:
        sides = self._sides()
        return () if self._is_half_finalized(sides) else self._backend.build_indexes(sides.other, sides.serving)

    def switch(self) -> None:
        self._point_alias(self._sides().name(Side.NEW))

    def switch_back(self, *, not_null: bool) -> bool:  # noqa: ARG002  # no store of points knows NOT NULL
        self._point_alias(self._sides().name(Side.OLD))
        return False

    def _point_alias(self, collection: str) -> None:
        """For clients that know the collection by an alias; where the target is none, there is nothing to point."""
        backend = self._backend
        if isinstance(backend, Aliased) and backend.is_alias(self._target):
            backend.point_alias(self._target, collection)

    def drop_old(self) -> None:
        sides = self._sides()
        if sides.serving != sides.old:
            self._backend.drop(sides.old)

    def drop_new(self) -> None:
        sides = self._sides()
        if sides.new is not None and sides.serving != sides.new:
            self._point_alias(sides.serving)
            self._backend.drop(sides.new)

    # --- keeping things together ------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._ledger.transaction():
            if self._lease is not None:
                self._ledger.guard(self._lease)
            yield

    def exclusively(self, work: Callable[[], T], patience: Patience) -> T:
        """See `Writing.exclusively`. Writers through `put` and `remove` wait; they go on by themselves after the
        patience, and then nothing of the work is kept in the ledger.
        """
        return patiently(lambda: self._hold_writers(work, patience.timeout_s), patience)

    def _hold_writers(self, work: Callable[[], T], seconds: float) -> T:
        with self._ledger.writers_held(self._target, seconds):
            try:
                with self.transaction():
                    result = work()
                    if not self._ledger.still_held(self._target):
                        raise Locked(self._target, f"writers, who were held off for {seconds:g} s")
                    return result
            except BaseException:
                self._point_alias(self._sides().serving)
                raise

    @contextmanager
    def runner(self, lease_s: float) -> Iterator[None]:
        self._ledger.install()
        with held(self._ledger, self._target, lease_s) as lease:
            self._lease = lease
            try:
                yield
            finally:
                self._lease = None


def _same(a: object, b: object) -> bool:
    return a == b or repr(a) == repr(b)  # a NaN is the same as itself here


class _Findings:
    """What `examine` sees, point by point."""

    def __init__(self, dimension: int, max_keys: int) -> None:
        self._dimension = dimension
        self._max_keys = max_keys
        self._keys: dict[str, list[Key]] = {}
        self._counts: dict[str, int] = {}

    def _note(self, defect: str, key: Key) -> None:
        self._counts[defect] = self._counts.get(defect, 0) + 1
        if len(keys := self._keys.setdefault(defect, [])) < self._max_keys:
            keys.append(key)

    def look(self, point: Point, new: Point | None, letter: bytes | None) -> None:
        """letter: digest of the text that could not be embedded."""
        key = (point.id,)
        if new is None:
            self._note("without_vector" if letter == text_digest(point.text) else "stale", key)
            return
        if new.text != point.text or not _same(new.payload, point.payload):
            self._note("stale", key)
        if new.vector is None:
            self._note("without_vector", key)
        elif new.vector.shape != (self._dimension,):
            self._note("wrong_dimension", key)
        elif not np.isfinite(new.vector).all():
            self._note("not_finite", key)
        else:
            norm = float(np.linalg.norm(new.vector))
            if norm == 0:
                self._note("zero", key)
            if abs(norm - 1) > NORM_TOLERANCE:
                self._note("off_norm", key)

    def found(self) -> dict[str, Finding]:
        return {defect: Finding(count, tuple(self._keys[defect])) for defect, count in self._counts.items()}
