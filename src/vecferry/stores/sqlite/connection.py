"""The connection to the control database. All errors of sqlite3 end here."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from vecferry.errors import StoreError, StoreFailed, StoreSchemaError, StoreUnreachable, reason_of
from vecferry.stores.sqlite.dialect import FUNCTIONS, as_params, as_statement
from vecferry.stores.sqlite.tables import APPLICATION_ID, CREATE, VERSION

STORE = "control database"
BUSY_TIMEOUT_S = 10.0
WAL_PAUSE_S = 0.01


class SqliteDatabase:
    """One connection, which threads may share: each statement, and each transaction, has it for itself.

    path: None is a database in memory, which all its `another` share. It is made by the first
    transaction; before that there is nothing to read.
    """

    def __init__(self, path: Path | None, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._installed = False
        self._inside = False
        self._users = 1

    @property
    def is_inside(self) -> bool:
        """Whether this thread is in a transaction."""
        with self._lock:
            return self._inside

    @property
    def is_installed(self) -> bool:
        with self._lock, self._translated():
            return self._opened() is not None

    @property
    def location(self) -> str:
        return str(self._path) if self._path else "in memory"

    def rows(self, query: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of the answer; none where there is no control database."""
        with self._lock, self._translated():
            connection = self._opened()
            return connection.execute(as_statement(query), as_params(params)).fetchall() if connection else []

    def value(self, query: str, params: Sequence[object] = ()) -> Any:
        """Return the first value of the first row; None where there is none."""
        rows = self.rows(query, params)
        return rows[0][0] if rows else None

    def execute(self, query: str, params: Sequence[object] = ()) -> int:
        """Return the number of rows that were written."""
        with self.transaction(), self._translated():
            return self._writable().execute(as_statement(query), as_params(params)).rowcount

    def execute_many(self, query: str, params: Sequence[Sequence[object]]) -> None:
        with self.transaction(), self._translated():
            self._writable().executemany(as_statement(query), params)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep what is written inside as a whole or not at all. Inside another one, it is part of that."""
        with self._lock:
            if self._inside:
                yield
                return
            with self._translated():
                if not self._opened():
                    self._install()
            with self._begun():
                yield

    @contextmanager
    def _begun(self) -> Iterator[None]:
        """Begin at once (BEGIN IMMEDIATE): there is no other writer from then on, so no write is refused later."""
        connection = self._connected("rw")
        with self._translated():
            connection.execute("BEGIN IMMEDIATE")
        self._inside = True
        try:
            yield
            with self._translated():
                connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # it has undone it by itself, and what went wrong is on its way
                connection.execute("ROLLBACK")
            raise
        finally:
            self._inside = False

    def _writable(self) -> sqlite3.Connection:
        """Return the connection. Raises StoreFailed once SQLite undid the transaction: a write would stand alone."""
        connection = self._connected("rw")
        if not connection.in_transaction:
            raise StoreFailed(STORE, "the transaction has been rolled back")
        return connection

    # --- opening ----------------------------------------------------------------------------------

    def _opened(self) -> sqlite3.Connection | None:
        """Return the connection; None as long as there is no control database."""
        if self._connection is None and self._path is not None and not self._path.exists():
            return None
        connection = self._connected("rw")
        self._installed = self._installed or self._has_tables(connection)
        return connection if self._installed else None

    def _connected(self, mode: str) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode={mode}" if self._path else ":memory:",
                uri=self._path is not None,
                timeout=self._busy_timeout_s,
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            for (name, num_args), function in FUNCTIONS.items():
                self._connection.create_function(name, num_args, function)
        return self._connection

    def _has_tables(self, connection: sqlite3.Connection) -> bool:
        """Return whether our tables are there. Raises StoreSchemaError for a database of somebody else."""
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            return False
        if owner != APPLICATION_ID:
            raise StoreSchemaError(
                f"{self._path} is a SQLite database, but not a control database", "Give the path of another file."
            )
        if version != VERSION:
            raise StoreSchemaError(
                f"{self._path} is a control database of version {version}, and this is for version {VERSION}",
                "Use the vecferry that wrote it until its migrations are finalized, then another file.",
            )
        return True

    def _install(self) -> None:
        if self._path is not None:
            make_private(self._path)
        connection = self._connected("rw")
        if self._path is not None:
            self._write_ahead(connection)
        with self._begun():
            if not self._has_tables(connection):  # somebody else may have been faster
                for statement in CREATE:
                    connection.execute(statement)
        self._installed = True

    def _write_ahead(self, connection: sqlite3.Connection) -> None:
        if write_ahead(connection, self._busy_timeout_s) != "wal":
            raise StoreSchemaError(
                f"{self._path} is where processes cannot share memory, so they would not see each other's writes",
                "Put the control database on a local disk.",
            )

    # --- errors -----------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise self._as_ours(exc) from exc
        except OSError as exc:
            raise StoreUnreachable(STORE, f"{self._path}: {reason_of(exc)}") from exc

    def _as_ours(self, exc: sqlite3.Error) -> StoreError:
        code = code_of(exc)
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            remedy = "Put back a copy of it together with its -wal file, or give the path of another file."
            return StoreSchemaError(f"{self._path} is damaged or no SQLite database: {exc}", remedy)
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return StoreUnreachable(STORE, f"{self._path}: {exc}")
        reasons = {
            sqlite3.SQLITE_FULL: "the disk is full",
            sqlite3.SQLITE_READONLY: f"{self._path} is read-only",
            sqlite3.SQLITE_BUSY: f"{self._path} was locked by another process for {self._busy_timeout_s:g} s",
        }
        return StoreFailed(STORE, reasons.get(code, str(exc)))

    # --- several connections ----------------------------------------------------------------------

    def another(self) -> SqliteDatabase:
        """Open a connection of its own to the file; the same one in memory. To be closed."""
        if self._path is not None:
            return SqliteDatabase(self._path, self._busy_timeout_s)
        with self._lock:
            self._users += 1
        return self

    def remove_file(self) -> None:
        """Leave nothing where the file was. What is open goes on with what it has, and in memory there is no file."""
        with self._translated():
            for suffix in ("", "-wal", "-shm") if self._path else ():
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def disconnect(self) -> None:
        """Let the next use look at the file anew."""
        with self._lock:
            if self._path is not None and self._connection is not None:
                self._connection.close()
                self._connection, self._installed = None, False

    def close(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._connection is not None:
                self._connection.close()


def read_only_uri(file: Path) -> str:
    """Return the URI by which SQLite reads a file and changes nothing, also beside writers.

    Where nobody has a file in WAL mode open, SQLite would lay its two other files beside it.
    """
    is_in_use = any(Path(f"{file}{suffix}").exists() for suffix in ("-wal", "-journal"))
    return f"{file.absolute().as_uri()}?{'mode=ro' if is_in_use else _mode_of(file)}"


def _mode_of(file: Path) -> str:
    with file.open("rb") as opened:
        is_wal = opened.read(20)[18:] == bytes([2, 2])  # the versions that writers and readers need
    return "immutable=1" if is_wal else "mode=ro"


def copy_database(source: Path, target: Path) -> None:
    """Copy a database as it is now, also beside writers, and change nothing in it. Raises StoreUnreachable."""
    try:
        with (
            closing(sqlite3.connect(read_only_uri(source), uri=True, timeout=BUSY_TIMEOUT_S)) as opened,
            closing(sqlite3.connect(target)) as copy,
        ):
            opened.backup(copy)
    except (sqlite3.Error, OSError) as exc:
        raise StoreUnreachable("sqlite", f"{source}: {exc}") from exc


def make_private(path: Path) -> None:
    """Make a file, and the folder that it is in, for this user alone, unless they are there.

    What SQLite lays beside a database is for those who may read that.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def write_ahead(connection: sqlite3.Connection, timeout_s: float) -> str:
    """Ask for WAL mode, and return the mode that is had. SQLite does not wait by itself for others who do the same."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return str(mode)
        except sqlite3.OperationalError as exc:
            if code_of(exc) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(WAL_PAUSE_S)


def code_of(exc: BaseException) -> int:
    """Return the error's code without the bits of detail; 0 for an error of the module itself."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF
