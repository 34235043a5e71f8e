"""The ledger in the database that is migrated, in the schema `vecferry`."""

from __future__ import annotations

from vecferry.errors import Locked
from vecferry.stores.ledger import Lease
from vecferry.stores.pgvector.connection import Database, LockTimedOut
from vecferry.stores.sql_ledger import TABLES, Ledger

TAKEOVER_WAIT_S = 10
"""For a transaction of the former holder to end; the server ends one that was stopped in it (`connection.py`)."""

INSTALL = (
    "SELECT pg_advisory_xact_lock(7521364290180)",  # two runners, of two tables, may come here at once
    "CREATE SCHEMA IF NOT EXISTS vecferry",
    *TABLES,
    """
    CREATE TABLE IF NOT EXISTS vecferry.changes (
        number bigint GENERATED ALWAYS AS IDENTITY,
        target text NOT NULL,
        key text NOT NULL,  -- as in dead_letters
        side text  -- on which it is to be followed; NULL is both
    )
    """,
    "CREATE INDEX IF NOT EXISTS changes_of_both_sides ON vecferry.changes (target, number) WHERE side IS NULL",
    "CREATE INDEX IF NOT EXISTS changes_of_a_side ON vecferry.changes (target, side, number) WHERE side IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS changes_of_a_key ON vecferry.changes (target, side, key) WHERE side IS NOT NULL",
)


class PgLedger(Ledger):
    """The ledger on the store's own connection, so that it shares the store's transactions."""

    _db: Database

    def __init__(self, database: Database) -> None:
        self._db = database

    def install(self) -> None:
        if not self.is_installed():
            self._db.script(";".join(INSTALL))

    def is_installed(self) -> bool:
        (is_there,) = self._db.row("SELECT to_regclass('vecferry.changes') IS NOT NULL")
        return bool(is_there)

    def another(self) -> PgLedger:
        return PgLedger(self._db.another())

    def recorded_spaces(self, target: str) -> tuple[str | None, str | None]:
        """Return what serves and the old side of the open migration, as fingerprints; None for what is unknown."""
        if not self.is_installed():
            return None, None
        serving, old = self._db.row(
            "SELECT (SELECT fingerprint FROM vecferry.serving WHERE target = %s),"
            " (SELECT spec::json ->> 'old_fingerprint' FROM vecferry.migrations"
            "  WHERE target = %s AND state NOT IN ('finalized', 'aborted'))",
            [target, target],
        )
        return serving, old

    def was_switched(self, target: str) -> bool:
        """Return whether the migration that is open was switched at least once; every write asks, so in one query."""
        if not self.is_installed():
            return False
        (is_later,) = self._db.row(
            "SELECT EXISTS (SELECT FROM vecferry.migrations m JOIN vecferry.serving s USING (target)"
            " WHERE m.target = %s AND m.state NOT IN ('finalized', 'aborted')"
            " AND s.epoch > (m.spec::json ->> 'epoch')::bigint)",
            [target],
        )
        return bool(is_later)

    def _take(self, lease: Lease, seconds: float, *, from_the_gone: bool) -> bool:
        try:
            with self._db.transaction():
                self._db.rows("SELECT set_config('lock_timeout', %s, true)", [f"{TAKEOVER_WAIT_S}s"])
                return super()._take(lease, seconds, from_the_gone=from_the_gone)
        except LockTimedOut as exc:
            raise Locked(lease.target, self._lease_holder(lease.target)) from exc
