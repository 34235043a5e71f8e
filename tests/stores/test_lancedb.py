"""What is LanceDB's own: columns of any type, its keys, commits and indexes."""

import datetime
import decimal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb import index

from tests.migrate.doubles import TruthEncoder
from tests.stores.backends import COLLECTION, DIMENSION, unit, vector_of
from tests.stores.backends_lancedb import SCHEMA, opened
from vecferry.embeddings import DENSE, Float32, Outputs, TextVectors
from vecferry.errors import InvalidStoreUrl, StoreFailed, StoreSchemaError, StoreUnreachable
from vecferry.migrate import Migration, MigrationOptions
from vecferry.stores.backend import Fields, Point
from vecferry.stores.filters import Selection
from vecferry.stores.lancedb import LanceBackend
from vecferry.stores.mirror import MirrorStore
from vecferry.stores.sqlite import SqliteLedger

NEW = "docs_new"
VECTOR = pa.list_(pa.float32(), DIMENSION)
NANOSECOND = pa.scalar(1_234_567_890_123_456_789, pa.timestamp("ns"))
COLUMNS: dict[str, tuple[pa.DataType, Any]] = {
    "flag": (pa.bool_(), True),
    "unsigned": (pa.uint64(), 2**64 - 1),
    "half": (pa.float16(), 1.5),
    "money": (pa.decimal128(10, 2), decimal.Decimal("1.25")),
    "day": (pa.date32(), datetime.date(2020, 2, 29)),
    "at": (pa.timestamp("us", tz="UTC"), datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
    "exactly_at": (pa.timestamp("ns"), NANOSECOND),
    "clock": (pa.time64("ns"), pa.scalar(123_456_789_123, pa.time64("ns"))),
    "blob": (pa.large_binary(), b"\0\xff"),
    "kind": (pa.dictionary(pa.int32(), pa.string()), "a"),
    "tags": (pa.list_(pa.string()), ["a", "b"]),
    "nested": (pa.struct([("a", pa.int32()), ("b", pa.list_(pa.float64()))]), {"a": 1, "b": [0.1]}),
    "image": (pa.list_(pa.float32(), 16), [0.5] * 16),
}


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LanceBackend]:
    with opened(tmp_path) as backend:
        assert isinstance(backend, LanceBackend)
        yield backend


def points(start: int, stop: int) -> list[Point]:
    return [Point(str(n), f"text {n}", TextVectors(unit(n))) for n in range(start, stop)]


def over(folder: Path, schema: pa.Schema, fields: Fields | None = None) -> LanceBackend:
    """Return a backend over an empty table `docs` of that schema."""
    lancedb.connect(folder).create_table(COLLECTION, schema=schema)
    return LanceBackend(folder, fields or Fields())


def table(folder: Path, name: str = COLLECTION) -> Any:
    return lancedb.connect(folder).open_table(name)


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreachable):
        LanceBackend.open(f"lancedb://{tmp_path}/nowhere", Fields())
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(InvalidStoreUrl, match="lancedb:relative/path"):
        LanceBackend.open("lancedb://nowhere", Fields())


# --- columns --------------------------------------------------------------------------------------


def test_columns_of_any_type_are_carried_through_unchanged(tmp_path: Path) -> None:
    others = [(name, kind) for name, (kind, _) in COLUMNS.items()]
    backend = over(tmp_path, pa.schema([("id", pa.string()), ("text", pa.string()), ("vector", VECTOR), *others]))
    columns = [
        pa.array(["full", "empty"]),
        pa.array(["text", None]),
        pa.array([unit(1), unit(2)], VECTOR),
        *(pa.array([value, None], kind) for kind, value in COLUMNS.values()),
    ]
    application = table(tmp_path)
    application.add(pa.Table.from_arrays(columns, schema=application.schema), on_bad_vectors="null")
    before = application.to_arrow()
    stored = backend.get(COLLECTION, ["full", "empty"], vectors=True)
    backend.delete(COLLECTION, ["full"])
    backend.put(COLLECTION, stored)
    after = table(tmp_path).to_arrow()
    assert after.sort_by("id").equals(before.sort_by("id"))
    backend.create(NEW, like=COLLECTION, dimension=DIMENSION, outputs=DENSE)
    backend.put(NEW, stored)
    assert table(tmp_path, NEW).to_arrow().sort_by("id").equals(before.sort_by("id"))


def test_columns_may_have_any_name(tmp_path: Path) -> None:
    schema = pa.schema([("doc Id", pa.string()), ("the text!", pa.large_string()), ("Vector", VECTOR)])
    backend = over(tmp_path, schema, Fields("doc Id", "the text!", "Vector"))
    backend.put(COLLECTION, points(0, 3))
    backend.delete(COLLECTION, ["0"])
    assert [(point.id, point.text) for point in backend.get(COLLECTION, ["0", "2"])] == [("2", "text 2")]
    assert backend.search(COLLECTION, unit(1), 1)[0].id == "1"


@pytest.mark.parametrize(
    "column",
    [
        pa.field("id", pa.float64()),
        pa.field("text", pa.binary()),
        pa.field("vector", pa.list_(pa.float32())),
        pa.field("vector", pa.list_(pa.uint8(), 8)),
    ],
)
def test_columns_of_an_unfit_type_are_named(tmp_path: Path, column: pa.Field) -> None:
    schema = SCHEMA.set(SCHEMA.get_field_index(column.name), column)
    with pytest.raises(StoreSchemaError, match=f"'{column.name}'"):
        over(tmp_path, schema).count(COLLECTION)


def test_a_column_that_is_not_there_is_named(tmp_path: Path, backend: LanceBackend) -> None:
    with pytest.raises(StoreSchemaError, match="'body'"):
        LanceBackend(tmp_path, Fields(text="body")).count(COLLECTION)
    with pytest.raises(StoreSchemaError, match="colour"):
        backend.put(COLLECTION, [Point("1", "text", TextVectors(unit(1)), {"colour": "red"})])
    assert backend.count(COLLECTION) == 0


def test_numbers_that_are_not_finite_are_refused(backend: LanceBackend) -> None:
    with pytest.raises(StoreSchemaError):
        backend.put(
            COLLECTION, [*points(0, 2), Point("2", "text", TextVectors(np.full(DIMENSION, np.nan, np.float32)))]
        )
    assert backend.count(COLLECTION) == 0


def test_a_column_of_float16_is_kept_for_the_new_vectors(tmp_path: Path) -> None:
    field = pa.field("vector", pa.list_(pa.float16(), DIMENSION))
    backend = over(tmp_path, SCHEMA.set(SCHEMA.get_field_index("vector"), field))
    backend.create(NEW, like=COLLECTION, dimension=DIMENSION, outputs=DENSE)
    backend.put(NEW, points(0, 3))
    assert table(tmp_path, NEW).schema.field("vector").type.value_type == pa.float16()
    stored = vector_of(backend.get(NEW, ["1"], vectors=True)[0])
    np.testing.assert_array_equal(stored, unit(1).astype(np.float16).astype(np.float32))


def test_the_function_that_embeds_with_the_old_model_is_not_taken_over(tmp_path: Path) -> None:
    backend = over(tmp_path, SCHEMA.with_metadata({"embedding_functions": "[]", "owner": "us"}))
    backend.create(NEW, like=COLLECTION, dimension=DIMENSION, outputs=DENSE)
    metadata = table(tmp_path, NEW).schema.metadata
    assert b"embedding_functions" not in metadata
    assert metadata[b"owner"] == b"us"


def test_colbert_vectors_have_a_column_of_their_own(tmp_path: Path, backend: LanceBackend) -> None:
    tokens: Float32 = np.stack([unit(n) for n in range(5)])
    backend.create(NEW, like=COLLECTION, dimension=DIMENSION, outputs=DENSE | Outputs.COLBERT)
    backend.put(
        NEW,
        [
            Point("1", "text", TextVectors(unit(1), colbert=tokens)),
            Point("2", "text", TextVectors(unit(2))),
            *points(3, 9),
        ],
    )
    stored = {point.id: point for point in backend.get(NEW, ["1", "2"], vectors=True)}
    first, second = stored["1"].vectors, stored["2"].vectors
    assert first is not None
    assert first.colbert is not None
    np.testing.assert_allclose(first.colbert, tokens, rtol=0, atol=2**-11)  # half of float16's last bit below 1
    assert second is not None
    assert second.colbert is None
    assert "vector_colbert" not in stored["1"].payload
    assert backend.get(NEW, ["1"])[0].vectors is None
    assert backend.search(NEW, unit(2), 1)[0].id == "2"
    backend.create("third", like=NEW, dimension=4, outputs=DENSE)
    assert table(tmp_path, "third").schema.names == SCHEMA.names
    with pytest.raises(StoreSchemaError):
        backend.put(COLLECTION, [Point("1", "text", TextVectors(unit(1), colbert=tokens))])


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.uint64()])
def test_keys_that_are_whole_numbers_stay_so(tmp_path: Path, kind: pa.DataType) -> None:
    backend = over(tmp_path, SCHEMA.set(0, pa.field("id", kind)))
    backend.put(COLLECTION, points(0, 20))
    backend.delete(COLLECTION, ["3", "x", "03", "+4", "9" * 30, "٥"])
    assert sorted(map(int, backend.ids(COLLECTION))) == [n for n in range(20) if n != 3]
    stored = backend.get(COLLECTION, ["5", "05", " 5", "5.0", "-5", str(2**70), "1) OR (1=1"])
    assert [point.id for point in stored] == ["5"]
    assert table(tmp_path).schema.field("id").type == kind
    for key in ("x", "05", str(2**64)):
        with pytest.raises(StoreSchemaError):
            backend.put(COLLECTION, [Point(key, "text", TextVectors(unit(1)))])


@pytest.mark.parametrize("keys", [["1", "1"], ["1", None]])
def test_rows_without_a_key_of_their_own_are_found_before_a_migration(tmp_path: Path, keys: list[str | None]) -> None:
    with opened(tmp_path) as backend:
        table(tmp_path).add(pa.table({"id": pa.array(keys, pa.string()), "vector": pa.array([unit(1)] * 2, VECTOR)}))
        with pytest.raises(StoreSchemaError, match="1 rows"):
            backend.create(NEW, like=COLLECTION, dimension=DIMENSION, outputs=DENSE)
        assert not backend.exists(NEW)


def test_writers_that_insert_the_same_keys_at_once_leave_each_once(backend: LanceBackend) -> None:
    handles = [backend.another() for _ in range(4)]  # with a file lock each, as in processes of their own
    together = Barrier(len(handles))

    def write(handle: LanceBackend) -> None:
        for start in range(0, 100, 20):
            together.wait()
            handle.put(COLLECTION, points(start, start + 20))

    with ThreadPoolExecutor(len(handles)) as pool:
        list(pool.map(write, handles))
    assert sorted(backend.ids(COLLECTION)) == sorted(map(str, range(100)))


# --- rows without a key ---------------------------------------------------------------------------

KEYLESS = pa.schema([field for field in SCHEMA if field.name != "id"])


def keyless(folder: Path, *texts: str | None, key: str = "id") -> LanceBackend:
    """Return a backend over a table without keys, to which the application has added these texts."""
    backend = over(folder, KEYLESS, Fields(key))
    add(folder, *texts)
    return backend


def add(folder: Path, *texts: str | None, name: str = COLLECTION, dimension: int = DIMENSION) -> None:
    if texts:
        table(folder, name).add([{"text": text, "vector": unit(1, dimension), "lang": "en"} for text in texts])


def texts_by_key(backend: LanceBackend, collection: str = COLLECTION) -> dict[str, str | None]:
    keys = list(backend.ids(collection))
    assert len(keys) == len(set(keys)) == backend.count(collection)
    texts = {point.id: point.text for point in backend.get(collection, keys)}
    assert texts.keys() == set(keys)
    return texts


def copy(backend: LanceBackend, keys: Iterable[str], vector: Float32) -> None:
    points = backend.get(COLLECTION, list(keys))
    backend.put(NEW, [replace(point, vectors=TextVectors(vector)) for point in points])


def test_rows_without_a_key_have_the_same_one_in_each_table_that_holds_them(tmp_path: Path) -> None:
    backend = keyless(tmp_path, "a", "b", None, "same", "same", "same")
    backend.create(NEW, like=COLLECTION, dimension=16, outputs=DENSE)
    assert table(tmp_path, NEW).schema.names == KEYLESS.names
    keys = texts_by_key(backend)
    assert sorted(filter(None, keys.values())) == ["a", "b", "same", "same", "same"]
    for vector in (unit(1, 16), unit(2, 16)):  # the second one replaces
        copy(backend, keys, vector)
        assert texts_by_key(backend, NEW) == keys
        stored = backend.get(NEW, list(keys), vectors=True)
        assert all(np.array_equal(vector_of(point), vector) for point in stored)
        assert {point.payload["lang"] for point in stored} == {"en"}
        assert {hit.id for hit in backend.search(NEW, vector, 9)} == keys.keys()
        hits = backend.search(NEW, vector, 9, Selection(with_text=True))
        assert {hit.id: hit.point.text for hit in hits if hit.point is not None} == keys
    again = LanceBackend(tmp_path, Fields())
    assert texts_by_key(again, NEW) == texts_by_key(again) == keys


def test_of_rows_that_are_alike_as_many_are_deleted_as_there_are_keys(tmp_path: Path) -> None:
    backend = keyless(tmp_path, "same", "same", "same", "other")
    same = sorted(key for key, text in texts_by_key(backend).items() if text == "same")
    for left in (2, 1, 0):
        backend.delete(COLLECTION, [same[left], same[left], "unknown", f"{same[0]}-1", f"{same[0]}-x"])
        assert sorted(key for key, text in texts_by_key(backend).items() if text == "same") == same[:left]
    assert list(texts_by_key(backend).values()) == ["other"]


def test_what_another_client_does_to_rows_without_a_key_is_seen(tmp_path: Path) -> None:
    backend = keyless(tmp_path, "a", "b", "c")
    before = texts_by_key(backend)
    add(tmp_path, "d")
    table(tmp_path).update(where="text = 'a'", values={"text": "changed"})
    table(tmp_path).delete("text = 'b'")
    after = texts_by_key(backend)
    assert sorted(map(str, after.values())) == ["c", "changed", "d"]
    assert {key for key, text in before.items() if text == "c"} < after.keys()
    table(tmp_path).update(where="text = 'c'", values={"lang": "de"})
    assert [p.text for p in backend.get(COLLECTION, [key for key in texts_by_key(backend) if key not in after])] == [
        "c"
    ]
    kept = texts_by_key(backend)
    table(tmp_path).optimize()  # the store's row ids are others now
    assert texts_by_key(backend) == kept
    lancedb.connect(tmp_path).drop_table(COLLECTION)
    lancedb.connect(tmp_path).create_table(COLLECTION, schema=KEYLESS)
    assert texts_by_key(backend) == {}


def test_a_commit_of_another_client_between_ours_leaves_no_row_unknown(tmp_path: Path) -> None:
    backend = keyless(tmp_path, *"abcd")
    backend.create(NEW, like=COLLECTION, dimension=16, outputs=DENSE)
    keys = texts_by_key(backend)
    for number, key in enumerate(keys):
        copy(backend, [key], unit(1, 16))
        add(tmp_path, f"by another {number}", name=NEW, dimension=16)
        assert len(texts_by_key(backend, NEW)) == 2 * (number + 1)


def test_a_row_is_not_written_under_a_key_that_is_not_of_its_content(tmp_path: Path) -> None:
    backend = keyless(tmp_path, "a")
    with pytest.raises(StoreSchemaError, match="'7' is no key of docs"):
        backend.put(COLLECTION, [Point("7", "b", TextVectors(unit(1)))])
    assert list(texts_by_key(backend).values()) == ["a"]
    assert "no key" in backend.notices(COLLECTION)[0]


def test_rows_without_a_key_and_without_a_vector_stay_so(tmp_path: Path) -> None:
    backend = keyless(tmp_path, "a")
    table(tmp_path).add([{"text": "draft", "vector": None, "lang": "en"}], on_bad_vectors="null")
    (draft,) = (key for key, text in texts_by_key(backend).items() if text == "draft")
    assert backend.without_vector(COLLECTION, list(texts_by_key(backend))) == {draft}
    backend.create(NEW, like=COLLECTION, dimension=16, outputs=DENSE)
    backend.put(NEW, backend.get(COLLECTION, [draft], vectors=True))
    assert (backend.without_vector(NEW, [draft]), backend.count_without_vector(NEW)) == ({draft}, 1)


def test_keys_that_repeat_are_refused_with_the_way_out(tmp_path: Path) -> None:
    backend = over(tmp_path, SCHEMA)
    rows = [{"id": "1", "text": text, "vector": unit(1)} for text in ("a", "b")]
    table(tmp_path).add(rows)
    with pytest.raises(StoreSchemaError, match="1 rows without a key") as refused:
        backend.create(NEW, like=COLLECTION, dimension=16, outputs=DENSE)
    assert "[store] key = '*'" in refused.value.expected
    assert backend.notices(COLLECTION) == ()
    by_content = LanceBackend(tmp_path, Fields("*"))
    by_content.create(NEW, like=COLLECTION, dimension=16, outputs=DENSE)
    copy(by_content, texts_by_key(by_content), unit(1, 16))
    assert texts_by_key(by_content, NEW) == texts_by_key(by_content)
    assert {point.payload["id"] for point in by_content.get(NEW, list(by_content.ids(NEW)))} == {"1"}


@pytest.mark.slow
def test_a_table_without_keys_is_migrated_while_its_application_writes(tmp_path: Path) -> None:
    old, new = TruthEncoder("old", DIMENSION), TruthEncoder("new", 16)

    def written(name: str, encoder: TruthEncoder, *texts: str) -> None:
        table(tmp_path, name).add([{"text": text, "vector": encoder.truth(text)} for text in texts])

    def stored(name: str, encoder: TruthEncoder) -> list[str]:
        rows = table(tmp_path, name).to_arrow().to_pylist()
        for row in rows:
            np.testing.assert_allclose(row["vector"], encoder.truth(row["text"]), atol=1e-6)
        return sorted(row["text"] for row in rows)

    backend = keyless(tmp_path)
    written(COLLECTION, old, "a", "b", "same", "same")
    options = MigrationOptions(staging=tmp_path / "staging", min_free_gb=0, rows_per_write=2)
    with MirrorStore(backend, COLLECTION, SqliteLedger.in_memory()) as store:
        migration = Migration(store, new=new, old=old, options=options)
        assert "no key" in migration.plan().table.notices[0]
        migration.start()
        written(COLLECTION, old, "c", "same")
        table(tmp_path).update(where="text = 'a'", values={"text": "A", "vector": old.truth("A")})
        table(tmp_path).delete("text = 'b'")
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        written("docs_vecferry_2", new, "d")
        migration.start()
        assert stored(COLLECTION, old) == stored("docs_vecferry_2", new) == ["A", "c", "d", "same", "same", "same"]
        migration.finalize(confirmed=True)
    assert stored(COLLECTION, new) == ["A", "c", "d", "same", "same", "same"]
    assert table(tmp_path).schema.names == KEYLESS.names


# --- commits --------------------------------------------------------------------------------------


def test_a_batch_is_one_commit(tmp_path: Path, backend: LanceBackend) -> None:
    before = table(tmp_path).version
    backend.put(COLLECTION, points(0, 500))
    backend.delete(COLLECTION, [str(n) for n in range(100)])
    assert table(tmp_path).version == before + 2


def test_many_small_writes_are_put_together_in_tables_made_here_alone(
    tmp_path: Path, backend: LanceBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecferry.stores.lancedb.COMMITS_BETWEEN_COMPACTIONS", 16)
    backend.create(NEW, like=COLLECTION, dimension=DIMENSION, outputs=DENSE)
    for n in range(20):
        backend.put(NEW, points(n, n + 1))
        backend.put(COLLECTION, points(n, n + 1))
    assert table(tmp_path, NEW).stats()["fragment_stats"]["num_fragments"] < 10
    assert table(tmp_path).stats()["fragment_stats"]["num_fragments"] == 20
    assert sorted(backend.ids(NEW)) == sorted(backend.ids(COLLECTION))


def test_a_statement_that_the_store_refuses_is_reported(tmp_path: Path, backend: LanceBackend) -> None:
    backend.put(COLLECTION, points(0, 1))
    (data,) = (tmp_path / "docs.lance" / "data").iterdir()
    data.unlink()
    with pytest.raises(StoreFailed):
        backend.get(COLLECTION, ["0"])


# --- indexes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "metric"), [(index.IvfPq, "cosine"), (index.IvfFlat, "l2"), (index.HnswSq, "dot"), (index.IvfRq, "cosine")]
)
def test_the_new_vectors_get_an_index_of_the_same_kind(
    tmp_path: Path, backend: LanceBackend, kind: Any, metric: str
) -> None:
    backend.put(COLLECTION, points(0, 300))
    table(tmp_path).create_index("vector", config=kind(distance_type=metric), name="by_meaning")
    backend.create(NEW, like=COLLECTION, dimension=16, outputs=DENSE)
    backend.put(NEW, [Point(str(n), "text", TextVectors(unit(n, 16))) for n in range(300)])
    assert backend.missing_indexes(NEW, COLLECTION) == ("by_meaning",)
    assert backend.build_indexes(NEW, COLLECTION) == ("by_meaning",)
    assert backend.missing_indexes(NEW, COLLECTION) == backend.build_indexes(NEW, COLLECTION) == ()
    old, new = table(tmp_path), table(tmp_path, NEW)
    assert [made.index_type for made in new.list_indices()] == [made.index_type for made in old.list_indices()]
    assert new.index_stats("by_meaning").distance_type == metric
    assert_found(backend, "7", unit(7, 16))
    backend.put(NEW, [Point("late", "text", TextVectors(unit(1000, 16)))])
    assert_found(backend, "late", unit(1000, 16))


def assert_found(backend: LanceBackend, id_: str, vector: Float32) -> None:
    hits = backend.search(NEW, vector, 3)
    assert hits[0].id == id_
    stored = {point.id: vector_of(point) for point in backend.get(NEW, [hit.id for hit in hits], vectors=True)}
    expected = [float(np.dot(stored[hit.id], vector)) for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], expected, rtol=0, atol=1e-5)  # float32


def test_few_rows_get_no_index(tmp_path: Path, backend: LanceBackend) -> None:
    backend.put(COLLECTION, points(0, 300))
    table(tmp_path).create_index("vector", config=index.IvfFlat(distance_type="cosine"))
    backend.create(NEW, like=COLLECTION, dimension=DIMENSION, outputs=DENSE)
    backend.put(NEW, points(0, 255))
    assert backend.missing_indexes(NEW, COLLECTION) == backend.build_indexes(NEW, COLLECTION) == ()
    backend.put(NEW, points(255, 256))
    assert backend.missing_indexes(NEW, COLLECTION) == ("vector_idx",)


def test_a_second_handle_needs_nothing_of_the_first(tmp_path: Path, backend: LanceBackend) -> None:
    with closing(backend.another()) as other:
        backend.close()
        other.put(COLLECTION, points(0, 1))
    assert table(tmp_path).count_rows() == 1


@pytest.mark.parametrize("url", ["lancedb://user:hunter2@host/shop", "lancedb:user:hunter2@host/shop"])
def test_no_error_has_the_password_of_a_url_that_cannot_be_opened(url: str) -> None:
    with pytest.raises((InvalidStoreUrl, StoreUnreachable)) as caught:
        LanceBackend.open(url, Fields())
    assert "hunter2" not in str(caught.value)
    assert "shop" in str(caught.value)
