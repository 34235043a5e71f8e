"""The connection to PostgreSQL, and how statements are put together. All errors of psycopg end here."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from vecferry.errors import StoreFailed, StoreSchemaError, StoreUnreachable
from vecferry.stores.pgvector.binary import Binary, BinaryDumper

Fragment = sql.SQL | sql.Composed | sql.Identifier
Params = Sequence[object] | Mapping[str, object]

CONNECT_TIMEOUT_S = 10
IDLE_IN_TRANSACTION = "5s"
"""A process that is stopped inside a transaction would keep its locks, and with them the lease, for ever."""
KEY_SETTINGS = {
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}
"""A key is written as text in one session and compared in another, so all of ours have these."""


SETTINGS = KEY_SETTINGS | {
    "client_encoding": "UTF8",
    "row_security": "off",  # a policy must not hide rows from a migration of all rows
    "default_transaction_isolation": "read committed",  # guarded writes look at a row's latest version
    "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION,
    "statement_timeout": "0",  # the role's would end an index build; waiting for locks has limits of its own
    "lock_timeout": "0",
}
"""What a session of ours begins with. It is part of the connection's first message: a pool that would keep it for the
next user of the session refuses it, or drops it, which is seen.
"""
BEHIND_A_POOL = (
    "a pool of connections answers, such as PgBouncer, and its sessions are not ours to set up; give the URL of the"
    " server itself"
)


OWN_PATH = "pg_catalog, pg_temp"
"""Where names without a schema are looked up: whoever may create in another schema could make a function or operator
there that fits better than the server's, and would act with our rights.
"""


class LockTimedOut(StoreFailed):
    """A lock was not had in time; caught in this package."""


class StatementTimedOut(StoreFailed):
    """A statement, or a transaction, took longer than we let it; caught in this package."""


class ConstraintViolated(StoreFailed):
    """A row is not as a constraint asks; caught in this package."""


class Database:
    """One connection, each statement kept at once unless in `transaction`. All errors of psycopg end here.

    schemas: where the role looks up names, in this order; ours are looked up in `OWN_PATH`.
    """

    def __init__(self, database_url: str) -> None:
        """Connect. Raises StoreUnreachable; no message carries the password."""
        try:
            params = psycopg.conninfo.conninfo_to_dict(database_url)
        except psycopg.ProgrammingError:
            reason = "the database URL is not of the form postgresql://USER@HOST:PORT/DATABASE"
            raise StoreUnreachable("pgvector", reason) from None  # psycopg's message repeats the URL
        self._url = database_url
        self._password = str(params.get("password") or "")
        self._connect_timeout = params.get("connect_timeout", CONNECT_TIMEOUT_S)
        self._options = " ".join([str(params.get("options") or ""), *map(_startup_option, SETTINGS.items())]).strip()
        self._open()
        self._wants_primary = not self._is_standby

    def _open(self) -> None:
        with self._translated():
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=self._connect_timeout,
                options=self._options,
                fallback_application_name=f"vecferry (pid {os.getpid()} on {socket.gethostname()})",
            )
            try:
                self._set_up()
            except (psycopg.Error, StoreUnreachable):
                self._connection.close()
                raise

    def _set_up(self) -> None:
        """Complete what the session began with. Raises StoreUnreachable behind a pool, whose sessions are not ours."""
        self._connection.adapters.register_dumper(Binary, BinaryDumper)
        (row_security,) = self._connection.execute("SHOW row_security").fetchone() or ("on",)
        if row_security != "off":
            raise StoreUnreachable("pgvector", BEHIND_A_POOL)
        (schemas,) = self._connection.execute(
            "SELECT pg_catalog.current_schemas(false)::pg_catalog.text[]"
        ).fetchone() or ([],)
        self.schemas: list[str] = schemas
        self._connection.execute("SELECT pg_catalog.set_config('search_path', %s, false)", [OWN_PATH])
        if self.server_version >= 140000:
            # so that the server ends a long statement, and frees our locks, soon after we were killed
            self._connection.execute("SET client_connection_check_interval = '1s'")
        if self.server_version >= 170000:
            self._connection.execute("SET transaction_timeout = 0")

    def another(self) -> Database:
        """Open an equal connection. Raises StoreUnreachable."""
        return Database(self._url)

    def reconnect(self) -> None:
        """Leave a new connection in the place of this one, for all that use it. Raises StoreUnreachable.

        A standby that has not taken the place of the primary yet is not what was lost.
        """
        self._connection.close()
        self._open()
        if self._wants_primary and self._is_standby:
            self._connection.close()
            raise StoreUnreachable("pgvector", "the server that answers is a standby, which takes no writes yet")

    @property
    def _is_standby(self) -> bool:
        """False for a server before PostgreSQL 14, which does not say it by itself."""
        return self._connection.info.parameter_status("in_hot_standby") == "on"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as exc:
            raise LockTimedOut("pgvector", self._reason(exc)) from exc
        except (psycopg.errors.QueryCanceled, psycopg.errors.TransactionTimeout) as exc:
            raise StatementTimedOut("pgvector", self._reason(exc)) from exc
        except psycopg.errors.CheckViolation as exc:
            raise ConstraintViolated("pgvector", self._reason(exc)) from exc
        except psycopg.errors.DependentObjectsStillExist as exc:
            detail = " ".join((exc.diag.message_detail or "").split())
            expected = "Drop what depends on it, or make it anew on the vectors that serve."
            raise StoreSchemaError(f"{self._reason(exc)} ({detail})", expected) from exc
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as exc:
            raise StoreSchemaError(self._reason(exc), "The table was changed meanwhile; put it back.") from exc
        except UnicodeEncodeError as exc:
            what = f"a statement or value has a lone surrogate, U+{ord(exc.object[exc.start]):04X}, which no text has"
            raise StoreFailed("pgvector", what) from exc
        except psycopg.Error as exc:
            if "unsupported startup parameter" in str(exc):
                raise StoreUnreachable("pgvector", BEHIND_A_POOL) from exc
            if self._is_lost(exc):
                raise StoreUnreachable("pgvector", self._reason(exc)) from exc
            raise StoreFailed("pgvector", self._reason(exc)) from exc

    def _is_lost(self, exc: psycopg.Error) -> bool:
        """Return whether the server went away or was never there: connection errors (08), shutdown (57P), no state.

        An operational error without a state is the client's own: a connection that was cut in a pipeline, say, is not
        `closed` yet.
        """
        if not hasattr(self, "_connection") or self._connection.closed:
            return True
        if exc.sqlstate is None:
            return isinstance(exc, psycopg.OperationalError)
        return exc.sqlstate.startswith(("08", "57P"))

    def _reason(self, exc: psycopg.Error) -> str:
        reason = " ".join((exc.diag.message_primary or str(exc)).split())
        return reason.replace(self._password, "***") if self._password else reason

    def rows(self, query: Fragment | str, params: Params = ()) -> list[tuple[Any, ...]]:
        with self._translated():
            return self._connection.execute(as_query(query), params).fetchall()

    def row(self, query: Fragment | str, params: Params = ()) -> tuple[Any, ...]:
        """Return the only row of an answer that always has one."""
        (row,) = self.rows(query, params)
        return row

    def execute(self, query: Fragment | str, params: Params = ()) -> int:
        """Return the number of rows that were written.

        One statement alone: what is called binary goes by the protocol in which the server refuses several, and SQL of
        an operator's, a condition or a text, may have a semicolon.
        """
        with self._translated():
            return self._connection.execute(as_query(query), params, binary=True).rowcount

    def script(self, statements: str) -> None:
        """Run several statements without parameters, in one transaction."""
        with self._translated(), self._connection.transaction():
            self._connection.execute(sql.SQL(statements))

    def execute_many(self, query: Fragment | str, params: Sequence[Sequence[object]]) -> None:
        with self._translated(), self._connection.cursor() as cursor:
            cursor.executemany(as_query(query), params)

    def rows_of_many(self, query: Fragment | str, params: Iterable[Sequence[object]]) -> list[tuple[Any, ...]]:
        """Return the rows of all answers. Parameters are made while the server is at work on those before."""
        rows: list[tuple[Any, ...]] = []
        with self._translated(), self._connection.cursor() as cursor:
            cursor.executemany(as_query(query), params, returning=True)
            while cursor.pgresult is not None:
                rows += cursor.fetchall()
                if not cursor.nextset():
                    break
            self._connection.execute("")  # after a pipeline alone, idle_in_transaction_session_timeout does not run
        return rows

    @contextmanager
    def as_the_role_names(self) -> Iterator[None]:
        """Open a transaction in which names are looked up as the role does, after the server's own; nothing is kept."""
        with self._translated(), self._connection.transaction(force_rollback=True):
            self._connection.execute("SET TRANSACTION READ WRITE")  # for something temporary
            path = ", ".join(["pg_catalog", *(sql.Identifier(name).as_string() for name in self.schemas)])
            self._connection.execute("SELECT pg_catalog.set_config('search_path', %s, true)", [path])
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Open a transaction; inside another, what is written is kept or lost with that one."""
        with self._translated(), self._connection.transaction():
            yield

    @property
    def in_transaction(self) -> bool:
        return self._connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE

    @property
    def server_version(self) -> int:
        """180001 for 18.1."""
        return self._connection.info.server_version

    @property
    def is_open(self) -> bool:
        return not self._connection.closed

    def close(self) -> None:
        self._connection.close()


def _startup_option(setting: tuple[str, str]) -> str:
    """Write a setting as the first message has it."""
    name, value = setting
    return f"-c {name}=" + value.replace(" ", "\\ ")


def as_query(query: Fragment | str) -> sql.SQL | sql.Composed:
    if isinstance(query, str):
        return sql.SQL(query)
    return query if isinstance(query, sql.SQL | sql.Composed) else sql.Composed([query])


class Name(sql.Identifier):
    """A quoted name. Every statement here may have placeholders, so that a % in a name is doubled."""

    def as_bytes(self, context: Any = None) -> bytes:
        return super().as_bytes(context).replace(b"%", b"%%")


def identifier(*parts: str) -> Name:
    return Name(*parts)


def verbatim(text: str) -> sql.SQL:
    """Return as SQL what the server itself has written: a type, a condition."""
    return sql.SQL(text.replace("%", "%%"))


def literal(value: str) -> sql.SQL:
    """Return a constant, for where the server takes no parameter."""
    return verbatim(sql.Literal(value).as_string())


def run(database: Database, statements: Iterable[str]) -> None:
    """Run what the server itself has written."""
    for statement in statements:
        database.execute(verbatim(statement))
