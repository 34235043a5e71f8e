import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecferry.embeddings import SparseVector
from vecferry.encode.stored_vectors import (
    checksum,
    pack_colbert,
    pack_dense,
    pack_sparse,
    unpack_colbert,
    unpack_dense,
    unpack_sparse,
)

RANDOM = np.random.default_rng(0)


def test_dense_vectors_come_back_to_the_last_bit_and_can_be_written_to() -> None:
    dense = RANDOM.standard_normal(1024).astype(np.float32)
    again = unpack_dense(pack_dense(dense))
    np.testing.assert_array_equal(again, dense, strict=True)
    again[0] = 0


@pytest.mark.parametrize("size", [0, 1, 40])
def test_sparse_vectors_come_back_to_the_last_bit(size: int) -> None:
    sparse = SparseVector(np.arange(size, dtype=np.int32) * 6000, RANDOM.random(size, np.float32))
    again = unpack_sparse(pack_sparse(sparse))
    np.testing.assert_array_equal(again.indices, sparse.indices, strict=True)
    np.testing.assert_array_equal(again.weights, sparse.weights, strict=True)


@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_colbert_vectors_come_back_to_the_last_bit_or_as_half_of_the_bytes_kept_them(tokens: int) -> None:
    colbert = RANDOM.standard_normal((tokens, 12)).astype(np.float32)
    np.testing.assert_array_equal(unpack_colbert(pack_colbert(colbert)), colbert, strict=True)
    half = colbert.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(unpack_colbert(pack_colbert(colbert, "<f2")), half, strict=True)


def test_a_part_of_a_row_of_floats_is_packed_too() -> None:
    rows = RANDOM.standard_normal((4, 6)).astype(np.float32)
    np.testing.assert_array_equal(unpack_colbert(pack_colbert(rows[:, ::2])), rows[:, ::2])
    np.testing.assert_array_equal(unpack_dense(pack_dense(rows[:, 1])), rows[:, 1])


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=4), st.data())
def test_a_checksum_knows_each_bit_and_where_a_part_ends(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    if parts != [whole]:
        assert checksum(*parts) != checksum(whole)
    if whole:
        place = data.draw(st.integers(0, 8 * len(whole) - 1))
        changed = (int.from_bytes(whole) ^ (1 << place)).to_bytes(len(whole))
        assert checksum(changed) != checksum(whole)
