"""Views that show a vector column: taken away before the columns change places, and made from the same text after it.

A view cannot show vectors of another length than it was made for, so it is dropped and created, with its owner,
options, privileges and comments; and with it all views over it.
"""

from __future__ import annotations

from dataclasses import dataclass

from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.table import Table

VIEWS = """
WITH RECURSIVE standing AS (
    SELECT r.ev_class AS oid, 1 AS level FROM pg_depend d
    JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %(table)s::oid AND a.attname = %(column)s
    AND r.ev_class <> d.refobjid
    UNION SELECT r.ev_class, s.level + 1 FROM standing s
    JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = s.oid
    JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid AND r.ev_class <> s.oid
), views AS (SELECT oid, max(level) AS level FROM standing GROUP BY oid)
SELECT v.oid::regclass::text, pg_get_viewdef(v.oid),
    c.relkind = 'v' AND has_schema_privilege(c.relowner, c.relnamespace, 'CREATE')
    AND (pg_has_role(c.relowner, 'USAGE')
         OR pg_has_role((SELECT relowner FROM pg_class WHERE oid = %(table)s::oid), c.relowner, 'USAGE'))
    AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = v.oid)
    AND NOT EXISTS (SELECT FROM pg_attrdef WHERE adrelid = v.oid)
    AND NOT EXISTS (SELECT FROM pg_rewrite WHERE ev_class = v.oid AND rulename <> '_RETURN')
    AND NOT EXISTS (
        SELECT FROM pg_depend d LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
        WHERE d.deptype = 'n' AND (r.ev_class IS NULL OR r.ev_class NOT IN (SELECT oid FROM views))
        AND (d.refclassid = 'pg_class'::regclass AND d.refobjid = v.oid
             OR d.refclassid = 'pg_type'::regclass AND d.refobjid IN (c.reltype, y.typarray))),
    ARRAY[format('CREATE VIEW %%s%%s AS %%s', v.oid::regclass,
                 ' WITH (' || array_to_string(c.reloptions, ', ') || ')', pg_get_viewdef(v.oid)),
          format('ALTER VIEW %%s OWNER TO %%I', v.oid::regclass, pg_get_userbyid(c.relowner)),
          format('COMMENT ON VIEW %%s IS %%L', v.oid::regclass, obj_description(v.oid, 'pg_class'))]
    || ARRAY(SELECT format('COMMENT ON COLUMN %%s.%%I IS %%L', v.oid::regclass, a.attname,
                           col_description(v.oid, a.attnum)) FROM pg_attribute a
             WHERE a.attrelid = v.oid AND col_description(v.oid, a.attnum) IS NOT NULL)
    || ARRAY(SELECT format('GRANT %%s%%s ON %%s TO %%s%%s', p.privilege_type, ' (' || quote_ident(g.column) || ')',
                           v.oid::regclass,
                           CASE p.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(p.grantee)) END,
                           CASE WHEN p.is_grantable THEN ' WITH GRANT OPTION' END)
             FROM (SELECT NULL AS column, c.relacl AS acl
                   UNION ALL SELECT a.attname, a.attacl FROM pg_attribute a WHERE a.attrelid = v.oid) AS g
             CROSS JOIN LATERAL aclexplode(g.acl) p WHERE p.grantee <> c.relowner)
FROM views v JOIN pg_class c ON c.oid = v.oid LEFT JOIN pg_type y ON y.oid = c.reltype ORDER BY v.level, 1
"""


@dataclass(frozen=True)
class View:
    """A view. name: as PostgreSQL writes it; is_carried: whether it can be made anew; statements: which do that."""

    name: str
    definition: str
    is_carried: bool
    statements: tuple[str, ...]

    @property
    def lock_statement(self) -> str:
        """Return what locks the view until the transaction ends; LOCK TABLE would lock all that it shows."""
        return self.statements[1]


def views_of(database: Database, table: Table) -> list[View]:
    """Return the views over the vectors that serve, each before those over it; all of them are carried, or none."""
    rows = database.rows(VIEWS, {"table": table.oid, "column": table.vector})
    is_carried = all(is_possible for _, _, is_possible, _ in rows)
    return [View(name, definition, is_carried, tuple(statements)) for name, definition, _, statements in rows]


def carried_views(database: Database, table: Table) -> list[View]:
    """Return those that go with the vectors, in the same order."""
    return [view for view in views_of(database, table) if view.is_carried]
