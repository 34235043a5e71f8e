"""What a migration writes to the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from psycopg import sql

from vecferry.stores import Key, NewVector, Patience, Side, Then, nothing_more
from vecferry.stores.pgvector.binary import (
    BYTEA_OID,
    TEXT_OID,
    Binary,
    array,
    colbert_array,
    sparse_bytes,
    vector_bytes,
)
from vecferry.stores.pgvector.catalogue import Columns
from vecferry.stores.pgvector.connection import Fragment, identifier
from vecferry.stores.pgvector.session import Session, digest_of
from vecferry.stores.pgvector.table import COLBERT, SPARSE

T = TypeVar("T")

ROWS_PER_STATEMENT = 64
"""So that the server is at work on one part while the next is put together."""


@dataclass(frozen=True)
class Destination:
    """The columns that a side is written to. digest, sparse and colbert: None where there is nothing of it to write."""

    vector: str
    digest: str | None
    sparse: str | None
    colbert: str | None

    @classmethod
    def of(cls, side: Side, columns: Columns) -> Destination:
        vector = columns.required(side)
        if side is Side.OLD:
            return cls(vector, None, None, None)
        return cls(vector, columns.digest, columns.head(SPARSE), columns.head(COLBERT))

    @property
    def rows_at_once(self) -> int:
        """Arrays of arrays would have to be of one length."""
        return ROWS_PER_STATEMENT if self.colbert is None else 1


class PgWriting(Session):
    """`stores.Writing`, as far as it is about rows."""

    def write(self, side: Side, vectors: Sequence[NewVector], then: Then = nothing_more) -> set[Key]:
        """See `Writing.write`. A row that somebody else is writing just now is left as it is too: so we wait for
        nobody, and nobody can be in a deadlock with us.
        """
        with self._fence.transaction():
            written = self._write(side, vectors) if vectors else set()
            then(written)
        return written

    def _write(self, side: Side, vectors: Sequence[NewVector]) -> set[Key]:
        self._locks.lock("ROW EXCLUSIVE")  # the columns keep their names
        to = Destination.of(side, self._catalogue.columns())
        parts = (vectors[i : i + to.rows_at_once] for i in range(0, len(vectors), to.rows_at_once))
        rows = self._db.rows_of_many(self._guarded_update(to), (self._params(part, to) for part in parts))
        return {tuple(key) for key in rows}

    def _guarded_update(self, to: Destination) -> sql.Composed:
        """Locks the rows whose text is as it was, where that is possible at once, and writes those.

        They are found again by their place, which is measurably cheaper than by their key. A row that was
        written between the beginning of the statement and its lock has another place by then, and is left out.
        """
        names = [identifier(f"k{i}") for i in range(len(self._table.key))]
        sent: dict[str, Fragment] = {"digest": sql.SQL("bytea"), "vector": self._type(self._table.kind)}
        assigned: dict[str, Fragment] = {to.vector: sql.SQL("free.vector")}
        if to.digest is not None:
            assigned[to.digest] = sql.SQL("free.digest")
        if to.sparse is not None:
            sent["sparse"], assigned[to.sparse] = self._type("sparsevec"), sql.SQL("free.sparse")
        if to.colbert is not None:
            assigned[to.colbert] = self._given_as("halfvec[]")
        return sql.SQL(
            "WITH given AS (SELECT * FROM unnest({arrays}) AS u({columns})),"
            " free AS MATERIALIZED (SELECT t.ctid AS place, given.* FROM {table} AS t, given"
            " WHERE {same_key} AND {text_digest} = given.digest FOR NO KEY UPDATE OF t SKIP LOCKED)"
            " UPDATE {table} AS t SET {assigned} FROM free WHERE t.ctid = free.place RETURNING {written}"
        ).format(
            arrays=sql.SQL(", ").join(
                sql.SQL("%s::{}[]").format(kind) for kind in [sql.SQL("text")] * len(names) + [*sent.values()]
            ),
            columns=sql.SQL(", ").join([*names, *map(identifier, sent)]),
            table=self._name,
            same_key=self._same_key(self._cast([sql.SQL("given.{}").format(name) for name in names])),
            text_digest=digest_of(sql.SQL("t.{}::text").format(identifier(self._table.text))),
            assigned=sql.SQL(", ").join(
                sql.SQL("{} = {}").format(identifier(column), value) for column, value in assigned.items()
            ),
            written=sql.SQL(", ").join(sql.SQL("free.{}").format(name) for name in names),
        )

    def _params(self, vectors: Sequence[NewVector], to: Destination) -> list[Binary | None]:
        """In the order of the placeholders."""
        kind, types = self._table.kind, self._table.types
        params: list[Binary | None] = [
            array(TEXT_OID, [part.encode() for part in parts])
            for parts in zip(*(vector.key for vector in vectors), strict=True)
        ]
        params.append(array(BYTEA_OID, [each.digest for each in vectors]))
        dense = [None if each.vector is None else vector_bytes(each.vector, kind) for each in vectors]
        params.append(array(types[kind], dense))
        if to.sparse is not None:
            sparse = [None if each.sparse is None else sparse_bytes(each.sparse) for each in vectors]
            params.append(array(types["sparsevec"], sparse))
        if to.colbert is not None:
            (only,) = vectors
            params.append(None if only.colbert is None else colbert_array(only.colbert, types["halfvec"]))
        return params

    def retry_dead_letters(self) -> None:
        with self._fence.transaction():
            self._locks.lock("ROW EXCLUSIVE")
            side = identifier(self._catalogue.columns().required(Side.NEW))
            query = sql.SQL("UPDATE {table} SET {digest} = NULL WHERE {side} IS NULL AND {digest} IS NOT NULL")
            self._db.execute(query.format(table=self._name, digest=self._digest, side=side))

    # --- keeping things together ------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._fence.transaction():
            yield

    def exclusively(self, work: Callable[[], T], patience: Patience) -> T:
        """See `Writing.exclusively`. Readers are let through until `work` changes the table itself."""
        return self._locks.without_writers(work, patience)

    @contextmanager
    def runner(self, lease_s: float) -> Iterator[None]:
        with self._fence.holding(self.target, lease_s):
            yield
