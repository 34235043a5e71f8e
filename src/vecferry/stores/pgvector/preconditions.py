"""What must hold for a new side to be made, so that `plan` can say it and `start` refuses before it has begun."""

from __future__ import annotations

from psycopg import sql

from vecferry.embeddings import DENSE, Outputs
from vecferry.errors import StoreSchemaError
from vecferry.stores.pgvector import part_indexes
from vecferry.stores.pgvector.connection import identifier, literal, verbatim
from vecferry.stores.pgvector.dependents import LAYOUT_COLUMNS, obstacles
from vecferry.stores.pgvector.partitions import relations
from vecferry.stores.pgvector.session import TableSession
from vecferry.stores.pgvector.table import PART, whole_target
from vecferry.stores.values import Layout

RIGHTS = """
SELECT current_user::text, pg_get_userbyid(c.relowner)::text, pg_has_role(c.relowner, 'USAGE'),
    has_schema_privilege(c.relnamespace, 'CREATE'),
    CASE WHEN to_regnamespace('vecferry') IS NULL THEN has_database_privilege(current_database(), 'CREATE')
         ELSE has_schema_privilege('vecferry', 'CREATE') END,
    current_database()::text, to_regnamespace('vecferry') IS NULL
FROM pg_class c WHERE c.oid = %s::oid
"""
CHECKS = """
SELECT c.conname::text, pg_get_expr(c.conbin, c.conrelid) FROM pg_constraint c
    JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
    WHERE c.conrelid = %s::oid AND a.attname = %s AND c.contype = 'c'
"""
ROWS_CHECKED = 100
OPEN_BESIDE = """
SELECT target FROM vecferry.migrations WHERE (target = %s OR starts_with(target, %s)) AND target <> %s
    AND state NOT IN ('finalized', 'aborted') ORDER BY target
"""
"""Other migrations of the same vectors."""
OPEN_AROUND = """
SELECT m.of_group FROM vecferry.members AS m JOIN vecferry.migrations AS g ON g.target = m.of_group
    WHERE (m.target = %s OR starts_with(m.target, %s)) AND m.of_group <> %s AND g.state NOT IN ('finalized', 'aborted')
"""
"""Migrations of several tables, the same vectors among them."""


def refuse_new_side(session: TableSession, dimension: int, outputs: Outputs) -> None:
    """Raise StoreSchemaError for what would make `prepare`, a write, an index or the switch fail later."""
    _refuse_role(session)
    _refuse_heads(session, outputs)
    if session.catalogue.columns().layout is Layout.SIDE_TABLE:
        _refuse_beside(session, outputs)
    refuse_overlap(session)
    if session.table.where is not None:
        _refuse_sized(session, dimension)
    _refuse_unindexable(session, dimension)
    _refuse_unacceptable(session, dimension)


def _refuse_role(session: TableSession) -> None:
    table = session.table.full_name
    role, owner, owns, creates_here, creates_schema, database, is_missing = session.db.row(RIGHTS, [session.table.oid])
    if not owns:
        raise StoreSchemaError(f"the role {role} does not own the table {table}", f"Connect as {owner}, who does.")
    for part in relations(session.db, session.table.oid):
        if not part.is_owned:
            what = f"the role {role} does not own the partition {part.full_name}"
            raise StoreSchemaError(what, f"ALTER TABLE {part.full_name} OWNER TO {owner}.")
    if not creates_here and session.catalogue.wanted_indexes():
        schema = identifier(session.table.schema).as_string()
        grant = f"GRANT CREATE ON SCHEMA {schema} TO {identifier(role).as_string()}"
        raise StoreSchemaError(f"the role {role} may make no indexes in the schema {session.table.schema}", grant)
    if not creates_schema:
        where = f"DATABASE {identifier(database).as_string()}" if is_missing else "SCHEMA vecferry"
        grant = f"GRANT CREATE ON {where} TO {identifier(role).as_string()}"
        raise StoreSchemaError(f"the role {role} may not make what a migration keeps in the schema vecferry", grant)


def _refuse_heads(session: TableSession, outputs: Outputs) -> None:
    for output, kind in ((Outputs.SPARSE, "sparsevec"), (Outputs.COLBERT, "halfvec")):
        if output in outputs and kind not in session.table.types:
            what = f"this database's pgvector has no type {kind} for {', '.join(output.names)} vectors"
            raise StoreSchemaError(what, "ALTER EXTENSION vector UPDATE (0.7.0 or later), or leave that output out.")


def _refuse_beside(session: TableSession, outputs: Outputs) -> None:
    """Refuse what has no place in the layout `side-table`: heads need columns of their own once they serve, and the
    column must be able to change its type.
    """
    if outputs != DENSE:
        heads = ", ".join((outputs & ~DENSE).names)
        what = f"there is no column for {heads} vectors of {session.table.target} in the layout side-table"
        is_part = session.table.where is not None
        other = "" if is_part else '; or [store] layout = "columns" (--layout columns)'
        raise StoreSchemaError(what, f"Leave these outputs out{other}.")
    for each in obstacles(session.db, session.table):
        raise StoreSchemaError(f"{each.kind} {each.name} {each.fate}", LAYOUT_COLUMNS)


def _refuse_sized(session: TableSession, dimension: int) -> None:
    """Refuse a shared column, or an index on it, that takes vectors of one length alone."""
    table, columns, catalogue = session.table, session.catalogue.columns(), session.catalogue
    indexes = catalogue.vector_indexes(table.vector)
    if (length := columns.by_name[table.vector].dimension) not in (None, dimension):
        plain = [index for index in indexes if index.holds_vectors and index.cast_length is None]
        raise StoreSchemaError(
            f"the column {table.vector} of {table.full_name} takes vectors of {length} numbers alone, and other rows"
            " keep theirs",
            part_indexes.to_unsized(table, plain, length or 0),
        )
    part_indexes.refuse_foreign_indexes(session.db, table, indexes, list(columns.by_name), dimension)


def refuse_overlap(session: TableSession) -> None:
    """Refuse rows that an open migration of the same vectors has, under another condition or none."""
    table = session.table
    if not session.ledger.is_installed():
        return
    whole = whole_target(table.schema, table.name, table.vector)
    for (group,) in session.db.rows(OPEN_AROUND, [whole, f"{whole}{PART}", session.migration]):
        raise StoreSchemaError(
            f"rows of {table.target} are in the migration of {group}, which has not ended",
            "End that one first: vecferry migrate finalize, or abort, with its [store] collections.",
        )
    for (target,) in session.db.rows(OPEN_BESIDE, [whole, f"{whole}{PART}", session.migration]):
        other = sql.SQL("true") if target == whole else verbatim(target.removeprefix(f"{whole}{PART}"))
        query = sql.SQL("SELECT EXISTS (SELECT FROM {} AS t WHERE {} AND ({}))").format(
            identifier(table.schema, table.name), session.sql.in_part, other
        )
        if target == whole or table.where is None or session.db.row(query)[0]:
            raise StoreSchemaError(
                f"rows of {table.target} are in the migration of {target}, which has not ended",
                "End that one first: vecferry migrate finalize, or abort, with its [store] where.",
            )


def _refuse_unindexable(session: TableSession, dimension: int) -> None:
    for index in session.catalogue.wanted_indexes():
        if index.holds_vectors and dimension > (limit := index.max_dimension(session.table.kind)):
            raise StoreSchemaError(
                f"the index {index.name} on {session.table.target} cannot be made anew for {dimension} numbers",
                f"pgvector indexes at most {limit} of this kind; drop the index, or choose a smaller model.",
            )


def _refuse_unacceptable(session: TableSession, dimension: int) -> None:
    """Refuse a constraint that goes with the vectors and takes none of that length: rows are tried with a unit one."""
    table = session.table
    others = sql.SQL(", ").join(
        session.sql.column(name) for name in session.catalogue.columns().by_name if name != table.vector
    )
    zeros = ", 0" * (dimension - 1)
    vector = sql.SQL("{}::{} AS {}").format(
        literal(f"[1{zeros}]"), session.sql.type_name(table.kind), identifier(table.vector)
    )
    for name, condition in session.db.rows(CHECKS, [table.oid, table.vector]):
        query = sql.SQL("SELECT count(*) FROM (SELECT {}, {} FROM {} AS t WHERE {} LIMIT {}) AS {} WHERE NOT ({})")
        kept = sql.SQL("{} IS NOT NULL").format(session.sql.column(table.vector))
        parts = (others, vector, session.sql.rows, kept, sql.Literal(ROWS_CHECKED), identifier(table.name))
        if session.db.row(query.format(*parts, verbatim(condition)))[0]:
            what = f"the constraint {name} of {table.full_name} takes no vectors of {dimension} numbers"
            raise StoreSchemaError(f"{what}: {condition}", "Drop it, or let it take both lengths.")
