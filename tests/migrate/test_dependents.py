"""What stands on the vector column and cannot change places with it is named by plan, and stops start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder, truth
from vecferry.errors import DependentsInTheWay, StoreSchemaError
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.stores.pgvector import PgVectorStore

OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
DEPENDENTS = {
    "constraint": ("has_vector", "ALTER TABLE docs ADD CONSTRAINT has_vector CHECK (embedding IS NOT NULL)"),
    "policy": ("embedded", "CREATE POLICY embedded ON docs USING (embedding IS NOT NULL)"),
    "rule": (
        "noted",
        "CREATE RULE noted AS ON UPDATE TO docs WHERE NEW.embedding IS NULL DO ALSO INSERT INTO notes VALUES (OLD.id)",
    ),
    "generated column": (
        "is_embedded",
        "ALTER TABLE docs ADD COLUMN is_embedded boolean GENERATED ALWAYS AS (embedding IS NOT NULL) STORED",
    ),
    "trigger": (
        "on_vectors",
        "CREATE TRIGGER on_vectors BEFORE UPDATE OF embedding ON docs FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    ),
    "function": (
        "nearest()",
        "CREATE FUNCTION nearest() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(embedding) FROM docs; END",
    ),
    "default": ("embedding", "ALTER TABLE docs ALTER COLUMN embedding SET DEFAULT '[1,0,0,0,0,0,0,0]'"),
    "publication": ("vectors", "CREATE PUBLICATION vectors FOR TABLE docs (id, embedding)"),
}


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


@pytest.fixture
def options(tmp_path: Path) -> MigrationOptions:
    return MigrationOptions(staging=tmp_path, min_free_gb=0)


@pytest.mark.parametrize("kind", DEPENDENTS)
def test_a_dependent_is_named_by_plan_and_stops_start(
    store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions, kind: str
) -> None:
    name, statement = DEPENDENTS[kind]
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


def test_what_is_accepted_by_name_lets_a_migration_begin(
    store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions
) -> None:
    table.execute(DEPENDENTS["trigger"][1])
    accepting = replace(options, accept_dependents=("on_vectors",))
    assert Migration(store, new=NEW, old=OLD, options=accepting).start().state is State.CATCHING_UP


def test_a_view_is_no_obstacle_before_finalize_which_names_it(
    store: PgVectorStore, table: psycopg.Connection, options: MigrationOptions
) -> None:
    table.execute("CREATE VIEW shown AS SELECT id, embedding FROM docs")
    migration = Migration(store, new=NEW, old=OLD, options=options)
    assert migration.plan().table.dependents == ()
    migration.start()
    migration.verify(override="no gate in this test")
    migration.cutover()
    with pytest.raises(StoreSchemaError, match="view shown depends on column"):
        migration.finalize(confirmed=True)
    table.execute("DROP VIEW shown")
    assert migration.finalize(confirmed=True).state is State.FINALIZED


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
