"""What every backend promises to `MirrorStore`, tested on each store."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.quick import params
from tests.stores.backends import (
    COLLECTION,
    DIMENSION,
    LONGEST_TEXT,
    NAMES,
    NORMALIZING,
    NUMBERS_ONLY,
    SHAPES,
    WITHOUT_NULL,
    opened,
    unit,
    vector_of,
)
from vecferry.embeddings import DENSE, Float32, Outputs, TextVectors
from vecferry.errors import InvalidFilter, StoreError, StoreSchemaError
from vecferry.stores.backend import Aliased, Backend, OptionalVectors, Point, Renamable
from vecferry.stores.filters import NativeFilter, Selection

NEW = "docs_new"
WIDE = 16
HARD_TEXTS = (
    "",
    " ",
    "it's",
    'say "no"',
    "back\\slash",
    "'; DROP TABLE docs; --",
    "%_`[]{}$1",
    "two\nlines\tand\r\na tab",
    "日本語 العربية ไทย",
    "👩‍👩‍👧 e\u0301 \u2028\ufeff",
)


@pytest.fixture(params=params(NAMES, slow=SHAPES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(name: str, tmp_path: Path) -> Iterator[Backend]:
    with opened(name, tmp_path) as backend:
        yield backend


def point(number: int, text: str | None = "text", dimension: int = DIMENSION, **payload: object) -> Point:
    return Point(str(number), text, TextVectors(unit(number, dimension)), payload)


def everything(backend: Backend, collection: str = COLLECTION) -> dict[str, Point]:
    """Return all points by id, as they are now."""
    ids = list(backend.ids(collection))
    assert len(ids) == len(set(ids)) == backend.count(collection)
    return {point.id: point for point in backend.get(collection, ids, vectors=True)}


def filled(payload: object) -> dict[str, object]:
    """Return the fields with a value: stores differ in whether one without a value is there."""
    assert isinstance(payload, dict)
    return {name: value for name, value in payload.items() if value is not None}


def assert_vector(name: str, stored: Float32, put: Float32) -> None:
    assert stored.dtype == np.float32
    # a float32 has 24 bits, so that dividing by a length of 1 +- 6e-8 moves a number below 1 by no more than that
    np.testing.assert_allclose(stored, put, rtol=0, atol=2e-7 if name in NORMALIZING else 0)


# --- points ---------------------------------------------------------------------------------------


def test_a_point_comes_back_whole(backend: Backend, name: str) -> None:
    put = [point(1, "one", lang="en", year=1999), point(2, "two", lang='it\'s\n"日本"', year=-(2**53))]
    backend.put(COLLECTION, put)
    stored = everything(backend)
    assert stored.keys() == {"1", "2"}
    for original in put:
        assert stored[original.id].text == original.text
        assert filled(stored[original.id].payload) == original.payload
        assert [type(stored[original.id].payload[field]) for field in ("lang", "year")] == [str, int]
        assert_vector(name, vector_of(stored[original.id]), vector_of(original))


def test_vectors_come_only_where_they_are_asked_for(backend: Backend) -> None:
    backend.put(COLLECTION, [point(1)])
    assert [point.vectors for point in backend.get(COLLECTION, ["1"])] == [None]


def test_texts_of_every_kind_come_back_as_they_were(backend: Backend, name: str) -> None:
    texts = [*HARD_TEXTS, "x" * LONGEST_TEXT.get(name, 2**20)]
    backend.put(COLLECTION, [point(number, text) for number, text in enumerate(texts)])
    stored = everything(backend)
    assert [stored[str(number)].text for number in range(len(texts))] == texts


def test_ids_of_every_kind_can_be_found_and_deleted(backend: Backend, name: str) -> None:
    if name in NUMBERS_ONLY:
        pytest.skip("ids are numbers or UUIDs here")
    ids = [text for text in HARD_TEXTS if text]
    backend.put(COLLECTION, [Point(id_, id_, TextVectors(unit(n))) for n, id_ in enumerate(ids)])
    assert sorted(backend.ids(COLLECTION)) == sorted(ids)
    for id_ in ids:
        assert [(point.id, point.text) for point in backend.get(COLLECTION, [id_])] == [(id_, id_)]
    for id_ in ids[:-1]:
        backend.delete(COLLECTION, [id_])
    assert list(backend.ids(COLLECTION)) == ids[-1:]


@pytest.mark.parametrize("text", ["nul \0 nul", "lone \ud800 surrogate"])
def test_a_text_comes_back_as_it_was_or_is_refused(backend: Backend, text: str) -> None:
    try:
        backend.put(COLLECTION, [point(1, text)])
    except StoreError:
        assert backend.count(COLLECTION) == 0
    else:
        assert everything(backend)["1"].text == text


def test_a_point_replaces_another_as_a_whole(backend: Backend, name: str) -> None:
    backend.put(COLLECTION, [point(1, "old", lang="en", year=1999), point(2, "other", year=7)])
    backend.put(COLLECTION, [Point("1", "new", TextVectors(unit(9)), {"year": 2000})])
    stored = everything(backend)
    assert (stored["1"].text, filled(stored["1"].payload)) == ("new", {"year": 2000})
    assert_vector(name, vector_of(stored["1"]), unit(9))
    backend.put(COLLECTION, [Point("1", "bare", TextVectors(unit(1)))])
    assert filled(everything(backend)["1"].payload) == {}
    assert filled(everything(backend)["2"].payload) == {"year": 7}


def test_a_point_can_lose_its_text_and_have_one_again(backend: Backend, name: str) -> None:
    if name in WITHOUT_NULL:
        pytest.skip("every point has a text here")
    backend.put(COLLECTION, [point(1, "old", lang="en"), point(2, None, lang="en"), point(3, "kept")])
    assert everything(backend)["2"].text is None
    backend.put(COLLECTION, [point(1, None, lang="de"), point(2, "now", lang="de")])
    stored = everything(backend)
    assert [stored[id_].text for id_ in "123"] == [None, "now", "kept"]
    assert [filled(stored[id_].payload) for id_ in "123"] == [{"lang": "de"}, {"lang": "de"}, {}]


def test_what_was_put_cannot_be_changed_from_outside(backend: Backend) -> None:
    original = point(1, "text", lang="en", year=1)
    backend.put(COLLECTION, [original])
    for outside in (original, everything(backend)["1"]):
        assert outside.vectors is not None
        assert isinstance(outside.payload, dict)
        outside.vectors.dense.setflags(write=True)
        outside.vectors.dense[:] = 0
        outside.payload["year"] = 2
    kept = everything(backend)["1"]
    assert kept.payload["year"] == 1
    assert kept.vectors is not None
    assert kept.vectors.dense.any()


def test_ids_that_are_not_there_are_no_error(backend: Backend) -> None:
    backend.put(COLLECTION, [point(1), point(2)])
    assert [point.id for point in backend.get(COLLECTION, ["7", "2", "8"])] == ["2"]
    backend.delete(COLLECTION, ["1", "7"])
    backend.delete(COLLECTION, ["1", "7"])
    assert list(backend.ids(COLLECTION)) == ["2"]


def test_nothing_can_be_asked_for_put_and_deleted(backend: Backend) -> None:
    assert list(backend.ids(COLLECTION)) == []
    assert backend.get(COLLECTION, []) == []
    backend.put(COLLECTION, [])
    backend.delete(COLLECTION, [])
    assert backend.count(COLLECTION) == 0


@pytest.mark.parametrize("name", params(NAMES, slow={"qdrant", *SHAPES}), indirect=True)
def test_two_thousand_points_go_in_and_out_at_once(backend: Backend, name: str) -> None:
    put = {str(number): point(number, f"text {number}", year=number) for number in range(2000)}
    backend.put(COLLECTION, list(put.values()))
    stored = everything(backend)
    assert stored.keys() == put.keys()
    for id_, original in put.items():
        assert (stored[id_].text, stored[id_].payload["year"]) == (original.text, original.payload["year"])
        assert_vector(name, vector_of(stored[id_]), vector_of(original))
    backend.delete(COLLECTION, [str(number) for number in range(1, 3000)])
    assert list(backend.ids(COLLECTION)) == ["0"]


def test_a_vector_of_another_length_is_refused_and_nothing_is_written(backend: Backend) -> None:
    backend.put(COLLECTION, [point(1, "first")])
    with pytest.raises(StoreError):
        backend.put(COLLECTION, [point(1, "second"), point(2, "second", WIDE), point(3, "second")])
    assert {id_: point.text for id_, point in everything(backend).items()} == {"1": "first"}


# --- collections ----------------------------------------------------------------------------------


def test_a_collection_like_another_has_its_own_dimension_and_takes_the_same_points(backend: Backend) -> None:
    backend.put(COLLECTION, [point(1, "one", lang="en", year=1)])
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    assert backend.dimension(NEW) in (WIDE, None)
    assert backend.count(NEW) == 0
    backend.put(NEW, [point(1, "one", WIDE, lang="en", year=1)])
    assert (backend.dimension(NEW), backend.dimension(COLLECTION)) == (WIDE, DIMENSION)
    stored = everything(backend, NEW)["1"]
    assert (stored.text, filled(stored.payload)) == ("one", {"lang": "en", "year": 1})
    with pytest.raises(StoreError):
        backend.put(NEW, [point(2)])
    assert list(backend.ids(NEW)) == ["1"]


def test_a_collection_like_another_has_its_metric(backend: Backend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    backend.put(
        NEW, [Point("1", "long", TextVectors(5 * unit(1, WIDE))), Point("2", "short", TextVectors(unit(2, WIDE)))]
    )
    best = backend.search(NEW, unit(2, WIDE), 1)[0]
    assert best.id == "2"
    long = next(hit for hit in backend.search(NEW, unit(1, WIDE), 2) if hit.id == "1")
    assert long.score == pytest.approx(1, abs=1e-5)  # float32; a score by another metric is off by a whole number


def test_a_collection_is_made_once_and_like_one_that_is_there(backend: Backend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    with pytest.raises(StoreSchemaError):
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    with pytest.raises(StoreSchemaError):
        backend.create("third", like="nowhere", dimension=WIDE, outputs=DENSE)
    assert not backend.exists("third")


def test_a_dropped_collection_is_gone_and_can_be_dropped_again(backend: Backend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    assert backend.exists(NEW)
    for _ in range(2):
        backend.drop(NEW)
        assert not backend.exists(NEW)
    assert backend.exists(COLLECTION)


def test_a_collection_that_is_not_there_cannot_be_used(backend: Backend) -> None:
    for use in (
        lambda: backend.count("nowhere"),
        lambda: backend.dimension("nowhere"),
        lambda: list(backend.ids("nowhere")),
        lambda: backend.get("nowhere", ["1"]),
        lambda: backend.put("nowhere", [point(1)]),
        lambda: backend.delete("nowhere", ["1"]),
        lambda: backend.search("nowhere", unit(1), 1),
    ):
        with pytest.raises(StoreSchemaError):
            use()


def test_heads_that_the_store_cannot_hold_are_refused_by_name(backend: Backend) -> None:
    refused = Outputs.ALL & ~backend.outputs
    if not refused:
        pytest.skip("all heads can be held here")
    for head in refused:
        with pytest.raises(StoreSchemaError, match=f"(?i){head.names[0]}"):
            backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE | head)
    assert not backend.exists(NEW)


# --- searching ------------------------------------------------------------------------------------


def cosines(query: Float32, numbers: Sequence[int]) -> dict[str, float]:
    return {str(number): float(unit(number).astype(np.float64) @ query) for number in numbers}


def test_a_search_finds_the_nearest_with_their_cosines(backend: Backend) -> None:
    backend.put(COLLECTION, [point(number) for number in range(200)])
    query = unit(1000)
    expected = cosines(query, range(200))
    best = sorted(expected, key=lambda id_: -expected[id_])[:10]
    hits = backend.search(COLLECTION, query, 10)
    assert [hit.id for hit in hits] == best  # 200 points: every index looks at all of them
    # stores compute in float32, and some by way of a distance of up to 2
    np.testing.assert_allclose([hit.score for hit in hits], [expected[id_] for id_ in best], rtol=0, atol=1e-5)


def test_a_search_is_over_what_was_just_written(backend: Backend) -> None:
    backend.put(COLLECTION, [point(number) for number in range(20)])
    assert backend.search(COLLECTION, unit(30), 1)[0].id != "30"
    backend.put(COLLECTION, [point(30)])
    assert backend.search(COLLECTION, unit(30), 1)[0].id == "30"
    backend.put(COLLECTION, [Point("30", "moved", TextVectors(unit(31)))])
    assert backend.search(COLLECTION, unit(31), 1)[0].id == "30"
    backend.delete(COLLECTION, ["30"])
    assert "30" not in [hit.id for hit in backend.search(COLLECTION, unit(31), 21)]
    assert len(backend.search(COLLECTION, unit(31), 100)) == 20


def test_indexes_are_built_once(backend: Backend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    backend.put(NEW, [point(number, "text", WIDE) for number in range(300)])
    backend.build_indexes(NEW, COLLECTION)
    assert backend.missing_indexes(NEW, COLLECTION) == ()
    assert backend.build_indexes(NEW, COLLECTION) == ()
    assert backend.search(NEW, unit(7, WIDE), 1)[0].id == "7"


# --- handles --------------------------------------------------------------------------------------


def test_two_handles_see_what_the_other_wrote(backend: Backend) -> None:
    other = backend.another()
    assert list(other.ids(COLLECTION)) == []
    backend.put(COLLECTION, [point(1, "first")])
    assert everything(other)["1"].text == "first"
    other.put(COLLECTION, [point(1, "second"), point(2)])
    assert everything(backend)["1"].text == "second"
    assert backend.search(COLLECTION, unit(2), 1)[0].id == "2"
    backend.delete(COLLECTION, ["1"])
    assert list(other.ids(COLLECTION)) == ["2"]
    other.close()
    assert list(backend.ids(COLLECTION)) == ["2"]


def test_a_handle_is_not_stale_after_a_collection_was_made_anew(backend: Backend) -> None:
    other = backend.another()
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    other.put(NEW, [point(1, "old", WIDE)])
    backend.drop(NEW)
    backend.create(NEW, like=COLLECTION, dimension=WIDE // 2, outputs=DENSE)
    assert other.count(NEW) == 0
    other.put(NEW, [point(2, "new", WIDE // 2)])
    assert everything(backend, NEW).keys() == everything(other, NEW).keys() == {"2"}
    other.close()


def test_writers_in_several_threads_lose_nothing(backend: Backend) -> None:
    handles = [backend.another() for _ in range(4)]

    def write(writer: int) -> None:
        for start in range(0, 50, 10):
            handles[writer].put(COLLECTION, [point(1000 * writer + start + n, f"by {writer}") for n in range(10)])
            handles[writer].put(COLLECTION, [point(n, "shared") for n in range(9000, 9005)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    own = {str(1000 * writer + n): f"by {writer}" for writer in range(4) for n in range(50)}
    shared = {str(n): "shared" for n in range(9000, 9005)}
    assert {id_: point.text for id_, point in everything(backend).items()} == own | shared
    for handle in handles:
        handle.close()


# --- filters --------------------------------------------------------------------------------------

ROWS: tuple[dict[str, object], ...] = (
    {"lang": "en", "year": 2018},
    {"lang": "de", "year": 2020},
    {"lang": 'it\'s "x" \\', "year": 2022},
    {"lang": "en", "year": 2024},
    {},
)
EMPTY_IN: dict[str, dict[str, object]] = {"sqlite-vec": {"lang": "", "year": 0}}
"""What stands for a field that a store cannot leave out."""
WHERE: tuple[tuple[dict[str, object], set[int]], ...] = (
    ({"lang": "en"}, {0, 3}),
    ({"lang": 'it\'s "x" \\'}, {2}),
    ({"lang": "' OR 1=1 --"}, set()),
    ({"lang": {"$ne": "en"}}, {1, 2, 4}),
    ({"lang": {"$in": ["de", "en"]}, "year": {"$gt": 2018}}, {1, 3}),
    ({"lang": {"$nin": ["de", "en"]}}, {2, 4}),
    ({"year": 2020}, {1}),
    ({"year": 2020.0}, {1}),
    ({"year": {"$gte": 2020, "$lt": 2024}}, {1, 2}),
    ({"year": {"$gt": 2019.5, "$lte": 2022}}, {1, 2}),
    ({"year": {"$lt": -(2**40)}}, set()),
    ({"$or": [{"lang": "de"}, {"$and": [{"lang": "en"}, {"year": {"$gt": 2020}}]}]}, {1, 3}),
)


@pytest.fixture
def filtered(backend: Backend, name: str) -> Backend:
    rows = [row or EMPTY_IN.get(name, {}) for row in ROWS]
    backend.put(COLLECTION, [Point(str(n), f"text {n}", TextVectors(unit(n)), row) for n, row in enumerate(rows)])
    return backend


def numbers(backend: Backend, where: object, k: int = 10) -> set[int]:
    selection = Selection.of(where)  # type: ignore[arg-type]
    return {int(hit.id) for hit in backend.search(COLLECTION, unit(0), k, selection)}


def test_a_filter_lets_the_same_rows_through_in_every_store(filtered: Backend) -> None:
    assert [numbers(filtered, where) for where, _ in WHERE] == [rows for _, rows in WHERE]


def test_a_filter_narrows_what_is_searched_not_what_was_found(filtered: Backend) -> None:
    farthest = [hit.id for hit in filtered.search(COLLECTION, unit(0), 10)][-1]
    row = ROWS[int(farthest)] or {"year": {"$nin": [2018, 2020, 2022, 2024]}}
    assert [hit.id for hit in filtered.search(COLLECTION, unit(0), 1, Selection.of(row))][:1] in ([farthest], ["0"])
    assert numbers(filtered, {"year": {"$gte": 2024}}, k=1) == {3}


def test_a_hit_carries_its_text_and_its_payload_where_they_are_asked_for(filtered: Backend) -> None:
    (hit,) = filtered.search(COLLECTION, unit(3), 1, Selection.of({"lang": "en"}, with_text=True, with_payload=True))
    assert hit.id == "3"
    assert hit.point is not None
    assert (hit.point.id, hit.point.text, hit.point.vectors) == ("3", "text 3", None)
    assert filled(hit.point.payload) == ROWS[3]
    assert hit.score == pytest.approx(1, abs=1e-5)
    assert [each.id for each in filtered.search(COLLECTION, unit(3), 1)] == ["3"]


NATIVE: dict[str, NativeFilter] = {
    "chroma": NativeFilter({"lang": "de"}),
    "lancedb": NativeFilter("lang = 'de' AND year > 2000"),
    "qdrant": NativeFilter({"must": [{"key": "lang", "match": {"value": "de"}}]}),
    "milvus": NativeFilter('lang == "de" and year > 2000'),
    "sqlite-vec": NativeFilter("r.lang = ? AND r.year > ?", ("de", 2000)),
}
BROKEN: dict[str, NativeFilter] = {
    "lancedb": NativeFilter("lang = = 'de'"),
    "qdrant": NativeFilter({"must": 7}),
    "milvus": NativeFilter("lang = = 3"),
    "sqlite-vec": NativeFilter("r.nowhere = ?", (1,)),
}


def test_the_store_takes_its_own_filter_or_says_that_it_has_none(filtered: Backend) -> None:
    if filtered.kind in NATIVE:
        assert numbers(filtered, NATIVE[filtered.kind]) == {1}
        broken = BROKEN.get(filtered.kind)
        if broken is not None:
            with pytest.raises((InvalidFilter, StoreError)):
                numbers(filtered, broken)
    else:
        with pytest.raises(InvalidFilter, match="no filter of its own"):
            numbers(filtered, NativeFilter("lang = 'de'"))


def test_a_field_that_a_store_would_need_a_column_for_is_named(filtered: Backend) -> None:
    where = {"nowhere": 1}
    if filtered.kind in ("lancedb", "sqlite-vec"):
        with pytest.raises(InvalidFilter, match="nowhere"):
            numbers(filtered, where)
    else:
        assert numbers(filtered, where) == set()


# --- names --------------------------------------------------------------------------------------


def test_a_collection_that_is_renamed_keeps_its_points_and_knows_its_first_name(backend: Backend, name: str) -> None:
    if not isinstance(backend, Renamable):
        pytest.skip("no other names here")
    backend.create("made", like=COLLECTION, dimension=DIMENSION, outputs=DENSE)
    backend.put("made", [point(1)])
    with pytest.raises(StoreSchemaError):
        backend.rename("made", COLLECTION)
    assert (backend.created_as(COLLECTION), backend.created_as("made")) == (None, "made")
    backend.drop(COLLECTION)
    backend.rename("made", COLLECTION)
    assert (backend.exists("made"), backend.created_as(COLLECTION)) == (False, "made")
    assert_vector(name, vector_of(everything(backend)["1"]), unit(1))
    assert backend.dimension(COLLECTION) == DIMENSION
    backend.put(COLLECTION, [point(2)])
    assert {hit.id for hit in backend.search(COLLECTION, unit(1), 5)} == {"1", "2"}
    backend.create("made", like=COLLECTION, dimension=4, outputs=DENSE)
    assert (backend.dimension("made"), backend.created_as("made")) == (4, "made")


# --- aliases --------------------------------------------------------------------------------------


def test_an_alias_points_to_one_collection_after_another(backend: Backend) -> None:
    if not isinstance(backend, Aliased):
        pytest.skip("no aliases here")
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    assert (backend.is_alias("live"), backend.resolve("live")) == (False, "live")
    for collection in (COLLECTION, NEW, NEW, COLLECTION):
        backend.point_alias("live", collection)
        assert (backend.is_alias("live"), backend.resolve("live")) == (True, collection)
    assert (backend.is_alias(COLLECTION), backend.resolve(COLLECTION)) == (False, COLLECTION)


def test_an_alias_is_seen_by_other_handles(backend: Backend) -> None:
    if not isinstance(backend, Aliased):
        pytest.skip("no aliases here")
    other = backend.another()
    backend.point_alias("live", COLLECTION)
    assert isinstance(other, Aliased)
    assert other.resolve("live") == COLLECTION
    other.close()
    with pytest.raises(StoreError):
        backend.point_alias("live", "nowhere")
    assert backend.resolve("live") == COLLECTION


def test_a_point_may_be_without_a_vector_where_the_store_allows_it(backend: Backend) -> None:
    if not isinstance(backend, OptionalVectors) or backend.kind == "qdrant":  # there the vector needs a name
        pytest.skip("every point of this store has a vector")
    bare = Point("2", "a draft", None, {"lang": "en"})
    backend.put(COLLECTION, [point(1), bare, point(3)])
    assert backend.without_vector(COLLECTION, ["1", "2", "4"]) == {"2"}
    assert backend.count_without_vector(COLLECTION) == 1
    stored = everything(backend)["2"]
    assert (stored.text, stored.vectors, filled(stored.payload)) == ("a draft", None, {"lang": "en"})
    assert [hit.id for hit in backend.search(COLLECTION, unit(1), 10)] == ["1", "3"]
    backend.put(COLLECTION, [point(2), Point("1", "text", None, {})])
    assert backend.without_vector(COLLECTION, ["1", "2", "3"]) == {"1"}
