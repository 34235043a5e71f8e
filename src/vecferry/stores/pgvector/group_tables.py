"""Which tables a group is made of: those that are named, and those that match a pattern now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from vecferry.errors import StoreSchemaError
from vecferry.stores.group import MAGIC, Member, group_name
from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.table import SCHEMA, Table, find_table

WITH_VECTORS = """
SELECT n.nspname::text, c.relname::text, a.attname::text
FROM pg_extension x JOIN pg_type v ON v.typnamespace = x.extnamespace AND v.typname IN ('vector', 'halfvec')
JOIN pg_type t ON v.oid IN (t.oid, t.typbasetype)
JOIN pg_attribute a ON a.atttypid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p') AND NOT c.relispartition
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE x.extname = 'vector' AND n.nspname <> %s AND n.nspname NOT LIKE 'pg\\_temp\\_%%' ORDER BY 1, 2
"""


def quoted(*parts: str) -> str:
    """Write a name as `find_table` reads it."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def matching(database: Database, members: Sequence[Member], vector: str) -> dict[tuple[str, str], Member]:
    """Return (schema, name) of each table that a pattern matches and that has its column of vectors, with the pattern.

    A pattern without a schema matches where the role looks up names. A table is of the first pattern that matches it,
    and of none if it is named.
    """
    found: dict[tuple[str, str], Member] = {}
    patterns = [member for member in members if MAGIC.search(member.name)]
    for schema, name, column in database.rows(WITH_VECTORS, [SCHEMA]) if patterns else []:
        for member in patterns:
            is_there = fnmatchcase(f"{schema}.{name}", member.name)
            is_there |= schema in database.schemas and fnmatchcase(name, member.name)
            if is_there and column == (member.vector or vector):
                found.setdefault((schema, name), member)
    return found


def find_tables(
    database: Database, members: Sequence[Member], *, text: str, vector: str, key: str | None
) -> Mapping[str, Table]:
    """Return the tables of a group by their full names, in the order of these.

    text, vector, key: where a member has none of its own; as `find_table` takes them.
    Raises StoreSchemaError for a name that is no table's, for a table that cannot be migrated, and where there is none.
    """

    def opened(name: str, member: Member) -> Table:
        own = member.text or text, member.vector or vector
        return find_table(database, name, *own, key_name=member.key or key)

    tables = [opened(member.name, member) for member in members if not MAGIC.search(member.name)]
    named = {(table.schema, table.name) for table in tables}
    if len(named) < len(tables):
        raise StoreSchemaError(f"{group_name([each.name for each in members])} names a table twice", "Name it once.")
    matched = matching(database, members, vector)
    tables += [opened(quoted(*place), member) for place, member in matched.items() if place not in named]
    if not tables:
        pattern = group_name([member.name for member in members])
        what = f"no table with a column {vector} of pgvector matches {pattern}"
        raise StoreSchemaError(what, "vecferry init lists what there is; a pattern is a shell's.")
    return {table.full_name: table for table in sorted(tables, key=lambda table: table.full_name)}
