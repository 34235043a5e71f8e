"""What else in the database stands on a vector column, and what becomes of it when the columns change places."""

from __future__ import annotations

import re

from vecferry.stores.pgvector.carrying import ON_COLUMN, carried
from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.table import Table
from vecferry.stores.pgvector.views import carried_views
from vecferry.stores.values import Dependent

CARRIED = "goes with the name of the column, at the switch and back at rollback"
STAYS = "goes on standing on the old vectors after the switch, and goes with them at finalize"
FATES = {
    "constraint": "would be asked of the old vectors after the switch, so that writes with new ones alone fail",
    "generated column": "would be computed of the old vectors after the switch",
    "default": "is not that of the new vectors: a row without a vector would have none after the switch",
    "publication": "would publish the old vectors after the switch",
    "publication of all columns": "would send what start adds to subscribers without such columns, which stop then",
    "function": f"{STAYS}, since this role may not replace it",
}
LEFT_BEHIND = """
SELECT 'constraint', c.conname::text, pg_get_constraintdef(c.oid) FROM on_column o
    JOIN pg_constraint c ON o.classid = 'pg_constraint'::regclass AND c.oid = o.objid
    WHERE c.contype IN ('f', 'u', 'x') OR c.contype = 'c' AND c.coninhcount > 0
UNION SELECT 'generated column', g.attname::text, pg_get_expr(e.adbin, e.adrelid) FROM on_column o
    JOIN pg_attrdef e ON o.classid = 'pg_attrdef'::regclass AND e.oid = o.objid
    JOIN pg_attribute g ON g.attrelid = e.adrelid AND g.attnum = e.adnum AND g.attgenerated <> ''
UNION SELECT 'default', a.attname::text, pg_get_expr(e.adbin, e.adrelid) FROM pg_attribute a
    JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum AND a.attgenerated = ''
    WHERE a.attrelid = %(table)s::oid AND a.attname = %(column)s
"""
WHOLE_PUBLICATIONS = """
SELECT 'publication of all columns', p.pubname::text, '' FROM pg_publication p
    WHERE p.puballtables OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid
        AND r.prrelid = %(table)s::oid AND to_jsonb(r) ->> 'prattrs' IS NULL)
"""
PUBLICATIONS = """
SELECT 'publication', p.pubname::text, '' FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
    JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[])
    WHERE r.prrelid = %(table)s::oid AND a.attname = %(column)s
UNION SELECT 'publication of all columns', p.pubname::text, '' FROM pg_publication_namespace n
    JOIN pg_publication p ON p.oid = n.pnpubid JOIN pg_class c ON c.relnamespace = n.pnnspid
    WHERE c.oid = %(table)s::oid
"""
COLUMN_LISTS = 150000
"""The version of PostgreSQL from which a publication may list columns, and be of a schema."""

CASTING = """
SELECT p.oid::regprocedure::text FROM pg_proc p
    WHERE p.prosrc ~* ('(vector|halfvec|bit)\\s*\\(\\s*' || %s::text || '\\s*\\)')
    AND p.prosrc ~* ('\\m' || %s || '\\M') AND p.pronamespace <> 'pg_catalog'::regnamespace ORDER BY 1
"""


def casting_functions(database: Database, table: Table, length: int | None) -> tuple[str, ...]:
    """Return the functions that name the table in their text and cast to that length there; parameters do not cast."""
    pattern = re.sub(r"(\W)", r"\\\1", table.name)
    return tuple(name for (name,) in database.rows(CASTING, [length, pattern])) if length is not None else ()


def dependents(database: Database, table: Table) -> tuple[Dependent, ...]:
    """Return all that stands on the vectors, by kind and name, but views that cannot be carried (`views.py`)."""
    queries = [
        ON_COLUMN + LEFT_BEHIND,
        WHOLE_PUBLICATIONS,
        *([PUBLICATIONS] if database.server_version >= COLUMN_LISTS else []),
    ]
    params = {"table": table.oid, "column": table.vector}
    rows = [(*row, False) for query in queries for row in database.rows(query, params)]
    rows += [(each.kind, each.name, each.definition, each.is_allowed) for each in carried(database, table)]
    rows += [("view", view.name, view.definition, True) for view in carried_views(database, table)]
    return tuple(
        Dependent(kind, name, definition, CARRIED if is_carried else FATES[kind], is_carried)
        for kind, name, definition, is_carried in sorted(rows)
    )
