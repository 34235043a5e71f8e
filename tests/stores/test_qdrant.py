"""What is Qdrant's own: ids, aliases, heads beside the dense vector, local mode, a server's answers."""

import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from tests.stores.backends import COLLECTION, DIMENSION, unit, vector_of
from tests.stores.backends_qdrant import COSINE, FIELDS, make
from tests.stores.processes import Child
from vecferry.embeddings import DENSE, Float32, Outputs, SparseVector, TextVectors
from vecferry.errors import InvalidStoreUrl, SettingsError, StoreFailed, StoreSchemaError, StoreUnreachable
from vecferry.stores.backend import Fields, Point
from vecferry.stores.opening import open_store
from vecferry.stores.qdrant import QdrantBackend
from vecferry.stores.qdrant.layout import create, missing_indexes

UUID = "6f9619ff-8b86-d011-b42d-00cf4fc964ff"
NEW, NEWER = "docs_vecferry_2", "docs_vecferry_3"
WIDE = 16
SPARSE = SparseVector(np.array([3, 250_001], np.int32), np.array([0.5, 0.25], np.float32))


def tokens(num: int) -> Float32:
    return np.stack([unit(100 + i, WIDE) for i in range(num)])


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[QdrantBackend]:
    with closing(QdrantBackend.open(make(tmp_path), FIELDS)) as backend:
        yield backend


@contextmanager
def over(
    folder: Path, vectors: models.VectorParams | dict[str, models.VectorParams], name: str = ""
) -> Iterator[QdrantBackend]:
    with closing(QdrantBackend.open(make(folder, vectors), Fields(vector=name))) as backend:
        yield backend


# --- the application's client ---------------------------------------------------------------------


def test_a_store_goes_by_the_client_of_the_application_where_a_folder_has_one(tmp_path: Path) -> None:
    url, control = make(tmp_path), tmp_path / "control.db"
    with closing(QdrantClient(path=url.removeprefix("qdrant:"))) as client:
        with closing(open_store(url, COLLECTION, vector="", control=control, client=client)) as store:
            client.upsert(COLLECTION, [models.PointStruct(id=1, vector=unit(1).tolist(), payload={"text": "a"})])
            with closing(store.another()) as other:
                assert [row.text for row in other.rows([("1",)])] == ["a"]
        assert client.count(COLLECTION).count == 1
        with pytest.raises(SettingsError, match="qdrant_client's client"):
            open_store(url, COLLECTION, client=object())


# --- points without a vector ----------------------------------------------------------------------


def test_a_point_may_be_without_a_vector_that_has_a_name(tmp_path: Path) -> None:
    with over(tmp_path, {"dense": COSINE}, "dense") as backend:
        backend.put(COLLECTION, [Point("1", "text", TextVectors(unit(1))), Point("2", "a draft", None, {"year": 2})])
        assert backend.without_vector(COLLECTION, ["1", "2", "3"]) == {"2"}
        assert backend.count_without_vector(COLLECTION) == 1
        (stored,) = backend.get(COLLECTION, ["2"], vectors=True)
        assert (stored.text, stored.vectors, stored.payload) == ("a draft", None, {"year": 2})


def test_a_point_has_the_vector_that_has_no_name(backend: QdrantBackend) -> None:
    with pytest.raises(StoreSchemaError, match="no vector for point 2"):
        backend.put(COLLECTION, [Point("2", "a draft", None)])
    assert backend.without_vector(COLLECTION, ["2"]) == set()


# --- ids ------------------------------------------------------------------------------------------


def test_whole_numbers_and_uuids_come_back_as_they_were_written(backend: QdrantBackend) -> None:
    ids = ["0", "17", str(2**64 - 1), UUID]
    backend.put(COLLECTION, [Point(id_, "text", TextVectors(unit(1))) for id_ in ids])
    assert sorted(backend.ids(COLLECTION)) == sorted(ids)
    assert {point.id for point in backend.get(COLLECTION, ids)} == set(ids)


@pytest.mark.parametrize("id_", ["", "a", "-1", "1.5", "٣", str(2**64), "9" * 5000, "6f9619ff"])
def test_an_id_that_is_neither_is_named(backend: QdrantBackend, id_: str) -> None:
    for use in (
        lambda: backend.put(COLLECTION, [Point(id_, "text", TextVectors(unit(1)))]),
        lambda: backend.get(COLLECTION, [id_]),
        lambda: backend.delete(COLLECTION, [id_]),
    ):
        with pytest.raises(StoreSchemaError, match="is not an id") as raised:
            use()
        assert repr(id_) in raised.value.what
    assert backend.count(COLLECTION) == 0


@pytest.mark.parametrize("id_", [UUID.upper(), UUID.replace("-", ""), "{" + UUID + "}", f"urn:uuid:{UUID}"])
def test_another_spelling_of_a_uuid_is_refused_with_the_usual_one(backend: QdrantBackend, id_: str) -> None:
    with pytest.raises(StoreSchemaError) as raised:
        backend.get(COLLECTION, [id_])
    assert UUID in raised.value.expected


def test_a_number_with_a_leading_zero_is_refused_because_it_would_come_back_without(backend: QdrantBackend) -> None:
    with pytest.raises(StoreSchemaError):
        backend.put(COLLECTION, [Point("017", "text", TextVectors(unit(1)))])


# --- texts and metrics ----------------------------------------------------------------------------


def test_a_text_field_that_holds_a_number_is_an_error_that_names_the_point(tmp_path: Path) -> None:
    url = make(tmp_path)
    with closing(QdrantClient(path=str(tmp_path))) as application:
        application.upsert(COLLECTION, [models.PointStruct(id=5, vector=unit(1).tolist(), payload={"text": 7})])
    with closing(QdrantBackend.open(url, FIELDS)) as backend, pytest.raises(StoreSchemaError, match="point 5"):
        backend.get(COLLECTION, ["5"])


@pytest.mark.parametrize("distance", [models.Distance.COSINE, models.Distance.DOT, models.Distance.EUCLID])
def test_scores_are_cosines_whatever_the_metric_is(tmp_path: Path, distance: models.Distance) -> None:
    with over(tmp_path, models.VectorParams(size=DIMENSION, distance=distance)) as backend:
        backend.put(COLLECTION, [Point(str(i), "text", TextVectors(unit(i))) for i in range(20)])
        hits = backend.search(COLLECTION, unit(99), 20)
    expected = sorted((float(unit(i) @ unit(99)), str(i)) for i in range(20))[::-1]
    assert [hit.id for hit in hits] == [id_ for _, id_ in expected]
    np.testing.assert_allclose([hit.score for hit in hits], [score for score, _ in expected], atol=1e-5)


def test_vectors_come_back_at_unit_length_with_the_cosine_metric(backend: QdrantBackend) -> None:
    backend.put(COLLECTION, [Point("1", "text", TextVectors(np.float32(3) * unit(1)))])
    (point,) = backend.get(COLLECTION, ["1"], vectors=True)
    assert vector_of(point).dtype == np.float32
    np.testing.assert_allclose(vector_of(point), unit(1), atol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        (models.VectorParams(size=8, distance=models.Distance.MANHATTAN), "Manhattan"),
        (models.VectorParams(size=8, distance=models.Distance.COSINE, datatype=models.Datatype.UINT8), "uint8"),
        ({"text": COSINE}, "no dense vector ''"),
        (
            models.VectorParams(
                size=8,
                distance=models.Distance.COSINE,
                multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            ),
            "no dense vector ''",
        ),
    ],
)
def test_a_collection_that_cannot_be_copied_is_refused_by_name(
    tmp_path: Path, vectors: models.VectorParams, reason: str
) -> None:
    with over(tmp_path, vectors) as backend:
        with pytest.raises(StoreSchemaError, match=reason):
            backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
        assert not backend.exists(NEW)


# --- further vectors, and the name of the dense one -----------------------------------------------

WORDS = models.SparseVectorParams(modifier=models.Modifier.IDF)
TOKENS = models.VectorParams(
    size=4,
    distance=models.Distance.COSINE,
    multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
)
IMAGE = models.VectorParams(size=3, distance=models.Distance.DOT)


@contextmanager
def hybrid(folder: Path, name: str = "dense", new_name: str | None = None) -> Iterator[QdrantBackend]:
    """Yield a backend on a collection with a dense vector, three further ones, and a point without two of them."""
    vectors = {name: COSINE, "image": IMAGE, "tokens": TOKENS}
    first = {
        name: unit(1).tolist(),
        "image": [0.0, 2.5, 0.1],
        "sparse": models.SparseVector(indices=[70_000, 3], values=[0.5, 0.25]),
        "tokens": [unit(n, 4).tolist() for n in range(3)],
    }
    second = {name: unit(2).tolist(), "image": [1.0, 0.0, 0.0]}
    with closing(QdrantClient(path=str(folder))) as application:
        application.create_collection(COLLECTION, vectors, {"sparse": WORDS}, metadata={"owner": "shop"})
        points = [models.PointStruct(id=n, vector=v, payload={"text": "t"}) for n, v in ((1, first), (2, second))]
        application.upsert(COLLECTION, points)
    with closing(QdrantBackend.open(f"qdrant://{folder}", Fields(vector=name, new_vector=new_name))) as backend:
        yield backend


def stored_vectors(backend: QdrantBackend, collection: str, id_: int) -> dict[str, Any]:
    with backend._connection.client() as client:
        (record,) = client.retrieve(collection, [id_], with_vectors=True)
    assert isinstance(record.vector, dict)
    return dict(record.vector)


def copied(backend: QdrantBackend, old: str, new: str) -> None:
    """Write each point to the new collection with a vector of its own there."""
    points = backend.get(old, list(backend.ids(old)))
    backend.put(new, [replace(point, vectors=TextVectors(unit(int(point.id), WIDE))) for point in points])


def payloads(backend: QdrantBackend, collection: str) -> dict[str, Mapping[str, Any]]:
    """Return what is compared to find writes that no journal has seen."""
    return {point.id: point.payload for point in backend.get(collection, list(backend.ids(collection)))}


def test_further_vectors_of_every_kind_are_carried_along(tmp_path: Path) -> None:
    with hybrid(tmp_path) as backend:
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
        copied(backend, COLLECTION, NEW)
        assert payloads(backend, NEW) == payloads(backend, COLLECTION)
        assert backend._info(NEW).config.params.sparse_vectors == {"sparse": WORDS}
        assert (backend._info(NEW).config.metadata or {})["owner"] == "shop"
        for id_, names in ((1, {"dense", "image", "sparse", "tokens"}), (2, {"dense", "image"})):
            old, new = (stored_vectors(backend, collection, id_) for collection in (COLLECTION, NEW))
            assert old.keys() == new.keys() == names
            assert old.get("sparse") == new.get("sparse")
            for name in names & {"image", "tokens"}:
                np.testing.assert_allclose(new[name], old[name], rtol=1e-6)  # float32
        (point,) = backend.get(NEW, ["1"], vectors=True)
        assert point.vectors is not None
        assert (point.vectors.outputs, point.vectors.dense.shape) == (DENSE, (WIDE,))
        with backend._connection.client() as client:
            words = models.SparseVector(indices=[3], values=[1.0])
            assert client.query_points(NEW, words, using="sparse", limit=1).points[0].id == 1


def test_a_further_vector_that_was_changed_is_seen_and_one_that_was_only_rounded_is_not(tmp_path: Path) -> None:
    with hybrid(tmp_path) as backend:
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
        copied(backend, COLLECTION, NEW)
        for _ in range(3):  # each write makes the length of the tokens 1 again
            copied(backend, NEW, NEW)
        assert payloads(backend, NEW) == payloads(backend, COLLECTION)
        with backend._connection.client() as client:
            changed = models.PointVectors(id=1, vector={"image": [0.0, 2.5, 0.2]})
            client.update_vectors(COLLECTION, [changed])
        assert payloads(backend, NEW) != payloads(backend, COLLECTION)


@pytest.mark.parametrize(("name", "new_name"), [("fast-all-minilm-l6-v2", "fast-bge-m3"), ("", "dense"), ("dense", "")])
def test_the_vector_has_another_name_in_the_new_collection(tmp_path: Path, name: str, new_name: str) -> None:
    with hybrid(tmp_path, name, new_name) as backend:
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
        copied(backend, COLLECTION, NEW)
        assert stored_vectors(backend, NEW, 1).keys() == {new_name, "image", "sparse", "tokens"}
        assert backend.search(NEW, unit(1, WIDE), 1)[0].id == "1"
        assert (backend.dimension(COLLECTION), backend.dimension(NEW)) == (DIMENSION, WIDE)
        (point,) = backend.get(NEW, ["2"], vectors=True)
        np.testing.assert_allclose(vector_of(point), unit(2, WIDE), atol=1e-6)
        assert backend.count_without_vector(NEW) == backend.count_without_vector(COLLECTION) == 0
        assert backend.without_vector(NEW, ["1", "2"]) == set()


@pytest.mark.parametrize(
    ("new_name", "outputs", "reason"),
    [("image", DENSE, "image"), (None, DENSE | Outputs.SPARSE, "sparse"), ("colbert", Outputs.ALL, "colbert|sparse")],
)
def test_a_name_that_the_application_has_given_is_not_taken(
    tmp_path: Path, new_name: str | None, outputs: Outputs, reason: str
) -> None:
    with hybrid(tmp_path, new_name=new_name) as backend:
        with pytest.raises(StoreSchemaError, match=reason):
            backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=outputs)
        assert not backend.exists(NEW)


def test_vectors_that_are_carried_go_on_to_the_next_collection_and_heads_do_not(tmp_path: Path) -> None:
    with hybrid(tmp_path) as backend:
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE | Outputs.COLBERT)
        copied(backend, COLLECTION, NEW)
        backend.create(NEWER, like=NEW, dimension=WIDE, outputs=DENSE)
        copied(backend, NEW, NEWER)
        assert stored_vectors(backend, NEWER, 1).keys() == {"dense", "image", "sparse", "tokens"}
        assert payloads(backend, NEWER) == payloads(backend, COLLECTION)


def test_a_further_vector_that_there_is_no_place_for_is_named(tmp_path: Path) -> None:
    with hybrid(tmp_path) as backend, pytest.raises(StoreSchemaError, match="'sound'"):
        backend.put(COLLECTION, [Point("3", "t", TextVectors(unit(3)), {"$vectors": {"sound": [1.0]}})])


def test_a_server_that_keeps_no_metadata_is_not_given_vectors_that_could_be_taken_for_heads(tmp_path: Path) -> None:
    with hybrid(tmp_path) as backend:
        info, layout = backend._info(COLLECTION), backend._layout(COLLECTION)
        client = ClientDouble(info)
        with pytest.raises(StoreFailed, match="sparse could be told"):
            create(client, NEW, info, layout, WIDE, DENSE, "dense")  # type: ignore[arg-type]
        assert client.dropped == [NEW]


# --- heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "text"])
@pytest.mark.parametrize("outputs", [Outputs(DENSE.value | heads) for heads in (0, 2, 4, 6)])
def test_heads_are_kept_beside_a_named_and_an_unnamed_vector(tmp_path: Path, name: str, outputs: Outputs) -> None:
    with over(tmp_path, COSINE if name == "" else {name: COSINE}, name) as backend:
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=outputs)
        sparse = SPARSE if Outputs.SPARSE in outputs else None
        colbert = tokens(5) if Outputs.COLBERT in outputs else None
        backend.put(
            NEW, [Point(i, "text", TextVectors(unit(1, WIDE), sparse, colbert), {"year": 1}) for i in ("1", "2")]
        )
        backend.put(NEW, [Point("1", "changed", TextVectors(unit(2, WIDE), sparse, colbert), {"year": 2})])
        (point,) = backend.get(NEW, ["1"], vectors=True)
        hits = backend.search(NEW, unit(2, WIDE), 1)
    assert hits[0].id == "1"
    assert (point.text, point.payload) == ("changed", {"year": 2})
    assert point.vectors is not None
    np.testing.assert_allclose(point.vectors.dense, unit(2, WIDE), atol=1e-6)
    assert point.vectors.outputs == outputs
    if point.vectors.sparse is not None:
        assert point.vectors.sparse.as_dict() == SPARSE.as_dict()
    if point.vectors.colbert is not None:  # five decimals, then float16 on a server
        np.testing.assert_allclose(point.vectors.colbert, tokens(5), atol=1e-4)


def test_a_text_without_tokens_has_no_sparse_and_no_colbert_vector(backend: QdrantBackend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=Outputs.ALL)
    empty = SparseVector(np.zeros(0, np.int32), np.zeros(0, np.float32))
    backend.put(NEW, [Point("1", "", TextVectors(unit(1, WIDE), empty, np.zeros((0, WIDE), np.float32)))])
    (point,) = backend.get(NEW, ["1"], vectors=True)
    assert point.vectors is not None
    assert (point.text, point.vectors.outputs) == ("", DENSE)


def test_a_collection_with_heads_can_itself_be_copied(backend: QdrantBackend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=Outputs.ALL)
    backend.create(NEWER, like=NEW, dimension=24, outputs=DENSE)
    backend.put(NEWER, [Point("1", "text", TextVectors(unit(1, 24)))])
    assert backend.dimension(NEWER) == 24


def test_a_head_that_a_collection_lacks_is_refused_and_nothing_written(backend: QdrantBackend) -> None:
    with pytest.raises(StoreSchemaError, match="sparse"):
        backend.put(COLLECTION, [Point("1", "text", TextVectors(unit(1), SPARSE))])
    assert backend.count(COLLECTION) == 0


class ClientDouble:
    """Take the place of a client, and keep what a server would be sent. info: what it says of each collection."""

    def __init__(self, info: models.CollectionInfo) -> None:
        self._info = info
        self.dropped: list[str] = []

    def get_collection(self, collection: str) -> models.CollectionInfo:
        return self._info

    def delete_collection(self, collection: str) -> None:
        self.dropped.append(collection)

    def create_collection(self, collection: str, vectors: object, sparse: object, **settings: object) -> None:
        self.vectors, self.settings = vectors, settings


def test_settings_of_a_server_s_collection_are_sent_again(tmp_path: Path) -> None:
    with over(tmp_path, COSINE) as backend:
        info = backend._info(COLLECTION)
        layout = backend._layout(COLLECTION)
    info.config.params.replication_factor = 2
    info.config.hnsw_config.m = 32
    info.config.quantization_config = models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8)
    )
    info.config.strict_mode_config = models.StrictModeConfigOutput(enabled=True, max_query_limit=7)
    client = ClientDouble(info)
    create(client, NEW, info, layout, WIDE, DENSE, "")  # type: ignore[arg-type]
    assert client.vectors == models.VectorParams(size=WIDE, distance=models.Distance.COSINE)
    assert client.settings["replication_factor"] == 2
    assert client.settings["hnsw_config"] == models.HnswConfigDiff(
        m=32, ef_construct=100, full_scan_threshold=10000, max_indexing_threads=0
    )
    assert client.settings["quantization_config"] == info.config.quantization_config
    assert client.settings["strict_mode_config"] == models.StrictModeConfig(enabled=True, max_query_limit=7)


@pytest.mark.parametrize(
    ("indexed", "status", "points", "like_indexed", "missing"),
    [
        (0, models.CollectionStatus.YELLOW, 50_000, 50_000, ("lang", "hnsw")),
        (9, models.CollectionStatus.YELLOW, 50_000, 50_000, ("lang",)),
        (0, models.CollectionStatus.GREEN, 50, 50_000, ("lang",)),
        (0, models.CollectionStatus.YELLOW, 50_000, 0, ("lang",)),
        (0, models.CollectionStatus.GREY, 0, 50_000, ("lang",)),
    ],
)
def test_an_index_is_missing_while_the_server_makes_the_first_one(
    backend: QdrantBackend,
    indexed: int,
    status: models.CollectionStatus,
    points: int,
    like_indexed: int,
    missing: tuple[str, ...],
) -> None:
    year = models.PayloadIndexInfo(data_type=models.PayloadSchemaType.INTEGER, points=1)
    info, like = backend._info(COLLECTION), backend._info(COLLECTION)
    info.indexed_vectors_count, info.status, info.points_count, info.payload_schema = (
        indexed,
        status,
        points,
        {"year": year},
    )
    like.indexed_vectors_count, like.payload_schema = like_indexed, {"year": year, "lang": year}
    assert missing_indexes(info, like) == missing


# --- aliases --------------------------------------------------------------------------------------


def test_an_alias_moves_and_is_read_through(backend: QdrantBackend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    backend.put(NEW, [Point("1", "text", TextVectors(unit(1, WIDE)))])
    assert (backend.is_alias("live"), backend.resolve("live"), backend.exists("live")) == (False, "live", False)
    for target in (COLLECTION, COLLECTION, NEW, NEW):
        backend.point_alias("live", target)
        assert (backend.is_alias("live"), backend.resolve("live"), backend.exists("live")) == (True, target, True)
    assert backend.dimension("live") == WIDE
    assert [point.id for point in backend.get("live", ["1"])] == ["1"]
    assert backend.resolve(COLLECTION) == COLLECTION


def test_an_alias_is_never_away_while_it_moves(backend: QdrantBackend) -> None:
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    backend.point_alias("live", COLLECTION)
    targets: set[str] = set()
    done = threading.Event()

    def look() -> None:
        with closing(backend.another()) as reader:
            while not done.is_set():
                targets.add(reader.resolve("live"))

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(20):
        backend.point_alias("live", NEW)
        backend.point_alias("live", COLLECTION)
    done.set()
    thread.join()
    assert targets <= {COLLECTION, NEW}


def test_an_alias_to_nothing_is_refused_and_the_old_one_stays(backend: QdrantBackend) -> None:
    backend.point_alias("live", COLLECTION)
    with pytest.raises(StoreSchemaError, match="nothing"):
        backend.point_alias("live", "nothing")
    assert backend.resolve("live") == COLLECTION


# --- local mode -----------------------------------------------------------------------------------


def test_what_was_written_is_there_after_opening_again(tmp_path: Path) -> None:
    with over(tmp_path, COSINE) as backend:
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=Outputs.ALL)
        backend.put(NEW, [Point("1", "a\0b", TextVectors(unit(1, WIDE), SPARSE, tokens(3)), {"n": None})])
        backend.point_alias("live", NEW)
    with closing(QdrantBackend.open(f"qdrant://{tmp_path}", FIELDS)) as again:
        (point,) = again.get(again.resolve("live"), ["1"], vectors=True)
    assert (point.text, point.payload) == ("a\0b", {"n": None})
    assert point.vectors is not None
    assert point.vectors.colbert is not None
    assert point.vectors.dense.dtype == point.vectors.colbert.dtype == np.float32


def test_threads_write_at_once_with_backends_of_their_own(backend: QdrantBackend) -> None:
    def write(start: int) -> None:
        with closing(backend.another()) as own_handle:
            for i in range(start, start + 50):
                own_handle.put(COLLECTION, [Point(str(i), "text", TextVectors(unit(i)))])
                list(own_handle.ids(COLLECTION))

    threads = [threading.Thread(target=write, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert backend.count(COLLECTION) == 200
    assert all(np.allclose(vector_of(p), unit(int(p.id)), atol=1e-6) for p in _all(backend))


def _all(backend: QdrantBackend) -> list[Point]:
    return backend.get(COLLECTION, list(backend.ids(COLLECTION)), vectors=True)


def test_another_outlives_the_first_and_the_last_frees_the_folder(tmp_path: Path) -> None:
    first = QdrantBackend.open(make(tmp_path), FIELDS)
    second = first.another()
    first.close()
    first.close()
    assert second.count(COLLECTION) == 0
    second.close()
    QdrantBackend.open(f"qdrant://{tmp_path}", FIELDS).close()


OPEN_AND_SAY = """
import sys
from vecferry.errors import StoreUnreachable
from vecferry.stores.backend import Fields
from vecferry.stores.qdrant import QdrantBackend
try:
    QdrantBackend.open(sys.argv[1], Fields()).close()
except StoreUnreachable as exc:
    print(exc.reason)
else:
    print("opened")
"""


def test_a_second_process_is_told_who_has_the_folder(backend: QdrantBackend, tmp_path: Path) -> None:
    with Child(OPEN_AND_SAY, f"qdrant://{tmp_path}") as child:
        assert "already accessed by another instance" in child.hear()
    backend.close()
    with Child(OPEN_AND_SAY, f"qdrant://{tmp_path}") as child:
        assert child.hear() == "opened"


def test_a_folder_without_collections_is_not_made_into_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreachable, match="holds no collections"):
        QdrantBackend.open(f"qdrant://{tmp_path}/typing%20error", FIELDS)
    assert list(tmp_path.iterdir()) == []


# --- a server -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "qdrant://folder",
        "qdrant:",
        "qdrant+http://",
        "qdrant+ftp://host",
        "http://host",
        "qdrant+http://h:s3cret",
    ],
)
def test_a_url_of_another_form_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidStoreUrl, match="expected qdrant:") as raised:
        QdrantBackend.open(url, FIELDS)
    assert "s3cret" not in str(raised.value)


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with pytest.raises(StoreUnreachable, match="refused"):
        QdrantBackend.open("qdrant+http://127.0.0.1:1", FIELDS)


@contextmanager
def server_with(url: str, status: int, body: bytes, headers: dict[str, str] | None = None) -> Iterator[QdrantBackend]:
    """Yield a backend on a server that says hello at its root and gives this answer to all else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hello = b'{"title": "qdrant", "version": "1.19.0"}'
            self.send_response(200 if self.path == "/" else status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(hello if self.path == "/" else body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with closing(QdrantBackend.open(url.format(f"127.0.0.1:{server.server_port}"), FIELDS)) as backend:
                yield backend
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "error", "says"),
    [
        (401, b"Invalid API key s3cret", StoreUnreachable, "HTTP 401: Invalid API key ***"),
        (404, b'{"status": {"error": "Not found: Collection `docs` not found!"}}', StoreSchemaError, "`docs`"),
        (500, b'{"status": {"error": "No space left on device"}}', StoreFailed, "No space left"),
        (503, b"", StoreUnreachable, "HTTP 503: Service Unavailable"),
        (200, b'{"result": 5}', StoreFailed, "does not know"),
        (200, b"<html>", StoreFailed, "store refused"),
    ],
)
@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_what_a_server_refuses_is_reported_without_the_key(
    status: int, body: bytes, error: type[Exception], says: str
) -> None:
    with server_with("qdrant+http://:s3cret@{}", status, body) as backend, pytest.raises(error) as raised:
        backend.dimension(COLLECTION)
    assert says in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_a_server_that_asks_for_patience_is_unreachable_for_now() -> None:
    body, headers = b'{"status": {"error": "too many"}}', {"Retry-After": "3"}
    with (
        server_with("qdrant+http://{}", 429, body, headers) as backend,
        pytest.raises(StoreUnreachable, match="too many"),
    ):
        backend.dimension(COLLECTION)


@pytest.mark.skipif("QDRANT_URL" not in os.environ, reason="QDRANT_URL names no server")
@pytest.mark.parametrize("outputs", [DENSE, Outputs.ALL])
def test_a_live_server_keeps_all_that_local_mode_keeps(outputs: Outputs) -> None:
    with closing(QdrantBackend.open(os.environ["QDRANT_URL"], FIELDS)) as backend:
        old = f"vecferry-test-{uuid.uuid4()}"
        new = f"{old}_vecferry_2"
        try:
            with backend._connection.client() as client:
                client.create_collection(old, COSINE)
                client.create_payload_index(old, "lang", models.PayloadSchemaType.KEYWORD, wait=True)
            backend.create(new, like=old, dimension=WIDE, outputs=outputs)
            sparse = SPARSE if Outputs.SPARSE in outputs else None
            colbert = tokens(5) if Outputs.COLBERT in outputs else None
            written = [
                Point(str(i), f"text {i}", TextVectors(unit(i, WIDE), sparse, colbert), {"year": i}) for i in range(50)
            ]
            backend.put(new, written)
            read = {point.id: point for point in backend.get(new, [p.id for p in written], vectors=True)}
            assert {(p.id, p.text, p.payload["year"]) for p in read.values()} == {
                (p.id, p.text, p.payload["year"]) for p in written
            }
            assert read["7"].vectors is not None
            assert read["7"].vectors.outputs == outputs
            assert backend.search(new, unit(7, WIDE), 1)[0].id == "7"
            assert backend.missing_indexes(new, old) == ()
            backend.point_alias(f"{old}-live", old)
            backend.point_alias(f"{old}-live", new)
            assert backend.resolve(f"{old}-live") == new
            backend.delete(new, ["7", "900"])
            assert sorted(map(int, backend.ids(new))) == [i for i in range(50) if i != 7]
        finally:
            backend.drop(old)
            backend.drop(new)
            backend.drop(new)
