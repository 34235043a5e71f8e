"""The best of each query against a full sort, and candidates against the scores of whole matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.evaluate.doubles import embedded
from vecferry.embeddings import (
    Embeddings,
    Float32,
    HybridWeights,
    Int64,
    colbert_scores,
    dense_scores,
    hybrid_scores,
    lexical_scores,
)
from vecferry.evaluate.ranking import (
    NONE,
    PASSAGES_EACH,
    QUERIES_EACH,
    Candidates,
    Ranked,
    candidates,
    lexically_nearest,
    nearest,
    ranked,
)

SCORES = st.tuples(st.integers(1, 4), st.integers(1, 12)).flatmap(
    lambda shape: arrays.arrays(np.float32, shape, elements=st.sampled_from([-np.inf, -1, 0, 0.25, 0.5, 1]))
)
"""Few different values, so that most are tied."""
BLAS = 1e-5
"""Products of the same float32 vectors in blocks of another size differ by a few units in the last place."""


def by_sorting(scores: Float32, k: int) -> Int64:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@given(scores=SCORES, k=st.integers(1, 15))
def test_ranked_is_the_beginning_of_a_full_stable_sort(scores: Float32, k: int) -> None:
    ranking = ranked(scores, k)
    expected = by_sorting(scores, k)
    np.testing.assert_array_equal(ranking.passages, expected)
    np.testing.assert_array_equal(ranking.scores, np.take_along_axis(scores, expected, axis=1))
    assert (len(ranking), ranking.depth) == (len(scores), min(k, scores.shape[1]))


def test_of_equal_scores_at_the_edge_the_first_stay() -> None:
    scores = np.zeros((2, 1000), np.float32)
    scores[1, 900] = 1
    assert ranked(scores, 3).passages.tolist() == [[0, 1, 2], [900, 0, 1]]


def test_a_ranking_is_taken_by_queries_and_by_first_hits() -> None:
    ranking = Ranked(np.array([[3, 1], [2, 0]]), np.array([[0.9, 0.1], [0.8, 0.2]], np.float32))
    assert ranking.take(np.array([1])).passages.tolist() == [[2, 0]]
    assert ranking.first(1).passages.tolist() == [[3], [2]]


@pytest.mark.parametrize("k", [5, 40, 60])
def test_the_nearest_are_those_of_the_whole_matrix_in_blocks_of_queries(k: int) -> None:
    random = np.random.default_rng(1)
    queries, passages = embedded(QUERIES_EACH + 9, random), embedded(40, random)
    scores = dense_scores(queries, passages)
    ranking = nearest(queries, passages, k)
    np.testing.assert_array_equal(ranking.passages, by_sorting(scores, k))
    np.testing.assert_allclose(ranking.scores, -np.sort(-scores, axis=1)[:, :k], atol=BLAS)


@pytest.mark.parametrize("k", [5, 40, 60])
def test_the_lexically_nearest_are_those_of_the_whole_matrix_in_blocks_of_queries(k: int) -> None:
    random = np.random.default_rng(2)
    queries, passages = embedded(QUERIES_EACH + 9, random), embedded(40, random)
    scores = lexical_scores(queries, passages)
    assert (scores == 0).mean() > 0.1  # ties, where no word is shared
    ranking = lexically_nearest(queries, passages, k)
    np.testing.assert_array_equal(ranking.passages, by_sorting(scores, k))
    np.testing.assert_array_equal(ranking.scores, np.take_along_axis(scores, ranking.passages, axis=1))


# --- candidates -----------------------------------------------------------------------------------


class PassageSource:
    """Give embeddings by number, and keep which were requested."""

    def __init__(self, passages: Embeddings) -> None:
        self.passages = passages
        self.requested: list[list[int]] = []

    def __call__(self, numbers: Int64) -> Embeddings:
        self.requested.append(numbers.tolist())
        return self.passages.take(numbers)


def test_candidates_are_scored_as_by_the_whole_matrices_and_each_passage_is_asked_for_once() -> None:
    random = np.random.default_rng(3)
    queries, passages = embedded(60, random), embedded(2 * PASSAGES_EACH, random)
    rankings = [nearest(queries, passages, 20), lexically_nearest(queries, passages, 20)]
    source = PassageSource(passages)
    scored = candidates(rankings, queries, source)

    union = [sorted({*a, *b}) for a, b in zip(*(ranking.passages.tolist() for ranking in rankings), strict=True)]
    assert [[n for n in row if n != NONE] for row in scored.passages.tolist()] == union
    is_candidate = scored.passages != NONE
    assert not is_candidate[
        np.arange(is_candidate.shape[1]) >= is_candidate.sum(axis=1)[:, None]
    ].any()  # those that are none come last

    wanted = sorted({number for row in union for number in row})
    assert len(wanted) > PASSAGES_EACH
    assert [len(part) <= PASSAGES_EACH for part in source.requested] == [True] * len(source.requested)
    assert [number for part in source.requested for number in part] == wanted

    for name, scores in (("dense", dense_scores), ("sparse", lexical_scores), ("colbert", colbert_scores)):
        whole = np.take_along_axis(scores(queries, passages), scored.passages, axis=1)
        np.testing.assert_allclose(getattr(scored, name)[is_candidate], whole[is_candidate], atol=BLAS, err_msg=name)
        assert (getattr(scored, name)[~is_candidate] == 0).all()


def test_a_portion_that_only_some_queries_look_into_is_scored_for_these() -> None:
    random = np.random.default_rng(8)
    count = PASSAGES_EACH + 20
    queries, passages = embedded(count, random), embedded(count, random)
    one_each = Ranked(np.arange(count)[::-1, None], np.zeros((count, 1), np.float32))
    scored = candidates([one_each], queries, passages.take)
    for name, scores in (("dense", dense_scores), ("sparse", lexical_scores), ("colbert", colbert_scores)):
        whole = np.take_along_axis(scores(queries, passages), scored.passages, axis=1)
        np.testing.assert_allclose(getattr(scored, name), whole, atol=BLAS, err_msg=name)


def test_the_best_by_weights_are_in_the_order_of_the_hybrid_score() -> None:
    random = np.random.default_rng(4)
    queries, passages = embedded(30, random), embedded(50, random)
    scored = candidates([nearest(queries, passages, 50)], queries, passages.take)
    weights = HybridWeights(0.3, 0.5, 0.2)
    ranking = scored.best(50, weights)
    scores = hybrid_scores(queries, passages, weights)  # the weights sum to 1
    np.testing.assert_array_equal(ranking.passages, by_sorting(scores, 50))
    np.testing.assert_allclose(ranking.scores, -np.sort(-scores, axis=1), atol=BLAS)


def test_heads_that_are_absent_are_zero() -> None:
    random = np.random.default_rng(5)
    whole, passages = embedded(5, random), embedded(9, random)
    queries = Embeddings("a", whole.num_tokens, whole.truncated, whole.dense)
    scored = candidates([nearest(queries, passages, 4)], queries, passages.take)
    assert scored.dense.any()
    assert not scored.sparse.any()
    assert not scored.colbert.any()


def test_of_equal_candidates_the_first_passage_comes_first_and_those_that_are_none_last() -> None:
    rankings = [Ranked(np.array([[7, 2], [4, NONE]]), np.zeros((2, 2), np.float32)),
             Ranked(np.array([[2, 5], [4, NONE]]), np.zeros((2, 2), np.float32))]  # fmt: skip
    zeros = Embeddings("a", np.zeros(9, np.int64), np.zeros(9, bool), np.zeros((9, 3), np.float32))
    scored = candidates(rankings, zeros.take(np.arange(2)), zeros.take)
    assert scored.passages.tolist() == [[2, 5, 7], [4, NONE, NONE]]
    best = scored.best(2, HybridWeights())
    assert best.passages.tolist() == [[2, 5], [4, NONE]]
    assert best.scores.tolist() == [[0, 0], [0, -np.inf]]


def test_where_nothing_was_found_there_is_one_candidate_that_is_none() -> None:
    nothing = Ranked(np.full((2, 3), NONE), np.full((2, 3), -np.inf, np.float32))
    queries = embedded(2, np.random.default_rng(6))
    scored = candidates([nothing], queries, lambda numbers: pytest.fail("there is nothing to ask for"))
    assert scored.passages.tolist() == [[NONE], [NONE]]
    assert isinstance(scored.take(np.array([0])), Candidates)
