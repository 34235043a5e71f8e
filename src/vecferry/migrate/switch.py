"""The short moments in which nobody else uses the collection: cutover, rollback, finalize, abort."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from vecferry.errors import CutoverRefused, Locked, StoreError, VecferryError
from vecferry.migrate.states import State, can_move
from vecferry.migrate.values import CutoverReport, RollbackReport
from vecferry.stores.ledger import FIRST_EPOCH, DeadLetter, MigrationRecord, Serving, was_switched
from vecferry.stores.protocol import Store, StoreGroup
from vecferry.stores.values import NO_TEXT_DIGEST, Held, NewVector, Patience, Row, Side, shown

T = TypeVar("T")
MAX_GAP_S = 0.05
MARGIN = 3
"""By which a pause that is foretold may be wrong: a switch that takes longer is undone by the server."""
LETTERS_SHOWN = 10
WITHOUT_OLD_MODEL = "written while nobody kept the old side; cutover brings it back"
LOOKS, MAX_SUSPECTS = 5, 1000
"""At rows that may have been written while all were being compared."""
TRIES_WITHOUT_MODEL = 3
"""After so many of them the last rows are embedded while writers wait, since writers leave no gap."""


class Follower(Protocol):
    """What brings a side up to date for a switch."""

    def catch_up(self, side: Side) -> bool:
        """Leave that side current, as far as it can be while others write; return whether to try again may help."""

    def finish(self, side: Side, within_s: float) -> bool:
        """Return whether that side is current now; called while nobody else writes.

        Embeds what is left, for `within_s` at most; 0 calls no model.
        """


class _NotFollowed(VecferryError):
    """A write came between the last look and the lock."""


@dataclass
class Switch:
    """The verbs that need a moment without others. thresholds: the application's own, in the old space."""

    store: Store
    record: MigrationRecord
    thresholds: Mapping[str, float]
    patience: Patience
    follower: Follower

    def __post_init__(self) -> None:
        self._ledger = self.store.ledger
        self._tries = 0

    # --- the four -----------------------------------------------------------------------------------

    def cutover(self, accepted: int) -> CutoverReport:
        self._refuse_long(self.record.spec.dimension)
        self.follower.catch_up(Side.NEW)  # which may end dead letters
        self._refuse_letters(accepted, Side.NEW)
        self._check_switch(Side.NEW)
        held = self._when_current(Side.NEW, (State.CUTTING_OVER, State.READY), lambda: self._to_new(accepted))
        self._restore_constraints(required=False)  # a row may be without a new vector until finalize
        return CutoverReport(self.store.target, held.result, accepted, self._tries, held.pause_s, State.SERVING_NEW)

    def rollback(self, *, accept_outdated: bool) -> RollbackReport:
        self._refuse_long(self.record.spec.dimension)  # the old vectors are the shorter ones, as a rule
        self._check_switch(Side.OLD)
        states = (State.ROLLING_BACK, State.SERVING_NEW)
        held = self._when_current(Side.OLD, states, self._to_old, accept_outdated=accept_outdated)
        serving, outdated = held.result
        dead_letters = self._ledger.count_dead_letters(self.record, Side.OLD)
        if self.store.traits.rows_outlive_vectors:
            dead_letters -= outdated  # which are marked so, and can be embedded
        restored = self._restore_constraints(required=self.record.spec.old_not_null)
        return RollbackReport(
            self.store.target, serving, outdated, dead_letters, restored, self._tries, held.pause_s, State.SERVING_OLD
        )

    def finalize(self, accepted: int, *, in_place: bool) -> None:
        self.follower.catch_up(Side.NEW)
        self._refuse_outdated(Side.NEW)
        self._drop_ahead(Side.OLD, accepted)
        drop = self.store.replace_old if in_place else lambda: self.store.drop(Side.OLD)
        self._when_current(Side.NEW, None, lambda: self._end(Side.OLD, accepted, State.FINALIZED, drop))
        self._restore_constraints(required=self.record.spec.old_not_null)

    def abort(self, accepted: int, *, accept_outdated: bool) -> None:
        """Abort. After a rollback, what was written to the side that goes must be on the one that stays.

        A side that is gone was dropped by an abort that was killed.
        """
        needs_comparing = was_switched(self._ledger, self.record) and self.store.new_space() is not None
        if needs_comparing and not accept_outdated:
            self.follower.catch_up(Side.OLD)
            self._refuse_outdated(Side.OLD, with_vector=True)
        self.store.restore_constraints(self.patience, required=self.record.spec.old_not_null)
        self._drop_ahead(Side.NEW, accepted)
        self._when_current(
            Side.OLD,
            None,
            lambda: self._end(Side.NEW, accepted, State.ABORTED, lambda: self.store.drop(Side.NEW)),
            accept_outdated=accept_outdated or not needs_comparing,
        )

    def _check_switch(self, to: Side) -> None:
        """Look at what takes too long for the pause, where a side is many collections."""
        if isinstance(self.store, StoreGroup):
            self.store.check_switch(to)

    def _drop_ahead(self, side: Side, accepted: int) -> None:
        """Do what would keep others waiting in `_end`, where a side is many collections."""
        if isinstance(self.store, StoreGroup):
            self._refuse_letters(accepted, side.other)
            self.store.drop_ahead(side, self.patience)

    def _restore_constraints(self, *, required: bool) -> bool:
        """Do so after a switch, which is done also where it cannot be; the next verb tries it again."""
        with suppress(Locked, StoreError):
            return self.store.restore_constraints(self.patience, required=required)
        return False

    def _refuse_long(self, dimension: int) -> None:
        """Refuse a switch that others would have to wait for longer than they may: it ends whole, or is undone."""
        seconds = self.store.switch_s(dimension)
        if seconds > self.patience.max_pause_s:
            reason = (
                f"the server writes the vectors that are to serve, with their indexes, which takes about {seconds:.1f}"
            )
            reason += f" s, and others may wait for {self.patience.max_pause_s:g} s"
            longer = math.ceil(MARGIN * seconds)
            raise CutoverRefused(reason, f"Choose a time when nobody uses the table, and say --max-pause-s {longer}")

    # --- inside the lock --------------------------------------------------------------------------

    def _to_new(self, accepted: int) -> Serving:
        self._refuse_letters(accepted, Side.NEW)
        self.store.switch(Side.NEW)
        spec = self.record.spec
        serving = self._next_epoch(Side.NEW, spec.generation, spec.fingerprint, self._mapped("new"))
        self._move(State.SERVING_NEW, epoch=serving.epoch, accepted_dead_letters=accepted)
        return serving

    def _to_old(self) -> tuple[Serving, int]:
        spec, outdated = self.record.spec, self._left_behind()
        self.store.switch(Side.OLD)
        thresholds = {**self.thresholds, **self._mapped("old")}
        serving = self._next_epoch(Side.OLD, spec.generation - 1, spec.old_fingerprint, thresholds)
        self._move(State.SERVING_OLD, epoch=serving.epoch, outdated_rows=outdated)
        return serving, outdated

    def _left_behind(self) -> int:
        """Return how many rows were written since the switch and not followed on the old side."""
        changes = self.store.captured(self.store.backlog(Side.OLD), {Side.OLD})
        keys = list(dict.fromkeys(change.key for change in changes))
        if self.store.traits.rows_outlive_vectors:
            rows = self.store.outdated(Side.OLD, keys)
            self._mark_untried(rows)
            return len(rows)
        self.store.apply_deletes(keys)
        rows = self.store.outdated(Side.OLD, keys)
        self._set_aside(rows)
        self.store.acknowledge(changes)
        return len(rows)

    def _mark_untried(self, rows: Sequence[Row]) -> None:
        """Note that these lack an old vector for want of a model, or they would be taken to have none on purpose.

        As dead letters of no text, so that a run with the old model tries them.
        """
        dead_letters = [DeadLetter(row.key, WITHOUT_OLD_MODEL, NO_TEXT_DIGEST, Side.OLD) for row in rows]
        self._ledger.add_dead_letters(self.record, dead_letters)

    def _set_aside(self, rows: Sequence[Row]) -> None:
        """Leave these on the new side alone, as dead letters of the old, where another text or no row would be theirs.

        Otherwise the side that serves would be followed, and what was written since the switch be lost for good.
        """
        dead_letters = [DeadLetter(row.key, WITHOUT_OLD_MODEL, row.digest, Side.OLD) for row in rows]
        vectors = [NewVector(row.key, row.digest, None) for row in rows]
        self.store.write(Side.OLD, vectors, lambda _: self._ledger.add_dead_letters(self.record, dead_letters))

    def _mapped(self, space: str) -> dict[str, float]:
        """Return the thresholds of the last verdict, in the space "old" or "new"; none if it gave none."""
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

    def _end(self, side: Side, accepted: int, ended: State, drop: Callable[[], None]) -> None:
        if not self.store.traits.rows_outlive_vectors:  # dead letters of the other side are on this one alone
            self._refuse_letters(accepted, side.other)
        self.store.stop_capture()
        drop()
        if side is Side.OLD:
            self._follow_rename()
        self._move(ended)
        if ended is State.ABORTED and not was_switched(self._ledger, self.record):
            self._forget_space()

    def _forget_space(self) -> None:
        """Leave nobody bound to what was said of the old vectors, which nothing has been made by yet."""
        serving = self._ledger.serving(self.store.target)
        if serving is not None and serving.epoch == FIRST_EPOCH:
            self._ledger.serve(self.store.target, replace(serving, fingerprint=None, thresholds={}))

    def _follow_rename(self) -> None:
        """Record where the new vectors are now: a store without aliases has renamed their collection."""
        serving, locator = self._ledger.serving(self.store.target), self.store.serving_locator(Side.NEW)
        assert serving is not None, "what has been switched serves"
        if locator != serving.locator:
            self._ledger.serve(self.store.target, replace(serving, locator=locator))

    # --- getting there ----------------------------------------------------------------------------

    def _when_current(
        self, side: Side, states: tuple[State, State] | None, work: Callable[[], T], *, accept_outdated: bool = False
    ) -> Held[T]:
        """Do `work` while nothing captured is left to be done on that side, or even so if `accept_outdated`.

        Tried for as long as the patience says, since writes go on until the lock is had. states: the one meanwhile,
        and the one that is left again if nothing comes of it.
        """
        if states is not None:
            self._move(states[0])
        try:
            return self._try_on(side, work, accept_outdated=accept_outdated)
        except BaseException:
            if states is not None:
                with suppress(StoreError):  # the next verb takes the mark back
                    self._step_back(*states)
            raise

    def _try_on(self, side: Side, work: Callable[[], T], *, accept_outdated: bool) -> Held[T]:
        until = None if self.patience.wait_s is None else time.monotonic() + self.patience.wait_s
        while True:
            self._tries += 1
            is_followed = accept_outdated or self.follower.catch_up(side)
            with suppress(_NotFollowed):
                when_current = work if accept_outdated else lambda: self._once_current(side, work)
                return self.store.exclusively(self._retryable(when_current), self.patience)
            if not is_followed or (until is not None and time.monotonic() > until):
                raise self._never_current(side)
            self.patience.notify(f"try {self._tries}: a write came in between")
            time.sleep(random.uniform(0, MAX_GAP_S))  # noqa: S311  # to fall between two writes

    def _once_current(self, side: Side, work: Callable[[], T]) -> T:
        """Do `work` if the side is current. Half of the pause is for the model, the rest for what holds the lock."""
        within_s = self.store.pause_left_s() / 2 if self._tries > TRIES_WITHOUT_MODEL else 0.0
        if not self.follower.finish(side, within_s):
            raise _NotFollowed
        return work()

    def _retryable(self, work: Callable[[], T]) -> Callable[[], T]:
        """Return `work` that goes out from the record of now, since `exclusively` may undo it and try again."""
        record = self.record

        def again() -> T:
            self.record = record
            return work()

        return again

    def _step_back(self, during: State, otherwise: State) -> None:
        record = self._ledger.find(self.store.target)
        if record is not None and record.id == self.record.id and record.state == during:
            self.record = record
            self._move(otherwise)

    def _never_current(self, side: Side) -> CutoverRefused:
        changes = self.store.captured(LETTERS_SHOWN, {side})
        reason = f"{self.store.backlog(side)} writes were not followed on the {side} side yet in {self._tries} tries"
        if side is Side.OLD:
            remedy = "Give the old model, also to a run that follows (vecferry migrate start --follow); or say"
            remedy += " --accept-outdated, and these rows have no old vector of their text."
        else:
            remedy = "Wait longer (--wait), allow a longer --max-pause-s, or let a run follow in another terminal:"
            remedy += " vecferry migrate start --follow"
        return CutoverRefused(reason, remedy, shown(list(dict.fromkeys(change.key for change in changes))))

    def _refuse_outdated(self, side: Side, *, with_vector: bool = False) -> None:
        """Compare every row before the drop, which cannot be undone; a row that is captured is not missing.

        with_vector: a row that the application never embedded may stay as it is.
        """
        for _ in range(LOOKS):
            outdated = self.store.count_outdated(side, MAX_SUSPECTS, with_vector=with_vector)
            captured = {change.key for change in self.store.captured(MAX_SUSPECTS, {side})}
            if not outdated or not (keys := [key for key in outdated.keys if key not in captured]):
                return
            self.follower.catch_up(side)
        remedy = "vecferry migrate start with both models compares every row and repairs them."
        reason = f"{outdated.count} rows have no {side} vector of their present text"
        raise CutoverRefused(reason, remedy, shown(keys[:LETTERS_SHOWN]))

    def _refuse_letters(self, accepted: int, side: Side) -> None:
        count = self._ledger.count_dead_letters(self.record, side)
        if count != accepted:
            dead_letters = self._ledger.dead_letters(self.record, LETTERS_SHOWN, side)
            reason = f"{count} rows have no {side} vector (dead letters), {accepted} were accepted"
            remedy = "Repair their texts, or try the same again (vecferry migrate retry),"
            remedy += f" or accept them: --accept-dead-letters {count}"
            if not count:
                remedy = "Leave --accept-dead-letters out."
            raise CutoverRefused(reason, remedy, shown([dead_letter.key for dead_letter in dead_letters]))

    def _move(self, state: State, **detail: object) -> None:
        assert can_move(State(self.record.state), state), f"{self.record.state} -> {state}"
        self.record = self._ledger.move(self.record, state, detail)
