"""A migration as verbs. Each says what it leaves behind, whether repeating it is safe, and what undoes it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from vecferry.embeddings import Outputs
from vecferry.encode.encoder import Progress, TextEncoder
from vecferry.errors import (
    CutoverRefused,
    FinalizeNotConfirmed,
    GateNotPassed,
    Interrupted,
    Locked,
    MigrationConflict,
    MigrationNotFound,
    SpaceMismatch,
    StoreSchemaError,
    StoreUnreachable,
)
from vecferry.migrate.applier import Applier, SideModels, refuse_conflicts
from vecferry.migrate.engines import Engine
from vecferry.migrate.engines.local import LocalEngine
from vecferry.migrate.following import SwitchFollower
from vecferry.migrate.planning import make_plan
from vecferry.migrate.runner import Counter, Runner
from vecferry.migrate.staging import Staging, remove_staged
from vecferry.migrate.states import ENDED, State, can_move, possible_verbs, require
from vecferry.migrate.switch import Switch, locked_switch, recover_interrupted_switch
from vecferry.migrate.throttle import DiskGuard, LatencyGuard, PauseCondition, Throttle
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
from vecferry.migrate.verification import (
    MAX_CAPTURED,
    Gate,
    check_integrity,
    index_recall,
    recall_check,
    recomputation_check,
    recomputed_cosines,
    structural_checks,
)
from vecferry.stores.lease import held
from vecferry.stores.ledger import Control, MigrationRecord, MigrationSpec, Paused, Serving
from vecferry.stores.protocol import Store
from vecferry.stores.values import Patience, Side

EngineFor = Callable[[Store, Staging, MigrationRecord], Engine]
"""Makes the engine of a run."""
EVENTS_SHOWN = LETTERS_SHOWN = 10
LEASE_POLL_S = 0.5
AT_ONCE = Patience(wait_s=0)
UNASKED = frozenset({"rollback", "abort", "finalize"})
"""Verbs that end a pause by themselves, also an operator's."""


class Migration:
    """The migration of one store. Whoever calls decides nothing twice: the state lies in the ledger.

    Any verb may be called from any process. One process at a time holds the lease and writes vectors
    (`start`); one at a time changes the state by hand (the others); a second raises Locked. All raise
    StoreError where the store fails. A verb that is not possible in the present state raises
    IllegalTransition, and MigrationNotFound if `start` was never called.

    new and old are the models. `old` keeps the old vectors current after a switch, and so is needed
    for a rollback that loses nothing.
    """

    def __init__(self, store: Store, options: MigrationOptions | None = None) -> None:
        self._store = store
        self._ledger = store.ledger
        self.options = options or MigrationOptions()

    # --- plan -------------------------------------------------------------------------------------

    def plan(self, new: TextEncoder, sample: int = 32, resources: Resources | None = None) -> Plan:
        """Say what a migration to `new` would do and cost. Writes nothing; a read-only role will do.

        `sample` rows are really encoded, to measure the time.
        """
        self._sweep_ended()
        self._refuse_outputs()
        serving = self._ledger.serving(self._store.target)
        recorded = serving.fingerprint if serving else None
        old = self._known_old_fingerprint(recorded)
        return make_plan(self._store, new, self.options.outputs, old, sample, resources or Resources())

    def _refuse_outputs(self) -> None:
        if beyond := self.options.outputs & ~self._store.outputs:
            what = f"{self._store.target} cannot hold {', '.join(beyond.names)} vectors"
            raise StoreSchemaError(what, f"This store holds {', '.join(self._store.outputs.names)}.")

    def _known_old_fingerprint(self, recorded: str | None, old: TextEncoder | None = None) -> str | None:
        given = self.options.old_fingerprint or (old.fingerprint if old else None)
        for other in (recorded, old.fingerprint if old else None):
            if given and other and given != other:
                raise SpaceMismatch(expected=given, found=other, where=f"the vectors of {self._store.target}")
        return given or recorded

    # --- start ------------------------------------------------------------------------------------

    def start(
        self,
        new: TextEncoder,
        progress: Progress | None = None,
        *,
        old: TextEncoder | None = None,
        follow: Callable[[], bool] | None = None,
        stop: Callable[[], bool] = lambda: False,
        engine: EngineFor | None = None,
    ) -> Status:
        """Bring the sides up to date: begin, resume after any interruption, or catch up with what was written.

        Leaves a new vector for every row whose text can be embedded, dead letters for the others, and
        the indexes; writes are captured from then on. The vectors that serve are not touched. With
        `follow` it goes on applying what is captured, through switches, until `follow()` is true or the
        migration has ended. Repeating is safe: what is done is kept. Undone by `abort`.
        Waits while paused; a store that went away is waited for, `reconnect_s` long. stop: asked often,
        true raises Interrupted. Raises MigrationConflict if the migration was begun with something else,
        SpaceMismatch if the new side is another model's, Locked if another process runs it.
        """
        models = SideModels(new, old)
        self._refuse_outputs()
        self._sweep_ended()
        outage = _Outage(self.options)
        while True:
            try:
                return self._run(models, progress, follow, stop, engine, outage)
            except StoreUnreachable as exc:
                self._reconnect(exc, outage, stop)
            except Locked:  # the lease that we had when the store went away may last for a moment
                if outage.is_over():
                    raise
                time.sleep(LEASE_POLL_S)

    def _run(
        self,
        models: SideModels,
        progress: Progress | None,
        follow: Callable[[], bool] | None,
        stop: Callable[[], bool],
        engine: EngineFor | None,
        outage: _Outage,
    ) -> Status:
        self._ledger.install()
        with self._store.runner(self.options.lease_s):
            outage.end()
            record = self._begin(models)
            if self._ledger.followed(record) != models.sides:
                self._ledger.set_followed(record, models.sides)
            throttle = Throttle(self._ledger, record, self._guards(record), stop)
            counter = Counter(progress)
            applier = self._applier(throttle, models, counter)
            staging = self._staging(record)
            options = self.options
            runner = Runner(self._store, throttle, applier, counter, options.patience, options.wait_for_writers_s)
            try:
                runner.run((engine or self._local_engine(models))(self._store, staging, record), staging)
                if follow is not None:
                    applier.follow(follow)
            except (Interrupted, StoreSchemaError) as exc:  # a side may be dropped in the middle of a write
                if not self._is_ended():
                    raise
                if follow is None:
                    raise Interrupted("the migration was ended by somebody else") from exc
        return self.status()

    def _is_ended(self) -> bool:
        record = self._ledger.find(self._store.target)
        return record is None or State(record.state) in ENDED

    def _applier(self, throttle: Throttle, models: SideModels, counter: Counter | None = None) -> Applier:
        options, counter = self.options, counter or Counter(None)
        return Applier(self._store, throttle, models, options.rows_per_range, options.rows_per_write, counter.add)

    def _staging(self, record: MigrationRecord) -> Staging:
        return Staging(self.options.staging, record.spec.fingerprint, Outputs.of(record.spec.outputs))

    def _local_engine(self, models: SideModels) -> EngineFor:
        new = models.new
        assert new is not None, "a run has the new model"

        def made(store: Store, staging: Staging, record: MigrationRecord) -> Engine:
            return LocalEngine(store, new, staging, record.spec.uid, self.options.rows_per_range, staging.outputs)

        return made

    def _reconnect(self, failure: StoreUnreachable, outage: _Outage, stop: Callable[[], bool]) -> None:
        """Return when the store answers again. Raises `failure` if it does not within `reconnect_s`."""
        outage.begin()
        pause_s = 0.1
        while True:
            try:
                self._store.reconnect()
                record = self._ledger.find(self._store.target)
                if record is not None:
                    detail = {"reason": failure.reason, "seconds": round(outage.seconds(), 1)}
                    self._ledger.add_event(record, "store came back", detail)
            except StoreUnreachable:
                if stop() or outage.is_over():
                    raise failure from None
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 2.0)
            else:
                return

    def _guards(self, record: MigrationRecord) -> list[PauseCondition]:
        options, guards = self.options, list[PauseCondition]()
        if options.min_free_gb:
            guards.append(DiskGuard(options.staging, options.min_free_gb))
        if options.max_query_ms is not None:
            serving = self.serving()
            dimension = self._store.describe().dimension
            if dimension is not None and serving.epoch == record.spec.epoch:
                query = np.random.default_rng(0).standard_normal(dimension).astype(np.float32)
                guards.append(LatencyGuard(self._store, query, serving.fingerprint or "unknown", options.max_query_ms))
        return guards

    def _begin(self, models: SideModels) -> MigrationRecord:
        """The record to go on with; a new one if there is none, or if the last has ended."""
        record = self._ledger.find(self._store.target)
        if record is None or State(record.state) in ENDED:
            return self._create(models)
        if record.paused is None or record.paused.by_operator:
            require("start", State(record.state))
        refuse_conflicts(record, self._store, models)
        if self.options.old_fingerprint not in (None, record.spec.old_fingerprint):
            stored, given = record.spec.old_fingerprint, self.options.old_fingerprint
            raise MigrationConflict(record.spec.target, "old_fingerprint", stored, given)
        return record

    def _create(self, models: SideModels) -> MigrationRecord:
        store, target, new = self._store, self._store.target, models.new
        assert new is not None, "a run has the new model"
        table, serving = store.describe(), self._ledger.serving(target)
        recorded = serving.fingerprint if serving else table.fingerprint
        old_fingerprint = self._known_old_fingerprint(recorded, models.old)
        new_locator = store.serving_locator(Side.NEW)
        serving = serving or Serving(1, 1, store.serving_locator(Side.OLD), old_fingerprint)
        thresholds = self.options.thresholds or serving.thresholds
        serving = replace(serving, fingerprint=old_fingerprint, thresholds=dict(thresholds))
        spec = MigrationSpec(
            target=target,
            text_source=store.text_source,
            dimension=new.dimension,
            fingerprint=new.fingerprint,
            old_fingerprint=old_fingerprint,
            old_not_null=table.vector_not_null,
            generation=serving.generation + 1,
            epoch=serving.epoch,
            old_locator=serving.locator,
            new_locator=new_locator,
            outputs=self.options.outputs.names,
            uid=uuid.uuid4().hex[:12],
        )
        with store.transaction():
            self._ledger.serve(target, serving)
            record = self._ledger.create(spec, State.PLANNED)
            self._ledger.set_control(record, Control(self.options.rows_per_s))
        return record

    # --- status and control -----------------------------------------------------------------------

    def status(self) -> Status:
        """Where the migration stands, from any process, also while another one runs it. Writes nothing."""
        record = self._find()
        counts = self._store.counts()
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
            backlog=self._store.backlog(Side.NEW),
            old_backlog=self._store.backlog(Side.OLD),
            control=self._ledger.control(record),
            dead_letters=counts.dead_letters,
            first_dead_letters=tuple(self._ledger.dead_letters(record, LETTERS_SHOWN)),
            old_fingerprint=record.spec.old_fingerprint,
            new_fingerprint=record.spec.fingerprint,
            dimension=record.spec.dimension,
            serving=self._ledger.serving(record.spec.target),
            verification=dict(record.verification) if record.verification is not None else None,
            events=tuple(self._ledger.events(record, EVENTS_SHOWN)),
        )

    def ended(self) -> State | None:
        """How the last migration has ended, `finalized` or `aborted`; None where there was none, or one is open."""
        last = self._ledger.last(self._store.target)
        return State(last.state) if last is not None and State(last.state) in ENDED else None

    def serving(self) -> Serving:
        """Which vectors answer now. Raises MigrationNotFound before `start`."""
        serving = self._ledger.serving(self._store.target)
        if serving is None:
            raise MigrationNotFound(self._store.target)
        return serving

    def pause(self, reason: str = "by the operator") -> Status:
        """Leaves the state `paused`: whoever runs the migration writes nothing from about a second later on.

        Writes go on being captured. Undone by `resume`.
        """
        record = self._find()
        if record.paused is not None and not record.paused.by_operator:
            record = self._ledger.move(record, record.paused.before, {"resumed": record.paused.reason})
        require("pause", State(record.state))
        self._ledger.move(record, State.PAUSED, {"reason": reason}, Paused(record.state, reason, by_operator=True))
        return self.status()

    def resume(self) -> Status:
        """Leaves the state as before `pause`."""
        record = self._find()
        require("resume", State(record.state))
        self._unpause(record)
        return self.status()

    def _unpause(self, record: MigrationRecord) -> MigrationRecord:
        assert record.paused is not None
        return self._ledger.move(record, record.paused.before, {"resumed": record.paused.reason})

    def throttle(self, rows_per_s: float | None) -> Status:
        """Leaves a limit to the rows written per second, None for no limit; it holds within a second."""
        return self._set_control("throttle", lambda control: replace(control, rows_per_s=rows_per_s))

    def postpone(self, *, postponed: bool = True) -> Status:
        """Leaves `cutover` refused, from whomever, until this is taken back; the run goes on following."""
        return self._set_control("postpone", lambda control: replace(control, postponed=postponed))

    def _set_control(self, verb: str, change: Callable[[Control], Control]) -> Status:
        record = self._find()
        require(verb, State(record.state))
        with self._store.transaction():
            control = change(self._ledger.control(record))
            self._ledger.set_control(record, control)
            detail = {"rows_per_s": control.rows_per_s, "postponed": control.postponed}
            self._ledger.add_event(record, verb, detail)
        return self.status()

    # --- verify, override and retry ---------------------------------------------------------------

    def verify(
        self,
        new: TextEncoder,
        sample: int = 100,
        *,
        old: TextEncoder | None = None,
        gate: Gate | None = None,
        override: str | None = None,
    ) -> VerifyReport:
        """Check every new vector, encode `sample` rows again, and ask the new index; then `gate`. Touches no vector.

        Leaves the report in the ledger, and the state `ready` if all checks and the gate passed. Without
        a pass of the gate it is `verified`, unless `override` says why it is to be `ready` all the same; a
        check that failed is never overridden. A failure raises nothing, but takes an earlier pass or
        override back. Repeating is safe. Raises SettingsError, before anything else, for a blank `override`.
        """
        models, overriding = SideModels(new, old), None if override is None else Override.for_reason(override)
        with self._operator_lock("verify") as record:
            refuse_conflicts(record, self._store, models)
            report = self._examine(record, new, models, sample)
            if report.state is State.VERIFIED:
                report = self._judged(report, gate, overriding)
            self._keep_report(report)
        return report

    def _judged(self, report: VerifyReport, gate: Gate | None, override: Override | None) -> VerifyReport:
        verdict = None if gate is None else gate(self._store)
        passed = verdict is not None and verdict.passed
        report = replace(report, gate=verdict, override=None if passed else override)
        if passed or override is not None:
            report = replace(report, passed=True, state=State.READY)
        return report

    def _keep_report(self, report: VerifyReport) -> None:
        detail = {
            "failed": [check.name for check in report.checks if not check.passed],
            "gate": report.gate.message if report.gate else None,
        }
        with self._store.transaction():
            record = self._find()
            self._ledger.keep_verification(record, report.to_dict())
            before = State(record.state)
            for state in (State.VERIFIED, report.state) if report.state is State.READY else (report.state,):
                if state != before and can_move(before, state):
                    record = self._ledger.move(record, state, detail)
                    before = state
            if report.override is not None:
                self._note_override(record, report.override)

    def override(self, reason: str) -> Status:
        """Leaves the state `ready` although the gate has not passed; why, by whom and when stand in the ledger.

        Possible in `verified` alone, so repeating is refused. Undone by the next `verify`. Raises
        SettingsError for a blank reason, CutoverRefused if a check of the last verification failed.
        """
        override = Override.for_reason(reason)
        with self._operator_lock("override") as record, self._store.transaction():
            verification = record.verification or {}
            self._refuse_failed(verification)
            overridden = {"passed": True, "state": State.READY, "override": override.to_dict()}
            self._ledger.keep_verification(record, {**verification, **overridden})
            self._note_override(self._ledger.move(record, State.READY, {}), override)
        return self.status()

    def _refuse_failed(self, verification: Mapping[str, Any]) -> None:
        failed = [check["name"] for check in verification.get("checks", ()) if not check["passed"]]
        if failed or not verification:
            reason = f"the last verification failed ({', '.join(failed)})" if failed else "nothing was verified"
            raise CutoverRefused(reason, ("none",), "vecferry migrate verify")

    def _note_override(self, record: MigrationRecord, override: Override) -> None:
        self._ledger.add_event(record, "gate overridden", {"reason": override.reason, "by": override.by})

    def _examine(self, record: MigrationRecord, new: TextEncoder, models: SideModels, sample: int) -> VerifyReport:
        with self._follower(record, models) as follower:
            follower.catch_up(Side.NEW, few=MAX_CAPTURED)
            found = check_integrity(
                self._store, record.spec.dimension, lambda: follower.catch_up(Side.NEW, few=MAX_CAPTURED)
            )
        dead_letters = self._ledger.count_dead_letters(record, Side.NEW)
        cosines = recomputed_cosines(self._store, new, sample)
        recall = index_recall(self._store, record.spec.fingerprint)
        comparable = found.rows - found.without_vector.count - found.outdated.count
        checks = (
            *structural_checks(found, dead_letters, record.spec.dimension, unit=new.space.normalize),
            recomputation_check(cosines, expected=-(-min(sample, comparable) // 2)),  # rows may be written meanwhile
            recall_check(recall, self.options.min_recall),
        )
        passed = all(check.passed for check in checks)
        return VerifyReport(
            target=record.spec.target,
            passed=False,
            rows=found.rows,
            dead_letters=dead_letters,
            sampled=len(cosines),
            lowest_cosine=min(cosines.values(), default=None),
            recall=recall,
            checks=checks,
            state=State.VERIFIED if passed else State.CATCHING_UP,
        )

    def retry(self, new: TextEncoder, *, old: TextEncoder | None = None) -> Status:
        """Encode dead letters again, those of a side whose model is given. What fails again stays a dead letter."""
        models = SideModels(new, old)
        with self._operator_lock("retry") as record, self._store.runner(self.options.lease_s):
            refuse_conflicts(record, self._store, models)
            self._store.retry_dead_letters()
            applier = self._applier(Throttle(self._ledger, record), models)
            applier.catch_up(wait_s=self.options.wait_for_writers_s)
        return self.status()

    # --- cutover, rollback, finalize, abort -------------------------------------------------------

    def cutover(
        self,
        accept_dead_letters: int = 0,
        *,
        new: TextEncoder | None = None,
        patience: Patience | None = None,
    ) -> CutoverReport:
        """Let the new vectors serve, and record the serving epoch, in one transaction.

        Leaves the old vectors beside the new, to be kept current. Undone by `rollback`. What was written
        before is followed first, by a run in another process or with `new`; a write that comes just
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
                raise CutoverRefused("it is postponed", ("none",), "vecferry migrate postpone --undo")
            with self._switch(record, SideModels(new), patience) as switch:
                return switch.cutover(accept_dead_letters)

    def rollback(
        self,
        *,
        old: TextEncoder | None = None,
        accept_outdated: bool = False,
        patience: Patience | None = None,
    ) -> RollbackReport:
        """Let the old vectors serve again, with the old thresholds, in one transaction. Undone by `cutover`.

        Rows that were written since the switch have their old vectors too, made by the run that follows, or now
        with `old`. Where neither has made them: CutoverRefused, unless `accept_outdated`: then these rows are counted.
        patience: instead of that of the options, which is made surer (`Patience.surer`). Raises Locked if the table
        could not be had. Then the new vectors still serve.
        """
        patience = patience or self.options.patience.surer()
        with (
            self._operator_lock("rollback", patience) as record,
            self._switch(record, SideModels(old=old), patience) as switch,
        ):
            return switch.rollback(accept_outdated=accept_outdated)

    def finalize(
        self,
        *,
        confirmed: bool,
        accept_dead_letters: int = 0,
        new: TextEncoder | None = None,
        patience: Patience | None = None,
    ) -> Status:
        """Drop the old vectors. Cannot be undone: raises FinalizeNotConfirmed unless `confirmed`.

        Leaves the collection with the new vectors alone, and the ledger. Another migration may begin. Every row is
        compared first: CutoverRefused if one has no new vector of its text. Where a row without a vector has no
        place, dead letters go with the old side: CutoverRefused, unless `accept_dead_letters` is their number.
        Repeating is safe.
        """
        patience = patience or self.options.patience
        if State(self._find().state) is State.FINALIZED:
            return self.status()
        with self._operator_lock("finalize", patience) as record:
            if not confirmed:
                raise FinalizeNotConfirmed
            with self._switch(record, SideModels(new), patience) as switch:
                switch.finalize(accept_dead_letters)
        return self.status()

    def abort(
        self,
        accept_dead_letters: int = 0,
        *,
        old: TextEncoder | None = None,
        accept_outdated: bool = False,
        patience: Patience | None = None,
    ) -> MigrationRecord:
        """Give the migration up: leaves the store as before `start`, and the ledger. Another one may begin.

        The vectors that serve are not touched. Not possible while the new ones do: `rollback` first. After a
        rollback every row is compared: CutoverRefused if one has no old vector of its text that `old` cannot make,
        unless `accept_outdated`; and, where a row without a vector has no place, unless `accept_dead_letters` is the
        number of those that are on the new side alone. Repeating is safe. Raises Locked while a run is at work.
        """
        patience = patience or self.options.patience
        last = self._ledger.last(self._store.target)
        if last is not None and State(last.state) is State.ABORTED:
            self._sweep_ended()
            return last
        with self._operator_lock("abort", patience) as record, self._store.runner(self.options.lease_s):
            applier = self._applier(Throttle(self._ledger, record), SideModels(old=old))
            follower = SwitchFollower(self._store, applier)
            switch = Switch(self._store, record, self.options.thresholds, patience, follower)
            switch.abort(accept_dead_letters, accept_outdated=accept_outdated)
        self._sweep_staging(switch.record)
        return switch.record

    @contextmanager
    def _switch(self, record: MigrationRecord, models: SideModels, patience: Patience) -> Iterator[Switch]:
        with self._follower(record, models) as follower:
            yield Switch(self._store, record, self.options.thresholds, patience, follower)

    @contextmanager
    def _follower(self, record: MigrationRecord, models: SideModels) -> Iterator[SwitchFollower]:
        """What applies the captured writes: this process, or the one that runs the migration too."""
        applier = self._applier(Throttle(self._ledger, record), models)
        with ExitStack() as stack:
            try:
                stack.enter_context(self._store.runner(self.options.lease_s))
            except Locked:
                yield SwitchFollower(self._store, applier, self._ledger.followed(record))
            else:
                yield SwitchFollower(self._store, applier)

    # --- the record -------------------------------------------------------------------------------

    @contextmanager
    def _operator_lock(self, verb: str, patience: Patience = AT_ONCE) -> Iterator[MigrationRecord]:
        """The record in a state in which `verb` is possible, while nobody else changes it by hand."""
        self._find()
        with self._held_switch(patience):
            record = recover_interrupted_switch(self._store, self._find())
            if record.paused is not None and (verb in UNASKED or not record.paused.by_operator):
                record = self._unpause(record)
            _require(verb, record)
            yield record

    @contextmanager
    def _held_switch(self, patience: Patience) -> Iterator[None]:
        """Nobody else changes the state by hand; another verb is waited for only where the wait has no end."""
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(held(self._ledger, locked_switch(self._store.target), self.options.lease_s))
                    break
                except Locked as exc:
                    if patience.wait_s is not None:
                        raise
                    patience.notify(f"another verb is at work: {exc.holder}")
                time.sleep(LEASE_POLL_S)
            yield

    def _find(self) -> MigrationRecord:
        """Of the migration that was not given up. What an ended one has left on this disk is removed."""
        self._sweep_ended()
        record = self._ledger.find(self._store.target)
        if record is None:
            raise MigrationNotFound(self._store.target)
        return record

    def _sweep_ended(self) -> None:
        last = self._ledger.last(self._store.target)
        if last is not None and State(last.state) in ENDED:
            self._sweep_staging(last)

    def _sweep_staging(self, record: MigrationRecord) -> None:
        remove_staged(self.options.staging, record.spec.fingerprint, record.spec.uid)


def _require(verb: str, record: MigrationRecord) -> None:
    """As `states.require`, but a cutover that waits for the gate alone is told its verdict."""
    state = State(record.state)
    if verb == "cutover" and state is State.VERIFIED:
        verdict = (record.verification or {}).get("gate") or {"message": "none was asked."}
        raise GateNotPassed(verb, state.value, possible_verbs(state), verdict["message"])
    require(verb, state)


class _Outage:
    """How long the store has been away; over when a run is at work again."""

    def __init__(self, options: MigrationOptions) -> None:
        self._options = options
        self._began_at: float | None = None

    def begin(self) -> None:
        if self._began_at is None:
            self._began_at = time.monotonic()

    def end(self) -> None:
        self._began_at = None

    def seconds(self) -> float:
        return 0.0 if self._began_at is None else time.monotonic() - self._began_at

    def is_over(self) -> bool:
        """Whether there was none, or it has taken longer than is waited for, the lease that we had included."""
        return self._began_at is None or self.seconds() > self._options.reconnect_s + self._options.lease_s
