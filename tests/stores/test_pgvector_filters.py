"""A search among some rows of a table: conditions on columns of all types and in JSON, with and without an index."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.migrate.doubles import truth
from vecferry.errors import InvalidFilter
from vecferry.stores.filters import NativeFilter, Selection
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.values import Hit

TABLE = """
CREATE TYPE mood AS ENUM ('glad', 'sad');
CREATE TABLE docs (
    id integer PRIMARY KEY, body text, embedding vector(8), small smallint, price numeric, ratio real, is_new boolean,
    made date, at timestamptz, mood mood, uid uuid, code varchar(2), "we""ird %s" text, meta jsonb, tags text[]
)"""
UID = "6f9619ff-8b86-d011-b42d-00cf4fc964ff"


@pytest.fixture
def store(connection: psycopg.Connection, database_url: str) -> Iterator[PgVectorStore]:
    connection.execute(TABLE)
    for n in range(4):
        meta = {"lang": "en" if n % 2 else "de", "n": n, "deep": {"er": f"{n}"}, "list": ["en"]}
        connection.execute(
            "INSERT INTO docs VALUES (%s, %s, %s::real[]::vector, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                *(n, f"text {n}", truth("old", str(n), 8).tolist(), n, n + 0.5, 0.1, n % 2 == 0),
                *(f"2024-01-0{n + 1}", f"2024-01-0{n + 1}T12:00:00Z", "sad" if n else "glad", UID, "ab", f"it's {n}"),
                *(Jsonb(meta), ["a"]),
            ],
        )
    connection.execute(
        "INSERT INTO docs (id, embedding) VALUES (9, %s::real[]::vector)", [truth("old", "9", 8).tolist()]
    )
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as opened:
        yield opened


def search(store: PgVectorStore, where: Any, k: int = 10, **options: Any) -> list[Hit]:
    return store.search(truth("old", "0", 8), k, fingerprint="any", selection=Selection.of(where, **options))


def keys(store: PgVectorStore, where: Any, k: int = 10) -> list[int]:
    return sorted(int(hit.key[0]) for hit in search(store, where, k))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"small": 2}, [2]),
        ({"small": {"$gte": 1.5, "$lt": 2**40}}, [2, 3]),
        ({"small": {"$ne": 2}}, [0, 1, 3, 9]),
        ({"price": 1.5}, [1]),
        ({"price": {"$in": [1.5, 2, 2.5]}}, [1, 2]),
        ({"ratio": 0.1}, [0, 1, 2, 3]),
        ({"is_new": True}, [0, 2]),
        ({"made": {"$gt": "2024-01-02"}}, [2, 3]),
        ({"at": {"$lte": "2024-01-01T13:00:00+01:00"}}, [0]),
        ({"mood": {"$nin": ["sad"]}}, [0, 9]),
        ({"uid": UID.upper(), "small": 1}, [1]),
        ({"code": "abc"}, []),
        ({'we"ird %s': "it's 2"}, [2]),
        ({"body": "' OR true --"}, []),
        ({"id": {"$in": [1, 9]}}, [1, 9]),
        ({"meta.lang": "en"}, [1, 3]),
        ({"meta.lang": {"$ne": "en"}}, [0, 2, 9]),
        ({"meta.n": {"$gt": 1}, "meta.lang": {"$in": ["de", "fr"]}}, [2]),
        ({"meta.n": {"$gt": "1"}}, []),
        ({"meta.deep.er": "3"}, [3]),
        ({"meta.deep.er": {"$gte": "2"}}, [2, 3]),
        ({"meta.list": "en"}, []),
        ({"meta.nowhere": 1}, []),
        ({"$or": [{"small": 0}, {"$and": [{"meta.n": {"$lt": 3}}, {"is_new": False}]}]}, [0, 1]),
        (NativeFilter("t.small = %s OR t.body LIKE %s", (1, "%3")), [1, 3]),
        (NativeFilter("small > 2"), [3]),
    ],
)
def test_a_filter_lets_rows_through_by_the_types_of_their_columns(
    store: PgVectorStore, where: Any, expected: list[int]
) -> None:
    assert keys(store, where) == expected
    exact = store.search(truth("old", "0", 8), 10, fingerprint="any", exact=True, selection=Selection.of(where))
    assert sorted(int(hit.key[0]) for hit in exact) == expected


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ({"nowhere": 1}, "nowhere"),
        ({"embedding": "[1]"}, "embedding"),
        ({"small": "2"}, "small"),
        ({"is_new": 1}, "is_new"),
        ({"body": True}, "body"),
        ({"body.lang": "en"}, "no fields in it"),
        ({"made": "yesterday or so"}, "PostgreSQL refuses"),
        ({"uid": "no uuid"}, "PostgreSQL refuses"),
        ({"mood": {"$gt": "glad"}}, "mood"),
        (NativeFilter("nowhere = 1"), "nowhere"),
        (NativeFilter("small = %s"), "placeholder"),
        (NativeFilter("small = = 1"), "syntax"),
    ],
)
def test_a_filter_that_the_table_cannot_have_is_refused_by_name(store: PgVectorStore, where: Any, named: str) -> None:
    with pytest.raises(InvalidFilter, match=named):
        search(store, where)
    assert keys(store, None, k=1) == [0], "the store can be asked again"


def test_a_hit_carries_the_text_and_the_columns_that_are_none_of_ours(store: PgVectorStore) -> None:
    (hit,) = search(store, {"small": 1}, with_text=True, with_payload=True)
    assert hit.text == "text 1"
    assert hit.payload is not None
    assert hit.payload.keys() == {
        *("small", "price", "ratio", "is_new", "made", "at", "mood", "uid", "code", 'we"ird %s', "meta", "tags")
    }
    assert (hit.payload["made"], hit.payload["price"], hit.payload["meta"]["n"]) == ("2024-01-02", 1.5, 1)
    (hit,) = search(store, {"id": 9}, with_text=True)
    assert (hit.text, hit.payload) == (None, None)


def test_a_text_of_several_columns_is_the_one_that_is_embedded(store: PgVectorStore, database_url: str) -> None:
    with PgVectorStore.connect(database_url, "docs", "{code}: {body}", "embedding") as templated:
        (hit,) = search(templated, {"small": 2}, with_text=True)
    assert hit.text == "ab: text 2"


def test_a_hit_of_a_partitioned_table_carries_its_own_row(connection: psycopg.Connection, database_url: str) -> None:
    """Rows of two partitions are at equal places in them."""
    connection.execute(
        "CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector(8)) PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF docs FOR VALUES FROM (0) TO (2);"
        "CREATE TABLE high PARTITION OF docs FOR VALUES FROM (2) TO (4)"
    )
    for n in range(4):
        vector = truth("old", str(n), 8).tolist()
        connection.execute("INSERT INTO docs VALUES (%s, %s, %s::real[]::vector)", [n, f"text {n}", vector])
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        hits = search(store, {"id": {"$gte": 1}}, with_text=True, with_payload=True)
    assert sorted((hit.key, hit.text, hit.payload) for hit in hits) == [((str(n),), f"text {n}", {}) for n in (1, 2, 3)]


def test_a_filter_narrows_the_part_of_a_table_that_is_meant(store: PgVectorStore, database_url: str) -> None:
    with PgVectorStore.connect(database_url, "docs", "body", "embedding", where="small >= 2") as part:
        assert keys(part, None) == [2, 3]
        for where in ({"small": {"$lt": 3}}, NativeFilter("small = 1 OR small = 2")):
            (hit,) = search(part, where, with_text=True, with_payload=True)
            assert (hit.key, hit.text) == (("2",), "text 2")
            assert hit.payload is not None
            assert hit.payload["small"] == 2
        assert keys(part, {"small": 1}) == []


def test_an_index_finds_as_many_rows_as_a_filter_lets_through(
    connection: psycopg.Connection, database_url: str
) -> None:
    """The rows of the filter are the farthest of 3,000, beyond what an HNSW index looks at by itself."""
    connection.execute("CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector(8), tenant integer)")
    rng = np.random.default_rng(0)
    query = np.eye(8, dtype=np.float32)[0]
    vectors = np.concatenate(
        [query + 0.2 * rng.standard_normal((2950, 8)), -query + 0.2 * rng.standard_normal((50, 8))]
    )
    with connection.cursor().copy("COPY docs (id, embedding, tenant) FROM STDIN") as copy:
        for n, vector in enumerate(vectors):
            copy.write_row((n, str(vector.tolist()), int(n >= 2950)))
    connection.execute("CREATE INDEX ON docs USING hnsw (embedding vector_cosine_ops)")
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        for where, number in (({"tenant": 1}, 20), (NativeFilter("tenant = %s AND id < %s", (1, 2953)), 3)):
            hits = store.search(query, 20, fingerprint="any", selection=Selection.of(where))
            exact = store.search(query, 20, fingerprint="any", exact=True, selection=Selection.of(where))
            assert (len(hits), {hit.key for hit in hits}) == (number, {hit.key for hit in exact})
