"""What is Milvus's own: key types, limits of fields, the dynamic field, lexical weights, aliases, Milvus Lite."""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pymilvus import CollectionSchema, DataType, Function, FunctionType, MilvusClient

from tests.stores.backends import COLLECTION, DIMENSION, unit, vector_of
from tests.stores.backends_milvus import FIELDS, end, make, schema
from tests.stores.processes import Child
from vecferry.embeddings import DENSE, Outputs, SparseVector, TextVectors
from vecferry.errors import InvalidStoreUrl, StoreFailed, StoreSchemaError, StoreUnreachable
from vecferry.stores.backend import Fields, Point
from vecferry.stores.milvus import MilvusBackend
from vecferry.stores.milvus import backend as milvus_backend

NEW, NEWER = "docs_vecferry_2", "docs_vecferry_3"
WIDE = 16
SPARSE = SparseVector(np.array([3, 250_001], np.int32), np.array([0.5, 0.25], np.float32))
BOTH = DENSE | Outputs.SPARSE


@contextmanager
def over(
    folder: Path, made: CollectionSchema | None = None, metric: str = "COSINE", fields: Fields = FIELDS
) -> Iterator[MilvusBackend]:
    file = folder / "docs.db"
    with closing(MilvusBackend.open(make(file, made, metric), fields)) as backend:
        yield backend
    end(file)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[MilvusBackend]:
    with over(tmp_path) as backend:
        yield backend


# --- ids ------------------------------------------------------------------------------------------

AWKWARD = [
    "",
    '"',
    "'",
    "\\",
    '\\"',
    "a\nb",
    "\r\n",
    "\t",
    "\0",
    "\x1f",
    "a]",
    "{ids}",
    "é",
    "😀",
    "%",
    "id in [",
    "\\n",
]


def test_ids_of_any_letters_are_found_listed_and_deleted(backend: MilvusBackend) -> None:
    backend.put(COLLECTION, [Point(id_, f"text {id_!r}", TextVectors(unit(1))) for id_ in AWKWARD])
    assert sorted(backend.ids(COLLECTION)) == sorted(AWKWARD)
    assert {p.id: p.text for p in backend.get(COLLECTION, AWKWARD)} == {id_: f"text {id_!r}" for id_ in AWKWARD}
    for id_ in AWKWARD:
        backend.delete(COLLECTION, [id_])
        assert [point.id for point in backend.get(COLLECTION, [id_])] == []
    assert backend.count(COLLECTION) == 0


def test_every_id_is_listed_once_from_page_to_page(backend: MilvusBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus_backend, "PAGE", 3)
    monkeypatch.setattr(milvus_backend, "IDS_AT_A_TIME", 4)
    backend.put(COLLECTION, [Point(id_, "text", TextVectors(unit(1))) for id_ in AWKWARD])
    assert sorted(backend.ids(COLLECTION)) == sorted(AWKWARD)
    assert len(backend.get(COLLECTION, AWKWARD)) == len(AWKWARD)


def test_whole_numbers_as_keys_have_64_bits(tmp_path: Path) -> None:
    ids = ["0", "-1", "17", str(2**63 - 1), str(-(2**63))]
    with over(tmp_path, schema(DataType.INT64)) as backend:
        backend.put(COLLECTION, [Point(id_, "text", TextVectors(unit(1))) for id_ in ids])
        assert sorted(backend.ids(COLLECTION)) == sorted(ids)
        assert {point.id for point in backend.get(COLLECTION, ids)} == set(ids)
        assert backend.search(COLLECTION, unit(1), 1)[0].id in ids
        backend.delete(COLLECTION, [id_ for id_ in ids if id_ != str(2**63 - 1)])
        assert list(backend.ids(COLLECTION)) == [str(2**63 - 1)]


@pytest.mark.parametrize("id_", ["", "a", "017", "-0", "+1", "1.0", "٣", str(2**63), "9" * 5000])
def test_an_id_that_is_no_whole_number_is_named_where_keys_are(tmp_path: Path, id_: str) -> None:
    with over(tmp_path, schema(DataType.INT64)) as backend:
        for use in (
            lambda: backend.put(COLLECTION, [Point(id_, "text", TextVectors(unit(1)))]),
            lambda: backend.get(COLLECTION, [id_]),
            lambda: backend.delete(COLLECTION, [id_]),
        ):
            with pytest.raises(StoreSchemaError, match="is not an id") as raised:
                use()
            assert repr(id_) in raised.value.what


def test_a_key_of_another_name_is_used(tmp_path: Path) -> None:
    made = MilvusClient.create_schema()
    made.add_field("pk", DataType.VARCHAR, is_primary=True, max_length=64)
    made.add_field("body", DataType.VARCHAR, max_length=64)
    made.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSION)
    with over(tmp_path, made, fields=Fields("pk", "body")) as backend:
        backend.put(COLLECTION, [Point("a", "text", TextVectors(unit(1)))])
        assert [hit.id for hit in backend.search(COLLECTION, unit(1), 1)] == ["a"]
        assert (list(backend.ids(COLLECTION)), backend.get(COLLECTION, ["a"])[0].text) == (["a"], "text")


# --- texts and payload ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [("x" * 65_536, "exceeds max_length=65535"), ("\ud800", "surrogates not allowed")],
)
def test_a_text_that_the_field_does_not_take_is_an_error_and_nothing_is_written(
    backend: MilvusBackend, text: str, says: str
) -> None:
    with pytest.raises(StoreFailed, match=says):
        backend.put(COLLECTION, [Point("a", "fine", TextVectors(unit(1))), Point("b", text, TextVectors(unit(2)))])
    assert backend.count(COLLECTION) == 0


def test_a_missing_text_is_refused_by_id_where_the_field_is_not_nullable(tmp_path: Path) -> None:
    with over(tmp_path, schema(nullable=False)) as backend:
        with pytest.raises(StoreSchemaError, match="point b has no text"):
            backend.put(COLLECTION, [Point("a", "", TextVectors(unit(1))), Point("b", None, TextVectors(unit(2)))])
        backend.put(COLLECTION, [Point("a", "", TextVectors(unit(1)))])
        assert backend.get(COLLECTION, ["a"])[0].text == ""


def test_a_text_can_be_an_entry_of_the_dynamic_field(tmp_path: Path) -> None:
    made = MilvusClient.create_schema(enable_dynamic_field=True)
    made.add_field("id", DataType.INT64, is_primary=True)
    made.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSION)
    with over(tmp_path, made) as backend:
        backend.put(
            COLLECTION, [Point("1", "text", TextVectors(unit(1)), {"year": 1}), Point("2", None, TextVectors(unit(2)))]
        )
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
        backend.put(NEW, [Point("1", "text", TextVectors(unit(1, WIDE)), {"year": 1})])
        for collection in (COLLECTION, NEW):
            (point,) = backend.get(collection, ["1"])
            assert (point.text, point.payload) == ("text", {"year": 1})
        backend.put(COLLECTION, [Point("1", None, TextVectors(unit(1)))])
        assert {p.id: p.text for p in backend.get(COLLECTION, ["1", "2"])} == {"1": None, "2": None}


def test_a_point_is_replaced_as_a_whole(backend: MilvusBackend) -> None:
    backend.put(
        COLLECTION, [Point("a", "text", TextVectors(unit(1)), {"lang": "en", "year": 1, "tags": ["x"], "n": {"m": 1}})]
    )
    backend.put(COLLECTION, [Point("a", None, TextVectors(unit(1)), {"lang": "de", "other": None, "n": {"k": None}})])
    (point,) = backend.get(COLLECTION, ["a"])
    assert (point.text, point.payload) == (None, {"lang": "de", "n": {"k": None}})
    backend.put(COLLECTION, [Point("a", "text", TextVectors(unit(1)), {"tags": []})])
    assert backend.get(COLLECTION, ["a"])[0].payload == {"tags": []}


def test_values_of_every_type_can_be_put_back_as_they_were_read(tmp_path: Path) -> None:
    made = schema(dynamic=False)
    for name, kind in (("flag", DataType.BOOL), ("ratio", DataType.DOUBLE), ("small", DataType.INT8)):
        made.add_field(name, kind)
    made.add_field("json", DataType.JSON, nullable=True)
    made.add_field("list", DataType.ARRAY, element_type=DataType.INT64, max_capacity=4)
    made.add_field("seven", DataType.INT64, default_value=7)
    payload = {"flag": True, "ratio": 0.1, "small": -3, "json": {"a": [1, None, "x"]}, "list": [1, 2], "lang": "en"}
    with over(tmp_path, made) as backend:
        backend.create(NEW, like=COLLECTION, dimension=DIMENSION, outputs=DENSE)
        backend.put(COLLECTION, [Point("a", "text", TextVectors(unit(1)), payload)])
        (first,) = backend.get(COLLECTION, ["a"], vectors=True)
        assert first.payload == {**payload, "seven": 7}
        backend.put(NEW, [first])
        (second,) = backend.get(NEW, ["a"], vectors=True)
    assert (second.text, second.payload) == (first.text, first.payload)
    assert type(first.payload["list"]) is list
    np.testing.assert_array_equal(vector_of(first), vector_of(second))


def test_a_field_that_a_strict_schema_lacks_is_refused_by_name(tmp_path: Path) -> None:
    with over(tmp_path, schema(dynamic=False)) as backend, pytest.raises(StoreFailed, match="unknown"):
        backend.put(COLLECTION, [Point("a", "text", TextVectors(unit(1)), {"unknown": 1})])


# --- metrics and schemas --------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["COSINE", "IP", "L2"])
def test_scores_are_cosines_whatever_the_metric_is(tmp_path: Path, metric: str) -> None:
    with over(tmp_path, metric=metric) as backend:
        backend.put(COLLECTION, [Point(str(i), "text", TextVectors(unit(i))) for i in range(20)])
        hits = backend.search(COLLECTION, unit(99), 20)
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=BOTH)
        assert {name: index["metric_type"] for name, index in backend._indexes(NEW).items()} == {
            "vector": metric,
            "sparse": "IP",
        }
    expected = sorted((float(unit(i) @ unit(99)), str(i)) for i in range(20))[::-1]
    assert [hit.id for hit in hits] == [id_ for _, id_ in expected]
    np.testing.assert_allclose([hit.score for hit in hits], [score for score, _ in expected], atol=1e-5)


# --- ids that the store makes -----------------------------------------------------------------------


@contextmanager
def over_own_ids(folder: Path) -> Iterator[MilvusBackend]:
    made = schema(DataType.INT64)
    made.auto_id = True
    with over(folder, made) as backend:
        yield backend


def on_a_server(backend: MilvusBackend) -> MilvusBackend:
    """Let the backend do what it does on a server; the engine is Milvus Lite's all the same."""
    backend._address = replace(backend._address, is_lite=False)
    return backend


def test_milvus_lite_would_give_ids_again_and_is_refused_by_name(tmp_path: Path) -> None:
    with over_own_ids(tmp_path) as backend:
        with pytest.raises(StoreSchemaError, match="its ids by itself, and Milvus Lite"):
            backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
        assert not backend.exists(NEW)


def test_ids_that_the_store_has_made_are_kept_in_the_new_collection_which_goes_on_making_them(tmp_path: Path) -> None:
    with over_own_ids(tmp_path) as lite:
        backend = on_a_server(lite)
        row = {"text": "text", "vector": unit(1).tolist()}
        with backend._client() as client:
            made = client.insert(COLLECTION, [row, row, row])["ids"]
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
        assert backend._layout(NEW).described["properties"]["allow_insert_auto_id"] == "true"
        assert "allow_insert_auto_id" in backend.notices(COLLECTION)[0]
        for text in ("text", "changed"):
            points = backend.get(COLLECTION, list(backend.ids(COLLECTION)))
            backend.put(NEW, [replace(p, text=text, vectors=TextVectors(unit(int(p.id), WIDE))) for p in points])
            assert sorted(map(int, backend.ids(NEW))) == made
            assert {point.text for point in backend.get(NEW, list(backend.ids(NEW)))} == {text}
        with backend._client() as client:
            assert client.insert(NEW, [{**row, "vector": unit(1, WIDE).tolist()}])["ids"][0] not in made


def test_an_old_collection_takes_ids_that_the_new_one_has_made(tmp_path: Path) -> None:
    with over_own_ids(tmp_path) as lite:
        backend = on_a_server(lite)
        backend.put(COLLECTION, [Point("4000", "text", TextVectors(unit(1)))])
        assert list(backend.ids(COLLECTION)) == ["4000"]


# --- partitions -------------------------------------------------------------------------------------


@contextmanager
def divided(folder: Path) -> Iterator[MilvusBackend]:
    """Yield a backend on a collection with a point in each of two partitions, one in none, and an empty one."""
    with over(folder) as backend:
        with backend._client() as client:
            for name in ("north", "south", "empty"):
                client.create_partition(COLLECTION, name)
        where = {"1": {"$partition": "north"}, "2": {"$partition": "south"}, "3": {}}
        backend.put(COLLECTION, [Point(id_, "text", TextVectors(unit(1)), at) for id_, at in where.items()])
        yield backend


def ids_in(backend: MilvusBackend, collection: str, partition: str, dimension: int = WIDE) -> list[str]:
    """Return what the store's own client finds in one partition."""
    with backend._client() as client:
        (hits,) = client.search(
            collection, [unit(1, dimension).tolist()], anns_field="vector", limit=9, partition_names=[partition]
        )
    return sorted(hit["id"] for hit in hits)


@pytest.mark.parametrize("is_server", [False, True])
def test_each_point_is_in_its_own_partition_of_the_new_collection(tmp_path: Path, *, is_server: bool) -> None:
    with divided(tmp_path) as lite:
        backend = on_a_server(lite) if is_server else lite
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
        points = backend.get(COLLECTION, list(backend.ids(COLLECTION)))
        assert {point.id: point.payload for point in points} == {
            "1": {"$partition": "north"},
            "2": {"$partition": "south"},
            "3": {},
        }
        backend.put(NEW, [replace(point, vectors=TextVectors(unit(1, WIDE))) for point in points])
        partitions = ("north", "south", "empty", "_default")
        assert [ids_in(backend, NEW, name) for name in partitions] == [["1"], ["2"], [], ["3"]]
        assert backend.count(NEW) == 3
        for at, found in (({"$partition": "south"}, [[], ["1", "2"]]), ({}, [[], ["2"]])):
            backend.put(NEW, [Point("1", "moved", TextVectors(unit(1, WIDE)), at)])
            assert [ids_in(backend, NEW, name) for name in ("north", "south")] == found
        assert backend.count(NEW) == 3
        backend.delete(NEW, ["2"])
        assert sorted(backend.ids(NEW)) == ["1", "3"]


def test_a_partition_that_is_made_meanwhile_is_made_in_the_new_collection_too(backend: MilvusBackend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    with backend._client() as client:
        client.create_partition(COLLECTION, "late")
        client.create_partition(COLLECTION, "empty")
    backend.put(COLLECTION, [Point("1", "text", TextVectors(unit(1)), {"$partition": "late"})])
    (point,) = backend.get(COLLECTION, ["1"])
    backend.put(NEW, [replace(point, vectors=TextVectors(unit(1, WIDE)))])
    assert ids_in(backend, NEW, "late") == ["1"]
    backend.build_indexes(NEW, COLLECTION)
    with backend._client() as client:
        assert set(client.list_partitions(NEW)) == {"_default", "late", "empty"}


def test_a_partition_key_divides_the_new_collection_as_the_old_one(tmp_path: Path) -> None:
    made = schema()
    made.add_field("tenant", DataType.VARCHAR, max_length=16, is_partition_key=True)
    with over(tmp_path, made) as backend:
        backend.put(COLLECTION, [Point("1", "text", TextVectors(unit(1)), {"tenant": "shop"})])
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
        (point,) = backend.get(COLLECTION, ["1"])
        assert point.payload == {"tenant": "shop"}
        backend.put(NEW, [replace(point, vectors=TextVectors(unit(1, WIDE)))])
        assert backend._layout(NEW).num_key_partitions == backend._layout(COLLECTION).num_key_partitions
        with backend._client() as client:
            assert [row["id"] for row in client.query(NEW, 'tenant == "shop"')] == ["1"]


# --- further vectors --------------------------------------------------------------------------------


def several_vectors() -> CollectionSchema:
    made = schema()
    made.add_field("image", DataType.FLOAT_VECTOR, dim=3)
    made.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    return made


def test_further_vectors_are_carried_along_with_their_indexes(tmp_path: Path) -> None:
    with over(tmp_path, several_vectors()) as backend:
        with backend._client() as client:
            params = client.prepare_index_params("image", index_type="FLAT", metric_type="L2")
            params.add_index("sparse", "SPARSE_INVERTED_INDEX", metric_type="IP")
            client.release_collection(COLLECTION)
            client.create_index(COLLECTION, params, sync=False)
            client.load_collection(COLLECTION)
        kept = {"image": [0.1, 2.5, -1.0], "sparse": {3: 0.5, 70_000: 0.25}}
        kept["image"] = [float(np.float32(number)) for number in kept["image"]]
        backend.put(COLLECTION, [Point("1", "text", TextVectors(unit(1)), kept)])
        for old, new, dimension in ((COLLECTION, NEW, WIDE), (NEW, NEWER, 4)):
            backend.create(new, like=old, dimension=dimension, outputs=DENSE)
            (point,) = backend.get(old, ["1"])
            assert (point.vectors, point.payload) == (None, kept)
            backend.put(new, [replace(point, vectors=TextVectors(unit(2, dimension)))])
            (copy,) = backend.get(new, ["1"], vectors=True)
            assert copy.payload == kept
            assert copy.vectors is not None
            assert copy.vectors.outputs == DENSE
        assert backend._indexes(NEWER)["image"]["metric_type"] == "L2"
        with backend._client() as client:
            (hits,) = client.search(NEWER, [{3: 1.0}], anns_field="sparse", limit=1)
        assert [hit["id"] for hit in hits] == ["1"]


def test_a_field_that_the_application_has_named_as_a_head_is_not_taken(tmp_path: Path) -> None:
    with over(tmp_path, several_vectors()) as backend:
        with pytest.raises(StoreSchemaError, match="'sparse' of its own"):
            backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=BOTH)
        assert not backend.exists(NEW)


def test_vectors_of_bytes_come_back_as_they_are_written(backend: MilvusBackend) -> None:
    """As a server answers: Milvus Lite has no such fields."""
    row = {"id": "1", "text": "text", "image": [b"\0\xff"]}
    assert backend._layout(COLLECTION).point(row, "", keeps_nulls=False).payload == {"image": b"\0\xff"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (Fields(key="text"), "no primary key 'text'"),
        (Fields(vector="text"), "no float vector 'text'"),
        (Fields(vector="none"), "no float vector 'none'"),
        (Fields(text="year"), "no text 'year'"),
    ],
)
def test_a_field_that_is_not_as_named_is_a_schema_error(tmp_path: Path, fields: Fields, reason: str) -> None:
    with over(tmp_path, fields=fields) as backend, pytest.raises(StoreSchemaError, match=reason):
        backend.get(COLLECTION, ["a"])


def test_a_text_that_is_nowhere_is_a_schema_error_without_a_dynamic_field(tmp_path: Path) -> None:
    named = Fields(text="body")
    with (
        over(tmp_path, schema(dynamic=False), fields=named) as backend,
        pytest.raises(StoreSchemaError, match="'body'"),
    ):
        backend.get(COLLECTION, ["a"])


def test_colbert_is_refused_by_name(backend: MilvusBackend) -> None:
    with pytest.raises(StoreSchemaError, match="colbert"):
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=Outputs.ALL)
    assert not backend.exists(NEW)


def test_a_name_that_is_taken_is_refused_and_its_points_stay(backend: MilvusBackend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    backend.put(NEW, [Point("a", "text", TextVectors(unit(1, WIDE)))])
    with pytest.raises(StoreSchemaError, match="already"):
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    assert backend.count(NEW) == 1


def test_an_index_that_is_missing_is_built_like_the_other(backend: MilvusBackend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=BOTH)
    assert backend.missing_indexes(NEW, COLLECTION) == ()
    with backend._client() as client:
        client.release_collection(NEW)
        client.drop_index(NEW, "vector")
    assert backend.missing_indexes(NEW, COLLECTION) == ("vector",)
    assert backend.build_indexes(NEW, COLLECTION) == ("vector",)
    assert backend.build_indexes(NEW, COLLECTION) == ()
    assert backend._indexes(NEW)["vector"]["index_type"] == "HNSW"


def test_what_the_store_makes_of_a_text_is_made_again_on_the_other_side(tmp_path: Path) -> None:
    made = MilvusClient.create_schema()
    made.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    made.add_field("text", DataType.VARCHAR, max_length=1000, enable_analyzer=True)
    made.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSION)
    made.add_field("bm25", DataType.SPARSE_FLOAT_VECTOR)
    made.add_function(Function("f", FunctionType.BM25, ["text"], ["bm25"]))
    with over(tmp_path, made) as backend:
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
        backend.put(COLLECTION, [Point("a", "ferry boat", TextVectors(unit(1)))])
        (point,) = backend.get(COLLECTION, ["a"], vectors=True)
        assert point.payload == {}
        backend.put(NEW, [Point("a", point.text, TextVectors(unit(1, WIDE)), point.payload)])
        with backend._client() as client:
            index = client.prepare_index_params("bm25", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
            client.release_collection(NEW)
            client.create_index(NEW, index)
            client.load_collection(NEW)
            (hits,) = client.search(NEW, ["boat"], anns_field="bm25", limit=1)
    assert [hit["id"] for hit in hits] == ["a"]


# --- lexical weights ------------------------------------------------------------------------------


def test_lexical_weights_are_kept_and_can_be_searched(backend: MilvusBackend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=BOTH)
    empty = SparseVector(np.zeros(0, np.int32), np.zeros(0, np.float32))
    backend.put(
        NEW,
        [
            Point("a", "text", TextVectors(unit(1, WIDE), SPARSE)),
            Point("b", "", TextVectors(unit(2, WIDE), empty)),
            Point("c", "", TextVectors(unit(3, WIDE))),
        ],
    )
    points = {point.id: point for point in backend.get(NEW, ["a", "b", "c"], vectors=True)}
    stored = {id_: point.vectors.sparse for id_, point in points.items() if point.vectors is not None}
    assert stored["a"] is not None
    assert stored["a"].as_dict() == SPARSE.as_dict()
    assert (stored["b"], stored["c"]) == (None, None)
    assert all(point.payload == {} for point in points.values())
    with backend._client() as client:
        (hits,) = client.search(NEW, [{250_001: 2.0}], anns_field="sparse", limit=3)
    assert [(hit["id"], hit["distance"]) for hit in hits if hit["distance"] > 0] == [("a", 0.5)]


def test_a_collection_with_weights_can_be_copied_without_them(backend: MilvusBackend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=BOTH)
    backend.create(NEWER, like=NEW, dimension=24, outputs=DENSE)
    backend.put(NEWER, [Point("a", "text", TextVectors(unit(1, 24)))])
    assert (backend.dimension(NEWER), backend.missing_indexes(NEWER, NEW)) == (24, ())
    with pytest.raises(StoreSchemaError, match="sparse"):
        backend.put(NEWER, [Point("a", "text", TextVectors(unit(1, 24), SPARSE))])


# --- aliases --------------------------------------------------------------------------------------


def test_an_alias_moves_and_is_read_and_written_through(backend: MilvusBackend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    assert (backend.is_alias("live"), backend.resolve("live"), backend.exists("live")) == (False, "live", False)
    for target, dimension in ((COLLECTION, DIMENSION), (COLLECTION, DIMENSION), (NEW, WIDE), (NEW, WIDE)):
        backend.point_alias("live", target)
        assert (backend.is_alias("live"), backend.resolve("live"), backend.exists("live")) == (True, target, True)
        assert backend.dimension("live") == dimension
        backend.put("live", [Point(target, "text", TextVectors(unit(1, dimension)))])
        assert [hit.id for hit in backend.search("live", unit(1, dimension), 1)] == [target]
        assert [point.id for point in backend.get("live", [target])] == [target]
    assert backend.resolve(COLLECTION) == COLLECTION


def test_an_alias_to_nothing_is_refused_and_the_old_one_stays(backend: MilvusBackend) -> None:
    backend.point_alias("live", COLLECTION)
    with pytest.raises(StoreSchemaError, match="nothing"):
        backend.point_alias("live", "nothing")
    assert backend.resolve("live") == COLLECTION


def test_an_alias_is_never_dropped_in_place_of_its_collection(backend: MilvusBackend) -> None:
    backend.point_alias("live", COLLECTION)
    with pytest.raises(StoreSchemaError, match="alias"):
        backend.drop("live")
    assert backend.exists(COLLECTION)


# --- Milvus Lite ----------------------------------------------------------------------------------


def test_what_was_written_is_there_after_opening_again(tmp_path: Path) -> None:
    file = tmp_path / "docs.db"
    with over(tmp_path) as backend:
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=BOTH)
        backend.put(NEW, [Point("a", "a\0b", TextVectors(unit(1, WIDE), SPARSE), {"lang": "en"})])
        backend.point_alias("live", NEW)
    with closing(MilvusBackend.open(f"milvus://{file}", FIELDS)) as again:
        (point,) = again.get("live", ["a"], vectors=True)
        assert (point.text, point.payload, again.count("live")) == ("a\0b", {"lang": "en"}, 1)
        assert [hit.id for hit in again.search(NEW, unit(1, WIDE), 1)] == ["a"]
    end(file)


def test_what_threads_write_at_once_is_there_after_a_crash(tmp_path: Path) -> None:
    file, copy = tmp_path / "docs.db", tmp_path / "copy.db"
    collections = [f"new{n}" for n in range(10)]
    start = threading.Barrier(4)

    def write(backend: MilvusBackend, writer: int) -> None:
        for collection in collections:  # the first writes to each are those that milvus-lite loses
            start.wait()
            for n in range(2):
                backend.put(collection, [Point(f"{writer}-{n}", "text", TextVectors(unit(writer)))])

    with over(tmp_path) as first, closing(MilvusBackend.open(f"milvus://{file}", FIELDS)) as separate:
        for collection in collections:
            first.create(collection, like=COLLECTION, dimension=DIMENSION, outputs=DENSE)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, [first, first.another(), separate, separate.another()], range(4)))
        assert [first.count(collection) for collection in collections] == 10 * [8]
        shutil.copytree(file, copy)  # as a killed process leaves it
    with closing(MilvusBackend.open(f"milvus://{copy}", FIELDS)) as backend:
        assert [backend.count(collection) for collection in collections] == 10 * [8]
    end(copy)


def test_another_outlives_the_first(backend: MilvusBackend) -> None:
    second = backend.another()
    backend.close()
    backend.close()
    second.put(COLLECTION, [Point("a", "text", TextVectors(unit(1)))])
    assert second.count(COLLECTION) == 1
    second.close()


OPEN_AND_SAY = """
import sys
from vecferry.errors import StoreUnreachable
from vecferry.stores.backend import Fields
from vecferry.stores.milvus import MilvusBackend
try:
    MilvusBackend.open(sys.argv[1], Fields()).close()
except StoreUnreachable as exc:
    print(exc.reason)
else:
    print("opened")
"""


def test_a_second_process_is_told_that_the_folder_is_taken(tmp_path: Path) -> None:
    with over(tmp_path), Child(OPEN_AND_SAY, f"milvus://{tmp_path}/docs.db") as child:
        assert "another process may have it" in child.hear()


def test_a_file_that_is_not_there_is_not_made_into_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreachable, match=r"there is no .*/typing error\.db"):
        MilvusBackend.open(f"milvus://{tmp_path}/typing%20error.db", FIELDS)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "docs.db")
    with closing(MilvusBackend.open("milvus:docs.db", FIELDS)) as backend:
        assert backend.exists(COLLECTION)
    end(tmp_path / "docs.db")


def test_a_store_that_goes_away_is_unreachable(backend: MilvusBackend, tmp_path: Path) -> None:
    end(tmp_path / "docs.db")
    with pytest.raises(StoreUnreachable):
        backend.get(COLLECTION, ["a"])


# --- a server -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["milvus:docs", "milvus://host/docs.db", "milvus+http://", "http://h", "milvus+http://h:s3cret"]
)
def test_a_url_of_another_form_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidStoreUrl, match="expected milvus:") as raised:
        MilvusBackend.open(url, FIELDS)
    assert "s3cret" not in str(raised.value)


def test_a_server_that_is_not_there_is_unreachable_and_the_token_not_told() -> None:
    with pytest.raises(StoreUnreachable, match=r"127\.0\.0\.1:1") as raised:
        MilvusBackend.open("milvus+http://root:s3cret@127.0.0.1:1", FIELDS)
    assert "s3cret" not in str(raised.value)
