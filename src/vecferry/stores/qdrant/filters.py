"""A search's filter as Qdrant takes it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError
from qdrant_client import models

from vecferry.errors import InvalidFilter
from vecferry.stores.filters import RANGES, Comparison, Condition, NativeFilter, Scalar


def qdrant_filter(where: Condition | NativeFilter | None) -> models.Filter | None:
    """Return a filter. Raises InvalidFilter: Qdrant orders numbers alone."""
    if isinstance(where, NativeFilter):
        return _native(where.condition)
    if where is None:
        return None
    if isinstance(where, Comparison):
        return _compared(where)
    parts: list[models.Condition] = [part for part in map(qdrant_filter, where.parts) if part is not None]
    return models.Filter(must=parts) if where.operator == "$and" else models.Filter(should=parts)


def _native(condition: object) -> models.Filter:
    """Return the client's own value, or one of its fields in a dict. Raises InvalidFilter."""
    try:
        return condition if isinstance(condition, models.Filter) else models.Filter.model_validate(condition)
    except ValidationError as exc:
        raise InvalidFilter("", f"Qdrant knows no such Filter ({exc.error_count()} errors)") from exc


def _compared(comparison: Comparison) -> models.Filter:
    field, operator = comparison.field, comparison.operator
    if operator in RANGES:
        (value,) = comparison.values
        if isinstance(value, str):
            raise InvalidFilter(f"{field}.{operator}", "Qdrant orders numbers alone")
        bounds: Mapping[str, float] = {operator.removeprefix("$"): value}
        return models.Filter(must=[models.FieldCondition(key=field, range=models.Range.model_validate(bounds))])
    found: list[models.Condition] = [_equal(field, value) for value in comparison.values]
    return models.Filter(must_not=found) if comparison.is_negated else models.Filter(should=found)


def _equal(field: str, value: Scalar) -> models.FieldCondition:
    """Return a condition; numbers are equal whether they are whole or not, which `MatchValue` tells apart."""
    if isinstance(value, bool | str):
        return models.FieldCondition(key=field, match=models.MatchValue(value=value))
    return models.FieldCondition(key=field, range=models.Range(gte=value, lte=value))
