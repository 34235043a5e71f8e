"""The verdict at the edges of the margin."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecferry.evaluate import Question
from vecferry.evaluate.comparing import Compared, compare
from vecferry.evaluate.gate import MIN_IN_SLICE, MIN_QUERIES, judge
from vecferry.evaluate.statistics import Resampling
from vecferry.evaluate.values import ALL, GateResult, Interval, SliceScore

MARGIN = 0.02


def score(low: float, high: float, *, queries: int = 100, by: str = ALL, value: str = ALL) -> SliceScore:
    middle = (low + high) / 2
    return SliceScore(
        by, value, queries, Interval(0.5, 0.4, 0.6), Interval(0.5 + middle, 0.4, 0.6), Interval(middle, low, high),
        wins=1, losses=1, ties=queries - 2,
    )  # fmt: skip


def judged(*slices: SliceScore, margin: float = MARGIN) -> GateResult:
    compared = Compared("nDCG@10", (), np.zeros(0), np.zeros(0), slices)
    return judge(compared, margin=margin, confidence=0.95)


@pytest.mark.parametrize(
    ("low", "high", "verdict", "message"),
    [
        (0.01, 0.05, "passed", "The new model is better: nDCG@10 went from 0.500 to 0.530"),
        (0.0, 0.05, "passed", "The new model is not worse"),
        (-0.02, 0.05, "passed", "The new model is not worse"),  # the margin itself is allowed
        (-0.021, 0.05, "inconclusive", "Too few queries to tell"),
        (-0.06, -0.02, "inconclusive", "may be a loss of more than the margin of 0.02"),
        (-0.06, -0.021, "failed", "The new model is worse: nDCG@10 went from 0.500 to"),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, verdict: str, message: str) -> None:
    result = judged(score(low, high))
    assert result.verdict == verdict
    assert message in result.message
    assert (result.margin, result.confidence, result.metric, result.worse_slices) == (MARGIN, 0.95, "nDCG@10", ())
    assert result.difference == score(low, high).difference


def test_a_slice_that_is_worse_fails_although_all_pass() -> None:
    german = score(-0.3, -0.1, by="language", value="de")
    arabic = score(-0.3, -0.03, by="language", value="ar")
    fine = score(-0.3, 0.1, by="language", value="en")
    result = judged(score(0.01, 0.05), german, arabic, fine)
    assert (result.verdict, result.worse_slices) == ("failed", ("language de", "language ar"))
    assert result.message.startswith("The new model is worse for language de and language ar by more than 0.02, though")
    assert judged(score(0.01, 0.05), german).message.startswith("The new model is worse for language de by more than")


def test_a_slice_of_too_few_queries_is_not_judged() -> None:
    small = score(-0.3, -0.1, queries=MIN_IN_SLICE - 1, by="language", value="de")
    assert judged(score(0.01, 0.05), small).verdict == "passed"
    assert judged(score(0.01, 0.05), replace(small, queries=MIN_IN_SLICE)).verdict == "failed"


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.4), (-0.4, -0.3)])
def test_too_few_queries_are_inconclusive_whatever_they_show(low: float, high: float) -> None:
    result = judged(score(low, high, queries=MIN_QUERIES - 1))
    assert (result.verdict, result.message) == ("inconclusive", "19 queries are too few to judge by; 20 are needed.")


def test_where_neither_side_finds_anything_the_ids_are_asked_about() -> None:
    nothing = replace(score(0, 0), old=Interval(0, 0, 0), new=Interval(0, 0, 0))
    result = judged(nothing)
    assert result.verdict == "inconclusive"
    assert "are the judged ids those of the passages, or keys of the rows?" in result.message


@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 1 / 3, 1.0]), min_size=MIN_QUERIES, max_size=40).filter(any),
    margin=st.floats(0, 1),
    languages=st.integers(1, 2),
)
def test_a_new_side_that_answers_as_the_old_does_always_passes(
    values: list[float], margin: float, languages: int
) -> None:
    questions = [Question(f"q{n}", "?", {"language": f"l{n % languages}"}) for n in range(len(values))]
    result = judge(
        compare("nDCG@10", questions, np.array(values), np.array(values), Resampling()), margin=margin, confidence=0.95
    )
    assert (result.verdict, result.difference) == ("passed", Interval(0, 0, 0))
