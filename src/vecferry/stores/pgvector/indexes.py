"""Indexes on a vector column, and the statement that makes their like on another."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from vecferry.stores.pgvector.connection import identifier, literal, verbatim
from vecferry.stores.pgvector.table import NEW, Table, suffixed
from vecferry.stores.values import IndexInfo

VECTOR_INDEXES = """
SELECT i.relname::text, pg_get_indexdef(i.oid), pg_relation_size(i.oid), x.indisvalid, m.amname::text,
       n.nspname::text, o.opcname::text, i.reloptions, pg_get_expr(x.indpred, x.indrelid), s.spcname::text,
       x.indnatts
FROM pg_index x
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_am m ON m.oid = i.relam
JOIN pg_opclass o ON o.oid = x.indclass[0]
JOIN pg_namespace n ON n.oid = o.opcnamespace
LEFT JOIN pg_tablespace s ON s.oid = i.reltablespace
JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.oid
                AND d.refclassid = 'pg_class'::regclass AND d.refobjid = x.indrelid
JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE x.indrelid = %s::oid AND a.attname = %s AND m.amname IN ('hnsw', 'ivfflat')
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, x.indkey ORDER BY 1
"""
"""Vector indexes whose key, expression or condition mentions the column."""

MAX_INDEXED_DIMENSION = {"vector": 2000, "halfvec": 4000}
"""pgvector's limits for HNSW and IVFFlat."""


@dataclass(frozen=True)
class VectorIndex:
    """definition: as PostgreSQL writes it; condition: of a partial index."""

    name: str
    definition: str
    bytes: int
    valid: bool
    method: str
    opclass_schema: str
    opclass: str
    options: list[str] | None
    condition: str | None
    tablespace: str | None
    num_columns: int

    @property
    def new_name(self) -> str:
        return suffixed(self.name, NEW)

    def can_be_recreated(self, table: Table) -> bool:
        """Return false for one over an expression, or whose condition speaks of the vector: that is for its owner."""
        mentioned = self.condition is not None and table.vector.lower() in self.condition.lower()
        return self.opclass.startswith(f"{table.kind}_") and "((" not in self._key_part() and not mentioned

    def _key_part(self) -> str:
        return self.definition.partition(f" USING {self.method} ")[2].partition(" WITH ")[0].partition(" WHERE ")[0]

    def info(self, table: Table) -> IndexInfo:
        return IndexInfo(self.name, self.definition, self.bytes, self.can_be_recreated(table))

    def create_statement(self, table: sql.Identifier, column: sql.Identifier) -> sql.Composed:
        parts = [
            sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} USING {} ({} {})").format(
                identifier(self.new_name),
                table,
                identifier(self.method),
                column,
                identifier(self.opclass_schema, self.opclass),
            )
        ]
        if self.options:
            pairs = [option.partition("=") for option in self.options]
            settings = [sql.SQL("{} = {}").format(identifier(key), literal(value)) for key, _, value in pairs]
            parts.append(sql.SQL("WITH ({})").format(sql.SQL(", ").join(settings)))
        if self.tablespace:
            parts.append(sql.SQL("TABLESPACE {}").format(identifier(self.tablespace)))
        if self.condition:
            parts.append(sql.SQL("WHERE ") + verbatim(self.condition))
        return sql.SQL(" ").join(parts)
