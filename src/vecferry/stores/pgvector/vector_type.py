"""Of which type a vector column is: one of pgvector's, or a domain over one; and what others are made into one by."""

from __future__ import annotations

from psycopg import sql

from vecferry.errors import StoreError, StoreSchemaError
from vecferry.stores.pgvector.connection import Database, identifier, verbatim

VECTOR_COLUMN = """
SELECT format_type(t.oid, NULL), coalesce(b.typname, t.typname)::text, t.typtype = 'd',
    CASE WHEN a.attgenerated <> '' THEN 'generated' WHEN a.attinhcount > 0 THEN 'inherited' END,
    a.attrelid::regclass::text
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_type b ON t.typtype = 'd' AND b.oid = t.typbasetype
WHERE a.attrelid = %s::oid AND a.attname = %s AND a.attnum > 0 AND NOT a.attisdropped
"""
ARRAYS = frozenset({"_float4", "_float8", "_numeric", "_int4"})
"""Types that pgvector casts to a vector."""


def vector_type(database: Database, oid: int, table: str, column: str) -> tuple[str, str | None]:
    """Return "vector" or "halfvec", and the domain over it that the column is of; None without one.

    Raises StoreSchemaError if there is no such column, or no migration can take it.
    """
    rows = database.rows(VECTOR_COLUMN, [oid, column])
    if not rows:
        raise StoreSchemaError(f"{table} has no column {column}", "Names are spelled as in the database.")
    ((kind, base, is_domain, peculiarity, relation),) = rows
    if base in ARRAYS and not is_domain:
        raise _array_refused(database, relation, column, kind)
    if base not in ("vector", "halfvec"):
        expected = "Expected pgvector's types vector or halfvec, or a domain over one."
        raise StoreSchemaError(f"the column {column} of {table} is of type {kind}", expected)
    if peculiarity:
        remedy = f" ALTER TABLE {table} NO INHERIT ..., and it is." if peculiarity == "inherited" else ""
        expected = f"Expected an ordinary column.{remedy}"
        raise StoreSchemaError(f"the column {column} of {table} is {peculiarity}", expected)
    if is_domain:
        _require_nullable(database, kind, f"{table}.{column}")
    return base, kind if is_domain else None


def _require_nullable(database: Database, domain: str, column: str) -> None:
    """Raise StoreSchemaError for a domain that a row without an old vector cannot have, as there are after a switch."""
    try:
        database.rows(sql.SQL("SELECT NULL::{}").format(verbatim(domain)))
    except StoreError as exc:
        what = f"the domain {domain} of {column} takes no NULL, and after a switch a row may have no old vector"
        remedy = f"ALTER DOMAIN {domain} DROP NOT NULL, or DROP CONSTRAINT of the check; the column may be NOT NULL."
        raise StoreSchemaError(what, remedy) from exc


def _array_refused(database: Database, relation: str, column: str, kind: str) -> StoreSchemaError:
    """Return what to say of an array of numbers, with the length of the first one."""
    name, of = identifier(column).as_string(), verbatim(relation)
    query = sql.SQL("SELECT array_length({0}, 1) FROM {1} WHERE {0} IS NOT NULL LIMIT 1").format(identifier(column), of)
    length = next((each for (each,) in database.rows(query)), None)
    to = f"vector({length})" if length else "vector"
    change = f"ALTER TABLE {relation} ALTER {name} TYPE {to} USING {name}::{to}"
    return StoreSchemaError(
        f"the column {column} of {relation} is of type {kind}, and there is no search in arrays",
        f"CREATE EXTENSION IF NOT EXISTS vector; {change}. Who reads it as an array then selects {name}::real[].",
    )
