"""LangChain's `PGVector` keeps all collections in one table; one of two is migrated, and the other goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.applications.langchain import LangChainStore, langchain_model
from tests.applications.sites import UrlSite
from tests.migrate.doubles import TruthEncoder
from vecferry.migrate import Migration, MigrationOptions
from vecferry.stores.opening import PostgresOptions, open_store

pytestmark = pytest.mark.slow
OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
OTHERS = """
SELECT e.ctid::text, e.xmin::text, vector_send(embedding), e::text FROM langchain_pg_embedding e
JOIN langchain_pg_collection c ON c.uuid = e.collection_id WHERE c.name = 'kept' ORDER BY id
"""


class OneCollection(LangChainStore):
    """A collection of the table, with one model."""

    def __init__(self, site: UrlSite, encoder: TruthEncoder, name: str) -> None:
        vectorstore = pytest.importorskip("langchain_postgres").PGVector
        connection = site.sqlalchemy_url("psycopg")
        self._store = vectorstore(langchain_model(encoder), connection=connection, collection_name=name)
        self._name = name
        self.texts: dict[str, str] = {}

    def write(self, number: int) -> None:
        """Add a document, and replace the one before."""
        for key, text in ((number, f"{self._name} text {number}"), (number - 1, f"{self._name} another {number}")):
            self.add(f"{self._name} {key}", text)
            self.texts[f"{self._name} {key}"] = text

    def check(self) -> None:
        """Assert that each text is read by its key, and found by itself."""
        assert {key: self.read(key) for key in self.texts} == self.texts
        assert [self.first(text) for text in self.texts.values()] == list(self.texts.values())

    def close(self) -> None:
        self._store._engine.dispose()


def test_one_collection_of_two_moves_and_the_other_reads_and_writes_on(
    postgres: UrlSite, connection: psycopg.Connection, tmp_path: Path
) -> None:
    kept, moved, moved_anew = (
        OneCollection(postgres, encoder, name) for encoder, name in ((OLD, "kept"), (OLD, "moved"), (NEW, "moved"))
    )
    moved_anew.texts = moved.texts
    for number in range(1, 13):
        kept.write(number)
        moved.write(number)
    (collection,) = connection.execute("SELECT uuid FROM langchain_pg_collection WHERE name = 'moved'").fetchone() or ()
    where = PostgresOptions(where=f"collection_id = '{collection}'")
    with closing(open_store(postgres.url, "langchain_pg_embedding", text="langchain", options=where)) as store:
        migration = Migration(store, new=NEW, old=OLD, options=MigrationOptions(staging=tmp_path, min_free_gb=0))
        plan = migration.plan()
        assert plan.provenance.is_confirmed
        assert plan.table.rows == len(moved.texts)
        steps: tuple[tuple[Callable[[], object], OneCollection], ...] = (
            (migration.start, moved),
            (lambda: migration.verify(override="no gate in this test"), moved),
            (migration.cutover, moved_anew),
            (migration.rollback, moved),
            (migration.cutover, moved_anew),
            (lambda: migration.finalize(confirmed=True), moved_anew),
        )
        for number, (step, application) in enumerate(steps, start=20):
            before = connection.execute(OTHERS).fetchall()
            step()
            assert connection.execute(OTHERS).fetchall() == before
            for each in (kept, application):
                each.check()
                each.write(2 * number)
            if number < 25:
                migration.start()
                for each in (kept, application):
                    each.check()
    lengths = "SELECT DISTINCT name, vector_dims(embedding) FROM langchain_pg_embedding JOIN langchain_pg_collection c"
    assert set(connection.execute(f"{lengths} ON c.uuid = collection_id")) == {("kept", 8), ("moved", 16)}
    for each in (kept, moved, moved_anew):
        each.close()
