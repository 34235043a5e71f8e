"""A search's filter as a condition on the rows that are called `t`. Names are quoted, values are parameters."""

from __future__ import annotations

from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from vecferry.errors import InvalidFilter
from vecferry.stores.filters import RANGES, Comparison, Condition, NativeFilter, Scalar, kind_of
from vecferry.stores.pgvector.catalogue import Columns
from vecferry.stores.pgvector.connection import Fragment, identifier

NUMBERS = frozenset({"int2", "int4", "int8", "float4", "float8", "numeric"})
TEXTS = frozenset({"text", "varchar", "bpchar", "name", "citext"})
ORDERED = frozenset({"date", "timestamp", "timestamptz", "time", "timetz", "interval", "uuid", "inet", "cidr"})
"""Types whose values are texts in a filter, and are compared as what they are."""
OPERATORS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
JUNCTIONS = {"$and": sql.SQL(" AND "), "$or": sql.SQL(" OR ")}


def filter_sql(where: Condition | NativeFilter, columns: Columns) -> tuple[sql.Composed, list[object]]:
    """Return a condition, and its parameters. Raises InvalidFilter for a field that the table has no column for."""
    if isinstance(where, NativeFilter):
        return sql.SQL("({})").format(sql.SQL(where.condition)), list(where.params)
    if isinstance(where, Comparison):
        return _compared(where, columns)
    parts = [filter_sql(part, columns) for part in where.parts]
    joined = sql.SQL("({})").format(JUNCTIONS[where.operator].join(part for part, _ in parts))
    return joined, [value for _, values in parts for value in values]


def _compared(comparison: Comparison, columns: Columns) -> tuple[sql.Composed, list[object]]:
    name, _, path = comparison.field.partition(".")
    if comparison.field in columns.by_name:
        name, path = comparison.field, ""
    if name not in columns.by_name or name in columns.ours() | columns.of_vectors():
        raise InvalidFilter(comparison.field, "the table has no such column")
    kind = columns.by_name[name].kind
    column = sql.SQL("t.{}").format(identifier(name))
    if kind in ("json", "jsonb"):
        return _in_json(comparison, sql.SQL("{}::pg_catalog.jsonb").format(column), path.split(".") if path else [])
    if path:
        raise InvalidFilter(comparison.field, f"the column {name} is {kind}, and has no fields in it")
    operator = comparison.operator
    if operator in RANGES and kind not in NUMBERS | TEXTS | ORDERED:
        raise InvalidFilter(
            f"{comparison.field}.{operator}", f"values of {kind} are compared by $eq, $ne, $in and $nin"
        )
    values = [_placeholder(comparison, kind, value) for value in comparison.values]
    if kind not in NUMBERS | TEXTS | ORDERED | {"bool"}:
        column = sql.SQL("{}::pg_catalog.text").format(column)
    if operator in RANGES:
        return sql.SQL("{} {} {}").format(column, sql.SQL(OPERATORS[operator]), values[0]), [*comparison.values]
    found = sql.SQL("{} IN ({})").format(column, sql.SQL(", ").join(values))
    return _negated(found, comparison), [*comparison.values]


def _placeholder(comparison: Comparison, kind: str, value: Scalar) -> sql.SQL:
    """Return a placeholder of a type that the column is compared with. Raises InvalidFilter for another value."""
    expected = "number" if kind in NUMBERS else "boolean" if kind == "bool" else "text"
    if kind_of(value) != expected:
        raise InvalidFilter(comparison.field, f"the column is {kind}, to be compared with a {expected}")
    if kind == "float4" or kind in ORDERED:
        return sql.SQL(f"%s::pg_catalog.{kind}")
    casts = {"boolean": "bool", "text": "text", "number": "int8" if isinstance(value, int) else "float8"}
    return sql.SQL(f"%s::pg_catalog.{casts[expected]}")


def _in_json(comparison: Comparison, column: Fragment, path: list[str]) -> tuple[sql.Composed, list[object]]:
    """Compare a value in a JSON column: equality by `@>`, for which there are indexes."""
    if comparison.operator in RANGES:
        (value,) = comparison.values
        place = sql.SQL("({} #> %s::pg_catalog.text[])").format(column)
        kind = "string" if isinstance(value, str) else "number"
        operator = sql.SQL(OPERATORS[comparison.operator])
        compared = sql.SQL("(pg_catalog.jsonb_typeof({place}) = %s AND {place} {operator} %s)")
        return compared.format(place=place, operator=operator), [path, kind, path, Jsonb(value)]
    contained = sql.SQL("{} @> %s").format(column)
    found = sql.SQL("({})").format(sql.SQL(" OR ").join([contained] * len(comparison.values)))
    return _negated(found, comparison), [Jsonb(_nested(path, value)) for value in comparison.values]


def _nested(path: list[str], value: Scalar) -> Any:
    return {path[0]: _nested(path[1:], value)} if path else value


def _negated(found: sql.Composed, comparison: Comparison) -> sql.Composed:
    """Return the condition, or that it is not so; which holds where there is no value."""
    return sql.SQL("({}) IS NOT TRUE").format(found) if comparison.is_negated else found
