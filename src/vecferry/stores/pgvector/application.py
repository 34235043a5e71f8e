"""The application's own writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from psycopg import sql
from psycopg.types.json import Json, Jsonb

from vecferry.errors import StoreSchemaError
from vecferry.stores.pgvector.binary import Binary
from vecferry.stores.pgvector.catalogue import Columns, HeadColumns
from vecferry.stores.pgvector.checksum import checksum
from vecferry.stores.pgvector.connection import Fragment, identifier, verbatim
from vecferry.stores.pgvector.session import TableSession
from vecferry.stores.text_source import FieldText
from vecferry.stores.values import Key, Record, Side, text_digest

Assignments = dict[str, tuple[Fragment, object]]
"""By column: how its value stands in the statement, and the value."""

PLAIN = sql.SQL("%s")


class PgApplicationWriter:
    """The application's writes. What is written by other ways is captured too."""

    def __init__(self, session: TableSession) -> None:
        self._session, self._db, self._table, self._sql = session, session.db, session.table, session.sql
        self._locks, self._catalogue, self._side_resolver = session.locks, session.catalogue, session.side_resolver

    def put(self, records: Sequence[Record], *, fingerprint: str) -> None:
        """Write rows with their vectors, all or none.

        payload: values as psycopg takes them; anything for a JSON column.

        A key that is GENERATED ALWAYS AS IDENTITY is taken as it is given. Raises StoreSchemaError for other columns
        that the database fills.

        Rows are taken by ascending key, so that two who put the same ones wait for each other and nothing worse.
        """
        dimensions = {len(record.vectors.dense) for record in records if record.vectors is not None}
        with self._db.transaction():
            self._locks.lock("ROW EXCLUSIVE")  # no switch comes between this and the end
            side = self._side_resolver.written(fingerprint, dimensions).side
            columns = self._catalogue.columns()
            in_order = sorted(records, key=lambda record: record.key)
            self._refuse_filled({name for record in records for name in record.payload}, columns)
            for names, group in groupby(in_order, key=lambda record: tuple(record.payload)):
                self._refuse_unknown(names, columns)
                of_names = list(group)
                rows = [self._assignments(record, side, columns) for record in of_names]
                query = self._upsert({name: placeholder for name, (placeholder, _) in rows[0].items()})
                written = self._db.rows_of_many(query, ([value for _, value in row.values()] for row in rows))
                self._refuse_outside(of_names, written)

    def _refuse_unknown(self, names: Sequence[str], columns: Columns) -> None:
        reserved = columns.ours() | {self._table.text} | {column.name for column in self._table.key}
        for name in names:
            if name not in columns.by_name or name in reserved:
                what = f"{self._table.full_name} has no column {name} for the payload of a record"
                raise StoreSchemaError(what, "Names are spelled as in the database; key, text and vectors stand apart.")

    def _refuse_filled(self, payload: set[str], columns: Columns) -> None:
        """Raise StoreSchemaError for what PostgreSQL takes no value for."""
        named, own = payload & columns.by_name.keys(), [self._table.text, *(column.name for column in self._table.key)]
        for name in sorted(name for name in named if columns.by_name[name].is_filled):
            what = f"the column {name} of {self._table.full_name} is filled by the database"
            raise StoreSchemaError(what, "It is no part of a payload: leave it out.")
        for name in own:
            if name in columns.by_name and columns.by_name[name].is_computed:
                what = f"the column {name} of {self._table.full_name} is filled by the database"
                raise StoreSchemaError(what, "Write these rows by SQL of your own; what is written is captured.")

    def _refuse_outside(self, records: Sequence[Record], written: Sequence[tuple[Any, ...]]) -> None:
        """Raise StoreSchemaError for a row that is not of the part, or would not be.

        written: of those that were, whether it is now, and the key.
        """
        where, table = self._table.where, self._table.full_name
        if where is None:
            return
        left = [tuple(key) for is_inside, *key in written if not is_inside]
        kept = {tuple(key) for _, *key in written}
        if left or len(written) < len(records):
            key = left[0] if left else next((each.key for each in records if each.key not in kept), records[0].key)
            remedy = f"Rows of this part are {where.text}: give these columns in the payload of the document."
            raise StoreSchemaError(
                f"the row {', '.join(key)} of {table} is not of the part, and is left as it is", remedy
            )

    def _assignments(self, record: Record, side: Side, columns: Columns) -> Assignments:
        table = self._table
        heads = self._served_heads(columns)
        stored = self._session.stored(text_digest(record.text), record.vectors, heads)
        assignments: Assignments = {
            column.name: (sql.SQL("%s::text::") + verbatim(column.type), part)
            for column, part in zip(table.key, record.key, strict=True)
        }
        assignments[table.text] = (PLAIN, record.text)
        assignments[table.vector] = (self._sql.placeholder(table.kind), _binary(stored.vector))
        if heads.sparse is not None:
            assignments[heads.sparse] = (self._sql.placeholder("sparsevec"), _binary(stored.sparse))
        if heads.colbert is not None:
            assignments[heads.colbert] = (self._sql.placeholder("halfvec[]"), stored.colbert)
        name = columns.checksum(side)
        if name in columns.by_name and name not in columns.beside:  # current at once, unless there is no vector to be
            is_known = stored.vector is not None and isinstance(table.source, FieldText)
            assignments[name] = (PLAIN, checksum(stored) if is_known else None)
        for name, value in record.payload.items():
            assignments[name] = (PLAIN, _adaptable(value, columns.by_name[name].kind))
        return assignments

    def _served_heads(self, columns: Columns) -> HeadColumns:
        """Return the heads of the side that serves: those of a side that is still being made are the migration's."""
        if columns.of_side(Side.NEW) not in (None, self._table.vector):
            return HeadColumns()
        return columns.heads(Side.NEW)

    def _upsert(self, placeholders: Mapping[str, Fragment]) -> sql.Composed:
        keys = {column.name for column in self._table.key}
        return sql.SQL(
            "INSERT INTO {} AS t ({}) OVERRIDING SYSTEM VALUE VALUES ({}) ON CONFLICT ({}) DO UPDATE SET {} WHERE {}"
            " RETURNING {} IS TRUE, {}"
        ).format(
            self._sql.name,
            sql.SQL(", ").join(map(identifier, placeholders)),
            sql.SQL(", ").join(placeholders.values()),
            sql.SQL(", ").join(identifier(column.name) for column in self._table.key),
            sql.SQL(", ").join(
                sql.SQL("{0} = excluded.{0}").format(identifier(name)) for name in placeholders if name not in keys
            ),
            self._sql.in_part,
            self._sql.in_part,
            self._sql.keys_as_text,
        )

    def remove(self, keys: Sequence[Key]) -> None:
        """Delete rows. They are locked by ascending key first, as in `put`."""
        if not keys:
            return
        among, params = self._sql.among(keys)
        with self._db.transaction():
            in_order = sql.SQL(", ").join(
                sql.SQL('{}::text COLLATE "C"').format(self._sql.column(column.name)) for column in self._table.key
            )
            lock = sql.SQL("SELECT FROM {} AS t WHERE {} AND {} ORDER BY {} FOR UPDATE")
            self._db.execute(lock.format(self._sql.name, among, self._sql.in_part, in_order), params)
            delete = sql.SQL("DELETE FROM {} AS t WHERE {} AND {}")
            self._db.execute(delete.format(self._sql.name, among, self._sql.in_part), params)


def _binary(data: bytes | None) -> Binary | None:
    return None if data is None else Binary(data)


def _adaptable(value: object, kind: str) -> object:
    wrapper = {"json": Json, "jsonb": Jsonb}.get(kind)
    return value if wrapper is None or value is None or isinstance(value, Json | Jsonb) else wrapper(value)
