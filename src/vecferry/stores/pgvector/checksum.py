"""Whether a stored vector is still the one that was made of the row's text: a checksum over both.

    sha256(sha256(text) || vector || sparse || colbert)

Vectors are taken in the form in which the server sends them, the array without its header; what is NULL adds nothing.
Whoever else writes the text or a vector leaves a checksum that does not match, also one who takes a change of the
text back and leaves the vector as it was, or sets the vector to NULL. `checksum` and `checksum_sql` are the same
function, in this process and in the server; `tests/stores/test_pgvector_checksum.py` holds one against the other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from psycopg import sql

from vecferry.stores.pgvector.binary import Binary
from vecferry.stores.pgvector.connection import Fragment, identifier

ARRAY_HEADER_BYTES = 12
"""Dimensions, flags, and the number of the element's type, which is another one in each database."""


@dataclass(frozen=True)
class Stored:
    """What of a row the checksum is over. vector, sparse, colbert: as they are sent; None where the column is NULL
    or not there.
    """

    digest: bytes
    vector: bytes | None
    sparse: bytes | None = None
    colbert: Binary | None = None


def checksum(stored: Stored) -> bytes:
    """Return SHA-256, 32 bytes. digest: of the text, as `values.text_digest`."""
    colbert = None if stored.colbert is None else stored.colbert.data[ARRAY_HEADER_BYTES:]
    parts = (stored.digest, stored.vector, stored.sparse, colbert)
    return hashlib.sha256(b"".join(part for part in parts if part is not None)).digest()


@dataclass(frozen=True)
class StoredColumns:
    """The same, as expressions over a row. digest: of its text; kind: of the vector column, "vector" or "halfvec".

    extension: pgvector's schema. sparse, colbert: None where there is no such column.
    """

    extension: str
    kind: str
    digest: Fragment
    vector: Fragment
    sparse: Fragment | None = None
    colbert: Fragment | None = None


def digest_sql(text: Fragment) -> sql.Composed:
    """Return `values.text_digest`, computed by the server."""
    return sql.SQL("coalesce(sha256(convert_to({}, 'UTF8')), ''::bytea)").format(text)


def checksum_sql(stored: StoredColumns) -> sql.Composed:
    """Return an expression of type bytea."""
    parts = [stored.digest, _sent(stored.extension, f"{stored.kind}_send", stored.vector)]
    if stored.sparse is not None:
        parts.append(_sent(stored.extension, "sparsevec_send", stored.sparse))
    if stored.colbert is not None:
        elements = sql.SQL("substring(array_send({}) FROM {})").format(
            stored.colbert, sql.Literal(ARRAY_HEADER_BYTES + 1)
        )
        parts.append(sql.SQL("coalesce({}, ''::bytea)").format(elements))
    return sql.SQL("sha256({})").format(sql.SQL(" || ").join(parts))


def _sent(extension: str, function: str, column: Fragment) -> sql.Composed:
    return sql.SQL("coalesce({}({}), ''::bytea)").format(identifier(extension, function), column)
