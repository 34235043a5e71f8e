"""The checksum of a row, computed in this process and by the server."""

from dataclasses import replace

import numpy as np
import psycopg
import pytest
from psycopg import sql

from vecferry.embeddings import SparseVector
from vecferry.stores.pgvector.binary import Binary, BinaryDumper, colbert_array, sparse_bytes, vector_bytes
from vecferry.stores.pgvector.checksum import Stored, StoredColumns, checksum, checksum_sql, digest_sql
from vecferry.stores.values import text_digest

TEXTS = ["a text", "", None, "Straße 🚢 \N{ARABIC LETTER SHEEN}", "line\r\nline\\", "a" * 100_000]
VECTOR = np.array([0.1, -1e-7, 0.0, -0.0, 65504.0], np.float32)
SPARSE = SparseVector(np.array([0, 7, 250001], np.int32), np.array([0.5, 1e-3, 3.0], np.float32))
COLBERT = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)


@pytest.fixture
def table(connection: psycopg.Connection) -> psycopg.Connection:
    connection.adapters.register_dumper(Binary, BinaryDumper)
    connection.execute(
        'CREATE TABLE docs ("body %" text, vector vector(5), halfvec halfvec(5), sparse sparsevec(250002),'
        " colbert halfvec(5)[])"
    )
    return connection


def halfvec_oid(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT 'halfvec'::regtype::oid::bigint").fetchone()
    assert row is not None
    return int(row[0])


def server_checksum(connection: psycopg.Connection, kind: str, text: str | None, stored: Stored) -> bytes:
    """Return the server's checksum of a row, sent as it is when a migration writes."""
    connection.execute("DELETE FROM docs")
    connection.execute(
        'INSERT INTO docs ("body %%", vector, halfvec, sparse, colbert)'
        " SELECT %s, CASE %s WHEN 'vector' THEN %s::vector END, CASE %s WHEN 'halfvec' THEN %s::halfvec END,"
        " %s::sparsevec, %s::halfvec[]",
        [
            text,
            kind,
            _sent(stored.vector) if kind == "vector" else None,
            kind,
            _sent(stored.vector) if kind == "halfvec" else None,
            _sent(stored.sparse),
            stored.colbert,
        ],
    )
    columns = StoredColumns(
        "public",
        kind,
        digest_sql(sql.SQL("{}::text").format(sql.Identifier("body %"))),
        sql.Identifier(kind),
        sql.Identifier("sparse"),
        sql.Identifier("colbert"),
    )
    row = connection.execute(sql.SQL("SELECT {} FROM docs").format(checksum_sql(columns))).fetchone()
    assert row is not None
    return bytes(row[0])


def _sent(data: bytes | None) -> Binary | None:
    return None if data is None else Binary(data)


@pytest.mark.parametrize("kind", ["vector", "halfvec"])
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: "null" if text is None else text[:8] or "empty")
def test_both_are_the_same_of_any_text(table: psycopg.Connection, kind: str, text: str | None) -> None:
    stored = Stored(text_digest(text), vector_bytes(VECTOR, kind))
    assert checksum(stored) == server_checksum(table, kind, text, stored)


@pytest.mark.parametrize("kind", ["vector", "halfvec"])
def test_both_are_the_same_whatever_is_missing_and_differ_by_each_part(table: psycopg.Connection, kind: str) -> None:
    whole = Stored(
        text_digest("a text"),
        vector_bytes(VECTOR, kind),
        sparse_bytes(SPARSE),
        colbert_array(COLBERT, halfvec_oid(table)),
    )
    one_token = colbert_array(COLBERT[:1], halfvec_oid(table))
    cases = [
        whole,
        replace(whole, vector=None),
        replace(whole, vector=vector_bytes(np.nextafter(VECTOR, np.float32(1e5), dtype=np.float32), "vector"))
        if kind == "vector"
        else replace(whole, vector=vector_bytes(VECTOR + np.float32(0.5), kind)),
        replace(whole, sparse=None),
        replace(whole, sparse=sparse_bytes(SparseVector(SPARSE.indices, SPARSE.weights * 2))),
        replace(whole, colbert=None),
        replace(whole, colbert=one_token),
        Stored(whole.digest, None),
        replace(whole, digest=text_digest("another text")),
    ]
    text_of = {whole.digest: "a text"}
    checksums = []
    for stored in cases:
        on_server = server_checksum(table, kind, text_of.get(stored.digest, "another text"), stored)
        assert checksum(stored) == on_server
        checksums.append(on_server)
    assert len(set(checksums)) == len(cases)


def test_a_null_text_and_an_empty_one_are_two_texts(table: psycopg.Connection) -> None:
    null, empty = (Stored(text_digest(text), vector_bytes(VECTOR, "vector")) for text in (None, ""))
    assert server_checksum(table, "vector", None, null) != server_checksum(table, "vector", "", empty)
