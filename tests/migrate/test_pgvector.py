"""What only a real PostgreSQL can show: keys and names of all kinds, locks, indexes, roles."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql

from tests.migrate.doubles import TruthEncoder
from tests.stores.collections import OLD_DIMENSION, old_vector, without_triggers
from vecferry.errors import (
    Locked,
    MigrationNotFound,
    SpaceMismatch,
    StoreSchemaError,
    StoreUnreachable,
)
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.pgvector.connection import Database
from vecferry.stores.pgvector.table import split_name, suffixed
from vecferry.stores.values import Patience

OLD = TruthEncoder("old", OLD_DIMENSION)
OPTIONS = MigrationOptions(
    accept_unconfirmed="a test", rows_per_range=7, staging=Path("staging"), patience=Patience(0.2, 1.0), reconnect_s=0.0
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Staged vectors lie in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


def make_docs(connection: psycopg.Connection, texts: list[str | None], extra: str = "") -> None:
    connection.execute(
        f"CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector({OLD_DIMENSION}) {extra})"
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO docs VALUES (%s, %s, %s::real[]::vector)",
            [(i, text, old_vector(text or "").tolist()) for i, text in enumerate(texts, start=1)],
        )


def open_docs(database_url: str) -> PgVectorStore:
    return PgVectorStore.connect(database_url, "docs", "body", "embedding")


def column(connection: psycopg.Connection, table: sql.Composable, text: str, vector: str) -> list[tuple[str, Any]]:
    query = sql.SQL("SELECT {}, {}::real[] FROM {}").format(sql.Identifier(text), sql.Identifier(vector), table)
    rows = connection.execute(sql.SQL(query.as_string(connection).replace("%", "%%")), []).fetchall()
    return [(text, None if vector is None else np.asarray(vector, np.float32)) for text, vector in rows]


def assert_true(rows: list[tuple[str, Any]], encoder: TruthEncoder) -> None:
    for text, vector in rows:
        np.testing.assert_array_equal(vector, encoder.truth(text))


def columns_of(connection: psycopg.Connection) -> dict[str, tuple[str, bool]]:
    rows = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute"
        " WHERE attrelid = 'docs'::regclass AND attnum > 0 AND NOT attisdropped"
    )
    return {name: (kind, not_null) for name, kind, not_null in rows}


def indexes_of(connection: psycopg.Connection) -> dict[str, str]:
    rows = connection.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'docs' AND indexname <> 'docs_pkey'"
    )
    return dict(rows.fetchall())


# --- where rows stand -----------------------------------------------------------------------------


def test_a_backfill_leaves_most_rows_on_their_pages(connection: psycopg.Connection, database_url: str) -> None:
    """Of the rows of a page the first must move; in its place there is room for the next ones, one after the other."""
    make_docs(connection, [f"text {i} {'x' * 1500}" for i in range(512)])  # five a page
    connection.execute("CREATE INDEX ON docs USING hnsw (embedding vector_cosine_ops)")
    pages: dict[int, float] = dict(connection.execute("SELECT id, (ctid::text::point)[0] FROM docs").fetchall())
    with open_docs(database_url) as store:
        Migration(store, new=TruthEncoder(dimension=1024), options=replace(OPTIONS, rows_per_range=256)).start()
    now = connection.execute("SELECT id, (ctid::text::point)[0] FROM docs").fetchall()
    assert sum(pages[key] == page for key, page in now) > len(pages) / 2


# --- keys, names, texts ---------------------------------------------------------------------------

KEYS = {
    "bigint": ("k bigint", "k", "i * 1000000007::bigint"),
    "uuid": ("k uuid", "k", "md5(i::text)::uuid"),
    "text": ("k text", "k", "chr(64 + i) || ' ''\"%s{}\\ é' || i"),
    "collated": ('k text COLLATE "C"', "k", "repeat('é', i)"),
    "timestamp": ("k timestamptz", "k", "timestamptz '2026-01-01 00:00:00.123456+02' + i * interval '1 hour'"),
    "bytes": ("k bytea", "k", "decode(lpad(to_hex(i), 4, '0'), 'hex')"),
    "numeric": ("k numeric(10, 3)", "k", "i / 8.0"),
    "enumeration": ('k "Odd %type"', "k", "('v' || i)::\"Odd %type\""),
    "composite": ("a text, b integer, c date", "c, a, b", "'t' || i % 3, i, date '2026-01-01' + i % 2"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_any_primary_key_is_migrated(kind: str, connection: psycopg.Connection, database_url: str) -> None:
    definition, key, values = KEYS[kind]
    labels = ", ".join(f"'v{i}'" for i in range(1, 25))
    connection.execute(f'CREATE TYPE "Odd %type" AS ENUM ({labels})')
    connection.execute(f"CREATE TABLE docs ({definition}, body text, embedding vector(8), PRIMARY KEY ({key}))")
    connection.execute(
        f"INSERT INTO docs SELECT {values}, 'text ' || i, array_fill(i, ARRAY[8])::vector FROM generate_series(1, 24) i"
    )
    encoder = TruthEncoder()
    with open_docs(database_url) as store:
        migration = Migration(store, new=encoder, options=OPTIONS)
        status = migration.start()
        assert (status.rows_done, status.ranges_done, status.ranges) == (24, 4, 4)
        assert encoder.encoded == {f"text {i}": 1 for i in range(1, 25)}
        connection.execute("UPDATE docs SET body = 'changed' WHERE body = 'text 5'")
        (change,) = store.captured(10)
        assert len(change.key) == key.count(",") + 1
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        rows = column(connection, sql.Identifier("docs"), "body", "embedding")
        assert len(rows) == 24
        assert_true(rows, encoder)
        migration.rollback()
        migration.cutover()
        migration.finalize(confirmed=True)


AWKWARD = ['we"ird', "semi;colon -- x", "per%cent %s", "bra{ces}{0}", "Übung 東京", "a.b", "x" * 63, "SELECT"]


@pytest.mark.parametrize("name", AWKWARD)
def test_any_name_of_tables_and_columns_is_migrated(
    name: str, connection: psycopg.Connection, database_url: str
) -> None:
    table, quoted = sql.Identifier(name, name), sql.Identifier(name).as_string(connection)
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    key, text, vector = (sql.Identifier(f"{letter}{name}"[:63]) for letter in "ktv")
    connection.execute(
        sql.SQL("CREATE TABLE {} ({} {}.{} PRIMARY KEY, {} text, {} vector(8))").format(
            table, key, sql.Identifier("pg_catalog"), sql.Identifier("int4"), text, vector
        )
    )
    connection.execute(
        sql.SQL(
            "INSERT INTO {} SELECT i, 'text ' || i, array_fill(i, ARRAY[8])::vector FROM generate_series(1, 9) i"
        ).format(table)
    )
    connection.execute(sql.SQL("CREATE INDEX ON {} USING hnsw ({} vector_cosine_ops)").format(table, vector))
    encoder = TruthEncoder()
    names = (f"{quoted}.{quoted}", f"t{name}"[:63], f"v{name}"[:63])
    with PgVectorStore.connect(database_url, *names) as store:
        migration = Migration(store, new=encoder, options=OPTIONS)
        migration.plan()
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        assert_true(column(connection, table, names[1], names[2]), encoder)
        assert store.search(encoder.truth("text 3"), 1, fingerprint=encoder.fingerprint)[0].key == ("3",)
        migration.rollback()
        migration.cutover()
        migration.finalize(confirmed=True)


def test_table_names_are_read_as_they_are_spelled() -> None:
    assert split_name("docs") == (None, "docs")
    assert split_name("public.Docs") == ("public", "Docs")
    assert split_name('"a.b"."c""d"') == ("a.b", 'c"d')
    for wrong in ("", "a.b.c", "a.", ".a", 'a"b'):
        with pytest.raises(StoreSchemaError):
            split_name(wrong)


def test_long_names_stay_different_when_they_are_shortened() -> None:
    names = [suffixed(base, suffix) for base in ("é" * 31, "é" * 30 + "e") for suffix in ("_new", "_old")]
    assert len(set(names)) == 4
    assert all(len(name.encode()) <= 63 for name in names)


def test_texts_in_a_varchar_column_are_migrated(connection: psycopg.Connection, database_url: str) -> None:
    make_docs(connection, ["a ", "b"])
    connection.execute("ALTER TABLE docs ALTER body TYPE varchar(10)")
    encoder = TruthEncoder()
    with open_docs(database_url) as store:
        migration = Migration(store, new=encoder, options=OPTIONS)
        migration.start()
        assert migration.verify(override="no gate in this test").passed


# --- tables that cannot be migrated ---------------------------------------------------------------

REFUSED = {
    "no table": ("CREATE TABLE other ()", "no table"),
    "no primary key": ("CREATE TABLE docs (id int, body text, embedding vector(8))", "no primary key"),
    "no text column": ("CREATE TABLE docs (id int PRIMARY KEY, embedding vector(8))", "no column body"),
    "text is a number": ("CREATE TABLE docs (id int PRIMARY KEY, body int, embedding vector(8))", "integer"),
    "another vector type": ("CREATE TABLE docs (id int PRIMARY KEY, body text, embedding sparsevec(8))", "sparsevec"),
    "a view": ("CREATE VIEW docs AS SELECT 1 AS id, 'a' AS body, '[1]'::vector AS embedding", "ordinary table"),
    "an inherited column": (
        "CREATE TABLE above (embedding vector(8)); CREATE TABLE docs (id int PRIMARY KEY, body text) INHERITS (above)",
        "is inherited",
    ),
    "a rule": (
        "CREATE TABLE docs (id int PRIMARY KEY, body text, embedding vector(8));"
        "CREATE RULE kept AS ON DELETE TO docs DO INSTEAD NOTHING",
        "has the rule kept",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_cannot_be_migrated_is_refused_by_name(
    case: str, connection: psycopg.Connection, database_url: str
) -> None:
    statement, reason = REFUSED[case]
    connection.execute(statement)
    with pytest.raises(StoreSchemaError, match=reason):
        open_docs(database_url)


# --- reaching the server --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@127.0.0.1:1/db?connect_timeout=2",
        "postgresql://me:s3cret@no-such-host.invalid/db?connect_timeout=2",
        "postgresql//me:s3cret@nowhere",
        "host=127.0.0.1 port=1 password=s3cret bad",
    ],
)
def test_an_unreachable_server_is_named_without_the_password(url: str) -> None:
    with pytest.raises(StoreUnreachable) as unreachable:
        PgVectorStore.connect(url, "docs", "body", "embedding")
    assert "s3cret" not in str(unreachable.value)


def test_a_connection_that_is_cut_is_made_anew_and_the_run_goes_on(
    connection: psycopg.Connection, database_url: str
) -> None:
    def terminate(texts: object) -> None:
        if encoder.calls == 1:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ 'vecferry'"
            )

    make_docs(connection, [f"t{i}" for i in range(20)])
    encoder = TruthEncoder(before_each=terminate)
    with open_docs(database_url) as store:
        status = Migration(
            store, new=encoder, options=replace(OPTIONS, lease_s=1.0)
        ).start()  # its own, which it waits for
        assert status.rows_done == 20
        assert "store came back" in [event.what for event in status.events]
        assert encoder.encoded.total() <= 20 + 7  # the range in hand
        assert Migration(store, new=encoder, options=OPTIONS).verify(override="no gate in this test").passed


def test_a_connection_that_is_cut_within_a_pipeline_is_known_as_lost(
    connection: psycopg.Connection, database_url: str
) -> None:
    make_docs(connection, ["t"])
    with open_docs(database_url) as store, pytest.raises(StoreUnreachable), store._session.db._translated():
        raise psycopg.OperationalError("cannot exit pipeline mode while busy")


# --- plan -----------------------------------------------------------------------------------------


def fingerprint_of_database(connection: psycopg.Connection) -> list[Any]:
    return [
        connection.execute("SELECT count(*), max(oid::bigint) FROM pg_class").fetchone(),
        connection.execute("SELECT count(*) FROM pg_namespace").fetchone(),
        connection.execute("SELECT md5(string_agg(ctid::text || xmin::text || docs::text, '|')) FROM docs").fetchone(),
        connection.execute("SELECT count(*) FROM pg_description").fetchone(),
    ]


def test_a_plan_needs_only_a_role_that_may_read(connection: psycopg.Connection, database_url: str) -> None:
    make_docs(connection, [f"t{i}" for i in range(20)])
    connection.execute("CREATE INDEX docs_hnsw ON docs USING hnsw (embedding vector_cosine_ops)")
    connection.execute("CREATE VIEW shown AS SELECT id, embedding FROM docs")
    connection.execute(
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
        "CREATE TRIGGER touch BEFORE UPDATE ON docs FOR EACH ROW EXECUTE FUNCTION nothing()"
    )
    connection.execute("DROP ROLE IF EXISTS reader")
    connection.execute("CREATE ROLE reader LOGIN; GRANT SELECT ON docs TO reader")
    connection.execute("ALTER ROLE reader SET default_transaction_read_only = on")
    before = fingerprint_of_database(connection)
    try:
        with open_docs(database_url.replace("postgres:@", "reader:@")) as store:
            plan = Migration(store, new=TruthEncoder(), options=OPTIONS).plan(sample=5)
            with pytest.raises(StoreSchemaError, match="the role reader does not own"):
                Migration(store, new=TruthEncoder(), options=OPTIONS).start()
            with pytest.raises(MigrationNotFound):
                Migration(store, options=OPTIONS).status()
        assert fingerprint_of_database(connection) == before
    finally:
        connection.execute("DROP OWNED BY reader; DROP ROLE reader")
    assert (plan.table.rows, plan.sample_rows) == (20, 5)
    assert [index.name for index in plan.table.vector_indexes] == ["docs_hnsw"]
    assert plan.table.vector_indexes[0].holds_vectors
    assert [(each.name, each.is_carried) for each in plan.table.dependents] == [("public.shown", True)]
    assert plan.table.triggers == ("touch",)
    assert [warning.partition(":")[0] for warning in plan.warnings if "shown" not in warning] == [
        "triggers fire for every row that is written"
    ]
    assert ["does not own" in problem.message for problem in plan.problems] == [True]


@pytest.mark.parametrize("dimension", [256, 1024])
def test_the_planned_disk_space_is_enough_and_not_far_off(
    dimension: int, connection: psycopg.Connection, database_url: str
) -> None:
    make_docs(connection, [f"text {i} " * 20 for i in range(600)])
    connection.execute("CREATE INDEX ON docs USING hnsw (embedding vector_cosine_ops)")
    encoder = TruthEncoder(dimension=dimension)
    with open_docs(database_url) as store:
        migration = Migration(store, new=encoder, options=MigrationOptions(accept_unconfirmed="a test"))
        plan = migration.plan(sample=3)
        migration.start()
        grown = store.describe().table_bytes - plan.table.table_bytes
    assert grown <= plan.disk_bytes <= 1.7 * grown


# --- the columns ----------------------------------------------------------------------------------


def test_a_required_vector_column_is_migrated(connection: psycopg.Connection, database_url: str) -> None:
    make_docs(connection, ["a", "b"], extra="NOT NULL")
    encoder = TruthEncoder()
    insert = "INSERT INTO docs (id, body, embedding) VALUES (%s, %s, %s::real[]::vector)"
    with open_docs(database_url) as store:
        migration = Migration(store, new=encoder, options=OPTIONS)
        migration.start()
        connection.execute(insert, [3, "c", old_vector("c").tolist()])  # the application goes on
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        connection.execute(insert, [4, "d", encoder.truth("d").tolist()])
        report = migration.rollback(accept_outdated=True)
        assert (report.outdated_rows, report.not_null_restored) == (1, False)
        replace(migration, old=OLD).start()
        assert replace(migration, old=OLD).verify(override="no gate in this test").passed
        migration.cutover()
        assert migration.rollback().not_null_restored
    assert columns_of(connection)["embedding"] == ("vector(8)", True)


def test_finalize_leaves_one_column_with_its_space_on_it(connection: psycopg.Connection, database_url: str) -> None:
    make_docs(connection, ["a"])
    encoder = TruthEncoder()
    with open_docs(database_url) as store:
        migration = Migration(store, new=encoder, options=OPTIONS)
        migration.start()
        assert columns_of(connection)["embedding_vecferry_new"] == ("vector(16)", False)
        migration.verify(override="no gate in this test")
        migration.cutover()
        assert set(columns_of(connection)) == {
            "id", "body", "embedding", "embedding_vecferry_old",
            "embedding_vecferry_new_sha256", "embedding_vecferry_old_sha256",
        }  # fmt: skip
        migration.finalize(confirmed=True)
        assert columns_of(connection) == {
            "id": ("integer", True), "body": ("text", False), "embedding": ("vector(16)", False)
        }  # fmt: skip
        assert store.describe().fingerprint == encoder.fingerprint


def test_a_new_side_of_another_space_is_refused(connection: psycopg.Connection, database_url: str) -> None:
    make_docs(connection, ["a"])
    encoder = TruthEncoder()
    with open_docs(database_url) as store:
        Migration(store, new=encoder, options=OPTIONS).start()
        connection.execute("COMMENT ON COLUMN docs.embedding_vecferry_new IS 'vecferry:space:another'")
        with pytest.raises(SpaceMismatch):
            Migration(store, new=encoder, options=OPTIONS).start()
        connection.execute("COMMENT ON COLUMN docs.embedding_vecferry_new IS NULL")
        with pytest.raises(SpaceMismatch):
            Migration(store, new=encoder, options=OPTIONS).start()


def test_a_new_side_that_was_dropped_is_made_again(connection: psycopg.Connection, database_url: str) -> None:
    make_docs(connection, ["a", "b"])
    encoder = TruthEncoder()
    with open_docs(database_url) as store:
        migration = Migration(store, new=encoder, options=OPTIONS)
        migration.start()
        connection.execute(
            "ALTER TABLE docs DROP embedding_vecferry_new CASCADE, DROP embedding_vecferry_new_sha256 CASCADE"
        )
        with pytest.raises(StoreSchemaError):
            migration.verify(override="no gate in this test")
        assert migration.start().rows_done == 2
        assert migration.verify(override="no gate in this test").passed


TAMPERED = (
    "UPDATE docs SET embedding_vecferry_new = (SELECT embedding_vecferry_new FROM docs o WHERE o.id <> docs.id)",
    "UPDATE docs SET embedding_vecferry_new = array_fill(1, ARRAY[16])::vector WHERE id = 1",
    "UPDATE docs SET embedding_vecferry_new = NULL WHERE id = 1",
)


@pytest.mark.parametrize("statement", TAMPERED)
def test_a_vector_that_was_tampered_with_is_made_anew(
    statement: str, connection: psycopg.Connection, database_url: str
) -> None:
    make_docs(connection, ["a", "b"])
    encoder = TruthEncoder()
    with open_docs(database_url) as store:
        migration = Migration(store, new=encoder, options=OPTIONS)
        migration.start()
        connection.execute(statement)
        assert migration.verify(override="no gate in this test").passed  # which follows what is captured
        with without_triggers(connection, "docs"):
            connection.execute(statement)
        report = migration.verify(override="no gate in this test")
        assert "text unchanged" in [check.name for check in report.checks if not check.passed]
        migration.start()
        assert migration.verify(sample=2, override="no gate in this test").passed


def test_dead_letters_go_with_rows_that_truncate_removed(connection: psycopg.Connection, database_url: str) -> None:
    make_docs(connection, ["a", "POISON", "POISON too"])
    with open_docs(database_url) as store:
        migration = Migration(store, new=TruthEncoder(), options=OPTIONS)
        assert migration.start().dead_letters == 2
        assert migration.verify(override="no gate in this test").passed
        connection.execute("TRUNCATE docs")
        migration.cutover()
        assert migration.status().first_dead_letters == ()
        migration.finalize(confirmed=True)


# --- a table that is changed meanwhile ------------------------------------------------------------


def test_a_key_column_that_is_renamed_fails_no_write_and_the_next_start_goes_on(
    connection: psycopg.Connection, database_url: str
) -> None:
    make_docs(connection, [f"text {number}" for number in range(12)])
    encoder = TruthEncoder()
    with open_docs(database_url) as store:
        Migration(store, new=encoder, options=OPTIONS).start()
        connection.execute("ALTER TABLE docs RENAME id TO number")
        connection.execute("INSERT INTO docs SELECT 20, 'a new one', embedding FROM docs WHERE number = 1")
        connection.execute("UPDATE docs SET body = 'changed' WHERE number = 3")
        connection.execute("UPDATE docs SET number = 30 WHERE number = 4")
        connection.execute("DELETE FROM docs WHERE number = 5")
        with pytest.raises(StoreSchemaError, match="id"):
            Migration(store, new=encoder, options=OPTIONS).start()
    with open_docs(database_url) as store:
        migration = Migration(store, new=encoder, options=OPTIONS)
        assert migration.start().rows_done == 12
        assert migration.verify(override="no gate in this test").passed
        connection.execute("UPDATE docs SET body = 'once more' WHERE number = 3")
        assert [change.key for change in store.captured(10)] == [("3",)]


# --- indexes --------------------------------------------------------------------------------------


def test_vector_indexes_are_made_anew_and_change_names_with_the_columns(
    connection: psycopg.Connection, database_url: str
) -> None:
    make_docs(connection, [f"t{i}" for i in range(50)])
    for statement in (
        "CREATE INDEX by_cosine ON docs USING hnsw (embedding vector_cosine_ops) WITH (m = 8, ef_construction = 40)",
        "CREATE INDEX by_product ON docs USING ivfflat (embedding vector_ip_ops) WITH (lists = 3) WHERE body ~~ 't%'",
        "CREATE INDEX by_half ON docs USING hnsw ((embedding::halfvec(8)) halfvec_cosine_ops)",
        "CREATE INDEX by_bits ON docs USING hnsw ((binary_quantize(embedding)::bit(8)) bit_hamming_ops)",
        "CREATE INDEX by_part ON docs USING hnsw ((subvector(embedding, 1, 4)::vector(4)) vector_l2_ops)",
        "CREATE INDEX by_presence ON docs USING hnsw (embedding vector_l2_ops) WHERE embedding IS NOT NULL",
        "CREATE UNIQUE INDEX queue ON docs (id) INCLUDE (body) WHERE embedding IS NULL AND body <> 'embedding'",
    ):
        connection.execute(statement)
    original = indexes_of(connection)
    encoder = TruthEncoder()
    with open_docs(database_url) as store:
        migration = Migration(store, new=encoder, options=OPTIONS)
        plan = migration.plan()
        assert {i.name: i.cast_length for i in plan.table.vector_indexes if i.cast_length} == {
            "by_half": 8, "by_bits": 8, "by_part": 4
        }  # fmt: skip
        assert sum("queries that use it must do so too" in warning for warning in plan.warnings) == 2
        migration.start()
        anew = {
            name: definition.replace(f" {name} ", f" {name}_vecferry_new ")
            .replace("(embedding", "(embedding_vecferry_new")
            .replace("(8)", "(16)")
            for name, definition in original.items()
        }
        assert {name: indexes_of(connection)[f"{name}_vecferry_new"] for name in original} == anew
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        switched = indexes_of(connection)
        serving = {name: definition.replace("(8)", "(16)") for name, definition in original.items()}
        assert {name: switched[name] for name in original} == serving
        assert "(embedding_vecferry_old " in switched["by_cosine_vecferry_old"]
        migration.rollback()
        assert original.items() <= indexes_of(connection).items()
        migration.cutover()
        migration.finalize(confirmed=True)
        assert indexes_of(connection) == serving


def test_a_half_built_index_is_built_anew(connection: psycopg.Connection, database_url: str) -> None:
    make_docs(connection, ["a", "b"])
    connection.execute("CREATE INDEX by_cosine ON docs USING hnsw (embedding vector_cosine_ops)")
    encoder = TruthEncoder()
    with open_docs(database_url) as store:
        migration = Migration(store, new=encoder, options=OPTIONS)
        migration.start()
        connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'by_cosine_vecferry_new'::regclass"
        )
        failed = [check for check in migration.verify(override="no gate in this test").checks if not check.passed]
        assert [check.seen for check in failed] == ["missing: by_cosine_vecferry_new"]
        migration.start()
        assert migration.verify(override="no gate in this test").passed


def test_an_index_that_is_gone_while_the_new_vectors_serve_is_found(
    connection: psycopg.Connection, database_url: str
) -> None:
    make_docs(connection, ["a", "b"])
    connection.execute("CREATE INDEX by_cosine ON docs USING hnsw (embedding vector_cosine_ops)")
    with open_docs(database_url) as store:
        migration = Migration(store, new=TruthEncoder(), options=OPTIONS)
        migration.start()
        migration.verify(override="no gate in this test")
        migration.cutover()
        assert migration.verify(override="no gate in this test").passed
        connection.execute("DROP INDEX by_cosine")
        failed = [check for check in migration.verify(override="no gate in this test").checks if not check.passed]
    assert [check.seen for check in failed] == ["missing: one like by_cosine_vecferry_old"]


def test_more_numbers_than_an_index_can_hold_are_refused_before_anything_is_made(
    connection: psycopg.Connection, database_url: str
) -> None:
    make_docs(connection, ["a"])
    connection.execute("CREATE INDEX ON docs USING hnsw (embedding vector_cosine_ops)")
    with open_docs(database_url) as store, pytest.raises(StoreSchemaError, match="2001"):
        Migration(store, new=TruthEncoder(dimension=2001), options=OPTIONS).start()
    assert set(columns_of(connection)) == {"id", "body", "embedding"}


# --- locks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["SELECT 1 FROM docs", "UPDATE docs SET id = id WHERE id = 1"])
def test_a_switch_that_cannot_have_the_table_gives_up_and_the_old_vectors_serve(
    statement: str, connection: psycopg.Connection, database_url: str
) -> None:
    make_docs(connection, ["a", "b"])
    encoder = TruthEncoder()
    with open_docs(database_url) as store:
        migration = Migration(store, new=encoder, options=OPTIONS)
        migration.start()
        migration.verify(override="no gate in this test")
        with connection.transaction():
            connection.execute(statement)
            with pytest.raises(Locked) as locked:
                migration.cutover()
            assert f"pid {connection.info.backend_pid}" in locked.value.holder
            assert "the same vectors still serve" in locked.value.what
            connection.execute("UPDATE docs SET body = body WHERE id = 2")  # it is not held up, nor in a deadlock
        assert migration.status().state == State.READY
        assert migration.serving().epoch == 1
        assert columns_of(connection)["embedding"][0] == "vector(8)"
        migration.cutover()
        with connection.transaction():
            connection.execute(statement)
            for verb in (migration.rollback, lambda: migration.finalize(confirmed=True)):
                with pytest.raises(Locked):
                    verb()
        assert columns_of(connection)["embedding"][0] == "vector(16)"


def test_the_password_is_kept_out_of_reasons() -> None:
    database = object.__new__(Database)
    database._password = "s3cret"
    assert "s3cret" not in database._reason(psycopg.OperationalError("connecting with s3cret failed"))
