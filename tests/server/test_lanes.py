"""What waits, and what is taken next: decisions about plain values, with no server and no model."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecferry.embeddings import DENSE, Outputs, TokenBatch
from vecferry.encode.encoder import TEXTS_EACH, Work
from vecferry.errors import Overloaded
from vecferry.server.lanes import COHORT_TEXTS, RETRY_AT_MOST_S, Job, Lane, LaneName, Speed, cohort_of

LATER = 1e9
QUERY_TEXTS = COHORT_TEXTS[LaneName.QUERY]


def job(model: str = "tiny", texts: int = 1, tokens: int = 3, outputs: Outputs = DENSE, until: float = LATER) -> Job:
    """Return a job. tokens: of each text."""
    everything = np.arange(texts)
    tokens_of_texts = TokenBatch.from_lists([[5] * tokens] * texts)
    served: Any = SimpleNamespace(name=model)  # a lane asks no more of a model than its name
    return Job(served, Work((), outputs, [None] * texts, everything, tokens_of_texts, everything, everything), until)


def lane_of(*jobs: Job, name: LaneName = LaneName.QUERY, max_tokens: int = 100) -> Lane:
    lane = Lane(name, max_tokens)
    for job in jobs:
        lane.put([job])
    return lane


# --- cohorts --------------------------------------------------------------------------------------


def test_a_cohort_is_the_first_job_and_those_of_its_kind_behind_it() -> None:
    first, other_model, same, other_outputs, last = (
        job(), job("wide"), job(), job(outputs=Outputs.ALL), job(),
    )  # fmt: skip
    assert cohort_of([first, other_model, same, other_outputs, last], 64) == [first, same, last]


def test_a_cohort_ends_before_the_first_job_that_does_not_fit() -> None:
    """Otherwise a short job could go past a long one for ever."""
    first, long, short = job(texts=3), job(texts=6), job(texts=1)
    assert cohort_of([first, long, short], 8) == [first]
    assert cohort_of([first, long, short], 9) == [first, long]
    assert cohort_of([first, job("wide", texts=6), short], 8) == [first], "of whatever kind"


def test_a_job_that_is_larger_than_a_cohort_is_one_by_itself() -> None:
    large = job(texts=100)
    assert cohort_of([large, job()], 64) == [large]
    assert cohort_of([], 64) == []


@pytest.mark.parametrize(("name", "texts"), [(LaneName.QUERY, QUERY_TEXTS), (LaneName.BULK, TEXTS_EACH)])
def test_each_lane_has_its_size_of_a_cohort(name: LaneName, texts: int) -> None:
    halves = [job(texts=texts // 2) for _ in range(3)]
    lane = lane_of(*halves, name=name)
    assert lane.take() == halves[:2]
    assert lane.take() == halves[2:]


# --- a lane ---------------------------------------------------------------------------------------


def test_a_lane_knows_what_waits() -> None:
    lane = lane_of(job(texts=2, tokens=5), job("wide", tokens=7))
    assert (len(lane), lane.tokens) == (2, 17)
    lane.take()
    assert (len(lane), lane.tokens) == (1, 7)
    lane.take()
    assert (len(lane), lane.tokens) == (0, 0)


def test_what_was_passed_over_is_first_the_next_time() -> None:
    first, passed, same, also_passed = job(), job("wide"), job(), job("wide")
    lane = lane_of(first, passed, same, also_passed)
    late = job()
    assert lane.take() == [first, same]
    lane.put([late])
    assert lane.take() == [passed, also_passed]
    assert lane.take() == [late]


def test_a_lane_has_room_up_to_its_tokens_and_an_empty_one_for_anything() -> None:
    lane = Lane(LaneName.BULK, 10)
    lane.check_room(1_000_000)
    lane.put([job(tokens=6)])
    lane.check_room(4)
    with pytest.raises(Overloaded) as caught:
        lane.check_room(5)
    error = caught.value
    assert (error.value, error.allowed, error.retry_after_s) == (6, 10, 1)
    assert "bulk lane: 6, and 10 may" in error.message
    lane.take()
    lane.check_room(1_000_000)


@pytest.mark.parametrize(("tokens", "seconds", "expected"), [(10, 1.0, 5), (1, 1e9, RETRY_AT_MOST_S), (10**9, 1.0, 1)])
def test_one_that_is_refused_is_told_when_there_will_be_room_at_the_speed_of_late(
    tokens: int, seconds: float, expected: int
) -> None:
    lane = lane_of(job(tokens=100), max_tokens=100)
    lane.ran(tokens, seconds)
    with pytest.raises(Overloaded) as caught:
        lane.check_room(50)
    assert caught.value.retry_after_s == expected


def test_a_lane_that_is_closed_gives_what_is_left_and_then_nothing() -> None:
    left = [job(), job("wide")]
    lane = lane_of(*left)
    lane.close()
    assert [lane.take(), lane.take(), lane.take(), lane.take()] == [left[:1], left[1:], [], []]
    with pytest.raises(AssertionError, match="closed"):
        lane.put([job()])


@pytest.mark.parametrize("wakes", ["a job", "the end"])
def test_one_who_waits_for_a_job_is_woken(wakes: str) -> None:
    lane, cohorts = Lane(LaneName.QUERY, 100), []
    waiting = threading.Thread(target=lambda: cohorts.append(lane.take()))
    waiting.start()
    waiting.join(0.02)
    assert waiting.is_alive()
    late = job()
    if wakes == "a job":
        lane.put([late])
    else:
        lane.close()
    waiting.join(10)
    assert cohorts == [[late] if wakes == "a job" else []]


KINDS = st.tuples(st.sampled_from(["tiny", "wide"]), st.sampled_from([DENSE, Outputs.ALL]))
STEPS = st.lists(st.one_of(st.none(), st.lists(st.tuples(KINDS, st.integers(1, 70)), min_size=1, max_size=3)))


@given(STEPS)
def test_every_job_is_taken_once_and_in_the_order_of_its_kind(steps: list[Any]) -> None:
    """None takes a cohort, if anything waits; else a request of some jobs comes."""
    lane = Lane(LaneName.QUERY, 10**9)
    put: list[Job] = []
    cohorts: list[list[Job]] = []
    for step in steps:
        if step is not None:
            jobs = [job(model, texts, 2, outputs) for (model, outputs), texts in step]
            lane.put(jobs)
            put += jobs
        elif len(lane):
            oldest = next(job for job in put if not any(job in cohort for cohort in cohorts))
            cohorts.append(lane.take())
            assert cohorts[-1][0] is oldest
        waiting = [job for job in put if not any(job in cohort for cohort in cohorts)]
        assert (len(lane), lane.tokens) == (len(waiting), sum(job.work.num_tokens for job in waiting))
    lane.close()
    while cohort := lane.take():
        cohorts.append(cohort)
    cohort_jobs = [job for cohort in cohorts for job in cohort]
    assert sorted(map(id, cohort_jobs)) == sorted(map(id, put))
    assert by_kind(cohort_jobs) == by_kind(put)
    for cohort in cohorts:
        assert len({job.kind for job in cohort}) == 1
        assert len(cohort) == 1 or sum(len(job.work.cached) for job in cohort) <= QUERY_TEXTS


def by_kind(jobs: list[Job]) -> dict[Any, list[int]]:
    ids = defaultdict(list)
    for job in jobs:
        ids[job.kind].append(id(job))
    return dict(ids)


# --- a job ----------------------------------------------------------------------------------------


def test_a_job_is_wanted_until_it_is_answered_cancelled_or_late() -> None:
    answered, cancelled, late, wanted = job(), job(), job(until=time.monotonic()), job()
    answered.answer.set_exception(ValueError())
    cancelled.answer.cancel()
    assert [job.is_wanted for job in (answered, cancelled, late, wanted)] == [False, False, False, True]


# --- speed ----------------------------------------------------------------------------------------


def test_speed_is_a_moving_average_which_nothing_and_no_time_do_not_change() -> None:
    speed = Speed()
    assert speed.seconds_for(10**6) == 1
    speed.saw(0, 1.0)
    speed.saw(5, 0.0)
    assert speed.seconds_for(10**6) == 1
    speed.saw(1000, 2.0)
    assert speed.seconds_for(1000) == pytest.approx(2)
    speed.saw(1000, 1.0)
    assert speed.seconds_for(600) == pytest.approx(1)  # 0.8 · 500 + 0.2 · 1000 = 600 tokens a second
