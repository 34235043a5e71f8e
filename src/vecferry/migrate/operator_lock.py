"""Who may change the state of a migration by hand: one verb at a time, from a state in which it is possible."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from vecferry.errors import GateNotPassed, Locked
from vecferry.migrate.record import find_record
from vecferry.migrate.states import State, possible_verbs, require
from vecferry.stores.lease import held
from vecferry.stores.ledger import MigrationRecord
from vecferry.stores.protocol import Store
from vecferry.stores.values import Patience

LEASE_POLL_S = 0.5
AT_ONCE = Patience(wait_s=0)
UNASKED = frozenset({"rollback", "abort", "finalize"})
"""Verbs that end a pause by themselves, also an operator's."""
INTERRUPTED = {State.CUTTING_OVER: State.READY, State.ROLLING_BACK: State.SERVING_NEW}
"""By the mark of a switch that was killed, the state before it: its transaction did not happen."""


@contextmanager
def operator_lock(store: Store, verb: str, lease_s: float, patience: Patience = AT_ONCE) -> Iterator[MigrationRecord]:
    """Yield the record in a state in which `verb` is possible, while nobody else changes it by hand.

    Raises MigrationNotFound, Locked, IllegalTransition.
    """
    find_record(store)
    with _held_switch(store, lease_s, patience):
        record = find_record(store)
        if (before := INTERRUPTED.get(State(record.state))) is not None:
            record = store.ledger.move(record, before, {"taken_back": record.state})
        if record.paused is not None and (verb in UNASKED or not record.paused.by_operator):
            record = unpause(store, record)
        _require(verb, record)
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


def _require(verb: str, record: MigrationRecord) -> None:
    """Check as `states.require`, but a cutover that waits for the gate alone is told its verdict."""
    state = State(record.state)
    if verb == "cutover" and state is State.VERIFIED:
        verdict = (record.verification or {}).get("gate") or {"message": "none was asked."}
        raise GateNotPassed(verb, state.value, possible_verbs(state), verdict["message"])
    require(verb, state)
