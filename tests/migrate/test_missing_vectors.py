"""Rows without a vector on purpose, as drafts and what was deleted softly: they are left without one on both sides."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from tests.stores import backends
from tests.stores.collections import OLD_DIMENSION, old_vector
from vecferry.embeddings import Float32, TextVectors
from vecferry.errors import CutoverRefused, MigrationConflict, StoreSchemaError
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.migrate.router import Document, Router
from vecferry.stores.backend import Backend, Point
from vecferry.stores.mirror import MirrorStore
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.protocol import Store
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Patience

OLD, NEW = TruthEncoder("old", OLD_DIMENSION), TruthEncoder()
OPTIONS = MigrationOptions(
    accept_unconfirmed="a test",
    rows_per_range=2,
    old_fingerprint=OLD.fingerprint,
    staging=Path("staging"),
    patience=Patience(1.0, 5.0),
    reconnect_s=0.0,
)


class Rows(Protocol):
    """A collection as its application sees it."""

    def open(self, *, embed_missing: bool = False) -> Store: ...
    def write(self, key: int, text: str | None, vector: Float32 | None) -> None:
        """Insert or replace a row of the side that serves, past the store."""

    def vectors(self, column: str = "embedding") -> dict[str, Float32 | None]:
        """Return by key the vectors that serve."""


class PgRows:
    def __init__(self, connection: psycopg.Connection, url: str) -> None:
        self.connection, self._url = connection, url
        connection.execute(f"CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector({OLD_DIMENSION}))")

    def open(self, *, embed_missing: bool = False) -> PgVectorStore:
        return PgVectorStore.connect(self._url, "docs", "body", "embedding", embed_missing=embed_missing)

    def write(self, key: int, text: str | None, vector: Float32 | None) -> None:
        self.connection.execute(
            "INSERT INTO docs (id, body, embedding) VALUES (%s, %s, %s::real[]::vector)"
            " ON CONFLICT (id) DO UPDATE SET body = excluded.body, embedding = excluded.embedding",
            [key, text, None if vector is None else vector.tolist()],
        )

    def vectors(self, column: str = "embedding") -> dict[str, Float32 | None]:
        rows = self.connection.execute(f"SELECT id::text, {column}::real[] FROM docs").fetchall()
        return {key: None if vector is None else np.asarray(vector, np.float32) for key, vector in rows}


class MirrorRows:
    def __init__(self, backend: Backend, folder: Path) -> None:
        self._backend, self._control = backend, folder / "control.db"

    def open(self, *, embed_missing: bool = False) -> MirrorStore:
        ledger = SqliteLedger.open(self._control)
        self._store = MirrorStore(self._backend.another(), backends.COLLECTION, ledger, embed_missing=embed_missing)
        return self._store

    def write(self, key: int, text: str | None, vector: Float32 | None) -> None:
        vectors = None if vector is None else TextVectors(vector)
        self._backend.put(self._serving, [Point(str(key), text, vectors, {"lang": "en", "year": key})])

    @property
    def _serving(self) -> str:
        return self._store._sides.now().serving

    def vectors(self, column: str = "embedding") -> dict[str, Float32 | None]:
        points = self._backend.get(self._serving, list(self._backend.ids(self._serving)), vectors=True)
        return {point.id: None if point.vectors is None else point.vectors.dense for point in points}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def table(connection: psycopg.Connection, database_url: str) -> PgRows:
    return PgRows(connection, database_url)


@pytest.fixture(params=["pgvector", "memory", "lancedb"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rows]:
    if request.param == "pgvector":
        yield request.getfixturevalue("table")
    else:
        with backends.opened(request.param, tmp_path / "store") as backend:
            yield MirrorRows(backend, tmp_path)


def fill(rows: Rows, *texts: str, bare: tuple[int, ...] = (2, 4)) -> None:
    """Write rows 1, 2, ...; `bare` without a vector."""
    for key, text in enumerate(texts, start=1):
        rows.write(key, text, None if key in bare else old_vector(text))


def migration(store: Store, *, old: TruthEncoder | None = OLD) -> Migration:
    return Migration(store, new=NEW, old=old, options=OPTIONS)


def ready(store: Store) -> Migration:
    begun = migration(store)
    begun.start()
    assert begun.verify(override="no gate in this test").passed
    return begun


def assert_vectors(rows: Rows, encoder: TruthEncoder, texts: dict[str, str | None], column: str = "embedding") -> None:
    """Assert that each row has the vector of that text, or none."""
    stored = rows.vectors(column)
    assert stored.keys() == texts.keys()
    for key, text in texts.items():
        vector = stored[key]
        if text is None:
            assert vector is None, key
        else:
            assert vector is not None, key
            np.testing.assert_allclose(vector, encoder.truth(text), atol=1e-6)


def test_rows_without_a_vector_are_counted_and_left_without_one(rows: Rows) -> None:
    with closing(rows.open()) as store:
        fill(rows, *"abcde")
        plan = migration(store).plan()
        assert plan.table.rows_without_vector == plan.table.texts_without_vector == 2
        (warning,) = [each for each in plan.warnings if "no vector" in each]
        assert warning.startswith("2 rows have no vector and are left without one")
        assert "--embed-missing" in warning
        begun = ready(store)
        status = begun.status()
        assert (status.rows, status.rows_done, status.unembedded, status.dead_letters) == (5, 3, 2, 0)
        (check,) = [each for each in begun.verify(override="no gate").checks if each.name == "every row has a vector"]
        assert check.seen == "3 of 5 rows, 2 without one on purpose, 0 dead letters"
        begun.cutover()
        expected = {"1": "a", "2": None, "3": "c", "4": None, "5": "e"}
        assert_vectors(rows, NEW, expected)
        begun.start()
        assert begun.verify(override="no gate in this test").passed
        begun.finalize(confirmed=True)
        assert_vectors(rows, NEW, expected)


def test_a_row_that_gets_its_vector_later_is_followed_and_one_that_loses_it_loses_it_on_the_other_side(
    rows: Rows,
) -> None:
    with closing(rows.open()) as store:
        fill(rows, *"abcde")
        begun = migration(store)
        begun.start()
        rows.write(2, "b", old_vector("b"))
        rows.write(3, "c", None)
        rows.write(4, "d, but still a draft", None)
        begun.start()
        assert begun.verify(override="no gate in this test").passed
        begun.cutover()
        assert_vectors(rows, NEW, {"1": "a", "2": "b", "3": None, "4": None, "5": "e"})
        rows.write(1, "a", None)
        rows.write(3, "c", NEW.truth("c"))
        begun.start()
        begun.rollback()
        assert_vectors(rows, OLD, {"1": None, "2": "b", "3": "c", "4": None, "5": "e"})


def test_rows_without_a_vector_are_given_one_where_that_is_asked_for(rows: Rows) -> None:
    with closing(rows.open(embed_missing=True)) as store:
        fill(rows, *"abcde")
        plan = migration(store).plan()
        assert "2 rows have a text and no vector, and will have a new one (embed_missing)" in plan.warnings
        begun = ready(store)
        begun.cutover()
        assert_vectors(rows, NEW, dict(zip("12345", "abcde", strict=True)))
    with closing(rows.open()) as store, pytest.raises(MigrationConflict, match="embed_missing"):
        migration(store).start()


def test_a_collection_without_any_vector_is_refused_unless_it_is_to_be_embedded(rows: Rows) -> None:
    with closing(rows.open()) as store:
        fill(rows, "a", "b", bare=(1, 2))
        (problem,) = migration(store).plan().problems
        assert "--embed-missing" in problem.hint
        with pytest.raises(StoreSchemaError, match="has a vector"):
            migration(store).start()
    with closing(rows.open(embed_missing=True)) as store:
        assert migration(store).start().rows_done == 2


def test_a_text_that_could_not_be_embedded_is_no_row_without_a_vector_on_purpose(table: PgRows) -> None:
    with table.open() as store:
        fill(table, "a", "POISON", "c", bare=(3,))
        begun = ready(store)
        begun.cutover(accept_dead_letters=1)
        begun.start()
        assert_vectors(table, NEW, {"1": "a", "2": None, "3": None})
        assert_vectors(table, OLD, {"1": "a", "2": "POISON", "3": None}, "embedding_vecferry_old")
        status = begun.retry()
        assert [letter.key for letter in status.first_dead_letters] == [("2",)]
        table.connection.execute("UPDATE docs SET body = 'repaired' WHERE id = 2")
        status = begun.start()
        assert (status.dead_letters, status.unembedded) == (0, 1)
        assert_vectors(table, NEW, {"1": "a", "2": "repaired", "3": None})
        assert_vectors(table, OLD, {"1": "a", "2": "repaired", "3": None}, "embedding_vecferry_old")


def test_a_text_alone_that_is_written_after_the_switch_stays_so_unless_the_follower_is_the_embedding_worker(
    table: PgRows,
) -> None:
    with table.open() as store:
        fill(table, "a", "b", bare=())
        begun = ready(store)
        begun.cutover()
        table.write(3, "c", None)
        with Router(store, old=OLD, new=NEW) as router:
            router.put([Document(("2",), None), Document(("4",), "d")])
        assert begun.start().unembedded == 2
        assert_vectors(table, NEW, {"1": "a", "2": None, "3": None, "4": "d"})
        assert_vectors(table, OLD, {"1": "a", "2": None, "3": None, "4": "d"}, "embedding_vecferry_old")


def test_a_follower_that_is_the_embedding_worker_embeds_what_is_written_without_a_vector(table: PgRows) -> None:
    with table.open(embed_missing=True) as store:
        fill(table, "a", "b", bare=())
        begun = ready(store)
        begun.cutover()
        table.write(3, "c", None)
        table.write(1, "a", None)
        begun.start()
        assert_vectors(table, NEW, {"1": "a", "2": "b", "3": "c"})


def test_a_rollback_without_the_old_model_takes_no_new_vector_away(table: PgRows) -> None:
    with table.open() as store:
        fill(table, "a", "b", bare=(2,))
        ready(store).cutover()
        table.write(3, "c", NEW.truth("c"))
        begun = migration(store, old=None)
        begun.start()
        with pytest.raises(CutoverRefused, match="not followed"):
            replace(begun, options=replace(OPTIONS, patience=Patience(0.2, 0.2))).rollback()
        report = begun.rollback(accept_outdated=True)
        assert (report.outdated_rows, report.dead_letters) == (1, 0)
        assert_vectors(table, OLD, {"1": "a", "2": None, "3": None})
        begun.start()
        assert_vectors(table, NEW, {"1": "a", "2": None, "3": "c"}, "embedding_vecferry_new")
        status = migration(store).start()
        assert (status.state, status.dead_letters) == (State.SERVING_OLD, 0)
        assert_vectors(table, OLD, {"1": "a", "2": None, "3": "c"})


def test_a_row_whose_vector_is_taken_away_while_others_write_it_loses_the_other_later(table: PgRows) -> None:
    with table.open() as store:
        fill(table, "a", "b", bare=())
        begun = migration(store)
        begun.start()
        table.write(1, "a", None)
        with table.connection.transaction():
            table.connection.execute("UPDATE docs SET body = body WHERE id = 1")
            begun = replace(begun, options=replace(OPTIONS, wait_for_writers_s=0.1))
            assert begun.start().backlog == 1
        assert begun.start().backlog == 0
        assert_vectors(table, NEW, {"1": None, "2": "b"}, "embedding_vecferry_new")
