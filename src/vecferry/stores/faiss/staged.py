"""A collection that is being made: points in a SQLite file, so that a batch costs what it holds, and stays whole.

Searches compare with every vector. `FaissBackend.rename` makes index files of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from vecferry.embeddings import Float32, TextVectors
from vecferry.errors import StoreFailed, StoreSchemaError
from vecferry.stores.backend import Point
from vecferry.stores.faiss.docstore import Entry
from vecferry.stores.faiss.plain_pickle import pickled, unpickled

SUFFIX = ".vecferry"
BUSY_TIMEOUT_S = 60.0
CREATE = """
    CREATE TABLE points (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, text TEXT, payload BLOB, vector BLOB);
    CREATE TABLE about (empty_index BLOB, docstore TEXT, version INTEGER);
"""
PUT = """INSERT INTO points (id, text, payload, vector) VALUES (?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET text = excluded.text, payload = excluded.payload, vector = excluded.vector"""


@dataclass(frozen=True, eq=False)
class Vectors:
    """All points of one version, without texts. matrix: float32 [N, D]."""

    version: int
    ids: list[str]
    matrix: Float32


@dataclass(frozen=True)
class StagedCollection:
    """One file. Each call opens it anew, so that it is never an old one."""

    file: Path

    def create(self, empty: Any, docstore: str) -> None:
        """Make the file as a whole; what a process that was killed has begun is made anew."""
        begun = self.file.with_name(f"{self.file.name}-new")
        StagedCollection(begun).drop()
        self.drop()
        with closing(sqlite3.connect(begun)) as connection:
            connection.executescript(CREATE)
            about = [faiss.serialize_index(empty).tobytes(), docstore]
            connection.execute("INSERT INTO about VALUES (?, ?, 0)", about)
            connection.commit()
        begun.rename(self.file)

    def drop(self) -> None:
        """Delete the file, and the journal of a process that was killed. Repeating is safe."""
        self.file.unlink(missing_ok=True)
        self.file.with_name(f"{self.file.name}-journal").unlink(missing_ok=True)

    def empty_index(self) -> Any:
        """Return an empty index of the kind that these points are for."""
        ((data,),) = self._rows("SELECT empty_index FROM about")
        return faiss.deserialize_index(np.frombuffer(data, np.uint8))

    def docstore(self) -> str:
        """Return the name of the form of documents."""
        ((name,),) = self._rows("SELECT docstore FROM about")
        return str(name)

    def ids(self) -> list[str]:
        return [key for (key,) in self._rows("SELECT id FROM points")]

    def count(self) -> int:
        ((count,),) = self._rows("SELECT count(*) FROM points")
        return int(count)

    def get(self, ids: Sequence[str], *, vectors: bool) -> list[Point]:
        read = f"SELECT id, text, payload, {'vector' if vectors else 'NULL'} FROM points WHERE id = ?"  # noqa: S608
        with self._opened() as connection:
            rows = [row for key in ids for row in connection.execute(read, [key])]
        return [_point(self.file, *row) for row in rows]

    def entries(self) -> list[Entry]:
        """Return all documents in the order of `vectors`."""
        rows = self._rows("SELECT id, text, payload FROM points ORDER BY number")
        return [Entry(key, text, unpickled(payload, self.file)) for key, text, payload in rows]

    def vectors(self, known: Vectors | None = None) -> Vectors:
        """Return all vectors; `known` itself where nothing was written since."""
        with self._opened() as connection:
            connection.execute("BEGIN")
            ((version,),) = connection.execute("SELECT version FROM about")
            if known is not None and known.version == version:
                return known
            rows = connection.execute("SELECT id, vector FROM points ORDER BY number").fetchall()
        dimension = self.empty_index().d
        numbers = np.frombuffer(b"".join(vector for _, vector in rows), np.float32).reshape(-1, dimension)
        return Vectors(version, [key for key, _ in rows], numbers)

    def put(self, points: Sequence[Point]) -> None:
        rows = [(p.id, p.text, pickled(dict(p.payload)), _bytes(p)) for p in points]
        with self._writing() as connection:
            connection.executemany(PUT, rows)

    def delete(self, ids: Sequence[str]) -> None:
        with self._writing() as connection:
            connection.executemany("DELETE FROM points WHERE id = ?", [(key,) for key in ids])

    def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        with self._opened() as connection:
            return connection.execute(statement).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._opened() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE about SET version = version + 1")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        uri = f"{self.file.absolute().as_uri()}?mode=rw"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as connection:
                yield connection
        except sqlite3.Error as exc:
            if not self.file.exists():
                raise StoreSchemaError(f"there is no collection {self.file.stem!r} any more", "Look again.") from exc
            raise StoreFailed("faiss", f"{self.file}: {exc!s:.300}") from exc
        except ValueError as exc:
            raise StoreFailed("faiss", f"{exc!s:.300}") from exc


def _bytes(point: Point) -> bytes:
    assert point.vectors is not None
    return np.asarray(point.vectors.dense, np.float32).tobytes()


def _point(file: Path, key: str, text: str | None, payload: bytes, vector: bytes | None) -> Point:
    vectors = None if vector is None else TextVectors(np.frombuffer(vector, np.float32).copy())
    return Point(key, text, vectors, unpickled(payload, file))
