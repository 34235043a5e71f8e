"""What stands on the vector column and cannot change places with it is named by plan, and stops start."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder, truth
from tests.stores.collections import LAYOUTS, SIDE_TABLE
from vecferry.errors import DependentsInTheWay, StoreSchemaError
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.stores.pgvector import PgVectorStore

OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
CARRIED = {
    "constraint": ("has_vector", "ALTER TABLE docs ADD CONSTRAINT has_vector CHECK (embedding IS NOT NULL)"),
    "policy": ("embedded", "CREATE POLICY embedded ON docs USING (embedding IS NOT NULL) WITH CHECK (id > 0)"),
    "trigger": (
        "on_vectors",
        "CREATE TRIGGER on_vectors BEFORE UPDATE OF embedding ON docs FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger();"
        "ALTER TABLE docs DISABLE TRIGGER on_vectors; COMMENT ON TRIGGER on_vectors ON docs IS 'of the application'",
    ),
    "function": (
        "public.nearest()",
        "CREATE FUNCTION nearest() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(embedding) FROM docs; END",
    ),
}
LEFT = {
    "generated column": (
        "is_embedded",
        "ALTER TABLE docs ADD COLUMN is_embedded boolean GENERATED ALWAYS AS (embedding IS NOT NULL) STORED",
    ),
    "default": ("embedding", "ALTER TABLE docs ALTER COLUMN embedding SET DEFAULT '[1,0,0,0,0,0,0,0]'"),
    "publication": ("vectors", "CREATE PUBLICATION vectors FOR TABLE docs (id, embedding)"),
    "publication of all columns": ("whole", "CREATE PUBLICATION whole FOR TABLE docs"),
}


IN_THE_WAY = {
    "generated column": "ALTER TABLE docs DROP COLUMN is_embedded",
    "publication": "ALTER PUBLICATION vectors SET TABLE docs (id, embedding)",
}
"""What lets go of the old vectors, where finalize cannot drop them with what stands there."""


@pytest.fixture
def table(connection: psycopg.Connection) -> psycopg.Connection:
    connection.execute("CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector(8))")
    connection.execute("CREATE TABLE notes (id integer)")
    for number in range(6):
        vector = truth("old", f"text {number}", 8).tolist()
        connection.execute("INSERT INTO docs VALUES (%s, %s, %s::real[])", [number, f"text {number}", vector])
    return connection


@pytest.fixture
def store(table: psycopg.Connection, database_url: str) -> Iterator[PgVectorStore]:  # the table is there
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        yield store


@pytest.fixture(params=["pgvector", SIDE_TABLE])
def each_store(request: pytest.FixtureRequest, table: psycopg.Connection, database_url: str) -> Iterator[PgVectorStore]:
    """Yield a store in each layout in turn."""
    layout = LAYOUTS[request.param]
    with PgVectorStore.connect(database_url, "docs", "body", "embedding", layout=layout) as store:
        yield store


@pytest.fixture
def options(tmp_path: Path) -> MigrationOptions:
    return MigrationOptions(staging=tmp_path, min_free_gb=0)


@pytest.mark.parametrize("kind", LEFT)
def test_a_dependent_is_named_by_plan_and_stops_start(
    store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions, kind: str
) -> None:
    name, statement = LEFT[kind]
    table.execute(statement)
    migration = Migration(store, new=NEW, old=OLD, options=options)
    plan = migration.plan()
    assert [(dependent.kind, dependent.name) for dependent in plan.table.dependents] == [(kind, name)]
    assert any(f"{kind} {name}" in warning for warning in plan.warnings)
    with pytest.raises(DependentsInTheWay) as refused:
        migration.start()
    assert f"{kind} {name}" in refused.value.message
    assert "--accept-dependent" in refused.value.hint
    columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'docs'::regclass AND attname LIKE '%vecferry%'"
    assert table.execute(columns).fetchone() == (0,)


def switched(migration: Migration) -> None:
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()


@pytest.mark.parametrize("kind", CARRIED)
def test_a_dependent_goes_with_the_name_of_the_column(
    each_store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions, kind: str
) -> None:
    name, statement = CARRIED[kind]
    table.execute(statement)
    migration = Migration(each_store, new=NEW, old=OLD, options=options)
    before = each_store.describe().dependents
    assert [(each.kind, each.name, each.is_carried) for each in before] == [(kind, name, True)]
    assert any(f"{kind} {name} goes with" in warning for warning in migration.plan().warnings)
    switched(migration)
    for step in (migration.rollback, migration.cutover, lambda: migration.finalize(confirmed=True)):
        assert each_store.describe().dependents == before
        step()
    assert each_store.describe().dependents == before


def test_vectors_that_were_required_are_required_after_finalize(
    each_store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions
) -> None:
    table.execute("ALTER TABLE docs ALTER embedding SET NOT NULL")
    migration = Migration(each_store, new=NEW, old=OLD, options=options)
    switched(migration)
    assert not each_store.describe().vector_not_null
    migration.finalize(confirmed=True)
    assert each_store.describe().vector_not_null


def test_finalize_in_place_leaves_the_table_in_the_shape_that_it_had(
    each_store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions
) -> None:
    table.execute("ALTER TABLE docs ADD COLUMN after text, ALTER embedding SET NOT NULL")
    table.execute("COMMENT ON COLUMN docs.embedding IS 'of the body'")
    table.execute("CREATE INDEX by_cosine ON docs USING hnsw (embedding vector_cosine_ops)")
    table.execute("CREATE INDEX by_half ON docs USING hnsw ((embedding::halfvec(8)) halfvec_l2_ops)")
    for _, statement in CARRIED.values():
        table.execute(statement)
    migration = Migration(each_store, new=NEW, old=OLD, options=options)
    before, shape = each_store.describe(), "SELECT indexdef FROM pg_indexes WHERE tablename = 'docs' ORDER BY 1"
    indexes = [definition.replace("(8)", "(16)") for (definition,) in table.execute(shape)]
    switched(migration)
    migration.finalize(confirmed=True, in_place=True)
    vector = NEW.truth("text 7").tolist()
    table.execute("INSERT INTO docs VALUES (7, 'text 7', %s::real[]::vector, 'last')", [vector])
    with table.cursor().copy("COPY docs FROM STDIN") as copy:
        copy.write_row((8, "text 8", str(NEW.truth("text 8").tolist()), "last"))
    rows = table.execute("SELECT * FROM docs ORDER BY id").fetchall()
    assert [row[0] for row in rows] == [0, 1, 2, 3, 4, 5, 7, 8]
    for _, body, stored, _ in rows:
        assert json.loads(stored) == pytest.approx(NEW.truth(body).tolist())
    after = each_store.describe()
    assert (after.dependents, after.vector_not_null, after.fingerprint) == (before.dependents, True, NEW.fingerprint)
    assert [definition for (definition,) in table.execute(shape)] == indexes
    again = Migration(each_store, new=TruthEncoder("newest", 12), old=NEW, options=options)
    switched(again)
    again.finalize(confirmed=True, in_place=True)
    assert len(table.execute("SELECT * FROM docs").description or ()) == 4


def test_a_constraint_binds_the_vectors_that_serve_alone(
    each_store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions
) -> None:
    table.execute(CARRIED["constraint"][1])
    migration = Migration(each_store, new=NEW, old=OLD, options=options)
    switched(migration)
    vector = NEW.truth("text 7").tolist()
    table.execute("INSERT INTO docs (id, body, embedding) VALUES (7, 'text 7', %s::real[])", [vector])
    with pytest.raises(psycopg.errors.CheckViolation):
        table.execute("INSERT INTO docs (id, body) VALUES (8, 'text 8')")
    migration.start()
    migration.rollback()
    is_valid = table.execute("SELECT convalidated FROM pg_constraint WHERE conname = 'has_vector'").fetchone()
    assert is_valid == (True,)
    with pytest.raises(psycopg.errors.CheckViolation):
        table.execute("UPDATE docs SET embedding = NULL WHERE id = 7")


def test_a_trigger_keeps_its_state_and_comment(
    each_store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions
) -> None:
    table.execute(CARRIED["trigger"][1])
    query = "SELECT tgenabled::text, obj_description(oid, 'pg_trigger') FROM pg_trigger WHERE tgname = 'on_vectors'"
    assert table.execute(query).fetchone() == ("D", "of the application")
    switched(Migration(each_store, new=NEW, old=OLD, options=options))
    assert table.execute(query).fetchone() == ("D", "of the application")


def test_rights_storage_statistics_and_comment_go_with_the_name(
    each_store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions
) -> None:
    table.execute("CREATE ROLE reader")
    table.execute("GRANT SELECT (id, embedding), UPDATE (embedding) ON docs TO reader WITH GRANT OPTION")
    table.execute("GRANT REFERENCES (embedding) ON docs TO PUBLIC")
    table.execute("ALTER TABLE docs ALTER embedding SET STORAGE PLAIN, ALTER embedding SET STATISTICS 7")
    table.execute("ALTER TABLE docs ALTER embedding SET (n_distinct = -0.5)")
    table.execute("COMMENT ON COLUMN docs.embedding IS 'of\nthe application'")
    table.execute("CREATE INDEX by_cosine ON docs USING hnsw (embedding vector_cosine_ops)")
    table.execute("CREATE INDEX embedded ON docs (id) WHERE embedding IS NOT NULL")
    table.execute("COMMENT ON INDEX by_cosine IS 'for the search'")
    migration = Migration(each_store, new=NEW, old=OLD, options=options)
    query = (
        "SELECT ARRAY(SELECT unnest(attacl)::text ORDER BY 1), attstattarget, attoptions::text,"
        " col_description(attrelid, attnum) FROM pg_attribute"
        " WHERE attrelid = 'docs'::regclass AND attname = 'embedding'"
    )
    before = table.execute(query).fetchone()
    comments = "SELECT obj_description('by_cosine'::regclass), obj_description('embedded'::regclass)"
    assert before is not None
    try:
        switched(migration)
        assert table.execute(comments).fetchone() == ("for the search", None)
        table.execute("COMMENT ON INDEX by_cosine IS NULL; COMMENT ON INDEX embedded IS 'of those with vectors'")
        *facts, comment = table.execute(query).fetchone() or ()
        assert (*facts, comment) == (*before[:3], f"of\nthe application\nvecferry:space:{NEW.fingerprint}")
        table.execute("SET ROLE reader; SELECT id, embedding FROM docs")
        table.execute("RESET ROLE; REVOKE SELECT (embedding) ON docs FROM reader")
        migration.rollback()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            table.execute("SET ROLE reader; SELECT embedding FROM docs")
        table.execute("RESET ROLE; GRANT SELECT (embedding) ON docs TO reader WITH GRANT OPTION")
        assert table.execute(query).fetchone() == before
        assert table.execute(comments).fetchone() == (None, "of those with vectors")
        migration.cutover()
        migration.finalize(confirmed=True)
        assert table.execute(comments).fetchone() == (None, "of those with vectors")
        assert (table.execute(query).fetchone() or ())[:3] == before[:3]
        assert each_store.describe().fingerprint == NEW.fingerprint
    finally:
        table.execute("RESET ROLE; DROP OWNED BY reader; DROP ROLE reader")


def test_a_constraint_that_takes_no_new_vector_is_refused_by_plan_and_start(
    each_store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions
) -> None:
    table.execute("ALTER TABLE docs ADD CONSTRAINT eight CHECK (vector_dims(embedding) = 8 AND body <> 'x')")
    migration = Migration(each_store, new=NEW, old=OLD, options=options)
    assert "the constraint eight of public.docs takes no vectors of 16" in migration.plan().problems[0].message
    with pytest.raises(StoreSchemaError, match="the constraint eight"):
        migration.start()
    table.execute("ALTER TABLE docs DROP CONSTRAINT eight")
    table.execute("ALTER TABLE docs ADD CONSTRAINT either CHECK (vector_dims(embedding) IN (8, 16))")
    assert migration.start().state is State.CATCHING_UP


def test_a_role_that_may_not_migrate_is_told_so_by_plan(
    table: psycopg.Connection, database_url: str, options: MigrationOptions
) -> None:
    table.execute("CREATE ROLE helper LOGIN; GRANT SELECT ON docs TO helper")
    url = psycopg.conninfo.make_conninfo(database_url, user="helper")
    try:
        with PgVectorStore.connect(url, "docs", "body", "embedding") as store:
            migration = Migration(store, new=NEW, old=OLD, options=options)
            assert "the role helper does not own the table public.docs" in migration.plan().problems[0].message
            with pytest.raises(StoreSchemaError, match="does not own"):
                migration.start()
            table.execute("ALTER TABLE docs OWNER TO helper")
            with pytest.raises(StoreSchemaError, match="schema vecferry") as refused:
                migration.start()
            table.execute(refused.value.hint)
            assert migration.start().state is State.CATCHING_UP
    finally:
        table.execute("DROP OWNED BY helper; DROP ROLE helper")


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_accepted_by_name_stays_with_the_old_vectors_and_is_in_the_way_of_finalize_by_name(
    store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions, kind: str
) -> None:
    name, statement = LEFT[kind]
    table.execute(statement)
    accepting = replace(options, accept_dependents=(name,))
    migration = Migration(store, new=NEW, old=OLD, options=accepting)
    before = store.describe().dependents
    switched(migration)
    assert store.describe().dependents == (before if "all columns" in kind else ())
    migration.rollback()
    assert store.describe().dependents == before
    migration.cutover()
    if kind in IN_THE_WAY:
        with pytest.raises(StoreSchemaError, match=name) as refused:
            migration.finalize(confirmed=True)
        assert "Drop what depends on it" in refused.value.hint
        table.execute(IN_THE_WAY[kind])
    assert migration.finalize(confirmed=True).state is State.FINALIZED


def test_views_are_made_anew_with_all_that_belongs_to_them(
    each_store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions
) -> None:
    table.execute("CREATE ROLE reader")
    table.execute("CREATE VIEW shown WITH (security_invoker = true) AS SELECT * FROM docs WHERE embedding IS NOT NULL")
    table.execute('CREATE VIEW "first of them" AS SELECT id AS number, embedding AS vector FROM shown WHERE id < 3')
    table.execute("CREATE VIEW unrelated AS SELECT id, body FROM docs")
    table.execute("COMMENT ON VIEW shown IS 'all'; COMMENT ON COLUMN shown.body IS 'text'")
    table.execute(
        'GRANT SELECT ON shown TO reader WITH GRANT OPTION; GRANT SELECT (number) ON "first of them" TO reader'
    )
    facts = (
        "SELECT c.relname, pg_get_viewdef(c.oid), c.reloptions, c.relacl::text, obj_description(c.oid),"
        " (SELECT string_agg(concat_ws(' ', a.attname, a.attacl::text, col_description(c.oid, a.attnum)), ',')"
        " FROM pg_attribute a WHERE a.attrelid = c.oid) FROM pg_class c WHERE c.relkind = 'v'"
        " AND c.relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    before = table.execute(facts).fetchall()
    assert len(before) == 3
    migration = Migration(each_store, new=NEW, old=OLD, options=options)
    try:
        assert [each.name for each in migration.plan().table.dependents] == ['public."first of them"', "public.shown"]
        switched(migration)
        serving = [NEW, OLD, NEW]
        for step in (migration.rollback, migration.cutover, lambda: migration.finalize(confirmed=True)):
            assert table.execute(facts).fetchall() == before
            shown = table.execute('SELECT vector::real[] FROM "first of them" WHERE number = 2').fetchone()
            assert shown == (pytest.approx(serving.pop(0).truth("text 2").tolist()),)
            step()
        assert table.execute(facts).fetchall() == before
    finally:
        table.execute("DROP OWNED BY reader; DROP ROLE reader")


def test_readers_of_a_view_pass_a_switch_unharmed(
    each_store: PgVectorStore, table: psycopg.Connection, database_url: str, options: MigrationOptions
) -> None:
    """One has read the table and then reads the view, another the view alone; none of them meets a deadlock."""
    table.execute("CREATE VIEW shown AS SELECT id, embedding FROM docs")
    migration = Migration(each_store, new=NEW, old=OLD, options=options)
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    stopped, failures, reads = threading.Event(), [], [0, 0]

    def read(place: int, queries: tuple[str, ...]) -> None:
        with psycopg.connect(database_url, prepare_threshold=None) as connection:
            while not stopped.is_set():
                try:
                    for query in queries:
                        connection.execute(query)
                    connection.commit()
                    reads[place] += 1
                except psycopg.Error as exc:
                    failures.append(exc)
                    connection.rollback()
                time.sleep(place * 0.1)

    view, both = ("SELECT * FROM shown",), ("SELECT id FROM docs", "SELECT pg_sleep(0.02)", "SELECT * FROM shown")
    threads = [threading.Thread(target=read, args=(place, each)) for place, each in enumerate((view, both))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            migration.cutover()
            migration.rollback()
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert min(reads) > 0


def test_a_view_that_cannot_be_made_anew_is_no_obstacle_before_finalize_which_names_it(
    store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions
) -> None:
    table.execute("CREATE VIEW shown AS SELECT id, embedding FROM docs")
    table.execute("CREATE MATERIALIZED VIEW kept AS SELECT id FROM shown")
    migration = Migration(store, new=NEW, old=OLD, options=options)
    table_info = migration.plan().table
    assert (table_info.dependents, table_info.views) == ((), ("public.shown", "public.kept"))
    migration.start()
    migration.verify(override="no gate in this test")
    migration.cutover()
    with pytest.raises(StoreSchemaError, match=r"view public\.shown depends on column"):
        migration.finalize(confirmed=True)
    table.execute("DROP VIEW shown CASCADE")
    assert migration.finalize(confirmed=True).state is State.FINALIZED


def test_a_function_that_casts_to_the_old_length_is_named_by_plan(
    store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions
) -> None:
    body = "SELECT id FROM docs ORDER BY embedding <=> given::vector( 8 ) LIMIT 1"
    table.execute(f"CREATE FUNCTION nearest(given text) RETURNS integer LANGUAGE sql AS '{body}'")
    table.execute("CREATE FUNCTION other(given vector(8)) RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM docs'")
    warnings = Migration(store, new=NEW, old=OLD, options=options).plan().warnings
    assert warnings == ("function public.nearest(text) casts vectors to 8 numbers; change it with the switch",)


def test_timeouts_of_the_role_do_not_end_a_run(
    table: psycopg.Connection, database_url: str, options: MigrationOptions
) -> None:
    table.execute("ALTER ROLE CURRENT_USER SET statement_timeout = '1ms'")
    table.execute("ALTER ROLE CURRENT_USER SET lock_timeout = '1ms'")
    try:
        with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
            assert Migration(store, new=NEW, old=OLD, options=options).start().rows_done == 6
    finally:
        table.execute("ALTER ROLE CURRENT_USER RESET ALL")
