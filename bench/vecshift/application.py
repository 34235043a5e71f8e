"""The application beside a migration: its table, the writes it makes with plain SQL, and what the table must hold.

A vector says of which model and text it is (`tests.migrate.doubles.truth`), so each stored one can be checked.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

import numpy as np
import psycopg
from pgvector.psycopg import register_vector

from bench.applier import text_of
from tests.migrate.doubles import truth
from vecferry.embeddings import Float32

NAME, TEXT, VECTOR = "docs", "body", "embedding"
OLD, NEW = "old", "new"
FIRST_WRITTEN_TEXT = 1_000_000_000
"""Number of the first text that is written later on, so that no two texts are alike."""
READY_S = 60.0


@dataclass(frozen=True)
class DocsTable:
    """A table of `rows` rows, keys from 1 on. dimensions: numbers in a vector, by model."""

    url: str
    rows: int
    dimensions: Mapping[str, int]

    def vector(self, model: str, text: str) -> Float32:
        return truth(model, text, self.dimensions[model])

    def initial_rows(self) -> dict[int, tuple[str, int]]:
        """Text and views by key."""
        return {key: (text_of(key), 0) for key in range(1, self.rows + 1)}

    def create(self) -> None:
        """Leaves the rows with their old vectors, and an HNSW index on them."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
            register_vector(connection)
            connection.execute(
                "CREATE TABLE docs (id integer PRIMARY KEY, body text, views integer NOT NULL DEFAULT 0,"
                f" embedding vector({self.dimensions[OLD]}))"
            )
            with connection.cursor().copy("COPY docs (id, body, embedding) FROM STDIN WITH (FORMAT BINARY)") as copy:
                copy.set_types(["int4", "text", "vector"])
                for key, (text, _) in self.initial_rows().items():
                    copy.write_row([key, text, self.vector(OLD, text)])
            connection.execute("CREATE INDEX docs_embedding ON docs USING hnsw (embedding vector_cosine_ops)")
            connection.execute("VACUUM ANALYZE docs")
            connection.execute("CHECKPOINT")


# --- the application ------------------------------------------------------------------------------


class Kind(StrEnum):
    """What a write does; `VIEWS` changes a column that is not the text."""

    INSERT = "insert"
    TEXT = "text"
    DELETE = "delete"
    VIEWS = "views"


SHARES = {Kind.INSERT: 0.3, Kind.TEXT: 0.3, Kind.DELETE: 0.2, Kind.VIEWS: 0.2}
STATEMENTS = {
    Kind.INSERT: "INSERT INTO docs (id, body, embedding) VALUES (%(key)s, %(text)s, %(vector)s)",
    Kind.TEXT: "UPDATE docs SET body = %(text)s, embedding = %(vector)s WHERE id = %(key)s",
    Kind.DELETE: "DELETE FROM docs WHERE id = %(key)s",
    Kind.VIEWS: "UPDATE docs SET views = views + 1 WHERE id = %(key)s",
}


@dataclass(frozen=True)
class Write:
    """began_s and ended_s: by `time.monotonic`, which all processes of a machine share."""

    kind: Kind
    began_s: float
    ended_s: float

    @property
    def ms(self) -> float:
        return 1000 * (self.ended_s - self.began_s)

    def overlaps(self, began_s: float, ended_s: float) -> bool:
        return self.began_s <= ended_s and self.ended_s >= began_s


@dataclass
class WriteLog:
    """What the application did. rows: text and views by key, as they must be. failures: writes that were not made.

    model_changes: how often a write was refused for its number of dimensions, and made again with the other model.
    """

    rows: dict[int, tuple[str, int]]
    writes: list[Write] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    model_changes: int = 0

    def during(self, began_s: float, ended_s: float) -> list[Write]:
        return [write for write in self.writes if write.overlaps(began_s, ended_s)]


class Writer:
    """Writes with the vectors of one model; with those of the other from the first write on that is refused."""

    def __init__(self, table: DocsTable, connection: psycopg.Connection) -> None:
        self.log = WriteLog(table.initial_rows())
        self._table = table
        self._connection = connection
        self._keys = list(self.log.rows)
        self._next_key = table.rows + 1
        self._model = OLD
        self._random = random.Random(0)

    def write(self) -> None:
        (kind,) = self._random.choices(list(SHARES), list(SHARES.values()))
        key = self._next_key if kind is Kind.INSERT else self._random.choice(self._keys)
        text = text_of(FIRST_WRITTEN_TEXT + len(self.log.writes))
        vector = self._table.vector(self._model, text)
        began_s = time.monotonic()
        try:
            self._execute(kind, key, text, vector)
        except psycopg.Error as exc:
            self.log.failures.append(f"{kind}: {exc}")
        else:
            self._remember(kind, key, text)
        self.log.writes.append(Write(kind, began_s, time.monotonic()))

    def _execute(self, kind: Kind, key: int, text: str, vector: Float32) -> None:
        values = {"key": key, "text": text, "vector": vector}
        try:
            self._connection.execute(STATEMENTS[kind], values)
        except psycopg.errors.DataException:  # "expected 384 dimensions, not 1024"
            self._model = OLD if self._model == NEW else NEW
            self.log.model_changes += 1
            self._connection.execute(STATEMENTS[kind], values | {"vector": self._table.vector(self._model, text)})

    def _remember(self, kind: Kind, key: int, text: str) -> None:
        rows = self.log.rows
        match kind:
            case Kind.INSERT:
                rows[key] = (text, 0)
                self._keys.append(key)
                self._next_key += 1
            case Kind.TEXT:
                rows[key] = (text, rows[key][1])
            case Kind.VIEWS:
                rows[key] = (rows[key][0], rows[key][1] + 1)
            case Kind.DELETE:
                del rows[key]
                self._keys.remove(key)


class Application:
    """A process that writes until it is stopped."""

    def __init__(self, table: DocsTable, writes_per_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._answers, answers = context.Pipe(duplex=False)
        self._stopping = context.Event()
        self._process = context.Process(target=_write_on, args=(table, writes_per_s, self._stopping, answers))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Yields once it writes; it has ended afterwards, also if `stop` was not called."""
        self._process.start()
        try:
            assert self._answers.poll(READY_S), "the application does not write"
            self._answers.recv()
            yield
        finally:
            self._process.kill()
            self._process.join()

    def stop(self) -> WriteLog:
        """What was written. The last write has ended."""
        self._stopping.set()
        log: WriteLog = self._answers.recv()
        return log


def _write_on(table: DocsTable, writes_per_s: float, stopping: Event, answers: Connection) -> None:
    with psycopg.connect(table.url, autocommit=True) as connection:
        register_vector(connection)
        writer = Writer(table, connection)
        answers.send("ready")
        due_s = time.monotonic()
        while not stopping.is_set():
            writer.write()
            due_s += 1 / writes_per_s
            time.sleep(max(0.0, due_s - time.monotonic()))
        answers.send(writer.log)


# --- the comparison -------------------------------------------------------------------------------


@dataclass(frozen=True)
class VectorFaults:
    """Rows whose vector is NULL, and rows whose vector is not that of their text."""

    missing: int
    wrong: int


def vector_faults(table: DocsTable, model: str) -> VectorFaults:
    """Of the vectors that serve, in one snapshot, against what `model` makes of the text beside them."""
    missing = wrong = 0
    with psycopg.connect(table.url) as connection:
        register_vector(connection)
        with connection.cursor("comparison", binary=True) as cursor:
            cursor.itersize = 1000
            cursor.execute("SELECT body, embedding FROM docs")
            for text, vector in cursor:
                missing += vector is None
                wrong += vector is not None and not _is_close(vector.to_numpy(), table.vector(model, text))
    return VectorFaults(missing, wrong)


def _is_close(stored: Float32, expected: Float32) -> bool:
    return stored.shape == expected.shape and np.allclose(stored, expected, atol=1e-5)


@dataclass(frozen=True)
class RowFaults:
    """Rows that are gone, that came back after they were deleted, and that have another text or number of views."""

    lost: int
    resurrected: int
    changed: int


def row_faults(table: DocsTable, expected: Mapping[int, tuple[str, int]]) -> RowFaults:
    with psycopg.connect(table.url) as connection:
        stored: Sequence[tuple[int, str, int]] = connection.execute("SELECT id, body, views FROM docs").fetchall()
    rows = {key: (text, views) for key, text, views in stored}
    common = rows.keys() & expected.keys()
    return RowFaults(
        lost=len(expected.keys() - rows.keys()),
        resurrected=len(rows.keys() - expected.keys()),
        changed=sum(rows[key] != expected[key] for key in common),
    )
