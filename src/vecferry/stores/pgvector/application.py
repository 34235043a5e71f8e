"""The application's own writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from psycopg import sql
from psycopg.types.json import Json, Jsonb

from vecferry.errors import StoreSchemaError
from vecferry.stores import Key, Record, Side, text_digest
from vecferry.stores.pgvector.binary import Binary, colbert_array, sparse_bytes, vector_bytes
from vecferry.stores.pgvector.catalogue import Columns
from vecferry.stores.pgvector.connection import Fragment, identifier, verbatim
from vecferry.stores.pgvector.session import Session
from vecferry.stores.pgvector.table import COLBERT, SPARSE

Given = dict[str, tuple[Fragment, object]]
"""By column: how its value stands in the statement, and the value."""

PLAIN = sql.SQL("%s")


class PgApplication(Session):
    """`stores.Application`. What is written by other ways is captured too."""

    def put(self, records: Sequence[Record], *, fingerprint: str) -> None:
        """See `Application.put`. All or none. payload: values as psycopg takes them; anything for a JSON column."""
        dimensions = {len(record.vector) for record in records if record.vector is not None}
        with self._db.transaction():
            self._locks.lock("ROW EXCLUSIVE")  # no switch comes between this and the end
            side = self._spaces.written(fingerprint, dimensions).side
            columns = self._catalogue.columns()
            for names, group in groupby(records, key=lambda record: tuple(record.payload)):
                self._refuse_unknown(names, columns)
                rows = [self._given(record, side, columns) for record in group]
                query = self._upsert({name: placeholder for name, (placeholder, _) in rows[0].items()})
                self._db.execute_many(query, [[value for _, value in row.values()] for row in rows])

    def _refuse_unknown(self, names: Sequence[str], columns: Columns) -> None:
        taken = columns.ours() | {self._table.text} | {column.name for column in self._table.key}
        for name in names:
            if name not in columns.by_name or name in taken:
                what = f"{self._table.schema}.{self._table.name} has no column {name} for the payload of a record"
                raise StoreSchemaError(what, "Names are spelled as in the database; key, text and vectors stand apart.")

    def _given(self, record: Record, side: Side, columns: Columns) -> Given:
        table = self._table
        given: Given = {
            column.name: (sql.SQL("%s::text::") + verbatim(column.type), part)
            for column, part in zip(table.key, record.key, strict=True)
        }
        vector = None if record.vector is None else Binary(vector_bytes(record.vector, table.kind))
        given[table.text] = (PLAIN, record.text)
        given[table.vector] = (self._given_as(table.kind), vector)
        if side is Side.NEW:  # current at once, unless there is no vector that could be
            given[columns.digest] = (PLAIN, None if vector is None else text_digest(record.text))
        given.update(self._given_heads(record, columns))
        for name, value in record.payload.items():
            given[name] = (PLAIN, _adaptable(value, columns.by_name[name].kind))
        return given

    def _given_heads(self, record: Record, columns: Columns) -> Iterator[tuple[str, tuple[Fragment, Binary | None]]]:
        """Of the side that serves: those of a side that is still being made are the migration's."""
        if columns.of_side(Side.NEW) not in (None, self._table.vector):
            return
        if (sparse := columns.head(SPARSE)) is not None:
            value = None if record.sparse is None else Binary(sparse_bytes(record.sparse))
            yield sparse, (self._given_as("sparsevec"), value)
        if (colbert := columns.head(COLBERT)) is not None:
            value = None if record.colbert is None else colbert_array(record.colbert, self._table.types["halfvec"])
            yield colbert, (self._given_as("halfvec[]"), value)

    def _upsert(self, placeholders: Mapping[str, Fragment]) -> sql.Composed:
        keys = {column.name for column in self._table.key}
        return sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT ({}) DO UPDATE SET {}").format(
            self._name,
            sql.SQL(", ").join(map(identifier, placeholders)),
            sql.SQL(", ").join(placeholders.values()),
            self._keys,
            sql.SQL(", ").join(
                sql.SQL("{0} = excluded.{0}").format(identifier(name)) for name in placeholders if name not in keys
            ),
        )

    def remove(self, keys: Sequence[Key]) -> None:
        if keys:
            among, params = self._among(keys)
            self._db.execute(sql.SQL("DELETE FROM {} WHERE {}").format(self._name, among), params)


def _adaptable(value: object, kind: str) -> object:
    wrapper = {"json": Json, "jsonb": Jsonb}.get(kind)
    return value if wrapper is None or value is None or isinstance(value, Json | Jsonb) else wrapper(value)
