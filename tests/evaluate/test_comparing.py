"""Wins, losses, ties, slices and extremes of planted values."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from vecferry.evaluate import Question
from vecferry.evaluate.comparing import MAX_SLICES, MIN_IN_SLICE, SAME, Compared, compare, slices_by_kind
from vecferry.evaluate.statistics import Resampling
from vecferry.evaluate.values import ALL


def questions(slices: Sequence[Mapping[str, str]]) -> tuple[Question, ...]:
    return tuple(Question(f"q{n}", f"question {n}", each) for n, each in enumerate(slices))


def compared(old: Sequence[float], new: Sequence[float], slices: Sequence[Mapping[str, str]] = ()) -> Compared:
    asked_questions = questions(slices or [{}] * len(old))
    return compare("nDCG@10", asked_questions, np.array(old), np.array(new), Resampling())


def test_wins_losses_and_ties_are_counted_by_query() -> None:
    comparison = compared([0.5, 0.5, 0.5, 0.5, 0.0], [0.6, 0.4, 0.5, 0.5 + SAME / 2, 1.0])
    overall = comparison.slices[0]
    assert (overall.by, overall.value, overall.queries) == (ALL, ALL, 5)
    assert (overall.wins, overall.losses, overall.ties) == (2, 1, 2)
    assert overall.old.mean == pytest.approx(0.4)
    assert overall.new.mean == pytest.approx(0.6)
    assert overall.difference.mean == pytest.approx(0.2)
    assert overall.difference.low < 0.2 < overall.difference.high


def test_a_slice_has_the_values_of_its_own_queries() -> None:
    slices = [{"language": "en" if n % 2 else "de"} for n in range(20)]
    comparison = compared([0.5] * 20, [0.9 if n % 2 else 0.3 for n in range(20)], slices)
    by_name = {score.value: score for score in comparison.slices}
    assert list(by_name) == [ALL, "de", "en"]
    assert by_name["en"].difference.mean == pytest.approx(0.4)
    assert by_name["de"].difference.mean == pytest.approx(-0.2)
    assert (by_name["de"].queries, by_name["de"].losses) == (10, 10)


def test_slices_of_too_few_queries_are_left_out_and_so_are_kinds_of_one_value() -> None:
    slices = [
        {"source": "web", "language": "en" if n < MIN_IN_SLICE else "de" if n < 2 * MIN_IN_SLICE - 1 else "zh"}
        for n in range(3 * MIN_IN_SLICE)
    ]
    comparison = slices_by_kind(questions(slices))
    assert {by: {value: rows.tolist() for value, rows in values.items()} for by, values in comparison.items()} == {
        "language": {
            "en": list(range(MIN_IN_SLICE)),
            "zh": list(range(2 * MIN_IN_SLICE - 1, 3 * MIN_IN_SLICE)),
        }
    }


def test_of_a_kind_with_many_values_the_largest_are_kept_in_the_order_of_their_names() -> None:
    slices = [{"customer": f"c{value:02}"} for value in range(20) for _ in range(MIN_IN_SLICE + value)]
    assert list(slices_by_kind(questions(slices))["customer"]) == [f"c{n:02}" for n in range(20 - MAX_SLICES, 20)]


def test_extremes_are_the_largest_changes_and_hold_no_tie() -> None:
    comparison = compared([0.5, 0.5, 0.5, 0.5, 0.5], [0.6, 0.1, 0.5, 0.9, 0.4])
    assert comparison.extremes(1) == ([3], [1])
    assert comparison.extremes(10) == ([3, 0], [1, 4])


def test_scores_are_those_of_each_query() -> None:
    comparison = compared([0.123456789], [1.0], [{"language": "en"}])
    (score,) = comparison.scores()
    assert (score.id, score.text, score.old, score.new, score.slices) == (
        "q0", "question 0", 0.123457, 1.0, {"language": "en"},
    )  # fmt: skip
