"""Tables of PostgreSQL of shapes that are not the plainest: what is their key, and which columns the database fills."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from tests.stores.collections import LAYOUTS
from vecferry.errors import StoreSchemaError
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.migrate.router import Document, Router
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.values import Layout, Patience

OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=str)


def opened(url: str, layout: Layout = Layout.COLUMNS, key: str | None = None, table: str = "docs") -> PgVectorStore:
    return PgVectorStore.connect(url, table, "body", "embedding", layout=layout, key=key)


def migration_of(store: PgVectorStore, folder: Path) -> Migration:
    options = MigrationOptions(
        staging=folder, rows_per_range=7, min_free_gb=0, patience=Patience(30.0), accept_unconfirmed="a test"
    )
    return Migration(store, new=NEW, old=OLD, options=options)


def verified(migration: Migration) -> None:
    migration.start()
    report = migration.verify(override="no gate in this test")
    assert report.passed, report


def insert(connection: psycopg.Connection, count: int = 10, columns: str = "", values: str = "") -> None:
    """Insert rows with ids, texts and old vectors. columns, values: more of them, with a comma before each."""
    for number in range(1, count + 1):
        connection.execute(
            f"INSERT INTO docs (id, body, embedding{columns}) VALUES (%s, %s, %s::real[]{values})",
            [number, f"text {number}", OLD.truth(f"text {number}").tolist()],
        )


def assert_true(connection: psycopg.Connection, encoder: TruthEncoder, rows: int, table: str = "docs") -> None:
    """Assert that each row has the vector of its text."""
    stored: list[tuple[str, Any]] = connection.execute(f"SELECT body, embedding::real[] FROM {table}").fetchall()
    assert len(stored) == rows
    for text, vector in stored:
        np.testing.assert_array_equal(np.asarray(vector, np.float32), encoder.truth(text), strict=True)


# --- keys -----------------------------------------------------------------------------------------

DOCS = "CREATE TABLE docs (id integer NOT NULL, slug text NOT NULL, body text, embedding vector(8)"


@layouts
def test_a_unique_index_stands_for_a_primary_key(
    connection: psycopg.Connection, database_url: str, tmp_path: Path, layout: Layout
) -> None:
    connection.execute(f"{DOCS}); CREATE UNIQUE INDEX by_slug ON docs (slug DESC) INCLUDE (body)")
    connection.execute("CREATE SEQUENCE counted")
    insert(connection, columns=", slug", values=", 'slug ' || nextval('counted')")
    with opened(database_url, layout) as store:
        migration = migration_of(store, tmp_path)
        assert any("by_slug (slug)" in warning for warning in migration.plan().warnings)
        verified(migration)
        change = "UPDATE docs SET body = 'changed', embedding = %s::real[] WHERE slug = 'slug 3'"
        connection.execute(change, [OLD.truth("changed").tolist()])
        assert [change.key for change in store.captured(10)] == [("slug 3",)]
        migration.cutover()
        assert_true(connection, NEW, 10)
        connection.execute("UPDATE docs SET slug = 'another', body = 'once more' WHERE slug = 'slug 4'")
        migration.rollback()
        assert_true(connection, OLD, 10)
        migration.cutover()
        assert migration.finalize(confirmed=True).state is State.FINALIZED
    assert_true(connection, NEW, 10)


CHOSEN = {
    "the primary key": ("PRIMARY KEY (id, slug), UNIQUE (id)", None, "docs_pkey"),
    "the replica identity": (
        "UNIQUE (id), UNIQUE (slug)); ALTER TABLE docs REPLICA IDENTITY USING INDEX docs_slug_key; SELECT (1",
        None,
        "docs_slug_key",
    ),
    "fewest columns": ("UNIQUE (id, slug), UNIQUE (slug)", None, "docs_slug_key"),
    "fewest bytes": ("UNIQUE (slug), UNIQUE (id)", None, "docs_id_key"),
    "the first name": ("CONSTRAINT b UNIQUE (id)); CREATE UNIQUE INDEX a ON docs (id); SELECT (1", None, "a"),
    "a named column": ("PRIMARY KEY (id), UNIQUE (slug)", "slug", "docs_slug_key"),
    "named columns": ("PRIMARY KEY (id), UNIQUE (slug, id)", "id, slug", "docs_slug_id_key"),
    "a named index": ("PRIMARY KEY (id)); CREATE UNIQUE INDEX b ON docs (id); SELECT (1", "b", "b"),
    "the primary key by its column": (
        "PRIMARY KEY (id)); CREATE UNIQUE INDEX a ON docs (id); SELECT (1",
        "id",
        "docs_pkey",
    ),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_which_key_is_chosen(case: str, connection: psycopg.Connection, database_url: str) -> None:
    definition, named, expected = CHOSEN[case]
    connection.execute(f"{DOCS}, {definition})")
    with opened(database_url, key=named) as store:
        assert (store._session.table.key_index or "docs_pkey") == expected


REFUSED = {
    "nothing unique": ("", None, "has no primary key", "ADD PRIMARY KEY"),
    "may be NULL": ("other integer UNIQUE", None, r"docs_other_key \(other\) lets other be", "\"other\" SET NOT"),
    "deferrable": ("UNIQUE (id) DEFERRABLE", None, "is deferrable", "ADD PRIMARY KEY"),
    "partial": (") ; CREATE UNIQUE INDEX i ON docs (id) WHERE id > 1; SELECT (1", None, "is partial", "ADD PRIMARY"),
    "an expression": (") ; CREATE UNIQUE INDEX i ON docs (abs(id)); SELECT (1", None, "an expression", "ADD PRIMARY"),
    "another collation": (
        ') ; CREATE UNIQUE INDEX i ON docs (slug COLLATE "C"); SELECT (1', None, "another collation", "ADD PRIMARY"
    ),
    "an unknown name": ("PRIMARY KEY (id)", "slug", "no unique key slug", r"docs_pkey \(id\)"),
    "a name that cannot be one": ("UNIQUE (id) DEFERRABLE, PRIMARY KEY (slug)", "id", "is deferrable", "another key"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_key_is_refused_with_the_reason_and_what_to_type(
    case: str, connection: psycopg.Connection, database_url: str
) -> None:
    definition, named, reason, hint = REFUSED[case]
    statement = f"{DOCS}{definition})" if definition.startswith(")") else f"{DOCS}, {definition})"
    connection.execute(statement if definition else f"{DOCS})")
    with pytest.raises(StoreSchemaError, match=reason) as refused:
        opened(database_url, key=named)
    assert re.search(hint, refused.value.hint)


# --- columns that the database fills --------------------------------------------------------------

IDENTITY = """
CREATE TABLE docs (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text, embedding vector(8),
    number integer GENERATED ALWAYS AS IDENTITY, place integer GENERATED BY DEFAULT AS IDENTITY,
    title text, length integer GENERATED ALWAYS AS (length(body)) STORED,
    words tsvector GENERATED ALWAYS AS (to_tsvector('english', coalesce(title, '') || ' ' || body)) STORED);
CREATE INDEX by_words ON docs USING gin (words);
"""


@layouts
def test_keys_and_columns_that_the_database_makes_go_on_working(
    connection: psycopg.Connection, database_url: str, tmp_path: Path, layout: Layout
) -> None:
    connection.execute(IDENTITY)
    for number in range(1, 9):
        vector = OLD.truth(f"text {number}").tolist()
        connection.execute("INSERT INTO docs (body, embedding) VALUES (%s, %s::real[])", [f"text {number}", vector])
    with opened(database_url, layout) as store:
        router, migration = Router(store, old=OLD, new=NEW), migration_of(store, tmp_path)
        router.put([Document(("3",), "apples", {"title": "fruit"}), Document(("100",), "pears", {"place": 7})])
        verified(migration)
        migration.cutover()
        router.put([Document(("4",), "plums", {"title": "fruit"}), Document(("101",), "quinces", {})])
        migration.start()
        assert_true(connection, NEW, 10)
        migration.rollback()
        assert_true(connection, OLD, 10)
        migration.cutover()
        migration.finalize(confirmed=True)
        router.close()
    query = "SELECT id, length, number FROM docs WHERE words @@ to_tsquery('english', 'fruit | quince') ORDER BY id"
    rows = connection.execute(query).fetchall()
    assert rows == [(3, 6, 3), (4, 5, 4), (101, 7, rows[2][2])]
    assert connection.execute("SELECT place FROM docs WHERE id = 100").fetchone() == (7,)


@pytest.mark.parametrize("name", ["number", "length", "words"])
def test_a_column_that_only_the_database_fills_is_refused_by_name_before_anything_is_written(
    name: str, connection: psycopg.Connection, database_url: str
) -> None:
    connection.execute(IDENTITY)
    with opened(database_url) as store:
        router = Router(store, old=OLD, new=NEW)
        documents = [Document(("1",), "apples", {}), Document(("2",), "pears", {name: 1})]
        with pytest.raises(StoreSchemaError, match=f"{name} of public.docs is filled by the database") as refused:
            router.put(documents)
        assert "leave it out" in refused.value.hint
        router.close()
    assert connection.execute("SELECT count(*) FROM docs").fetchone() == (0,)


COMPUTED = {
    "a key": "id integer PRIMARY KEY GENERATED ALWAYS AS (length(body)) STORED, body text",
    "a text": "id integer PRIMARY KEY, title text, body text GENERATED ALWAYS AS ('text ' || title) STORED",
    "a virtual text": "id integer PRIMARY KEY, title text, body text GENERATED ALWAYS AS ('text ' || title) VIRTUAL",
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_rows_whose_key_or_text_the_database_computes_are_migrated_but_not_put(
    kind: str, connection: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    connection.execute(f"CREATE TABLE docs ({COMPUTED[kind]}, embedding vector(8))")
    column = "body" if kind == "a key" else "id, title"
    values = "'text ' || repeat('x', i)" if kind == "a key" else "i, i::text"
    connection.execute(f"INSERT INTO docs ({column}) SELECT {values} FROM generate_series(1, 8) i")
    for (text,) in connection.execute("SELECT body FROM docs").fetchall():
        connection.execute("UPDATE docs SET embedding = %s::real[] WHERE body = %s", [OLD.truth(text).tolist(), text])
    with opened(database_url) as store:
        migration, router = migration_of(store, tmp_path), Router(store, old=OLD, new=NEW)
        verified(migration)
        migration.cutover()
        changed = "body = body || repeat('!', 50)" if kind == "a key" else "title = title || '!'"
        connection.execute(f"UPDATE docs SET {changed}")
        assert store.backlog() >= 8
        assert migration.start().backlog == 0
        assert_true(connection, NEW, 8)
        with pytest.raises(StoreSchemaError, match="is filled by the database"):
            router.put([Document(("7",), "text", {})])
        router.close()
