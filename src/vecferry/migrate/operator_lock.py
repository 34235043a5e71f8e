"""Who may change the state of a migration by hand: one verb at a time, from a state in which it is possible."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from vecferry.errors import GateNotPassed, Locked, MigrationConflict, StoreError
from vecferry.migrate.record import find_record
from vecferry.migrate.states import State, can_move, possible_verbs, require
from vecferry.stores.lease import held
from vecferry.stores.ledger import MigrationRecord
from vecferry.stores.protocol import Store
from vecferry.stores.values import Patience

LEASE_POLL_S = 0.5
AT_ONCE = Patience(wait_s=0)
UNASKED = frozenset({"rollback", "abort", "finalize"})
"""Verbs that are possible in an operator's pause, and end it by their success (`without_pause`)."""
INTERRUPTED = {State.CUTTING_OVER: State.READY, State.ROLLING_BACK: State.SERVING_NEW}
"""By the mark of a switch that was killed, the state before it: its transaction did not happen."""


@contextmanager
def operator_lock(store: Store, verb: str, lease_s: float, patience: Patience = AT_ONCE) -> Iterator[MigrationRecord]:
    """Yield the record in a state in which `verb` is possible, while nobody else changes it by hand.

    A pause by a run is ended; one by an operator lasts, and `without_pause` lifts it. A refused verb changes nothing.
    Raises MigrationNotFound, Locked, IllegalTransition.
    """
    find_record(store)
    with _held_switch(store, lease_s, patience):
        record = find_record(store)
        if (before := INTERRUPTED.get(State(record.state))) is not None:
            record = store.ledger.move(record, before, {"taken_back": record.state})
        require_possible(verb, record)
        if record.paused is not None and not record.paused.by_operator:
            record = unpause(store, record)
        yield record


@contextmanager
def _held_switch(store: Store, lease_s: float, patience: Patience) -> Iterator[None]:
    """Hold the lock of a switch. Another verb is waited for only where the wait has no end; the runner has its own."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held(store.ledger, f"{store.target} (switch)", lease_s))
                break
            except Locked as exc:
                if patience.wait_s is not None:
                    raise
                patience.notify(f"another verb is at work: {exc.holder}")
            time.sleep(LEASE_POLL_S)
        yield


def unpause(store: Store, record: MigrationRecord) -> MigrationRecord:
    """Leave the state as before the pause."""
    assert record.paused is not None
    return store.ledger.move(record, record.paused.before, {"resumed": record.paused.reason})


@contextmanager
def without_pause(store: Store, record: MigrationRecord) -> Iterator[MigrationRecord]:
    """Yield the record without its pause. If the work inside raises, the pause is put back with its reason.

    Whoever runs the migration goes on meanwhile, since what was written last may be his to follow.
    """
    if record.paused is None:
        yield record
        return
    lifted = unpause(store, record)
    try:
        yield lifted
    except BaseException:
        with suppress(StoreError):
            _pause_again(store, record)
        raise


def _pause_again(store: Store, paused: MigrationRecord) -> None:
    """Put a pause back, in the state of now: the run may have gone on by a step."""
    assert paused.paused is not None
    while (record := store.ledger.find(store.target)) is not None and record.id == paused.id:
        if not can_move(State(record.state), State.PAUSED):
            return
        with suppress(MigrationConflict):  # the run was faster
            again = replace(paused.paused, before=record.state)
            store.ledger.move(record, State.PAUSED, {"reason": again.reason}, again)
            return


def state_but_for_pause(verb: str, record: MigrationRecord) -> State:
    """Return the state that `verb` goes out from: the one before a killed switch, or a pause that does not hold it."""
    paused = record.paused
    is_held = paused is not None and paused.by_operator and verb not in UNASKED
    state = State(record.state if paused is None or is_held else paused.before)
    return INTERRUPTED.get(state, state)


def require_possible(verb: str, record: MigrationRecord) -> None:
    """Check as `states.require`, but a cutover that waits for the gate alone is told its verdict."""
    state = state_but_for_pause(verb, record)
    if verb == "cutover" and state is State.VERIFIED:
        verdict = (record.verification or {}).get("gate") or {"message": "none was asked."}
        raise GateNotPassed(verb, state.value, possible_verbs(state), verdict["message"])
    require(verb, state)
