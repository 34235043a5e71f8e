"""One file of staged embeddings, in Parquet by `pyarrow`. One row for each `NewVector`.

    key             list<string>
    digest          binary, SHA-256 of the text; empty where there is none
    reason          string, of a dead letter
    held            bool, the vectors are in this row. Else it is a dead letter, or another row has them,
                    of this file or of another
    crc             uint32, over all else in the row
    vector          fixed_size_list<float32>[D]
    sparse_ids, sparse_weights      list<int32>, list<float32>
    colbert         list<fixed_size_list<float16>[D]>; half the bytes, rounded in the fourth digit

The last four are there where a row has them. The schema and the number of rows are noted in the file's
metadata once more, so that no damage is taken for data. The module can be imported without `pyarrow`;
`require_pyarrow` tells in time.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vecferry.embeddings import Float32, SparseVector, TextVectors
from vecferry.errors import MissingExtra, StoreFailed
from vecferry.stores.values import Key

ROWS_WITH_COLBERT = 64
"""Rows written and read at once: 64 texts of 8,192 tokens of 1,024 numbers are 2**29; offsets are int32."""


@dataclass(frozen=True, eq=False)
class StagedRow:
    """vectors: None for a dead letter, which has a reason, and for a digest that another row holds."""

    key: Key
    digest: bytes
    reason: str | None
    vectors: TextVectors | None


class NotReadable(Exception):
    """The file is not there, or not as it was written."""


def require_pyarrow() -> None:
    """Raises MissingExtra."""
    if find_spec("pyarrow") is None:
        raise MissingExtra("parquet", "pyarrow")


# --- writing --------------------------------------------------------------------------------------


def write(file: BinaryIO, rows: Sequence[StagedRow]) -> None:
    """Raises OSError."""
    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        "key": pa.array([list(row.key) for row in rows], pa.list_(pa.string())),
        "digest": pa.array([row.digest for row in rows], pa.binary()),
        "reason": pa.array([row.reason for row in rows], pa.string()),
        "held": pa.array([row.vectors is not None for row in rows], pa.bool_()),
        "crc": pa.array([_crc(row) for row in rows], pa.uint32()),
    } | _heads([row.vectors for row in rows])
    table = pa.table(columns)
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({"schema": str(table.schema), "rows": str(len(rows))}),
        file,
        row_group_size=ROWS_WITH_COLBERT if "colbert" in columns else None,
        compression="none",
        use_dictionary=False,
        use_compliant_nested_type=False,  # or the schema would come back with other names
        write_page_checksum=True,
    )


def _crc(row: StagedRow) -> int:
    parts = [*(part.encode() for part in row.key), row.digest, (row.reason or "").encode()]
    if row.vectors is not None:
        sparse, colbert = row.vectors.sparse, row.vectors.colbert
        parts.append(row.vectors.dense.astype(np.float32).tobytes())
        parts += [] if sparse is None else [sparse.indices.astype(np.int32).tobytes(), sparse.weights.tobytes()]
        parts += [] if colbert is None else [colbert.astype(np.float16).tobytes()]
    return zlib.crc32(b"".join(parts))


def _heads(rows: list[TextVectors | None]) -> dict[str, Any]:
    """The columns of the vectors of these rows; None where a row holds none."""
    sparse = [None if held is None else held.sparse for held in rows]
    colbert = [None if held is None else held.colbert for held in rows]
    columns = {}
    if any(held is not None for held in rows):
        columns["vector"] = _vectors([None if held is None else held.dense for held in rows])
    if any(vector is not None for vector in sparse):
        columns["sparse_ids"] = _lists([None if vector is None else vector.indices for vector in sparse], np.int32)
        weights = [None if vector is None else vector.weights for vector in sparse]
        columns["sparse_weights"] = _lists(weights, np.float32)
    if any(vector is not None for vector in colbert):
        columns["colbert"] = _lists(colbert, np.float16)
    return columns


def _vectors(rows: list[Float32 | None]) -> Any:
    """N vectors of D numbers, or none."""
    import pyarrow as pa

    missing = np.array([row is None for row in rows])
    filled = np.stack([row for row in rows if row is not None])
    dense = np.zeros((len(rows), filled.shape[1]), np.float32)  # [N, D]
    dense[~missing] = filled
    return pa.FixedSizeListArray.from_arrays(pa.array(dense.ravel()), dense.shape[1], mask=pa.array(missing))


def _lists(rows: Sequence[NDArray[Any] | None], dtype: type[np.generic]) -> Any:
    """N lists of numbers, or of vectors, or none."""
    import pyarrow as pa

    flat = np.concatenate([row for row in rows if row is not None]).astype(dtype)
    values = pa.array(flat.ravel())
    if flat.ndim == 2:
        values = pa.FixedSizeListArray.from_arrays(values, flat.shape[1])
    offsets = accumulate((0 if row is None else len(row) for row in rows), initial=0)
    missing = pa.array([row is None for row in rows])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=missing)


# --- reading --------------------------------------------------------------------------------------


def held_digests(source: Path | BinaryIO) -> dict[int, bytes]:
    """The digest of each row that holds its vectors; these are not read. Raises NotReadable, StoreFailed."""
    with _opened(source) as file:
        table = file.read(["digest", "held"])
        digests = table["digest"].to_pylist()
        return {int(row): digests[row] for row in np.flatnonzero(table["held"].to_numpy())}


def read(source: Path | BinaryIO, wanted: Collection[int] | None = None) -> list[StagedRow]:
    """The rows of those numbers, or all. Raises NotReadable, StoreFailed."""
    found, start = [], 0
    with _opened(source) as file:
        for group in range(file.num_row_groups):
            numbers = range(start, start + file.metadata.row_group(group).num_rows)
            start = numbers.stop
            if numbers and (wanted is None or any(row in numbers for row in wanted)):
                rows = _rows(file.read_row_group(group))
                found += [rows[i] for i, number in enumerate(numbers) if wanted is None or number in wanted]
        if start != file.metadata.num_rows:
            raise NotReadable
    return found


@contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[Any]:
    """The file; what is found out about it while it is being read too."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(source, page_checksum_verification=True) as file:
            noted = file.schema_arrow.metadata or {}
            schema = str(file.schema_arrow.remove_metadata())
            if (noted.get(b"schema"), noted.get(b"rows")) != (schema.encode(), b"%d" % file.metadata.num_rows):
                raise NotReadable
            yield file
    except FileNotFoundError as exc:
        raise NotReadable from exc
    except (pa.ArrowException, OSError, KeyError, ValueError) as exc:
        if isinstance(exc, OSError) and exc.errno:  # the system's word; a damaged page has no number
            raise StoreFailed("staging", f"{source}: {os.strerror(exc.errno)}") from exc
        raise NotReadable from exc


def _rows(table: Any) -> list[StagedRow]:
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    vectors = _staged_vectors(columns)
    keys, digests, reasons, held, crcs = (
        columns[name].to_pylist() for name in ("key", "digest", "reason", "held", "crc")
    )
    rows = [
        StagedRow(tuple(key), digest, reason, next(vectors, None) if is_held else None)
        for key, digest, reason, is_held in zip(keys, digests, reasons, held, strict=True)
    ]
    if [_crc(row) for row in rows] != crcs:
        raise NotReadable
    return rows


def _staged_vectors(columns: dict[str, Any]) -> Iterator[TextVectors]:
    """Of the rows that hold them, in their order."""
    if "vector" not in columns:
        return
    dense = columns["vector"].flatten().to_numpy().reshape(-1, columns["vector"].type.list_size).copy()  # [N, D]
    ids, weights, colbert = (_parts(columns.get(name)) for name in ("sparse_ids", "sparse_weights", "colbert"))
    for i, vector in enumerate(dense):
        yield TextVectors(
            vector,
            SparseVector(ids[i], weights[i]) if ids and weights else None,
            colbert[i].astype(np.float32) if colbert else None,
        )


def _parts(column: Any) -> list[NDArray[Any]]:
    """The lists that are there, each as an array of its own."""
    import pyarrow as pa

    if column is None:
        return []
    flat = column.flatten()
    if pa.types.is_fixed_size_list(flat.type):
        values = flat.flatten().to_numpy().reshape(-1, flat.type.list_size)
    else:
        values = flat.to_numpy()
    ends = np.cumsum(column.drop_null().value_lengths().to_numpy())
    return [part.copy() for part in np.split(values, ends[:-1])]
