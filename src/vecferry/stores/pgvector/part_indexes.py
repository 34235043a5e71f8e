"""The indexes of a shared table that cast its vectors to one length, and what they are to the part that is migrated.

An index of the part alone changes its length with the part's vectors. One that has other rows too would refuse either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from psycopg import sql

from vecferry.errors import StoreSchemaError
from vecferry.stores.pgvector.connection import Database, Fragment, identifier, literal, verbatim
from vecferry.stores.pgvector.expressions import over_another, over_expression
from vecferry.stores.pgvector.indexes import VectorIndex
from vecferry.stores.pgvector.table import Table, suffixed
from vecferry.stores.pgvector.table_sql import TableSql


@dataclass(frozen=True)
class PendingIndex:
    """An index of the part that is to be built. statement: which does that, beside writers."""

    name: str
    statement: str
    comment: str | None

    @classmethod
    def like(cls, index: VectorIndex, vector: str, lengths: tuple[int, int]) -> PendingIndex:
        """Return one that takes vectors of the second of these lengths, in the place of one that is dropped."""
        create = index.create_statement(index.name, (vector, vector), lengths).as_string().replace("%%", "%")
        return cls(index.name, create.replace(" INDEX ", " INDEX CONCURRENTLY ", 1), index.comment)

    def over(self, vector: str, lengths: tuple[int, int]) -> PendingIndex:
        """Return the same for vectors of the second of these lengths."""
        return replace(self, statement=over_another(self.statement, (vector, vector), lengths))


def as_comment(pending: Sequence[PendingIndex]) -> str:
    """Return what `from_comment` reads."""
    return json.dumps([asdict(index) for index in pending])


def from_comment(comment: str | None) -> list[PendingIndex]:
    return [PendingIndex(**index) for index in json.loads(comment or "[]")]


def own_indexes(database: Database, table: Table, indexes: Sequence[VectorIndex]) -> list[VectorIndex]:
    """Return those that cast, and whose condition says of each row that it is of the part, as the server sees it."""
    return [index for index in indexes if index.cast_length is not None and _is_own(database, table, index)]


def _is_own(database: Database, table: Table, index: VectorIndex) -> bool:
    """Return whether the server proves that no row can be in the index and not in the part, whatever is written."""
    if table.where is None or index.condition is None:
        return False
    query = sql.SQL("EXPLAIN (FORMAT JSON) SELECT FROM {} AS t WHERE ({}) AND {} IS NOT TRUE").format(
        identifier(table.schema, table.name), verbatim(index.condition), table.where.over("t")
    )
    with database.transaction():
        database.execute("SET LOCAL constraint_exclusion = on")
        ((plan,),) = database.rows(query)
    return bool(plan[0]["Plan"].get("One-Time Filter") == "false")


def refuse_foreign_indexes(
    database: Database, table: Table, indexes: Sequence[VectorIndex], columns: Sequence[str], dimension: int
) -> None:
    """Raise StoreSchemaError for one with rows of the part and of others that casts to another length than that.

    columns: of the table. A row is tried with a new vector, so a condition on the length of the vectors is seen too.
    """
    assert table.where is not None, "a part is migrated"
    unit = sql.SQL("{}::{} AS {}").format(
        literal(f"[1{', 0' * (dimension - 1)}]"), TableSql(table).type_name(table.kind), identifier(table.vector)
    )
    row = sql.SQL(", ").join([*(TableSql(table).column(name) for name in columns if name != table.vector), unit])
    own = own_indexes(database, table, indexes)
    for index in indexes:
        if index.cast_length not in (None, dimension) and index not in own and _takes(database, table, index, row):
            raise StoreSchemaError(
                f"the index {index.name} on {table.full_name} has rows of the part, and casts vectors to"
                f" {index.cast_length} numbers, so that it would refuse the new ones",
                _for_the_others(table, index),
            )


def _takes(database: Database, table: Table, index: VectorIndex, row: Fragment) -> bool:
    """Return whether a row of the part is in the index once it has a new vector."""
    query = sql.SQL("SELECT EXISTS (SELECT FROM (SELECT {} FROM {} AS t) AS {} WHERE {})").format(
        row, TableSql(table).rows, identifier(table.name), verbatim(index.condition or "true")
    )
    return bool(database.row(query)[0])


def to_unsized(table: Table, indexes: Sequence[VectorIndex], length: int) -> str:
    """Return the statements by which the column takes vectors of any length. indexes: that need the one it has."""
    on = identifier(table.schema, table.name).as_string()
    alter = f"ALTER TABLE {on} ALTER COLUMN {identifier(table.vector).as_string()} TYPE {table.kind};"
    drops = [f"DROP INDEX {identifier(table.schema, index.name).as_string()};" for index in indexes]
    creates = [_cast_for_the_others(table, index, length) for index in indexes]
    return " ".join([*drops, alter, *creates])


def _cast_for_the_others(table: Table, index: VectorIndex, length: int) -> str:
    """Return what makes an index anew on vectors cast to that length, without the part's."""
    column = identifier(table.vector).as_string()
    cast = f"({column}::{table.kind}({length}))"
    bare = index.without_condition().definition.partition(" USING ")[2]
    on = identifier(table.schema, table.name).as_string()
    name, others = identifier(index.name).as_string(), _others(table, index)
    return f"CREATE INDEX CONCURRENTLY {name} ON {on} USING {over_expression(bare, table.vector, cast)} WHERE {others};"


def _others(table: Table, index: VectorIndex) -> str:
    """Return the condition of an index that leaves the part out."""
    assert table.where is not None, "a part is migrated"
    return f"NOT {table.where.text}" if index.condition is None else f"({index.condition}) AND NOT {table.where.text}"


def _for_the_others(table: Table, index: VectorIndex) -> str:
    """Return the statements that leave the index to the other rows."""
    assert table.where is not None, "a part is migrated"
    bare = index.without_condition().definition.partition(" USING ")[2]
    made = identifier(suffixed(index.name, "_others")).as_string()
    on, dropped = identifier(table.schema, table.name).as_string(), identifier(table.schema, index.name).as_string()
    create = f"CREATE INDEX CONCURRENTLY {made} ON {on} USING {bare} WHERE {_others(table, index)};"
    return (
        f"{create} DROP INDEX CONCURRENTLY {dropped}; the same with WHERE {table.where.text} is one of the part's own."
    )
