"""Which columns, indexes, constraints and triggers a table has now; asked each time, since a switch changes names."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vecferry.errors import StoreSchemaError
from vecferry.stores.pgvector import part_indexes
from vecferry.stores.pgvector.binary import is_vector_type
from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.indexes import INDEXES, VectorIndex, with_parts
from vecferry.stores.pgvector.part_indexes import PendingIndex
from vecferry.stores.pgvector.partitions import TREE
from vecferry.stores.pgvector.table import (
    COLBERT,
    NEW,
    NEW_CHECKSUM,
    OLD,
    OLD_CHECKSUM,
    REQUIRED,
    SCHEMA,
    SPARSE,
    Table,
    suffixed,
)
from vecferry.stores.values import Layout, Side

COMMENT_PREFIX = "vecferry:space:"
PUT_BACK = "Change it back until the migration has ended, or run start again with the names of now."
NOW = """
SELECT ARRAY[n.nspname, c.relname]::text[], coalesce((SELECT jsonb_object_agg(a.attnum, a.attname) FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum = ANY(%s::smallint[]) AND NOT a.attisdropped), '{}')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s::oid
"""
"""The name of the table, and the names of columns by their numbers."""

COLUMNS = """
WITH side AS (
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relname = %(side_table)s)
SELECT a.attname::text, coalesce(b.typname, t.typname)::text,
    coalesce(nullif(coalesce(s.atttypmod, a.atttypmod), -1), nullif(t.typtypmod, -1)), a.attnotnull,
    CASE WHEN %(is_part)s AND a.attrelid = %(table)s::oid THEN col_description(s.attrelid, s.attnum)
         ELSE col_description(a.attrelid, a.attnum) END,
    a.attgenerated <> '' OR a.attidentity = 'a', a.attgenerated <> '', nullif(a.attrelid, %(table)s::oid)::bigint
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_type b ON t.typtype = 'd' AND b.oid = t.typbasetype
LEFT JOIN pg_attribute s ON %(is_part)s AND a.attrelid = %(table)s::oid AND s.attrelid = (SELECT oid FROM side)
    AND s.attname = a.attname AND s.attnum > 0
WHERE a.attrelid IN (SELECT %(table)s::oid UNION ALL SELECT oid FROM side)
AND (a.attrelid = %(table)s::oid OR a.attname <> ALL (%(in_both)s)) AND a.attnum > 0 AND NOT a.attisdropped
"""
"""The columns of the table, and those that its side table alone has, with the number of that.

What a shared table says of the space and the length of its vectors is true of no part; of that the side table says it.
"""

UPDATE_TRIGGERS = """
SELECT DISTINCT t.tgname::text FROM tree JOIN pg_trigger t ON t.tgrelid = tree.oid JOIN pg_proc p ON p.oid = t.tgfoid
WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND (t.tgtype & 16) <> 0 AND cardinality(t.tgattr::int2[]) = 0
    AND p.pronamespace IS DISTINCT FROM to_regnamespace('vecferry') ORDER BY 1
"""


@dataclass(frozen=True)
class ColumnInfo:
    """kind: the name of its type; of a domain, of the type that it is over. dimension: of a vector that has one.

    space: as its comment says. is_filled: whether the database alone gives it values: it is computed, or GENERATED
    ALWAYS AS IDENTITY.
    """

    kind: str
    dimension: int | None
    is_required: bool
    space: str | None
    is_filled: bool
    is_computed: bool


@dataclass(frozen=True)
class HeadColumns:
    """The columns of sparse and ColBERT vectors; None where there is none."""

    sparse: str | None = None
    colbert: str | None = None


@dataclass(frozen=True)
class Columns:
    """All columns by name, and which of them are ours.

    wanted: the layout of a migration that has not begun. beside: those that lie in the side table, if there is one,
    whose number is side_oid; of the serving vectors, which it has too, the table's are meant.
    """

    table: Table
    by_name: dict[str, ColumnInfo]
    wanted: Layout = Layout.COLUMNS
    beside: tuple[str, ...] = ()
    side_oid: int | None = None

    @property
    def layout(self) -> Layout:
        """The form that both sides have now; the wanted one, as long as there is no new side."""
        if self.beside:
            return Layout.SIDE_TABLE
        return self.wanted if self.of_side(self.serving.other) is None else Layout.COLUMNS

    def relation_of(self, name: str) -> int:
        """Return the number of the table that has the column."""
        return self.side_oid if self.side_oid is not None and name in self.beside else self.table.oid

    @property
    def serving(self) -> Side:
        """The new side, only while the old one is beside it."""
        return Side.NEW if suffixed(self.table.vector, OLD) in self.by_name else Side.OLD

    def of_side(self, side: Side) -> str | None:
        """Return the name of its column; None for a side that is not there."""
        if side is self.serving:
            return self.table.vector
        other = suffixed(self.table.vector, NEW if side is Side.NEW else OLD)
        return other if other in self.by_name else None

    def checksum(self, side: Side) -> str:
        """Return the name of the column that says which text and vector that side was written with (`checksum.py`).

        It stays where it is when the sides change places.
        """
        return suffixed(self.table.vector, NEW_CHECKSUM if side is Side.NEW else OLD_CHECKSUM)

    def is_compared(self, side: Side) -> bool:
        """Return whether the side is there, and the checksums by which its rows are known to be current."""
        return self.of_side(side) is not None and self.checksum(side) in self.by_name

    def required(self, side: Side) -> str:
        """Return the name of its column. Raises StoreSchemaError for a side that is not there."""
        if (column := self.of_side(side)) is None:
            raise StoreSchemaError(f"{self.table.target} has no {side} side", "It was dropped: run start again.")
        return column

    def heads(self, side: Side) -> HeadColumns:
        """Return the head columns of a side. The old one has none: those of a former migration are not followed."""
        return HeadColumns() if side is Side.OLD else HeadColumns(self.head(SPARSE), self.head(COLBERT))

    def head(self, suffix: str) -> str | None:
        """Return the column of sparse or ColBERT vectors if it is ours: in the space of the new side or what serves."""
        name = suffixed(self.table.vector, suffix)
        dense = self.by_name[self.of_side(Side.NEW) or self.table.vector]
        column = self.by_name.get(name)
        return name if column and column.space is not None and column.space == dense.space else None

    def of_vectors(self) -> set[str]:
        """Return the names of columns that hold vectors, whoever made them, and of our checksums."""
        vectors = {name for name, column in self.by_name.items() if is_vector_type(column.kind)}
        return vectors | {self.checksum(side) for side in Side}

    def ours(self) -> set[str]:
        """Return those that an application does not write by name: vectors of both sides, and what goes with them."""
        vector = self.table.vector
        heads = {head for suffix in (SPARSE, COLBERT) if (head := self.head(suffix))}
        checksums = {self.checksum(side) for side in Side}
        return {vector, suffixed(vector, NEW), suffixed(vector, OLD)} | checksums | heads


class Catalogue:
    """The catalogue's answers about one table."""

    def __init__(self, database: Database, table: Table, layout: Layout) -> None:
        self._db = database
        self._table = table
        self._layout = layout

    def refuse_changed(self) -> None:
        """Raise StoreSchemaError, which names the change, if the table is not as it was when it was found."""
        table = self._table
        rows = self._db.rows(NOW, [list(table.read), table.oid])
        if not rows:
            raise StoreSchemaError(f"the table {table.full_name} is not there any more", PUT_BACK)
        name, by_number = rows[0]
        if name != [table.schema, table.name]:
            raise StoreSchemaError(f"the table {table.full_name} is called {'.'.join(name)} now", PUT_BACK)
        for number, column in table.read.items():
            if (now := by_number.get(str(number))) != column:
                what = "was dropped" if now is None else f"is called {now} now"
                raise StoreSchemaError(f"the column {column} of {table.full_name} {what}", PUT_BACK)

    def columns(self) -> Columns:
        """Read the columns. Raises StoreSchemaError if the vector column is not there any more."""
        rows = self._db.rows(
            COLUMNS,
            {
                "table": (table := self._table).oid,
                "schema": SCHEMA,
                "side_table": table.side_table,
                "in_both": [table.vector, *table.side_keys],
                "is_part": table.where is not None,
            },
        )
        by_name = {
            name: ColumnInfo(kind, dimension, is_required, _space_in(comment), is_filled, is_computed)
            for name, kind, dimension, is_required, comment, is_filled, is_computed, _ in rows
        }
        beside = {name: oid for name, *_, oid in rows if oid is not None}
        if self._table.vector not in by_name:
            what = f"{self._table.full_name} has no column {self._table.vector} any more"
            raise StoreSchemaError(what, PUT_BACK)
        return Columns(self._table, by_name, self._layout, tuple(beside), next(iter(beside.values()), None))

    def all_indexes(self, column: str) -> list[VectorIndex]:
        """Return the indexes on the column, with those that are parts of others, which come after these."""
        rows = self._db.rows(TREE + INDEXES, {"table": self.columns().relation_of(column), "column": column})
        return [VectorIndex(*row) for row in rows]

    def vector_indexes(self, column: str) -> list[VectorIndex]:
        """Return those that are no parts of another. The bytes of one that has parts are theirs."""
        indexes = self.all_indexes(column)
        families = [with_parts(index, indexes) for index in indexes if index.parent is None]
        return [replace(family[0], bytes=sum(member.bytes for member in family)) for family in families]

    def wanted_indexes(self) -> list[VectorIndex]:
        """Return those on the serving vectors that have, or should have, a twin on the new: all of them, or those that
        a side table can have, which are the ones that search its vectors; of a part's table, those of the part alone.
        """
        columns = self.columns()
        if columns.serving is Side.NEW:
            return []
        if self._table.where is not None:
            return [index.without_condition() for index in self.own_indexes() if index.holds_vectors]
        indexes = self.vector_indexes(self._table.vector)
        if columns.layout is Layout.COLUMNS:
            return indexes
        return [index for index in indexes if index.can_stand_beside and index.relation == self._table.oid]

    def own_indexes(self) -> list[VectorIndex]:
        """Return the indexes on the part's vectors alone that take no others than of their length now; none where all
        rows are migrated.
        """
        return part_indexes.own_indexes(self._db, self._table, self.vector_indexes(self._table.vector))

    def pending_indexes(self) -> list[PendingIndex]:
        """Return those of the part that a switch has dropped, and that are not there again."""
        if self._table.where is None or (side_table := self.columns().side_oid) is None:
            return []
        (comment,) = self._db.row("SELECT obj_description(%s::oid, 'pg_class')", [side_table])
        built = {index.name for index in self.vector_indexes(self._table.vector) if index.valid}
        return [index for index in part_indexes.from_comment(comment) if index.name not in built]

    def missing_indexes(self) -> list[VectorIndex]:
        """Return those of the wanted whose twin is not there, or is half-built."""
        wanted = self.wanted_indexes()
        valid = {
            (counterpart.relation, counterpart.name)
            for counterpart in self.vector_indexes(suffixed(self._table.vector, NEW))
            if counterpart.valid
        }
        beside = self.columns().side_oid
        return [index for index in wanted if (beside or index.relation, index.new_name) not in valid]

    def lost_twins(self) -> list[str]:
        """Return the indexes on the old vectors whose twin is gone, or half-built, while the new vectors serve."""
        if self.columns().serving is Side.OLD:
            return []
        twins = {suffixed(index.name, OLD) for index in self.vector_indexes(self._table.vector) if index.valid}
        old = {index.name for index in self.vector_indexes(suffixed(self._table.vector, OLD))}
        return sorted(name for name in old - twins if name.endswith(OLD))  # any other never had one

    def constraints_to_validate(self) -> tuple[str, ...]:
        """Return the CHECK constraints on the serving vectors that hold for new rows alone, but our own."""
        rows = self._db.rows(
            "SELECT c.conname::text FROM pg_constraint c"
            " JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)"
            " WHERE c.conrelid = %s::oid AND a.attname = %s AND c.contype = 'c' AND NOT c.convalidated"
            " AND c.conname <> %s AND pg_get_constraintdef(c.oid) NOT LIKE '%%NOT ENFORCED' ORDER BY 1",
            [self._table.oid, self._table.vector, suffixed(self._table.vector, REQUIRED)],
        )
        return tuple(name for (name,) in rows)

    def update_triggers(self) -> tuple[str, ...]:
        """Return those that fire for an UPDATE of any column, without the ones of a capture."""
        rows = self._db.rows(
            TREE + UPDATE_TRIGGERS,
            {"table": self._table.oid},
        )
        return tuple(name for (name,) in rows)


def _space_in(comment: str | None) -> str | None:
    """Return the space in the last line of a comment, below what the application says there; None without one."""
    last = (comment or "").rpartition("\n")[2]
    return last.removeprefix(COMMENT_PREFIX) if last.startswith(COMMENT_PREFIX) else None
