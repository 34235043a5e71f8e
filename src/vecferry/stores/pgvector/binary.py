"""PostgreSQL's binary forms of what is written in bulk: 1,024 numbers are 4 kB so, and about 12 kB as text."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

from vecferry.embeddings import Float32, SparseVector

BYTEA_OID, TEXT_OID = 17, 25
SPARSE_DIMENSION = 250002
"""Of the column for sparse vectors: the size of BGE-M3's vocabulary."""
VECTOR_TYPES = frozenset({"vector", "halfvec", "sparsevec"})


def is_vector_type(name: str) -> bool:
    """Return whether a type of that name is one of pgvector's, or an array of one."""
    return name.lstrip("_") in VECTOR_TYPES


@dataclass(frozen=True)
class Binary:
    """A parameter as it is sent; its type is the cast that stands beside the placeholder."""

    data: bytes


class BinaryDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Binary) -> Buffer:
        return obj.data


def vector_bytes(numbers: Float32, kind: str) -> bytes:
    """Return a vector in binary. kind: "vector" (float32) or "halfvec" (float16, so that digits are lost)."""
    number = ">f2" if kind == "halfvec" else ">f4"
    return struct.pack(">HH", len(numbers), 0) + numbers.astype(number).tobytes()


def sparse_bytes(sparse: SparseVector) -> bytes:
    """Return a sparse vector in binary. Ids count from 0 here, from 1 where PostgreSQL shows them: '{1:0.5}/250002'."""
    header = struct.pack(">iii", SPARSE_DIMENSION, len(sparse.indices), 0)
    return header + sparse.indices.astype(">i4").tobytes() + sparse.weights.astype(">f4").tobytes()


def array(element_oid: int, elements: Sequence[bytes | None]) -> Binary:
    """Return a one-dimensional array."""
    if not elements:
        return Binary(struct.pack(">iii", 0, 0, element_oid))
    has_null = any(element is None for element in elements)
    parts = [struct.pack(">iiiii", 1, has_null, element_oid, len(elements), 1)]
    for element in elements:
        parts += (struct.pack(">i", -1),) if element is None else (struct.pack(">i", len(element)), element)
    return Binary(b"".join(parts))


def colbert_array(vectors: Float32, halfvec_oid: int) -> Binary:
    """Return float32 [tokens, D] as `halfvec(D)[]`."""
    with np.errstate(over="ignore"):  # the server names what half precision cannot hold
        return array(halfvec_oid, [vector_bytes(vector, "halfvec") for vector in vectors])
