"""What is sqlite-vec's own: its columns, an ordinary table beside its vectors, and what stands on that table."""

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stores.backends import COLLECTION, DIMENSION, import_or_skip, unit, vector_of
from vecferry.embeddings import DENSE, TextVectors
from vecferry.errors import ExtensionsDisabled, InvalidStoreUrl, StoreFailed, StoreSchemaError, StoreUnreachable
from vecferry.stores.backend import Fields, Point
from vecferry.stores.opening import open_backend, open_store

import_or_skip("vecferry.stores.sqlite_vec")
from tests.stores.backends_sqlite_vec import ALONE, application, made  # noqa: E402
from vecferry.stores.sqlite_vec import SqliteVecBackend  # noqa: E402

NEW = "docs_vecferry_2"
WIDE = 16
LANGCHAIN = (
    """
            CREATE TABLE IF NOT EXISTS docs
            (
                rowid INTEGER PRIMARY KEY AUTOINCREMENT,
                text TEXT,
                metadata BLOB,
                text_embedding BLOB
            )
            ;
            """,
    """
            CREATE VIRTUAL TABLE IF NOT EXISTS docs_vec USING vec0(
                rowid INTEGER PRIMARY KEY,
                text_embedding float[8]
            )
            ;
            """,
    """
                CREATE TRIGGER IF NOT EXISTS docs_embed_text
                AFTER INSERT ON docs
                BEGIN
                    INSERT INTO docs_vec(rowid, text_embedding)
                    VALUES (new.rowid, new.text_embedding)
                    ;
                END;
            """,
)
"""What SQLiteVec of langchain-community 0.4 executes for a table `docs`."""
LANGCHAIN_FIELDS = Fields("rowid", "text", "text_embedding")
ROWS = "CREATE TABLE docs (id INTEGER PRIMARY KEY, text TEXT)"
VECTORS = f"CREATE VIRTUAL TABLE docs_vec USING vec0(id INTEGER PRIMARY KEY, vector float[{DIMENSION}])"


def over(folder: Path, *statements: str, fields: Fields | None = None) -> SqliteVecBackend:
    return SqliteVecBackend.open(made(folder, *statements), fields or Fields())


def add(folder: Path, number: int, dimension: int = DIMENSION) -> None:
    """Insert a row as LangChain's SQLiteVec does."""
    values = [f"text {number}", json.dumps({"n": number}), unit(number, dimension).tobytes()]
    with application(folder) as connection:
        connection.execute("INSERT INTO docs(text, metadata, text_embedding) VALUES (?,?,?)", values)


def point(number: int, dimension: int = DIMENSION, **payload: Any) -> Point:
    return Point(str(number), f"text {number}", TextVectors(unit(number, dimension)), payload)


@pytest.fixture
def langchain(tmp_path: Path) -> Iterator[SqliteVecBackend]:
    """Yield a backend over two rows that LangChain has made."""
    with closing(over(tmp_path, *LANGCHAIN, fields=LANGCHAIN_FIELDS)) as backend:
        add(tmp_path, 1)
        add(tmp_path, 2)
        yield backend


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreachable):
        SqliteVecBackend.open(f"sqlite://{tmp_path}/nowhere", Fields())
    with pytest.raises(StoreUnreachable):
        open_store(
            f"sqlite:{tmp_path}/nowhere", "docs", text="t", vector="v", key="id", control=tmp_path / "control.db"
        )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidStoreUrl, match="sqlite:relative/file"):
        SqliteVecBackend.open("sqlite://nowhere", Fields())


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "docs.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreFailed, match="not a database"):
        SqliteVecBackend(tmp_path / "docs.sqlite", Fields()).exists(COLLECTION)


@pytest.mark.skipif(hasattr(sqlite3.Connection, "enable_load_extension"), reason="this Python loads extensions itself")
def test_where_nothing_loads_extensions_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = made(tmp_path, ALONE)
    monkeypatch.setitem(sys.modules, "pysqlite3", None)
    with pytest.raises(ExtensionsDisabled, match="pip install pysqlite3"):
        open_backend(url, Fields())


# --- a vec0 table alone ---------------------------------------------------------------------------


def test_columns_of_every_kind_are_carried_through_unchanged(tmp_path: Path) -> None:
    columns = """id INTEGER PRIMARY KEY, owner TEXT PARTITION KEY, vector float[8] distance_metric=cosine, text TEXT,
        flag BOOLEAN, price FLOAT, small int8[8], bits bit[16], other float[4], +blob BLOB, +note TEXT"""
    backend = over(tmp_path, f"CREATE VIRTUAL TABLE docs USING vec0({columns})")
    names = "id, owner, vector, text, flag, price, small, bits, other, blob, note"
    values = ["ann", unit(1).tobytes(), "text 1", 1, 0.5, bytes(range(8)), b"\xf0\x0f", unit(2, 4).tobytes(), b"\0\xff"]
    with application(tmp_path) as connection:
        connection.execute(
            f"INSERT INTO docs ({names}) VALUES (?, ?, ?, ?, ?, ?, vec_int8(?), vec_bit(?), ?, ?, ?)",
            [7, *values, None],
        )
        before = connection.execute(f"SELECT {names} FROM docs").fetchall()
    stored = backend.get(COLLECTION, ["7"], vectors=True)
    backend.delete(COLLECTION, ["7"])
    backend.put(COLLECTION, stored)
    backend.create(NEW, like=COLLECTION, dimension=DIMENSION, outputs=DENSE)
    backend.put(NEW, stored)
    with application(tmp_path) as connection:
        for table in (COLLECTION, NEW):
            assert connection.execute(f"SELECT {names} FROM {table}").fetchall() == before
    backend.create("third", like=COLLECTION, dimension=WIDE, outputs=DENSE)
    assert backend.dimension("third") == WIDE


def test_a_column_that_must_have_a_value_refuses_a_point_without_it_and_nothing_is_written(tmp_path: Path) -> None:
    backend = over(tmp_path, f"CREATE VIRTUAL TABLE docs USING vec0(vector float[{DIMENSION}], lang TEXT, +text TEXT)",
                   fields=Fields(key="rowid"))  # fmt: skip
    with pytest.raises(StoreFailed, match="lang"):
        backend.put(COLLECTION, [point(1, lang="en"), point(2)])
    assert backend.count(COLLECTION) == 0


@pytest.mark.parametrize("declared", ["distance_metric=cosine", "distance_metric=L2", ""])
def test_scores_are_cosines_in_both_metrics(tmp_path: Path, declared: str) -> None:
    columns = f"vector float[{DIMENSION}] {declared}, +text TEXT"
    backend = over(tmp_path, f"CREATE VIRTUAL TABLE docs USING vec0({columns})", fields=Fields(key="rowid"))
    backend.put(COLLECTION, [point(n) for n in range(20)])
    hits = backend.search(COLLECTION, unit(100), 5)
    expected = [float(unit(int(hit.id)) @ unit(100)) for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], expected, rtol=0, atol=1e-6)  # float32
    assert expected == sorted(expected, reverse=True)
    assert len(backend.search(COLLECTION, unit(100), 5000)) == 20


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (f"vector float[{DIMENSION}] distance_metric=L1, +text TEXT", "metric l1"),
        (f"vector int8[{DIMENSION}], +text TEXT", "no vector 'vector'"),
        (f"vector float[{DIMENSION}], +body TEXT", "no text 'text'"),
        (f"id TEXT PRIMARY KEY, vector float[{DIMENSION}], +text TEXT", "no key 'rowid'"),
    ],
)
def test_what_a_migration_cannot_use_is_named(tmp_path: Path, columns: str, message: str) -> None:
    backend = over(tmp_path, f"CREATE VIRTUAL TABLE docs USING vec0({columns})", fields=Fields(key="rowid"))
    with pytest.raises(StoreSchemaError, match=message):
        backend.check(COLLECTION, DENSE)


def test_keys_that_are_whole_numbers_stay_so(tmp_path: Path) -> None:
    columns = f"id INTEGER PRIMARY KEY, vector float[{DIMENSION}], +text TEXT"
    backend = over(tmp_path, f"CREATE VIRTUAL TABLE docs USING vec0({columns})")
    backend.put(COLLECTION, [point(n) for n in range(5)])
    backend.delete(COLLECTION, ["3", "x", "04", "+2", str(2**70), "٥"])
    assert sorted(backend.ids(COLLECTION)) == ["0", "1", "2", "4"]
    assert [found.id for found in backend.get(COLLECTION, ["1", "01", " 1", "1.0", str(2**63)])] == ["1"]
    for key in ("x", "01", str(2**63)):
        with pytest.raises(StoreSchemaError, match="whole numbers"):
            backend.put(COLLECTION, [Point(key, "text", TextVectors(unit(1)))])


def test_a_rename_leaves_tables_with_similar_names_alone(tmp_path: Path) -> None:
    other = f"CREATE VIRTUAL TABLE {NEW}_archive USING vec0(vector float[{DIMENSION}])"
    with closing(over(tmp_path, ALONE, other, f"CREATE TABLE {NEW}_notes (n)")) as backend:
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
        backend.put(NEW, [point(1, WIDE)])
        with application(tmp_path) as connection:
            connection.execute(f"INSERT INTO {NEW}_archive (vector) VALUES (?)", [unit(5).tobytes()])
        backend.drop(COLLECTION)
        backend.rename(NEW, COLLECTION)
        assert backend.search(COLLECTION, unit(1, WIDE), 1)[0].id == "1"
    with application(tmp_path) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        assert connection.execute(f"SELECT vector FROM {NEW}_archive").fetchall() == [(unit(5).tobytes(),)]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert {name for name in names if name.startswith(NEW)} >= {
        f"{NEW}_archive",
        f"{NEW}_archive_rowids",
        f"{NEW}_notes",
    }
    assert f"{NEW}_rowids" not in names


def test_an_empty_collection_can_be_renamed(tmp_path: Path) -> None:
    backend = over(tmp_path, ALONE)
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    backend.drop(COLLECTION)
    backend.rename(NEW, COLLECTION)
    backend.put(COLLECTION, [point(1, WIDE)])
    assert (backend.count(COLLECTION), backend.exists(NEW)) == (1, False)


def test_nothing_of_ours_is_left_after_an_abort(tmp_path: Path) -> None:
    def schema() -> list[Any]:
        with application(tmp_path) as connection:
            return list(connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name"))

    backend = over(tmp_path, ALONE)
    before = schema()
    backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    backend.put(NEW, [point(1, WIDE)])
    backend.drop(NEW)
    assert schema() == before


# --- a table of rows, and one of vectors ----------------------------------------------------------


def test_rows_that_langchain_has_written_are_read_and_replaced_in_both_tables(
    tmp_path: Path, langchain: SqliteVecBackend
) -> None:
    first, second = sorted(langchain.get(COLLECTION, ["1", "2"], vectors=True), key=lambda found: found.id)
    assert (first.text, first.payload, second.text) == ("text 1", {"metadata": '{"n": 1}'}, "text 2")
    np.testing.assert_array_equal(vector_of(second), unit(2))
    langchain.put(COLLECTION, [Point("2", "new", TextVectors(unit(9))), Point("3", "third", TextVectors(unit(3)))])
    with application(tmp_path) as connection:
        rows = connection.execute("SELECT rowid, text, metadata, text_embedding FROM docs ORDER BY rowid").fetchall()
        vectors = connection.execute("SELECT rowid, text_embedding FROM docs_vec ORDER BY rowid").fetchall()
    assert [row[:3] for row in rows] == [(1, "text 1", '{"n": 1}'), (2, "new", None), (3, "third", None)]
    assert (
        [(row[0], row[3]) for row in rows] == vectors == [(n, unit(s).tobytes()) for n, s in ((1, 1), (2, 9), (3, 3))]
    )
    langchain.delete(COLLECTION, ["1", "3"])
    assert [hit.id for hit in langchain.search(COLLECTION, unit(1), 5)] == ["2"]


def test_langchain_goes_on_after_a_rename(tmp_path: Path, langchain: SqliteVecBackend) -> None:
    with application(tmp_path) as connection:
        connection.execute("CREATE INDEX by_text ON docs (text)")
        connection.execute("CREATE VIEW long AS SELECT * FROM docs WHERE length(text) > 100")
        connection.execute("DELETE FROM docs WHERE rowid = 2")  # its number is never used again
    langchain.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    langchain.put(NEW, [Point("1", "text 1", TextVectors(unit(1, WIDE)), {"metadata": "{}"})])
    langchain.drop(COLLECTION)
    langchain.rename(NEW, COLLECTION)
    with application(tmp_path) as connection:
        for statement in LANGCHAIN:
            connection.execute(statement)
        columns = [row[1] for row in connection.execute("PRAGMA table_xinfo(long)")]
        assert columns == ["rowid", "text", "metadata", "text_embedding"]
        assert connection.execute("SELECT name FROM sqlite_schema WHERE tbl_name = 'docs' AND type != 'table'"
                                  " ORDER BY name").fetchall() == [("by_text",), ("docs_embed_text",)]  # fmt: skip
    add(tmp_path, 3, WIDE)
    assert sorted(langchain.ids(COLLECTION)) == ["1", "3"]
    assert langchain.search(COLLECTION, unit(3, WIDE), 1)[0].id == "3"
    assert langchain.dimension(COLLECTION) == WIDE


def test_what_langchain_made_by_the_name_before_finalize_does_not_outlive_it(
    tmp_path: Path, langchain: SqliteVecBackend
) -> None:
    langchain.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    with application(tmp_path) as connection:
        for statement in LANGCHAIN:
            connection.execute(statement.replace("docs", NEW))
        values = ["text 3", "{}", unit(3, WIDE).tobytes()]
        connection.execute(f"INSERT INTO {NEW}(text, metadata, text_embedding) VALUES (?,?,?)", values)
    langchain.drop(COLLECTION)
    langchain.rename(NEW, COLLECTION)
    add(tmp_path, 4, WIDE)
    assert langchain.search(COLLECTION, unit(4, WIDE), 1)[0].id == "4"


def test_tables_of_any_name_are_put_together_by_the_column_of_the_vectors(tmp_path: Path) -> None:
    rows = """CREATE TABLE "my docs" (uuid TEXT PRIMARY KEY, "the text" TEXT, size INT AS (length("the text")),
        made TEXT NOT NULL DEFAULT 'now')"""
    vectors = "CREATE VIRTUAL TABLE vec_docs USING vec0(uuid TEXT PRIMARY KEY, embedding float[8], owner TEXT)"
    fields = Fields("uuid", "the text", "vec_docs.embedding")
    backend = over(tmp_path, rows, vectors, fields=fields)
    backend.put("my docs", [Point("a", "one", TextVectors(unit(1)), {"owner": "ann"})])
    (stored,) = backend.get("my docs", ["a"], vectors=True)
    assert (stored.text, stored.payload) == ("one", {"made": "now", "owner": "ann"})
    backend.create("my docs_vecferry_2", like="my docs", dimension=WIDE, outputs=DENSE)
    backend.put("my docs_vecferry_2", [Point("a", "one", TextVectors(unit(1, WIDE)), stored.payload)])
    backend.drop("my docs")
    backend.rename("my docs_vecferry_2", "my docs")
    with application(tmp_path) as connection:
        assert connection.execute('SELECT uuid, size, made FROM "my docs"').fetchall() == [("a", 3, "now")]
        found = connection.execute("SELECT uuid, owner FROM vec_docs WHERE embedding MATCH ? AND k = 1",
                                   [unit(1, WIDE).tobytes()]).fetchall()  # fmt: skip
    assert found == [("a", "ann")]


def test_a_row_without_a_vector_is_a_point_without_one(tmp_path: Path) -> None:
    backend = over(tmp_path, ROWS, VECTORS, "INSERT INTO docs VALUES (1, 'text')")
    assert [(found.id, found.vectors) for found in backend.get(COLLECTION, ["1"], vectors=True)] == [("1", None)]
    backend.put(COLLECTION, [point(1)])
    assert backend.get(COLLECTION, ["1"], vectors=True)[0].vectors is not None


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ((ROWS,), "no vec0 table 'docs_vec'"),
        (("CREATE TABLE docs (id TEXT, text TEXT)", VECTORS), "no key 'id'"),
        (("CREATE TABLE docs (id BLOB PRIMARY KEY, text TEXT)", VECTORS), "'id' of docs is BLOB"),
        (("CREATE TABLE docs (id TEXT PRIMARY KEY, text TEXT)", VECTORS, "INSERT INTO docs VALUES (NULL, 'a')"),
         "rows without a key"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_are_named(tmp_path: Path, statements: tuple[str, ...], message: str) -> None:
    backend = over(tmp_path, *statements)
    with pytest.raises(StoreSchemaError, match=message):
        backend.create(NEW, like=COLLECTION, dimension=WIDE, outputs=DENSE)
    assert not backend.exists(NEW)
