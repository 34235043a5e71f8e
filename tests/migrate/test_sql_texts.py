"""Texts that PostgreSQL computes: expressions, and views and queries over other tables; captured on all of these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from vecferry.errors import StoreSchemaError
from vecferry.migrate import Migration, MigrationOptions
from vecferry.migrate.provenance import Verdict
from vecferry.migrate.router import Document, Router
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.values import Side

OLD_DIMENSION = 8
OLD, NEW = TruthEncoder("old", OLD_DIMENSION), TruthEncoder("new", 16)
EXPRESSION = "upper(title) || E'\\n' || coalesce(docs.\"the body\", '100 %')"
JOINED = "SELECT d.id, p.name || ': ' || d.\"the body\" AS content FROM docs d JOIN pages p ON p.id = d.page"


@pytest.fixture
def options(tmp_path: Path) -> MigrationOptions:
    return MigrationOptions(rows_per_range=4, staging=tmp_path, min_free_gb=0)


@pytest.fixture
def tables(connection: psycopg.Connection) -> psycopg.Connection:
    """Nine rows on three pages, without vectors."""
    connection.execute("CREATE TABLE pages (id integer PRIMARY KEY, name text)")
    connection.execute(
        'CREATE TABLE docs (id integer PRIMARY KEY, page integer, title text, "the body" text,'
        f" place text, embedding vector({OLD_DIMENSION}))"
    )
    for number in range(3):
        connection.execute("INSERT INTO pages VALUES (%s, %s)", [number, f"page {number}"])
    for number in range(9):
        values = [number, number % 3, f"title {number}", None if number == 7 else f"body {number}"]
        connection.execute("INSERT INTO docs VALUES (%s, %s, %s, %s)", values)
    return connection


def embedded(connection: psycopg.Connection, store: PgVectorStore, encoder: TruthEncoder = OLD) -> None:
    """Let each row have the vector of its text."""
    for row in store.rows([(str(number),) for number in range(9)]):
        if row.text is not None:
            vector = encoder.truth(row.text).tolist()
            connection.execute("UPDATE docs SET embedding = %s::real[] WHERE id = %s", [vector, int(row.key[0])])


def test_a_text_that_ends_its_statement_is_refused_and_nothing_of_it_is_run(
    tables: psycopg.Connection, database_url: str
) -> None:
    text = "NULL)); COMMIT; DROP TABLE public.pages; SELECT (SELECT (title"
    with pytest.raises(StoreSchemaError, match="cannot insert multiple commands"):
        PgVectorStore.connect(database_url, "docs", text, "embedding")
    assert tables.execute("SELECT count(*) FROM pages").fetchone() == (3,)


def assert_vectors(connection: psycopg.Connection, column: str, encoder: TruthEncoder, texts: dict[int, Any]) -> None:
    rows: dict[int, Any] = dict(connection.execute(f"SELECT id, {column}::real[] FROM docs").fetchall())
    for key, text in texts.items():
        np.testing.assert_array_equal(np.asarray(rows[key], np.float32), encoder.truth(text))


@pytest.fixture
def store(tables: psycopg.Connection, database_url: str) -> Iterator[PgVectorStore]:
    with PgVectorStore.connect(database_url, "docs", EXPRESSION, "embedding") as store:
        embedded(tables, store)
        yield store


@pytest.fixture(params=["query", "view"])
def joined(request: pytest.FixtureRequest, tables: psycopg.Connection, database_url: str) -> Iterator[PgVectorStore]:
    tables.execute(f"CREATE VIEW texts AS {JOINED}")
    source = JOINED if request.param == "query" else "texts"
    with PgVectorStore.connect(database_url, "docs", "content", "embedding", source) as store:
        embedded(tables, store)
        yield store


def test_an_expression_is_confirmed_migrated_followed_switched_and_rolled_back(
    store: PgVectorStore, tables: psycopg.Connection, options: MigrationOptions
) -> None:
    migration = Migration(store, new=NEW, old=OLD, options=options)
    assert migration.plan().provenance.verdict is Verdict.CONFIRMED
    assert migration.start().rows_done == 9
    texts = {3: "TITLE 3\nbody 3", 7: "TITLE 7\n100 %"}
    assert_vectors(tables, "embedding_vecferry_new", NEW, texts)
    tables.execute("UPDATE docs SET place = 'elsewhere', page = 2 WHERE id = 4")
    tables.execute("UPDATE docs SET \"the body\" = 'another' WHERE id = 3")
    assert [change.key for change in store.captured(10)] == [("3",)]
    migration.start()
    texts[3] = "TITLE 3\nanother"
    assert_vectors(tables, "embedding_vecferry_new", NEW, texts)
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    tables.execute("UPDATE docs SET title = 'a third' WHERE id = 7")
    migration.start()
    texts[7] = "A THIRD\n100 %"
    assert_vectors(tables, "embedding", NEW, texts)
    migration.rollback()
    assert_vectors(tables, "embedding", OLD, {7: texts[7]})


def test_what_is_written_to_another_table_is_followed(
    joined: PgVectorStore, tables: psycopg.Connection, options: MigrationOptions
) -> None:
    migration = Migration(joined, new=NEW, old=OLD, options=options)
    assert [other.name for other in joined._session.table.others] == ["public.pages"]
    assert migration.plan().provenance.verdict is Verdict.CONFIRMED
    status = migration.start()
    assert (status.rows_done, status.unembedded, status.dead_letters) == (8, 1, 0)  # one has neither text nor vector
    assert_vectors(tables, "embedding_vecferry_new", NEW, {1: "page 1: body 1", 4: "page 1: body 4"})
    tables.execute("UPDATE pages SET name = 'another' WHERE id = 1")
    assert {change.key for change in joined.captured(10, {Side.NEW})} == {("1",), ("4",)}
    migration.start()
    texts = {1: "another: body 1", 4: "another: body 4", 3: "page 0: body 3"}
    assert_vectors(tables, "embedding_vecferry_new", NEW, texts)
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    with tables.transaction():
        tables.execute("DELETE FROM pages WHERE id = 0")
        tables.execute("INSERT INTO pages VALUES (0, 'made anew')")
    tables.execute("INSERT INTO pages VALUES (50, 'unrelated')")
    migration.start()
    texts[3] = "made anew: body 3"
    assert_vectors(tables, "embedding", NEW, texts)
    migration.rollback()
    assert_vectors(tables, "embedding", OLD, {3: texts[3]})  # before the switch the application kept them
    migration.cutover()
    migration.finalize(confirmed=True)
    left = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'vecferry%'"
    assert tables.execute(left).fetchone() == (0,)


def test_rows_of_the_same_table_are_another_table(
    tables: psycopg.Connection, database_url: str, options: MigrationOptions
) -> None:
    expression = "(SELECT title FROM docs AS above WHERE above.id = docs.page) || ' / ' || title"
    with PgVectorStore.connect(database_url, "docs", expression, "embedding") as store:
        embedded(tables, store)
        migration = Migration(store, new=NEW, old=OLD, options=options)
        migration.start()
        tables.execute("UPDATE docs SET title = 'another' WHERE id = 2")
        migration.start()
        assert_vectors(tables, "embedding_vecferry_new", NEW, {5: "another / title 5", 2: "another / another"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title || missing", 'column "missing" does not exist'),
        ("title ||", "syntax error"),
        ("title; DROP TABLE docs", "syntax error"),
        ("title || random()", "another one each time, by random"),
        ("title || CURRENT_DATE", "another one each time, by current_date"),
        ("'the same' || 'for all'", "reads no column"),
        ("embedding::text || title", "not made of vectors"),
        ("{title} {missing}", "no column missing"),
    ],
)
@pytest.mark.usefixtures("tables")
def test_an_expression_that_is_no_text_of_the_row_is_refused(database_url: str, text: str, message: str) -> None:
    with pytest.raises(StoreSchemaError, match=message):
        PgVectorStore.connect(database_url, "docs", text, "embedding")


def test_a_source_that_is_not_there_is_refused(tables: psycopg.Connection, database_url: str) -> None:  # they are there
    with pytest.raises(StoreSchemaError, match="is no view and no query"):
        PgVectorStore.connect(database_url, "docs", "content", "embedding", "nowhere")
    with pytest.raises(StoreSchemaError, match="contents"):
        PgVectorStore.connect(database_url, "docs", "contents", "embedding", JOINED)


def test_a_router_does_not_write_what_the_database_computes(store: PgVectorStore, options: MigrationOptions) -> None:
    Migration(store, new=NEW, old=OLD, options=options).start()
    with Router(store, old=OLD, new=NEW) as router, pytest.raises(StoreSchemaError, match="computed by the database"):
        router.put([Document(("50",), "a text")])


def test_rows_that_were_deleted_softly_can_be_left_out_by_an_expression(
    tables: psycopg.Connection, database_url: str, options: MigrationOptions
) -> None:
    with PgVectorStore.connect(database_url, "docs", "title", "embedding") as store:
        embedded(tables, store)
        tables.execute("UPDATE docs SET place = 'deleted' WHERE id IN (2, 5)")
    expression = "CASE WHEN place IS DISTINCT FROM 'deleted' THEN title END"
    with PgVectorStore.connect(database_url, "docs", expression, "embedding") as store:
        migration = Migration(store, new=NEW, old=OLD, options=options)
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        tables.execute("UPDATE docs SET place = 'deleted' WHERE id = 3")
        migration.start()
        migration.cutover(accept_dead_letters=3)
        without = tables.execute("SELECT array_agg(id ORDER BY id) FROM docs WHERE embedding IS NULL").fetchone()
        assert without == ([2, 3, 5],)
