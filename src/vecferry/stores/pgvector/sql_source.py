r"""A text that the server computes: `[store] text` as an expression, such as `title || E'\n' || body`, or a `source`.

A source is a view or a query that has the table's key and the text as columns; it becomes the same kind of expression.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from vecferry.errors import StoreFailed, StoreSchemaError
from vecferry.stores.pgvector.binary import is_vector_type
from vecferry.stores.pgvector.connection import OWN_PATH, Database, Fragment, identifier, verbatim
from vecferry.stores.pgvector.expressions import names_in
from vecferry.stores.text_source import SqlText

OF_THE_MOMENT = frozenset(
    {
        "current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "now", "timeofday",
        "current_user", "session_user", "current_role", "current_setting", "txid_current",
        "statement_timestamp", "transaction_timestamp",
    }
)  # fmt: skip
"""What has another value at another time, or for somebody else, and is not called volatile."""
COLUMNS = (
    "SELECT a.attname::text, t.typname::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
    " WHERE a.attrelid = %s::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
)
READ_BY_VIEW = """
WITH RECURSIVE views AS (
    SELECT %s::regclass::oid AS oid
    UNION SELECT d.refobjid FROM views v JOIN pg_rewrite r ON r.ev_class = v.oid
        JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
        AND d.refclassid = 'pg_class'::regclass
)
SELECT DISTINCT a.attname::text FROM views v JOIN pg_rewrite r ON r.ev_class = v.oid
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
    JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.refobjid = %s::oid
"""
"""The columns of a table that a view is made of, through other views too."""
SCANNED = """
SELECT w.oid::bigint, w.oid::regclass::text, greatest(count(*) FILTER (WHERE l.relkind <> 'p'), 1), w.relkind = 'p'
FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS s(schema, name, number)
JOIN pg_namespace n ON n.nspname = s.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = s.name
JOIN LATERAL (
    WITH RECURSIVE above(oid, level) AS (
        SELECT c.oid, 0 UNION ALL SELECT i.inhparent, a.level + 1 FROM above a
        JOIN pg_class p ON p.oid = a.oid AND p.relispartition JOIN pg_inherits i ON i.inhrelid = a.oid
    ) SELECT oid FROM above ORDER BY level DESC LIMIT 1
) AS whole ON true JOIN pg_class w ON w.oid = whole.oid
JOIN LATERAL (
    WITH RECURSIVE below(oid) AS (
        SELECT w.oid UNION ALL SELECT i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.oid
        WHERE w.relkind = 'p'
    ) SELECT p.relkind FROM below JOIN pg_class p ON p.oid = below.oid
) AS l ON true
GROUP BY s.number, w.oid, w.relkind ORDER BY s.number
"""
"""The tables that are scanned, once for each scan: of a partition the whole, with the number of its partitions."""
QUERY = re.compile(r"\s*(SELECT|WITH|VALUES|TABLE)\b", re.IGNORECASE)


@dataclass(frozen=True)
class OtherTable:
    """A table that texts are made of too. name: as PostgreSQL writes it, with its schema where that is needed.

    parts: how many partitions have its rows; 1 for one that is not partitioned. is_partitioned: whether it is.
    """

    oid: int
    name: str
    parts: int = 1
    is_partitioned: bool = False


def joined_source(
    database: Database, oid: int, table: str, key: Sequence[str], source: str, text: str
) -> tuple[SqlText, dict[str, str]]:
    """Return the text of a view or a query with the table's key, and the types of the table's columns that it reads.

    Raises StoreSchemaError.
    """
    is_query = QUERY.match(source) is not None
    with database.as_the_role_names():
        (view,) = (None,) if is_query else database.row("SELECT to_regclass(%s)::oid::bigint", [source])
    if view is None and not is_query:
        raise StoreSchemaError(f"[store] source {source!r} is no view and no query", "Name a view, or write SELECT ...")
    same = " AND ".join(f"s.{_quoted(name)} = {_quoted(table)}.{_quoted(name)}" for name in key)
    expression = f"(SELECT s.{_quoted(text)} FROM {f'({source})' if is_query else source} AS s WHERE {same})"  # noqa: S608  # names quoted, or the server's

    read = {name for (name,) in database.rows(READ_BY_VIEW, [view, oid])} if view else names_in(source)
    types = {
        name: kind for name, kind in _types(database, oid, {*key, text, *read}).items() if not is_vector_type(kind)
    }
    return _checked(database, oid, expression, types), types


def sql_source(database: Database, oid: int, table: str, expression: str) -> tuple[SqlText, dict[str, str]]:
    """Return an expression as a source, and the types of the table's columns that it reads. Raises StoreSchemaError."""
    columns = _types(database, oid, set(names_in(expression)))
    if QUERY.match(expression):
        expression = f"({expression})"
    if not columns:
        raise StoreSchemaError(f"the text {expression} reads no column of {table}", "Name the columns it is made of.")
    if vectors := [name for name, kind in columns.items() if is_vector_type(kind)]:
        raise StoreSchemaError(f"the text {expression} reads {', '.join(vectors)}", "A text is not made of vectors.")
    return _checked(database, oid, expression, columns), columns


def _types(database: Database, oid: int, names: set[str]) -> dict[str, str]:
    """Return those of the names that are columns, with their types."""
    return {name: kind for name, kind in database.rows(COLUMNS, [oid]) if name in names}


def _checked(database: Database, oid: int, expression: str, columns: Mapping[str, str]) -> SqlText:
    """Return the expression as a source, its names looked up once and for all. Raises StoreSchemaError."""
    _refuse_passing(database, expression)
    try:
        return SqlText(expression, tuple(columns), _resolved(database, oid, expression, tuple(columns)))
    except (StoreSchemaError, StoreFailed) as exc:
        reason = exc.what if isinstance(exc, StoreSchemaError) else exc.reason
        raise StoreSchemaError(
            f"the text {expression} cannot be read: {reason}", "Write an expression of SQL."
        ) from exc


def _resolved(database: Database, oid: int, expression: str, columns: tuple[str, ...]) -> str:
    """Return the expression with every name as the server writes it, after it has read it as a temporary view.

    The view of a constant says what stands around it. Nothing of this is kept.
    """
    definitions, named = list[str](), _name_of(database, oid)
    for text in ("NULL", expression):
        shown = _all_texts(named, SqlText(text, columns, text))
        with database.as_the_role_names():
            database.execute(sql.SQL("CREATE TEMPORARY VIEW vecferry_text(text) AS ") + shown)
            database.rows("SELECT pg_catalog.set_config('search_path', %s, true)", [OWN_PATH])
            definitions += database.row("SELECT pg_get_viewdef('pg_temp.vecferry_text'::regclass)")
    frame, definition = definitions
    before, _, after = frame.partition(" NULL::text")
    if not (definition.startswith(before) and definition.endswith(after)):
        raise StoreSchemaError("more than one", "Write one expression of SQL.")
    return definition[len(before) : -len(after)].strip()


def computed(source: SqlText, table: str, column: Mapping[str, Fragment]) -> sql.Composed:
    """Return the expression over given columns. Within it they are the table's, by bare name or with the table's."""
    columns = sql.SQL(", ").join(sql.SQL("{} AS {}").format(of, identifier(name)) for name, of in column.items())
    return sql.SQL("(SELECT ({})::text AS text FROM (SELECT {}) AS {})").format(
        verbatim(source.expression), columns, identifier(table)
    )


def other_tables(database: Database, oid: int, source: SqlText, own_reads: int) -> tuple[OtherTable, ...]:
    """Return the tables that the server would read for texts; views by what they are made of.

    own_reads: how often the table itself is read for the row itself; where it is read once more, it is among them.
    """
    texts = _all_texts(_name_of(database, oid), source)
    ((plan,),) = database.rows(sql.SQL("EXPLAIN (VERBOSE, FORMAT JSON) ") + texts)
    scanned = [(node["Schema"], node["Relation Name"]) for node in _nodes(plan[0]["Plan"]) if "Relation Name" in node]
    rows = database.rows(SCANNED, [[schema for schema, _ in scanned], [name for _, name in scanned]])
    tables = [OtherTable(*row) for row in rows]
    parts = next((table.parts for table in tables if table.oid == oid), 1)  # each read of the table reads all of these
    reads = Counter(tables) - Counter({table: own_reads * parts for table in tables if table.oid == oid})
    return tuple(sorted(reads, key=lambda table: table.name))


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


def _name_of(database: Database, oid: int) -> tuple[str, str]:
    """Return the schema and the name of a table."""
    schema, name = database.row(
        "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.oid = %s::oid",
        [oid],
    )
    return schema, name


def _all_texts(named: tuple[str, str], source: SqlText) -> sql.Composed:
    """Return a query for the texts of all rows of the table with that schema and name."""
    columns = {column: sql.SQL("t.{}").format(identifier(column)) for column in source.columns}
    return sql.SQL("SELECT {} FROM {} AS t").format(computed(source, named[1], columns), identifier(*named))


def _refuse_passing(database: Database, expression: str) -> None:
    """Refuse what gives another text each time it is asked, after which no vector would ever be current."""
    (volatile,) = database.row(
        "SELECT min(p.proname)::text FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.provolatile = 'v'"
        " AND l.lanname IN ('internal', 'c') AND p.proname = ANY(%s)"  # others are called so if nobody says anything
        " AND NOT EXISTS (SELECT FROM pg_proc o WHERE o.proname = p.proname AND o.provolatile <> 'v')",
        [list(names_in(expression, calls=True))],
    )
    if passing := volatile or min(OF_THE_MOMENT.intersection(names_in(expression)), default=None):
        raise StoreSchemaError(
            f"the text {expression} is another one each time, by {passing}", "A text may depend on stored values alone."
        )


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string()
