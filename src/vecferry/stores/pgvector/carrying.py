"""What goes with the vectors when the columns change places: constraints, policies, triggers, rules, functions, rights.

PostgreSQL binds these to a column, not to its name. So they are read as the server writes them while the one column
has the name, let go, and made from the same text when the other has it, all in the transaction of the switch. Where one
column stays and takes the other vectors, the same lets the server change its type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.partitions import relations
from vecferry.stores.pgvector.table import Table
from vecferry.stores.pgvector.views import carried_views

ON_COLUMN = """
WITH on_column AS (
    SELECT DISTINCT d.classid, d.objid, %(table)s::oid::regclass AS at FROM pg_depend d
    JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %(table)s::oid AND a.attname = %(column)s
)
"""
CARRIED = """
SELECT 'constraint', c.conname::text, pg_get_constraintdef(c.oid), true,
    ARRAY[format('ALTER TABLE %%s DROP CONSTRAINT %%I', o.at, c.conname)],
    ARRAY[format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s%%s', o.at, c.conname, pg_get_constraintdef(c.oid),
                 CASE WHEN c.convalidated THEN ' NOT VALID' END),
          format('COMMENT ON CONSTRAINT %%I ON %%s IS %%L', c.conname, o.at, obj_description(c.oid, 'pg_constraint'))]
    FROM on_column o JOIN pg_constraint c ON o.classid = 'pg_constraint'::regclass AND c.oid = o.objid
    WHERE c.contype = 'c' AND c.coninhcount = 0 AND c.conname NOT LIKE '%%\\_vecferry\\_not\\_null'
UNION ALL
SELECT 'policy', p.polname::text, coalesce(pg_get_expr(p.polqual, p.polrelid), ''), true,
    ARRAY[format('ALTER POLICY %%I ON %%s', p.polname, p.polrelid::regclass)
          || CASE WHEN p.polqual IS NULL THEN '' ELSE ' USING (false)' END
          || CASE WHEN p.polwithcheck IS NULL THEN '' ELSE ' WITH CHECK (false)' END],
    ARRAY[format('ALTER POLICY %%I ON %%s', p.polname, p.polrelid::regclass)
          || coalesce(' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', '')
          || coalesce(' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', '')]
    FROM on_column o JOIN pg_policy p ON o.classid = 'pg_policy'::regclass AND p.oid = o.objid
UNION ALL
SELECT 'trigger', t.tgname::text, pg_get_triggerdef(t.oid), true,
    ARRAY[format('DROP TRIGGER %%I ON %%s', t.tgname, o.at)],
    ARRAY[pg_get_triggerdef(t.oid),
          format('ALTER TABLE %%s %%s TRIGGER %%I', o.at, CASE t.tgenabled WHEN 'O' THEN 'ENABLE'
                 WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, t.tgname),
          format('COMMENT ON TRIGGER %%I ON %%s IS %%L', t.tgname, o.at, obj_description(t.oid, 'pg_trigger'))]
    FROM on_column o JOIN pg_trigger t ON o.classid = 'pg_trigger'::regclass AND t.oid = o.objid
    JOIN pg_proc f ON f.oid = t.tgfoid
    WHERE NOT t.tgisinternal AND (%(ours)s OR f.pronamespace IS DISTINCT FROM to_regnamespace('vecferry'))
UNION ALL
SELECT 'function', f.oid::regprocedure::text, '',
    has_schema_privilege(f.proowner, f.pronamespace, 'CREATE') AND (pg_has_role(f.proowner, 'USAGE')
        OR pg_has_role((SELECT relowner FROM pg_class WHERE oid = %(table)s::oid), f.proowner, 'USAGE')),
    ARRAY['SET LOCAL check_function_bodies = off',
          regexp_replace(pg_get_functiondef(f.oid), E'\\n *(BEGIN ATOMIC|RETURN ).*$', E'\\nAS $$$$')],
    ARRAY[pg_get_functiondef(f.oid)]
    FROM on_column o JOIN pg_proc f ON o.classid = 'pg_proc'::regclass AND f.oid = o.objid
ORDER BY 1, 2
"""
GRANTED = """
SELECT format('%%s %%s (%%I) ON TABLE %%s %%s %%s%%s', verb, privilege, %(column)s::text, %(table)s::oid::regclass,
              direction, grantee, CASE WHEN is_grantable THEN ' WITH GRANT OPTION' END)
FROM (
    SELECT 'REVOKE' AS verb, 'FROM' AS direction, 'ALL' AS privilege, false AS is_grantable, p.grantee AS role
        FROM pg_attribute a CROSS JOIN LATERAL aclexplode(a.attacl) p
        WHERE a.attrelid = %(table)s::oid AND a.attname = %(incoming)s
    UNION
    SELECT 'GRANT', 'TO', p.privilege_type, p.is_grantable, p.grantee
        FROM pg_attribute a CROSS JOIN LATERAL aclexplode(a.attacl) p
        WHERE a.attrelid = %(table)s::oid AND a.attname = %(column)s
) AS rights
CROSS JOIN LATERAL (SELECT CASE role WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(role)) END AS grantee) AS g
ORDER BY verb DESC
"""
COMMENT = """
SELECT format('COMMENT ON COLUMN %%s.%%I IS %%L', %(table)s::oid::regclass, %(column)s::text, concat_ws(E'\\n',
    nullif(regexp_replace(col_description(s.attrelid, s.attnum), E'(^|\\n)vecferry:space:[^\\n]*$', ''), ''),
    substring(col_description(i.attrelid, i.attnum) FROM E'vecferry:space:[^\\n]*$')))
FROM pg_attribute s CROSS JOIN pg_attribute i WHERE s.attrelid = %(table)s::oid AND s.attname = %(column)s
AND i.attrelid = %(of)s::oid AND i.attname = %(incoming)s
"""
"""The application's comment goes with the name; the mark of a space, its last line, stays with the vectors."""
STORAGE = """
SELECT concat_ws(', ',
    CASE WHEN a.attstorage <> t.typstorage THEN format('ALTER COLUMN %%I SET STORAGE %%s', %(incoming)s::text,
         CASE a.attstorage WHEN 'e' THEN 'EXTERNAL' WHEN 'x' THEN 'EXTENDED' WHEN 'm' THEN 'MAIN'
                           ELSE %(plain)s END) END,
    format('ALTER COLUMN %%I SET COMPRESSION ', %(incoming)s::text)
        || CASE to_jsonb(a) ->> 'attcompression' WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4' END)
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = %(of)s::oid AND a.attname = %(column)s
"""
"""How a column is stored. PLAIN becomes MAIN where the vectors get longer: one may need more than its page."""
SETTINGS = """
SELECT concat_ws(', ',
    CASE WHEN a.attstattarget >= 0
         THEN format('ALTER COLUMN %%I SET STATISTICS %%s', %(incoming)s::text, a.attstattarget) END,
    CASE WHEN a.attoptions IS NOT NULL
         THEN format('ALTER COLUMN %%I SET (%%s)', %(incoming)s::text, array_to_string(a.attoptions, ', ')) END)
FROM pg_attribute a WHERE a.attrelid = %(table)s::oid AND a.attname = %(column)s
"""
"""Statistics and options of a column."""


@dataclass(frozen=True)
class Carried:
    """One object. before: what lets go of the column; after: what takes hold of the one that has its name then.

    is_allowed: whether this role may do that.
    """

    kind: str
    name: str
    definition: str
    is_allowed: bool
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class Handover:
    """What is done around the change. before: lets go of what serves; after: takes hold of what serves then."""

    before: tuple[str, ...]
    after: tuple[str, ...]


def carried(database: Database, table: Table, *, ours: bool = False) -> list[Carried]:
    """Return what stands on the column that serves and could go with its name. ours: the triggers of a capture too."""
    rows = database.rows(ON_COLUMN + CARRIED, {"table": table.oid, "column": table.vector, "ours": ours})
    return [
        Carried(kind, name, definition, is_allowed, tuple(before), tuple(filter(None, after)))
        for kind, name, definition, is_allowed, before, after in rows
    ]


def handover(database: Database, table: Table, incoming: str) -> Handover:
    """Return what gives the column `incoming`, under the name of the one that serves, all that stands on that now."""
    names = {"column": table.vector, "incoming": incoming}
    own = [
        statement
        for part in relations(database, table.oid)
        for query in (GRANTED, COMMENT)
        for (statement,) in database.rows(query, names | {"table": part.oid, "of": part.oid})
    ]
    return _around(database, table, carried(database, table), own)


def refilling(database: Database, table: Table, side_table: int) -> Handover:
    """Return what lets the column that serves change its type, for the vectors of that name in the side table.

    What belongs to the column itself stays with it, but for the mark of their space in its comment.
    """
    params = {"table": table.oid, "column": table.vector, "incoming": table.vector, "of": side_table}
    own = [statement for (statement,) in database.rows(COMMENT, params)]
    return _around(database, table, carried(database, table, ours=True), own)


def _around(database: Database, table: Table, on_column: Sequence[Carried], own: Sequence[str]) -> Handover:
    objects = [each for each in on_column if each.is_allowed]
    views = carried_views(database, table)
    before = [f"DROP VIEW {view.name}" for view in reversed(views)]
    before += [statement for each in objects for statement in each.before]
    after = [statement for view in views for statement in view.statements]
    return Handover(tuple(before), (*(statement for each in objects for statement in each.after), *own, *after))


def settings(database: Database, table: Table, incoming: str) -> str:
    """Return the parts of an ALTER TABLE that store and analyse another column like the one that serves; or nothing."""
    params = {"table": table.oid, "column": table.vector, "incoming": incoming}
    analysed = str(database.row(SETTINGS, params)[0])
    return ", ".join(filter(None, [storage(database, table.oid, table.vector, incoming, plain="MAIN"), analysed]))


def storage(database: Database, of: int, column: str, incoming: str, plain: str = "PLAIN") -> str:
    """Return the parts of an ALTER TABLE that store another column like that one; or nothing.

    of: the number of its table. plain: what becomes of PLAIN.
    """
    params = {"of": of, "column": column, "incoming": incoming, "plain": plain}
    return str(database.row(STORAGE, params)[0])
