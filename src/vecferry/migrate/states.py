"""The states of a migration, and which verbs are possible in each. Pure: nothing here touches a store.

planned ─► prepared ─► backfilling ─► indexing ─► verified ─► serving_new ─► finalized
                           ▲             │  ▲         │         │     ▲
                           ├── start ────┘  └─ verify │         │     │
                           ├── start ─────── fails ───┘    rollback  cutover
                           │                                    ▼     │
                           └── start ─────────────────────── serving_old
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
    """The new side exists and is empty."""
    BACKFILLING = "backfilling"
    """Ranges are being embedded."""
    INDEXING = "indexing"
    """Every row was tried; indexes are being built, or are built and wait for `verify`."""
    VERIFIED = "verified"
    """The last verification passed."""
    SERVING_NEW = "serving_new"
    SERVING_OLD = "serving_old"
    """Switched, and rolled back."""
    FINALIZED = "finalized"
    """The old vectors are gone; another migration may begin."""


_S = State

TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        _S.PLANNED: frozenset({_S.PREPARED}),
        _S.PREPARED: frozenset({_S.BACKFILLING}),
        _S.BACKFILLING: frozenset({_S.INDEXING}),
        _S.INDEXING: frozenset({_S.BACKFILLING, _S.VERIFIED}),
        _S.VERIFIED: frozenset({_S.BACKFILLING, _S.INDEXING, _S.SERVING_NEW}),
        _S.SERVING_NEW: frozenset({_S.SERVING_OLD, _S.FINALIZED}),
        _S.SERVING_OLD: frozenset({_S.BACKFILLING, _S.INDEXING, _S.VERIFIED, _S.SERVING_NEW}),
        _S.FINALIZED: frozenset(),
    }
)

VERBS: Mapping[str, frozenset[State]] = MappingProxyType(
    {
        "plan": frozenset(State),
        "status": frozenset(State),
        "start": frozenset(State) - {_S.SERVING_NEW},
        "verify": frozenset({_S.INDEXING, _S.VERIFIED, _S.SERVING_OLD}),
        "cutover": frozenset({_S.VERIFIED, _S.SERVING_OLD}),
        "rollback": frozenset({_S.SERVING_NEW}),
        "finalize": frozenset({_S.SERVING_NEW}),
    }
)
"""`start` in `finalized` begins the next migration."""


def allowed(verb: str, state: State) -> bool:
    return state in VERBS[verb]


def possible_verbs(state: State) -> tuple[str, ...]:
    return tuple(verb for verb in VERBS if allowed(verb, state))


def require(verb: str, state: State) -> None:
    """Raises IllegalTransition, with the verbs that are possible, if `verb` is not."""
    if not allowed(verb, state):
        raise IllegalTransition(verb, state.value, possible_verbs(state))


def can_move(before: State, after: State) -> bool:
    return after in TRANSITIONS[before]
