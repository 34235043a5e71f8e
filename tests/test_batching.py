import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecferry.batching import Limits, plan


@given(
    lengths=st.lists(st.integers(0, 9000), max_size=300),
    tokens=st.integers(1, 20_000),
    rows=st.integers(1, 100),
)
def test_every_row_is_in_one_batch_and_no_batch_of_several_is_over_the_limits(
    lengths: list[int], tokens: int, rows: int
) -> None:
    array = np.array(lengths, np.int64)
    batches = list(plan(array, Limits(tokens, rows)))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * array[batch].max() <= tokens


def test_the_longest_texts_come_first_and_equal_lengths_keep_their_order() -> None:
    batches = [batch.tolist() for batch in plan(np.array([3, 9, 3, 9, 1]), Limits(max_batch_tokens=18))]
    assert batches == [[1, 3], [0, 2, 4]]


def test_a_text_over_the_budget_runs_alone() -> None:
    assert [batch.tolist() for batch in plan(np.array([5, 8192, 5]), Limits(max_batch_tokens=100))] == [[1], [0, 2]]


@pytest.mark.parametrize("limits", [{"max_batch_tokens": 0}, {"max_batch_rows": 0}])
def test_limits_below_one_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Limits(**limits)
