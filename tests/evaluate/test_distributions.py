"""Counts of planted scores, and edges that can be read."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vecferry.embeddings import Float32
from vecferry.evaluate.distributions import distribution, histogram
from vecferry.evaluate.values import Histogram

NO_HIT = -np.inf
cosines = arrays(np.float32, st.integers(1, 50), elements=st.floats(-1, 1, width=32))


def bin_of(score: float, shown: Histogram) -> int:
    """Return the only bin that counts anything, which must hold the score."""
    (filled,) = [number for number, count in enumerate(shown.counts) if count]
    assert shown.edges[filled] <= score <= shown.edges[filled + 1]
    return filled


def test_scores_are_counted_between_rounded_edges() -> None:
    shown = histogram(np.array([0.11, 0.12, 0.19, 0.34], np.float32), bins=5)
    assert shown.edges == (0.1, 0.15, 0.2, 0.25, 0.3, 0.35)
    assert shown.counts == (2, 1, 0, 0, 1)


@given(cosines)
def test_every_score_is_counted_once_and_every_edge_is_a_short_decimal(scores: Float32) -> None:
    shown = histogram(scores)
    assert sum(shown.counts) == len(scores)
    assert len(shown.edges) == len(shown.counts) + 1 == 41
    assert all(low < high for low, high in zip(shown.edges, shown.edges[1:], strict=False))
    assert shown.edges == tuple(round(edge, 5) for edge in shown.edges)
    assert shown.edges[0] <= scores.min()
    assert scores.max() <= shown.edges[-1]


def test_scores_beyond_the_limits_count_in_the_outermost_bins() -> None:
    assert histogram(np.array([-1, 0.5, 2, 3], np.float32), bins=4, limits=(0, 1)).counts == (1, 0, 1, 2)


def test_equal_scores_fall_into_one_bin() -> None:
    shown = histogram(np.full(7, 0.5, np.float32))
    assert shown.counts[bin_of(0.5, shown)] == 7


def test_a_side_shows_first_tenth_and_relevant_hits_over_the_same_edges() -> None:
    scores = np.tile(np.linspace(0.9, 0.3, 12, dtype=np.float32), (4, 1))
    shown = distribution("new", scores, np.array([0.7, 0.7], np.float32))
    assert shown.side == "new"
    assert shown.relevant is not None
    assert shown.first.edges == shown.tenth.edges == shown.relevant.edges
    assert shown.first.counts[bin_of(scores[0, 0], shown.first)] == 4
    assert shown.tenth.counts[bin_of(scores[0, 9], shown.tenth)] == 4
    assert shown.relevant.counts[bin_of(0.7, shown.relevant)] == 2


def test_a_hit_that_is_not_there_is_not_counted() -> None:
    scores = np.full((3, 10), 0.5, np.float32)
    scores[1, 4:] = NO_HIT
    scores[2] = NO_HIT
    shown = distribution("old", scores, None)
    assert shown.relevant is None
    assert sum(shown.first.counts) == 2
    assert sum(shown.tenth.counts) == 1


def test_queries_with_fewer_than_ten_hits_have_no_tenth() -> None:
    shown = distribution("old", np.full((3, 5), 0.5, np.float32), None)
    assert sum(shown.first.counts) == 3
    assert sum(shown.tenth.counts) == 0


def test_nothing_found_is_an_empty_picture() -> None:
    shown = distribution("old", np.full((3, 10), NO_HIT, np.float32), np.zeros(0, np.float32))
    assert shown.first.edges[0] == 0
    assert shown.first.edges[-1] == 1
    assert shown.relevant is not None
    assert not any(shown.first.counts + shown.tenth.counts + shown.relevant.counts)
