"""`[store] where`: the rows of a shared table that are migrated, as a condition of SQL over its columns.

The server itself decides what a condition may be, by taking it for that of a partial index: an immutable expression of
type boolean over the row, without subqueries. It also says which columns it reads, and writes it with every name looked
up. A row of which it is NULL is none of the part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import sql

from vecferry.errors import StoreFailed, StoreSchemaError
from vecferry.stores.pgvector.binary import is_vector_type
from vecferry.stores.pgvector.connection import OWN_PATH, Database, identifier, verbatim
from vecferry.stores.pgvector.expressions import TOKEN, unquoted

ROW = "vecferry_row"
"""What the server calls the row where it writes the condition with every column's table."""
CONDITION = """
SELECT pg_get_expr(x.indpred, x.indrelid), (SELECT coalesce(jsonb_object_agg(a.attname, t.typname), '{}')
    FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    JOIN pg_type t ON t.oid = a.atttypid
    WHERE d.classid = 'pg_class'::regclass AND d.objid = x.indexrelid AND d.refclassid = 'pg_class'::regclass
    AND d.refobjid = x.indrelid AND d.refobjsubid > 0)
FROM pg_index x WHERE x.indexrelid = 'pg_temp.vecferry_where'::regclass
"""
MAX_BYTES = 1_500
"""Of a condition: it is part of the keys of the ledger, of which the server takes 2,704 bytes with those of a row."""
SHOWN = 200
"""Of a condition, in an error: its first characters."""
REMEDY = "Write an immutable condition over columns of the table, such as --where \"tenant = 'north'\"."

LONG = "Mark these rows in a column of the table, and write a condition on that."


@dataclass(frozen=True)
class RowCondition:
    """text: as the server writes it. columns: that it reads, by name, with their types."""

    text: str
    columns: Mapping[str, str]
    qualified: str

    def over(self, row: str) -> sql.SQL:
        """Return the condition over a row of that name: `t`, `NEW`, `OLD`."""

        def renamed(token: re.Match[str]) -> str:
            is_row = token["qualifies"] is not None and not token["before"] and unquoted(token["name"]) == ROW
            return row if is_row else token[0]

        return verbatim(f"({TOKEN.sub(renamed, self.qualified)})")


def row_condition(database: Database, schema: str, table: str, where: str) -> RowCondition:
    """Return the condition with its names looked up once and for all. Raises StoreSchemaError; nothing is kept."""
    try:
        with database.as_the_role_names():
            return _read(database, schema, table, where)
    except (StoreSchemaError, StoreFailed) as exc:
        reason, remedy = (exc.what, exc.expected) if isinstance(exc, StoreSchemaError) else (exc.reason, REMEDY)
        shown = repr(where if len(where) <= SHOWN else where[:SHOWN] + "…")
        what = f"[store] where {shown} is no condition on {schema}.{table}: {reason}"
        raise StoreSchemaError(what, remedy) from exc


def _read(database: Database, schema: str, table: str, where: str) -> RowCondition:
    """Let the server read the condition as that of an index on an empty copy of the table, and write it."""
    empty = identifier("pg_temp", table)
    database.execute(sql.SQL("CREATE TEMPORARY TABLE {} (LIKE {})").format(empty, identifier(schema, table)))
    index = sql.SQL("CREATE INDEX vecferry_where ON {} ((1)) WHERE ({}\n)")
    database.execute(index.format(empty, verbatim(where)))
    database.rows("SELECT pg_catalog.set_config('search_path', %s, true)", [OWN_PATH])
    text, columns = database.row(CONDITION)
    if not columns:
        raise StoreSchemaError("it reads no column", REMEDY)
    if (length := len(text.encode())) > MAX_BYTES:
        what = f"it has {length:,} bytes as the server writes it, and {MAX_BYTES:,} is the most"
        raise StoreSchemaError(what, LONG)
    if vectors := sorted(name for name, kind in columns.items() if is_vector_type(kind)):
        raise StoreSchemaError(f"it reads {', '.join(vectors)}, which a migration changes", REMEDY)
    view = sql.SQL("CREATE TEMPORARY VIEW vecferry_part AS SELECT FROM {} AS {}, (SELECT) AS beside WHERE {}")
    database.execute(view.format(empty, identifier(ROW), verbatim(text)))
    (definition,) = database.row("SELECT pg_get_viewdef('pg_temp.vecferry_part'::regclass)")
    return RowCondition(text, columns, definition.partition("\n  WHERE ")[2].rstrip().removesuffix(";"))
