"""A search's filter as SQL of SQLite. Values are parameters, names come from the table itself."""

from __future__ import annotations

from collections.abc import Mapping

from vecferry.errors import InvalidFilter
from vecferry.stores.filters import RANGES, Comparison, Condition, NativeFilter, Scalar, kind_of, written

SYMBOLS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
STORAGE = {"text": "('text')", "number": "('integer', 'real')", "boolean": "('integer')"}
"""How SQLite keeps each kind, which it would compare with any other by turns of its own."""


def sqlite_condition(where: Condition | NativeFilter, columns: Mapping[str, str]) -> tuple[str, list[object]]:
    """Return a condition, and its parameters. columns: how each that can be compared is written.

    Raises InvalidFilter for a field that there is no column for.
    """
    if isinstance(where, NativeFilter):
        return f"({where.condition})", list(where.params)
    params: list[object] = []
    return written(where, lambda comparison: _compared(comparison, columns, params)), params


def _compared(comparison: Comparison, columns: Mapping[str, str], params: list[object]) -> str:
    place, path = _place(comparison.field, columns)
    symbol = SYMBOLS[comparison.operator] if comparison.operator in RANGES else "="
    terms = []
    for value in comparison.values:
        terms.append(f"(typeof({place}) IN {STORAGE[str(kind_of(value))]} AND {place} {symbol} ?)")
        params += [*path, *path, _stored(value)]
    found = f"({' OR '.join(terms)})"
    return f"NOT {found}" if comparison.is_negated else found


def _place(field: str, columns: Mapping[str, str]) -> tuple[str, list[object]]:
    """Return a column, or what stands in its JSON, and the parameters of that."""
    if field in columns:
        return columns[field], []
    name, _, path = field.partition(".")
    if name not in columns or not path or '"' in path:
        raise InvalidFilter(field, "the table has no such column")
    column, parts = columns[name], "".join(f'."{part}"' for part in path.split("."))
    return f"(CASE WHEN json_valid({column}) THEN json_extract({column}, ?) END)", [f"${parts}"]


def _stored(value: Scalar) -> object:
    return int(value) if isinstance(value, bool) else value
