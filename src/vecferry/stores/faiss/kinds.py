"""Kinds of FAISS indexes: which can be moved, and an empty one of the same kind for vectors of another length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from vecferry.embeddings import Float32
from vecferry.errors import StoreSchemaError

COSINES: dict[int, Callable[[float], float]] = {
    faiss.METRIC_INNER_PRODUCT: lambda score: score,
    faiss.METRIC_L2: lambda distance: 1 - distance / 2,  # squared, of unit vectors
}
MIN_POINTS_PER_LIST = 39  # under which FAISS warns that a centroid has too little to be trained on


def _flat(like: Any, dimension: int) -> Any:
    return faiss.IndexFlat(dimension, like.metric_type)


def _hnsw(like: Any, dimension: int) -> Any:
    index = faiss.IndexHNSWFlat(dimension, like.hnsw.nb_neighbors(1), like.metric_type)
    index.hnsw.efConstruction, index.hnsw.efSearch = like.hnsw.efConstruction, like.hnsw.efSearch
    return index


def _ivf(like: Any, dimension: int) -> Any:
    quantizer: Any = faiss.IndexFlat(dimension, like.metric_type)
    index = faiss.IndexIVFFlat(quantizer, dimension, like.nlist, like.metric_type)
    index.nprobe, index.cp.min_points_per_centroid = like.nprobe, 1
    quantizer.this.disown()
    index.own_fields = True
    return index


def _scalar(like: Any, dimension: int) -> Any:
    return faiss.IndexScalarQuantizer(dimension, like.sq.qtype, like.metric_type)


KINDS: dict[str, Callable[[Any, int], Any]] = {
    "IndexFlat": _flat,
    "IndexFlatIP": _flat,
    "IndexFlatL2": _flat,
    "IndexHNSWFlat": _hnsw,
    "IndexIVFFlat": _ivf,
    "IndexScalarQuantizer": _scalar,
}


def like(index: Any, dimension: int, name: str) -> Any:
    """Return an empty, untrained index of the same kind and metric. Raises StoreSchemaError for other kinds."""
    kind = type(index).__name__
    if kind not in KINDS:
        raise StoreSchemaError(f"{name} is an {kind}", f"One of {', '.join(KINDS)} can be moved.")
    if index.metric_type not in COSINES:
        raise StoreSchemaError(f"{name} has metric {index.metric_type}", "Inner product (0) or L2 (1).")
    return KINDS[kind](index, dimension)


def filled(empty: Any, vectors: Float32) -> Any:
    """Return an index like `empty` with these vectors [N, D], trained on them where its kind is trained.

    An IVF index has fewer lists where there are too few vectors for its own number.
    """
    index = like(empty, empty.d, "an index")
    if isinstance(index, faiss.IndexIVFFlat) and len(vectors):
        index.nlist = max(1, min(index.nlist, len(vectors) // MIN_POINTS_PER_LIST))
        index = _ivf(index, index.d)
    if len(vectors):
        index.train(vectors)
        index.add(vectors)
    return index


def replaced(index: Any, vectors: Float32) -> None:
    """Put other vectors into an index, which keeps what it has learned."""
    if not index.is_trained and len(vectors):
        index.train(vectors)
    index.reset()
    if len(vectors):
        index.add(vectors)


def vectors_of(index: Any) -> Float32:
    """Return all vectors in their order, float32 [N, D]; of a quantized index, what it has kept of them."""
    if not index.ntotal:
        return np.zeros((0, index.d), np.float32)
    return np.asarray(index.reconstruct_n(0, index.ntotal), np.float32)
