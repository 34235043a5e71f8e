"""Indexes that know a vector column, and the statement that makes their like on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from psycopg import sql

from vecferry.stores.pgvector.connection import identifier, literal, verbatim
from vecferry.stores.pgvector.expressions import TOKEN, over_another
from vecferry.stores.pgvector.table import NEW, suffixed
from vecferry.stores.values import IndexInfo

INDEXES = """
SELECT i.relname::text, pg_get_indexdef(i.oid), pg_relation_size(i.oid), x.indisvalid, m.amname::text,
       pg_get_expr(x.indpred, x.indrelid), s.spcname::text, obj_description(i.oid, 'pg_class'),
       (SELECT count(DISTINCT d.refobjsubid) > 1 FROM pg_depend d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = i.oid AND d.refclassid = 'pg_class'::regclass
        AND d.refobjid = x.indrelid AND d.refobjsubid > 0),
       i.oid::bigint, (SELECT inhparent::bigint FROM pg_inherits WHERE inhrelid = i.oid), x.indrelid::bigint,
       n.nspname::text, r.relname::text, i.relkind = 'I'
FROM tree
JOIN pg_index x ON x.indrelid = tree.oid
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_class r ON r.oid = x.indrelid
JOIN pg_namespace n ON n.oid = r.relnamespace
JOIN pg_am m ON m.oid = i.relam
LEFT JOIN pg_tablespace s ON s.oid = i.reltablespace
WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.oid) AND EXISTS (
    SELECT FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_class'::regclass AND d.objid = i.oid AND d.refclassid = 'pg_class'::regclass
    AND d.refobjid = x.indrelid AND a.attname = %(column)s)
ORDER BY level, 1
"""
"""Indexes whose key, expression or condition mentions the column, of any access method; after `partitions.TREE`."""

MAX_BUILD_MEMORY_KIB = 8 * 1024 * 1024
BUILD_MEMORY_KIB = f"greatest(m.setting::bigint, least(b.setting::bigint * 8, {MAX_BUILD_MEMORY_KIB}))"
BUILD_SETTINGS = "pg_settings m JOIN pg_settings b ON m.name = 'maintenance_work_mem' AND b.name = 'shared_buffers'"
"""How much memory an index may be built in, and where that is read: a buffer has 8 KiB."""

SCALAR_METHODS = frozenset({"btree", "hash", "brin", "gin", "gist", "spgist"})
MAX_INDEXED_DIMENSION = {"vector": 2_000, "halfvec": 4_000, "bit": 64_000}
"""pgvector's limits for HNSW and IVFFlat."""


@dataclass(frozen=True)
class VectorIndex:
    """definition: as PostgreSQL writes it; condition: of a partial index.

    reads_other_columns: whether it is over, or its condition about, more than the vectors. parent: the number of the
    index of which it is a part; None for one that stands alone. relation, schema, table: what it is on.
    is_whole: it is an index on a table with partitions, and has parts.
    """

    name: str
    definition: str
    bytes: int
    valid: bool
    method: str
    condition: str | None
    tablespace: str | None
    comment: str | None
    reads_other_columns: bool
    oid: int
    parent: int | None
    relation: int
    schema: str
    table: str
    is_whole: bool

    @property
    def new_name(self) -> str:
        return suffixed(self.name, NEW)

    @property
    def holds_vectors(self) -> bool:
        return self.method not in SCALAR_METHODS

    @property
    def can_stand_beside(self) -> bool:
        """Whether it can be made on a side table, which has no column of the application but these and the key."""
        return self.holds_vectors and not self.reads_other_columns

    @property
    def cast_length(self) -> int | None:
        """The numbers that vectors are cast to, so that queries must do the same; None where they are taken as is."""
        lengths = [int(token["length"]) for token in TOKEN.finditer(self._rest) if token["cast"]]
        return lengths[0] if lengths else None

    def without_condition(self) -> VectorIndex:
        """Return one over the same vectors, for a table in which the condition is true of every row."""
        definition = self.definition.removesuffix(f" WHERE {self.condition}")
        return replace(self, definition=definition, condition=None)

    def max_dimension(self, kind: str) -> int:
        """Return how many numbers its vectors may have. kind: the type of the column."""
        types = [token["type"] for token in TOKEN.finditer(self._rest) if token["cast"]] or [kind]
        return MAX_INDEXED_DIMENSION[types[0]]

    @property
    def identifier(self) -> sql.Identifier:
        return identifier(self.schema, self.name)

    def comment_statement(self) -> sql.Composed:
        """Return what gives an index of its name its comment."""
        return sql.SQL("COMMENT ON INDEX {} IS {}").format(self.identifier, literal(self.comment or ""))

    def info(self) -> IndexInfo:
        return IndexInfo(self.name, self.definition, self.bytes, self.holds_vectors, self.cast_length)

    def create_statement(
        self,
        name: str,
        columns: tuple[str, str],
        lengths: tuple[int, int],
        table: sql.Identifier | None = None,
    ) -> sql.Composed:
        """Return what makes its like. columns, lengths: that it is over, and that the new one is to be over.

        name: of the new one, made beside writers; the name of this one, which was dropped, in a transaction. table: if
        it is to be on another one. The like of a whole has no parts yet, and is made in a transaction.
        """
        unique = " UNIQUE" if self.definition.startswith("CREATE UNIQUE ") else ""
        is_empty = self.is_whole and table is None
        method, only = " CONCURRENTLY" if name != self.name and not is_empty else "", "ONLY " if is_empty else ""
        rest, condition = self._rest, f" WHERE {self.condition}" if self.condition else ""
        tablespace = sql.SQL(" TABLESPACE {}").format(identifier(self.tablespace)) if self.tablespace else sql.SQL("")
        return sql.SQL("CREATE{} INDEX{} {} ON {}{} USING {}{}{}").format(
            sql.SQL(unique),
            sql.SQL(method),
            identifier(name),
            sql.SQL(only),
            table or identifier(self.schema, self.table),
            verbatim(over_another(rest.removesuffix(condition), columns, lengths)),
            tablespace,
            verbatim(over_another(condition, columns, lengths)),
        )

    @property
    def _rest(self) -> str:
        """What follows USING: the method, the keys, INCLUDE, WITH and WHERE."""
        return self.definition.partition(" USING ")[2]


def with_parts(index: VectorIndex, indexes: Sequence[VectorIndex]) -> list[VectorIndex]:
    """Return an index and those of the others that are parts of it, at every level; each after its own whole."""
    family = [index]
    for each in indexes:  # those of lower levels come later
        if each.parent is not None and each.parent in {member.oid for member in family}:
            family.append(each)
    return family


def attach_statements(family: Sequence[VectorIndex], names: Mapping[int, str]) -> list[sql.Composed]:
    """Return what makes an index of parts that were made for it. names: of the new ones, by the numbers of these."""
    by_oid = {member.oid: member for member in family}
    attach = sql.SQL("ALTER INDEX {} ATTACH PARTITION {}")
    return [
        attach.format(
            identifier(by_oid[member.parent].schema, names[member.parent]),
            identifier(member.schema, names[member.oid]),
        )
        for member in family
        if member.parent is not None and member.parent in by_oid
    ]
