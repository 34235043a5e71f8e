"""Locks of one connection on one table, for moments; had in time or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from psycopg import sql

from vecferry.errors import Locked
from vecferry.stores import Patience
from vecferry.stores.pgvector.connection import Database, LockTimedOut, identifier
from vecferry.stores.pgvector.fence import Fence
from vecferry.stores.pgvector.table import Table
from vecferry.stores.waiting import patiently

T = TypeVar("T")


class TableLocks:
    def __init__(self, database: Database, fence: Fence, table: Table) -> None:
        self._db = database
        self._fence = fence
        self._table = table

    def without_writers(self, work: Callable[[], T], patience: Patience) -> T:
        """`work` in a transaction that waits for writers to end and holds new ones off. Raises Locked, naming who
        uses the table. Readers are let through until `work` changes the table itself.
        """
        return patiently(lambda: self._try(work, patience), patience)

    def _try(self, work: Callable[[], T], patience: Patience) -> T:
        try:
            with self._fence.transaction():
                self._limit_lock_wait(patience.timeout_s)
                self.lock("SHARE ROW EXCLUSIVE")
                return work()
        except LockTimedOut as exc:
            tried = f"{patience.tries} times {patience.timeout_s:g} s"
            what = f"{self._table.schema}.{self._table.name} (waited {tried}; the same vectors still serve)"
            raise Locked(what, self._users() or "a transaction that has ended since") from exc

    def lock(self, mode: str) -> None:
        """Until the transaction ends. ACCESS SHARE is enough for columns to keep their names."""
        name = identifier(self._table.schema, self._table.name)
        self._db.execute(sql.SQL("LOCK TABLE {} IN {} MODE").format(name, sql.SQL(mode)))

    def lock_out_readers(self) -> None:
        """A transaction that has read the table and now waits to write it would be in a deadlock with us,
        and PostgreSQL might end that one; so we give up well before it looks.
        """
        (limit_ms,) = self._db.row(
            "SELECT least(nullif(t.setting::int, 0), d.setting::int / 2) FROM pg_settings t, pg_settings d"
            " WHERE t.name = 'lock_timeout' AND d.name = 'deadlock_timeout'"
        )
        self._limit_lock_wait(limit_ms / 1000)
        self.lock("ACCESS EXCLUSIVE")

    def _limit_lock_wait(self, timeout_s: float) -> None:
        self._db.rows("SELECT set_config('lock_timeout', %s, true)", [f"{max(int(timeout_s * 1000), 1)}ms"])

    def _users(self) -> str:
        rows = self._db.rows(
            "SELECT DISTINCT a.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE l.relation = %s::oid AND l.granted AND a.pid <> pg_backend_pid() ORDER BY a.pid LIMIT 5",
            [self._table.oid],
        )
        return ", ".join(f"pid {pid} ({name or 'unnamed'})" for pid, name in rows)
