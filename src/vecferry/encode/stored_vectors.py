"""The vectors of one text as bytes, for the cache and for staged files: one form, one checksum.

    dense      float32 [D]
    sparse     int32 [n] token ids, then float32 [n] weights
    colbert    the type of a number, "<f4" or "<f2", in 4 bytes; uint32 D; then [tokens, D] of that type

All little-endian.
"""

from __future__ import annotations

import struct
import zlib
from typing import Literal

import numpy as np

from vecferry.embeddings import Float32, SparseVector

COLBERT_HEAD = struct.Struct("<4sI")


def pack_dense(dense: Float32) -> bytes:
    return dense.astype("<f4").tobytes()


def unpack_dense(stored: bytes) -> Float32:
    return np.frombuffer(stored, "<f4").astype(np.float32)


def pack_sparse(sparse: SparseVector) -> bytes:
    return sparse.indices.astype("<i4").tobytes() + sparse.weights.astype("<f4").tobytes()


def unpack_sparse(stored: bytes) -> SparseVector:
    middle = len(stored) // 2
    return SparseVector(np.frombuffer(stored[:middle], "<i4").astype(np.int32), unpack_dense(stored[middle:]))


def pack_colbert(colbert: Float32, number: Literal["<f4", "<f2"] = "<f4") -> bytes:
    """Pack the vectors of a text's tokens. number: "<f2" takes half the bytes, and rounds in the fourth digit."""
    return COLBERT_HEAD.pack(number.encode(), colbert.shape[1]) + colbert.astype(number).tobytes()


def unpack_colbert(stored: bytes) -> Float32:
    number, size = COLBERT_HEAD.unpack_from(stored)
    numbers = np.frombuffer(stored, number.rstrip(b"\0").decode(), offset=COLBERT_HEAD.size)
    return numbers.astype(np.float32).reshape(-1, size)


def checksum(*parts: bytes) -> int:
    """CRC-32 of the parts and of their lengths."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, zlib.crc32(len(part).to_bytes(8, "little"), crc))
    return crc
