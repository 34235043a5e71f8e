"""What runs a model: the protocol, and what every runtime does with the model's raw outputs.

A runtime returns finished embeddings. Removing special tokens, taking the maximum weight per token
id and dropping padding from ColBERT happen here, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import numpy as np

from vecferry.embeddings import Embeddings, Float32, MultiVector, Outputs, Sparse, TokenBatch, indptr_of
from vecferry.model.artifact import VectorSpace

Device = Literal["cpu", "cuda"]


class Runtime(Protocol):
    """A model that runs batches of tokens. Thread-safe; not safe across a fork.

    What only some can is asked for by the functions `is_packed`, `depth_of` and `begin`, of attributes that they may
    have: `is_packed`, whether the texts of a batch lie end to end; `depth` and `begin`, where a batch is worked on
    while the caller sees to another one.
    """

    @property
    def name(self) -> str:
        """The runtime's name: onnx, torch or lightweight."""

    @property
    def space(self) -> VectorSpace:
        """The vector space of what `run` returns."""

    def run(self, batch: TokenBatch, outputs: Outputs) -> Embeddings:
        """Embed the batch, in its order; `outputs` are among the space's.

        Raises RuntimeFailed and OutOfMemory, with the batch's shape.
        """

    def describe(self) -> dict[str, str]:
        """Return facts for people: provider, threads, versions."""


def is_packed(runtime: Runtime) -> bool:
    """Say whether no token of a run is padding: it then costs the sum of its tokens, however they are shared out."""
    return bool(getattr(runtime, "is_packed", False))


def depth_of(runtime: Runtime) -> int:
    """Return how many runs should be under way at once."""
    return int(getattr(runtime, "depth", 1))


def begin(runtime: Runtime, batch: TokenBatch, outputs: Outputs) -> Callable[[], Embeddings]:
    """Return what gives the embeddings and raises as `run` does: of a run that is under way from now on where the
    runtime can have that, or else of one that begins when it is called.
    """
    begun: Callable[[TokenBatch, Outputs], Callable[[], Embeddings]] | None = getattr(runtime, "begin", None)
    return partial(runtime.run, batch, outputs) if begun is None else begun(batch, outputs)


@dataclass(frozen=True)
class RawOutputs:
    """Arrays of a pass. dense [B, D]; token_weights [B, S]; colbert [B, S - 1, D], without the first token."""

    dense: Float32
    token_weights: Float32 | None = None
    colbert: Float32 | None = None


def finish(raw: RawOutputs, batch: TokenBatch, outputs: Outputs, space: VectorSpace) -> Embeddings:
    """Turn raw outputs of a padded batch into embeddings of its texts."""
    return Embeddings(
        space.fingerprint,
        batch.lengths,
        batch.truncated,
        raw.dense if Outputs.DENSE in outputs else None,
        None if raw.token_weights is None else lexical_weights(raw.token_weights, batch, space.special_ids),
        None if raw.colbert is None else without_padding(raw.colbert, batch),
        space.form(outputs),
    )


def lexical_weights(token_weights: Float32, batch: TokenBatch, special_ids: tuple[int, ...]) -> Sparse:
    """Convert [B, S] weights to CSR: per text and token id the maximum, special ids and zeros removed."""
    is_token = np.arange(token_weights.shape[1]) < batch.lengths[:, None]  # [B, S]
    return max_per_id(
        np.repeat(np.arange(len(batch)), batch.lengths), batch.ids, token_weights[is_token], len(batch), special_ids
    )


def max_per_id(
    rows: np.ndarray, ids: np.ndarray, weights: Float32, num_rows: int, excluded: tuple[int, ...] = ()
) -> Sparse:
    """Convert triples (row, id, weight) to CSR, keeping the largest weight of each (row, id), ids ascending.

    A weight that is not a number is kept, to be seen by `Embeddings.defects`.
    """
    kept = ~(weights <= 0) & ~np.isin(ids, excluded)
    rows, ids, weights = rows[kept], ids[kept], weights[kept]
    order = np.lexsort((ids, rows))
    rows, ids, weights = rows[order], ids[order], weights[order]
    first = np.flatnonzero(np.diff(rows, prepend=-1) | np.diff(ids, prepend=-1))
    maxima = np.maximum.reduceat(weights, first) if len(first) else weights
    return Sparse(indptr_of(np.bincount(rows[first], minlength=num_rows)), ids[first], maxima)


def without_padding(colbert: Float32, batch: TokenBatch) -> MultiVector:
    """Convert [B, S - 1, D] to ragged: of each text its tokens but the first."""
    kept = np.maximum(batch.lengths - 1, 0)
    is_token = np.arange(colbert.shape[1]) < kept[:, None]  # [B, S - 1]
    return MultiVector(indptr_of(kept), colbert[is_token])
