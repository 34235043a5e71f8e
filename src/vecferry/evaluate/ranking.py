"""The best passages of each query, as arrays; and the scores that they are found by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vecferry.embeddings import Embeddings, Float32, HybridWeights, Int64, MultiVector, lexical_scores

QUERIES_EACH = 256
PASSAGES_EACH = 256
NONE = -1


@dataclass(frozen=True)
class Ranked:
    """Hits. passages: int64 [Q, K], numbers, best first, -1 where there are fewer. scores: float32 [Q, K]."""

    passages: Int64
    scores: Float32

    def __len__(self) -> int:
        return len(self.passages)

    @property
    def depth(self) -> int:
        depth: int = self.passages.shape[1]
        return depth

    def take(self, queries: Int64) -> Ranked:
        return Ranked(self.passages[queries], self.scores[queries])

    def first(self, k: int) -> Ranked:
        return Ranked(self.passages[:, :k], self.scores[:, :k])


def ranked(scores: Float32, k: int) -> Ranked:
    """Return the k best of each row of scores [Q, N]; of equal scores the first."""
    best = _best_columns(scores, k) if 0 < k < scores.shape[1] else _all_columns(scores)[:, :k]
    best_scores = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-best_scores, axis=1, kind="stable")
    return Ranked(np.take_along_axis(best, order, axis=1), np.take_along_axis(best_scores, order, axis=1))


def _best_columns(scores: Float32, k: int) -> Int64:
    """Return int64 [Q, k], ascending: where the k best are; of those as good as the k-th, the first."""
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    lowest = np.take_along_axis(scores, best, axis=1).min(axis=1, keepdims=True)  # [Q, 1]
    tied = np.flatnonzero((scores >= lowest).sum(axis=1) > k)  # elsewhere there is no choice
    best[tied] = _first_columns(scores[tied], lowest[tied], k)
    return np.sort(best, axis=1)


def _first_columns(scores: Float32, lowest: Float32, k: int) -> Int64:
    """Return int64 [Q, k]: all above the lowest, and the first of those that equal it."""
    better, equal = scores > lowest, scores == lowest
    room = k - better.sum(axis=1, keepdims=True)
    columns = np.nonzero(better | (equal & (equal.cumsum(axis=1) <= room)))[1]
    return columns.reshape(len(scores), k)


def _all_columns(scores: Float32) -> Int64:
    return np.tile(np.arange(scores.shape[1]), (len(scores), 1))


def nearest(queries: Embeddings, passages: Embeddings, k: int) -> Ranked:
    """Search by the inner product of dense vectors, exactly."""
    blocks = (queries.dense[at : at + QUERIES_EACH] @ passages.dense.T for at in range(0, len(queries), QUERIES_EACH))
    return concat([ranked(block, k) for block in blocks])


def lexically_nearest(queries: Embeddings, passages: Embeddings, k: int) -> Ranked:
    """Search by the weights of shared tokens, exactly."""
    return concat([ranked(lexical_scores(part, passages), k) for part in _blocks(queries)])


def concat(parts: Sequence[Ranked]) -> Ranked:
    return Ranked(np.concatenate([part.passages for part in parts]), np.concatenate([part.scores for part in parts]))


def _blocks(embeddings: Embeddings) -> Iterator[Embeddings]:
    for at in range(0, len(embeddings), QUERIES_EACH):
        yield embeddings.take(np.arange(at, min(at + QUERIES_EACH, len(embeddings))))


# --- candidates, scored by every head -------------------------------------------------------------


@dataclass(frozen=True)
class Candidates:
    """Hits of dense and sparse search, scored by each head: int64 [Q, C], -1 where there are fewer; float32 [Q, C].

    Heads that the model does not have are zero everywhere.
    """

    passages: Int64
    dense: Float32
    sparse: Float32
    colbert: Float32

    def take(self, queries: Int64) -> Candidates:
        return Candidates(self.passages[queries], self.dense[queries], self.sparse[queries], self.colbert[queries])

    def best(self, k: int, weights: HybridWeights) -> Ranked:
        """Return the k best by the weighted sum of the heads' scores."""
        summed = weights.dense * self.dense + weights.sparse * self.sparse + weights.colbert * self.colbert
        summed = np.where(self.passages == NONE, np.float32(-np.inf), summed.astype(np.float32))
        top = ranked(summed, k)
        return Ranked(np.take_along_axis(self.passages, top.passages, axis=1), top.scores)


def candidates(rankings: Sequence[Ranked], queries: Embeddings, passages: Callable[[Int64], Embeddings]) -> Candidates:
    """Unite the rankings of each query, in the order of the passages' numbers, and score them by every head.

    passages: the embeddings of some, by number, with the heads that the queries have; each is asked for once, in
    portions, since the ColBERT vectors of all need not fit in memory.
    """
    joined = _union(rankings)
    scored = Candidates(joined, *(np.zeros(joined.shape, np.float32) for _ in range(3)))
    wanted = np.unique(joined[joined != NONE])
    for at in range(0, len(wanted), PASSAGES_EACH):
        numbers = wanted[at : at + PASSAGES_EACH]
        _score(scored, numbers, queries, passages(numbers))
    return scored


def _union(rankings: Sequence[Ranked]) -> Int64:
    """Return int64 [Q, C]: each passage once, those that are none last."""
    joined = np.sort(np.concatenate([ranking.passages for ranking in rankings], axis=1), axis=1)
    joined[:, 1:][joined[:, 1:] == joined[:, :-1]] = NONE
    order = np.argsort(joined == NONE, axis=1, kind="stable")
    joined = np.take_along_axis(joined, order, axis=1)
    return joined[:, : int((joined != NONE).sum(axis=1).max(initial=1))]


def _score(scored: Candidates, numbers: Int64, queries: Embeddings, part: Embeddings) -> None:
    """Fill in the scores of these passages. numbers: ascending; part: their embeddings."""
    rows, places = np.nonzero(np.isin(scored.passages, numbers))  # [P]
    column = np.searchsorted(numbers, scored.passages[rows, places])
    query_rows, row = np.unique(rows, return_inverse=True)
    own = queries.take(query_rows)
    scored.dense[rows, places] = (own.dense @ part.dense.T)[row, column]
    if own.sparse_or_none is not None:
        scored.sparse[rows, places] = lexical_scores(own, part)[row, column]
    if own.colbert_or_none is not None:
        pairs = zip(row, column, strict=True)
        scored.colbert[rows, places] = [_max_sim(own.colbert, i, part.colbert, j) for i, j in pairs]


def _max_sim(queries: MultiVector, i: int, passages: MultiVector, j: int) -> float:
    of_query, of_passage = queries[i], passages[j]
    if not len(of_query) or not len(of_passage):
        return 0.0
    return float((of_query @ of_passage.T).max(axis=1).mean())
