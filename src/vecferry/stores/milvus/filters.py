"""A search's filter as an expression of Milvus."""

from __future__ import annotations

import re

from pymilvus import DataType

from vecferry.errors import InvalidFilter
from vecferry.stores.filters import OPERATORS, RANGES, Comparison, Condition, NativeFilter, Scalar, kind_of, written
from vecferry.stores.milvus.layout import DYNAMIC, MilvusLayout, quoted

KINDS = {
    DataType.VARCHAR: "text",
    DataType.BOOL: "boolean",
    **dict.fromkeys(
        (DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64, DataType.FLOAT, DataType.DOUBLE), "number"
    ),
}
SYMBOLS = dict(zip(OPERATORS[2:6], (">", ">=", "<", "<="), strict=True))
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def milvus_expression(where: Condition | NativeFilter | None, layout: MilvusLayout) -> str:
    """Return an expression; empty without a filter. Raises InvalidFilter for a field that the collection has not."""
    if where is None:
        return ""
    if isinstance(where, NativeFilter):
        return str(where.condition)
    return written(where, lambda comparison: _compared(comparison, layout))


def _compared(comparison: Comparison, layout: MilvusLayout) -> str:
    place, missing = _place(comparison, layout)
    if comparison.operator in RANGES:
        return f"{place} {SYMBOLS[comparison.operator]} {_literal(comparison.values[0])}"
    found = " or ".join(f"{place} == {_literal(value)}" for value in comparison.values)
    return f"(not ({found}) or {missing})" if comparison.is_negated else f"({found})"


def _place(comparison: Comparison, layout: MilvusLayout) -> tuple[str, str]:
    """Return how the field is named in an expression, and a condition that a row does not have it."""
    field = comparison.field
    name, *path = [field] if field in layout.fields else field.split(".")
    kind = layout.fields.get(name, {}).get("type")
    if kind in KINDS and not path:
        if strange := next((v for v in comparison.values if kind_of(v) != KINDS[kind]), None):
            raise InvalidFilter(field, f"the field takes a {KINDS[kind]}, not {strange!r:.80}")
        return name, f"{name} is null"
    if kind is None and layout.is_dynamic:
        name, path = DYNAMIC, [name, *path]
    elif kind != DataType.JSON or not path:
        raise InvalidFilter(field, "the collection has no such field that can be compared")
    place = name + "".join(f"[{quoted(part)}]" for part in path)
    return place, f"not exists {place}"


def _literal(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return quoted(value) if isinstance(value, str) else repr(value)
