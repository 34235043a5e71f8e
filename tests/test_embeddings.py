"""Values and scores, against straightforward loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecferry.embeddings import (
    Embeddings,
    HybridWeights,
    MultiVector,
    Outputs,
    Sparse,
    TokenBatch,
    colbert_scores,
    dense_scores,
    hybrid_scores,
    indptr_of,
    lexical_scores,
    take_ragged,
)
from vecferry.encode.runtime import lexical_weights, without_padding
from vecferry.errors import EmptyInput, NotEncoded, SettingsError, SpaceMismatch

random = np.random.default_rng(7)


def made(tokens: list[int], space: str = "a") -> Embeddings:
    """Return embeddings of texts with so many ColBERT tokens each, from the seeded generator."""
    dense = random.normal(size=(len(tokens), 8)).astype(np.float32)
    weights = [{int(i): float(random.random()) for i in random.choice(12, n, replace=False)} for n in tokens]
    sparse = Sparse(
        indptr_of(tokens),
        np.array([i for row in weights for i in sorted(row)], np.int32),
        np.array([row[i] for row in weights for i in sorted(row)], np.float32),
    )
    colbert = MultiVector(indptr_of(tokens), random.normal(size=(sum(tokens), 8)).astype(np.float32))
    return Embeddings(space, np.array(tokens, np.int64) + 1, np.zeros(len(tokens), bool), dense, sparse, colbert)


QUERIES, PASSAGES = made([3, 0, 5]), made([4, 2, 0, 7])


def test_dense_scores_are_inner_products() -> None:
    expected = [[float(np.dot(q, p)) for p in PASSAGES.dense] for q in QUERIES.dense]
    np.testing.assert_allclose(dense_scores(QUERIES, PASSAGES), expected, rtol=1e-5)


def test_lexical_scores_sum_products_over_shared_ids() -> None:
    expected = [
        [sum(w * PASSAGES.sparse.row(j).get(i, 0) for i, w in QUERIES.sparse.row(q).items()) for j in range(4)]
        for q in range(3)
    ]
    np.testing.assert_allclose(lexical_scores(QUERIES, PASSAGES), expected, rtol=1e-5)


def test_colbert_scores_are_the_mean_of_the_best_matches() -> None:
    expected = np.zeros((3, 4))
    for q in range(3):
        for p in range(4):
            rows = [max((float(a @ b) for b in PASSAGES.colbert[p]), default=0.0) for a in QUERIES.colbert[q]]
            expected[q, p] = sum(rows) / len(rows) if rows else 0.0
    np.testing.assert_allclose(colbert_scores(QUERIES, PASSAGES), expected, rtol=1e-5, atol=1e-7)


def test_hybrid_scores_are_the_weighted_mean() -> None:
    weights = HybridWeights(1, 0.3, 1)
    expected = (
        dense_scores(QUERIES, PASSAGES) + 0.3 * lexical_scores(QUERIES, PASSAGES) + colbert_scores(QUERIES, PASSAGES)
    )
    np.testing.assert_allclose(hybrid_scores(QUERIES, PASSAGES, weights), expected / 2.3, rtol=1e-5)


def test_scores_of_two_spaces_are_refused() -> None:
    for score in (dense_scores, lexical_scores, colbert_scores, hybrid_scores):
        with pytest.raises(SpaceMismatch):
            score(QUERIES, made([1], space="b"))
    with pytest.raises(SpaceMismatch):
        Embeddings.concat([QUERIES, made([1], space="b")])


def test_an_output_that_was_not_asked_for_is_named() -> None:
    bare = Embeddings("a", np.array([2]), np.array([False]))
    for name in ("dense", "sparse", "colbert"):
        with pytest.raises(NotEncoded, match=name):
            getattr(bare, name)


def test_the_vectors_of_one_text_are_taken_by_its_position() -> None:
    vectors = PASSAGES[1]
    assert vectors.outputs == Outputs.ALL
    np.testing.assert_array_equal(vectors.dense, PASSAGES.dense[1])
    assert vectors.sparse is not None
    assert vectors.sparse.as_dict() == PASSAGES.sparse.row(1)
    np.testing.assert_array_equal(vectors.colbert, PASSAGES.colbert[1])
    last, counted_back = PASSAGES[3].colbert, PASSAGES[-1].colbert
    np.testing.assert_array_equal(last, counted_back)
    with pytest.raises(IndexError):
        PASSAGES[4]
    dense_alone = Embeddings("a", np.array([2]), np.array([False]), PASSAGES.dense[:1])
    assert dense_alone[0].outputs == Outputs.DENSE
    with pytest.raises(NotEncoded, match="dense"):
        Embeddings("a", np.array([2]), np.array([False]), sparse_or_none=PASSAGES.sparse)[0]


def test_concat_and_take_are_inverse() -> None:
    joined = Embeddings.concat([QUERIES, PASSAGES])
    again = joined.take(np.arange(3, 7))
    np.testing.assert_array_equal(again.dense, PASSAGES.dense)
    assert [again.sparse.row(i) for i in range(4)] == [PASSAGES.sparse.row(i) for i in range(4)]
    np.testing.assert_array_equal(again.colbert[3], PASSAGES.colbert[3])
    with pytest.raises(EmptyInput):
        Embeddings.concat([])


@given(rows=st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=8), data=st.data())
def test_take_ragged_equals_indexing_a_list(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    flat = np.array([i for row in rows for i in row], np.int32)
    selected = take_ragged(flat, indptr_of([len(r) for r in rows]), np.array(chosen, np.intp))
    assert selected.tolist() == [i for c in chosen for i in rows[c]]


def test_padding_is_on_the_right() -> None:
    ids, mask = TokenBatch.from_lists([[0, 5, 2], [0, 2]]).padded(1)
    assert ids.tolist() == [[0, 5, 2], [0, 2, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_lexical_weights_keep_the_maximum_per_id_without_special_tokens() -> None:
    batch = TokenBatch.from_lists([[0, 9, 7, 9, 3, 2], [0, 2], [0, 7, 8, 2]])
    weights = np.array(
        [[9, 0.2, 0.3, 0.5, 9, 9], [9, 9, 9, 9, 9, 9], [9, 0.0, 0.4, 9, 9, 9]], np.float32
    )  # the second row's last four are padding
    sparse = lexical_weights(weights, batch, (0, 1, 2, 3))
    assert [sparse.row(i) for i in range(3)] == [{7: pytest.approx(0.3), 9: 0.5}, {}, {8: pytest.approx(0.4)}]


def test_colbert_drops_the_first_token_and_padding() -> None:
    batch = TokenBatch.from_lists([[0, 5, 2], [0], [0, 2]])
    kept = without_padding(np.arange(6, dtype=np.float32).reshape(3, 2, 1), batch)
    assert [kept[i].ravel().tolist() for i in range(3)] == [[0, 1], [], [4]]


def test_outputs_are_parsed_by_name() -> None:
    assert Outputs.parse("dense, colbert") == Outputs.DENSE | Outputs.COLBERT
    with pytest.raises(SettingsError, match="vectors"):
        Outputs.parse("vectors")


def test_defects_name_the_text_and_what_is_wrong() -> None:
    dense = np.eye(4, dtype=np.float32)
    sparse = Sparse(indptr_of([1, 0, 2, 1]), np.arange(4, dtype=np.int32), np.ones(4, np.float32))
    colbert = MultiVector(indptr_of([2, 0, 1, 1]), np.ones((4, 3), np.float32))
    whole = Embeddings("f", np.full(4, 3), np.zeros(4, bool), dense, sparse, colbert)
    assert whole.defects() == {}
    sparse.weights[1] = np.inf
    assert whole.defects() == {2: "a lexical weight has numbers that are not finite"}
    colbert.vectors[1] = 0
    colbert.vectors[3, 2] = np.nan
    dense[1] = 0
    dense[2, 0] = -np.inf
    assert whole.defects() == {
        0: "a token's vector is zero",
        1: "its vector is zero",
        2: "its vector has numbers that are not finite",
        3: "a token's vector has numbers that are not finite",
    }
