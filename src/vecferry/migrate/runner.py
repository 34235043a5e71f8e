"""What the holder of the lease does between `planned` and the switch, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

from vecferry.embeddings import Outputs
from vecferry.encode.encoder import Progress
from vecferry.errors import SpaceMismatch
from vecferry.migrate.applier import Applier
from vecferry.migrate.engines import Engine, range_name
from vecferry.migrate.pace import Pace
from vecferry.migrate.staging import Staging
from vecferry.migrate.states import CAUGHT_UP, State
from vecferry.migrate.throttle import Throttle
from vecferry.stores.ledger import BEFORE_CAPTURE, MigrationRecord
from vecferry.stores.protocol import Store, StoreGroup
from vecferry.stores.sql_ledger import Ledger
from vecferry.stores.values import BOTH_SIDES, Patience, Side, tell_nobody


class Counter:
    """Rows done, for a progress bar."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = self._total = self._shown = 0

    def begin(self, store: Store) -> None:
        if self._progress is not None:
            counts = store.counts()
            self._done, self._total = counts.done, counts.rows - counts.unembedded
            self._shown = 0
            self._show(self._done)

    def add(self, rows: int) -> None:
        """Count rows that are written."""
        self._done = min(self._done + rows, self._total)
        self._show(self._done)

    def show_encoded(self, rows: int) -> None:
        """Show rows as done that are encoded, and will be written; they are counted once they are."""
        self._show(min(self._done + rows, self._total))

    def _show(self, done: int) -> None:
        if self._progress is not None:
            self._shown = max(self._shown, done)
            self._progress(self._shown, self._total)


@dataclass
class Runner:
    """Each step leaves its state behind and is safe to repeat; `run` goes on from whatever state there is.

    The store must hold the lease.
    """

    store: Store
    throttle: Throttle
    applier: Applier
    counter: Counter
    pace: Pace
    patience: Patience
    wait_for_writers_s: float
    stage: Callable[[str], None] = tell_nobody

    def __post_init__(self) -> None:
        self._encoded = 0

    @property
    def _ledger(self) -> Ledger:
        return self.store.ledger

    @property
    def _record(self) -> MigrationRecord:
        return self.throttle.record

    @property
    def _state(self) -> State:
        return State(self._record.state)

    # --- up to the backfill -----------------------------------------------------------------------

    def run(self, engine: Engine, staging: Staging) -> None:
        """Run from any state up to `catching_up`, with nothing captured left undone."""
        self.counter.begin(self.store)
        self.throttle.poll(now=True)
        steps: Mapping[State, Callable[[], None]] = {
            State.PLANNED: self._prepare,
            State.PREPARED: self._capture,
            State.CAPTURING: self._list_ranges,
            State.BACKFILLING: lambda: self._backfill(engine, staging),
            State.INDEXING: self._index,
        }
        swept_before = self._state in {State.INDEXING, *CAUGHT_UP}
        self._require_new_side()
        if self._state not in BEFORE_CAPTURE:
            self.store.start_capture(self.patience)  # somebody may have taken it away
        while (step := steps.get(self._state)) is not None:
            step()
        if swept_before:
            self.stage("comparing every row")
            self.applier.sweep()
            self._build_indexes()
        self.stage("following what was written meanwhile")
        if not self.applier.catch_up(wait_s=self.wait_for_writers_s):
            # others have been writing these rows for too long: they stay captured, for the next look
            detail = {"writes": self.store.backlog(), "in the way": self.store.users()}
            self._ledger.add_event(self._record, "left for later", detail)
        if self._state is State.SERVING_OLD:
            self.store.restore_constraints(self.patience, required=self._record.spec.old_not_null)

    def _require_new_side(self) -> None:
        spec, space = self._record.spec, self.store.new_space()
        if space not in (None, spec.fingerprint):
            raise SpaceMismatch(expected=spec.fingerprint, found=space, where=f"the new side of {spec.target}")
        is_lacking = space is None or (isinstance(self.store, StoreGroup) and self.store.without_new_side())
        if is_lacking and self._state is not State.PLANNED:
            self.store.exclusively(self._make_new_side, self.patience)

    def _make_new_side(self) -> None:
        spec = self._record.spec
        self.store.prepare(spec.dimension, spec.fingerprint, Outputs.of(spec.outputs))

    def _prepare(self) -> None:
        self.stage("making the new side")
        self.store.exclusively(self._make_new_side, self.patience)
        self.throttle.move(State.PREPARED)

    def _capture(self) -> None:
        self.store.start_capture(self.patience)
        self.throttle.move(State.CAPTURING)

    def _list_ranges(self) -> None:
        ranges = self.store.key_ranges(self.applier.rows_at_once)
        with self.store.transaction():
            self._ledger.add_ranges(self._record, ranges)
        self.throttle.move(State.BACKFILLING, ranges=len(ranges))

    # --- the backfill -----------------------------------------------------------------------------

    def _backfill(self, engine: Engine, staging: Staging) -> None:
        """Leave no row untried that was there when its range was read, or at the sweep."""
        self.stage("encoding every row")
        self.pace.begin()
        with closing(engine.run(self._ledger.open_ranges(self._record))) as ranges:
            for staged in ranges:
                embedded = staged.embedded or staging.read(range_name(self._record.spec.uid, staged.number))
                if embedded is not None:  # lost between engine and us: the sweep finds its rows
                    self.throttle.acquire(len(embedded.vectors))
                    self.applier.keep(Side.NEW, embedded, closes=staged.number)
                    self.pace.add(len(embedded.vectors))
                    self.note_encoded(0)
        self.stage("comparing every row")
        self.applier.sweep()
        self.throttle.move(State.INDEXING)

    def note_encoded(self, rows: int) -> None:
        """Let everybody see how far the range is that comes next."""
        if rows != self._encoded:
            self._encoded = rows
            self.counter.show_encoded(rows)
            self._ledger.note_encoded(self.store.target, rows)

    def _index(self) -> None:
        self.applier.catch_up_once(BOTH_SIDES)  # each row is written once less with an index there
        self._build_indexes()
        self.throttle.move(State.CATCHING_UP)

    def _build_indexes(self) -> None:
        self.applier.write_few()
        self.stage("building indexes")
        if built := self.store.build_indexes():
            self._ledger.add_event(self._record, "indexed", {"indexes": built})
