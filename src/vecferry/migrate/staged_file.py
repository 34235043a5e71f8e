"""One file of staged embeddings, in Parquet by `pyarrow`. One row for each `NewVector`.

    key             list<string>
    digest          binary, SHA-256 of the text; empty where there is none
    reason          string, of a dead letter
    held            bool, the vectors are in this row. Else it is a dead letter, or another row has them,
                    of this file or of another
    crc             uint32, over all else in the row
    dense, sparse, colbert      binary, as `encode.stored_vectors` packs them; colbert in float16

The last three are null where a row does not have them. The schema and the number of rows are noted in the file's
metadata once more, so that no damage is taken for data. The module can be imported without `pyarrow`;
`require_pyarrow` tells in time.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vecferry.embeddings import Outputs, TextVectors
from vecferry.encode.stored_vectors import (
    checksum,
    pack_colbert,
    pack_dense,
    pack_sparse,
    unpack_colbert,
    unpack_dense,
    unpack_sparse,
)
from vecferry.errors import MissingExtra, StoreFailed
from vecferry.stores.values import Key

VECTORS = Outputs.ALL.names
ROWS_WITH_COLBERT = 64
"""Rows written and read at once: 64 texts of 8,192 tokens of 1,024 numbers are 2**30 bytes; offsets are int32."""


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
    """Raise MissingExtra if pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise MissingExtra("parquet", "pyarrow")


# --- writing --------------------------------------------------------------------------------------


def write(file: BinaryIO, rows: Sequence[StagedRow]) -> None:
    """Write rows to a file. Raises OSError."""
    import pyarrow as pa
    import pyarrow.parquet

    packed = [_packed(row.vectors) for row in rows]
    columns = {
        "key": pa.array([list(row.key) for row in rows], pa.list_(pa.string())),
        "digest": pa.array([row.digest for row in rows], pa.binary()),
        "reason": pa.array([row.reason for row in rows], pa.string()),
        "held": pa.array([row.vectors is not None for row in rows], pa.bool_()),
        "crc": pa.array([_crc(row.key, row.digest, row.reason, packed[i]) for i, row in enumerate(rows)], pa.uint32()),
    } | {name: pa.array([row[i] for row in packed], pa.binary()) for i, name in enumerate(VECTORS)}
    table = pa.table(columns)
    has_colbert = any(row.vectors is not None and row.vectors.colbert is not None for row in rows)
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({"schema": str(table.schema), "rows": str(len(rows))}),
        file,
        row_group_size=ROWS_WITH_COLBERT if has_colbert else None,
        compression="none",
        use_dictionary=False,
        use_compliant_nested_type=False,  # or the schema would come back with other names
        write_page_checksum=True,
        write_statistics=False,
    )


def _packed(vectors: TextVectors | None) -> list[bytes | None]:
    """Pack vectors, in the order of `VECTORS`."""
    if vectors is None:
        return [None] * len(VECTORS)
    sparse, colbert = vectors.sparse, vectors.colbert
    return [
        pack_dense(vectors.dense),
        None if sparse is None else pack_sparse(sparse),
        None if colbert is None else pack_colbert(colbert, "<f2"),
    ]


def _unpacked(dense: bytes | None, sparse: bytes | None, colbert: bytes | None) -> TextVectors | None:
    if dense is None:
        return None
    return TextVectors(
        unpack_dense(dense),
        None if sparse is None else unpack_sparse(sparse),
        None if colbert is None else unpack_colbert(colbert),
    )


def _crc(key: Sequence[str], digest: bytes, reason: str | None, packed: Sequence[bytes | None]) -> int:
    parts = [*(part.encode() for part in key), digest, (reason or "").encode(), *packed]
    return checksum(*(part or b"" for part in parts))


# --- reading --------------------------------------------------------------------------------------


def held_digests(source: Path | BinaryIO) -> dict[int, bytes]:
    """Return the digest of each row that holds its vectors; these are not read. Raises NotReadable, StoreFailed."""
    with _opened(source) as file:
        table = file.read(["digest", "held"])
        digests = table["digest"].to_pylist()
        return {int(row): digests[row] for row in np.flatnonzero(table["held"].to_numpy())}


def read(source: Path | BinaryIO, wanted: Collection[int] | None = None) -> list[StagedRow]:
    """Return the rows of those numbers, or all. Raises NotReadable, StoreFailed."""
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
    """Open the file. Raises NotReadable, StoreFailed, for what is found out while it is being read too."""
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
    names = ("key", "digest", "reason", "crc", *VECTORS)
    rows = []
    for key, digest, reason, crc, *packed in zip(*(table[name].to_pylist() for name in names), strict=True):
        if crc != _crc(key, digest, reason, packed):
            raise NotReadable
        rows.append(StagedRow(tuple(key), digest, reason, _unpacked(*packed)))
    return rows
