"""Which rows a search may return, in a form that means the same to every store: Chroma's `where`.

    {"lang": "en"}                                       the field is equal
    {"year": {"$gte": 2020, "$lt": 2024}}                all of these hold; {"lang": "en", "year": 2020} too
    {"lang": {"$in": ["en", "de"]}}                      one of these
    {"$or": [{"lang": "en"}, {"metadata.year": 2020}]}   a dotted path goes into nested values

`$eq`, `$ne`, `$gt`, `$gte`, `$lt`, `$lte`, `$in`, `$nin`, `$and`, `$or`. A field that a row does not have is equal to
nothing: `$ne` and `$nin` are true of it, the others are not. Numbers are compared with numbers, texts with texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import ge, gt, le, lt
from typing import Any, Literal, get_args

from vecferry.errors import InvalidFilter
from vecferry.stores.text_source import value_at

Scalar = str | int | float | bool
Operator = Literal["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin"]
OPERATORS = get_args(Operator)
RANGES: Mapping[str, Callable[[Any, Any], bool]] = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}
NEGATED: Mapping[str, Operator] = {"$ne": "$eq", "$nin": "$in"}
JUNCTIONS: Mapping[str, str] = {"$and": " and ", "$or": " or "}

MAX_DEPTH = 8
MAX_COMPARISONS = 64
MAX_VALUES = 1000
"""Of all comparisons together."""
MAX_CHARS = 4096
MAX_FIELD_CHARS = 255
INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Comparison:
    """A condition on one field. values: one; any number for `$in` and `$nin`."""

    field: str
    operator: Operator
    values: tuple[Scalar, ...]

    @property
    def is_negated(self) -> bool:
        """Whether it is true of a row that does not have the field."""
        return self.operator in NEGATED


@dataclass(frozen=True)
class Junction:
    """Several conditions. operator: whether all of them, or one of them."""

    operator: Literal["$and", "$or"]
    parts: tuple[Condition, ...]


Condition = Comparison | Junction


@dataclass(frozen=True)
class NativeFilter:
    """The store's own filter, for code that one writes oneself; never what came over a network.

    condition: of PostgreSQL and sqlite-vec, SQL with placeholders (`%s`, `?`) for params, in which the rows are `t`, or
    `r`; of LanceDB, SQL; of Milvus, an expression; of Chroma, a `where`; of Qdrant, a `Filter`, or one as a dict.
    """

    condition: Any
    params: Sequence[object] = ()


Filter = Mapping[str, Any] | NativeFilter


@dataclass(frozen=True, eq=False)
class Selection:
    """Which rows a search may return, and what of each beside its key. where: None is every row."""

    where: Condition | NativeFilter | None = None
    with_text: bool = False
    with_payload: bool = False

    @classmethod
    def of(cls, where: Filter | None, *, with_text: bool = False, with_payload: bool = False) -> Selection:
        """Read a filter. Raises InvalidFilter."""
        parsed = where if where is None or isinstance(where, NativeFilter) else parse_filter(where)
        return cls(parsed, with_text, with_payload)

    @property
    def wants_points(self) -> bool:
        return self.with_text or self.with_payload


EVERY_ROW = Selection()


def parse_filter(where: object) -> Condition:
    """Read a filter. Raises InvalidFilter, also for one that is too large or nested too deep, as soon as it is."""
    return _Reader().condition(where, "", 1)


def comparisons_of(condition: Condition) -> list[Comparison]:
    """Return all comparisons in a condition, from left to right."""
    if isinstance(condition, Comparison):
        return [condition]
    return [each for part in condition.parts for each in comparisons_of(part)]


class _Reader:
    """Reads one filter, and counts what is in it."""

    def __init__(self) -> None:
        self._comparisons = self._values = 0

    def condition(self, where: object, place: str, depth: int) -> Condition:
        if not isinstance(where, Mapping) or not where:
            raise InvalidFilter(place, 'an object such as {"lang": "en"} was expected')
        if depth > MAX_DEPTH:
            raise InvalidFilter(place, f"it is nested deeper than {MAX_DEPTH} times")
        if len(where) > MAX_COMPARISONS:
            raise InvalidFilter(place, f"it has {len(where)} fields, and {MAX_COMPARISONS} are allowed")
        entries = (self._entry(name, value, place, depth) for name, value in where.items())
        return _joined("$and", [part for entry in entries for part in entry])

    def _entry(self, name: object, value: object, place: str, depth: int) -> list[Condition]:
        """Return the conditions of one entry of an object, which are all to hold."""
        if not isinstance(name, str) or not 0 < len(name) <= MAX_FIELD_CHARS or not name.isprintable():
            raise InvalidFilter(place, f"a field has a name of 1 to {MAX_FIELD_CHARS} printable characters")
        here = f"{place}.{name}" if place else name
        if name in ("$and", "$or"):
            junction: Literal["$and", "$or"] = "$and" if name == "$and" else "$or"
            if not isinstance(value, list | tuple) or not 0 < len(value) <= MAX_COMPARISONS:
                raise InvalidFilter(here, f"a list of 1 to {MAX_COMPARISONS} filters was expected")
            parts = [self.condition(part, f"{here}[{at}]", depth + 1) for at, part in enumerate(value)]
            return [_joined(junction, parts)]
        if name.startswith("$"):
            raise InvalidFilter(here, "an operator without a field; there are $and and $or here")
        if not isinstance(value, Mapping):
            return [self._counted(Comparison(name, "$eq", (_scalar(value, here),)), here)]
        if not value:
            raise InvalidFilter(here, f"one of {', '.join(OPERATORS)} was expected")
        return [self._comparison(name, operator, operand, here) for operator, operand in value.items()]

    def _comparison(self, field: str, operator: Any, operand: object, place: str) -> Comparison:
        place = f"{place}.{operator}"
        if operator not in OPERATORS:
            raise InvalidFilter(place, f"one of {', '.join(OPERATORS)} was expected")
        if operator in ("$in", "$nin"):
            if not isinstance(operand, list | tuple) or not 0 < len(operand) <= MAX_VALUES:
                raise InvalidFilter(place, f"a list of 1 to {MAX_VALUES} values was expected")
            return self._counted(Comparison(field, operator, tuple(_scalar(each, place) for each in operand)), place)
        value = _scalar(operand, place)
        if operator in RANGES and isinstance(value, bool):
            raise InvalidFilter(place, "a number or a text was expected")
        return self._counted(Comparison(field, operator, (value,)), place)

    def _counted(self, comparison: Comparison, place: str) -> Comparison:
        self._comparisons += 1
        self._values += len(comparison.values)
        if self._comparisons > MAX_COMPARISONS:
            raise InvalidFilter(place, f"more than {MAX_COMPARISONS} comparisons")
        if self._values > MAX_VALUES:
            raise InvalidFilter(place, f"more than {MAX_VALUES} values")
        return comparison


def _joined(operator: Literal["$and", "$or"], parts: Sequence[Condition]) -> Condition:
    return parts[0] if len(parts) == 1 else Junction(operator, tuple(parts))


def _scalar(value: object, place: str) -> Scalar:
    if isinstance(value, str) and len(value) <= MAX_CHARS and "\0" not in value and _is_unicode(value):
        return value
    if isinstance(value, bool) or (isinstance(value, int) and value in INT64):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    expected = f"a text of up to {MAX_CHARS} characters, a finite number of 64 bits, true or false was expected"
    raise InvalidFilter(place, expected)


def _is_unicode(value: str) -> bool:
    """Return whether there is no half of a pair of surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


# --- what stores make of it -----------------------------------------------------------------------


def matches(condition: Condition, fields: Mapping[str, Any]) -> bool:
    """Return whether a row with these fields may be returned; for stores that have no filter of their own."""
    if isinstance(condition, Junction):
        found = (matches(part, fields) for part in condition.parts)
        return all(found) if condition.operator == "$and" else any(found)
    stored = value_at(fields, condition.field)
    if condition.operator in RANGES:
        (value,) = condition.values
        return kind_of(stored) == kind_of(value) and RANGES[condition.operator](stored, value)
    is_equal = any(kind_of(stored) == kind_of(value) and stored == value for value in condition.values)
    return is_equal != condition.is_negated


def portable(where: Condition | NativeFilter | None, store: str) -> Condition | None:
    """Return the filter for a store that has none of its own. Raises InvalidFilter for a `NativeFilter`."""
    if isinstance(where, NativeFilter):
        raise InvalidFilter("", f"{store} has no filter of its own; one such as Chroma's was expected")
    return where


def kind_of(value: object) -> str | None:
    """Return what a value is compared with: "text", "number" or "boolean"; None for what equals nothing."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else None


def written(condition: Condition, compared: Callable[[Comparison], str]) -> str:
    """Write a condition as SQL does, with `compared` for each comparison."""
    if isinstance(condition, Comparison):
        return compared(condition)
    return f"({JUNCTIONS[condition.operator].join(written(part, compared) for part in condition.parts)})"
