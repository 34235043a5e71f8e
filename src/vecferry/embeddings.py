"""The values that flow from text to vector, and the scores between them.

`TokenBatch` goes into a runtime, `Embeddings` come out. Both are ragged in the CSR way: row `i`
of a flat array is `flat[indptr[i]:indptr[i + 1]]`. Scores follow the BGE-M3 paper
(arXiv 2402.03216, section 3.2): dense is the inner product, lexical the sum over shared token ids
of the products of weights, ColBERT the mean over query tokens of the maximum over passage tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Flag
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vecferry.errors import EmptyInput, HeadUnavailable, NotEncoded, SettingsError, SpaceMismatch
from vecferry.precisions import FP32, Form, Mark

T = TypeVar("T", bound=np.generic)
Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


class Outputs(Flag):
    """Which of the three vectors to compute."""

    DENSE = 1
    SPARSE = 2
    COLBERT = 4
    ALL = 7

    @classmethod
    def of(cls, names: Iterable[str]) -> Outputs:
        """Return the outputs of these names, such as "dense" and "sparse". Raises SettingsError."""
        chosen, heads = cls(0), tuple(names)
        for name in heads:
            try:
                chosen |= cls[name.strip().upper()]
            except KeyError:
                expected = "some of dense, sparse, colbert, joined by commas"
                raise SettingsError("outputs", ",".join(heads), expected) from None
        return chosen

    @classmethod
    def parse(cls, text: str) -> Outputs:
        """Return the outputs of their names joined by commas: "dense,sparse". Raises SettingsError."""
        return cls.of(text.split(","))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(flag.name.lower() for flag in self if flag.name)


DENSE = Outputs.DENSE


class Value:
    """A frozen dataclass whose `to_dict` is ready for JSON."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload,no-any-return]  # every subclass is a dataclass


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Token ids of N texts, special tokens included.

    ids: int32 [sum of lengths]; indptr: int64 [N + 1]; truncated: bool [N], True where the text
    was longer than the model's limit.
    """

    ids: Int32
    indptr: Int64
    truncated: Bool

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]], truncated: Sequence[bool] | None = None) -> TokenBatch:
        flat = np.fromiter((i for row in rows for i in row), dtype=np.int32)
        is_truncated = np.zeros(len(rows), bool) if truncated is None else np.asarray(truncated, bool)
        return cls(flat, indptr_of([len(row) for row in rows]), is_truncated)

    @property
    def lengths(self) -> Int64:
        return np.diff(self.indptr)

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def take(self, rows: NDArray[np.intp]) -> TokenBatch:
        return TokenBatch(take_ragged(self.ids, self.indptr, rows), indptr_of(self.lengths[rows]), self.truncated[rows])

    @classmethod
    def concat(cls, parts: Sequence[TokenBatch]) -> TokenBatch:
        return cls(
            np.concatenate([p.ids for p in parts]),
            concat_indptr([p.indptr for p in parts]),
            np.concatenate([p.truncated for p in parts]),
        )

    def padded(self, pad_id: int) -> tuple[Int64, Int64]:
        """Return ids and mask, both int64 [N, longest], padded on the right."""
        mask = np.arange(max(self.lengths, default=0)) < self.lengths[:, None]
        ids = np.full(mask.shape, pad_id, np.int64)
        ids[mask] = self.ids
        return ids, mask.astype(np.int64)


@dataclass(frozen=True, eq=False)
class SparseVector:
    """Lexical weights of one text. indices: int32 [n] token ids, ascending; weights: float32 [n], > 0."""

    indices: Int32
    weights: Float32

    def as_dict(self) -> dict[int, float]:
        return dict(zip(self.indices.tolist(), self.weights.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class TextVectors:
    """What a model made of one text, and what a store holds for it.

    dense: float32 [D]. sparse; colbert: float32 [tokens, D], unit length: None where they were not asked for.
    """

    dense: Float32
    sparse: SparseVector | None = None
    colbert: Float32 | None = None

    @property
    def outputs(self) -> Outputs:
        """Which of the three are there."""
        sparse = Outputs(0) if self.sparse is None else Outputs.SPARSE
        return DENSE | sparse | (Outputs(0) if self.colbert is None else Outputs.COLBERT)


@dataclass(frozen=True, eq=False)
class Sparse:
    """Lexical weights of N texts as CSR, ids ascending within a row.

    indptr: int64 [N + 1]; indices: int32 [nnz] token ids; weights: float32 [nnz], > 0.
    """

    indptr: Int64
    indices: Int32
    weights: Float32

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, i: int) -> SparseVector:
        part = row_slice(self.indptr, i)
        return SparseVector(self.indices[part], self.weights[part])

    def row(self, i: int) -> dict[int, float]:
        """Return the weight of each token id of text i."""
        return self[i].as_dict()

    def take(self, rows: NDArray[np.intp]) -> Sparse:
        return Sparse(
            indptr_of(np.diff(self.indptr)[rows]),
            take_ragged(self.indices, self.indptr, rows),
            take_ragged(self.weights, self.indptr, rows),
        )

    @classmethod
    def of(cls, rows: Sequence[SparseVector]) -> Sparse:
        """Join the weights of one text or more."""
        return cls(
            indptr_of([len(row.indices) for row in rows]),
            np.concatenate([row.indices for row in rows]),
            np.concatenate([row.weights for row in rows]),
        )

    @classmethod
    def concat(cls, parts: Sequence[Sparse]) -> Sparse:
        return cls(
            concat_indptr([p.indptr for p in parts]),
            np.concatenate([p.indices for p in parts]),
            np.concatenate([p.weights for p in parts]),
        )


@dataclass(frozen=True, eq=False)
class MultiVector:
    """ColBERT vectors of N texts. indptr: int64 [N + 1]; vectors: float32 [sum of tokens, D], unit length."""

    indptr: Int64
    vectors: Float32

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, i: int) -> Float32:
        return self.vectors[row_slice(self.indptr, i)]

    def take(self, rows: NDArray[np.intp]) -> MultiVector:
        return MultiVector(indptr_of(np.diff(self.indptr)[rows]), take_ragged(self.vectors, self.indptr, rows))

    @classmethod
    def of(cls, rows: Sequence[Float32]) -> MultiVector:
        """Join the vectors of one text or more, each [tokens, D]."""
        return cls(indptr_of([len(row) for row in rows]), np.concatenate(rows))

    @classmethod
    def concat(cls, parts: Sequence[MultiVector]) -> MultiVector:
        return cls(concat_indptr([p.indptr for p in parts]), np.concatenate([p.vectors for p in parts]))


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What `encode` returns, whatever was asked for; N texts in the order given.

    dense: float32 [N, D]. sparse: `Sparse`. colbert: `MultiVector`. Reading one that was not asked
    for raises NotEncoded. num_tokens: int64 [N] tokens that the model saw, special tokens included.
    truncated: bool [N]. fingerprint: the function that made them; values of two functions never mix. form: how exactly
    it was computed; two forms are compared where they were found to agree (`Mark.refusal`), and never joined.
    """

    fingerprint: str
    num_tokens: Int64
    truncated: Bool
    dense_or_none: Float32 | None = None
    sparse_or_none: Sparse | None = None
    colbert_or_none: MultiVector | None = None
    form: Form = FP32

    def __len__(self) -> int:
        return len(self.num_tokens)

    def __getitem__(self, i: int) -> TextVectors:
        """Return the vectors of text i, with each output that was asked for. Raises NotEncoded without dense."""
        sparse = None if self.sparse_or_none is None else self.sparse_or_none[i]
        colbert = None if self.colbert_or_none is None else self.colbert_or_none[i]
        return TextVectors(self.dense[i], sparse, colbert)

    @property
    def mark(self) -> Mark:
        return Mark(self.fingerprint, self.form)

    @property
    def num_truncated(self) -> int:
        return int(self.truncated.sum())

    @property
    def dense(self) -> Float32:
        if self.dense_or_none is None:
            raise NotEncoded("dense")
        return self.dense_or_none

    @property
    def sparse(self) -> Sparse:
        if self.sparse_or_none is None:
            raise NotEncoded("sparse")
        return self.sparse_or_none

    @property
    def colbert(self) -> MultiVector:
        if self.colbert_or_none is None:
            raise NotEncoded("colbert")
        return self.colbert_or_none

    def defects(self) -> dict[int, str]:
        """Return why vectors are not to be used, by the number of their text; empty as long as the model is whole.

        A vector, dense or of a token, has finite numbers that are not all zero; a lexical weight is finite.
        """
        reasons: dict[int, str] = {}
        if self.colbert_or_none is not None:
            reasons |= _defects(self.colbert_or_none.vectors, self.colbert_or_none.indptr, "a token's vector")
        if self.sparse_or_none is not None:
            weights, indptr = self.sparse_or_none.weights[:, None], self.sparse_or_none.indptr
            reasons |= _defects(weights, indptr, "a lexical weight")
        if self.dense_or_none is not None:
            reasons |= _defects(self.dense_or_none, np.arange(len(self) + 1), "its vector")
        return reasons

    def require_key(self, key: str, where: str) -> None:
        """Raise SpaceMismatch unless these are of that function, form and heads: the bytes that were asked for."""
        if self.mark.key != key:
            raise SpaceMismatch(expected=key, found=self.mark.key, where=where)

    def take(self, rows: NDArray[np.intp]) -> Embeddings:
        """Return the given rows, in the given order."""
        return Embeddings(
            self.fingerprint,
            self.num_tokens[rows],
            self.truncated[rows],
            None if self.dense_or_none is None else self.dense_or_none[rows],
            None if self.sparse_or_none is None else self.sparse_or_none.take(rows),
            None if self.colbert_or_none is None else self.colbert_or_none.take(rows),
            self.form,
        )

    @classmethod
    def concat(cls, parts: Sequence[Embeddings]) -> Embeddings:
        """Join parts of one function and form, with the same outputs, in order. Raises SpaceMismatch, EmptyInput."""
        if not parts:
            raise EmptyInput
        first = parts[0]
        for part in parts[1:]:
            part.require_key(first.mark.key, "a part to be joined")
        return cls(
            first.fingerprint,
            np.concatenate([p.num_tokens for p in parts]),
            np.concatenate([p.truncated for p in parts]),
            None if first.dense_or_none is None else np.concatenate([p.dense for p in parts]),
            None if first.sparse_or_none is None else Sparse.concat([p.sparse for p in parts]),
            None if first.colbert_or_none is None else MultiVector.concat([p.colbert for p in parts]),
            first.form,
        )


def _defects(vectors: Float32, indptr: Int64, what: str) -> dict[int, str]:
    """Return what is wrong with vectors [V, D], by the row of `indptr` that they are in."""
    checks = {"is zero": vectors.any(axis=1), "has numbers that are not finite": np.isfinite(vectors).all(axis=1)}
    return {
        int(row): f"{what} {defect}"
        for defect, is_right in checks.items()
        for row in np.searchsorted(indptr, np.flatnonzero(~is_right), side="right") - 1
    }


# --- scores ---------------------------------------------------------------------------------------


def same_space(queries: Embeddings, passages: Embeddings) -> None:
    """Raise SpaceMismatch unless the two can be compared, by any output."""
    queries.mark.require(passages.mark, "query", "the queries")


def dense_scores(queries: Embeddings, passages: Embeddings) -> Float32:
    """Return float32 [len(queries), len(passages)]; the cosine, since vectors have unit length."""
    queries.mark.without_heads.require(passages.mark.without_heads, "query", "the queries")
    scores: Float32 = queries.dense @ passages.dense.T
    return scores


def lexical_scores(queries: Embeddings, passages: Embeddings) -> Float32:
    """Return float32 [len(queries), len(passages)]; sum over shared token ids of the products of weights."""
    same_space(queries, passages)
    wanted, stored = queries.sparse, passages.sparse
    if not len(wanted.indices) or not len(stored.indices):
        return np.zeros((len(queries), len(passages)), np.float32)
    row_of = np.repeat(np.arange(len(stored)), np.diff(stored.indptr))  # [nnz]
    by_id = np.zeros(int(max(wanted.indices.max(), stored.indices.max())) + 1, np.float32)
    scores = np.empty((len(queries), len(passages)), np.float32)
    for i in range(len(wanted)):
        query = wanted[i]
        by_id[query.indices] = query.weights
        products = by_id[stored.indices] * stored.weights  # [nnz]
        scores[i] = np.bincount(row_of, weights=products, minlength=len(stored))
        by_id[query.indices] = 0
    return scores


def colbert_scores(queries: Embeddings, passages: Embeddings) -> Float32:
    """Return float32 [len(queries), len(passages)]; mean over query tokens of the best passage token (MaxSim)."""
    same_space(queries, passages)
    stored = passages.colbert
    filled = np.flatnonzero(np.diff(stored.indptr))  # rows that have a token
    scores = np.zeros((len(queries), len(passages)), np.float32)
    if not len(filled):
        return scores
    for i in range(len(queries)):
        similar = queries.colbert[i] @ stored.vectors.T  # [query tokens, all passage tokens]
        if len(similar):
            scores[i, filled] = np.maximum.reduceat(similar, stored.indptr[:-1][filled], axis=1).mean(axis=0)
    return scores


@dataclass(frozen=True)
class HybridWeights:
    """How much each score counts; the defaults are those published with BGE-M3."""

    dense: float = 0.4
    sparse: float = 0.2
    colbert: float = 0.4


def hybrid_scores(queries: Embeddings, passages: Embeddings, weights: HybridWeights | None = None) -> Float32:
    """Return float32 [len(queries), len(passages)]; weighted sum, divided by the sum of the weights."""
    weights = weights or HybridWeights()
    total = weights.dense + weights.sparse + weights.colbert
    summed: Float32 = (
        weights.dense * dense_scores(queries, passages)
        + weights.sparse * lexical_scores(queries, passages)
        + weights.colbert * colbert_scores(queries, passages)
    )
    return summed / np.float32(total)


def require_heads(wanted: Outputs, available: Outputs) -> None:
    """Raise HeadUnavailable for the first output that the model does not have."""
    for name in (wanted & ~available).names:
        raise HeadUnavailable(name, available.names)


# --- ragged arrays --------------------------------------------------------------------------------


def indptr_of(lengths: Sequence[int] | Int64) -> Int64:
    """Return the offsets, int64 [N + 1], of [N] lengths."""
    out = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=out[1:])
    return out


def row_slice(indptr: Int64, i: int) -> slice:
    """Return where row i is in the flat array; below 0 it counts from the end. Raises IndexError."""
    i = range(len(indptr) - 1)[i]
    return slice(indptr[i], indptr[i + 1])


def concat_indptr(parts: Iterable[Int64]) -> Int64:
    """Return the offsets of ragged arrays that are joined one after the other."""
    return indptr_of(np.concatenate([np.diff(part) for part in parts]))


def take_ragged(flat: NDArray[T], indptr: Int64, rows: NDArray[np.intp]) -> NDArray[T]:
    """Return the flat array of the given rows, in the given order."""
    lengths = np.diff(indptr)[rows]
    inner = np.arange(lengths.sum()) - np.repeat(indptr_of(lengths)[:-1], lengths)
    values: NDArray[T] = flat[np.repeat(indptr[:-1][rows], lengths) + inner]
    return values
