"""What else in the database stands on a vector column, and what becomes of it when the columns change places.

PostgreSQL binds these objects to the column, not to its name: after a switch they stand on the old vectors.
"""

from __future__ import annotations

from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.table import Table
from vecferry.stores.values import Dependent

STAYS = "goes on standing on the old vectors after the switch, and goes with them at finalize"
REFUSES = "would be asked of the old vectors after the switch, so that writes with new ones alone fail"
DEPENDENTS = """
WITH on_column AS (
    SELECT d.classid, d.objid FROM pg_depend d
    JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %(table)s::oid AND a.attname = %(column)s
)
SELECT 'constraint', c.conname::text, pg_get_constraintdef(c.oid) FROM on_column o
    JOIN pg_constraint c ON o.classid = 'pg_constraint'::regclass AND c.oid = o.objid
    WHERE c.contype IN ('c', 'f', 'u', 'x') AND c.conname NOT LIKE '%%\\_vecferry\\_not\\_null'
UNION SELECT 'policy', p.polname::text, coalesce(pg_get_expr(p.polqual, p.polrelid), '') FROM on_column o
    JOIN pg_policy p ON o.classid = 'pg_policy'::regclass AND p.oid = o.objid
UNION SELECT 'rule', r.rulename::text, '' FROM on_column o
    JOIN pg_rewrite r ON o.classid = 'pg_rewrite'::regclass AND r.oid = o.objid
    WHERE r.ev_class = %(table)s::oid AND r.rulename <> '_RETURN'
UNION SELECT 'generated column', g.attname::text, pg_get_expr(e.adbin, e.adrelid) FROM on_column o
    JOIN pg_attrdef e ON o.classid = 'pg_attrdef'::regclass AND e.oid = o.objid
    JOIN pg_attribute g ON g.attrelid = e.adrelid AND g.attnum = e.adnum AND g.attgenerated <> ''
UNION SELECT 'trigger', t.tgname::text, pg_get_triggerdef(t.oid) FROM on_column o
    JOIN pg_trigger t ON o.classid = 'pg_trigger'::regclass AND t.oid = o.objid
    JOIN pg_proc f ON f.oid = t.tgfoid WHERE f.pronamespace IS DISTINCT FROM to_regnamespace('vecferry')
UNION SELECT 'function', f.oid::regprocedure::text, '' FROM on_column o
    JOIN pg_proc f ON o.classid = 'pg_proc'::regclass AND f.oid = o.objid
UNION SELECT 'default', a.attname::text, pg_get_expr(e.adbin, e.adrelid) FROM pg_attribute a
    JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum AND a.attgenerated = ''
    WHERE a.attrelid = %(table)s::oid AND a.attname = %(column)s
"""
PUBLICATIONS = """
SELECT 'publication', p.pubname::text, '' FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
    JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[])
    WHERE r.prrelid = %(table)s::oid AND a.attname = %(column)s
"""
COLUMN_LISTS = 150000
"""The version of PostgreSQL from which a publication may list columns."""
FATES = {
    "constraint": REFUSES,
    "policy": "would decide by the old vectors after the switch",
    "rule": STAYS,
    "generated column": "would be computed of the old vectors after the switch",
    "trigger": "would not fire for the vectors that serve after the switch",
    "function": STAYS,
    "default": "is not that of the new vectors: a row without a vector would have none after the switch",
    "publication": "would publish the old vectors after the switch",
}


def dependents(database: Database, table: Table) -> tuple[Dependent, ...]:
    """Return all that a switch would leave on the wrong vectors, by kind and name. Views are `Catalogue.views`."""
    queries = [DEPENDENTS] if database.server_version < COLUMN_LISTS else [DEPENDENTS, PUBLICATIONS]
    params = {"table": table.oid, "column": table.vector}
    rows = sorted(row for query in queries for row in database.rows(query, params))
    return tuple(Dependent(kind, name, definition, FATES[kind]) for kind, name, definition in rows)
