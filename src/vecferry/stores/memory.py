"""A store in a dict: the double for tests of what is above it, and the dry run. Nothing outlives the process."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from vecferry.embeddings import Float32
from vecferry.errors import Locked, MigrationConflict, SpaceMismatch, StoreSchemaError
from vecferry.stores import (
    Changes,
    Counts,
    Examination,
    Hit,
    Key,
    KeyRange,
    NewVector,
    Patience,
    Row,
    TableInfo,
    text_digest,
)
from vecferry.stores.ledger import DeadLetter, Event, MigrationRecord, MigrationSpec, RangeRecord, Serving

T = TypeVar("T")
NORM_TOLERANCE = 1e-3


@dataclass
class MemoryRow:
    """serving and old: float32 [D of that space] or None; new and digest: the new side."""

    text: str | None
    serving: Float32 | None = None
    new: Float32 | None = None
    old: Float32 | None = None
    digest: bytes | None = None


@dataclass
class _Held:
    """All that a transaction keeps or loses."""

    rows: dict[Key, MemoryRow] = field(default_factory=dict)
    new_space: str | None = None
    serving_space: str | None = None
    switched: bool = False
    records: list[MigrationRecord] = field(default_factory=list)
    ranges: dict[tuple[int, int], tuple[KeyRange, bool]] = field(default_factory=dict)
    letters: dict[tuple[int, Key], DeadLetter] = field(default_factory=dict)
    events: list[tuple[int, Event]] = field(default_factory=list)
    epochs: dict[str, Serving] = field(default_factory=dict)


class MemoryStore:
    """`stores.Store` over rows in memory; keys sort as tuples of text."""

    def __init__(self, rows: Mapping[Key, MemoryRow] | None = None, target: str = "memory") -> None:
        self._held = _Held(rows=dict(rows or {}))
        self._target = target
        self._running = False
        self._ledger = MemoryLedger(self)

    @property
    def held(self) -> _Held:
        return self._held

    @property
    def rows(self) -> dict[Key, MemoryRow]:
        """The rows themselves, for whoever writes to the collection from outside."""
        return self._held.rows

    @property
    def target(self) -> str:
        return self._target

    @property
    def text_source(self) -> str:
        return "text"

    @property
    def ledger(self) -> MemoryLedger:
        return self._ledger

    # --- reading ----------------------------------------------------------------------------------

    def describe(self) -> TableInfo:
        vectors = [row.serving for row in self.rows.values() if row.serving is not None]
        text_bytes = sum(len((row.text or "").encode("utf-8", "surrogatepass")) for row in self.rows.values())
        vector_bytes = sum(vector.nbytes for vector in vectors)
        return TableInfo(
            rows=len(self.rows),
            null_texts=sum(row.text is None for row in self.rows.values()),
            empty_texts=sum(row.text == "" for row in self.rows.values()),
            dimension=len(vectors[0]) if vectors else None,
            fingerprint=self._held.serving_space,
            vector_not_null=False,
            table_bytes=text_bytes + vector_bytes,
            row_bytes=0,
            index_bytes=0,
            vector_bytes=vector_bytes,
        )

    def sample(self, num_rows: int) -> list[Row]:
        filled = [Row(key, row.text) for key, row in self.rows.items() if row.text is not None]
        return _some(filled, num_rows)

    def search(self, vector: Float32, k: int, *, fingerprint: str) -> list[Hit]:
        serving = self._ledger.serving(self._target)
        expected = serving.fingerprint if serving else self._held.serving_space
        if expected is not None and expected != fingerprint:
            raise SpaceMismatch(expected=expected, found=fingerprint, where=f"a search in {self._target}")
        hits = []
        for key, row in self.rows.items():
            if row.serving is not None:
                if row.serving.shape != vector.shape:
                    where = f"a search in {self._target} with {len(vector)} numbers, which has {len(row.serving)}"
                    raise SpaceMismatch(expected="not recorded", found=fingerprint, where=where)
                lengths = float(np.linalg.norm(row.serving) * np.linalg.norm(vector))
                hits.append(Hit(key, float(row.serving @ vector) / lengths))
        return sorted(hits, key=lambda hit: (-hit.score, hit.key))[:k]

    # --- the new side -----------------------------------------------------------------------------

    def new_space(self) -> str | None:
        return self._held.new_space

    def _new_vector(self, row: MemoryRow) -> Float32 | None:
        return row.serving if self._held.switched else row.new

    def _set_new_vector(self, row: MemoryRow, vector: Float32 | None) -> None:
        if self._held.switched:
            row.serving = vector
        else:
            row.new = vector

    def _require_new_side(self) -> None:
        if self._held.new_space is None:
            raise StoreSchemaError(f"{self._target} has no new side", "It was dropped: run start again.")

    def counts(self) -> Counts:
        if self._held.new_space is None:
            done = 0 if self._held.serving_space is None else sum(r.serving is not None for r in self.rows.values())
            return Counts(len(self.rows), done, 0)
        done = sum(self._new_vector(row) is not None for row in self.rows.values())
        tried = sum(row.digest is not None and self._new_vector(row) is None for row in self.rows.values())
        return Counts(len(self.rows), done, tried)

    def key_ranges(self, rows_each: int) -> list[KeyRange]:
        keys = sorted(self.rows)
        ends: list[Key | None] = [None, *keys[rows_each - 1 :: rows_each]]
        if keys and ends[-1] != keys[-1]:
            ends.append(keys[-1])
        return [KeyRange(lo, hi) for lo, hi in pairwise(ends)]

    def _changed(self) -> list[Key]:
        return [key for key in sorted(self.rows) if self.rows[key].digest != text_digest(self.rows[key].text)]

    def pending(self, within: KeyRange, limit: int) -> list[Row]:
        inside = [
            key
            for key in self._changed()
            if (within.lo is None or key > within.lo) and (within.hi is None or key <= within.hi)
        ]
        return [Row(key, self.rows[key].text) for key in inside[:limit]]

    def changes(self, max_keys: int = 10) -> Changes:
        self._require_new_side()
        changed = self._changed()
        letters = sum(self._new_vector(row) is None for row in self.rows.values() if _is_tried(row))
        return Changes(len(changed), tuple(changed[:max_keys]), letters)

    def examine(self, dimension: int) -> Examination:
        found = self.changes()
        vectors = [vector for row in self.rows.values() if (vector := self._new_vector(row)) is not None]
        norms = [float(np.linalg.norm(vector)) for vector in vectors]
        return Examination(
            rows=len(self.rows),
            changed=found.changed,
            without_vector=found.dead_letters,
            wrong_dimension=sum(vector.shape != (dimension,) for vector in vectors),
            not_finite=sum(not np.isfinite(vector).all() for vector in vectors),
            off_norm=sum(not abs(norm - 1) <= NORM_TOLERANCE for norm in norms),
            missing_indexes=(),
        )

    def sample_vectors(self, num_rows: int) -> list[tuple[Row, Float32]]:
        done = [
            (Row(key, row.text), vector)
            for key, row in self.rows.items()
            if (vector := self._new_vector(row)) is not None and _is_tried(row)
        ]
        return _some(done, num_rows)

    # --- writing ----------------------------------------------------------------------------------

    def prepare(self, dimension: int, fingerprint: str) -> None:  # noqa: ARG002  # a dict needs no dimension
        self._held.new_space = fingerprint

    def write(self, vectors: Sequence[NewVector]) -> int:
        self._require_new_side()
        current = [v for v in vectors if v.key in self.rows and text_digest(self.rows[v.key].text) == v.digest]
        for new in current:
            self.rows[new.key].digest = new.digest
            self._set_new_vector(self.rows[new.key], new.vector)
        return len(current)

    def retry_dead_letters(self) -> None:
        for row in self.rows.values():
            if self._new_vector(row) is None:
                row.digest = None

    def build_indexes(self) -> tuple[str, ...]:
        return ()

    def switch(self) -> None:
        for row in self.rows.values():
            row.old, row.serving, row.new = row.serving, row.new, None
        self._held.switched = True

    def switch_back(self, *, not_null: bool) -> bool:
        for row in self.rows.values():
            row.new, row.serving, row.old = row.serving, row.old, None
        self._held.switched = False
        return not_null and all(row.serving is not None for row in self.rows.values())

    def drop_old(self) -> None:
        for row in self.rows.values():
            row.old = row.digest = None
        self._held.serving_space, self._held.new_space, self._held.switched = self._held.new_space, None, False

    # --- keeping things together ------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        before = copy.deepcopy(self._held)
        try:
            yield
        except BaseException:
            self._held = before
            raise

    def exclusively(self, work: Callable[[], T], patience: Patience) -> T:  # noqa: ARG002  # nobody to wait for
        with self.transaction():
            return work()

    @contextmanager
    def runner(self) -> Iterator[None]:
        if self._running:
            raise Locked(self._target, "another run in this process")
        self._running = True
        try:
            yield
        finally:
            self._running = False


def _is_tried(row: MemoryRow) -> bool:
    return row.digest == text_digest(row.text)


def _some(values: Iterable[T], how_many: int) -> list[T]:
    everything = list(values)
    return random.sample(everything, min(how_many, len(everything)))


class MemoryLedger:
    """`ledger.Ledger` beside the rows of a `MemoryStore`, and in its transactions."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    @property
    def _held(self) -> _Held:
        return self._store.held

    def install(self) -> None:
        pass

    def find(self, target: str) -> MigrationRecord | None:
        found = [record for record in self._held.records if record.spec.target == target]
        return found[-1] if found else None

    def create(self, spec: MigrationSpec, state: str) -> MigrationRecord:
        record = MigrationRecord(len(self._held.records) + 1, spec, state, 1)
        self._held.records.append(record)
        self.add_event(record, state, {})
        return record

    def move(self, record: MigrationRecord, state: str, detail: Mapping[str, Any]) -> MigrationRecord:
        found = self._held.records[record.id - 1]
        if (found.state, found.version) != (record.state, record.version):
            stored, given = (f"{r.state}, version {r.version}" for r in (found, record))
            raise MigrationConflict(record.spec.target, "state", stored, given)
        self._held.records[record.id - 1] = replace(found, state=state, version=found.version + 1)
        self.add_event(record, state, detail)
        return self._held.records[record.id - 1]

    def add_event(self, record: MigrationRecord, what: str, detail: Mapping[str, Any]) -> None:
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self._held.events.append((record.id, Event(at, what, dict(detail))))

    def events(self, record: MigrationRecord, last: int) -> list[Event]:
        return [event for number, event in self._held.events if number == record.id][-last:]

    def keep_verification(self, record: MigrationRecord, report: Mapping[str, Any]) -> None:
        found = self._held.records[record.id - 1]
        self._held.records[record.id - 1] = replace(found, verification=dict(report))

    def add_ranges(self, record: MigrationRecord, ranges: Sequence[KeyRange]) -> None:
        self._held.ranges.update({(record.id, i): (keys, False) for i, keys in enumerate(ranges, start=1)})

    def open_ranges(self, record: MigrationRecord) -> list[RangeRecord]:
        return [
            RangeRecord(number, keys)
            for (owner, number), (keys, done) in self._held.ranges.items()
            if owner == record.id and not done
        ]

    def close_range(self, record: MigrationRecord, number: int) -> None:
        keys, _ = self._held.ranges[record.id, number]
        self._held.ranges[record.id, number] = (keys, True)

    def count_ranges(self, record: MigrationRecord) -> tuple[int, int]:
        marks = [done for (owner, _), (_, done) in self._held.ranges.items() if owner == record.id]
        return sum(marks), len(marks)

    def bury(self, record: MigrationRecord, letters: Sequence[DeadLetter]) -> None:
        self._held.letters.update({(record.id, letter.key): letter for letter in letters})

    def unbury(self, record: MigrationRecord, keys: Sequence[Key]) -> None:
        for key in keys:
            self._held.letters.pop((record.id, key), None)

    def forget_dead_letters(self, record: MigrationRecord) -> None:
        self.unbury(record, [key for owner, key in self._held.letters if owner == record.id])

    def dead_letters(self, record: MigrationRecord, limit: int) -> list[DeadLetter]:
        return [letter for (owner, _), letter in self._held.letters.items() if owner == record.id][:limit]

    def serving(self, target: str) -> Serving | None:
        return self._held.epochs.get(target)

    def serve(self, target: str, serving: Serving) -> None:
        self._held.epochs[target] = serving
