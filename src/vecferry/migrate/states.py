"""The states of a migration, and which verbs are possible in each. Pure: nothing here touches a store.

planned ─► prepared ─► capturing ─► backfilling ─► indexing ─► catching_up ─► verified ─► ready
                                                                   ▲  verify fails │         │
                                                                   └───────────────┴─────────┤
                                     finalized ◄─ serving_new ◄───────── cutting_over ◄──────┤
                                                      │                                      │
                                                      └─► rolling_back ─► serving_old ───────┘

Any state in which somebody is at work can be `paused` and goes on where it was; until the new
vectors serve, and again after a rollback, it can be `aborted`, which takes the new side away.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from vecferry.errors import IllegalTransition


class State(StrEnum):
    PLANNED = "planned"
    """The record exists, the new side does not."""
    PREPARED = "prepared"
    """The new side exists and is empty; nobody reads it."""
    CAPTURING = "capturing"
    """Writes are captured from now on; then the key ranges are listed."""
    BACKFILLING = "backfilling"
    """Ranges are embedded and written."""
    INDEXING = "indexing"
    """Every row was tried; indexes are being built."""
    CATCHING_UP = "catching_up"
    """Captured writes are applied; the new side is complete but for these."""
    VERIFIED = "verified"
    """The structural checks passed; the quality gate has not, or was not asked."""
    READY = "ready"
    """May be switched: the gate passed, or was overridden; readers have both models loaded."""
    CUTTING_OVER = "cutting_over"
    """Somebody holds the writers off, or did so when he was killed."""
    SERVING_NEW = "serving_new"
    """Switched; the old side is kept current."""
    ROLLING_BACK = "rolling_back"
    SERVING_OLD = "serving_old"
    """Switched back; the new side is kept current."""
    FINALIZED = "finalized"
    """The old vectors are gone; another migration may begin."""
    PAUSED = "paused"
    """Nothing is written until `resume`, or until the cause has gone."""
    ABORTED = "aborted"
    """The new side is gone; another migration may begin."""


_S = State
WORKING = frozenset(
    {
        _S.PREPARED,
        _S.CAPTURING,
        _S.BACKFILLING,
        _S.INDEXING,
        _S.CATCHING_UP,
        _S.VERIFIED,
        _S.READY,
        _S.SERVING_NEW,
        _S.SERVING_OLD,
    }
)
"""Those that can be paused."""
CAUGHT_UP = frozenset({_S.CATCHING_UP, _S.VERIFIED, _S.READY, _S.SERVING_NEW, _S.SERVING_OLD})
"""The backfill is over; what remains is to follow the application's writes."""
ENDED = frozenset({_S.FINALIZED, _S.ABORTED})
_ABORTABLE = frozenset(_S) - ENDED - {_S.SERVING_NEW, _S.ROLLING_BACK, _S.PAUSED}

_ONWARD: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        _S.PLANNED: frozenset({_S.PREPARED}),
        _S.PREPARED: frozenset({_S.CAPTURING}),
        _S.CAPTURING: frozenset({_S.BACKFILLING}),
        _S.BACKFILLING: frozenset({_S.INDEXING}),
        _S.INDEXING: frozenset({_S.CATCHING_UP}),
        _S.CATCHING_UP: frozenset({_S.VERIFIED}),
        _S.VERIFIED: frozenset({_S.CATCHING_UP, _S.READY}),
        _S.READY: frozenset({_S.CATCHING_UP, _S.VERIFIED, _S.CUTTING_OVER}),
        _S.CUTTING_OVER: frozenset({_S.READY, _S.SERVING_NEW}),
        _S.SERVING_NEW: frozenset({_S.ROLLING_BACK, _S.FINALIZED}),
        _S.ROLLING_BACK: frozenset({_S.SERVING_NEW, _S.SERVING_OLD}),
        _S.SERVING_OLD: frozenset({_S.CATCHING_UP, _S.VERIFIED, _S.CUTTING_OVER}),
        _S.FINALIZED: frozenset(),
        _S.PAUSED: WORKING,
        _S.ABORTED: frozenset(),
    }
)

VERBS: Mapping[str, frozenset[State]] = MappingProxyType(
    {
        "plan": frozenset(State),
        "status": frozenset(State),
        "start": frozenset(State),
        "verify": CAUGHT_UP,
        "override": frozenset({_S.VERIFIED}),
        "retry": CAUGHT_UP,
        "cutover": frozenset({_S.READY, _S.SERVING_OLD}),
        "rollback": frozenset({_S.SERVING_NEW}),
        "finalize": frozenset({_S.SERVING_NEW}),
        "abort": _ABORTABLE,
        "pause": WORKING,
        "resume": frozenset({_S.PAUSED}),
        "throttle": frozenset(State) - ENDED,
        "postpone": frozenset(State) - ENDED,
    }
)
"""`start` in an ended state begins the next migration, in `paused` it waits. The others find `paused`
ended by themselves, unless an operator paused it; a switch that was killed has not happened.
"""

_NEXT: Mapping[State, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys((_S.PLANNED, _S.PREPARED, _S.CAPTURING, _S.BACKFILLING, _S.INDEXING), ("start",)),
        _S.CATCHING_UP: ("verify",),
        _S.VERIFIED: ("verify", "override"),
        _S.READY: ("cutover",),
        _S.CUTTING_OVER: ("cutover",),
        _S.SERVING_NEW: ("finalize", "rollback"),
        _S.ROLLING_BACK: ("rollback",),
        _S.SERVING_OLD: ("cutover", "abort"),
        _S.FINALIZED: (),
        _S.PAUSED: ("resume",),
        _S.ABORTED: (),
    }
)


def next_verbs(state: State) -> tuple[str, ...]:
    """Return the verbs that lead on from a state, the usual one first; none where the migration has ended."""
    return _NEXT[state]


def allowed(verb: str, state: State) -> bool:
    return state in VERBS[verb]


def possible_verbs(state: State) -> tuple[str, ...]:
    return tuple(verb for verb in VERBS if allowed(verb, state))


def require(verb: str, state: State) -> None:
    """Raise IllegalTransition, with the verbs that are possible, if `verb` is not."""
    if not allowed(verb, state):
        raise IllegalTransition(verb, state.value, possible_verbs(state))


def can_move(before: State, after: State) -> bool:
    if after is _S.PAUSED:
        return before in WORKING
    return after in _ONWARD[before] or (after is _S.ABORTED and before in _ABORTABLE)
