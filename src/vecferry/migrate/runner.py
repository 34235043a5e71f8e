"""What the holder of the lease does between `planned` and the switch, and after it: the only writer of vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from vecferry.embeddings import Outputs
from vecferry.encoder import Progress, TextEncoder
from vecferry.errors import MigrationConflict, SettingsError, SpaceMismatch
from vecferry.migrate.embed import Embedded, embed
from vecferry.migrate.engines import Engine, range_name
from vecferry.migrate.governor import Governor
from vecferry.migrate.staging import Staging
from vecferry.migrate.states import CAUGHT_UP, State
from vecferry.stores import EVERYTHING, Change, Key, KeyRange, Patience, Row, Side, Store
from vecferry.stores.ledger import MigrationRecord

IDLE_S = 0.01
"""Between two looks for captured writes."""
SWEEPS = 5
"""Passes over rows that were being written to just when their turn came."""


@dataclass(frozen=True)
class Models:
    """old is needed from the first switch on, to keep the old vectors current."""

    new: TextEncoder
    old: TextEncoder | None = None

    def of(self, side: Side) -> TextEncoder:
        if side is Side.NEW:
            return self.new
        if self.old is None:
            expected = "the old model, which keeps the old vectors current until finalize"
            raise SettingsError("models.old", None, expected)
        return self.old


def refuse_conflicts(record: MigrationRecord, store: Store, models: Models) -> None:
    """Raises MigrationConflict if the migration was begun with something else."""
    begun = record.spec
    old = models.old.fingerprint if models.old else begun.old_fingerprint
    given_now = {
        "text_source": store.text_source,
        "fingerprint": models.new.fingerprint,
        "dimension": models.new.dimension,
        "old_fingerprint": old if begun.old_fingerprint else None,
    }
    for name, given in given_now.items():
        stored = getattr(begun, name)
        if given != stored:
            raise MigrationConflict(begun.target, name, stored, given)


@dataclass
class Runner:
    """Each step leaves its state behind and is safe to repeat; `run` goes on from whatever state there is.

    The store must hold the lease. engine and staging serve the backfill alone.
    """

    store: Store
    governor: Governor
    models: Models
    rows_at_once: int
    patience: Patience
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self._ledger = self.store.ledger
        self._done = self._total = 0

    @property
    def _record(self) -> MigrationRecord:
        return self.governor.record

    @property
    def _state(self) -> State:
        return State(self._record.state)

    @property
    def _outputs(self) -> Outputs:
        return Outputs.parse(",".join(self._record.spec.outputs))

    # --- up to the backfill -----------------------------------------------------------------------

    def run(self, engine: Engine, staging: Staging) -> None:
        """From any state: up to `catching_up`, with nothing captured left undone."""
        self._count()
        self.governor.look(now=True)
        steps: Mapping[State, Callable[[], None]] = {
            State.PLANNED: self._prepare,
            State.PREPARED: self._capture,
            State.CAPTURING: self._list_ranges,
            State.BACKFILLING: lambda: self._backfill(engine, staging),
            State.INDEXING: self._index,
        }
        caught_up_before = self._state in CAUGHT_UP
        self._require_new_side()
        while (step := steps.get(self._state)) is not None:
            step()
        if caught_up_before:
            self.store.start_capture(self.patience)  # somebody may have taken it away
            self.sweep()
            self._build_indexes()
        self.catch_up()

    def _require_new_side(self) -> None:
        spec, found = self._record.spec, self.store.new_space()
        if found not in (None, spec.fingerprint):
            raise SpaceMismatch(expected=spec.fingerprint, found=found, where=f"the new side of {spec.target}")
        if found is None and self._state is not State.PLANNED:
            self.store.exclusively(self._make_new_side, self.patience)

    def _make_new_side(self) -> None:
        spec = self._record.spec
        self.store.prepare(spec.dimension, spec.fingerprint, self._outputs)

    def _prepare(self) -> None:
        self.store.exclusively(self._make_new_side, self.patience)
        self.governor.move(State.PREPARED)

    def _capture(self) -> None:
        self.store.start_capture(self.patience)
        self.governor.move(State.CAPTURING)

    def _list_ranges(self) -> None:
        ranges = self.store.key_ranges(self.rows_at_once)
        with self.store.transaction():
            self._ledger.add_ranges(self._record, ranges)
        self.governor.move(State.BACKFILLING, ranges=len(ranges))

    # --- the backfill -----------------------------------------------------------------------------

    def _backfill(self, engine: Engine, staging: Staging) -> None:
        """Leaves no row untried that was there when its range was read, or at the sweep."""
        with closing(engine.run(self._ledger.open_ranges(self._record))) as committed:
            for number in committed:
                staged = staging.read(range_name(self._record.spec.uid, number))
                if staged is not None:  # lost between engine and us: the sweep finds its rows
                    self.governor.admit(len(staged.vectors))
                    self._keep(Side.NEW, staged, closes=number)
        self.sweep()
        self.governor.move(State.INDEXING)

    def sweep(self) -> None:
        """Compare every row, and do what no range and no capture has done. For each side that is followed."""
        for side in self._followed():
            for _ in range(SWEEPS):
                if not self._sweep_once(side):
                    break
        for keys in iter(lambda: self.store.orphans(self.rows_at_once), []):
            self.governor.admit(len(keys))
            self.store.settle(keys)
        self._unbury_gone()

    def _unbury_gone(self) -> None:
        """Dead letters whose row was deleted unseen. Those of the side that serves may have theirs on the other."""
        serving = self._ledger.serving(self.store.target)
        other = Side.OLD if serving is not None and serving.generation == self._record.spec.generation else Side.NEW
        number = self._ledger.count_dead_letters(self._record, other)
        keys = [letter.key for letter in self._ledger.dead_letters(self._record, number, other)]
        if gone := self.store.settle(keys):
            with self.store.transaction():
                self._ledger.unbury(self._record, other, sorted(gone))

    def _sweep_once(self, side: Side) -> bool:
        """Whether rows were left out, being written to by somebody else."""
        keys, left_out = EVERYTHING, False
        while rows := self.store.pending(keys, self.rows_at_once, side):
            self.governor.admit(len(rows))
            written = self._embed_and_keep(side, rows)
            left_out = left_out or len(written) < len(rows)
            keys = KeyRange(rows[-1].key, None)
        return left_out

    def _embed_and_keep(self, side: Side, rows: Sequence[Row]) -> set[Key]:
        outputs = self._outputs if side is Side.NEW else Outputs.DENSE
        return self._keep(side, embed(self.models.of(side), rows, outputs))

    def _keep(self, side: Side, embedded: Embedded, closes: int | None = None) -> set[Key]:
        """Vectors, and then their dead letters and the range's mark."""

        def note(written: set[Key]) -> None:
            letters = [replace(letter, side=side) for letter in embedded.letters if letter.key in written]
            self._ledger.unbury(self._record, side, sorted(written))
            self._ledger.bury(self._record, letters)
            if closes is not None:
                self._ledger.close_range(self._record, closes)

        written = self.store.write(side, embedded.vectors, note)
        self._tell(len(written))
        return written

    # --- following --------------------------------------------------------------------------------

    def _index(self) -> None:
        self._build_indexes()
        self.governor.move(State.CATCHING_UP)

    def _build_indexes(self) -> None:
        if built := self.store.build_indexes():
            self._ledger.add_event(self._record, "indexed", {"indexes": built})

    def _followed(self) -> tuple[Side, ...]:
        """From the first switch on, the old side too."""
        serving = self._ledger.serving(self.store.target)
        switched = serving is not None and serving.epoch > self._record.spec.epoch
        return (Side.NEW, Side.OLD) if switched else (Side.NEW,)

    def catch_up(self) -> None:
        """Leaves nothing captured undone that had been captured when it last looked."""
        while changes := self.store.captured(self.rows_at_once):
            self.governor.admit(len(changes))
            if not self._apply(changes):
                self.governor.rest(IDLE_S)

    def _apply(self, changes: Sequence[Change]) -> bool:
        """Whether anything could be done; rows that somebody else is just writing are left for later."""
        keys = list(dict.fromkeys(change.key for change in changes))
        gone = self.store.settle(keys)
        left: set[Key] = set()
        for side in self._followed():
            rows = self.store.stale(side, keys)
            left |= {row.key for row in rows} - self._embed_and_keep(side, rows)
            self._ledger.unbury(self._record, side, sorted(gone))
        done = [change for change in changes if change.key not in left]
        self.store.acknowledge(done)
        return bool(done)

    def follow(self, until: Callable[[], bool]) -> None:
        """Apply what is captured, as soon as it is, until `until`."""
        while not until():
            self.catch_up()
            self.governor.look()
            self.governor.rest(IDLE_S)

    # --- progress ---------------------------------------------------------------------------------

    def _count(self) -> None:
        if self.progress is not None:
            counts = self.store.counts()
            self._done, self._total = counts.done, counts.rows
            self.progress(self._done, self._total)

    def _tell(self, rows: int) -> None:
        if self.progress is not None:
            self._done = min(self._done + rows, self._total)
            self.progress(self._done, self._total)
