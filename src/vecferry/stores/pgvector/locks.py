"""Locks of one connection on a table, or on several at once, for moments; had in time or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from psycopg import sql

from vecferry.errors import Locked, PauseExceeded
from vecferry.stores.pgvector.connection import Database, LockTimedOut, StatementTimedOut, identifier, run
from vecferry.stores.pgvector.lease_guard import LeaseGuard
from vecferry.stores.pgvector.partitions import TREE
from vecferry.stores.pgvector.table import SCHEMA, Table
from vecferry.stores.pgvector.views import carried_views
from vecferry.stores.values import Held, Patience
from vecferry.stores.waiting import patiently

T = TypeVar("T")

ALONE = "ACCESS EXCLUSIVE"
PART = "the part"
"""Not of the table: the advisory lock that stands for the part, which all of ours take before the table."""
SHARED = {"ACCESS SHARE", "ROW EXCLUSIVE"}
STOPPED_S = 2.0
"""Beyond the longest pause that is allowed; then the server ends a session that does nothing in such a transaction."""
MAINTENANCE_S = 1.0
"""Beyond `deadlock_timeout`, after which the server cancels an autovacuum that somebody waits for."""
QUERY_SHOWN = 60
USERS = """
SELECT DISTINCT a.pid, a.application_name, a.backend_type, a.state, left(a.query, %(shown)s),
    extract(epoch FROM clock_timestamp() - a.xact_start)::int AS age
FROM tree JOIN pg_locks l ON l.relation = tree.oid JOIN pg_stat_activity a USING (pid)
WHERE l.granted AND a.pid <> pg_backend_pid() ORDER BY age DESC LIMIT 5
"""


class TableLocks:
    """For moments in which `work` is done with all of the tables, or a part of one.

    tables: in the order in which they are locked, which all who lock several of them keep to. name: for messages.
    """

    def __init__(self, database: Database, guard: LeaseGuard, *tables: Table, name: str | None = None) -> None:
        self._db = database
        self._guard = guard
        self._table, self._tables = tables[0], tables
        self._name = name or self._table.full_name
        self._held_until = 0.0

    def without_writers(self, work: Callable[[], T], patience: Patience) -> Held[T]:
        """Run `work` in a transaction that waits for writers to end and holds new ones off, and lets readers through.

        Raises Locked, naming who uses the table.
        """
        return patiently(lambda pause_s: self._try("SHARE ROW EXCLUSIVE", work, pause_s, patience), patience)

    def alone(self, work: Callable[[], T], patience: Patience) -> Held[T]:
        """Run `work` without writers and readers, as to change columns. Raises Locked, naming who uses the table.

        The lock is asked for at once, not after that of writers. So a transaction that has read the table and now
        wants to write it goes on before us, and nobody is ever in a deadlock with us, however long we wait. Views that
        `work` may drop are locked before the table, as readers do; whoever has the table and now wants a view would be
        in a deadlock with us, so then we wait for less than the time after which the server looks for one.
        """
        return patiently(lambda pause_s: self._try(ALONE, work, pause_s, patience), patience)

    def part_alone(self, work: Callable[[], T], patience: Patience) -> Held[T]:
        """Run `work` while none of ours reads or writes the part; the table is everybody's meanwhile.

        Clients with SQL of their own go on in the part too: what `work` does there goes by checksums and row locks.
        Raises Locked, naming who uses the table.
        """
        return patiently(lambda pause_s: self._try(PART, work, pause_s, patience), patience)

    def _try(self, mode: str, work: Callable[[], T], pause_s: float, patience: Patience) -> Held[T]:
        try:
            with self._guard.transaction():
                # a process that is stopped (a debugger, a frozen machine) in this transaction must not keep its locks
                self._set("idle_in_transaction_session_timeout", patience.max_pause_s + STOPPED_S)
                deadlock_s = self._end_maintenance()
                views = [view for each in self._tables for view in carried_views(self._db, each)]
                views = views if mode == ALONE else []
                # somebody may have what we ask for after the first
                is_behind = bool(views) or mode == PART or len(self._tables) > 1 or self._table.is_partitioned
                lock_s = min(pause_s, deadlock_s / 2) if is_behind else pause_s
                self._set("lock_timeout", lock_s)
                asked_at = time.monotonic()
                self._held_until = asked_at + patience.max_pause_s
                run(self._db, [view.lock_statement for view in views])
                self._lock_all(mode, lock_s)
                self._limit_work(patience.max_pause_s)
                result = work()
            return Held(result, time.monotonic() - asked_at)
        except LockTimedOut as exc:
            what = f"{self._name} (the same vectors still serve)"
            raise Locked(what, self.users() or "a transaction that has ended since") from exc
        except StatementTimedOut as exc:
            raise PauseExceeded(self._name, patience.max_pause_s) from exc

    def pause_left_s(self) -> float:
        return self._held_until - time.monotonic()

    def _end_maintenance(self) -> float:
        """Wait for vacuum and the like without holding writers off, and keep them away until the end.

        Only an autovacuum is in the way of the stronger lock for long; the server cancels it for whoever has waited
        for `deadlock_timeout`, and while we wait for this lock, others need not. Returns these seconds.
        """
        (deadlock_s,) = self._db.row("SELECT setting::int / 1000.0 FROM pg_settings WHERE name = 'deadlock_timeout'")
        self._set("lock_timeout", float(deadlock_s) + MAINTENANCE_S)
        for table in self._tables:
            self._lock([identifier(table.schema, table.name)], "SHARE UPDATE EXCLUSIVE")
            if self._has_side_table(table):
                self._lock([identifier(SCHEMA, table.side_table)], "SHARE UPDATE EXCLUSIVE")
        return float(deadlock_s)

    def _limit_work(self, max_pause_s: float) -> None:
        """Limit the time of the work: from here on others wait for the end."""
        self._set("statement_timeout", max_pause_s + STOPPED_S)
        if self._db.server_version >= 170000:
            self._set("transaction_timeout", 2 * (max_pause_s + STOPPED_S))

    def _lock_all(self, mode: str, seconds: float) -> None:
        """Lock the tables with their partitions, all within these seconds: each lock may take so long by itself.

        Or the part alone.
        """
        self._set("statement_timeout", seconds)
        try:
            if mode == PART:
                self._db.rows("SELECT pg_advisory_xact_lock(%s)", [self._table.part_lock])
            else:
                self._lock([identifier(each.schema, each.name) for each in self._tables], mode)
        except StatementTimedOut as exc:
            raise LockTimedOut("pgvector", exc.reason) from exc

    def _set(self, name: str, seconds: float) -> None:
        self._db.rows("SELECT set_config(%s, %s, true)", [name, f"{max(round(1000 * seconds), 1)}ms"])

    def lock(self, mode: str) -> None:
        """Lock the table until the transaction ends. ACCESS SHARE is enough for columns to keep their names.

        Its partitions are not: whoever changes it has to have it first. The part that is migrated has a lock of its
        own, which is had before the table's: so whoever waits for a switch has nothing that its end waits for.
        """
        if self._table.where is not None and mode in SHARED:
            self._db.rows("SELECT pg_advisory_xact_lock_shared(%s)", [self._table.part_lock])
        self._lock([identifier(self._table.schema, self._table.name)], mode, only="ONLY ")

    def lock_side_table(self) -> None:
        """Lock the side table behind the table itself, at once or not at all: whoever has it alone, as pg_dump does for
        a moment, may be waiting for the table that we have.
        """
        self._lock([identifier(SCHEMA, self._table.side_table)], f"{ALONE} MODE NOWAIT")

    def _lock(self, tables: Sequence[sql.Identifier], mode: str, only: str = "") -> None:
        words = mode if mode.endswith("NOWAIT") else f"{mode} MODE"
        names = sql.SQL(f", {only}").join(tables)
        self._db.execute(sql.SQL("LOCK TABLE {}{} IN {}").format(sql.SQL(only), names, sql.SQL(words)))

    def _has_side_table(self, table: Table) -> bool:
        query = "SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = %s AND tablename = %s)"
        return bool(self._db.row(query, [SCHEMA, table.side_table])[0])

    def users(self) -> str:
        """Return who has a lock on the tables now, the oldest transaction first; five of each at most."""
        rows = [
            row
            for each in self._tables
            for row in self._db.rows(TREE + USERS, {"shown": QUERY_SHOWN, "table": each.oid})
        ]
        return ", ".join(dict.fromkeys(_user(*row) for row in rows))


def _user(pid: int, name: str, kind: str, state: str | None, query: str | None, age_s: int | None) -> str:
    who = name if kind == "client backend" else kind
    what = " ".join((query or "").split())
    since = "" if age_s is None else f", {state or 'active'}, transaction of {age_s} s"
    return f"pid {pid} ({who or 'unnamed'}{since}{': ' if what else ''}{what})"
