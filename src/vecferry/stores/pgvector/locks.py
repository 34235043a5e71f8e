"""Who may work on a table: one runner, and for moments nobody else."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from psycopg import sql

from vecferry.errors import Locked
from vecferry.stores import Patience
from vecferry.stores.pgvector.connection import Database, LockTimedOut, identifier
from vecferry.stores.pgvector.table import Table

T = TypeVar("T")


class TableLocks:
    """Locks of one connection on one table."""

    def __init__(self, database: Database, table: Table, target: str) -> None:
        self._db = database
        self._table = table
        self._table_name = identifier(table.schema, table.name)
        self._target = target

    def exclusively(self, work: Callable[[], T], patience: Patience) -> T:
        """See `Store.exclusively`. Readers are let through until `work` changes the table itself."""
        pause_s = patience.pause_s
        for attempt in range(patience.tries):
            if attempt:
                time.sleep(pause_s)
                pause_s *= 2
            try:
                with self._db.transaction():
                    self._limit_lock_wait(patience.timeout_s)
                    self._db.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(self._table_name))
                    return work()
            except LockTimedOut as exc:
                failure, holders = exc, self._table_users()
        tried = f"{patience.tries} times {patience.timeout_s:g} s"
        what = f"{self._table.schema}.{self._table.name} (waited {tried}; the same vectors still serve)"
        raise Locked(what, holders or "a transaction that has ended since") from failure

    def _limit_lock_wait(self, timeout_s: float) -> None:
        self._db.rows("SELECT set_config('lock_timeout', %s, true)", [f"{max(int(timeout_s * 1000), 1)}ms"])

    def lock_out_readers(self) -> None:
        """A transaction that has read the table and now waits to write it would be in a deadlock with us,
        and PostgreSQL might end that one; so we give up well before it looks.
        """
        (limit_ms,) = self._db.row(
            "SELECT least(t.setting::int, d.setting::int / 2) FROM pg_settings t, pg_settings d"
            " WHERE t.name = 'lock_timeout' AND d.name = 'deadlock_timeout'"
        )
        self._limit_lock_wait(limit_ms / 1000)
        self._db.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(self._table_name))

    def _table_users(self) -> str:
        return self._people(
            "SELECT DISTINCT a.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE l.relation = %s::oid AND l.granted AND a.pid <> pg_backend_pid() ORDER BY a.pid LIMIT 5",
            [self._table.oid],
        )

    def _people(self, query: str, params: Sequence[object]) -> str:
        return ", ".join(f"pid {pid} ({name or 'unnamed'})" for pid, name in self._db.rows(query, params))

    @contextmanager
    def runner(self) -> Iterator[None]:
        """See `Store.runner`. An advisory lock of the session: it ends with the connection, however that ends."""
        number = int.from_bytes(hashlib.sha256(f"vecferry {self._target}".encode()).digest()[:8], "big", signed=True)
        (got,) = self._db.row("SELECT pg_try_advisory_lock(%s)", [number])
        if not got:
            holder = self._people(
                "SELECT a.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
                " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                " AND (l.classid::bigint << 32) | l.objid::bigint = %s",
                [number],
            )
            raise Locked(self._target, holder or "a run that has ended since")
        try:
            yield
        finally:
            if self._db.is_open:
                self._db.rows("SELECT pg_advisory_unlock(%s)", [number])
