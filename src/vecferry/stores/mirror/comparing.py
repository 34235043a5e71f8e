"""What is on one side and not on the other, or not as it should be. Nothing is written."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from vecferry.embeddings import Float32
from vecferry.stores.backend import Point
from vecferry.stores.mirror.sides import PAGE, MirrorSides, Sides
from vecferry.stores.values import (
    EVERYTHING,
    NORM_TOLERANCE,
    NOTHING,
    Counts,
    Examination,
    Finding,
    Key,
    KeyRange,
    Row,
    Side,
)


def same(a: object, b: object) -> bool:
    return a == b or repr(a) == repr(b)  # a NaN is the same as itself here


def _is_alike(a: Point, b: Point) -> bool:
    """Return whether all but the vectors is the same."""
    return a.text == b.text and same(a.payload, b.payload)


class MirrorComparison:
    """What is current on the sides."""

    def __init__(self, sides: MirrorSides) -> None:
        self._sides, self._backend, self._target, self._ledger = sides, sides.backend, sides.target, sides.ledger
        self._sorted_ids: list[str] | None = None

    def new_space(self) -> str | None:
        spec, new = self._sides.open_spec(), self._sides.now().new
        return spec.fingerprint if spec is not None and new is not None and self._backend.exists(new) else None

    def counts(self) -> Counts:
        return self._sides.retried(self._counts)

    def _counts(self, sides: Sides) -> Counts:
        record = self._sides.open_record()
        rows = self._backend.count(sides.serving)
        if record is None or sides.new is None:
            return Counts(rows, rows if self._ledger.find(self._target) else 0, 0)
        unembedded = 0 if self._sides.embed_missing else self._sides.count_without_vector(sides.serving)
        return Counts(rows, self._done(sides.new), self._ledger.count_dead_letters(record, Side.NEW), unembedded)

    def _done(self, new: str) -> int:
        """Return how many points of the new side have a vector."""
        if not self._backend.exists(new):
            return 0
        return self._backend.count(new) - self._sides.count_without_vector(new)

    def key_ranges(self, rows_each: int) -> list[KeyRange]:
        ids = self._refreshed_ids()
        ends: list[Key | None] = [None, *((name,) for name in ids[rows_each - 1 :: rows_each])]
        if ids and ends[-1] != (ids[-1],):
            ends.append((ids[-1],))
        return [KeyRange(lo, hi) for lo, hi in pairwise(ends)]

    def _refreshed_ids(self) -> list[str]:
        self._sorted_ids = sorted(self._backend.ids(self._sides.now().serving))
        return self._sorted_ids

    def outdated(self, side: Side, among: Sequence[Key] | KeyRange = EVERYTHING, limit: int | None = None) -> list[Row]:
        """Return rows without a vector of their text.

        Ids are listed once for a sweep from the beginning, and remembered for its rest.
        """
        if not among:
            return []
        return self._sides.retried(lambda sides: self._outdated(sides, side, among, limit))

    def _outdated(self, sides: Sides, side: Side, among: Sequence[Key] | KeyRange, limit: int | None) -> list[Row]:
        if sides.name(side) == sides.serving or self._sides.is_half_finalized(sides):
            return []
        ids = self._ids_within(among) if isinstance(among, KeyRange) else sorted({key[0] for key in among})
        rows: list[Row] = []
        for first in range(0, len(ids), PAGE):
            rows += sorted(self._behind(sides, side, ids[first : first + PAGE]), key=lambda row: row.key)
            if limit is not None and len(rows) >= limit:
                break
        return rows[:limit]

    def rows_within(self, within: KeyRange, limit: int) -> list[Row]:
        """Return the first rows of a range; ids are listed and remembered as by `outdated`."""
        return self._sides.retried(lambda sides: self._rows_within(sides, within, limit))

    def _rows_within(self, sides: Sides, within: KeyRange, limit: int) -> list[Row]:
        rows: list[Row] = []
        for points in self._sides.pages_of(sides.serving, self._ids_within(within)):
            rows += sorted(map(self._sides.row, points), key=lambda row: row.key)
            if len(rows) >= limit:
                break
        return rows[:limit]

    def _ids_within(self, keys: KeyRange) -> list[str]:
        known = self._sorted_ids
        ids = self._refreshed_ids() if known is None or keys == EVERYTHING else known
        start = bisect_right(ids, keys.lo[0]) if keys.lo else 0
        end = bisect_right(ids, keys.hi[0]) if keys.hi else len(ids)
        return ids[start:end]

    def count_outdated(self, side: Side, max_keys: int = 10, *, with_vector: bool = False) -> Finding:
        keys = [row.key for row in self.outdated(side)]
        if with_vector:
            stored = {point.id for point in self._backend.get(self._sides.now().name(side), [key[0] for key in keys])}
            keys = [key for key in keys if key[0] in stored]
        return Finding(len(keys), tuple(keys[:max_keys])) if keys else NOTHING

    def check_integrity(self, dimension: int, max_keys: int = 10) -> Examination:
        sides = self._sides.now()
        is_serving = sides.serving == sides.new  # then its texts are the rows, and none is without one
        findings = Findings(dimension, max_keys, self._sides)
        rows = 0
        for points in self._sides.pages(sides.serving, vectors=is_serving):
            rows += len(points)
            new = {p.id: p for p in (points if is_serving else self._of_other(sides, points))}
            dead_letters = self._sides.dead_letter_digests(Side.NEW, [(point.id,) for point in points])
            unembedded = self._sides.unembedded(sides.serving, [point.id for point in points])
            for point in sorted(points, key=lambda point: point.id):
                if point.id in unembedded:
                    findings.look_without_vector(point, new.get(point.id))
                else:
                    findings.look(point, new.get(point.id), dead_letters.get((point.id,)))
        orphans = [] if is_serving else self.orphans(10 * max_keys)
        return Examination(
            rows,
            findings.unembedded,
            orphaned=Finding(len(orphans), tuple(orphans[:max_keys])),
            missing_indexes=self._missing_indexes(sides),
            **findings.by_defect(),
        )

    def _of_other(self, sides: Sides, points: Sequence[Point]) -> list[Point]:
        """Return the same points as they are on the side that follows."""
        return self._backend.get(sides.other, [point.id for point in points], vectors=True)

    def _missing_indexes(self, sides: Sides) -> tuple[str, ...]:
        if self._sides.is_half_finalized(sides):
            return ()
        return self._backend.missing_indexes(sides.name(Side.NEW), sides.name(Side.OLD))

    def sample_vectors(self, num_rows: int) -> list[tuple[Row, Float32]]:
        sides = self._sides.now()
        ids = list(self._backend.ids(sides.name(Side.NEW)))
        chosen = random.sample(ids, min(num_rows, len(ids)))
        texts = {point.id: self._sides.text(point) for point in self._backend.get(sides.serving, chosen)}
        return [
            (self._sides.row(point), point.vectors.dense)
            for point in self._backend.get(sides.name(Side.NEW), chosen, vectors=True)
            if point.vectors is not None and texts.get(point.id) == self._sides.text(point)
        ]

    def _behind(self, sides: Sides, side: Side, ids: Sequence[str]) -> list[Row]:
        """Return rows whose text is not that of their point on the side that follows, and no dead letters.

        And those that have a vector on one of the sides alone.
        """
        source, unembedded = self._backend.get(sides.serving, ids), self._sides.unembedded(sides.serving, ids)
        texts = {point.id: self._sides.text(point) for point in self._backend.get(sides.other, ids)}
        differing = unembedded ^ self._sides.without_vector(sides.other, ids)
        rows = [
            replace(row, takes_vector=row.key[0] not in unembedded)
            for row in map(self._sides.row, source)
            if row.key[0] not in texts or texts[row.key[0]] != row.text or row.key[0] in differing
        ]
        dead_letters = self._sides.dead_letter_digests(side, [row.key for row in rows])
        return [row for row in rows if not row.takes_vector or dead_letters.get(row.key) != row.digest]

    def orphans(self, limit: int) -> list[Key]:
        """Return keys with a vector and without a row.

        A dead letter of the side that serves is none: the other side alone has its row.
        """
        return self._sides.retried(lambda sides: self._orphans(sides, limit))

    def _orphans(self, sides: Sides, limit: int) -> list[Key]:
        if self._sides.is_half_finalized(sides):
            return []
        gone = set(self._backend.ids(sides.other)).difference(self._backend.ids(sides.serving))
        keys: list[Key] = [(name,) for name in sorted(gone)]
        dead_letters = self._sides.dead_letter_digests(Side.NEW if sides.serving == sides.new else Side.OLD, keys)
        points = self._backend.get(sides.other, [key[0] for key in dead_letters])
        kept = {(point.id,) for point in points if self._sides.row(point).digest == dead_letters[point.id,]}
        return [key for key in keys if key not in kept][:limit]


class Findings:
    """What `check_integrity` sees, point by point."""

    def __init__(self, dimension: int, max_keys: int, sides: MirrorSides) -> None:
        self._dimension = dimension
        self._sides = sides
        self._max_keys = max_keys
        self._keys: dict[str, list[Key]] = {}
        self._counts: dict[str, int] = {}
        self.unembedded = 0

    def _note(self, defect: str, key: Key) -> None:
        self._counts[defect] = self._counts.get(defect, 0) + 1
        if len(keys := self._keys.setdefault(defect, [])) < self._max_keys:
            keys.append(key)

    def look_without_vector(self, point: Point, new: Point | None) -> None:
        """Look at a point that takes no vector, and is there all the same."""
        self.unembedded += 1
        if new is None or new.vectors is not None or not _is_alike(new, point):
            self._note("outdated", (point.id,))

    def look(self, point: Point, new: Point | None, dead_letter: bytes | None) -> None:
        """Look at a point. dead_letter: digest of the text that could not be embedded."""
        key = (point.id,)
        if new is None:
            self._note("without_vector" if dead_letter == self._sides.row(point).digest else "outdated", key)
            return
        if not _is_alike(new, point):
            self._note("outdated", key)
        if new.vectors is None:
            self._note("without_vector", key)
        elif (dense := new.vectors.dense).shape != (self._dimension,):
            self._note("wrong_dimension", key)
        elif not np.isfinite(dense).all():
            self._note("not_finite", key)
        else:
            norm = float(np.linalg.norm(dense))
            if norm == 0:
                self._note("zero", key)
            if abs(norm - 1) > NORM_TOLERANCE:
                self._note("off_norm", key)

    def by_defect(self) -> dict[str, Finding]:
        return {defect: Finding(count, tuple(self._keys[defect])) for defect, count in self._counts.items()}
