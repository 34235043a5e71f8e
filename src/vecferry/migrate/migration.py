"""A migration as verbs. Each says what it leaves behind, whether repeating it is safe, and what undoes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace

from vecferry.embeddings import Outputs
from vecferry.encode.encoder import Progress, TextEncoder
from vecferry.encode.loading import LazyEncoder
from vecferry.errors import (
    CaptureLost,
    CutoverRefused,
    Interrupted,
    Locked,
    MigrationNotFound,
    MissingModel,
    NotConfirmed,
    StoreSchemaError,
)
from vecferry.migrate.applier import Applier, SideModels, refuse_conflicts
from vecferry.migrate.engines import Engine
from vecferry.migrate.engines.local import LocalEngine
from vecferry.migrate.following import SwitchFollower
from vecferry.migrate.operator_lock import AT_ONCE, operator_lock, require_possible, unpause, without_pause
from vecferry.migrate.outage import Outage
from vecferry.migrate.pace import Pace
from vecferry.migrate.planning import SAMPLE_S, cheapest_pair, make_plan
from vecferry.migrate.preflight import GateCheck, NewSide, Preflight, nothing_asked, preflight, vector_bytes_each
from vecferry.migrate.provenance import provenance_of
from vecferry.migrate.record import (
    Beginning,
    begin,
    beginning_of,
    ended_record,
    find_record,
    has_ended,
    known_old_fingerprint,
    sweep_ended,
    sweep_staging,
)
from vecferry.migrate.runner import Counter, Runner
from vecferry.migrate.staging import Staging
from vecferry.migrate.states import State, require
from vecferry.migrate.switch import Switch
from vecferry.migrate.throttle import Throttle, guards_of
from vecferry.migrate.values import (
    CutoverReport,
    MigrationOptions,
    Override,
    Plan,
    Resources,
    RollbackReport,
    Status,
    VerifyReport,
)
from vecferry.migrate.verification import Gate, Verification, override_gate, precisions_of, refuse_not_verified
from vecferry.precisions import Mark
from vecferry.stores.ledger import Control, MigrationRecord, Paused, RunningProcess, Serving
from vecferry.stores.protocol import Store, members_of
from vecferry.stores.sql_ledger import Ledger
from vecferry.stores.values import Counts, Patience, Side, TableInfo, tell_nobody

EngineFor = Callable[[Store, Staging, MigrationRecord], Engine]
"""Makes the engine of a run."""
EVENTS_SHOWN = LETTERS_SHOWN = 10

ENDING_S = 5.0
"""How long a finalize may take between a side that is gone and its word in the ledger."""


@dataclass(frozen=True, eq=False)
class Migration:
    """The migration of one store. Whoever calls decides nothing twice: the state lies in the ledger.

    new and old are the models; each is used when a verb first needs it. `plan`, `start`, `verify` and `retry` raise
    MissingModel without the new one. The old one keeps the old vectors current after a switch, and so is needed for
    a rollback that loses nothing.

    serve: the new model in the precision that queries are answered in, where that is another one; what is written is
    followed and verified with it, if the evidence allows passages of it too, so that `new` is needed for a backfill
    alone.

    Any verb may be called from any process. One process at a time holds the lease and writes vectors
    (`start`); one at a time changes the state by hand (the others); a second raises Locked. All raise
    StoreError where the store fails. A verb that is not possible in the present state raises
    IllegalTransition, and MigrationNotFound if `start` was never called.
    """

    store: Store
    _: KW_ONLY
    new: TextEncoder | None = None
    old: TextEncoder | None = None
    serve: TextEncoder | None = None
    options: MigrationOptions = field(default_factory=MigrationOptions)

    @property
    def _ledger(self) -> Ledger:
        return self.store.ledger

    @property
    def _models(self) -> SideModels:
        return SideModels(self._follower_model, self.old, backfill=self.new)

    @property
    def _follower_model(self) -> TextEncoder | None:
        """The model that follows writes on the new side: `serve` where its vectors may stand among those of `new`.

        Raises SpaceMismatch if it may not even ask them.
        """
        if self.serve is None:
            return self.new
        mark, index = self.serve.space.mark(self.options.outputs), self._new_mark()
        mark.require(index, "query", "the model that serves")
        return self.new if mark.refusal(index, "passage") else self.serve

    def _new_mark(self) -> Mark:
        """Return the mark of the new side: as it was begun, or else as `new` would begin it."""
        record = None if has_ended(self.store) else self._ledger.find(self.store.target)
        if record is not None:
            return Mark.parse(record.spec.fingerprint)
        model = self.new or self.serve
        assert model is not None, "only asked for where there is one"
        return model.space.mark(self.options.outputs)

    def _new_for(self, verb: str) -> TextEncoder:
        if self.new is None:
            raise MissingModel(verb, "new")
        return self.new

    # --- plan -------------------------------------------------------------------------------------

    def plan(
        self,
        sample: int = 32,
        resources: Resources | None = None,
        *,
        gate_check: GateCheck = nothing_asked,
        sample_s: float = SAMPLE_S,
        stage: Callable[[str], None] = tell_nobody,
    ) -> Plan:
        """Say what a migration to the new model would do and cost. Writes nothing; a read-only role will do.

        `sample` rows are really encoded, to measure the time; others with the old model, to see whether the vectors
        were made of the texts that are named. What `start` would refuse is among the problems. gate_check: looks at
        what `verify` is going to ask. sample_s: seconds for the sample, of which less is encoded where rows take long.
        stage: told what is being done.
        """
        new = self._new_for("plan")
        sweep_ended(self.store, self.options)
        self._refuse_outputs()
        serving = self._ledger.serving(self.store.target)
        old = known_old_fingerprint(self.store, self.options, serving.fingerprint if serving else None)
        provenance = provenance_of(self.store, self.old, stage=stage)

        def look(table: TableInfo, side: NewSide) -> Preflight:
            return self._preflight(table, side, gate_check) if has_ended(self.store) else Preflight()

        outputs, resources = self.options.outputs, resources or Resources()
        if isinstance(new, LazyEncoder):
            stage("loading the new model")
            new.get()
        plan = make_plan(self.store, new, outputs, old, provenance, sample, sample_s, resources, look, stage)
        if self.serve is None:
            return plan
        return replace(plan, warnings=(*plan.warnings, cheapest_pair(self.store, new, self.serve, plan.sample_rows)))

    def _preflight(self, table: TableInfo, side: NewSide, gate_check: GateCheck) -> Preflight:
        return preflight(self.store, self.old, self.options, table, side, gate_check)

    def _refuse_outputs(self) -> None:
        possible = self.store.traits.outputs
        if beyond := self.options.outputs & ~possible:
            what = f"{self.store.target} cannot hold {', '.join(beyond.names)} vectors"
            raise StoreSchemaError(what, f"This store holds {', '.join(possible.names)}.")

    # --- start ------------------------------------------------------------------------------------

    def start(
        self,
        progress: Progress | None = None,
        *,
        follow: Callable[[], bool] | None = None,
        stop: Callable[[], bool] = lambda: False,
        engine: EngineFor | None = None,
        gate_check: GateCheck = nothing_asked,
        stage: Callable[[str], None] = tell_nobody,
    ) -> Status:
        """Bring the sides up to date: begin, resume after any interruption, or catch up with what was written.

        Leaves a new vector for every row whose text can be embedded, dead letters for the others, and
        the indexes; writes are captured from then on. The vectors that serve are not touched. With
        `follow` it goes on applying what is captured, through switches, until `follow()` is true or the
        migration has ended. Repeating is safe: what is done is kept. Undone by `abort`.
        Waits while paused; a store that went away is waited for, `reconnect_s` long. stop: asked often,
        true raises Interrupted. gate_check: looks at what `verify` is going to ask. stage: told what is being done.
        A migration that would fail later is not begun, and nothing is left of it: raises StagingUnusable, what
        `gate_check` raises, DependentsInTheWay, VectorsUnconfirmed. Raises MigrationConflict if the migration was begun
        with something else, SpaceMismatch if the new side is another model's, Locked if another process runs it.
        """
        new = self._new_for("start")
        self._refuse_outputs()
        sweep_ended(self.store, self.options)
        outage = Outage(self.store, self.options.reconnect_s + self.options.lease_s, stop)

        def run() -> Status:
            beginning = self._beginning(new, gate_check, stage) if has_ended(self.store) else None
            self._ledger.install()
            with self.store.runner(self.options.lease_s):
                outage.end()
                record = begin(self.store, new, self.old, self.options, beginning)
                self._run(record, progress, follow, stop, engine, stage)
            return self.status()

        return outage.outlast(run)

    def _beginning(self, new: TextEncoder, gate_check: GateCheck, stage: Callable[[str], None]) -> Beginning:
        """Return what a migration begins from. Raises what `start` does, before anything is written."""
        table = self.store.describe()
        rows = table.rows_to_embed(embed_missing=self.store.traits.embed_missing)
        side = NewSide(new.dimension, rows * vector_bytes_each(new.dimension))
        self._preflight(table, side, gate_check).require()
        return beginning_of(self.store, new, self.old, self.options, table, stage)

    def _run(
        self,
        record: MigrationRecord,
        progress: Progress | None,
        follow: Callable[[], bool] | None,
        stop: Callable[[], bool],
        engine_for: EngineFor | None,
        stage: Callable[[str], None],
    ) -> None:
        options, models = self.options, self._models
        if self._ledger.followed(record) != models.sides:
            self._ledger.set_followed(record, models.sides)
        throttle = Throttle(self._ledger, record, guards_of(self.store, record, options), stop)
        counter = Counter(progress)
        applier = self._applier(throttle, models, counter)
        staging = Staging(options.staging, self._new_for("start").space.key, Outputs.of(record.spec.outputs))
        pace = Pace(lambda rows_per_s: self._ledger.note_rate(self.store.target, rows_per_s))
        runner = Runner(
            self.store, throttle, applier, counter, pace, options.patience, options.wait_for_writers_s, stage
        )
        engine = engine_for or self._local_engine(self._new_for("start"), runner.note_encoded)
        try:
            runner.run(engine(self.store, staging, record), staging)
            while follow is not None and not self._has_followed(record, applier, follow):
                runner.run(engine(self.store, staging, record), staging)
        except (Interrupted, StoreSchemaError) as exc:  # a side may be dropped in the middle of a write
            if not (has_ended(self.store) if isinstance(exc, Interrupted) else self._is_ending()):
                raise
            if follow is None:
                raise Interrupted("the migration was ended by somebody else") from exc

    def _is_ending(self) -> bool:
        """Return whether the migration has ended, or does so now: a side goes before the ledger says so."""
        until = time.monotonic() + ENDING_S
        while not (ended := has_ended(self.store)) and time.monotonic() < until:
            time.sleep(0.1)
        return ended

    def _has_followed(self, record: MigrationRecord, applier: Applier, follow: Callable[[], bool]) -> bool:
        """Follow; return False if that cannot go on before the capture is made anew and every row compared."""
        try:
            applier.follow(follow)
        except CaptureLost as exc:
            if has_ended(self.store):
                raise
            self._ledger.add_event(record, "capture lost", {"reason": str(exc)})
            return False
        return True

    def _applier(self, throttle: Throttle, models: SideModels, counter: Counter | None = None) -> Applier:
        options, counter = self.options, counter or Counter(None)
        return Applier(self.store, throttle, models, options.rows_per_range, options.rows_per_write, counter.add)

    def _local_engine(self, new: TextEncoder, tell: Callable[[int], None]) -> EngineFor:
        def made(store: Store, staging: Staging, record: MigrationRecord) -> Engine:
            rows = self.options.rows_per_range
            return LocalEngine(store, new, staging, record.spec.uid, rows, staging.outputs, tell=tell)

        return made

    # --- status and control -----------------------------------------------------------------------

    def status(self) -> Status:
        """Return where the migration stands, from any process, also while another one runs it. Writes nothing."""
        record = self._find()
        counts = self.store.counts()
        running = self._ledger.running(self.store.target)
        ranges_done, ranges = self._ledger.count_ranges(record)
        return Status(
            target=record.spec.target,
            state=State(record.state),
            paused=record.paused.reason if record.paused else None,
            version=record.version,
            rows=counts.rows,
            rows_done=counts.done,
            ranges=ranges,
            ranges_done=ranges_done,
            backlog=self.store.backlog(Side.NEW),
            old_backlog=self.store.backlog(Side.OLD),
            control=self._ledger.control(record),
            dead_letters=counts.dead_letters,
            unembedded=counts.unembedded,
            first_dead_letters=tuple(self._ledger.dead_letters(record, LETTERS_SHOWN)),
            old_fingerprint=record.spec.old_fingerprint,
            new_fingerprint=record.spec.fingerprint,
            dimension=record.spec.dimension,
            serving=self._ledger.serving(record.spec.target),
            verification=dict(record.verification) if record.verification is not None else None,
            events=tuple(self._ledger.events(record, EVENTS_SHOWN)),
            running=running,
            seconds_left=_seconds_left(State(record.state), counts, running),
            new_model=record.spec.model,
            old_model=record.spec.old_model,
            collections=members_of(self.store),
            precisions=precisions_of(self.store, record, counts.done),
        )

    def ended(self) -> State | None:
        """Return how the last migration ended, `finalized` or `aborted`; None where there was none, or one is open."""
        last = ended_record(self.store)
        return None if last is None else State(last.state)

    def require(self, verb: str) -> None:
        """Raise IllegalTransition if `verb` is not possible now, and MigrationNotFound before `start`."""
        require_possible(verb, self._find())

    def serving(self) -> Serving:
        """Return which vectors answer now. Raises MigrationNotFound before `start`."""
        serving = self._ledger.serving(self.store.target)
        if serving is None:
            raise MigrationNotFound(self.store.target)
        return serving

    def pause(self, reason: str = "by the operator") -> Status:
        """Leave the state `paused`: whoever runs the migration writes nothing from about a second later on.

        Writes go on being captured. Undone by `resume`.
        """
        record = self._find()
        if record.paused is not None and not record.paused.by_operator:
            record = unpause(self.store, record)
        require("pause", State(record.state))
        self._ledger.move(record, State.PAUSED, {"reason": reason}, Paused(record.state, reason, by_operator=True))
        return self.status()

    def resume(self) -> Status:
        """Leave the state as before `pause`."""
        record = self._find()
        require("resume", State(record.state))
        unpause(self.store, record)
        return self.status()

    def throttle(self, rows_per_s: float | None) -> Status:
        """Limit the rows written per second, None for no limit; it holds within a second. Raises SettingsError."""
        return self._set_control("throttle", lambda control: replace(control, rows_per_s=rows_per_s))

    def postpone(self, *, postponed: bool = True) -> Status:
        """Leave `cutover` refused, from whomever, until this is taken back; the run goes on following."""
        return self._set_control("postpone", lambda control: replace(control, postponed=postponed))

    def _set_control(self, verb: str, change: Callable[[Control], Control]) -> Status:
        record = self._find()
        require(verb, State(record.state))
        with self.store.transaction():
            control = change(self._ledger.control(record))
            self._ledger.set_control(record, control)
            detail = {"rows_per_s": control.rows_per_s, "postponed": control.postponed}
            self._ledger.add_event(record, verb, detail)
        return self.status()

    # --- verify, override and retry ---------------------------------------------------------------

    def verify(self, sample: int = 100, *, gate: Gate | None = None, override: str | None = None) -> VerifyReport:
        """Check every new vector, encode `sample` rows again, and ask the new index; then `gate`. Touches no vector.

        Leaves the report in the ledger, and the state `ready` if all checks and the gate passed. Without
        a pass of the gate it is `verified`, unless `override` says why it is to be `ready` all the same; a
        check that failed is never overridden. A failure raises nothing, but takes an earlier pass or
        override back. While the new vectors serve the state stays, and after a `rollback` a `cutover` waits
        for a pass. Repeating is safe. Raises SettingsError, before anything else, for a blank `override`.
        """
        overriding = None if override is None else Override.for_reason(override)
        new = self._follower_model or self._new_for("verify")
        with self._operator_lock("verify") as record:
            refuse_conflicts(record, self.store, self._models)
            verification = Verification(self.store, record, new, self.options.min_recall)
            with self._follower(record, self._models) as follower:
                compared = verification.compare(follower)
            return verification.conclude(compared, sample, gate, overriding)

    def override(self, reason: str) -> Status:
        """Leave the state `ready` although the gate has not passed; why, by whom and when stand in the ledger.

        Possible in `verified` alone, so repeating is refused. Undone by the next `verify`. Raises
        SettingsError for a blank reason, CutoverRefused if a check of the last verification failed.
        """
        override = Override.for_reason(reason)
        with self._operator_lock("override") as record:
            override_gate(self.store, record, override)
        return self.status()

    def retry(self) -> Status:
        """Encode dead letters again, those of a side whose model is given. What fails again stays a dead letter."""
        if self.serve is None:
            self._new_for("retry")
        with self._operator_lock("retry") as record, self.store.runner(self.options.lease_s):
            refuse_conflicts(record, self.store, self._models)
            applier = self._applier(Throttle(self._ledger, record), self._models)
            applier.retry_dead_letters()
            applier.catch_up(wait_s=self.options.wait_for_writers_s)
        return self.status()

    # --- cutover, rollback, finalize, abort -------------------------------------------------------

    def cutover(self, accept_dead_letters: int = 0, *, patience: Patience | None = None) -> CutoverReport:
        """Let the new vectors serve, and record the serving epoch, in one transaction.

        Leaves the old vectors beside the new, to be kept current. Undone by `rollback`. What was written
        before is followed first, by a run in another process or with the new model; a write that comes just
        before the lock makes it try again. No model is called while others wait, unless writers leave no gap
        (`switch.TRIES_WITHOUT_MODEL`). The epoch has the thresholds that the last verdict of the gate gave for the
        new space. patience: instead of that of the options. Raises GateNotPassed in state `verified`;
        CutoverRefused if the number of dead letters is not `accept_dead_letters`, if it is postponed, or if
        writes came faster than they could be followed; Locked if the table could not be had. Then the old vectors
        still serve.
        """
        patience = patience or self.options.patience
        with self._operator_lock("cutover", patience) as record:
            if self._ledger.control(record).postponed:
                raise CutoverRefused("it is postponed", "vecferry migrate postpone --undo")
            refuse_not_verified(record)
            with self._switch(record, SideModels(new=self._follower_model), patience) as switch:
                return switch.cutover(accept_dead_letters)

    def rollback(self, *, accept_outdated: bool = False, patience: Patience | None = None) -> RollbackReport:
        """Let the old vectors serve again, with the old thresholds, in one transaction. Undone by `cutover`.

        Rows that were written since the switch have their old vectors too, made by the run that follows, or now
        with the old model. Where neither has made them: CutoverRefused, unless `accept_outdated`: then these rows are
        counted. patience: instead of that of the options, which is made surer (`Patience.surer`). Raises Locked if
        the table could not be had. Then the new vectors still serve.
        """
        patience = patience or self.options.patience.surer()
        with (
            self._operator_lock("rollback", patience) as paused,
            without_pause(self.store, paused) as record,
            self._switch(record, SideModels(old=self.old), patience) as switch,
        ):
            return switch.rollback(accept_outdated=accept_outdated)

    def finalize(
        self,
        *,
        confirmed: bool,
        accept_dead_letters: int = 0,
        in_place: bool = False,
        patience: Patience | None = None,
    ) -> Status:
        """Drop the old vectors. Cannot be undone: raises NotConfirmed unless `confirmed`.

        Leaves the collection with the new vectors alone, under its old name, and the ledger. Another migration may
        begin. Every row is compared first: CutoverRefused if one has no new vector of its text. Where a row without a
        vector has no place, dead letters go with the old side: CutoverRefused, unless `accept_dead_letters` is their
        number. in_place: in PostgreSQL, the new vectors come to stand where the old ones stood among the columns; the
        table is written anew, and its indexes built, while nobody else uses it, for `patience.max_pause_s` at most.
        Repeating is safe. Raises StoreSchemaError if the store has no columns.
        """
        patience = patience or self.options.patience
        if State((record := self._find()).state) is State.FINALIZED:
            self.store.restore_constraints(patience, required=record.spec.old_not_null)
            return self.status()
        with self._operator_lock("finalize", patience) as paused:
            if not confirmed:
                effect = self.effect_of_finalize(in_place=in_place)
                raise NotConfirmed("finalize", effect, "finalize(confirmed=True)")
            with (
                without_pause(self.store, paused) as record,
                self._switch(record, SideModels(new=self._follower_model), patience) as switch,
            ):
                switch.finalize(accept_dead_letters, in_place=in_place)
        return self.status()

    def effect_of_finalize(self, *, in_place: bool = False) -> str:
        """Return what `finalize` does, as the rest of a sentence; and that nothing was verified since the switch."""
        effect = f"drops the old vectors of {self.store.target} and cannot be undone"
        if in_place:
            effect = f"writes the whole table anew while nobody else uses it, {effect}"
        verification, serving = self._find().verification or {}, self._ledger.serving(self.store.target)
        if verification.get("passed") and serving is not None and verification.get("epoch") == serving.epoch:
            return effect
        return f"{effect}, and no verify has passed since the switch (vecferry migrate verify)"

    def abort(
        self, accept_dead_letters: int = 0, *, accept_outdated: bool = False, patience: Patience | None = None
    ) -> MigrationRecord:
        """Give the migration up: leaves the store as before `start`, and the ledger. Another one may begin.

        The vectors that serve are not touched. Not possible while the new ones do: `rollback` first. After a
        rollback every row is compared: CutoverRefused if one has no old vector of its text that the old model cannot
        make, unless `accept_outdated`; and, where a row without a vector has no place, unless `accept_dead_letters` is
        the number of those that are on the new side alone. Repeating is safe. Raises Locked while a run is at work.
        """
        patience = patience or self.options.patience
        last = self._ledger.last(self.store.target)
        if last is not None and State(last.state) is State.ABORTED:
            sweep_staging(last, self.options)
            return last
        with (
            self._operator_lock("abort", patience) as paused,
            self.store.runner(self.options.lease_s),
            without_pause(self.store, paused) as record,
        ):
            applier = self._applier(Throttle(self._ledger, record), SideModels(old=self.old))
            follower = SwitchFollower(self.store, applier)
            switch = Switch(self.store, record, self.options.thresholds, patience, follower)
            switch.abort(accept_dead_letters, accept_outdated=accept_outdated)
        sweep_staging(switch.record, self.options)
        return switch.record

    def forget(self) -> int:
        """Remove the ledger, of all tables of the database, once every migration has ended; return of how many.

        Leaves the vectors, and the columns' comments that say which model made them. What goes is the schema named
        vecferry, in other stores the control database; a `Router` knows no more than before the first migration then.
        Repeating is safe. Raises MigrationsOpen.
        """
        return self._ledger.forget()

    @contextmanager
    def _switch(self, record: MigrationRecord, models: SideModels, patience: Patience) -> Iterator[Switch]:
        with self._follower(record, models) as follower:
            yield Switch(self.store, record, self.options.thresholds, patience, follower)

    @contextmanager
    def _follower(self, record: MigrationRecord, models: SideModels) -> Iterator[SwitchFollower]:
        """Yield what applies the captured writes: this process, or the one that runs the migration too."""
        applier = self._applier(Throttle(self._ledger, record), models)
        with ExitStack() as stack:
            try:
                stack.enter_context(self.store.runner(self.options.lease_s))
            except Locked:
                yield SwitchFollower(self.store, applier, self._ledger.followed(record))
            else:
                yield SwitchFollower(self.store, applier)

    # --- the record -------------------------------------------------------------------------------

    def _operator_lock(self, verb: str, patience: Patience = AT_ONCE) -> AbstractContextManager[MigrationRecord]:
        sweep_ended(self.store, self.options)
        return operator_lock(self.store, verb, self.options.lease_s, patience)

    def _find(self) -> MigrationRecord:
        """Find the migration that was not given up. What an ended one has left on this disk is removed."""
        sweep_ended(self.store, self.options)
        return find_record(self.store)


def _seconds_left(state: State, counts: Counts, running: RunningProcess | None) -> float | None:
    """Return how long the rows that are left take at the present rate; None where no run is at them."""
    left = counts.rows - counts.unembedded - counts.done - counts.dead_letters
    if running is None or not running.rows_per_s or state is not State.BACKFILLING:
        return None
    return max(left, 0) / running.rows_per_s
