"""What an operator should know of a database before a migration, and that stops none."""

from __future__ import annotations

from vecferry.stores.pgvector.connection import Database, identifier
from vecferry.stores.pgvector.dependents import casting_functions
from vecferry.stores.pgvector.table import Table

WHO = """
SELECT current_user::text, pg_get_userbyid(c.relowner)::text, r.rolsuper
FROM pg_class c JOIN pg_roles r ON r.rolname = current_user WHERE c.oid = %s::oid
"""
READERS = """
SELECT r.rolname::text FROM pg_roles r JOIN pg_class c ON c.oid = %s::oid
WHERE r.rolcanlogin AND NOT r.rolsuper AND r.rolname <> current_user AND NOT pg_has_role(r.oid, c.relowner, 'USAGE')
    AND has_table_privilege(r.oid, c.oid, 'SELECT')
    AND NOT coalesce(pg_has_role(r.oid, to_regrole('pg_read_all_data')::oid, 'USAGE'), false)
    AND NOT coalesce(has_table_privilege(r.oid, to_regclass('vecferry.changes')::oid, 'SELECT'), false)
ORDER BY 1
"""
"""Who may log in and read the table, and will not be able to read what `start` makes."""
OTHER_VECTORS = """
SELECT quote_ident(a.attname), format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = %s::oid AND a.attnum > 0 AND NOT a.attisdropped AND t.typname IN ('vector', 'halfvec')
    AND a.atttypmod > 0 AND a.atttypmod <> %s::int AND a.attname NOT LIKE '%%\\_vecferry\\_%%' ORDER BY a.attnum
"""
RIGHTS_TO_DUMP = ("USAGE ON", "SELECT ON ALL TABLES IN", "SELECT ON ALL SEQUENCES IN")


def notices(database: Database, table: Table, dimension: int | None) -> tuple[str, ...]:
    """Return sentences about the key, the type, functions that cast to this dimension, rights, and backups."""
    functions = _about_functions(database, table, dimension)
    return (
        *_about_key(table),
        *_about_domain(database, table),
        *_about_others(database, table, dimension),
        *functions,
        *_about_rights(database, table),
        *_about_backups(database, table),
    )


def _about_key(table: Table) -> list[str]:
    """Say which index rows are found by: the migration would need another one if it went."""
    if table.key_index is None:
        return []
    columns = ", ".join(column.name for column in table.key)
    return [f"rows are found by the unique index {table.key_index} ({columns}): leave it in place until the end"]


def _about_domain(database: Database, table: Table) -> list[str]:
    """Say that the new vectors are of the plain type: a domain's length, or its checks, are those of the old ones."""
    if table.domain is None:
        return []
    query = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contypid = %s::regtype ORDER BY conname"
    checks = "; ".join(check for (check,) in database.rows(query, [table.domain]))
    plain = f"plain {table.kind}{f', without {checks}' if checks else ''}"
    return [f"{table.vector} is of the domain {table.domain}: the new vectors are {plain}; finalize leaves the domain"]


def _about_others(database: Database, table: Table, dimension: int | None) -> list[str]:
    """Say of columns for vectors of another length, which may have been made for a new model, that they are left."""
    return [
        f"{column} {kind} is left as it is: the new vectors get a column of their own, called {table.vector}"
        " from the switch on. If it was made for them, drop it"
        for column, kind in database.rows(OTHER_VECTORS, [table.oid, dimension])
    ]


def _about_functions(database: Database, table: Table, dimension: int | None) -> list[str]:
    return [
        f"function {name} casts vectors to {dimension} numbers; change it with the switch"
        for name in casting_functions(database, table, dimension)
    ]


def _about_rights(database: Database, table: Table) -> list[str]:
    role, owner, is_superuser = database.row(WHO, [table.oid])
    if not is_superuser or role == owner:
        return []
    return [f"{role} is a superuser: connect as {owner}, who owns the table, and others' code gains less"]


def _about_backups(database: Database, table: Table) -> list[str]:
    """Return what to run after `start` for whoever dumps the whole database: pg_dump locks each table that it sees."""
    if not (readers := ", ".join(identifier(role).as_string() for (role,) in database.rows(READERS, [table.oid]))):
        return []
    grants = "; ".join(f"GRANT {right} SCHEMA vecferry TO {readers}" for right in RIGHTS_TO_DUMP)
    return [
        f"backups: pg_dump as {readers} fails while there is a schema vecferry, which its owner alone may read."
        f" After start: {grants}; or leave it out: pg_dump --exclude-schema=vecferry"
    ]
