"""Embeddings on disk, by content: a text that was encoded once is not encoded again.

    FOLDER/embeddings.db    SQLite, write-ahead log; any number of processes at a time

A key is the SHA-256 of the vector space's fingerprint and precision and of the text as the model sees it, with its
role's prefix; an entry is one output of one text. So no two spaces or precisions mix, and what is asked for is found
whatever runtime made it.
Each entry carries a checksum. A file that is damaged is set aside and a new one begun.

A cache may lose what it holds and never what it was asked to help with: where the disk is full, or another process
holds the file too long, it says so once in the log and is not used any more.
"""

from __future__ import annotations

import logging
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from vecferry.embeddings import Embeddings, MultiVector, Outputs, Sparse
from vecferry.encode.stored_vectors import (
    checksum,
    pack_colbert,
    pack_dense,
    pack_sparse,
    unpack_colbert,
    unpack_dense,
    unpack_sparse,
)
from vecferry.errors import SettingsError, reason_of
from vecferry.precisions import Mark
from vecferry.stores.sqlite.connection import code_of, make_private, write_ahead
from vecferry.stores.values import text_digest

T = TypeVar("T")
Row = tuple[bytes, str, int, int, bytes]
"""Key, output, tokens, whether truncated, the numbers as `stored_vectors` packs them."""

FILE = "embeddings.db"
MB = 1_000_000
FREED = 0.1
"""How much of the limit is freed when it is reached, so that it is not reached again at once."""
BUSY_TIMEOUT_S = 10.0
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
CREATE = """
CREATE TABLE IF NOT EXISTS entries (
    key BLOB NOT NULL, output TEXT NOT NULL, tokens INTEGER NOT NULL, truncated INTEGER NOT NULL,
    numbers BLOB NOT NULL, checksum INTEGER NOT NULL, used REAL NOT NULL, PRIMARY KEY (key, output)
);
CREATE INDEX IF NOT EXISTS entries_by_use ON entries (used);
"""

log = logging.getLogger("vecferry")


class Cache:
    """Thread-safe; processes may share a folder. Not across a fork."""

    def __init__(self, folder: Path, max_mb: int = 1024) -> None:
        """folder: made where it is missing. max_mb: millions of bytes; what was used longest ago goes first.

        Raises SettingsError where the folder cannot be written to.
        """
        self._path = Path(folder) / FILE
        self._max_bytes = max_mb * MB
        self._lock = threading.Lock()
        self._is_off = False
        try:
            self._connection = self._opened()
        except (OSError, sqlite3.OperationalError) as exc:
            reason = reason_of(exc) if isinstance(exc, OSError) else str(exc)
            raise SettingsError("VECFERRY_CACHE", folder, f"a folder that can be written to ({reason})") from exc

    def find(self, mark: Mark, texts: Sequence[str], outputs: Outputs, dimension: int) -> list[Embeddings | None]:
        """For each text its embeddings, of one row, or None where one of the outputs is not there.

        texts: with their prefix. dimension: of the model; an entry of another, or with what is not a number, is damage.
        """
        keys = [key_of(mark, text) for text in texts]
        return self._tried(lambda: self._found(mark, keys, outputs.names, dimension), [None] * len(keys))

    def keep(self, texts: Sequence[str], embeddings: Embeddings) -> None:
        """texts: with their prefix, one for each row."""
        entries = [row for i, text in enumerate(texts) for row in _rows(key_of(embeddings.mark, text), embeddings, i)]
        self._tried(lambda: self._kept(entries), None)

    def close(self) -> None:
        with self._lock:
            self._is_off = True
            self._connection.close()

    # --- reading and writing ----------------------------------------------------------------------

    def _found(self, mark: Mark, keys: list[bytes], names: tuple[str, ...], dimension: int) -> list[Embeddings | None]:
        found = [self._entry(mark, key, names, dimension) for key in keys]
        now = time.time()
        used = [(now, key, name) for key, entry in zip(keys, found, strict=True) if entry is not None for name in names]
        with self._connection:
            self._connection.executemany("UPDATE entries SET used = ? WHERE key = ? AND output = ?", used)
        return found

    def _entry(self, mark: Mark, key: bytes, names: tuple[str, ...], dimension: int) -> Embeddings | None:
        query = "SELECT key, output, tokens, truncated, numbers, checksum FROM entries WHERE key = ?"
        rows: dict[str, Row] = {}
        for *entry, crc in self._connection.execute(query, (key,)):
            row: Row = (entry[0], entry[1], entry[2], entry[3], entry[4])
            if checksum_of(row) != crc:
                raise _Damaged("an entry does not match its checksum")
            rows[row[1]] = row
        if not rows.keys() >= set(names):
            return None
        found = _embeddings(mark, rows, names, dimension)
        return None if found.defects() else found

    def _kept(self, entries: Iterable[Row]) -> None:
        now = time.time()
        values = [(*entry, checksum_of(entry), now) for entry in entries]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        self._evict()

    def _evict(self) -> None:
        """Back under the limit, the entries that were used longest ago first. Their pages are used again."""
        excess = self._bytes_in_use() - self._max_bytes
        if excess <= 0:
            return
        wanted, freed, chosen = excess + FREED * self._max_bytes, 0, []
        for row, size in self._connection.execute("SELECT rowid, length(numbers) FROM entries ORDER BY used, rowid"):
            if freed >= wanted:
                break
            chosen.append((row,))
            freed += size
        with self._connection:
            self._connection.executemany("DELETE FROM entries WHERE rowid = ?", chosen)

    def _bytes_in_use(self) -> int:
        pages, unused, size = (self._pragma(name) for name in ("page_count", "freelist_count", "page_size"))
        return (pages - unused) * size

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    # --- the file ---------------------------------------------------------------------------------

    def _tried(self, action: Callable[[], T], otherwise: T) -> T:
        """Return the result; `otherwise` after the file was set aside, or while it cannot be used."""
        with self._lock:
            if self._is_off:
                return otherwise
            try:
                return action()
            except (sqlite3.Error, _Damaged) as exc:
                if _is_damage(exc):
                    self._set_aside(exc)
                else:
                    self._switch_off(exc)
                return otherwise

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except sqlite3.DatabaseError as exc:
            if not _is_damage(exc):
                raise
            self._moved_away(exc)
            return self._connected()

    def _connected(self) -> sqlite3.Connection:
        make_private(self._path)
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        try:
            write_ahead(connection, BUSY_TIMEOUT_S)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(CREATE)
            self._inode = self._path.stat().st_ino
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, cause: Exception) -> None:
        self._connection.close()
        try:
            if self._path.exists() and self._path.stat().st_ino == self._inode:  # nobody else has done it yet
                self._moved_away(cause)
            self._connection = self._connected()
        except (sqlite3.Error, OSError) as exc:
            self._switch_off(exc)

    def _moved_away(self, cause: Exception) -> None:
        kept_as = self._path.with_name(f"{FILE}.damaged-{time.time_ns()}")
        log.warning("the cache %s is damaged (%s): kept as %s, and a new one begun", self._path, cause, kept_as.name)
        self._path.rename(kept_as)
        for companion in ("-wal", "-shm"):
            self._path.with_name(FILE + companion).unlink(missing_ok=True)

    def _switch_off(self, cause: Exception) -> None:
        self._is_off = True
        log.warning("the cache %s is not used any more in this process: %s", self._path, cause)
        self._connection.close()


class _Damaged(Exception):
    """An entry is not what was written."""


def _is_damage(exc: Exception) -> bool:
    return isinstance(exc, _Damaged) or code_of(exc) in DAMAGED


def key_of(mark: Mark, text: str) -> bytes:
    """text: with its prefix. The bytes of another form are other bytes, and so kept under another key."""
    return text_digest(f"{mark.key}\n{text}")


def checksum_of(row: Row) -> int:
    key, output, tokens, truncated, numbers = row
    return checksum(key, f"{output} {tokens} {truncated}".encode(), numbers)


# --- rows -----------------------------------------------------------------------------------------


def _rows(key: bytes, embeddings: Embeddings, i: int) -> Iterable[Row]:
    """Yield what text `i` of the embeddings has, an entry for each output."""
    facts = int(embeddings.num_tokens[i]), int(embeddings.truncated[i])
    if embeddings.dense_or_none is not None:
        yield key, "dense", *facts, pack_dense(embeddings.dense[i])
    if embeddings.sparse_or_none is not None:
        yield key, "sparse", *facts, pack_sparse(embeddings.sparse[i])
    if embeddings.colbert_or_none is not None:
        yield key, "colbert", *facts, pack_colbert(embeddings.colbert[i])


def _embeddings(mark: Mark, rows: dict[str, Row], names: tuple[str, ...], dimension: int) -> Embeddings:
    """Return one text's embeddings. Raises _Damaged for numbers that no model of that dimension gives."""
    _, _, tokens, truncated, _ = rows[names[0]]
    numbers = {name: rows[name][-1] for name in names}
    try:
        dense = unpack_dense(numbers["dense"])[None] if "dense" in numbers else None
        sparse = Sparse.of([unpack_sparse(numbers["sparse"])]) if "sparse" in numbers else None
        colbert = MultiVector.of([unpack_colbert(numbers["colbert"])]) if "colbert" in numbers else None
    except (ValueError, TypeError, struct.error) as exc:
        raise _Damaged(f"an entry cannot be read: {exc}") from exc
    vectors = [array for array in (dense, colbert.vectors if colbert else None) if array is not None]
    if any(array.shape[1] != dimension for array in vectors):
        raise _Damaged(f"an entry has not the model's {dimension} numbers")
    weights = [sparse.weights] if sparse else []
    if not all(np.isfinite(array).all() for array in (*vectors, *weights)):
        raise _Damaged("an entry has a value that is not a number")
    counts = np.array([tokens], np.int64), np.array([truncated], bool)
    return Embeddings(mark.fingerprint, *counts, dense, sparse, colbert, mark.form)
