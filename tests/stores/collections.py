"""The application's side of a store in tests: it writes and looks without going through vecferry."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import psycopg

from tests.migrate.doubles import truth
from vecferry.embeddings import Float32
from vecferry.stores import Key, Store
from vecferry.stores.memory import MemoryRow, MemoryStore
from vecferry.stores.pgvector import PgVectorStore

OLD_DIMENSION = 8


def old_vector(text: str | None) -> Float32 | None:
    """What the old model made of a text."""
    return None if text is None else truth("old", text, OLD_DIMENSION)


class Collection(Protocol):
    """Keys are whole numbers, written as text."""

    store: Store

    def put(self, key: int, text: str | None, vector: Float32 | None) -> None:
        """Insert or replace a row, with the vector that the application would write."""

    def remove(self, key: int) -> None: ...
    def serving(self) -> dict[Key, tuple[str | None, Float32 | None]]:
        """Every row's text and serving vector."""

    def another(self) -> AbstractContextManager[Store]:
        """The same collection as another runner has it."""


class MemoryCollection:
    def __init__(self) -> None:
        self.store = MemoryStore()

    def put(self, key: int, text: str | None, vector: Float32 | None) -> None:
        row = self.store.rows.setdefault((str(key),), MemoryRow(text))
        row.text, row.serving = text, vector

    def remove(self, key: int) -> None:
        del self.store.rows[(str(key),)]

    def serving(self) -> dict[Key, tuple[str | None, Float32 | None]]:
        return {key: (row.text, row.serving) for key, row in self.store.rows.items()}

    def another(self) -> AbstractContextManager[Store]:
        return nullcontext(self.store)


class PgCollection:
    def __init__(self, connection: psycopg.Connection, database_url: str) -> None:
        self.connection = connection
        self.database_url = database_url
        self.connection.execute(
            f"CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector({OLD_DIMENSION}))"
        )
        self.store = PgVectorStore.connect(database_url, "docs", "body", "embedding")

    def put(self, key: int, text: str | None, vector: Float32 | None) -> None:
        self.connection.execute(
            "INSERT INTO docs (id, body, embedding) VALUES (%s, %s, %s::real[]::vector)"
            " ON CONFLICT (id) DO UPDATE SET body = excluded.body, embedding = excluded.embedding",
            [key, text, None if vector is None else vector.tolist()],
        )

    def remove(self, key: int) -> None:
        self.connection.execute("DELETE FROM docs WHERE id = %s", [key])

    def serving(self) -> dict[Key, tuple[str | None, Float32 | None]]:
        rows = self.connection.execute("SELECT id::text, body, embedding::real[] FROM docs").fetchall()
        return {(key,): (text, None if v is None else np.asarray(v, np.float32)) for key, text, v in rows}

    def another(self) -> AbstractContextManager[Store]:
        return PgVectorStore.connect(self.database_url, "docs", "body", "embedding")
