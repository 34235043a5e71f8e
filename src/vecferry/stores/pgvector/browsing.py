"""Which columns of vectors a role can see, and some of their rows. Nothing is written, and no lock is waited for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from psycopg import sql

from vecferry.errors import StoreError, StoreSchemaError
from vecferry.stores.backend import VectorField
from vecferry.stores.browsing import SAMPLED_MEMBERS, spread
from vecferry.stores.pgvector.binary import is_vector_type
from vecferry.stores.pgvector.connection import Database, identifier, verbatim
from vecferry.stores.pgvector.keys import find_key
from vecferry.stores.pgvector.table import NEW, OLD, SCHEMA
from vecferry.stores.values import StoredRow

COUNTED = 100_000
"""Rows up to which they are counted; of larger tables the server's estimate is taken."""
MEASURED = 1000
"""Vectors whose lengths are looked at, where the column does not say one."""
VECTORS = """
SELECT c.oid::bigint, n.nspname::text, c.relname::text, a.attname::text, e.nspname::text, nullif(a.atttypmod, -1),
    c.reltuples::float8, ARRAY(SELECT ARRAY[b.attname::text, t.typname::text] FROM pg_attribute b
        JOIN pg_type t ON t.oid = b.atttypid WHERE b.attrelid = c.oid AND b.attnum > 0 AND NOT b.attisdropped
        ORDER BY b.attnum)
FROM pg_extension x JOIN pg_namespace e ON e.oid = x.extnamespace
JOIN pg_type v ON v.typnamespace = e.oid AND v.typname IN ('vector', 'halfvec')
JOIN pg_attribute a ON a.atttypid = v.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p') AND NOT c.relispartition
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE x.extname = 'vector' AND n.nspname <> %s AND n.nspname NOT LIKE 'pg\\_temp\\_%%'
ORDER BY n.nspname, c.relname, a.attnum
"""
"""The columns, the schema of pgvector's functions, and the columns beside them with their types."""
MARKS = """
SELECT 'django' WHERE EXISTS (SELECT FROM pg_class WHERE relname = 'django_migrations' AND relkind = 'r')
UNION ALL SELECT 'supabase' WHERE EXISTS (SELECT FROM pg_proc WHERE proname = 'match_documents')
    OR EXISTS (SELECT FROM pg_roles WHERE rolname = 'supabase_admin')
"""
"""What says by whom a database was made."""
HAS_TABLE = """
SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = %s AND n.nspname = %s
"""
LANGCHAIN = "langchain_pg_collection"
PARTS = """
SELECT c.uuid::text, c.name::text,
    (SELECT count(*) FROM {table} AS t WHERE t.collection_id = c.uuid AND t.{vector} IS NOT NULL),
    (SELECT {dimension}(t.{vector}) FROM {table} AS t WHERE t.collection_id = c.uuid AND t.{vector} IS NOT NULL LIMIT 1)
FROM {collections} AS c ORDER BY c.name, c.uuid
"""
"""The collections of LangChain's PGVector, which lie in one table."""
EVERY_ROW = sql.SQL("true")


@dataclass(frozen=True)
class _Place:
    """A column of vectors. functions: the schema of pgvector."""

    schema: str
    table: str
    vector: str
    functions: str

    def query(self, statement: str, where: sql.SQL = EVERY_ROW) -> sql.Composed:
        """Return a statement about the column, in which {table}, {vector} and the like are filled in."""
        names = {"table": identifier(self.schema, self.table), "vector": identifier(self.vector)}
        names |= {"dimension": identifier(self.functions, "vector_dims")}
        return sql.SQL(statement).format(**names, collections=identifier(self.schema, LANGCHAIN), where=where)


class PgBrowser:
    """`Browser` over one database."""

    kind = "postgresql"

    def __init__(self, database: Database) -> None:
        self._db = database
        self._places = dict[tuple[str, str], _Place]()

    @classmethod
    def connect(cls, database_url: str) -> Self:
        """Open a connection; to be closed. Raises StoreUnreachable."""
        return cls(Database(database_url))

    def close(self) -> None:
        self._db.close()

    def vector_fields(self) -> list[VectorField]:
        """Return every column of pgvector's types that the role can find, of ordinary tables.

        One that it cannot read, by privileges or policies, has that for an obstacle.
        """
        marks = tuple(mark for (mark,) in self._db.rows(MARKS))
        fields = []
        for oid, schema, table, vector, functions, dimension, estimate, columns in self._db.rows(VECTORS, [SCHEMA]):
            if vector.endswith((NEW, OLD)):
                continue
            place, kinds = _Place(schema, table, vector, functions), dict(columns)
            name, (key, obstacle) = self._name(schema, table), self._key(oid, table)
            self._places[name, vector] = place
            names = tuple(each for each, kind in kinds.items() if not is_vector_type(kind) and each not in key)
            text = next((each for each in names if kinds[each] in ("text", "varchar")), "text")
            field = VectorField(name, vector, (), 0, names, text, next(iter(key), "id"), marks, obstacle)
            whole = self._measured(field, place, dimension, estimate)
            fields += [whole, *self._parts(whole, place)]
        return fields

    def _parts(self, whole: VectorField, place: _Place) -> list[VectorField]:
        """Return the collections that share a table of LangChain, where it has several; none that is empty."""
        is_shared = {"collection_id", "cmetadata"}.issubset(whole.names) and not whole.obstacle
        there = (
            "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE relname = %s AND nspname = %s"
        )
        if not is_shared or not self._db.rows(there, [LANGCHAIN, place.schema]):
            return []
        parts = [
            replace(whole, part=name, where=f"collection_id = '{uuid}'", rows=rows, dimensions=(dimension,))
            for uuid, name, rows, dimension in self._db.rows(place.query(PARTS))
            if rows
        ]
        return parts if len(parts) > 1 else []

    def _key(self, oid: int, table: str) -> tuple[tuple[str, ...], str]:
        """Return the names of the key's columns, and why there is none."""
        try:
            return find_key(self._db, oid, table, None).names, ""
        except StoreSchemaError as exc:
            return (), exc.message

    def sample(self, field: VectorField, num_rows: int) -> list[StoredRow]:
        """Return random ones of the first rows that have a vector; of a group, of some of its tables."""
        tables = spread(field.members, SAMPLED_MEMBERS) or [field.collection]
        each = -(-num_rows // len(tables))
        return [row for table in tables for row in self._sampled(replace(field, collection=table), each)]

    def _sampled(self, field: VectorField, num_rows: int) -> list[StoredRow]:
        query = self._places[field.collection, field.vector].query(
            "SELECT to_json(t), t.{vector}::real[] FROM (SELECT * FROM {table} WHERE {vector} IS NOT NULL AND {where}"
            " LIMIT %s) AS t ORDER BY random() LIMIT %s",
            verbatim(field.where or "true"),
        )
        return [
            StoredRow(
                (str(fields.get(field.key)),),
                {n: fields[n] for n in field.names if n in fields},
                np.asarray(vector, np.float32),
            )
            for fields, vector in self._db.rows(query, [MEASURED, num_rows])
        ]

    def _name(self, schema: str, table: str) -> str:
        """Return the name as migration.toml has it, with its schema unless that is the first where it is looked up."""
        parts = [table] if schema == next(iter(self._db.schemas), None) else [schema, table]
        return ".".join(part if part.isidentifier() else '"' + part.replace('"', '""') + '"' for part in parts)

    def _measured(self, field: VectorField, place: _Place, dimension: int | None, estimate: float) -> VectorField:
        """Return the field with the number of its rows, and of the numbers in a vector."""
        try:
            counted = place.query("SELECT count(*) FROM (SELECT FROM {table} WHERE {vector} IS NOT NULL LIMIT %s) AS t")
            ((rows,),) = self._db.rows(counted, [COUNTED + 1])
            seen = place.query(
                "SELECT DISTINCT {dimension}({vector}) FROM"
                " (SELECT {vector} FROM {table} WHERE {vector} IS NOT NULL LIMIT %s) AS t ORDER BY 1"
            )
            lengths = [] if dimension else [length for (length,) in self._db.rows(seen, [MEASURED])]
        except StoreError as exc:
            return replace(field, obstacle=exc.message, dimensions=(dimension,) if dimension else ())
        about = max(int(estimate), COUNTED) if rows > COUNTED else rows
        return replace(field, rows=about, dimensions=(dimension,) if dimension else tuple(lengths))
