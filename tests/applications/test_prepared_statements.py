"""What becomes of a statement that an application's driver keeps prepared, when the columns change under it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import FeatureNotSupported

from tests.migrate.doubles import TruthEncoder
from vecferry.migrate import Migration, MigrationOptions
from vecferry.stores.pgvector import PgVectorStore

OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
TRIES = 3


@pytest.mark.parametrize(
    ("autocommit", "num_refused"), [(False, 1), (True, TRIES)], ids=["in-transactions", "autocommit"]
)
def test_a_prepared_statement_is_refused_once_in_transactions_and_until_reconnection_with_autocommit(
    connection: psycopg.Connection, database_url: str, tmp_path: Path, *, autocommit: bool, num_refused: int
) -> None:
    """`*` after `start`, the vector column after a switch, `*` after `finalize`; no other statement is refused."""
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, embedding vector(8))")
    connection.execute("INSERT INTO docs VALUES (1, 'text', %s::real[])", [OLD.truth("text").tolist()])

    def refusals(query: str) -> int:
        """Return how many tries of a query are refused."""
        count = 0
        for _ in range(TRIES):
            try:
                application.execute(query)
                application.commit()
            except FeatureNotSupported:  # cached plan must not change result type
                application.rollback()
                count += 1
        return count

    def prepare(*queries: str) -> psycopg.Connection:
        """Return a connection of the application on which these are prepared."""
        opened = psycopg.connect(database_url, autocommit=autocommit)
        for query in queries:
            opened.execute(query, prepare=True)
            opened.commit()
        return opened

    options = MigrationOptions(staging=tmp_path, min_free_gb=0)
    everything, text, vector = (f"SELECT {columns} FROM docs" for columns in ("*", "id, body", "embedding"))
    with closing(PgVectorStore.connect(database_url, "docs", "body", "embedding")) as store:
        migration = Migration(store, new=NEW, old=OLD, options=options)
        with prepare(everything, text, vector) as application:
            migration.start()
            assert (refusals(text), refusals(vector), refusals(everything)) == (0, 0, num_refused)
        migration.verify(override="no gate in this test")
        with prepare(everything, text, vector) as application:
            migration.cutover()
            assert (refusals(text), refusals(vector)) == (0, num_refused)
        with prepare(everything, text, vector) as application:
            migration.finalize(confirmed=True)
            assert (refusals(text), refusals(vector), refusals(everything)) == (0, 0, num_refused)
