"""What a migration writes to the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from vecferry.stores.pgvector.binary import BYTEA_OID, TEXT_OID, Binary, array
from vecferry.stores.pgvector.catalogue import Columns, HeadColumns
from vecferry.stores.pgvector.checksum import checksum, digest_sql
from vecferry.stores.pgvector.connection import Fragment, identifier
from vecferry.stores.pgvector.session import TableSession
from vecferry.stores.protocol import Then, nothing_more
from vecferry.stores.values import Key, NewVector, Side

ROWS_PER_STATEMENT = 64
"""So that the server is at work on one part while the next is put together."""


@dataclass(frozen=True)
class Destination:
    """The columns that a side is written to.

    adopted: the checksum column of the old side, and what is in it if that side counts as right; None from the first
    switch on, and for the old side itself.
    """

    vector: str
    checksum: str
    heads: HeadColumns
    adopted: tuple[str, Fragment] | None = None

    @property
    def rows_at_once(self) -> int:
        """Arrays of arrays would have to be of one length."""
        return ROWS_PER_STATEMENT if self.heads.colbert is None else 1


class PgWriter:
    """What a migration writes to the rows."""

    def __init__(self, session: TableSession) -> None:
        self._session, self._db, self._table, self._sql = session, session.db, session.table, session.sql
        self._guard, self._locks, self._outbox = session.guard, session.locks, session.outbox
        self._ledger, self._catalogue = session.ledger, session.catalogue

    def write(self, side: Side, vectors: Sequence[NewVector], then: Then = nothing_more) -> set[Key]:
        """Write vectors to rows whose text is unchanged.

        A row that somebody else is writing now is left out too: so we wait for nobody, and nobody can be in a deadlock
        with us. What is left out is captured in the same transaction.
        """
        with self._guard.transaction():
            written = self._write(side, vectors) if vectors else set()
            self._outbox.add([new.key for new in vectors if new.key not in written], side)
            then(written)
        return written

    def _write(self, side: Side, vectors: Sequence[NewVector]) -> set[Key]:
        self._locks.lock("ROW EXCLUSIVE")  # the columns keep their names
        to = self._destination(side, self._catalogue.columns())
        parts = (vectors[i : i + to.rows_at_once] for i in range(0, len(vectors), to.rows_at_once))
        rows = self._db.rows_of_many(self._guarded_update(to), (self._params(part, to) for part in parts))
        return {tuple(key) for key in rows}

    def _destination(self, side: Side, columns: Columns) -> Destination:
        is_kept_by_others = side is Side.NEW and not self._ledger.was_switched(self._table.target)
        adopted = self._adoption(columns) if is_kept_by_others else None
        return Destination(columns.required(side), columns.checksum(side), columns.heads(side), adopted)

    def _adoption(self, columns: Columns) -> tuple[str, Fragment]:
        """Return the checksum column and what it becomes: what the application has on the old side counts as right."""
        present = sql.SQL("CASE WHEN {} IS NOT NULL THEN {} END").format(
            self._sql.column(columns.required(Side.OLD)), self._session.checksum(Side.OLD, columns)
        )
        return columns.checksum(Side.OLD), present

    def _guarded_update(self, to: Destination) -> sql.Composed:
        """Lock the rows whose text is as it was, where that is possible at once, and write those.

        They are found again by their place, which is measurably cheaper than by their key. A row that was
        written between the beginning of the statement and its lock has another place by then, and is left out.
        """
        names = [identifier(f"k{i}") for i in range(len(self._table.key))]
        sent: dict[str, Fragment] = {
            "digest": sql.SQL("bytea"),
            "vector": self._sql.type_name(self._table.kind),
            "checksum": sql.SQL("bytea"),
        }
        assigned: dict[str, Fragment] = {to.vector: sql.SQL("free.vector"), to.checksum: sql.SQL("free.checksum")}
        if to.heads.sparse is not None:
            sent["sparse"], assigned[to.heads.sparse] = self._sql.type_name("sparsevec"), sql.SQL("free.sparse")
        if to.heads.colbert is not None:
            assigned[to.heads.colbert] = self._sql.placeholder("halfvec[]")
        if to.adopted is not None:
            column, checksum = to.adopted
            assigned[column] = checksum
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
            table=self._sql.name,
            same_key=self._sql.same_key(self._sql.cast([sql.SQL("given.{}").format(name) for name in names])),
            text_digest=digest_sql(self._sql.text),
            assigned=sql.SQL(", ").join(
                sql.SQL("{} = {}").format(identifier(column), value) for column, value in assigned.items()
            ),
            written=sql.SQL(", ").join(sql.SQL("free.{}").format(name) for name in names),
        )

    def _params(self, vectors: Sequence[NewVector], to: Destination) -> list[Binary | None]:
        """Return the parameters in the order of the placeholders."""
        types = self._table.types
        stored = [self._session.stored(new.digest, new.vectors, to.heads) for new in vectors]
        params: list[Binary | None] = [
            array(TEXT_OID, [part.encode() for part in parts])
            for parts in zip(*(vector.key for vector in vectors), strict=True)
        ]
        params.append(array(BYTEA_OID, [each.digest for each in stored]))
        params.append(array(types[self._table.kind], [each.vector for each in stored]))
        params.append(array(BYTEA_OID, [checksum(each) for each in stored]))
        if to.heads.sparse is not None:
            params.append(array(types["sparsevec"], [each.sparse for each in stored]))
        if to.heads.colbert is not None:
            (only,) = stored
            params.append(only.colbert)
        return params
