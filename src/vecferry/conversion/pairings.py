"""May a narrower form meet fp32? Queries and passages in either form, on the shipped texts and on a labelled set.

What follows from the pairings says `vecferry.precisions.verdicts_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vecferry.conversion.calibration import comparison_texts
from vecferry.conversion.verify import cosines_of, lexical_cosine
from vecferry.embeddings import Embeddings, Float32, colbert_scores, dense_scores, lexical_scores
from vecferry.encode.encoder import Encoder
from vecferry.precisions import FP32, Head, Pairing

K = 10
SCORES: dict[Head, Callable[[Embeddings, Embeddings], Float32]] = {
    "dense": dense_scores, "sparse": lexical_scores, "colbert": colbert_scores,
}  # fmt: skip


class Interval(Protocol):
    """A mean, and the bounds of its 95% interval."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class Labelled(Protocol):
    """Passages, and questions that somebody has judged."""

    @property
    def passage_texts(self) -> Sequence[str]: ...
    @property
    def question_texts(self) -> Sequence[str]: ...
    def ndcg_at_10(self, scores: Float32) -> NDArray[np.float64]:
        """Return nDCG@10 of each question, [Q], for scores [Q, P]."""

    def interval(self, values: NDArray[np.float64]) -> Interval:
        """Return the mean of values [Q] with its 95% interval."""


@dataclass(frozen=True)
class _Encoded:
    """A set of texts in both forms, by their names, in the role of each side, with every head."""

    queries: dict[str, Embeddings]
    passages: dict[str, Embeddings]

    def scores(self, head: Head, queries: str, passages: str) -> Float32:
        return SCORES[head](self.queries[queries], self.passages[passages])

    def cosines(self, head: Head, queries: str, passages: str) -> NDArray[np.floating]:
        """Return the cosine to fp32 of each vector that is not in fp32; 1 where all are."""
        sides = ((queries, self.queries), (passages, self.passages))
        parts = [_cosines(head, side[name], side["fp32"]) for name, side in sides if name != "fp32"]
        return np.concatenate(parts) if parts else np.ones(1)


def pairings(
    baseline: Callable[[], Encoder], narrower: Callable[[], Encoder], labelled: Labelled | None
) -> tuple[Pairing, ...]:
    """Measure the four pairings of each head of two forms, of which `baseline` is fp32. One is open at a time."""
    texts = comparison_texts()
    sets = [(texts, texts)] if labelled is None else [(texts, texts), (labelled.question_texts, labelled.passage_texts)]
    encoded = [_Encoded({}, {}) for _ in sets]
    for opened in (baseline, narrower):
        encoder = opened()
        name, outputs = encoder.space.form().name, encoder.space.outputs
        are_roles_alike = encoder.space.query_prefix == encoder.space.passage_prefix
        for (queries, passages), kept in zip(sets, encoded, strict=True):
            in_passages = replace(encoder.encode(passages, outputs=outputs, role="passage"), form=FP32)
            is_same = queries is passages and are_roles_alike
            in_queries = in_passages if is_same else encoder.encode(queries, outputs=outputs, role="query")
            kept.passages[name], kept.queries[name] = in_passages, replace(in_queries, form=FP32)
    heads = [head for head in SCORES if head in outputs.names]
    return tuple(pairing for head in heads for pairing in _of_head(head, encoded, labelled))


def _of_head(head: Head, encoded: Sequence[_Encoded], labelled: Labelled | None) -> Iterator[Pairing]:
    shipped, judged = encoded[0], encoded[-1]
    nearest = _nearest(shipped.scores(head, "fp32", "fp32"))
    before = None if labelled is None else labelled.ndcg_at_10(judged.scores(head, "fp32", "fp32"))
    for queries, passages in product(shipped.queries, shipped.passages):
        cosines = np.concatenate([each.cosines(head, queries, passages) for each in encoded])
        places = _nearest(shipped.scores(head, queries, passages))
        pairing = Pairing(
            head=head,
            queries=queries,
            passages=passages,
            smallest_cosine=float(cosines.min()),
            mean_cosine=float(cosines.mean()),
            agreement=float(np.mean([_ndcg(row, wanted) for row, wanted in zip(places, nearest, strict=True)])),
        )
        if labelled is not None and before is not None:
            values = labelled.ndcg_at_10(judged.scores(head, queries, passages))
            loss = labelled.interval(before - values)
            pairing = replace(pairing, ndcg=float(values.mean()), loss=loss.mean, low=loss.low, high=loss.high)
        yield pairing


def _cosines(head: Head, kept: Embeddings, expected: Embeddings) -> NDArray[np.floating]:
    if head == "sparse":
        pairs = ((kept.sparse.row(i), expected.sparse.row(i)) for i in range(len(kept)))
        return np.array([lexical_cosine(*pair) for pair in pairs])
    if head == "colbert":
        return cosines_of(kept.colbert.vectors, expected.colbert.vectors)
    return cosines_of(kept.dense, expected.dense)


def _nearest(scores: Float32) -> NDArray[np.intp]:
    """Return the ten best of each row but the text itself: [T, T] -> [T, 10]."""
    others = scores.copy()
    np.fill_diagonal(others, -np.inf)
    return np.argsort(-others, axis=1, kind="stable")[:, :K]


def _ndcg(places: NDArray[np.intp], relevant: NDArray[np.intp]) -> float:
    """Return nDCG@10 where each of the relevant is worth the same (Järvelin and Kekäläinen, 2002)."""
    gains = 1 / np.log2(np.arange(2, K + 2))
    return float(gains[np.isin(places, relevant)].sum() / gains.sum())
