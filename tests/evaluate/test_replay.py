"""Agreement of rankings, against values worked out by hand and by loops over sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecferry.embeddings import Int64
from vecferry.evaluate.replay import overlap_at, rank_biased_overlap

DEPTH = 8
rankings = st.lists(st.integers(0, 11), unique=True, max_size=DEPTH)
patience = st.floats(0.1, 0.99)
ROUNDING = 1e-12
"""Sums of a few float64."""


def row(answers: list[int], depth: int = DEPTH) -> Int64:
    return np.array([answers + [-1] * (depth - len(answers))], np.int64)


def rbo(a: list[int], b: list[int], p: float) -> float:
    return float(rank_biased_overlap(row(a), row(b), p)[0])


@pytest.mark.parametrize(
    ("a", "b", "p", "expected"),
    [
        # agreement 1, 1/2, 1: 0.1 / 0.9 · (0.9 + 0.81 / 2 + 0.729) + 0.729
        ([1, 2, 3], [1, 3, 2], 0.9, 0.955),
        # agreement 0, 1/2: 0.25 / 2 + 0.25 / 2
        ([1, 2], [3, 1], 0.5, 0.25),
        # common 0, 1, 2, of two and three: 1/2 · 1/4 + (2 + 1/2) / 3 · 1/8, and (1/3 + 1/2) · 1/8 beyond
        ([1, 2], [2, 3, 1], 0.5, 1 / 3),
        ([], [1, 2], 0.9, 0),
        ([], [], 0.9, 1),
    ],
)
def test_rank_biased_overlap_is_as_worked_out_by_hand(a: list[int], b: list[int], p: float, expected: float) -> None:
    assert rbo(a, b, p) == pytest.approx(expected, abs=ROUNDING)


def by_a_loop(a: list[int], b: list[int], p: float) -> float:
    """Compute equation 32 as it is printed, with the shorter list first."""
    short, long = sorted((a, b), key=len)
    s, n = len(short), len(long)
    common = [len(set(short[:d]) & set(long[:d])) for d in range(n + 1)]
    agreement = sum(common[d] / d * p**d for d in range(1, n + 1))
    assumed = sum(common[s] * (d - s) / (s * d) * p**d for d in range(s + 1, n + 1))
    return (1 - p) / p * (agreement + assumed) + ((common[n] - common[s]) / n + common[s] / s) * p**n


@given(rankings.filter(bool), rankings.filter(bool), patience)
def test_rank_biased_overlap_is_equation_32(a: list[int], b: list[int], p: float) -> None:
    assert rbo(a, b, p) == pytest.approx(by_a_loop(a, b, p), abs=ROUNDING)


@given(rankings, rankings, patience)
def test_rank_biased_overlap_is_symmetric_and_between_0_and_1(a: list[int], b: list[int], p: float) -> None:
    assert 0 <= rbo(a, b, p) <= 1
    assert rbo(a, b, p) == pytest.approx(rbo(b, a, p), abs=ROUNDING)


@given(rankings, patience)
def test_a_ranking_agrees_wholly_with_itself_and_not_at_all_with_others(a: list[int], p: float) -> None:
    others = [number + 100 for number in a]
    assert rbo(a, a, p) == pytest.approx(1, abs=ROUNDING)
    assert overlap_at(row(a), row(a), DEPTH)[0] == 1
    if a:
        assert rbo(a, others, p) == 0
        assert overlap_at(row(a), row(others), DEPTH)[0] == 0


@given(st.integers(0, DEPTH - 2), patience)
def test_one_common_answer_counts_more_the_higher_it_is(place: int, p: float) -> None:
    def common_at(shared: int) -> float:
        return rbo(list(range(DEPTH)), [n if n == shared else n + 100 for n in range(DEPTH)], p)

    assert common_at(place) > common_at(place + 1) > 0


@given(st.lists(st.tuples(rankings, rankings), min_size=1, max_size=6), st.integers(1, DEPTH + 2))
def test_queries_are_compared_each_by_itself(pairs: list[tuple[list[int], list[int]]], k: int) -> None:
    a, b = (np.concatenate([row(pair[side]) for pair in pairs]) for side in (0, 1))
    shares = [
        len(set(x[:k]) & set(y[:k])) / max(len(x[:k]), len(y[:k])) if x or y else 1 for x, y in pairs
    ]  # fmt: skip
    np.testing.assert_allclose(overlap_at(a, b, k), shares, atol=ROUNDING)
    np.testing.assert_allclose(rank_biased_overlap(a, b), [rbo(x, y, 0.9) for x, y in pairs], atol=ROUNDING)


def test_overlap_is_of_the_first_k_in_any_order() -> None:
    a, b = row([1, 2, 3, 4, 5, 6]), row([4, 9, 1, 2, 8, 7])
    assert [overlap_at(a, b, k)[0] for k in (1, 2, 4, 6)] == [0, 0, 0.75, 0.5]


def test_sides_that_looked_to_different_depths_are_compared() -> None:
    a, b = row([3, 1], depth=2), row([1, 3, 2], depth=3)
    assert overlap_at(a, b, 3)[0] == pytest.approx(2 / 3)
    assert rank_biased_overlap(a, b, 0.5)[0] == pytest.approx(by_a_loop([3, 1], [1, 3, 2], 0.5), abs=ROUNDING)


def test_no_queries_have_no_agreement() -> None:
    nothing = np.zeros((0, 10), np.int64)
    assert overlap_at(nothing, nothing, 10).shape == (0,)
    assert rank_biased_overlap(nothing, nothing).shape == (0,)
