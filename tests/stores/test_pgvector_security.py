"""A role of the application that may make functions, operators and schemas gains nothing by a migration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder, truth
from vecferry.errors import DependentsInTheWay, Locked, StoreSchemaError
from vecferry.migrate import Migration, MigrationOptions
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.pgvector import ledger as pg_ledger

OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
HIJACKED = (
    """
    CREATE FUNCTION public.gain() RETURNS void LANGUAGE plpgsql AS
        'BEGIN IF current_user <> ''app'' THEN ALTER ROLE app SUPERUSER; END IF; END'
    """,
    """
    CREATE FUNCTION public.convert_to(text, text) RETURNS bytea LANGUAGE plpgsql AS
        'BEGIN PERFORM public.gain(); RETURN pg_catalog.convert_to($1, $2::name); END'
    """,
    """
    CREATE FUNCTION public.same(varchar, varchar) RETURNS boolean LANGUAGE plpgsql AS
        'BEGIN PERFORM public.gain(); RETURN $1::text OPERATOR(pg_catalog.=) $2::text; END'
    """,
    "CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = varchar, PROCEDURE = public.same)",
    """
    CREATE FUNCTION public.after(varchar, varchar) RETURNS boolean LANGUAGE plpgsql AS
        'BEGIN PERFORM public.gain(); RETURN $1::text OPERATOR(pg_catalog.>) $2::text; END'
    """,
    "CREATE OPERATOR public.> (LEFTARG = varchar, RIGHTARG = varchar, PROCEDURE = public.after)",
    """
    CREATE FUNCTION public.upper(varchar) RETURNS text LANGUAGE plpgsql AS
        'BEGIN PERFORM public.gain(); RETURN pg_catalog.upper($1::text); END'
    """,
)


@pytest.fixture
def options(tmp_path: Path) -> MigrationOptions:
    return MigrationOptions(rows_per_range=2, staging=tmp_path, min_free_gb=0)


@pytest.fixture
def table(connection: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """Yield a superuser's connection; the role app may create in `public` and in the database."""
    connection.execute("CREATE TABLE docs (id varchar(20) PRIMARY KEY, body varchar(50), embedding vector(8))")
    for number in range(6):
        vector = truth("old", f"text {number}", 8).tolist()
        connection.execute("INSERT INTO docs VALUES (%s, %s, %s::real[])", [str(number), f"text {number}", vector])
    connection.execute("CREATE ROLE app LOGIN; GRANT CREATE ON SCHEMA public TO app; GRANT ALL ON docs TO app")
    connection.execute(f"GRANT CREATE ON DATABASE {connection.info.dbname} TO app")
    yield connection
    connection.execute("DROP OWNED BY app CASCADE; DROP ROLE app")


def as_app(database_url: str) -> psycopg.Connection:
    return psycopg.connect(psycopg.conninfo.make_conninfo(database_url, user="app"), autocommit=True)


def test_functions_and_operators_that_fit_better_than_the_servers_are_not_called(
    table: psycopg.Connection, database_url: str, options: MigrationOptions
) -> None:
    with as_app(database_url) as application:
        for statement in HIJACKED:
            application.execute(statement)
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        migration = Migration(store, new=NEW, old=OLD, options=options)
        migration.plan()
        migration.start()
        table.execute("UPDATE docs SET body = 'another' WHERE id::text OPERATOR(pg_catalog.=) '3'")
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        assert store.search(NEW.truth("another"), 1, fingerprint=NEW.fingerprint)[0].key == ("3",)
        migration.rollback()
        migration.cutover()
        migration.finalize(confirmed=True)
    assert table.execute(
        "SELECT rolsuper FROM pg_roles WHERE rolname::text OPERATOR(pg_catalog.=) 'app'"
    ).fetchone() == (False,)


CALLED_AT_A_WRITE = {
    "trigger": "CREATE TRIGGER t BEFORE UPDATE ON docs FOR EACH ROW EXECUTE FUNCTION public.at_write()",
    "check": "ALTER TABLE docs ADD CONSTRAINT c CHECK (public.at_write(body))",
    "index": "CREATE INDEX i ON docs (public.at_write(body))",
}


@pytest.mark.parametrize("case", CALLED_AT_A_WRITE)
def test_code_of_another_role_that_runs_at_a_write_stops_the_start_by_name(
    case: str, table: psycopg.Connection, database_url: str, options: MigrationOptions
) -> None:
    returned, argument, value = ("trigger", "", "NEW") if case == "trigger" else ("boolean", "varchar", "true")
    gain = "IF current_user <> ''app'' THEN ALTER ROLE app SUPERUSER; END IF;"
    with as_app(database_url) as application:
        application.execute(
            f"CREATE FUNCTION public.at_write({argument}) RETURNS {returned} LANGUAGE plpgsql IMMUTABLE AS"
            f" 'BEGIN RETURN {value}; END'"
        )
    table.execute(CALLED_AT_A_WRITE[case])
    with as_app(database_url) as application:
        body = f"BEGIN {gain} RETURN {value}; END"
        application.execute(
            f"CREATE OR REPLACE FUNCTION public.at_write({argument}) RETURNS {returned} LANGUAGE plpgsql IMMUTABLE AS"
            f" '{body}'"
        )
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        migration = Migration(store, new=NEW, old=OLD, options=options)
        with pytest.raises(DependentsInTheWay, match=r"at_write\(.* its owner app"):
            migration.start()
        assert not store.ledger.is_installed()
    assert table.execute("SELECT rolsuper FROM pg_roles WHERE rolname = 'app'").fetchone() == (False,)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_schema_that_another_role_has_made_is_refused_by_name(
    table: psycopg.Connection, database_url: str, options: MigrationOptions, when: str
) -> None:
    statements = pg_ledger.INSTALL if when == "after" else ("CREATE SCHEMA vecferry",)
    with as_app(database_url) as application, application.transaction():
        for statement in statements:
            application.execute(statement)
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        migration = Migration(store, new=NEW, old=OLD, options=options)
        with pytest.raises(StoreSchemaError, match=r"vecferry.* belongs to the role app"):
            migration.start()


TRIGGER = "a trigger"


@pytest.mark.parametrize("statement", ["ALTER TABLE vecferry.changes OWNER TO app", TRIGGER])
def test_a_part_of_the_ledger_that_another_role_has_is_refused_by_every_verb(
    table: psycopg.Connection, database_url: str, options: MigrationOptions, statement: str
) -> None:
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        migration = Migration(store, new=NEW, old=OLD, options=options)
        migration.start()
        if statement == TRIGGER:
            with as_app(database_url) as application:
                application.execute(
                    "CREATE FUNCTION public.act() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
                )
            table.execute("CREATE TRIGGER acting AFTER INSERT ON vecferry.leases EXECUTE FUNCTION public.act()")
        else:
            table.execute(statement)
        for verb in (migration.start, lambda: migration.verify(override="no gate in this test"), migration.abort):
            with pytest.raises(StoreSchemaError, match="belongs to the role app"):
                verb()


def test_whoever_holds_the_lock_of_the_installation_is_waited_for_with_an_end(
    table: psycopg.Connection, database_url: str, options: MigrationOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pg_ledger, "INSTALL_WAIT_S", 0.2)
    with as_app(database_url) as application:
        application.execute("SELECT pg_advisory_lock(7521364290180)")
        with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
            migration = Migration(store, new=NEW, old=OLD, options=options)
            with pytest.raises(Locked, match="installation"):
                migration.start()
            application.execute("SELECT pg_advisory_unlock(7521364290180)")
            assert migration.start().rows_done == 6


def test_a_table_is_found_by_the_roles_search_path(connection: psycopg.Connection, database_url: str) -> None:
    connection.execute(
        "CREATE SCHEMA shop; CREATE TABLE shop.docs (id int PRIMARY KEY, body text, embedding vector(8))"
    )
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, embedding vector(8))")
    url = psycopg.conninfo.make_conninfo(database_url, options="-c search_path=nowhere,shop,public")
    for name, target in (("docs", "shop.docs.embedding"), ("public.docs", "public.docs.embedding")):
        with PgVectorStore.connect(url, name, "body", "embedding") as store:
            assert store.target == target


def test_an_expression_means_what_it_meant_when_the_store_was_opened(
    table: psycopg.Connection, database_url: str
) -> None:
    table.execute(
        "CREATE SCHEMA shop; CREATE FUNCTION shop.cut(text) RETURNS text LANGUAGE sql AS $$SELECT left($1, 3)$$"
    )
    url = psycopg.conninfo.make_conninfo(database_url, options="-c search_path=public,shop")
    with PgVectorStore.connect(url, "docs", "cut(body::text) || ' !'", "embedding") as store:
        with as_app(database_url) as application:
            application.execute("CREATE FUNCTION public.cut(text) RETURNS text LANGUAGE sql AS $$SELECT 'hijacked'$$")
        assert store.rows([("3",)])[0].text == "tex !"


def test_keys_whose_type_has_operators_of_its_own_are_paged_in_its_order(
    connection: psycopg.Connection, database_url: str, options: MigrationOptions
) -> None:
    connection.execute("CREATE SCHEMA shop; CREATE EXTENSION citext SCHEMA shop")
    connection.execute(
        "CREATE TABLE docs (id shop.citext, part integer, body text, embedding vector(8), PRIMARY KEY (id, part))"
    )
    names = ["B", "a", "C", "d", "é", "Z"]
    for place, name in enumerate(names):
        for part in range(2):
            text = f"text {place} {part}"
            vector = truth("old", text, 8).tolist()
            connection.execute("INSERT INTO docs VALUES (%s, %s, %s, %s::real[])", [name, part, text, vector])
    with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
        migration = Migration(store, new=NEW, old=OLD, options=options)
        assert migration.start().rows_done == 12
        connection.execute("UPDATE docs SET body = 'another' WHERE id::text = 'd'")
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        assert store.search(NEW.truth("another"), 2, fingerprint=NEW.fingerprint)[1].key == ("d", "1")
