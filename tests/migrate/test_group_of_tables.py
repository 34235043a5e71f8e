"""Several tables of PostgreSQL under one switch, [store] collections: all serve the old vectors, or all the new."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from vecferry.embeddings import TextVectors
from vecferry.errors import CutoverRefused, Locked, SettingsError, StoreSchemaError
from vecferry.migrate import Migration, MigrationOptions
from vecferry.migrate.router import Document, Router
from vecferry.stores.group import Member
from vecferry.stores.opening import PostgresOptions, open_store
from vecferry.stores.pgvector import GroupOptions, PgGroupStore, PgVectorStore
from vecferry.stores.protocol import StoreGroup
from vecferry.stores.values import KeyRange, Layout, Patience, Record, Side, shown

OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
TABLES = """
CREATE SCHEMA app;
CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector(8) NOT NULL);
CREATE INDEX docs_near ON docs USING hnsw (embedding vector_cosine_ops);
CREATE TABLE faq (id text, lang text, question text, answer text, embedding vector(8), PRIMARY KEY (lang, id));
CREATE TABLE app.notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text, embedding vector(8))
    PARTITION BY HASH (id);
CREATE TABLE app.notes_0 PARTITION OF app.notes FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE app.notes_1 PARTITION OF app.notes FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE other (id integer PRIMARY KEY, body text, embedding vector(8));
"""
FAQ = "{question}\n{answer}"
MEMBERS = (Member("docs"), Member("faq", text=FAQ), Member("app.no*"))
TEXT_SQL = {"docs": "body", "faq": "question || E'\\n' || answer", "app.notes": "body"}
ROWS = 5


def vector(text: str, encoder: TruthEncoder = OLD) -> str:
    return str(encoder.truth(text).tolist())


@pytest.fixture
def tables(connection: psycopg.Connection) -> psycopg.Connection:
    connection.execute(TABLES)
    for n in range(ROWS):
        connection.execute("INSERT INTO docs VALUES (%s, %s, %s)", [n, f"doc {n}", vector(f"doc {n}")])
        asked = f"what {n}?\nthat"
        connection.execute("INSERT INTO faq VALUES (%s, 'en', %s, 'that', %s)", [f"q{n}", f"what {n}?", vector(asked)])
        connection.execute(
            "INSERT INTO app.notes (body, embedding) VALUES (%s, %s)", [f"note {n}", vector(f"note {n}")]
        )
    connection.execute("INSERT INTO other VALUES (1, 'other', %s)", [vector("other")])
    return connection


def connected(url: str, layout: Layout = Layout.COLUMNS, members: tuple[Member, ...] = MEMBERS) -> PgGroupStore:
    return PgGroupStore.connect(url, GroupOptions(members, "body", "embedding", embed_missing=True, layout=layout))


@pytest.fixture(params=Layout)
def layout(request: pytest.FixtureRequest) -> Layout:
    return Layout(request.param)


@pytest.fixture
def store(tables: psycopg.Connection, database_url: str, layout: Layout) -> Iterator[PgGroupStore]:
    with connected(database_url, layout) as store:
        yield store


@pytest.fixture
def in_columns(tables: psycopg.Connection, database_url: str) -> Iterator[PgGroupStore]:
    with connected(database_url) as store:
        yield store


def migration_of(store: PgGroupStore, folder: Path) -> Migration:
    options = MigrationOptions(staging=folder / "staging", min_free_gb=0, patience=Patience(30.0), rows_per_range=2)
    return Migration(store, new=NEW, old=OLD, options=options)


def verified(migration: Migration) -> None:
    migration.start()
    report = migration.verify(override="no gate in this test")
    assert report.passed, report


def stored(connection: psycopg.Connection) -> dict[str, dict[str, list[float]]]:
    """Return of each table the serving vectors by their texts."""
    return {
        table: dict(connection.execute(f"SELECT {text}, embedding::real[] FROM {table}").fetchall())
        for table, text in TEXT_SQL.items()
    }


def assert_all(connection: psycopg.Connection, encoder: TruthEncoder) -> None:
    """Assert that every row of every table has the vector that the model makes of its text."""
    for table, vectors in stored(connection).items():
        assert vectors
        for text, numbers in vectors.items():
            assert numbers == pytest.approx(encoder.truth(text).tolist(), abs=1e-6), (table, text)


def write_everywhere(connection: psycopg.Connection, mark: str, encoder: TruthEncoder) -> None:
    """Change a row, insert one and delete one in every table, as an application that embeds by itself."""
    for table, key in {"docs": "id", "app.notes": "id"}.items():
        text = f"{mark}, changed"
        connection.execute(
            f"UPDATE {table} SET body = %s, embedding = %s WHERE {key} = (SELECT min({key}) FROM {table})",
            [text, vector(text, encoder)],
        )
        connection.execute(f"DELETE FROM {table} WHERE {key} = (SELECT max({key}) FROM {table})")
    connection.execute(
        "INSERT INTO docs (id, body, embedding) SELECT max(id) + 100, %s, %s FROM docs",
        [f"{mark}, new", vector(f"{mark}, new", encoder)],
    )
    asked = f"{mark}?\nyes"
    connection.execute(
        "INSERT INTO faq (id, lang, question, answer, embedding) VALUES (%s, 'de', %s, 'yes', %s)",
        [mark, f"{mark}?", vector(asked, encoder)],
    )


# --- what belongs to it ---------------------------------------------------------------------------


def test_tables_are_named_or_match_a_pattern_and_have_keys_of_the_group(in_columns: PgGroupStore) -> None:
    assert isinstance(in_columns, StoreGroup)
    assert in_columns.members() == ("app.notes", "public.docs", "public.faq")
    assert in_columns.target == "{app.no*,docs,faq}"
    assert [
        row.text for row in in_columns.rows([("public.faq", "en", "q1"), ("public.docs", "3"), ("nowhere", "1")])
    ] == [
        "what 1?\nthat",
        "doc 3",
    ]
    assert in_columns.key_within("faq", ("en", "q1")) == ("public.faq", "en", "q1")
    with pytest.raises(StoreSchemaError, match="'other' is no table of"):
        in_columns.key_within("other", ("1",))


def test_ranges_cover_all_tables_in_the_order_of_their_names(in_columns: PgGroupStore) -> None:
    ranges = in_columns.key_ranges(2)
    read = [row.key for each in ranges for row in in_columns.rows_within(each, 10)]
    assert len(read) == len(set(read)) == 3 * ROWS
    assert read == [row.key for row in in_columns.rows_within(KeyRange(), 100)]
    assert [key[0] for key in read] == sorted(key[0] for key in read)
    assert [row.key for row in in_columns.rows_within(KeyRange(read[3], read[7]), 3)] == read[4:7]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([Member("docs"), Member("gone")], "gone"),
        ([Member("docs"), Member("public.docs")], "names a table twice"),
        ([Member("no_such_*")], "no table with a column embedding of pgvector matches no_such_"),
    ],
)
def test_a_name_that_is_no_table_is_named(
    tables: psycopg.Connection, database_url: str, members: list[Member], reason: str
) -> None:
    with pytest.raises(StoreSchemaError, match=reason):
        connected(database_url, members=tuple(members))


@pytest.mark.parametrize("options", [PostgresOptions(source="a_view"), PostgresOptions(where="id > 1")])
def test_what_is_of_one_table_is_refused_for_several(database_url: str, options: PostgresOptions) -> None:
    with pytest.raises(SettingsError, match=r"none beside \[store\] collections"):
        open_store(database_url, MEMBERS, text="body", options=options)


def test_tables_that_do_not_fit_are_named_before_anything_is_written(
    tables: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    tables.execute("CREATE TABLE docs_wide (id integer PRIMARY KEY, body text, embedding vector(9))")
    reason = r"1 of 3 tables .* public.docs_wide: its vectors have 9 numbers"
    members = (Member("docs*"), Member("faq", text=FAQ))
    with connected(database_url, members=members) as store, pytest.raises(StoreSchemaError, match=reason):
        migration_of(store, tmp_path).start()
    assert tables.execute("SELECT to_regnamespace('vecferry')").fetchone() == (None,)


# --- the whole path -------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["finalize", "in place", "abort"])
def test_all_tables_go_the_whole_path_and_every_write_is_followed(
    store: PgGroupStore, tables: psycopg.Connection, tmp_path: Path, ending: str
) -> None:
    migration = migration_of(store, tmp_path)
    plan = migration.plan()
    assert (plan.collections, plan.table.rows) == (store.members(), 3 * ROWS)
    assert plan.provenance.is_confirmed
    migration.start()
    write_everywhere(tables, "before", OLD)
    verified(migration)
    assert_all(tables, OLD)
    migration.cutover()
    migration.start()
    assert_all(tables, NEW)
    write_everywhere(tables, "after", NEW)
    migration.start()
    assert migration.status().collections == store.members()
    if ending == "abort":
        migration.rollback()
        migration.start()
        assert_all(tables, OLD)
        migration.abort()
        assert_all(tables, OLD)
    else:
        migration.finalize(confirmed=True, in_place=ending == "in place")
        assert_all(tables, NEW)
    assert_nothing_left(tables)
    required = tables.execute("SELECT attnotnull FROM pg_attribute WHERE attname = 'embedding' AND attrelid = ANY (%s)"
                              " ORDER BY attrelid::regclass::text", [oids(tables)]).fetchall()  # fmt: skip
    assert required == [(False,), (True,), (False,)]


def oids(connection: psycopg.Connection) -> list[int]:
    query = "SELECT name::regclass::oid::bigint FROM unnest(%s::text[]) AS name"
    return [oid for (oid,) in connection.execute(query, [["app.notes", "docs", "faq"]]).fetchall()]


def assert_nothing_left(connection: psycopg.Connection) -> None:
    for query in (
        "SELECT tgname FROM pg_trigger WHERE tgname LIKE 'vecferry%'",
        "SELECT tablename FROM pg_tables WHERE tablename LIKE 'sides%'",
        "SELECT attname FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid AND relkind IN ('r', 'p')"
        " WHERE attname LIKE 'embedding_vecferry%' AND NOT attisdropped",
        "SELECT indexname FROM pg_indexes WHERE indexname LIKE '%vecferry%' AND schemaname <> 'vecferry'",
    ):
        assert connection.execute(query).fetchall() == []


def test_a_second_migration_of_fewer_tables_begins_where_the_first_ended(
    in_columns: PgGroupStore, tables: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    migration = migration_of(in_columns, tmp_path)
    verified(migration)
    migration.cutover()
    migration.start()
    migration.finalize(confirmed=True)
    back = Migration(in_columns, new=OLD, old=NEW, options=migration.options)
    verified(back)
    back.abort()
    with PgVectorStore.connect(database_url, "docs", "body", "embedding", embed_missing=True) as alone:
        verified(Migration(alone, new=OLD, old=NEW, options=migration.options))


def test_a_table_is_in_one_migration_at_a_time(
    in_columns: PgGroupStore, tables: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    migration = migration_of(in_columns, tmp_path / "group")
    migration.start()
    single = PgVectorStore.connect(database_url, "docs", "body", "embedding", embed_missing=True)
    other = connected(database_url, members=(Member("faq", text=FAQ), Member("other")))
    for store in (single, other):
        with store, pytest.raises(StoreSchemaError, match=r"(are in the migration of|tables of .* do not fit)"):
            Migration(store, new=NEW, old=OLD, options=migration_of(in_columns, tmp_path / "x").options).start()
    migration.abort()
    with PgVectorStore.connect(database_url, "docs", "body", "embedding", embed_missing=True) as store:
        Migration(store, new=NEW, old=OLD, options=migration.options).start()
        with pytest.raises(StoreSchemaError, match=r"public.docs: .* are in the migration of public.docs.embedding"):
            migration_of(in_columns, tmp_path / "again").start()


# --- the switch -----------------------------------------------------------------------------------


def test_whoever_reads_sees_all_tables_before_the_switch_or_after_it(
    in_columns: PgGroupStore, tables: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    """Readers take the tables in another order than the switch does; none is in a deadlock, and none sees a mixture."""
    migration = migration_of(in_columns, tmp_path)
    verified(migration)
    seen, failures, over = set[tuple[int, ...]](), list[Exception](), threading.Event()

    def read() -> None:
        query = " UNION ALL ".join(
            f"(SELECT vector_dims(embedding) FROM {name} LIMIT 1)"
            for name in ("public.faq", "public.docs", "app.notes")
        )
        with psycopg.connect(database_url, autocommit=True) as reader:
            while not over.is_set():
                try:
                    seen.add(tuple(length for (length,) in reader.execute(query).fetchall()))
                except psycopg.Error as exc:
                    failures.append(exc)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for each in readers:
        each.start()
    migration.cutover()
    migration.start()
    migration.rollback()
    over.set()
    for each in readers:
        each.join()
    assert failures == []
    assert seen <= {(8, 8, 8), (16, 16, 16)}


def test_a_table_that_somebody_holds_keeps_all_on_their_side(
    in_columns: PgGroupStore, tables: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    migration = migration_of(in_columns, tmp_path)
    verified(migration)
    options = replace(migration.options, patience=Patience(0.3, wait_s=1.0))
    hurried = Migration(in_columns, new=NEW, old=OLD, options=options)
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT count(*) FROM faq")
        with pytest.raises(Locked, match=r"\{app.no\*,docs,faq\} .*still serve"):
            hurried.cutover()
        assert {len(each) for vectors in stored(tables).values() for each in vectors.values()} == {8}
    hurried.cutover()
    assert_all(tables, NEW)


def test_a_table_that_comes_meanwhile_is_taken_in_by_the_next_start_and_never_left_behind(
    in_columns: PgGroupStore, tables: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    migration = migration_of(in_columns, tmp_path)
    verified(migration)
    tables.execute("CREATE TABLE app.notes_of_b (id integer PRIMARY KEY, body text, embedding vector(8))")
    tables.execute("INSERT INTO app.notes_of_b VALUES (1, 'a new note', %s)", [vector("a new note")])
    with pytest.raises(StoreSchemaError, match=r"app.notes_of_b of .* came since the migration began"):
        migration.cutover()
    assert_all(tables, OLD)
    with connected(database_url) as wider:
        again = migration_of(wider, tmp_path)
        with pytest.raises((StoreSchemaError, CutoverRefused)):
            again.cutover()
        verified(again)
        again.cutover()
    got = tables.execute("SELECT embedding::real[] FROM app.notes_of_b").fetchone()
    assert got is not None
    assert got[0] == pytest.approx(NEW.truth("a new note").tolist(), abs=1e-6)
    tables.execute("CREATE TABLE app.nothing_yet (id integer PRIMARY KEY, body text, embedding vector(8))")
    with connected(database_url) as widest, pytest.raises(StoreSchemaError, match=r"rollback, then start"):
        migration_of(widest, tmp_path).start()


# --- findings, dead letters -----------------------------------------------------------------------


def test_dead_letters_are_named_with_their_table_and_go_with_their_text(
    store: PgGroupStore, tables: psycopg.Connection, tmp_path: Path
) -> None:
    tables.execute("UPDATE docs SET body = 'POISON' WHERE id = 1")
    tables.execute("UPDATE faq SET question = 'POISON' WHERE id = 'q2'")
    options = replace(migration_of(store, tmp_path).options, accept_unconfirmed="a test")
    migration = Migration(store, new=NEW, old=OLD, options=options)
    migration.start()
    record = store.ledger.find(store.target)
    assert record is not None
    letters = store.ledger.dead_letters(record, 10, Side.NEW)
    assert sorted(shown([letter.key for letter in letters])) == ["(public.docs, 1)", "(public.faq, en, q2)"]
    migration.verify(override="no gate in this test")
    with pytest.raises(CutoverRefused, match="2 rows have no new vector"):
        migration.cutover()
    assert store.counts().dead_letters == 2
    tables.execute("UPDATE docs SET body = 'whole', embedding = %s WHERE id = 1", [vector("whole")])
    tables.execute("DELETE FROM faq WHERE id = 'q2'")
    migration.start()
    assert store.ledger.dead_letters(record, 10, Side.NEW) == []
    verified(migration)
    migration.cutover()
    assert_all(tables, NEW)


def test_a_row_that_no_capture_saw_is_found_in_its_table(
    in_columns: PgGroupStore, tables: psycopg.Connection, tmp_path: Path
) -> None:
    migration = migration_of(in_columns, tmp_path)
    verified(migration)
    tables.execute("ALTER TABLE faq DISABLE TRIGGER USER")
    tables.execute("UPDATE faq SET answer = 'unseen' WHERE id = 'q3'")
    tables.execute("ALTER TABLE faq ENABLE TRIGGER USER")
    found = in_columns.count_outdated(Side.NEW)
    assert (found.count, found.keys) == (1, (("public.faq", "en", "q3"),))
    assert [row.text for row in in_columns.outdated(Side.NEW)] == ["what 3?\nunseen"]


# --- the application ------------------------------------------------------------------------------


def test_the_router_writes_and_searches_one_table_or_all(
    in_columns: PgGroupStore, tables: psycopg.Connection, tmp_path: Path
) -> None:
    migration = migration_of(in_columns, tmp_path)
    verified(migration)
    with in_columns.another() as own, Router(own, old=OLD, new=NEW) as router:
        for epoch, encoder in enumerate([OLD, NEW], start=1):
            faq = router.within("faq")
            faq.put([Document(("en", f"new {epoch}"), f"because {epoch}", {"question": f"why {epoch}?"})])
            (hit, *_) = faq.search(f"why {epoch}?\nbecause {epoch}", k=1).hits
            assert hit.key == ("en", f"new {epoch}")
            assert hit.score == pytest.approx(1, abs=1e-5)
            (hit, *_) = router.search("doc 3", k=1).hits
            assert hit.key == ("public.docs", "3")
            assert router.within("public.docs").search("doc 3", k=1).epoch == epoch
            got = tables.execute("SELECT embedding::real[] FROM faq WHERE id = %s", [f"new {epoch}"]).fetchone()
            assert got is not None
            np.testing.assert_allclose(got[0], encoder.truth(f"why {epoch}?\nbecause {epoch}"), atol=1e-6)
            assert faq.encode_query("x").locator == "public.faq.embedding"
            if encoder is OLD:
                migration.cutover()
        router.put([Document(("public.docs", "50"), "a doc"), Document(("app.notes", "2"), "a note")])
        router.remove([("public.docs", "1"), ("public.faq", "en", "q1")])
        assert [row.text for row in router.get([("app.notes", "2"), ("public.docs", "1")])] == ["a note"]
        with pytest.raises(StoreSchemaError, match="is no table of"):
            router.put([Document(("other", "1"), "nowhere")])
    migration.start()
    assert_all(tables, NEW)
    migration.finalize(confirmed=True)
    assert_nothing_left(tables)


def test_a_write_to_several_tables_is_kept_whole_or_not_at_all(
    in_columns: PgGroupStore, tables: psycopg.Connection
) -> None:
    vectors = TextVectors(OLD.truth("a"))
    good, bad = Record(("public.docs", "90"), "a", vectors), Record(("public.faq", "en", "q9"), "b", vectors, {"no": 1})
    with pytest.raises(StoreSchemaError, match="has no column no"):
        in_columns.put([good, bad], fingerprint=OLD.fingerprint)
    assert tables.execute("SELECT count(*) FROM docs WHERE id = 90").fetchone() == (0,)
