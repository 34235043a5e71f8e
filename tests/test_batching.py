import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecferry.encode.batching import MB, RUN_TOKENS, Limits, plan, plan_packed
from vecferry.errors import SettingsError

LENGTHS = st.lists(st.integers(0, 9000) | st.integers(2, 40), max_size=300)


def quadratic(rows: int, tokens: int, *, padded: bool) -> int:
    return rows * tokens * (40_000 + (70 * tokens if padded else 0))


def padding_of(batches: list[np.ndarray], lengths: np.ndarray) -> int:
    return sum(int(len(batch) * lengths[batch].max() - lengths[batch].sum()) for batch in batches)


@given(lengths=LENGTHS, tokens=st.integers(1, 20_000), rows=st.integers(1, 100), budget_mb=st.integers(1, 2000))
def test_every_row_is_in_one_batch_and_no_batch_of_several_is_over_the_limits(
    lengths: list[int], tokens: int, rows: int, budget_mb: int
) -> None:
    array = np.array(lengths, np.int64)
    batches = plan(array, Limits(tokens, rows, budget_mb), quadratic)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest, shortest = int(array[batch].max()), int(array[batch].min())
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * longest <= tokens
        assert len(batch) == 1 or quadratic(len(batch), longest, padded=longest != shortest) <= budget_mb * MB


@given(lengths=LENGTHS)
def test_padding_costs_less_than_the_runs_that_it_saves(lengths: list[int]) -> None:
    array = np.maximum(np.array(lengths, np.int64), 1)
    limits = Limits()
    batches = plan(array, limits)
    unpadded = [plan(array[array == length], limits) for length in np.unique(array)]
    saved = sum(map(len, unpadded)) - len(batches)
    assert padding_of(batches, array) <= saved * RUN_TOKENS


def test_a_mix_of_real_lengths_wastes_under_two_percent_also_by_slices() -> None:
    lengths = np.maximum(np.random.default_rng(0).lognormal(4.9, 1.4, 2048).astype(np.int64), 5).clip(max=8192)
    for size in (64, 256, 1024):
        parts = [lengths[at : at + size] for at in range(0, len(lengths), size)]
        assert sum(padding_of(plan(part, Limits()), part) for part in parts) <= 0.02 * lengths.sum()


@given(lengths=LENGTHS, tokens=st.integers(1, 20_000), rows=st.integers(1, 100))
def test_packed_batches_hold_every_row_once_and_as_many_tokens_as_they_may(
    lengths: list[int], tokens: int, rows: int
) -> None:
    array = np.array(lengths, np.int64)
    batches = plan_packed(array, Limits(tokens, rows))
    sums = [int(np.maximum(array[batch], 1).sum()) for batch in batches]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or total <= tokens for batch, total in zip(batches, sums, strict=True))
    for batch, following, total in zip(batches, batches[1:], sums, strict=False):
        assert len(batch) == rows or total + max(array[following[0]], 1) > tokens


def test_packed_batches_do_not_mind_different_lengths() -> None:
    batches = plan_packed(np.array([500, 20, 300, 1, 203]), Limits(max_batch_tokens=1024))
    assert [batch.tolist() for batch in batches] == [[0, 2, 4, 1, 3]]
    assert plan_packed(np.array([], np.int64), Limits()) == []


def test_the_longest_texts_come_first_and_equal_lengths_keep_their_order() -> None:
    batches = [batch.tolist() for batch in plan(np.array([3, 9, 3, 9, 1]), Limits(max_batch_tokens=18))]
    assert batches == [[1, 3], [0, 2, 4]]


def test_long_texts_are_not_padded_and_short_ones_share_a_run() -> None:
    assert [batch.tolist() for batch in plan(np.array([500, 300, 500, 300]), Limits())] == [[0, 2], [1, 3]]
    assert [batch.tolist() for batch in plan(np.array([6, 7, 5, 6]), Limits())] == [[1, 0, 3, 2]]


def test_a_text_over_the_budget_runs_alone() -> None:
    assert [batch.tolist() for batch in plan(np.array([5, 8192, 5]), Limits(max_batch_tokens=100))] == [[1], [0, 2]]


def test_no_texts_make_no_batches() -> None:
    assert plan(np.array([], np.int64), Limits()) == []


@pytest.mark.parametrize("limits", [{"max_batch_tokens": 0}, {"max_batch_rows": 0}, {"memory_budget_mb": 0}])
def test_limits_below_one_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="=0 is not valid: expected a whole number from 1"):
        Limits(**limits)
