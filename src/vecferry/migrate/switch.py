"""The short moments in which nobody else writes: cutover, rollback, finalize, abort. No model is called in one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from vecferry.errors import CutoverRefused, StoreError, VecferryError
from vecferry.migrate.states import State, can_move
from vecferry.migrate.values import CutoverReport, MigrationOptions, RollbackReport
from vecferry.stores import Side, Store, shown
from vecferry.stores.ledger import MigrationRecord, Serving

T = TypeVar("T")
MAX_PAUSE_S = 0.05
LETTERS_SHOWN = 10


class _NotDrained(VecferryError):
    """A write came between the last look and the lock."""


@dataclass
class Switch:
    """drain: makes the side that does not serve current, as far as it can; called before each try."""

    store: Store
    record: MigrationRecord
    options: MigrationOptions
    drain: Callable[[], None]

    def __post_init__(self) -> None:
        self._ledger = self.store.ledger
        self._tries = 0

    # --- the four -----------------------------------------------------------------------------------

    def cutover(self, accepted: int) -> CutoverReport:
        self.drain()  # which may end dead letters
        self._refuse_letters(accepted)
        seconds, serving = self._when_drained(State.CUTTING_OVER, State.READY, lambda: self._to_new(accepted))
        return CutoverReport(self.store.target, serving, accepted, self._tries, seconds, State.SERVING_NEW)

    def rollback(self, *, accept_stale: bool) -> RollbackReport:
        seconds, (serving, stale, restored) = self._when_drained(
            State.ROLLING_BACK, State.SERVING_NEW, self._to_old, accept_stale=accept_stale
        )
        letters = self._ledger.count_dead_letters(self.record, Side.OLD)
        return RollbackReport(
            self.store.target, serving, stale, letters, restored, self._tries, seconds, State.SERVING_OLD
        )

    def finalize(self, accepted: int) -> None:
        self._when_drained(None, State.SERVING_NEW, lambda: self._drop_old(accepted))

    def abort(self) -> None:
        self.store.exclusively(self._afresh(self._drop_new), self.options.patience)

    # --- inside the lock --------------------------------------------------------------------------

    def _to_new(self, accepted: int) -> Serving:
        self._refuse_letters(accepted)
        self.store.switch()
        spec = self.record.spec
        serving = self._next_epoch(Side.NEW, spec.generation, spec.fingerprint, self._mapped("new"))
        self._move(State.SERVING_NEW, epoch=serving.epoch, accepted_dead_letters=accepted)
        return serving

    def _to_old(self) -> tuple[Serving, int, bool]:
        spec, stale = self.record.spec, self.store.backlog()
        restored = self.store.switch_back(not_null=spec.old_not_null)
        thresholds = {**self.options.thresholds, **self._mapped("old")}
        serving = self._next_epoch(Side.OLD, spec.generation - 1, spec.old_fingerprint, thresholds)
        self._move(State.SERVING_OLD, epoch=serving.epoch, stale_rows=stale)
        return serving, stale, restored

    def _mapped(self, space: str) -> dict[str, float]:
        """The thresholds of the last verdict, in the space "old" or "new"; none if it gave none."""
        gate = (self.record.verification or {}).get("gate") or {}
        return {name: mapped[space] for name, mapped in gate.get("thresholds", {}).items()}

    def _next_epoch(
        self, side: Side, generation: int, fingerprint: str | None, thresholds: Mapping[str, float]
    ) -> Serving:
        before = self._ledger.serving(self.store.target)
        epoch = before.epoch + 1 if before else self.record.spec.epoch + 1
        after = Serving(epoch, generation, self.store.serving_locator(side), fingerprint, thresholds)
        self._ledger.serve(self.store.target, after)
        return after

    def _drop_old(self, accepted: int) -> None:
        if not self.store.rows_outlive_vectors:  # dead letters are on the old side alone
            self._refuse_letters(accepted)
        self.store.stop_capture()
        self.store.drop_old()
        self._move(State.FINALIZED)

    def _drop_new(self) -> None:
        self.store.stop_capture()
        self.store.drop_new()
        self._move(State.ABORTED)

    # --- getting there ----------------------------------------------------------------------------

    def _when_drained(
        self, during: State | None, otherwise: State, work: Callable[[], T], *, accept_stale: bool = False
    ) -> tuple[float, T]:
        """`work` while nothing is captured undone; the seconds in which writers waited, and what it returns.

        Tried `switch_tries` times, since writes go on until the lock is had. `during` is the state
        meanwhile; it is left as `otherwise` again if nothing came of it.
        """

        def when_still_drained() -> tuple[float, T]:
            began = time.perf_counter()
            if not accept_stale and self.store.backlog():
                raise _NotDrained
            return began, work()

        if during is not None:
            self._move(during)
        try:
            while self._tries < self.options.switch_tries:
                self._tries += 1
                if not accept_stale:
                    self.drain()
                with suppress(_NotDrained):
                    began, result = self.store.exclusively(self._afresh(when_still_drained), self.options.patience)
                    return time.perf_counter() - began, result
                time.sleep(random.uniform(0, MAX_PAUSE_S))  # noqa: S311  # to fall between two writes
            raise self._never_drained()
        except BaseException:
            with suppress(StoreError):  # the next verb takes the mark back
                self._step_back(during, otherwise)
            raise

    def _afresh(self, work: Callable[[], T]) -> Callable[[], T]:
        """`work` that goes out from the record of now, since `exclusively` may undo it and try again."""
        record = self.record

        def again() -> T:
            self.record = record
            return work()

        return again

    def _step_back(self, during: State | None, otherwise: State) -> None:
        if during is not None:
            found = self._ledger.find(self.store.target)
            if found is not None and found.id == self.record.id and found.state == during:
                self.record = found
                self._move(otherwise)

    def _never_drained(self) -> CutoverRefused:
        changes = self.store.captured(LETTERS_SHOWN)
        reason = f"{self.store.backlog()} writes were not followed yet in each of {self._tries} tries"
        remedy = "Run start --follow in another terminal with both models, or try when there are fewer writes."
        return CutoverRefused(reason, shown(list(dict.fromkeys(change.key for change in changes))), remedy)

    def _refuse_letters(self, accepted: int) -> None:
        found = self._ledger.count_dead_letters(self.record, Side.NEW)
        if found != accepted:
            letters = self._ledger.dead_letters(self.record, LETTERS_SHOWN, Side.NEW)
            reason = f"{found} rows have no new vector (dead letters), {accepted} were accepted"
            remedy = f"Repair their texts, or retry them, or accept exactly {found}."
            raise CutoverRefused(reason, shown([letter.key for letter in letters]) or ("none",), remedy)

    def _move(self, state: State, **detail: object) -> None:
        assert can_move(State(self.record.state), state), f"{self.record.state} -> {state}"
        self.record = self._ledger.move(self.record, state, detail)


def settled(store: Store, record: MigrationRecord) -> MigrationRecord:
    """The record, with the marks of a switch that was killed taken back: its transaction did not happen."""
    before = {State.CUTTING_OVER: State.READY, State.ROLLING_BACK: State.SERVING_NEW}.get(State(record.state))
    return record if before is None else store.ledger.move(record, before, {"taken_back": record.state})


def locked_switch(target: str) -> str:
    """Name of the lease under which a state is changed by hand; the runner has one of its own."""
    return f"{target} (switch)"
