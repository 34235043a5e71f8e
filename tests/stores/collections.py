"""The application's side of a store in tests: it writes and looks as an application does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, overload

import numpy as np
import psycopg
import pytest

from tests.migrate.doubles import truth
from tests.quick import params
from tests.stores import backends
from tests.stores.groups import GROUPS, spread_group
from vecferry.embeddings import Float32, TextVectors
from vecferry.stores.backend import Backend, Point
from vecferry.stores.group import GroupBackend
from vecferry.stores.mirror import GroupStore, MirrorStore
from vecferry.stores.protocol import Store
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Key, Layout, Record

if TYPE_CHECKING:
    from vecferry.stores.pgvector import PgVectorStore

OLD_DIMENSION = 8
Content = tuple[str | None, Float32 | None]


@overload
def old_vector(text: str) -> Float32: ...
@overload
def old_vector(text: str | None) -> Float32 | None: ...
def old_vector(text: str | None) -> Float32 | None:
    """Return what the old model made of a text."""
    return None if text is None else truth("old", text, OLD_DIMENSION)


class Collection(Protocol):
    """Keys are whole numbers, written as text.

    nullable: whether a row can be without a text. keeps_rows: whether a row without a new vector stays
    in the collection after the switch. exact_vectors: whether vectors come back bit for bit.
    """

    nullable: bool
    keeps_rows: bool

    @property
    def store(self) -> Store: ...
    def put(self, key: int, text: str | None, vector: Float32 | None) -> None:
        """Insert or replace a row, with the vector that the application would write."""

    def put_unseen(self, key: int, text: str | None, vector: Float32 | None) -> None:
        """Insert or replace a row past whatever captures writes, if there is a way."""

    def remove(self, key: int) -> None: ...
    def remove_unseen(self, key: int) -> None: ...
    def serving(self) -> dict[Key, Content]:
        """Return every row's text and serving vector."""

    def another(self) -> AbstractContextManager[Store]:
        """Return the same collection as another process has it."""


class MirrorCollection:
    """A collection of points, or a group of them. The application writes through a store of its own."""

    def __init__(self, backend: Backend, ledger: SqliteLedger, *, nullable: bool) -> None:
        self.backend = backend
        self.nullable = nullable
        self.keeps_rows = False
        self.store = (
            GroupStore(backend, ledger)
            if isinstance(backend, GroupBackend)
            else MirrorStore(backend, backends.COLLECTION, ledger)
        )
        self.application = self.store.another()

    def _record(self, key: int, text: str | None, vector: Float32 | None) -> Record:
        filled = old_vector(text or "") if vector is None else vector
        return Record((str(key),), text, TextVectors(filled), {"lang": "en", "year": 2000 + key})

    def put(self, key: int, text: str | None, vector: Float32 | None) -> None:
        serving = self.application.ledger.serving(self.application.target)
        space = (serving.fingerprint if serving else None) or "whatever serves"
        self.application.put([self._record(key, text, vector)], fingerprint=space)

    def put_unseen(self, key: int, text: str | None, vector: Float32 | None) -> None:
        record = self._record(key, text, vector)
        self.backend.put(self._serving_name(), [Point(str(key), text, record.vectors, record.payload)])

    def remove(self, key: int) -> None:
        self.application.remove([(str(key),)])

    def remove_unseen(self, key: int) -> None:
        self.backend.delete(self._serving_name(), [str(key)])

    def _serving_name(self) -> str:
        return self.store._sides.now().serving

    def serving(self) -> dict[Key, Content]:
        name = self._serving_name()
        points = self.backend.get(name, list(self.backend.ids(name)), vectors=True)
        return {(p.id,): (p.text, None if p.vectors is None else p.vectors.dense) for p in points}

    @contextmanager
    def another(self) -> Iterator[Store]:
        store = self.store.another()
        yield store
        store.close()


@contextmanager
def without_triggers(connection: psycopg.Connection, table: str) -> Iterator[None]:
    """Let a capture see nothing inside the block, and nothing of the block afterwards."""
    query = "SELECT tgname, tgenabled::text FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal"
    triggers = connection.execute(query, [table]).fetchall()
    connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    yield
    for name, enabled in triggers:
        connection.execute(f"ALTER TABLE {table} ENABLE {'ALWAYS ' if enabled == 'A' else ''}TRIGGER {name}")


TENANT = "north"
OTHERS = """
INSERT INTO docs SELECT -1000 - n, 'text ' || n, array_fill(n::real, ARRAY[3 + n % 7])::vector,
    CASE WHEN n % 3 > 0 THEN 'south' END FROM generate_series(1, 12) AS n
"""
"""Rows that share the table with a part: of another tenant, and of none, with vectors of other lengths."""
OTHER_ROWS = "SELECT ctid::text, xmin::text, vector_send(embedding), t::text FROM docs t WHERE id < -1000 ORDER BY id"


def partitions_sql(table: str) -> str:
    """Return what ends a CREATE TABLE of a table with eight partitions by its `id`."""
    parts = (
        f"CREATE TABLE {table}_{part} PARTITION OF {table} FOR VALUES WITH (MODULUS 8, REMAINDER {part})"
        for part in range(8)
    )
    return f" PARTITION BY HASH (id); {'; '.join(parts)}"


class PgCollection:
    """A table. layout: in which it is migrated. where: which rows, if there are others, of another tenant.

    is_partitioned: whether its rows are in eight partitions.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        database_url: str,
        layout: Layout = Layout.COLUMNS,
        *,
        embed_missing: bool = False,
        where: str | None = None,
        is_partitioned: bool = False,
    ) -> None:
        self.connection = connection
        self.database_url = database_url
        self.layout = layout
        self.nullable = self.keeps_rows = True
        kind = f"vector({OLD_DIMENSION})" if where is None else "vector"
        partitions = partitions_sql("docs") if is_partitioned else ""
        self.connection.execute(f"CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding {kind}){partitions}")
        self.where = where
        if where is not None:
            self.connection.execute(f"ALTER TABLE docs ADD tenant text DEFAULT '{TENANT}'")
            self.connection.execute(OTHERS)
            self.others = self.other_rows()
        self.embed_missing = embed_missing
        self.store = self.another()

    def other_rows(self) -> list[tuple[object, ...]]:
        """Return the rows of other tenants as bytes, each with its place, which a write would change."""
        return self.connection.execute(OTHER_ROWS).fetchall()

    def put(self, key: int, text: str | None, vector: Float32 | None) -> None:
        self.connection.execute(
            "INSERT INTO docs (id, body, embedding) VALUES (%s, %s, %s::real[]::vector)"
            " ON CONFLICT (id) DO UPDATE SET body = excluded.body, embedding = excluded.embedding",
            [key, text, None if vector is None else vector.tolist()],
        )

    def put_unseen(self, key: int, text: str | None, vector: Float32 | None) -> None:
        with without_triggers(self.connection, "docs"):
            self.put(key, text, vector)

    def remove(self, key: int) -> None:
        self.connection.execute("DELETE FROM docs WHERE id = %s", [key])

    def remove_unseen(self, key: int) -> None:
        with without_triggers(self.connection, "docs"):
            self.remove(key)

    def serving(self) -> dict[Key, Content]:
        own = "SELECT id::text, body, embedding::real[] FROM docs WHERE id > -1000"
        rows = self.connection.execute(own).fetchall()
        return {(key,): (text, None if v is None else np.asarray(v, np.float32)) for key, text, v in rows}

    def another(self) -> PgVectorStore:
        from vecferry.stores.pgvector import PgVectorStore

        return PgVectorStore.connect(
            self.database_url,
            "docs",
            "body",
            "embedding",
            where=self.where,
            embed_missing=self.embed_missing,
            layout=self.layout,
        )


SIDE_TABLE, PART = "side-table", "part"
PARTITIONED = ("partitioned", "partitioned-side-table")
LAYOUTS = {
    "pgvector": Layout.COLUMNS,
    SIDE_TABLE: Layout.SIDE_TABLE,
    PART: Layout.SIDE_TABLE,
    PARTITIONED[0]: Layout.COLUMNS,
    PARTITIONED[1]: Layout.SIDE_TABLE,
}
CONDITIONS = {PART: f"tenant = '{TENANT}'"}
NAMES = (*backends.NAMES, *GROUPS, *LAYOUTS)


def quick_on(*names: str) -> pytest.MarkDecorator:
    """Mark a test that takes long: it runs on these stores, and on the others by `make test-slow`."""
    return pytest.mark.parametrize("collection", params(NAMES, slow=set(NAMES) - set(names)), indirect=True)


@contextmanager
def mirror_collection(name: str, folder: Path) -> Iterator[MirrorCollection]:
    """Yield a collection in that backend, with its control database in the folder; memory has its in memory too."""
    with backends.opened(name, folder / "store") as backend:
        ledger = SqliteLedger.in_memory() if name == "memory" else SqliteLedger.open(folder / "control.db")
        yield MirrorCollection(backend, ledger, nullable=True)


@contextmanager
def group_collection(name: str, folder: Path) -> Iterator[MirrorCollection]:
    """Yield a group that looks like one collection."""
    ledger = SqliteLedger.in_memory() if name == "group" else SqliteLedger.open(folder / "control.db")
    yield MirrorCollection(spread_group(name, folder / "store"), ledger, nullable=True)
