"""A migration as seven verbs. Each says what it leaves behind, whether repeating it is safe, and what undoes it."""

from __future__ import annotations

import time

import numpy as np

from vecferry.encoder import Progress
from vecferry.errors import (
    CutoverRefused,
    FinalizeNotConfirmed,
    MigrationConflict,
    MigrationNotFound,
    SpaceMismatch,
)
from vecferry.migrate.embed import TextEncoder, embed
from vecferry.migrate.states import State, can_move, require
from vecferry.migrate.values import (
    Check,
    CutoverReport,
    MigrationOptions,
    Plan,
    RollbackReport,
    Status,
    VerifyReport,
)
from vecferry.stores import EVERYTHING, Examination, KeyRange, Row, Store, TableInfo, shown
from vecferry.stores.ledger import MigrationRecord, MigrationSpec, Serving

MIN_COSINE = 0.999
VECTOR_OVERHEAD_BYTES = 8
PAGE_BYTES = 8192
PAGE_SLACK = 1.2
"""Pages are not full, and vectors of more than 2 kB lie apart from their row, with an index of their own."""
GRAPH_BYTES = 400
"""An HNSW element's neighbours and headers, at m = 16."""
EVENTS_SHOWN = LETTERS_SHOWN = 10


class Migration:
    """The migration of one store. Whoever calls decides nothing twice: the state lies in the ledger.

    Any verb may be called from any process; those that write exclude each other and raise Locked.
    All raise StoreError where the store fails. A verb that is not possible in the present state
    raises IllegalTransition, and MigrationNotFound if `start` was never called.
    """

    def __init__(self, store: Store, options: MigrationOptions | None = None) -> None:
        self._store = store
        self._ledger = store.ledger
        self._options = options or MigrationOptions()

    # --- plan -------------------------------------------------------------------------------------

    def plan(self, encoder: TextEncoder, sample: int = 32) -> Plan:
        """What a migration to `encoder` would do and cost. Writes nothing; a read-only role will do.

        `sample` rows are really encoded, to measure the time.
        """
        table = self._store.describe()
        rows = self._store.sample(sample)
        began = time.perf_counter()
        failures = len(embed(encoder, rows).letters)
        seconds = time.perf_counter() - began
        vector_bytes = table.rows * vector_bytes_each(encoder.dimension)
        return Plan(
            target=self._store.target,
            table=table,
            old_dimension=table.dimension,
            new_dimension=encoder.dimension,
            old_fingerprint=self._known_old_fingerprint(table.fingerprint),
            new_fingerprint=encoder.fingerprint,
            vector_bytes_after=vector_bytes,
            disk_bytes=disk_bytes(table, encoder.dimension),
            sample_rows=len(rows),
            sample_seconds=seconds,
            sample_failures=failures,
            seconds=seconds / len(rows) * table.rows if rows else 0.0,
            warnings=plan_warnings(table),
        )

    def _known_old_fingerprint(self, recorded: str | None) -> str | None:
        given = self._options.old_fingerprint
        if given and recorded and given != recorded:
            raise SpaceMismatch(expected=given, found=recorded, where=f"the vectors of {self._store.target}")
        return given or recorded

    # --- start ------------------------------------------------------------------------------------

    def start(self, encoder: TextEncoder, progress: Progress | None = None) -> Status:
        """Bring the new side up to date: begin, resume after any interruption, or catch up with changes.

        Leaves a new vector for every row whose text can be embedded, dead letters for the others,
        and the indexes; the vectors that serve are not touched. Repeating is safe: what is done is
        kept, dead letters are tried again. Undone by dropping the new side (docs/migrate.md).
        Raises MigrationConflict if the migration was begun with something else, SpaceMismatch if the
        new side is another model's.
        """
        with self._store.runner():
            record = self._begin(encoder)
            record = self._prepare(record)
            record = self._backfill(record, encoder, progress)
            self._build_indexes(record)
            self._sweep(record, encoder, _Count(self._store, progress))
        return self.status()

    def _begin(self, encoder: TextEncoder) -> MigrationRecord:
        """The record to go on with; a new one if there is none, or if the last is finalized."""
        self._ledger.install()
        record = self._ledger.find(self._store.target)
        if record is None or record.state == State.FINALIZED:
            return self._create(encoder)
        require("start", State(record.state))
        self._refuse_conflicts(record.spec, encoder)
        return record

    def _create(self, encoder: TextEncoder) -> MigrationRecord:
        target = self._store.target
        table = self._store.describe()
        serving = self._ledger.serving(target)
        old_fingerprint = self._known_old_fingerprint(serving.fingerprint if serving else table.fingerprint)
        if serving is None:
            serving = Serving(epoch=1, generation=1, column=target, fingerprint=old_fingerprint)
        spec = MigrationSpec(
            target=target,
            text_source=self._store.text_source,
            dimension=encoder.dimension,
            fingerprint=encoder.fingerprint,
            old_fingerprint=old_fingerprint,
            old_not_null=table.vector_not_null,
            generation=serving.generation + 1,
        )
        with self._store.transaction():
            self._ledger.serve(target, serving)
            return self._ledger.create(spec, State.PLANNED)

    def _refuse_conflicts(self, begun: MigrationSpec, encoder: TextEncoder) -> None:
        given_now = {
            "text_source": self._store.text_source,
            "fingerprint": encoder.fingerprint,
            "dimension": encoder.dimension,
            "old_fingerprint": self._options.old_fingerprint or begun.old_fingerprint,
        }
        for name, given in given_now.items():
            stored = getattr(begun, name)
            if given != stored:
                raise MigrationConflict(begun.target, name, stored, given)

    def _prepare(self, record: MigrationRecord) -> MigrationRecord:
        """Leaves the new side, and the ranges in the ledger. Safe to repeat."""
        spec = record.spec
        found = self._store.new_space()
        if found is None:
            self._store.exclusively(
                lambda: self._store.prepare(spec.dimension, spec.fingerprint), self._options.patience
            )
        elif found != spec.fingerprint:
            raise SpaceMismatch(expected=spec.fingerprint, found=found, where=f"the new side of {spec.target}")
        if record.state == State.PLANNED:
            record = self._move(record, State.PREPARED)
        if record.state == State.PREPARED:
            with self._store.transaction():
                ranges = self._store.key_ranges(self._options.rows_per_range)
                self._ledger.add_ranges(record, ranges)
                record = self._move(record, State.BACKFILLING, ranges=len(ranges))
        elif record.state != State.BACKFILLING:
            record = self._move(record, State.BACKFILLING)
        return record

    def _backfill(self, record: MigrationRecord, encoder: TextEncoder, progress: Progress | None) -> MigrationRecord:
        """Leaves no row untried that was there when its range was read, or at the sweep."""
        with self._store.transaction():
            self._ledger.forget_dead_letters(record)
            self._store.retry_dead_letters()
        count = _Count(self._store, progress)
        for part in self._ledger.open_ranges(record):
            rows = self._store.pending(part.keys, self._options.rows_per_range)
            self._keep(record, encoder, rows, closes=part.number)
            count.add(len(rows))
        self._sweep(record, encoder, count)
        return self._move(record, State.INDEXING)

    def _sweep(self, record: MigrationRecord, encoder: TextEncoder, count: _Count) -> None:
        """One pass over what no range has done: rows that were added or changed meanwhile."""
        keys = EVERYTHING
        while rows := self._store.pending(keys, self._options.rows_per_range):
            self._keep(record, encoder, rows)
            count.add(len(rows))
            keys = KeyRange(rows[-1].key, None)

    def _keep(self, record: MigrationRecord, encoder: TextEncoder, rows: list[Row], closes: int | None = None) -> None:
        """Embed the rows; their vectors, their dead letters and the range's mark are kept together."""
        embedded = embed(encoder, rows)
        with self._store.transaction():
            self._store.write(embedded.vectors)
            self._ledger.unbury(record, [vector.key for vector in embedded.vectors])
            self._ledger.bury(record, embedded.letters)
            if closes is not None:
                self._ledger.close_range(record, closes)

    def _build_indexes(self, record: MigrationRecord) -> None:
        built = self._store.build_indexes()
        if built:
            self._ledger.add_event(record, "indexed", {"indexes": built})

    # --- status and verify ------------------------------------------------------------------------

    def status(self) -> Status:
        """Where the migration stands, from any process, also while another one runs it. Writes nothing."""
        record = self._find()
        counts = self._store.counts()
        ranges_done, ranges = self._ledger.count_ranges(record)
        return Status(
            target=record.spec.target,
            state=State(record.state),
            version=record.version,
            rows=counts.rows,
            rows_done=counts.done,
            ranges=ranges,
            ranges_done=ranges_done,
            dead_letters=counts.dead_letters,
            letters=tuple(self._ledger.dead_letters(record, LETTERS_SHOWN)),
            old_fingerprint=record.spec.old_fingerprint,
            new_fingerprint=record.spec.fingerprint,
            dimension=record.spec.dimension,
            serving=self._ledger.serving(record.spec.target),
            verification=dict(record.verification) if record.verification is not None else None,
            events=tuple(self._ledger.events(record, EVENTS_SHOWN)),
        )

    def serving(self) -> Serving:
        """Which vectors answer now. Raises MigrationNotFound before `start`."""
        serving = self._ledger.serving(self._store.target)
        if serving is None:
            raise MigrationNotFound(self._store.target)
        return serving

    def verify(self, encoder: TextEncoder, sample: int = 100) -> VerifyReport:
        """Check every new vector, and encode `sample` rows again. Touches no vector.

        Leaves the report in the ledger, and the state `verified` if all passed; a failure raises
        nothing, but takes an earlier pass back (state `indexing`). Repeating is safe.
        """
        with self._store.runner():
            record = self._require("verify")
            self._refuse_conflicts(record.spec, encoder)
            report = self._examine(record, encoder, sample)
            with self._store.transaction():
                self._ledger.keep_verification(record, report.to_dict())
                if record.state != report.state:
                    failed = [check.name for check in report.checks if not check.passed]
                    self._move(record, report.state, failed=failed)
        return report

    def _examine(self, record: MigrationRecord, encoder: TextEncoder, sample: int) -> VerifyReport:
        found = self._store.examine(record.spec.dimension)
        letters = len(self._ledger.dead_letters(record, found.without_vector + 1))
        cosines = self._recomputed_cosines(encoder, sample)
        checks = (
            *structural_checks(found, letters, record.spec.dimension, unit=encoder.space.normalize),
            recomputation_check(cosines, expected=min(sample, found.rows - found.without_vector - found.changed)),
        )
        passed = all(check.passed for check in checks)
        return VerifyReport(
            target=record.spec.target,
            passed=passed,
            rows=found.rows,
            dead_letters=found.without_vector,
            sampled=len(cosines),
            lowest_cosine=min(cosines, default=None),
            checks=checks,
            state=State.VERIFIED if passed else State.INDEXING,
        )

    def _recomputed_cosines(self, encoder: TextEncoder, sample: int) -> list[float]:
        """Cosine between a stored vector and the same text encoded again; 0 where it cannot be."""
        pairs = self._store.sample_vectors(sample)
        again = embed(encoder, [row for row, _ in pairs]).vectors
        return [
            0.0 if new.vector is None else cosine(new.vector, stored)
            for new, (_, stored) in zip(again, pairs, strict=True)
        ]

    # --- cutover, rollback, finalize --------------------------------------------------------------

    def cutover(self, accept_dead_letters: int = 0) -> CutoverReport:
        """Let the new vectors serve, and record the serving epoch, in one transaction; no model is called.

        Leaves the old vectors beside the new. Undone by `rollback`. Writers wait from the moment that
        the table is locked; every row is compared once more under that lock. Raises CutoverRefused if
        rows were added or changed since they were embedded, or if the number of dead letters is not
        `accept_dead_letters`; Locked if the table could not be had. Then the old vectors still serve.
        """
        with self._store.runner():
            record = self._require("cutover")
            self._refuse_unless_current(record, accept_dead_letters)  # before anybody has to wait
            return self._store.exclusively(lambda: self._switch(record, accept_dead_letters), self._options.patience)

    def _switch(self, record: MigrationRecord, accept_dead_letters: int) -> CutoverReport:
        self._refuse_unless_current(record, accept_dead_letters)
        self._store.switch()
        serving = self._next_epoch(record.spec.generation, record.spec.fingerprint)
        record = self._move(record, State.SERVING_NEW, epoch=serving.epoch, accepted_dead_letters=accept_dead_letters)
        return CutoverReport(record.spec.target, serving, accept_dead_letters, State.SERVING_NEW)

    def _refuse_unless_current(self, record: MigrationRecord, accepted: int) -> None:
        found = self._store.changes()
        if found.changed:
            reason = f"{found.changed} rows were added or changed since they were embedded"
            raise CutoverRefused(reason, shown(found.keys), "Run start again, then verify, then cutover.")
        if found.dead_letters != accepted:
            letters = self._ledger.dead_letters(record, LETTERS_SHOWN)
            reason = f"{found.dead_letters} rows have no new vector (dead letters), {accepted} were accepted"
            remedy = f"Repair their texts and run start again, or accept exactly {found.dead_letters}."
            raise CutoverRefused(reason, shown([letter.key for letter in letters]) or ("none",), remedy)

    def _next_epoch(self, generation: int, fingerprint: str | None) -> Serving:
        before = self.serving()
        after = Serving(before.epoch + 1, generation, before.column, fingerprint)
        self._ledger.serve(self._store.target, after)
        return after

    def rollback(self) -> RollbackReport:
        """Let the old vectors serve again, in one transaction. Undone by `cutover`.

        Rows that were written since the switch have no old vector, or one of their former text: this
        release does not keep the old side current after the switch. They are counted and named.
        Raises Locked if the table could not be had; then the new vectors still serve.
        """
        with self._store.runner():
            record = self._require("rollback")
            return self._store.exclusively(lambda: self._switch_back(record), self._options.patience)

    def _switch_back(self, record: MigrationRecord) -> RollbackReport:
        stale = self._store.changes()
        restored = self._store.switch_back(not_null=record.spec.old_not_null)
        serving = self._next_epoch(record.spec.generation - 1, record.spec.old_fingerprint)
        self._move(record, State.SERVING_OLD, epoch=serving.epoch, stale_rows=stale.changed)
        return RollbackReport(
            record.spec.target, serving, stale.changed, shown(stale.keys), restored, State.SERVING_OLD
        )

    def finalize(self, *, confirmed: bool) -> Status:
        """Drop the old vectors. Cannot be undone: raises FinalizeNotConfirmed unless `confirmed`.

        Leaves the table with the new vectors alone, and the ledger. Another migration may begin.
        """
        with self._store.runner():
            record = self._require("finalize")
            if not confirmed:
                raise FinalizeNotConfirmed
            self._store.exclusively(lambda: self._drop_old(record), self._options.patience)
        return self.status()

    def _drop_old(self, record: MigrationRecord) -> None:
        self._store.drop_old()
        self._move(record, State.FINALIZED)

    # --- the record -------------------------------------------------------------------------------

    def _find(self) -> MigrationRecord:
        record = self._ledger.find(self._store.target)
        if record is None:
            raise MigrationNotFound(self._store.target)
        return record

    def _require(self, verb: str) -> MigrationRecord:
        record = self._find()
        require(verb, State(record.state))
        return record

    def _move(self, record: MigrationRecord, state: State, **detail: object) -> MigrationRecord:
        assert can_move(State(record.state), state), f"{record.state} -> {state}"
        return self._ledger.move(record, state, detail)


class _Count:
    """Rows done so far, told to `progress`."""

    def __init__(self, store: Store, progress: Progress | None) -> None:
        self._progress = progress
        if progress is not None:
            counts = store.counts()
            self._total = counts.rows
            self._done = counts.done
            progress(self._done, self._total)

    def add(self, rows: int) -> None:
        if self._progress is not None:
            self._done = min(self._done + rows, self._total)
            self._progress(self._done, self._total)


# --- arithmetic of plan and verify ----------------------------------------------------------------


def vector_bytes_each(dimension: int) -> int:
    return 4 * dimension + VECTOR_OVERHEAD_BYTES


def disk_bytes(table: TableInfo, dimension: int) -> int:
    """What must be free: new vectors, every row written anew with its index entries, indexes on the new vectors."""
    indexes = sum(index.recreated for index in table.vector_indexes)
    filled = (
        table.rows * vector_bytes_each(dimension)
        + table.row_bytes
        + table.index_bytes  # a row that is written anew is entered again in every index
        + table.rows * indexes * index_bytes_each(dimension)
    )
    return int(filled * PAGE_SLACK)


def index_bytes_each(dimension: int) -> int:
    """A vector and its place in the graph, as its share of a page: pgvector splits none over two pages."""
    return PAGE_BYTES // max(PAGE_BYTES // (vector_bytes_each(dimension) + GRAPH_BYTES), 1)


def plan_warnings(table: TableInfo) -> tuple[str, ...]:
    """What an operator should look at before `start`."""
    warnings = []
    if table.null_texts:
        warnings.append(f"{table.null_texts} rows have no text (NULL) and will be dead letters")
    if table.views:
        warnings.append(f"views go on showing the old vectors after the switch: {', '.join(table.views)}")
    if table.triggers:
        warnings.append(f"triggers fire for every row that is written: {', '.join(table.triggers)}")
    warnings += [
        f"index {index.name} is not made anew for the new vectors: {index.definition}"
        for index in table.vector_indexes
        if not index.recreated
    ]
    return tuple(warnings)


def structural_checks(found: Examination, letters: int, dimension: int, *, unit: bool) -> tuple[Check, ...]:
    """letters: dead letters in the ledger; every row without a vector must have one."""
    norm_seen = f"{found.off_norm} rows farther than 0.001 from length 1" if unit else "the model does not normalise"
    return (
        Check("text unchanged", not found.changed, f"{found.changed} rows added or changed since"),
        Check(
            "every row has a vector",
            found.without_vector <= letters,
            f"{found.rows - found.without_vector} of {found.rows} rows, {letters} dead letters",
        ),
        Check("dimension", not found.wrong_dimension, f"{found.wrong_dimension} rows without {dimension} numbers"),
        Check("finite", not found.not_finite, f"{found.not_finite} rows with numbers that are not finite"),
        Check("unit norm", not (unit and found.off_norm), norm_seen),
        Check("indexes", not found.missing_indexes, f"missing: {', '.join(found.missing_indexes) or 'none'}"),
    )


def recomputation_check(cosines: list[float], expected: int) -> Check:
    """Passed if `expected` rows were encoded again, each at a cosine of at least 0.999 to its stored vector."""
    low = sum(value < MIN_COSINE for value in cosines)
    lowest = f"{min(cosines):.6f}" if cosines else "none"
    seen = f"{len(cosines)} rows encoded again, {low} below {MIN_COSINE}, lowest cosine {lowest}"
    return Check("recomputed sample", not low and len(cosines) >= expected, seen)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """In float64; 0 if either is zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0
