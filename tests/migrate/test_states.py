import pytest

from vecferry.errors import IllegalTransition
from vecferry.migrate.operator_lock import INTERRUPTED
from vecferry.migrate.states import (
    CAUGHT_UP,
    ENDED,
    VERBS,
    WORKING,
    State,
    allowed,
    can_move,
    next_verbs,
    possible_verbs,
    require,
)

S = State
DRAWN = {
    (S.PLANNED, S.PREPARED),
    (S.PREPARED, S.CAPTURING),
    (S.CAPTURING, S.BACKFILLING),
    (S.BACKFILLING, S.INDEXING),
    (S.INDEXING, S.CATCHING_UP),
    (S.CATCHING_UP, S.VERIFIED),
    (S.VERIFIED, S.READY),
    (S.VERIFIED, S.CATCHING_UP),  # verify fails
    (S.READY, S.CATCHING_UP),
    (S.READY, S.VERIFIED),  # the gate fails
    (S.READY, S.CUTTING_OVER),
    (S.CUTTING_OVER, S.SERVING_NEW),
    (S.CUTTING_OVER, S.READY),  # a switch that has not happened
    (S.SERVING_NEW, S.FINALIZED),
    (S.SERVING_NEW, S.ROLLING_BACK),
    (S.ROLLING_BACK, S.SERVING_OLD),
    (S.ROLLING_BACK, S.SERVING_NEW),
    (S.SERVING_OLD, S.CUTTING_OVER),
    (S.SERVING_OLD, S.VERIFIED),
    (S.SERVING_OLD, S.CATCHING_UP),
}
"""Without `paused` and `aborted`."""
PAUSABLE = set(State) - {S.PLANNED, S.CUTTING_OVER, S.ROLLING_BACK, S.FINALIZED, S.PAUSED, S.ABORTED}
ABORTABLE = set(State) - {S.SERVING_NEW, S.ROLLING_BACK, S.FINALIZED, S.PAUSED, S.ABORTED}


def test_what_is_drawn_is_possible_and_nothing_else() -> None:
    pauses = {(state, S.PAUSED) for state in PAUSABLE} | {(S.PAUSED, state) for state in PAUSABLE}
    aborts = {(state, S.ABORTED) for state in ABORTABLE}
    moves = {(before, after) for before in State for after in State if can_move(before, after)}
    assert moves == DRAWN | pauses | aborts


def test_the_drawing_names_every_state() -> None:
    from vecferry.migrate import states

    assert states.__doc__ is not None
    assert [state for state in State if state not in states.__doc__] == []


def test_every_state_can_be_reached_from_planned() -> None:
    reached, open_states = set[State](), [S.PLANNED]
    while open_states:
        state = open_states.pop()
        reached.add(state)
        open_states += {after for after in State if can_move(state, after)} - reached
    assert reached == set(State)


def test_nothing_serves_without_having_been_ready_or_served_before() -> None:
    assert {before for before in State if can_move(before, S.SERVING_NEW)} == {S.CUTTING_OVER, S.ROLLING_BACK, S.PAUSED}
    assert {before for before in State if can_move(before, S.CUTTING_OVER)} == {S.READY, S.SERVING_OLD}
    assert {before for before in State if can_move(before, S.READY)} == {S.VERIFIED, S.CUTTING_OVER, S.PAUSED}


def test_old_vectors_are_dropped_only_while_the_new_serve() -> None:
    assert {before for before in State if can_move(before, S.FINALIZED)} == {S.SERVING_NEW}
    assert VERBS["finalize"] == {S.SERVING_NEW}


def test_what_is_aborted_never_serves_its_new_vectors() -> None:
    assert not can_move(S.SERVING_NEW, S.ABORTED)
    assert not allowed("abort", S.SERVING_NEW)
    assert can_move(S.SERVING_OLD, S.ABORTED)


def test_a_switch_is_never_paused() -> None:
    for state in (S.CUTTING_OVER, S.ROLLING_BACK):
        assert not allowed("pause", state)
        assert not can_move(state, S.PAUSED)
        assert not can_move(S.PAUSED, state)


def test_a_pause_ends_in_any_state_that_can_be_paused_and_in_no_other() -> None:
    assert {state for state in State if can_move(S.PAUSED, state)} == WORKING == PAUSABLE
    assert VERBS["pause"] == PAUSABLE
    assert VERBS["resume"] == {S.PAUSED}


def test_no_way_leads_out_of_an_ended_migration_but_to_the_next_one() -> None:
    for state in ENDED:
        assert not [after for after in State if can_move(state, after)]
        assert set(possible_verbs(state)) == {"plan", "status", "start"}


VERBS_IN = {
    S.PLANNED: "abort throttle postpone",
    S.PREPARED: "abort pause throttle postpone",
    S.CAPTURING: "abort pause throttle postpone",
    S.BACKFILLING: "abort pause throttle postpone",
    S.INDEXING: "abort pause throttle postpone",
    S.CATCHING_UP: "verify retry abort pause throttle postpone",
    S.VERIFIED: "verify override retry abort pause throttle postpone",
    S.READY: "verify retry cutover abort pause throttle postpone",
    S.CUTTING_OVER: "abort throttle postpone",
    S.SERVING_NEW: "verify retry rollback finalize pause throttle postpone",
    S.ROLLING_BACK: "throttle postpone",
    S.SERVING_OLD: "verify retry cutover abort pause throttle postpone",
    S.FINALIZED: "",
    S.PAUSED: "resume throttle postpone",
    S.ABORTED: "",
}


@pytest.mark.parametrize("state", State)
def test_each_state_allows_its_verbs(state: State) -> None:
    assert set(possible_verbs(state)) == {"plan", "status", "start", *VERBS_IN[state].split()}
    for verb in VERBS:
        assert allowed(verb, state) == (verb in possible_verbs(state))


@pytest.mark.parametrize("state", State)
def test_the_verbs_that_lead_on_are_possible_once_a_killed_switch_is_taken_back(state: State) -> None:
    assert set(next_verbs(state)) <= set(possible_verbs(INTERRUPTED.get(state, state)))
    assert (next_verbs(state) == ()) == (state in ENDED)


def test_only_a_side_that_is_complete_but_for_captured_writes_is_verified() -> None:
    assert {state for state in State if allowed("verify", state)} == CAUGHT_UP


def test_a_refused_verb_names_what_is_possible() -> None:
    require("rollback", S.SERVING_NEW)
    with pytest.raises(IllegalTransition) as refused:
        require("cutover", S.SERVING_NEW)
    assert (refused.value.verb, refused.value.state) == ("cutover", "serving_new")
    assert set(refused.value.allowed) == set(possible_verbs(S.SERVING_NEW))
