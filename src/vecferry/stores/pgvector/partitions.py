"""A partitioned table: the relations that it is made of now, and what of them no migration can take."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from vecferry.errors import StoreSchemaError
from vecferry.stores.pgvector.connection import Database, identifier

TREE = """
WITH RECURSIVE tree(oid, level) AS (
    SELECT %(table)s::oid, 0
    UNION ALL SELECT i.inhrelid, t.level + 1 FROM pg_inherits i JOIN tree t ON i.inhparent = t.oid
)
"""
"""The table and all its partitions, of every level, by their numbers; of any other table itself."""
RELATIONS = """
SELECT c.oid::bigint, n.nspname::text, c.relname::text, c.relkind = 'p', pg_has_role(c.relowner, 'USAGE')
FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY level, 2, 3
"""
SIZES = """
SELECT sum(pg_total_relation_size(oid))::bigint, sum(pg_relation_size(oid))::bigint, sum(pg_table_size(oid))::bigint,
    sum(pg_indexes_size(oid))::bigint FROM tree
"""
SHAPE = """
SELECT c.oid, n.nspname::text, c.relkind::text,
    (SELECT min(rulename)::text FROM pg_rewrite WHERE ev_class = c.oid AND rulename <> '_RETURN'),
    (WITH RECURSIVE above(oid, level) AS (
        SELECT c.oid, 0 UNION ALL SELECT i.inhparent, a.level + 1 FROM above a
        JOIN pg_class p ON p.oid = a.oid AND p.relispartition JOIN pg_inherits i ON i.inhrelid = a.oid
    ) SELECT oid::regclass::text FROM above WHERE level > 0 ORDER BY level DESC LIMIT 1),
    (SELECT string_agg(inhrelid::regclass::text, ', ' ORDER BY inhrelid) FROM pg_inherits
     WHERE inhparent = c.oid AND c.relkind = 'r')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = %s AND n.nspname = ANY(%s)
ORDER BY array_position(%s::text[], n.nspname::text) LIMIT 1
"""
"""A table of that name, with a rule on it, the whole that it is a partition of, and the tables that inherit from it."""
FOREIGN_PARTITIONS = """
SELECT string_agg(c.oid::regclass::text, ', ' ORDER BY 1) FROM tree JOIN pg_class c ON c.oid = tree.oid
WHERE c.relkind = 'f'
"""


@dataclass(frozen=True)
class Relation:
    """The table, or a partition. is_whole: it is partitioned itself. is_owned: the role has its owner's rights."""

    oid: int
    schema: str
    name: str
    is_whole: bool
    is_owned: bool

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        return identifier(self.schema, self.name)


@dataclass(frozen=True)
class Sizes:
    """Bytes of a table with its partitions. rows: of the heap alone; table: with large values, without indexes."""

    total: int
    rows: int
    table: int
    indexes: int


def find_shape(database: Database, table: str, name: str, schemas: list[str]) -> tuple[int, str, bool]:
    """Return a table's number, its schema, and whether it is partitioned. Raises StoreSchemaError for another shape."""
    rows = database.rows(SHAPE, [name, schemas, schemas])
    if not rows:
        expected = "Check --collection; names are spelled as in the database."
        raise StoreSchemaError(f"there is no table {table}", expected)
    oid, schema, kind, rule, whole, heirs = rows[0]
    if whole is not None:
        raise StoreSchemaError(f"{table} is a partition of {whole}", f"Migrate the whole: --collection {whole}.")
    if kind not in ("r", "p"):
        raise StoreSchemaError(f"{table} is not an ordinary table", "Views and foreign tables cannot be migrated.")
    if heirs is not None:
        expected = f"Part them (ALTER TABLE ... NO INHERIT {table}), and migrate each by itself; or partition {table}."
        raise StoreSchemaError(f"other tables inherit from {table}: {heirs}", expected)
    if rule is not None:
        raise StoreSchemaError(f"{table} has the rule {rule}", "Make it a trigger: rules rewrite a migration's writes.")
    (foreign,) = database.row(TREE + FOREIGN_PARTITIONS, {"table": oid})
    if foreign is not None:
        expected = f"ALTER TABLE {table} DETACH PARTITION ..., until the migration has ended."
        raise StoreSchemaError(f"{table} has partitions on other servers: {foreign}", expected)
    return oid, schema, kind == "p"


def relations(database: Database, oid: int) -> list[Relation]:
    """Return the table and all its partitions, each after what it is a part of."""
    return [Relation(*row) for row in database.rows(TREE + RELATIONS, {"table": oid})]


def leaves(database: Database, oid: int) -> list[Relation]:
    """Return those that have the rows."""
    return [relation for relation in relations(database, oid) if not relation.is_whole]


def sizes(database: Database, oid: int) -> Sizes:
    return Sizes(*database.row(TREE + SIZES, {"table": oid}))
