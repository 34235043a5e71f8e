"""What is FAISS's own: LangChain's pickle, JSON lines, kinds of indexes, and two files that are replaced at once."""

import datetime
import decimal
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.stores.backends import COLLECTION, DIMENSION, import_or_skip, unit, vector_of
from vecferry.embeddings import DENSE, Float32, TextVectors
from vecferry.errors import InvalidStoreUrl, StoreFailed, StoreSchemaError, StoreUnreachable
from vecferry.stores.backend import Fields, Point
from vecferry.stores.opening import open_store

import_or_skip("vecferry.stores.faiss")
import faiss  # noqa: E402

from tests.stores.backends_faiss import made  # noqa: E402
from vecferry.stores.faiss import FaissBackend  # noqa: E402
from vecferry.stores.faiss.docstore import Entry, LangChainDocstore  # noqa: E402
from vecferry.stores.faiss.index_files import IndexFiles  # noqa: E402
from vecferry.stores.faiss.plain_pickle import unpickled  # noqa: E402

NEW = "docs_vecferry_2"
WIDE = 16
MANY = 200
METADATA: dict[str, Any] = {
    "n": 1,
    "list": [1.5, None, True],
    "nested": {"x": "日本"},
    "bytes": b"\0\xff",
    "big": 2**80,
    "lone": "\ud800",
}
WHOLE = LangChainDocstore().written([Entry("a", "one", {})])


def point(number: int, dimension: int = DIMENSION, **payload: Any) -> Point:
    return Point(str(number), f"text {number}", TextVectors(unit(number, dimension)), payload)


def units(numbers: Sequence[int], dimension: int = DIMENSION) -> Float32:
    return np.stack([unit(number, dimension) for number in numbers])


def over(folder: Path, index: Any = None) -> FaissBackend:
    return FaissBackend.open(made(folder, index), Fields())


def migrated(backend: FaissBackend, num_points: int) -> None:
    """Make the new collection, and let it take the old one's name."""
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    backend.put(NEW, [point(n, WIDE) for n in range(num_points)])
    backend.drop(COLLECTION)
    backend.rename(NEW, COLLECTION)


def index_in(folder: Path) -> Any:
    return faiss.read_index(str(folder / f"{COLLECTION}.faiss"))


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreachable):
        open_store(f"faiss:{tmp_path}/nowhere", "docs", text="t", vector="v", key="id", control=tmp_path / "control.db")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidStoreUrl, match="faiss:relative/folder"):
        FaissBackend.open("faiss://nowhere", Fields())


# --- LangChain's pickle ---------------------------------------------------------------------------


def test_what_is_written_as_langchain_does_is_read_again(tmp_path: Path) -> None:
    entries = [Entry("a", "one", METADATA), Entry("it's", "", {}), Entry("日本", "x" * 70_000, {})]
    file = tmp_path / "docs.pkl"
    file.write_bytes(LangChainDocstore().written(entries))
    assert LangChainDocstore().read(file)[1] == entries


@pytest.mark.parametrize(
    "harmful",
    [
        pickle.dumps(os.system),
        b"cos\nsystem\n(S'true'\ntR.",
        b"clangchain_core.load.load\nloads\n(S'{}'\ntR.",
        pickle.dumps((Path("a"), {})),
    ],
)
def test_a_pickle_that_asks_for_more_than_documents_is_refused_by_name(tmp_path: Path, harmful: bytes) -> None:
    backend = over(tmp_path)
    (tmp_path / "docs.pkl").write_bytes(harmful)
    with pytest.raises(
        StoreSchemaError,
        match=r"it asks for (posix\.system|os\.system|langchain_core\.load|pathlib|a call|the instruction)",
    ):
        backend.count(COLLECTION)


def test_a_pickle_that_names_an_object_by_nested_values_is_refused_at_once(tmp_path: Path) -> None:
    backend = over(tmp_path)
    (tmp_path / "docs.pkl").write_bytes(b"\x80\x04)q\x00" + b"h\x00\x86q\x00" * 40 + b"\x8c\x01x\x93.")
    with pytest.raises(StoreSchemaError, match="it asks for an object by a tuple and a str"):
        backend.count(COLLECTION)


@pytest.mark.parametrize(
    "damaged",
    [
        b"", b"\x80\x04", b"no pickle", b"\x80\x04]\x94.", WHOLE[:-20], WHOLE.replace(b"page_content", b"page_cOntent"),
        WHOLE.replace(b"metadata", b"metaData"), WHOLE.replace(b"_dict", b"_dicT"),
    ],
)  # fmt: skip
def test_what_is_no_docstore_is_refused(tmp_path: Path, damaged: bytes) -> None:
    backend = over(tmp_path)
    (tmp_path / "docs.pkl").write_bytes(damaged)
    with pytest.raises((StoreSchemaError, StoreFailed), match=r"docs\.pkl"):
        backend.count(COLLECTION)


def test_metadata_that_could_not_be_read_again_is_refused(tmp_path: Path) -> None:
    backend = over(tmp_path)
    with pytest.raises(StoreSchemaError, match="pathlib"):
        backend.put(COLLECTION, [point(1), point(2, where=tmp_path)])
    assert backend.count(COLLECTION) == 0


def test_nested_metadata_comes_through_unchanged(tmp_path: Path) -> None:
    backend = over(tmp_path)
    backend.put(COLLECTION, [point(1, **METADATA)])
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    backend.put(NEW, [point(1, WIDE, **backend.get(COLLECTION, ["1"])[0].payload)])
    assert backend.get(NEW, ["1"])[0].payload == METADATA
    backend.drop(COLLECTION)
    backend.rename(NEW, COLLECTION)
    assert backend.get(COLLECTION, ["1"])[0].payload == METADATA


# --- JSON lines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [["a", "b"], [7, 8]])
def test_an_index_with_json_lines_keeps_their_fields_and_the_type_of_keys(tmp_path: Path, keys: list[Any]) -> None:
    index = faiss.IndexFlatL2(DIMENSION)
    index.add(units([1, 2]))
    faiss.write_index(index, str(tmp_path / "docs.faiss"))
    lines = [{"doc": key, "body": f"text \u2028 {n}", "tags": ["x"]} for n, key in enumerate(keys)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with closing(FaissBackend(tmp_path, Fields("doc", "body"))) as backend:
        points = backend.get(COLLECTION, [str(key) for key in keys], vectors=True)
        assert [(p.id, p.text, p.payload) for p in points] == [
            (str(line["doc"]), line["body"], {"tags": ["x"]}) for line in lines
        ]
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
        wide = [Point(p.id, p.text, TextVectors(unit(n, WIDE)), p.payload) for n, p in enumerate(points)]
        backend.put(NEW, wide)
        backend.drop(COLLECTION)
        backend.rename(NEW, COLLECTION)
    written = [json.loads(line) for line in (tmp_path / "docs.jsonl").read_text().split("\n") if line]
    assert written == lines
    np.testing.assert_array_equal(index_in(tmp_path).reconstruct(1), unit(1, WIDE))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": 1}\n{"id": "1"}\n', "int and str"),
        ('{"id": "1"}\n{"text": "no key"}\n', "line 2"),
        ("[]\n", "line 1"),
        ("{\n", "line 1"),
        ('{"id": "1"}\n{"id": "1"}\n', "2 documents with 1 ids"),
        ('{"id": "1"}\n', "2 vectors and 1 documents"),
    ],
)
def test_lines_that_do_not_fit_are_named(tmp_path: Path, lines: str, message: str) -> None:
    index = faiss.IndexFlatL2(DIMENSION)
    index.add(units([1, 2]))
    faiss.write_index(index, str(tmp_path / "docs.faiss"))
    (tmp_path / "docs.jsonl").write_text(lines)
    with pytest.raises(StoreSchemaError, match=message):
        FaissBackend(tmp_path, Fields()).count(COLLECTION)


# --- Parquet --------------------------------------------------------------------------------------

AT = datetime.datetime(2020, 7, 1, 12, 30, 0, 123_456, tzinfo=datetime.UTC)
COLUMNS: dict[str, tuple[pa.DataType, Any]] = {
    "year": (pa.int16(), 2020),
    "ratio": (pa.float32(), 0.5),
    "flag": (pa.bool_(), True),
    "blob": (pa.binary(), b"\0\xff"),
    "kind": (pa.dictionary(pa.int32(), pa.string()), "a"),
    "tags": (pa.list_(pa.string()), ["a", "b"]),
    "days": (pa.list_(pa.date32(), 1), [datetime.date(2020, 2, 29)]),
    "nested": (pa.struct([("a", pa.int32()), ("b", pa.list_(pa.float64()))]), {"a": 1, "b": [0.1]}),
    "at": (pa.timestamp("us", tz="UTC"), AT),
    "exactly": (pa.timestamp("ns"), pa.scalar(1_234_567_890_123_456_789, pa.timestamp("ns"))),
    "day": (pa.date32(), datetime.date(2020, 2, 29)),
    "clock": (pa.time64("us"), datetime.time(1, 2, 3, 4)),
    "money": (pa.decimal128(10, 2), decimal.Decimal("1.25")),
    "lasts": (pa.duration("s"), datetime.timedelta(hours=1)),
}


def with_parquet(folder: Path, columns: Mapping[str, pa.Array], **names: str) -> FaissBackend:
    """Return a backend over an index with these documents, one for each vector."""
    table = pa.table(dict(columns))
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(units(range(len(table))))
    faiss.write_index(index, str(folder / f"{COLLECTION}.faiss"))
    pq.write_table(table, folder / f"{COLLECTION}.parquet")
    return FaissBackend.open(f"faiss://{folder}", Fields(**names))


@pytest.mark.parametrize("keys", [pa.array([7, -2], pa.int64()), pa.array(["7", "it's"], pa.large_string())])
def test_an_index_with_parquet_keeps_its_schema_and_every_value(tmp_path: Path, keys: pa.Array) -> None:
    columns = {"doc": keys, "body": pa.array(["one", None])}
    columns |= {name: pa.array([value, None], kind) for name, (kind, value) in COLUMNS.items()}
    backend = with_parquet(tmp_path, columns, key="doc", text="body")
    before = pq.read_table(tmp_path / "docs.parquet")
    ids = list(map(str, keys.to_pylist()))
    points = backend.get(COLLECTION, ids)
    assert [(point.id, point.text) for point in points] == [(ids[0], "one"), (ids[1], None)]
    assert points[0].payload["day"] == "2020-02-29"
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    backend.put(NEW, [replace(point, vectors=TextVectors(unit(n, WIDE))) for n, point in enumerate(points)])
    backend.drop(COLLECTION)
    assert not (tmp_path / "docs.parquet").exists()
    backend.rename(NEW, COLLECTION)
    after = pq.read_table(tmp_path / "docs.parquet")
    assert after.equals(before)
    assert after.schema.equals(before.schema, check_metadata=True)
    assert backend.another().search(COLLECTION, unit(1, WIDE), 1)[0].id == ids[1]


def test_a_row_of_parquet_is_replaced_added_and_deleted(tmp_path: Path) -> None:
    columns = {"id": pa.array(["1", "2"]), "text": pa.array(["one", "two"]), "year": pa.array([1, 2], pa.int8())}
    backend = with_parquet(tmp_path, columns)
    backend.put(COLLECTION, [point(2, year=20), point(3)])
    backend.delete(COLLECTION, ["1"])
    assert pq.read_table(tmp_path / "docs.parquet").to_pylist() == [
        {"id": "2", "text": "text 2", "year": 20},
        {"id": "3", "text": "text 3", "year": None},
    ]
    backend.create(NEW, like=COLLECTION, dimension=DIMENSION, outputs=DENSE)
    for payload, message in (({"colour": "red"}, "'colour'"), ({"year": 1000}, "does not fit")):
        for collection in (COLLECTION, NEW):  # in the one that is being made too, and not at its end
            with pytest.raises(StoreSchemaError, match=message):
                backend.put(collection, [point(4, **payload)])
    assert (sorted(backend.ids(COLLECTION)), backend.count(NEW)) == (["2", "3"], 0)


TEXTS = {"id": pa.array(["1", "2"]), "text": pa.array(["one", "two"])}
FAR = pa.array([2**62, 0], pa.timestamp("us"))  # a year that Arrow cannot write


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": pa.array(["one"])}, "column 'id' of .* is not there"),
        (TEXTS | {"text": pa.array([1, 2])}, "column 'text' of .* is int64"),
        (TEXTS | {"id": pa.array(["1", None])}, "row 2 of .* has no key"),
        (TEXTS | {"vector": pa.array([[0.1], [0.2]])}, "vectors of its own in the column 'vector'"),
        (TEXTS | {"at": FAR}, r"column 'at' of .* is timestamp\[us\]"),
    ],
)
def test_a_parquet_file_that_does_not_fit_is_refused_by_column(
    tmp_path: Path, columns: dict[str, pa.Array], message: str
) -> None:
    backend = with_parquet(tmp_path, columns)
    with pytest.raises(StoreSchemaError, match=message):
        backend.count(COLLECTION)


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    backend = with_parquet(tmp_path, TEXTS)
    (tmp_path / "docs.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(StoreFailed, match=r"docs\.parquet"):
        backend.count(COLLECTION)


def test_a_parquet_file_is_seen_with_the_names_of_its_columns(tmp_path: Path) -> None:
    columns = {"doc": pa.array([1]), "year": pa.array([1]), "body": pa.array(["one"])}
    (field,) = with_parquet(tmp_path, columns).vector_fields()
    assert (field.key, field.text, field.marks) == ("doc", "body", ("parquet",))


# --- kinds of indexes -----------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.parametrize("description", ["Flat", "HNSW16", "IVF4,Flat", "SQ8"])
def test_the_new_index_is_of_the_same_kind_and_metric(tmp_path: Path, description: str, metric: int) -> None:
    index: Any = faiss.index_factory(DIMENSION, description, metric)
    if description.startswith("IVF"):
        index.nprobe = 3
    index.train(units(range(MANY)))
    with closing(over(tmp_path, index)) as backend:
        kind = type(index_in(tmp_path))
        backend.put(COLLECTION, [point(n) for n in range(MANY)])
        backend.delete(COLLECTION, ["0"])
        assert backend.search(COLLECTION, unit(7), 1)[0].id == "7"
        stored = vector_of(backend.get(COLLECTION, ["7"], vectors=True)[0])
        np.testing.assert_allclose(stored, unit(7), rtol=0, atol=0.02 if description == "SQ8" else 0)  # 8 bits
        migrated(backend, MANY)
        new = index_in(tmp_path)
        assert (type(new), new.metric_type, new.d, new.ntotal) == (kind, metric, WIDE, MANY)
        hits = backend.search(COLLECTION, unit(7, WIDE), 3)
        assert hits[0].id == "7"
        assert hits[0].score == pytest.approx(1, abs=0.02 if description == "SQ8" else 1e-5)
        if description == "IVF4,Flat":
            assert (new.nlist, new.nprobe) == (4, 3)
        if description == "HNSW16":
            assert new.hnsw.nb_neighbors(1) == index.hnsw.nb_neighbors(1)


@pytest.mark.parametrize("num_points", [0, 1, 100])
def test_an_ivf_index_has_fewer_lists_where_there_are_few_vectors(tmp_path: Path, num_points: int) -> None:
    index = faiss.index_factory(DIMENSION, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    with closing(over(tmp_path, index)) as backend:
        migrated(backend, num_points)
        assert index_in(tmp_path).nlist == {0: 64, 1: 1, 100: 2}[num_points]
        assert len(backend.search(COLLECTION, unit(1, WIDE), 5)) <= num_points
        backend.put(COLLECTION, [point(n, WIDE) for n in range(1000, 1100)])
        assert backend.count(COLLECTION) == num_points + 100


@pytest.mark.parametrize(
    ("description", "metric", "message"),
    [
        ("PCA4,Flat", faiss.METRIC_L2, "IndexPreTransform"),
        ("PQ4x4", faiss.METRIC_L2, "IndexPQ"),
        ("Flat", faiss.METRIC_L1, "metric 2"),
    ],
)
def test_what_cannot_be_moved_is_named(tmp_path: Path, description: str, metric: int, message: str) -> None:
    backend = over(tmp_path)
    faiss.write_index(faiss.index_factory(DIMENSION, description, metric), str(tmp_path / "docs.faiss"))
    with pytest.raises(StoreSchemaError, match=message):
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    assert not backend.exists(NEW)


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    backend = over(tmp_path)
    (tmp_path / "docs.faiss").write_bytes(b"no index")
    with pytest.raises(StoreFailed, match=r"docs\.faiss"):
        backend.count(COLLECTION)


# --- two files, one step --------------------------------------------------------------------------


def test_files_that_were_committed_come_to_their_places_and_those_that_were_not_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(over(tmp_path)) as backend:
        backend.put(COLLECTION, [point(1)])
        for stopped_at, expected in ((IndexFiles.settle, ["1", "2"]), (Path.rename, ["1", "2"])):
            with monkeypatch.context() as patched:
                owner = IndexFiles if stopped_at is IndexFiles.settle else Path
                patched.setattr(owner, stopped_at.__name__, _killed_where_files_wait(stopped_at))
                with pytest.raises(KeyboardInterrupt):
                    backend.put(COLLECTION, [point(len(expected) + (owner is Path))])
            with closing(backend.another()) as other:
                assert sorted(other.ids(COLLECTION)) == expected
                assert other.search(COLLECTION, unit(2), 1)[0].id == "2"


def _killed_where_files_wait(work: Any) -> Any:
    def killed(self: Any, *args: Any) -> None:
        waits = self.is_committed() if isinstance(self, IndexFiles) else self.name.endswith("-begun")
        if waits:
            raise KeyboardInterrupt
        work(self, *args)

    return killed


def test_nothing_of_ours_is_left_after_an_abort(tmp_path: Path) -> None:
    backend = over(tmp_path)
    before = sorted(file.name for file in tmp_path.iterdir())
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    backend.put(NEW, [point(1, WIDE)])
    backend.drop(NEW)
    left = {file.name for file in tmp_path.iterdir()} - {".vecferry-lock"}
    assert sorted(left) == before


def test_a_file_that_its_application_wrote_anew_is_read_anew(tmp_path: Path) -> None:
    backend = over(tmp_path)
    assert backend.count(COLLECTION) == 0
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(units([5]))
    faiss.write_index(index, str(tmp_path / "docs.faiss"))
    (tmp_path / "docs.pkl").write_bytes(LangChainDocstore().written([Entry("5", "five", {})]))
    assert backend.search(COLLECTION, unit(5), 3)[0].id == "5"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read_in_every_protocol(protocol: int) -> None:
    value = [{"a": [1, -1.5, None, True, False, 2**80], 7: ("x", ())}, {"日本": {}}, ["twice"] * 2, "twice"]
    assert unpickled(pickle.dumps(value, protocol), Path("x")) == value
    if protocol > 1:  # before, sets are made by copyreg
        assert unpickled(pickle.dumps({"s": {1, "a"}, "b": b"\0"} if protocol > 2 else {"s": {1}}, protocol), Path("x"))


def test_nothing_nested_is_hashed() -> None:
    """40 tuples, each of the one before twice, would be hashed for hours."""
    nested = b"".join(b")" if n == 0 else b"q\x00h\x00\x86" for n in range(40))
    with pytest.raises(StoreSchemaError, match="a tuple as a key"):
        unpickled(b"\x80\x03}" + nested + b"Ns.", Path("x"))
    with pytest.raises(StoreSchemaError, match="a int as a key"):
        unpickled(pickle.dumps({2**61 - 1: 1}), Path("x"))
