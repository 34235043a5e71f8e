"""Which columns, indexes, views and triggers a table has now; asked anew each time, since a switch changes names."""

from __future__ import annotations

from psycopg import sql

from vecferry.errors import StoreSchemaError
from vecferry.stores.pgvector.connection import Database, identifier
from vecferry.stores.pgvector.indexes import VECTOR_INDEXES, VectorIndex
from vecferry.stores.pgvector.table import NEW, OLD, Table, suffixed

COMMENT_PREFIX = "vecferry:space:"


class Catalogue:
    """The catalogue's answers about one table."""

    def __init__(self, database: Database, table: Table) -> None:
        self._db = database
        self._table = table

    def vector_type(self) -> sql.Identifier:
        return identifier(self._table.extension, "vector")

    def columns(self) -> dict[str, tuple[str, int | None, bool]]:
        """By name: (type, dimension of a vector or None, required)."""
        rows = self._db.rows(
            "SELECT attname, atttypid::regtype::text, nullif(atttypmod, -1), attnotnull FROM pg_attribute"
            " WHERE attrelid = %s::oid AND attnum > 0 AND NOT attisdropped",
            [self._table.oid],
        )
        return {name: (kind, dimension, not_null) for name, kind, dimension, not_null in rows}

    def new_side(self) -> str | None:
        columns = self.columns()
        if suffixed(self._table.vector, OLD) in columns:
            return self._table.vector
        side = suffixed(self._table.vector, NEW)
        return side if side in columns else None

    def require_new_side(self) -> str:
        side = self.new_side()
        if side is None:
            target = f"{self._table.schema}.{self._table.name}.{self._table.vector}"
            raise StoreSchemaError(f"{target} has no new side", "It was dropped: run start again.")
        return side

    def space_of(self, column: str) -> str | None:
        rows = self._db.rows(
            "SELECT col_description(attrelid, attnum) FROM pg_attribute WHERE attrelid = %s::oid AND attname = %s",
            [self._table.oid, column],
        )
        comment = rows[0][0] if rows else None
        return comment.removeprefix(COMMENT_PREFIX) if comment and comment.startswith(COMMENT_PREFIX) else None

    def vector_indexes(self, column: str) -> list[VectorIndex]:
        rows = self._db.rows(VECTOR_INDEXES, [self._table.oid, column])
        return [VectorIndex(*row) for row in rows]

    def wanted_indexes(self) -> list[VectorIndex]:
        """Those on the serving vectors that have, or should have, a twin on the new."""
        if suffixed(self._table.vector, OLD) in self.columns():
            return []
        return [index for index in self.vector_indexes(self._table.vector) if index.can_be_recreated(self._table)]

    def index_names(self, column: str) -> set[str]:
        return {index.name for index in self.vector_indexes(column)}

    def is_built(self, index: VectorIndex) -> bool:
        twins = self.vector_indexes(suffixed(self._table.vector, NEW))
        return any(twin.name == index.new_name and twin.valid for twin in twins)

    def views(self) -> tuple[str, ...]:
        rows = self._db.rows(
            "SELECT DISTINCT r.ev_class::regclass::text FROM pg_depend d"
            " JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid"
            " JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid"
            " WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %s::oid AND a.attname = %s ORDER BY 1",
            [self._table.oid, self._table.vector],
        )
        return tuple(name for (name,) in rows)

    def update_triggers(self) -> tuple[str, ...]:
        """Those that fire for an UPDATE of any column."""
        rows = self._db.rows(
            "SELECT tgname::text FROM pg_trigger WHERE tgrelid = %s::oid AND NOT tgisinternal AND tgenabled <> 'D'"
            " AND (tgtype & 16) <> 0 AND cardinality(tgattr::int2[]) = 0 ORDER BY 1",
            [self._table.oid],
        )
        return tuple(name for (name,) in rows)
