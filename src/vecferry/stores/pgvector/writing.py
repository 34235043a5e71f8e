"""What a migration writes to the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    is_served, is_beside: whether these vectors are in the application's column, and in a side table. adopted: what
    columns of the old side become where that counts as right; none from the first switch on, and for that side itself.
    """

    vector: str
    checksum: str
    heads: HeadColumns
    is_served: bool
    is_beside: bool
    adopted: Mapping[str, Fragment]

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
        rows = self._db.rows_of_many(self._guarded_write(to), (self._params(part, to) for part in parts))
        return {tuple(key) for key in rows}

    def _destination(self, side: Side, columns: Columns) -> Destination:
        is_kept_by_others = side is Side.NEW and not self._ledger.was_switched(self._session.migration)
        digest = sql.SQL("given.digest" if columns.beside else "free.digest")
        return Destination(
            vector=columns.required(side),
            checksum=columns.checksum(side),
            heads=columns.heads(side),
            is_served=side is columns.serving,
            is_beside=bool(columns.beside),
            adopted=self._session.adoption(columns, digest) if is_kept_by_others else {},
        )

    def _guarded_write(self, to: Destination) -> sql.Composed:
        """Lock the rows whose text is as it was, where that is possible at once, and write those.

        They are found again by their place, which is measurably cheaper than by their key. A row that was
        written between the beginning of the statement and its lock has another place by then, and is left out.
        In a side table they are written by their key, behind the lock of the row that they belong to.
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
        free = sql.SQL(
            "WITH given AS (SELECT * FROM unnest({arrays}) AS u({columns})),"
            " free AS MATERIALIZED (SELECT {place}, given.*{read} FROM {table} AS t, given"
            " WHERE {same_key} AND {in_part} AND {text_digest} = given.digest FOR NO KEY UPDATE OF t SKIP LOCKED)"
        ).format(
            place=self._sql.place,
            read=_read(to.adopted) if to.is_beside else sql.SQL(""),
            arrays=sql.SQL(", ").join(
                sql.SQL("%s::{}[]").format(kind) for kind in [sql.SQL("text")] * len(names) + [*sent.values()]
            ),
            columns=sql.SQL(", ").join([*names, *map(identifier, sent)]),
            table=self._sql.name,
            in_part=self._sql.in_part,
            same_key=self._sql.same_key(self._sql.cast([sql.SQL("given.{}").format(name) for name in names])),
            text_digest=digest_sql(self._sql.text),
        )
        written = [sql.SQL("free.{}").format(name) for name in names]
        if not to.is_beside:
            return free + self._update(assigned | dict(to.adopted), written)
        return free + self._write_beside(to, written)

    def _update(self, assigned: Mapping[str, Fragment], returned: Sequence[Fragment]) -> sql.Composed:
        return sql.SQL(" UPDATE {} AS t SET {} FROM free WHERE {} RETURNING {}").format(
            self._sql.name,
            sql.SQL(", ").join(sql.SQL("{} = {}").format(identifier(name), value) for name, value in assigned.items()),
            self._sql.at_place("free"),
            sql.SQL(", ").join(returned),
        )

    def _write_beside(self, to: Destination, written: Sequence[Fragment]) -> sql.Composed:
        """Write to the side table, which has a copy of the vectors that serve too, and those to the table as well."""
        values: dict[str, Fragment] = {to.vector: sql.SQL("free.vector"), to.checksum: sql.SQL("free.checksum")}
        update, rows = sql.Composed([]), sql.SQL("free")
        if to.is_served:
            served = self._update({to.vector: sql.SQL("free.vector")}, [sql.SQL("free.*")])
            update, rows = sql.SQL(", served AS ({})").format(served), sql.SQL("served AS free")
        adopted = {name: sql.SQL("free.{}").format(_alias(name)) for name in to.adopted}
        upsert = self._sql.upsert_sides(values | adopted, self._sql.cast(written), rows)
        return sql.SQL("{}, beside AS ({}) SELECT {} FROM {}").format(update, upsert, sql.SQL(", ").join(written), rows)

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


def _read(values: Mapping[str, Fragment]) -> sql.Composed:
    """Return more of a SELECT list: these values of the row."""
    return sql.Composed([sql.SQL(", {} AS {}").format(values[name], _alias(name)) for name in values])


def _alias(column: str) -> sql.Identifier:
    """Return a name for the value of a column, which no other value of the statement has."""
    return identifier(f"of {column}")
