"""What a filter is, what it is not, and what it lets through where a store has none of its own."""

from typing import Any

import pytest

from vecferry.errors import InvalidFilter
from vecferry.stores.filters import (
    MAX_CHARS,
    MAX_COMPARISONS,
    MAX_DEPTH,
    MAX_VALUES,
    Comparison,
    Junction,
    matches,
    parse_filter,
)


def nested(depth: int) -> dict[str, Any]:
    return {"a": 1} if depth == 1 else {"$and": [nested(depth - 1)]}


def test_a_filter_is_read_into_comparisons() -> None:
    assert parse_filter({"lang": "en"}) == Comparison("lang", "$eq", ("en",))
    assert parse_filter({"year": {"$gte": 2020, "$lt": 2024.5}, "$or": [{"a": True}, {"b": {"$nin": ["x", 1]}}]}) == (
        Junction(
            "$and",
            (
                Comparison("year", "$gte", (2020,)),
                Comparison("year", "$lt", (2024.5,)),
                Junction("$or", (Comparison("a", "$eq", (True,)), Comparison("b", "$nin", ("x", 1)))),
            ),
        )
    )
    parse_filter(nested(MAX_DEPTH))
    parse_filter({"a": {"$in": list(range(MAX_VALUES))}})
    parse_filter({f"f{n}": n for n in range(MAX_COMPARISONS)})


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({}, "an object"),
        ([], "an object"),
        ("lang = 'en'", "an object"),
        ({"": 1}, "a field has a name"),
        ({7: 1}, "a field has a name"),
        ({"a\0": 1}, "a field has a name"),
        ({"a" * 256: 1}, "a field has a name"),
        ({"$eq": 1}, r"at \$eq: an operator without a field"),
        ({"$where": "sleep(1)"}, "an operator without a field"),
        ({"a": {}}, r"at a: one of \$eq"),
        ({"a": {"eq": 1}}, r"at a\.eq: one of \$eq"),
        ({"a": {"$gt": True}}, r"at a\.\$gt: a number or a text"),
        ({"a": {"$in": []}}, "a list of 1"),
        ({"a": {"$in": "en"}}, "a list of 1"),
        ({"a": {"$in": [["en"]]}}, "a text of up to"),
        ({"a": {"$eq": {"$eq": 1}}}, "a text of up to"),
        ({"a": None}, "a text of up to"),
        ({"a": [1]}, "a text of up to"),
        ({"a": float("nan")}, "a text of up to"),
        ({"a": float("inf")}, "a text of up to"),
        ({"a": 2**63}, "a text of up to"),
        ({"a": 10**5000}, "a text of up to"),
        ({"a": "\0"}, "a text of up to"),
        ({"a": "\ud800"}, "a text of up to"),
        ({"a": "x" * (MAX_CHARS + 1)}, "a text of up to"),
        ({"$and": []}, r"at \$and: a list of 1"),
        ({"$or": {"a": 1}}, r"at \$or: a list of 1"),
        ({"$or": [{"a": 1}, 7]}, r"at \$or\[1\]: an object"),
        (nested(MAX_DEPTH + 1), "nested deeper"),
        ({"a": {"$in": list(range(MAX_VALUES + 1))}}, "a list of 1"),
        ({"$or": [{"a": {"$in": [1] * MAX_VALUES}}, {"b": 1}]}, "more than 1000 values"),
        ({f"f{n}": n for n in range(MAX_COMPARISONS + 1)}, "65 fields"),
        ({"$or": [{"a": 1, "b": 2}] * MAX_COMPARISONS}, "more than 64 comparisons"),
    ],
)
def test_what_is_no_filter_is_refused_by_its_place(where: Any, reason: str) -> None:
    with pytest.raises(InvalidFilter, match=reason) as refused:
        parse_filter(where)
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("where", "is_let_through"),
    [
        ({"n": 1}, True),
        ({"n": 1.0}, True),
        ({"n": True}, False),
        ({"n": "1"}, False),
        ({"is": True}, True),
        ({"is": 1}, False),
        ({"nowhere": 1}, False),
        ({"nowhere": {"$ne": 1}}, True),
        ({"nowhere": {"$nin": [1]}}, True),
        ({"nowhere": {"$lt": 1}}, False),
        ({"n": {"$lt": "2"}}, False),
        ({"s": {"$gt": "a"}}, True),
        ({"deep.er": 2}, True),
        ({"dotted.name": 3}, True),
        ({"list": 1}, False),
        ({"$or": [{"n": 2}, {"s": "b"}]}, True),
        ({"$and": [{"n": 1}, {"s": "c"}]}, False),
    ],
)
def test_a_filter_compares_numbers_with_numbers_and_texts_with_texts(
    where: dict[str, Any], *, is_let_through: bool
) -> None:
    fields = {"n": 1, "is": True, "s": "b", "deep": {"er": 2}, "dotted.name": 3, "list": [1], "nothing": None}
    assert matches(parse_filter(where), fields) is is_let_through
