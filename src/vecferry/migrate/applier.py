"""What is written to the rows: staged ranges, rows that a sweep finds, and what was captured."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from vecferry.embeddings import Outputs, TextVectors
from vecferry.encode.encoder import TextEncoder
from vecferry.errors import MigrationConflict
from vecferry.migrate.embed import Embedded
from vecferry.migrate.engines.task import embed_unknown
from vecferry.migrate.throttle import Throttle
from vecferry.precisions import Mark
from vecferry.stores.ledger import MigrationRecord, was_switched
from vecferry.stores.protocol import Store
from vecferry.stores.values import BOTH_SIDES, EVERYTHING, Change, Key, KeyRange, NewVector, Row, Side

NEW_SIDE_FIRST = (Side.NEW, Side.OLD)
"""A row whose new vector is written has its old one adopted in the same stroke, until the first switch."""
IDLE_S, LONGEST_IDLE_S = 0.01, 0.2
"""Between two looks for captured writes; the longer the more often only rows were found that others are writing."""
UNWRITTEN_BATCHES = 4
LOCKED_S = 0.05
"""For which rows are locked at most, as far as it can be foreseen."""
FIRST_ROWS = 4
"""Written together as long as nobody knows how long that takes."""
FOLLOWED_AT_ONCE = 64
"""Captured writes that are applied together; more would let the last of them wait for the model."""
MAX_LAST_ROWS = 64
"""That may be embedded while writers wait."""


@dataclass(frozen=True)
class SideModels:
    """None where a model is not given: then its side is not followed.

    backfill: what fills the ranges of the new side, where that is another precision than `new`, which follows writes.
    """

    new: TextEncoder | None = None
    old: TextEncoder | None = None
    backfill: TextEncoder | None = None

    def of(self, side: Side) -> TextEncoder | None:
        return self.new if side is Side.NEW else self.old

    @property
    def sides(self) -> frozenset[Side]:
        return frozenset(side for side in Side if self.of(side) is not None)


def refuse_conflicts(record: MigrationRecord, store: Store, models: SideModels) -> None:
    """Raise MigrationConflict if the migration was begun with something else, PrecisionMismatch for another form of it.

    A form that was found to agree with the one that it was begun with may go on.
    """
    begun = record.spec
    traits = store.traits
    present: dict[str, object] = {"text_source": traits.text_source, "embed_missing": traits.embed_missing}
    marks: list[tuple[str, Mark, str]] = []
    if models.new is not None:
        present["dimension"] = models.new.dimension
        marks.append(("fingerprint", models.new.space.mark(Outputs.of(begun.outputs)), begun.fingerprint))
    if models.old is not None and begun.old_fingerprint:
        marks.append(("old_fingerprint", models.old.space.mark(), begun.old_fingerprint))
    for name, mark, index in marks:
        if mark.fingerprint != Mark.parse(index).fingerprint:
            raise MigrationConflict(begun.target, name, index, str(mark))
    for name, value in present.items():
        stored = getattr(begun, name)
        if value != stored:
            raise MigrationConflict(begun.target, name, stored, value)
    for _, mark, index in marks:
        mark.require(Mark.parse(index), "passage", f"the vectors of {begun.target}")


@dataclass
class Applier:
    """Brings the sides up to date, as far as their models are given. Every method is safe to repeat.

    rows_at_once: read and embedded together. rows_per_write: kept in one transaction at most, and so locked together;
    fewer where that takes long, as with an index on the vectors. tell: told of each number of rows written.
    """

    store: Store
    throttle: Throttle
    models: SideModels
    rows_at_once: int
    rows_per_write: int
    tell: Callable[[int], None]

    def __post_init__(self) -> None:
        self._ledger = self.store.ledger
        self._unwritten: dict[Side, dict[bytes, TextVectors]] = {side: {} for side in Side}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vecferry-last-rows")
        self._embedding: Future[Embedded] | None = None
        self._checked = set[Side]()
        self._is_mixed: bool | None = None
        self.write_few()

    @property
    def _record(self) -> MigrationRecord:
        return self.throttle.record

    def can_follow(self, side: Side) -> bool:
        """Return whether the side needs no model, as the old one until the first switch, or its model is there."""
        return self.models.of(side) is not None or (side is Side.OLD and not self._was_switched())

    def _model(self, side: Side) -> TextEncoder | None:
        """Return the side's model, checked when first needed: a verb that calls no model can do without a fit one."""
        model = self.models.of(side)
        if model is not None and side not in self._checked:
            models = SideModels(model) if side is Side.NEW else SideModels(old=model)
            refuse_conflicts(self._record, self.store, models)
            self._checked.add(side)
        return model

    def _was_switched(self) -> bool:
        return was_switched(self._ledger, self._record)

    # --- every row --------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Compare every row on both sides, and do what no range and no capture has done.

        What has to be left out, because others are writing it, is captured, and so done by `catch_up`.
        """
        for side in filter(self.can_follow, NEW_SIDE_FIRST):
            keys = EVERYTHING
            while rows := self.store.outdated(side, keys, self.rows_at_once):
                self.throttle.acquire(len(rows))
                self._bring_current(side, rows)
                keys = KeyRange(rows[-1].key, None)
        for gone in iter(lambda: self.store.orphans(self.rows_at_once), []):
            self.throttle.acquire(len(gone))
            self.store.apply_deletes(gone)
        self.forget_gone_letters()

    def forget_gone_letters(self) -> None:
        """Drop dead letters whose row was deleted unseen. Those of the serving side may have theirs on the other."""
        side = self._side_that_follows()
        if (keys := self._dead_letter_keys(side)) and (gone := self.store.apply_deletes(keys)):
            with self.store.transaction():
                self._ledger.remove_dead_letters(self._record, side, sorted(gone))

    def retry_dead_letters(self) -> None:
        """Leave every dead letter to be done again, and captured. No row is touched before it is written.

        Where a row goes with its vector, those of the side that serves have no text that they could be done from.
        """
        with self.store.transaction():
            for side in Side if self.store.traits.rows_outlive_vectors else (self._side_that_follows(),):
                keys = self._dead_letter_keys(side)
                self._ledger.reopen_dead_letters(self._record, side, keys)
                self.store.capture_again(keys, side)

    def _side_that_follows(self) -> Side:
        serving = self._ledger.serving(self.store.target)
        return Side.OLD if serving is not None and serving.generation == self._record.spec.generation else Side.NEW

    def _dead_letter_keys(self, side: Side) -> list[Key]:
        number = self._ledger.count_dead_letters(self._record, side)
        return [dead_letter.key for dead_letter in self._ledger.dead_letters(self._record, number, side)]

    # --- what was captured ------------------------------------------------------------------------

    def catch_up(self, sides: Collection[Side] = BOTH_SIDES, *, wait_s: float) -> bool:
        """Leave nothing undone that had been captured when it last looked, on those of the sides that it can follow.

        Rows that others are writing are waited for, `wait_s` at most after the last one that could be done; then
        they stay captured, and false is returned.
        """
        pause_s, until = IDLE_S, time.monotonic() + wait_s
        while changes := self._captured(sides):
            if self._apply(changes, sides):
                pause_s, until = IDLE_S, time.monotonic() + wait_s
            elif time.monotonic() >= until:
                return False
            else:
                self.throttle.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_IDLE_S)
        return True

    def catch_up_once(self, sides: Collection[Side]) -> None:
        """Apply as many writes as are captured when it begins, each once; so it ends, however many come meanwhile."""
        left = sum(map(self.store.backlog, self._followed(sides)))
        while left > 0 and (changes := self._captured(sides)):
            self._apply(changes, sides)
            left -= len(changes)

    def _captured(self, sides: Collection[Side]) -> list[Change]:
        changes = self.store.captured(FOLLOWED_AT_ONCE, self._followed(sides))
        if changes:
            self.throttle.acquire(len(changes))
        return changes

    def _followed(self, sides: Collection[Side]) -> frozenset[Side]:
        """Return the sides that can be followed, and the old one as long as no model is needed for it."""
        unneeded = set[Side]() if self._was_switched() else {Side.OLD}
        return frozenset(unneeded | {side for side in sides if self.can_follow(side)})

    def _apply(self, changes: Sequence[Change], sides: Collection[Side]) -> bool:
        """Return whether anything could be done; rows that others are writing are captured again for their side."""
        keys = self._settled_keys(changes)
        followed, left = self._followed(sides), dict[Side, set[Key]]()
        for side in NEW_SIDE_FIRST:
            rows = self.store.outdated(side, _keys(changes, side))
            done = self._bring_current(side, rows) if side in followed else self._take_vectors(side, rows)
            left[side] = {row.key for row in rows} - done
        with self.store.transaction():
            self.store.acknowledge(changes)
            for side in Side:
                self.store.capture_again(sorted(left[side]), side)
        return len(set[Key]().union(*(left[side] for side in followed))) < len(keys)

    def _settled_keys(self, changes: Sequence[Change]) -> list[Key]:
        """Do what needs no model, and return the keys of the changes."""
        keys = _keys(changes)
        if gone := sorted(self.store.apply_deletes(keys)):
            for side in Side:
                self._ledger.remove_dead_letters(self._record, side, gone)
            self._ledger.forget_forms(self._record, gone)
        return keys

    def follow(self, until: Callable[[], bool]) -> None:
        """Apply what is captured, as soon as it is, until `until`.

        At the first switch every row is compared: the old side, which the application kept until then, is followed
        from then on.
        """
        pause_s, are_compared = IDLE_S, self._was_switched()
        while not until():
            if not are_compared and self._was_switched():
                are_compared = True
                self.sweep()
            is_held_up = not self.catch_up(wait_s=0)
            self.throttle.poll()
            self.throttle.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_IDLE_S) if is_held_up else IDLE_S

    def finish(self, side: Side, within_s: float) -> bool:
        """Return whether nothing that was captured is left to be done on that side; called while writers wait.

        A few last rows are embedded, if that takes no longer than `within_s`; what comes later is kept for the next
        try. Their notes stay, for the other side.
        """
        changes = self.store.captured(MAX_LAST_ROWS + 1, {side})
        if len(changes) > MAX_LAST_ROWS:
            return False
        keys = self._settled_keys(changes)
        if not self._was_switched():
            self.store.adopt(keys)
        outdated = self.store.outdated(side, keys)
        done = self._take_vectors(side, outdated)
        rows = [row for row in outdated if row.key not in done]
        if not rows:
            return True
        until = time.monotonic() + within_s
        if within_s <= 0 or (model := self._model(side)) is None:
            return False
        embedded = self._embed_until(until, side, model, rows)
        return embedded is not None and {row.key for row in rows} <= self.keep(side, embedded)

    def _embed_until(self, until: float, side: Side, model: TextEncoder, rows: Sequence[Row]) -> Embedded | None:
        """Embed rows; return None if it takes longer. The model then goes on, and what it makes is remembered."""
        self._embedding = self._pool.submit(self._embed, side, model, rows)
        try:
            return self._embedding.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            return None

    # --- embedding and writing --------------------------------------------------------------------

    def _bring_current(self, side: Side, rows: Sequence[Row]) -> set[Key]:
        """Return the keys of rows for which nothing is left to be done on that side; the others are captured."""
        taken = self._take_vectors(side, rows)
        rows = [row for row in rows if row.takes_vector]
        if not rows:
            return taken
        model = self._model(side)
        if model is None or (side is Side.OLD and not self._was_switched()):
            return taken | self.store.adopt([row.key for row in rows])
        if self._embedding is not None:  # a model has one user at a time
            wait([self._embedding])
        return taken | self.keep(side, self._embed(side, model, rows))

    def _take_vectors(self, side: Side, rows: Sequence[Row]) -> set[Key]:
        """Leave no vector on that side for those that take none; return the keys of those where that could be done."""
        none = tuple(NewVector(row.key, row.digest, None) for row in rows if not row.takes_vector)
        return self.keep(side, Embedded(none, ())) if none else set()

    def _embed(self, side: Side, model: TextEncoder, rows: Sequence[Row]) -> Embedded:
        """Embed rows; the vectors are remembered until they are written, so that the next try calls no model."""
        outputs = Outputs.of(self._record.spec.outputs) if side is Side.NEW else Outputs.DENSE
        unwritten = self._unwritten[side]
        embedded = embed_unknown(model, rows, outputs, unwritten)
        for new in embedded.vectors:
            if new.vectors is not None:
                unwritten[new.digest] = new.vectors
        return embedded

    def keep(self, side: Side, embedded: Embedded, closes: int | None = None) -> set[Key]:
        """Leave these vectors written and their dead letters noted; then the mark of the range `closes`.

        Returns the keys of the rows that were written; the others were captured.
        """
        written, left, is_first = set[Key](), list(embedded.vectors), True
        while left or is_first:
            part, is_first = self._part_of(left), False
            written |= self._keep_part(side, part, embedded, None if left else closes, is_backfill=closes is not None)
        self._forget_written(side, embedded, written)
        return written

    def _part_of(self, left: list[NewVector]) -> list[NewVector]:
        """Take out of them those that are written next."""
        if self.store.traits.locks_rows:
            return _spread(left, self._rows_now)
        part = left[: self.rows_per_write]
        del left[: self.rows_per_write]
        return part

    def write_few(self) -> None:
        """Let few rows be written next, until it is known again how long that takes; called where an index came."""
        self._rows_now = min(FIRST_ROWS, self.rows_per_write)

    def _note_forms(self, filled: Collection[Key], emptied: Collection[Key], *, is_backfill: bool) -> None:
        """Keep in which precision these rows are, where it is not their index's."""
        model = (self.models.backfill if is_backfill else None) or self.models.new
        index = Mark.parse(self._record.spec.fingerprint).form.name
        form = index if model is None else model.space.form().name
        if self._is_mixed is None:
            self._is_mixed = bool(self._ledger.count_forms(self._record))
        self._is_mixed = self._is_mixed or form != index
        if form != index:
            self._ledger.note_forms(self._record, form, sorted(filled))
        if self._is_mixed:
            self._ledger.forget_forms(self._record, sorted(emptied if form != index else {*filled, *emptied}))

    def _keep_part(
        self, side: Side, vectors: Sequence[NewVector], embedded: Embedded, closes: int | None, *, is_backfill: bool
    ) -> set[Key]:
        def note(written: set[Key]) -> None:
            dead_letters = [
                replace(dead_letter, side=side) for dead_letter in embedded.dead_letters if dead_letter.key in written
            ]
            self._ledger.remove_dead_letters(self._record, side, sorted(written))
            self._ledger.add_dead_letters(self._record, dead_letters)
            if side is Side.NEW:
                filled = {new.key for new in vectors if new.vectors is not None} & written
                self._note_forms(filled, written - filled, is_backfill=is_backfill)
            if closes is not None:
                self._ledger.close_range(self._record, closes)

        began = time.monotonic()
        written = self.store.write(side, vectors, note)
        self._size_next(len(vectors), time.monotonic() - began)
        self.tell(len(written))
        return written

    def _size_next(self, rows: int, seconds: float) -> None:
        """Let so many rows be written next as take `LOCKED_S`: writers of the application wait that long for them."""
        if rows:
            fitting = int(rows * LOCKED_S / max(seconds, 1e-6))
            self._rows_now = min(max(fitting, 1), 2 * self._rows_now, self.rows_per_write)

    def _forget_written(self, side: Side, embedded: Embedded, written: Collection[Key]) -> None:
        unwritten = self._unwritten[side]
        left = {new.digest for new in embedded.vectors if new.key not in written}
        for new in embedded.vectors:
            if new.digest not in left:
                unwritten.pop(new.digest, None)
        for digest in list(unwritten)[: -UNWRITTEN_BATCHES * self.rows_at_once]:
            del unwritten[digest]


def _spread(left: list[NewVector], number: int) -> list[NewVector]:
    """Take so many at most out of them, evenly.

    Rows of neighbouring keys stand on one page. PostgreSQL leaves a row that it writes on its page, and every index as
    it is, if there is room (a heap-only tuple); there is where a neighbour was written, and moved, by an earlier
    transaction, but not by the same one.
    """
    step = max(1, -(-len(left) // number))
    part = left[::step]
    del left[::step]
    return part


def _keys(changes: Sequence[Change], side: Side | None = None) -> list[Key]:
    """Return each key once; of those that are to be followed on that side."""
    return list(dict.fromkeys(change.key for change in changes if None in (side, change.side) or change.side is side))
