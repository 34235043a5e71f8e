import pytest

from vecferry.errors import IllegalTransition
from vecferry.migrate.states import TRANSITIONS, VERBS, State, allowed, can_move, possible_verbs, require


def test_every_state_can_be_reached_from_planned() -> None:
    reached, open_states = set(), [State.PLANNED]
    while open_states:
        state = open_states.pop()
        reached.add(state)
        open_states += TRANSITIONS[state] - reached
    assert reached == set(State)


def test_nothing_serves_that_was_not_verified_or_rolled_back() -> None:
    assert {before for before in State if can_move(before, State.SERVING_NEW)} == {State.VERIFIED, State.SERVING_OLD}


def test_old_vectors_are_dropped_only_while_the_new_serve() -> None:
    assert {before for before in State if can_move(before, State.FINALIZED)} == {State.SERVING_NEW}
    assert VERBS["finalize"] == {State.SERVING_NEW}


def test_every_verb_is_possible_somewhere_and_no_state_is_without_a_way_on() -> None:
    assert all(VERBS.values())
    assert all(set(possible_verbs(state)) - {"plan", "status"} for state in State)


def test_a_refused_verb_names_what_is_possible() -> None:
    assert not allowed("cutover", State.BACKFILLING)
    with pytest.raises(IllegalTransition) as refused:
        require("cutover", State.SERVING_NEW)
    assert tuple(refused.value.allowed) == ("plan", "status", "rollback", "finalize")
