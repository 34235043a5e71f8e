"""What else in the database stands on a vector column, and what becomes of it when the columns change places."""

from __future__ import annotations

import re
from dataclasses import replace

from vecferry.stores.pgvector.carrying import ON_COLUMN, carried
from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.partitions import TREE
from vecferry.stores.pgvector.table import Table
from vecferry.stores.pgvector.views import carried_views, views_of
from vecferry.stores.values import Dependent, Layout

CARRIED = "goes with the name of the column, at the switch and back at rollback"
REBUILT = "is made anew by the server, at the switch and at rollback"
FIXED = "keeps the server from changing the type of the column, which a switch in the layout side-table does"
LAYOUT_COLUMNS = 'Drop it until finalize; or let the table get columns: [store] layout = "columns" (--layout columns).'
STAYS = "goes on standing on the old vectors after the switch, and goes with them at finalize"
FATES = {
    "constraint": "would be asked of the old vectors after the switch, so that writes with new ones alone fail",
    "foreign key": "would be asked of the old vectors after the switch, so that writes with new ones alone fail",
    "generated column": "would be computed of the old vectors after the switch",
    "default": "is not that of the new vectors: a row without a vector would have none after the switch",
    "publication": "would publish the old vectors after the switch",
    "publication of all columns": "would send what start adds to subscribers without such columns, which stop then",
    "function of another role": "runs at each write with the rights of whoever migrates; connect as its owner {}",
    "function": f"{STAYS}, since this role may not replace it",
    "partition": f"stands on one partition alone, {STAYS}",
}
FATES_BESIDE = {
    "constraint": REBUILT,
    "foreign key": FIXED,
    "generated column": FIXED,
    "default": "is of the old length, so that a row without a vector could not be written from the switch on",
    "publication": FIXED,
    "publication of all columns": "sends vectors of the new length from the switch on, and not those that the switch"
    " itself writes",
    "function of another role": FATES["function of another role"],
    "function": f"{FIXED}, and this role may not replace it",
    "view": f"{FIXED}, and cannot be made anew",
    "row type": FIXED,
    "partition": f"stands on one partition alone, and {FIXED}",
}
"""In the layout `side-table`, where one column stays."""
FATES_IN_PART = {
    "foreign key": "must know each new vector of the part, or the switch fails",
    "function of another role": FATES["function of another role"],
}
"""Where the vectors of some rows alone are exchanged, and the column stays as it is."""
ACCEPTABLE = {"publication of all columns", "function of another role"}
"""What keeps no switch from being made there."""
LEFT_BEHIND = """
SELECT CASE c.contype WHEN 'f' THEN 'foreign key' ELSE 'constraint' END, c.conname::text,
    pg_get_constraintdef(c.oid) FROM on_column o
    JOIN pg_constraint c ON o.classid = 'pg_constraint'::regclass AND c.oid = o.objid
    WHERE c.contype IN ('f', 'u', 'x') OR c.contype = 'c' AND c.coninhcount > 0
UNION SELECT 'generated column', g.attname::text, pg_get_expr(e.adbin, e.adrelid) FROM on_column o
    JOIN pg_attrdef e ON o.classid = 'pg_attrdef'::regclass AND e.oid = o.objid
    JOIN pg_attribute g ON g.attrelid = e.adrelid AND g.attnum = e.adnum AND g.attgenerated <> ''
UNION SELECT 'default', a.attname::text, pg_get_expr(e.adbin, e.adrelid) FROM pg_attribute a
    JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum AND a.attgenerated = ''
    WHERE a.attrelid = %(table)s::oid AND a.attname = %(column)s
"""
ON_PARTITIONS = """, on_partition AS (
    SELECT DISTINCT d.classid, d.objid, tree.oid::regclass AS at FROM tree
    JOIN pg_attribute a ON a.attrelid = tree.oid AND a.attname = %(column)s
    JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = tree.oid AND d.refobjsubid = a.attnum
    WHERE level > 0
)
SELECT 'partition', format('constraint %%s on %%s', c.conname, o.at), '' FROM on_partition o
    JOIN pg_constraint c ON o.classid = 'pg_constraint'::regclass AND c.oid = o.objid
    WHERE c.contype IN ('c', 'f', 'u', 'x') AND c.coninhcount = 0 AND c.conparentid = 0
UNION SELECT 'partition', format('trigger %%s on %%s', t.tgname, o.at), '' FROM on_partition o
    JOIN pg_trigger t ON o.classid = 'pg_trigger'::regclass AND t.oid = o.objid
    WHERE NOT t.tgisinternal AND to_jsonb(t) ->> 'tgparentid' = '0'
    AND t.tgfoid NOT IN (SELECT oid FROM pg_proc WHERE pronamespace = to_regnamespace('vecferry'))
UNION SELECT 'partition', format('policy %%s on %%s', p.polname, o.at), '' FROM on_partition o
    JOIN pg_policy p ON o.classid = 'pg_policy'::regclass AND p.oid = o.objid
UNION SELECT 'partition', format('view %%s over %%s', r.ev_class::regclass, o.at), '' FROM on_partition o
    JOIN pg_rewrite r ON o.classid = 'pg_rewrite'::regclass AND r.oid = o.objid
UNION SELECT 'partition', format('function %%s over %%s', o.objid::regprocedure, o.at), '' FROM on_partition o
    WHERE o.classid = 'pg_proc'::regclass
"""
"""What stands on the vectors of one partition, and not on those of the whole."""
WHOLE_PUBLICATIONS = """
SELECT 'publication of all columns', p.pubname::text, '' FROM pg_publication p
    WHERE p.puballtables OR EXISTS (SELECT FROM pg_publication_rel r JOIN tree ON r.prrelid = tree.oid
        WHERE r.prpubid = p.oid AND to_jsonb(r) ->> 'prattrs' IS NULL)
"""
PUBLICATIONS = """
SELECT 'publication', p.pubname::text, '' FROM tree JOIN pg_publication_rel r ON r.prrelid = tree.oid
    JOIN pg_publication p ON p.oid = r.prpubid
    JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[])
    WHERE a.attname = %(column)s
UNION SELECT 'publication of all columns', p.pubname::text, '' FROM pg_publication_namespace n
    JOIN pg_publication p ON p.oid = n.pnpubid JOIN pg_class c ON c.relnamespace = n.pnnspid
    JOIN tree ON tree.oid = c.oid
"""
FOREIGN_CODE = """, parts(classid, objid) AS (
    SELECT 'pg_trigger'::regclass, t.oid FROM pg_trigger t JOIN tree ON tgrelid = tree.oid WHERE tgenabled <> 'D'
    UNION ALL SELECT 'pg_constraint'::regclass, c.oid FROM pg_constraint c JOIN tree ON conrelid = tree.oid
    UNION ALL SELECT 'pg_attrdef'::regclass, a.oid FROM pg_attrdef a JOIN tree ON adrelid = tree.oid
    UNION ALL SELECT 'pg_class'::regclass, indexrelid FROM pg_index JOIN tree ON indrelid = tree.oid
)
SELECT DISTINCT 'function of another role', p.oid::regprocedure::text, r.rolname::text
    FROM parts JOIN pg_depend d ON d.classid = parts.classid AND d.objid = parts.objid
        AND d.refclassid = 'pg_proc'::regclass
    JOIN pg_proc p ON p.oid = d.refobjid JOIN pg_roles r ON r.oid = p.proowner
    WHERE NOT p.prosecdef AND NOT r.rolsuper AND r.rolname <> current_user AND NOT EXISTS (
        SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e')
"""
"""What runs at a write, with the rights of whoever writes, and may be replaced by its owner at any time."""
ROW_TYPES = """
SELECT 'row type', a.attrelid::regclass::text || '.' || quote_ident(a.attname), '' FROM pg_class c
    JOIN pg_type t ON t.oid = c.reltype JOIN pg_attribute a ON a.atttypid IN (t.oid, t.typarray)
    JOIN pg_class r ON r.oid = a.attrelid WHERE c.oid = %(table)s::oid AND r.relkind IN ('r', 'p', 'm', 'c')
UNION ALL SELECT 'row type', c.reloftype::regtype::text, '' FROM pg_class c
    WHERE c.oid = %(table)s::oid AND c.reloftype <> 0
"""
"""Columns that have rows of the table as values, and the type that the table is of."""
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


def dependents(database: Database, table: Table, layout: Layout) -> tuple[Dependent, ...]:
    """Return all that stands on the vectors, by kind and name, but views that cannot be carried (`views.py`).

    And code of others that runs when a row is written.
    """
    if table.where is not None:
        return _of_part(database, table)
    fates = FATES if layout is Layout.COLUMNS else FATES_BESIDE
    queries = [
        ON_COLUMN + LEFT_BEHIND,
        TREE + WHOLE_PUBLICATIONS,
        TREE + FOREIGN_CODE,
        TREE + ON_PARTITIONS,
        *([TREE + PUBLICATIONS] if database.server_version >= COLUMN_LISTS else []),
    ]
    params = {"table": table.oid, "column": table.vector}
    rows = [(*row, False) for query in queries for row in database.rows(query, params)]
    rows += [(each.kind, each.name, each.definition, each.is_allowed) for each in carried(database, table)]
    rows += [("view", view.name, view.definition, True) for view in carried_views(database, table)]
    listed = [
        Dependent(kind, name, definition, CARRIED if is_carried else fates[kind].format(definition), is_carried)
        for kind, name, definition, is_carried in sorted(rows)
    ]
    return tuple(replace(each, is_carried=True) if each.fate == REBUILT else each for each in listed)


def _of_part(database: Database, table: Table) -> tuple[Dependent, ...]:
    """Return what an exchange of vectors meets; nothing is taken off the column, or carried."""
    params = {"table": table.oid, "column": table.vector}
    rows = [row for query in (ON_COLUMN + LEFT_BEHIND, TREE + FOREIGN_CODE) for row in database.rows(query, params)]
    return tuple(
        Dependent(kind, name, definition, FATES_IN_PART[kind].format(definition))
        for kind, name, definition in sorted(rows)
        if kind in FATES_IN_PART
    )


def obstacles(database: Database, table: Table) -> tuple[Dependent, ...]:
    """Return what keeps the column from taking vectors of another length, and cannot be taken away and made anew.

    Of a part nothing: its column keeps its type.
    """
    if table.where is not None:
        return ()
    rows = [("view", view.name, view.definition) for view in views_of(database, table) if not view.is_carried]
    rows += database.rows(ROW_TYPES, {"table": table.oid})
    others = [Dependent(kind, name, text, FATES_BESIDE[kind], is_carried=False) for kind, name, text in sorted(rows)]
    standing = dependents(database, table, Layout.SIDE_TABLE)
    return (*(each for each in standing if not each.is_carried and each.kind not in ACCEPTABLE), *others)
